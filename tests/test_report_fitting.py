"""Tables as wide as the terminal: what fits is left as it is, what does not goes over lines, then below itself."""

from collections import Counter

import numpy as np
import pytest

from normwright.report import terminal
from normwright.report.document import Notice, Table
from normwright.report.fitting import fit
from normwright.torch.distributed.pooling import LayerPooling, Pooling
from normwright.torch.statistics.drift import Drift, LayerDrift
from terminals import assert_every_word_is_whole, shown

HEADS = (
    "ranks",
    *(f"{what} {unit}" for what in ("received", "reduced", "gathered") for unit in ("ms", "MB")),
)
WIDE = Table(
    "Sent",
    HEADS,
    tuple((str(2**k), *(f"{k}{i},000 ms ({i}%)" for i in range(6))) for k in range(3)),
    "A note.",
)
LONG = ("features.denseblock1.denselayer12.norm1", "module.encoder.layer4.1.downsample.1")
NATURAL = sum(max(map(len, column)) for column in zip(HEADS, *WIDE.rows, strict=True)) + 3 * len(HEADS) + 1


def test_a_table_that_fits_is_left_as_it_is():
    (part,) = fit(WIDE, NATURAL)
    assert part.table == WIDE
    assert max(map(len, shown(WIDE, NATURAL))) == NATURAL
    assert len(shown(WIDE, NATURAL)) == 7  # an empty line, heads, a rule, three rows, an empty line


def test_heads_give_way_before_the_table_is_taken_apart():
    table = Table("", ("a", "a head of many words", "b"), (("1", "2", "3"),))
    for width in (34, 33, 20):
        (part,) = fit(table, width)
        assert sum(part.widths) + 3 * 3 + 1 == min(width, 32)
        assert_every_word_is_whole(table, width)


def test_columns_go_below_each_other_evenly_and_each_part_names_its_rows():
    parts = [part.table for part in fit(WIDE, NATURAL - 1 - 7 * 3)]
    assert [part.columns for part in parts] == [("ranks", *HEADS[1:4]), ("ranks", *HEADS[4:])]
    assert [part.rows[2] for part in parts] == [(WIDE.rows[2][0], *WIDE.rows[2][i : i + 3]) for i in (1, 4)]
    assert [part.title for part in parts] == ["Sent", ""]
    assert [part.note for part in parts] == ["", "A note."]


def test_the_columns_that_name_a_row_stand_in_every_part():
    rows = tuple((str(k), "channels-last", *["1,000 ms (10%)"] * 3) for k in range(2))
    table = Table("", ("shape", "layout", "x", "y", "z"), rows, names=2)
    parts = [part.table for part in fit(table, 60)]
    assert [part.columns for part in parts] == [("shape", "layout", "x", "y"), ("shape", "layout", "z")]
    assert [part.names for part in parts] == [2, 2]


@pytest.mark.parametrize("width", range(40, 131, 10))
def test_no_word_is_cut_and_no_line_too_long(width):
    assert_every_word_is_whole(WIDE, width)


def test_a_number_with_its_share_stays_in_one_line():
    for width in (40, 60, 80):
        lines = shown(WIDE, width)
        assert sum(cell in line for row in WIDE.rows for cell in row[1:] for line in lines) == 18


def test_words_stay_side_by_side_where_a_table_of_numbers_would_be_taken_apart():
    words = Table("", ("situation", "theirs", "ours"), (("one", "a" * 30, "b" * 30),))
    assert len(fit(words, 60)) == 2
    (part,) = fit(words, 60, whole=True)
    assert sum(part.widths) + 3 * 3 + 1 == 60
    assert any("a" in line and "b" in line for line in shown(words, 60, numbers=False))


def test_what_fits_in_no_way_is_broken_and_all_there():
    for table in (WIDE, Table("", ("name",), (("x" * 90,),)), Table("", ("name", "n"), (("x" * 90, "y"),))):
        lines = shown(table, 20)
        assert max(map(len, lines)) <= 20
        assert "…" not in "".join(lines)
        for letter in "x0":
            told = sum(cell.count(letter) for row in table.rows for cell in row)
            assert sum(line.count(letter) for line in lines) >= told


def letters(lines):
    """How often each sign is there that is not a table's own."""
    return Counter("".join(lines)) - Counter(" ─" * 10_000)


@pytest.mark.parametrize("names", [1, 4])
@pytest.mark.parametrize("numbers", [True, False])
@pytest.mark.parametrize("width", [16, 20, 30, 40, 50, 60])
def test_every_letter_of_every_cell_is_there_however_narrow_the_terminal(width, names, numbers):
    heads = ("threads", "layout", "operation", "type", "x")
    rows = (("1", "channels-last", "batch norm", "float32", "1,234"), ("all", "NCHW", "形状", "q" * 30, "9"))
    table = Table("", heads, rows, names=names)
    lines = shown(table, width, numbers=numbers)
    told = letters(lines)
    assert not letters(cell for row in (heads, *rows) for cell in row) - told
    five = 6 + 5 * 3 + 1  # a letter for each of five columns, two for a Chinese one: below, nothing fits
    assert max(map(len, lines)) <= (width if names == 1 or width > five else five)


def test_heads_are_broken_before_numbers_are():
    table = Table("", ("operations", "calls"), (("bn", "1,234,567"),))
    (part,) = fit(table, 18)
    assert part.widths == (2, 9)


def test_long_dotted_names_go_over_lines_before_a_table_is_taken_apart():
    table = Table("", ("layer", *(f"{k} of them" for k in "abcd")), tuple((name, *"1234") for name in LONG))
    natural = 39 + 4 * 9 + 5 * 3 + 1
    (part,) = fit(table, natural)
    assert part.table == table
    (part,) = fit(table, natural - 1)
    assert part.table.rows[0][0].split("\n") == ["features.denseblock1.denselayer12.", "norm1"]
    (part,) = fit(table, 60)
    assert [row[0].split("\n") for row in part.table.rows] == [
        ["features.", "denseblock1.", "denselayer12.", "norm1"],
        ["module.", "encoder.", "layer4.1.", "downsample.1"],
    ]
    assert max(map(len, shown(table, 60))) <= 60


@pytest.mark.parametrize(
    "word", ["layer1.0.bn1", "1234567890.25", "1,234,567.891", "2.13.0.20260101", "x" * 13]
)
def test_short_names_and_numbers_are_no_dotted_names(word):
    table = Table("", ("layer", "n"), ((word, "1" * 12),))
    for width in (len(word) + 12 + 7, len(word) + 12 + 6, 20):
        assert {part.table.rows[0][0] for part in fit(table, width)} == {word}


def test_a_head_says_what_it_means_wherever_it_stands():
    zero, one = np.zeros(1), np.ones(1)
    moved = Drift(tuple(LayerDrift(name, 16_056_320, zero, one, one, one) for name in LONG), (), (), 1, 2)
    rows = (zero[None].repeat(2, 0), one[None].repeat(2, 0))
    weighed = [LayerPooling(name, "equally", np.array([0.5, 0.5]), *rows, one, one) for name in LONG]
    for table in (moved.table(), Pooling(tuple(weighed), (), 2).table()):
        assert len(set(table.columns)) == len(table.columns)
        for head in table.columns:
            statistic = head.endswith(("median", "largest", "smallest"))
            assert statistic == head.startswith(("mean shift, ", "var ratio, "))
    assert len(fit(moved.table(), 80)) == 1


def test_heads_are_words_and_no_markup():
    heads = ("[/x]", ":a:", "[bold]b[/bold]")
    for numbers in (True, False):
        lines = shown(Table("", heads, (("1", "2", "3"),)), 80, numbers=numbers)
        assert lines[1].split() == list(heads)


@pytest.mark.parametrize(("columns", "wide"), [(None, 116), ("60", 60), ("90", 90), ("300", 116)])
def test_all_text_is_as_wide_as_the_terminal(monkeypatch, columns, wide):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("os.get_terminal_size", no_terminal)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    words = Table("", ("a",), (("ab " * 200,),))
    notice = Notice("n", "note", "ab " * 200, words, "")
    texts = terminal.table_as_text(words), terminal.as_text("", "ab " * 200, [notice])
    for text in texts:
        longest = max(map(len, text.splitlines()))
        assert wide - 4 <= longest <= wide  # a word of two and a space


def no_terminal(_):
    raise OSError


def test_text_and_terminal_show_the_same(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line.rstrip() for line in shown(WIDE, 80)]
    text = terminal.table_as_text(Table("", WIDE.columns, WIDE.rows))
    assert text == "\n".join(lines).strip("\n")


def test_a_table_without_rows_or_without_other_columns_is_printed():
    assert fit(Table("t", ("a", "b"), ()), 80)[0].widths == (1, 1)
    (part,) = fit(Table("t", ("a",), (("1",),)), 80)
    assert part.table.columns == ("a",)


def test_signs_of_two_columns_are_counted_as_two():
    (part,) = fit(Table("t", ("形状", "b"), (("1", "µs"),)), 80)
    assert part.widths == (4, 2)
