"""Tables in the width that there is: heads and dotted names go over lines, then columns below each other."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil
from typing import NamedTuple

from rich.cells import cell_len

from normwright.report.document import Table

BETWEEN, EDGES = 3, 1  # columns that a box takes for each of the table's, and once
UNBROKEN = 20  # a cell up to here stays in one line; a longer one has as much room at least
SHORT = 12  # a dotted name up to here stays in one piece: `layer1.0.bn1`
DOTTED = re.compile(r"(?=.*\b[^\W\d])\w+(?:\.\w+)+")  # a name as of a layer; 0.25, 2.00x and 2.13.0 are none

Least = Callable[[str], int]


class Fitted(NamedTuple):
    """A table, or some columns of one, and how wide each is to be."""

    table: Table
    widths: tuple[int, ...]


def fit(table: Table, width: int, *, whole: bool = False) -> list[Fitted]:
    """The table as it fits into `width`: whole, or its columns shared out evenly, each part with the rows' names.

    Args:
        table: what is to be shown.
        width: columns of the terminal.
        whole: columns stay beside each other, whatever that costs: the default is False.

    Returns: one part where all fit; as few as will do where not. The first has the title, the last the note. A long
    dotted name goes over lines at its dots. Other words are broken where not even one column fits beside the names,
    first those of heads. Where not even one letter a column fits, lines are longer than `width`.

    Example:
        >>> table = Table("t", ("rank", "sent", "received"), (("0", "1", "2"),))
        >>> [part.table.columns for part in fit(table, 80)]
        [('rank', 'sent', 'received')]
        >>> [part.table.columns for part in fit(table, 20)]
        [('rank', 'sent'), ('rank', 'received')]
    """
    others = max(1, len(table.columns) - table.names)
    for parts, head, cell in _ways(1 if whole else others, others):
        found = [Fitted(part, _widths(part, width, head, cell)) for part in _cut(table, parts)]
        if all(taken(part.widths) <= width for part in found):
            break
    return [Fitted(_broken(part.table, part.widths), part.widths) for part in found]


def _ways(most: int, others: int) -> Iterator[tuple[int, Least, Least]]:
    """Into how many parts, and what heads and cells need at least; the best first."""
    for least in (_comfortable, _longest_word):
        for parts in range(1, most + 1):
            yield parts, _whole_words, least
    for parts in (most, others):
        yield parts, _letter, _longest_word
        yield parts, _letter, _letter


def _cut(table: Table, parts: int) -> list[Table]:
    """Each part with the columns that name the rows, and its share of the others."""
    others = len(table.columns) - table.names
    share = max(1, ceil(others / parts))
    starts = range(table.names, max(len(table.columns), table.names + 1), share)

    def some(of: Sequence[str], start: int) -> tuple[str, ...]:
        return (*of[: table.names], *of[start : start + share])

    return [
        replace(
            table,
            title=table.title if start == starts[0] else "",
            columns=some(table.columns, start),
            rows=tuple(some(row, start) for row in table.rows),
            note=table.note if start == starts[-1] else "",
        )
        for start in starts
    ]


def _widths(table: Table, width: int, head: Least, cell: Least) -> tuple[int, ...]:
    """As wide as cells are; where that is too much, the widest columns give way down to what they need at least."""
    columns = list(zip(table.columns, *table.rows, strict=True))
    widths = [max(1, *map(cell_len, column)) for column in columns]
    floors = [max(head(first), *map(cell, others), 1) for first, *others in columns]
    while taken(widths) > width:
        giving = [i for i, floor in enumerate(floors) if widths[i] > floor]
        if not giving:
            break
        widths[max(giving, key=widths.__getitem__)] -= 1
    return tuple(widths)


def taken(widths: Sequence[int]) -> int:
    """Columns of a terminal that a table with columns of these widths takes."""
    return sum(widths) + BETWEEN * len(widths) + EDGES


def _comfortable(cell: str) -> int:
    return _longest_word(cell) if _is_name(cell) else max(min(cell_len(cell), UNBROKEN), _longest_word(cell))


def _whole_words(head: str) -> int:
    return max(map(cell_len, head.split()), default=0)


def _longest_word(cell: str) -> int:
    return max((cell_len(piece) for word in cell.split() for piece in _pieces(word)), default=0)


def _letter(cell: str) -> int:
    return max(map(cell_len, cell), default=0)


def _is_name(word: str) -> bool:
    return cell_len(word) > SHORT and DOTTED.fullmatch(word) is not None


def _pieces(word: str) -> list[str]:
    """Where a word may go over lines: a long dotted name after each dot."""
    return re.split(r"(?<=\.)", word) if _is_name(word) else [word]


def _broken(table: Table, widths: Sequence[int]) -> Table:
    """With dotted names over lines where they are too long for their columns."""

    def over_lines(cells: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(_within, cells, widths))

    return replace(table, columns=over_lines(table.columns), rows=tuple(map(over_lines, table.rows)))


def _within(cell: str, width: int) -> str:
    return re.sub(r"\S+", lambda word: _lines(word[0], width), cell)


def _lines(word: str, width: int) -> str:
    """The word, over lines of at most `width` where its pieces allow it."""
    if cell_len(word) <= width:
        return word
    lines = [""]
    for piece in _pieces(word):
        if lines[-1] and cell_len(lines[-1] + piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)
