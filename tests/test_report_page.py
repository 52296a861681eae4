"""The page: one file that needs nothing else, in two languages, its pictures sound."""

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

import tiny_lab
from normwright.lab import run
from normwright.lab.data import load
from normwright.lab.registry import EXPERIMENTS
from normwright.report import figures, laboratory, page, records, style
from normwright.report.document import Answer, Card, Document, Picture, Table, Verdict, outcome_words
from normwright.report.words import Say
from tiny_lab import EN, ZH

CHINESE = re.compile(r"[\u4e00-\u9fff]")
STAND_INS = re.compile(r"[\u4dc0-\u4dff]")


def documents(folder, names):
    """What these experiments measured at tiny size, told in both languages from one results file."""
    measured = {}
    for name in names:
        result, _ = tiny_lab.measure(EXPERIMENTS[name])
        measured[name] = (list(result.records), 1.0)
    run._write_results(folder / "results.json", run.Order(names, "tiny"), load(), measured)
    found, about = records.read(folder / "results.json")
    return {say.language: laboratory.document(found, about, say) for say in (EN, ZH)}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return documents(tmp_path_factory.mktemp("race"), ["race"])


@pytest.fixture(scope="module")
def pages(told):
    return {language: page.render(document, Say(language)) for language, document in told.items()}


# --- what every page is -----------------------------------------------


class Tags(HTMLParser):
    """Every opening tag, and whether each is closed in its order."""

    EMPTY = ("meta", "br", "img", "hr", "link", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def assert_needs_nothing(html: str) -> None:
    """No script, no style sheet, font or picture from elsewhere."""
    bare = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert re.findall(r"https?:[^\s\"'<]*", bare) == []
    assert (
        re.findall(r"(?:src|srcset|poster|data|action)=|@import|@font-face|<script|<link|<iframe", bare) == []
    )
    assert re.findall(r"href=\"(?!#)[^\"]*\"", bare) == []
    assert re.findall(r"url\((?!#)[^)]*\)", bare) == []


def assert_whole(html: str, document: Document) -> None:
    """Every picture is XML, every id is there once, everything that is pointed at is there."""
    assert Tags(html).open == []
    pictures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(pictures) == len(document.pictures)
    for each in pictures:
        ElementTree.fromstring(each)
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert sorted({each for each in ids if ids.count(each) > 1}) == []
    used = set(re.findall(r'(?:href="|url\()#([^")]*)', html))
    assert used
    assert used - set(ids) == set()


def assert_tells(html: str, document: Document, say: Say) -> None:
    """Every claim, verdict, table and command of the document is there to read."""
    read = unescape(re.sub(r"[\u00a0\u2060]", lambda sign: " " if sign[0] == "\u00a0" else "", html))
    for card in document.cards:
        for words in (card.title, card.claim, card.done, card.see, card.command):
            assert words in read
        for verdict in card.verdicts:
            assert verdict.claim in read
            assert outcome_words(verdict.outcome, say) in read
            assert verdict.sentence in read
        for table in card.tables + card.details:
            for words in (
                table.title,
                *table.columns,
                *(cell for row in table.rows for cell in row),
                table.note,
            ):
                assert words in read
        for picture in card.pictures:
            assert picture.alt in read
    for answer in document.answers:
        assert answer.question in read
        assert answer.answer in read


def untranslated(document: Document) -> list[str]:
    """Words of a Chinese document in which there is no Chinese."""
    words = [document.title, document.headline, document.about]
    for card in document.cards:
        words += [card.title, card.claim, card.done, card.see]
        words += [part for verdict in card.verdicts for part in (verdict.claim, verdict.sentence)]
        words += [picture.alt for picture in card.pictures]
        words += [table.note for table in card.tables + card.details]
    words += [part for answer in document.answers for part in (answer.question, answer.answer)]
    return [each for each in words if each and not CHINESE.search(each)]


def chinese_parts(document: Document) -> list[str]:
    """Words of an English document in which there is Chinese."""
    text = json.dumps([repr(card) for card in document.cards] + [repr(document.answers)], ensure_ascii=False)
    return CHINESE.findall(text + document.headline + document.about)


# --- the race ---------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_needs_nothing_from_anywhere(pages, language):
    assert_needs_nothing(pages[language])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_is_whole_and_tells_everything(told, pages, language):
    assert_whole(pages[language], told[language])
    assert_tells(pages[language], told[language], Say(language))


def test_the_page_says_its_language(pages):
    assert '<html lang="en">' in pages["en"]
    assert re.search(r'<html lang="zh[\w-]*">', pages["zh"])


def test_a_chinese_page_leaves_no_claim_in_english_and_an_english_one_none_in_chinese(told, pages):
    assert untranslated(told["zh"]) == []
    assert chinese_parts(told["en"]) == []
    assert not CHINESE.search(pages["en"].replace(style.FONT, ""))
    for words in ("The claim", "holds", "Measure it again", "without BN"):
        assert words in pages["en"]
        assert words not in re.sub(r"<style.*?</style>|class=\"[^\"]*\"", "", pages["zh"], flags=re.DOTALL)


def test_pictures_in_chinese_have_their_signs(told, pages):
    signs = [svg for svg in re.findall(r"<svg.*?</svg>", pages["zh"], flags=re.DOTALL) if CHINESE.search(svg)]
    assert len(signs) == len(told["zh"].pictures)
    assert not STAND_INS.search(pages["zh"])


def test_machine_and_versions_stand_on_the_page(told, pages):
    assert [name for name, _ in told["en"].stamp][:2] == ["processor", "cores"]
    for html in pages.values():
        assert all(f"<dt>{name}</dt><dd>{fact}</dd>" in html for name, fact in told["en"].stamp)


# --- every experiment -------------------------------------------------


@pytest.mark.slow
def test_the_whole_laboratory_is_told_on_one_page_in_either_language(tmp_path):
    told = documents(tmp_path, list(EXPERIMENTS))
    assert untranslated(told["zh"]) == []
    assert chinese_parts(told["en"]) == []
    for language, document in told.items():
        say = Say(language)
        html = page.render(document, say)
        assert_needs_nothing(html)
        assert_whole(html, document)
        assert_tells(html, document, say)
        assert not STAND_INS.search(html)
        assert [card.name for card in document.cards] == list(EXPERIMENTS)
    found, about = records.read(tmp_path / "results.json")
    for record in found:
        assert record.row in EXPERIMENTS[record.experiment].rows
    assert set(about["experiments"]) == {record.experiment for record in found}


# --- words that are not the page's ------------------------------------


def made_up(**changes) -> Document:
    axis = figures.Axis("x <&> y")
    drawn = figures.Line("a < b & c", [0, 1], [1, 2], style.WITH)
    card = Card(
        name="one",
        title="If a < b",
        claim="It is <b>bold</b> & 'quoted' by 93.1 % – 97.0 %.",
        done="12 ms.",
        verdicts=(Verdict("A < B", "holds partly", 'Said "so".'),),
        pictures=(Picture("one-line", lambda: figures.lines([drawn], axis, axis), 'Shows "it" <here>.'),),
        tables=(Table("T<1>", ("", "<i>"), (("row", "5 %"),), note="n < 3"),),
        command="normwright lab one",
    )
    parts = {"title": "t", "headline": "<script>alert(1)</script>", "about": "about", "cards": (card,)}
    return Document(**{**parts, "command": "normwright lab all", "stamp": (("cpu", "<x>"),), **changes})


def test_words_are_words_and_never_markup():
    html = page.render(made_up(), EN)
    tags = Tags(html)
    assert tags.open == []
    assert {"script", "b ", "i"}.isdisjoint(tag for tag, _ in tags.seen)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    (picture,) = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert "a < b & c" in {text.text for text in ElementTree.fromstring(picture).iter()}
    assert 'Shows "it" <here>.' in {attributes.get("aria-label") for _, attributes in tags.seen}


def test_no_number_is_torn_from_its_unit_nor_a_range_in_two():
    assert page._unbroken("93.1 % (90.0–97.0), 12 ms, 3 s, 4 MB") == (
        "93.1\u00a0% (90.0\u2060–\u206097.0), 12\u00a0ms, 3\u00a0s, 4\u00a0MB"
    )
    assert page._unbroken("all stays, so much") == "all stays, so much"


def test_a_page_of_one_card_has_no_list_of_claims_and_one_of_two_leads_to_each():
    one = made_up()
    (card,) = one.cards
    two = made_up(cards=(card, replace(card, name="two", pictures=())))
    assert "<nav" not in page.render(one, EN)
    html = page.render(two, EN)
    assert 'href="#one"' in html
    assert 'href="#two"' in html
    assert_whole(html, two)
    assert "holds partly" not in page.render(two, ZH)


def test_a_question_leads_to_the_picture_that_shows_it():
    document = made_up(answers=(Answer("Why?", "Therefore.", "one-line"), Answer("How?", "Thus.")))
    html = page.render(document, EN)
    assert_whole(html, document)
    assert html.count('href="#picture-one-line"') == 1
    assert "Questions" not in page.render(made_up(), EN)


@pytest.mark.parametrize("of", ["holds", "holds partly", "does not hold here"])
def test_every_outcome_is_told_in_words_and_not_by_colour_alone(of):
    (card,) = made_up().cards
    verdict = Verdict("A", of, "S.")
    for say in (EN, ZH):
        html = page.render(made_up(cards=(replace(card, verdicts=(verdict,), pictures=()),)), say)
        assert outcome_words(of, say) in html


def test_the_page_is_written_as_it_is_rendered(tmp_path):
    page.write(tmp_path / "index.html", made_up(), ZH)
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == page.render(made_up(), ZH)


# --- words ------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "en", "zh"),
    [
        (["MLP"], "MLP", "MLP"),
        (["MLP", "CNN"], "MLP and CNN", "MLP 和 CNN"),
        (["MLP", "CNN", "deep CNN"], "MLP, CNN and deep CNN", "MLP、CNN 和 deep CNN"),
    ],
    ids=["one", "two", "three"],
)
def test_names_are_listed_as_the_language_does(names, en, zh):
    assert (EN.listed(names), ZH.listed(names)) == (en, zh)


def test_english_is_spoken_where_nothing_else_is_asked_for():
    assert Say()("yes", "是") == "yes"
    assert Say("zh")("yes", "是") == "是"
