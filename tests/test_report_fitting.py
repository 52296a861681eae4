"""Tables as wide as the terminal: what fits is left as it is, what does not goes over lines, then below itself."""

import pytest

from normwright.report.document import Table
from normwright.report.fitting import fit
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


def test_a_table_without_rows_or_without_other_columns_is_printed():
    assert fit(Table("t", ("a", "b"), ()), 80)[0].widths == (1, 1)
    (part,) = fit(Table("t", ("a",), (("1",),)), 80)
    assert part.table.columns == ("a",)


def test_signs_of_two_columns_are_counted_as_two():
    (part,) = fit(Table("t", ("形状", "b"), (("1", "µs"),)), 80)
    assert part.widths == (4, 2)
