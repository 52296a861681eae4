"""Reports as Markdown, and the text between a file's markers."""

from dataclasses import replace

import pytest

from normwright.report import markdown
from normwright.report.document import Answer, Card, Document, Picture, Table, Verdict
from tiny_lab import EN, ZH

TABLE = Table("Accuracy", ("", "without", "with"), (("test", "95.0 %", "96.8 %"),), note="On digits.")
BEGIN, END = "<!-- summary:begin -->", "<!-- summary:end -->"


def picture(name: str) -> Picture:
    return Picture(
        name, lambda: pytest.fail("Markdown shows the file and draws nothing"), f"What {name} shows."
    )


CARD = Card(
    name="race",
    title="The race",
    claim="It is faster.",
    done="Both trained.",
    verdicts=(
        Verdict("Faster", "holds", "For 3 of 3 seeds."),
        Verdict("Better", "does not hold here", "For 1 of 3."),
    ),
    pictures=(picture("race-mlp"), picture("race-cnn")),
    see="The dots.",
    tables=(TABLE,),
    details=(replace(TABLE, title="Folded away"),),
    command="normwright lab race",
)
DOCUMENT = Document(
    title="t",
    headline="It helped.",
    about="On digits.",
    cards=(CARD, replace(CARD, name="scale", title="Scale", verdicts=CARD.verdicts[:1])),
    command="normwright lab all",
    stamp=(),
    answers=(Answer("Why?", "Therefore.", "race-cnn"), Answer("How?", "Thus.")),
)


def test_a_table_has_its_heads_its_rows_and_its_note():
    assert markdown.table(TABLE) == (
        "|  | without | with |\n| :--- | ---: | ---: |\n| test | 95.0 % | 96.8 % |\n\nOn digits."
    )


def test_a_table_of_words_stands_to_the_left():
    assert markdown.table(TABLE, numbers=False).splitlines()[1] == "| :--- | :--- | :--- |"


def test_a_bar_in_a_cell_does_not_end_it():
    shown = markdown.table(Table("", ("what", "value"), (("|y - x|", "0"),)))
    assert shown.splitlines()[-1] == r"| \|y - x\| | 0 |"


def test_the_report_tells_each_card_in_order():
    shown = markdown.render(replace(DOCUMENT, cards=(CARD,)), EN, "../pictures")
    assert shown.split("\n\n") == [
        "**It helped.**",
        "On digits.",
        '<a id="race"></a>',
        "## The race",
        "It is faster.",
        "Both trained.",
        "- Faster: **holds**. For 3 of 3 seeds.",
        "- Better: **does not hold here**. For 1 of 3.",
        "![What race-mlp shows.](../pictures/race-mlp.svg)",
        "![What race-cnn shows.](../pictures/race-cnn.svg)",
        "The dots.",
        "**Accuracy**",
        "|  | without | with |\n| :--- | ---: | ---: |\n| test | 95.0 % | 96.8 % |",
        "On digits.",
        "`normwright lab race`",
        "Measured by `normwright lab all`.\n",
    ]


def test_a_card_that_says_little_leaves_no_empty_lines():
    bare = Card("race", "The race", "It is faster.", "Both trained.", CARD.verdicts[:1])
    shown = markdown.render(replace(DOCUMENT, cards=(bare,)), EN, "pictures")
    assert "\n\n\n" not in shown
    assert shown.count("\n\n") == 7


def test_the_summary_has_a_row_for_each_experiment_with_its_claims_by_outcome():
    headline, about, table, again = markdown.summary(DOCUMENT, EN).split("\n\n")
    assert (headline, about, again) == ("**It helped.**", "On digits.", "Measured by `normwright lab all`.\n")
    assert table.splitlines()[2:] == [
        "| The race | Faster |  | Better |",
        "| Scale | Faster |  |  |",
    ]


def test_a_report_in_chinese_gives_the_outcome_in_chinese():
    for shown in (markdown.summary(DOCUMENT, ZH), markdown.render(DOCUMENT, ZH, "pictures")):
        assert "在这里不成立" in shown
        assert "由 `normwright lab all` 测得。" in shown
        assert "does not hold" not in shown


def test_a_question_has_its_answer_and_the_picture_that_shows_it():
    assert markdown.questions(DOCUMENT, "demo/pictures").split("\n\n") == [
        "## Why?",
        "Therefore.",
        "![What race-cnn shows.](demo/pictures/race-cnn.svg)",
        "## How?",
        "Thus.\n",
    ]


def test_putting_a_block_into_a_text_twice_is_putting_it_once():
    text = f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe rest.\n"
    once = markdown.put_into(text, "summary", "| new |\n")
    assert once == f"# Title\n\n{BEGIN}\n| new |\n{END}\n\nThe rest.\n"
    assert markdown.put_into(once, "summary", "| new |\n") == once


@pytest.mark.parametrize("text", ["no markers", BEGIN, f"{END} {BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_text_without_its_two_markers_is_refused(text):
    with pytest.raises(ValueError, match="summary:begin"):
        markdown.put_into(text, "summary", "new")


def test_the_markers_of_another_block_are_left_alone():
    text = f"<!-- bench:begin -->\nspeed\n<!-- bench:end -->\n{BEGIN}\nold\n{END}\n"
    assert markdown.put_into(text, "summary", "new") == text.replace("old", "new")
