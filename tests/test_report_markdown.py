"""Reports as Markdown, and the text between a file's markers."""

import pytest

from normwright.report import markdown
from normwright.report.document import Card, Document, Table, Verdict

TABLE = Table("Accuracy", ("", "without", "with"), (("test", "95.0 %", "96.8 %"),), note="On digits.")
BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"


def test_a_table_has_its_heads_its_rows_and_its_note():
    assert markdown.table(TABLE) == (
        "|  | without | with |\n| :--- | ---: | ---: |\n| test | 95.0 % | 96.8 % |\n\nOn digits."
    )


def test_a_document_shows_headline_tables_and_verdicts_in_order():
    card = Card("CNN", "Trained.", (TABLE,), (Verdict("Faster", "holds", "For 3 of 3 seeds."),))
    shown = markdown.render(Document("t", "It helped.", "On digits.", (card,), "normwright demo", ()))
    assert shown.split("\n\n") == [
        "**It helped.**",
        "On digits.",
        "**CNN**. Trained.",
        "|  | without | with |\n| :--- | ---: | ---: |\n| test | 95.0 % | 96.8 % |",
        "On digits.",
        "- Faster: *holds*. For 3 of 3 seeds.\n",
    ]


def test_putting_a_block_into_a_text_twice_is_putting_it_once():
    text = f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe rest.\n"
    once = markdown.put_into(text, "demo", "| new |\n")
    assert once == f"# Title\n\n{BEGIN}\n| new |\n{END}\n\nThe rest.\n"
    assert markdown.put_into(once, "demo", "| new |\n") == once


@pytest.mark.parametrize("text", ["no markers", BEGIN, f"{END} {BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_text_without_its_two_markers_is_refused(text):
    with pytest.raises(ValueError, match="demo:begin"):
        markdown.put_into(text, "demo", "new")
