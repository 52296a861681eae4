"""Tables in the width that there is: heads go over several lines, then columns below each other; no word is cut."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil
from typing import NamedTuple

from rich.cells import cell_len

from normwright.report.document import Table

BETWEEN, EDGES = 3, 1  # columns that a box takes for each of the table's, and once
UNBROKEN = 20  # a cell up to here stays in one line; a longer one has as much room at least


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

    Returns: one part where all fit; as few as will do where not. The first has the title, the last the note. Words
    are broken where not even one column fits beside the names.

    Example:
        >>> table = Table("t", ("rank", "sent", "received"), (("0", "1", "2"),))
        >>> [part.table.columns for part in fit(table, 80)]
        [('rank', 'sent', 'received')]
        >>> [part.table.columns for part in fit(table, 20)]
        [('rank', 'sent'), ('rank', 'received')]
    """
    most = 1 if whole else max(1, len(table.columns) - table.names)
    for least in (_comfortable, _longest_word):
        for parts in range(1, most + 1):
            found = [Fitted(part, _widths(part, width, least)) for part in _cut(table, parts)]
            if all(_taken(part.widths) <= width for part in found):
                return found
    return [Fitted(part, _widths(part, width, lambda cell: 1)) for part in _cut(table, most)]


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


def _widths(table: Table, width: int, least: Callable[[str], int]) -> tuple[int, ...]:
    """As wide as cells are; where that is too much, the widest columns give way down to what they need at least."""
    columns = list(zip(table.columns, *table.rows, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    floors = [max(_longest_word(head), *map(least, cells), 1) for head, *cells in columns]
    while _taken(widths) > width:
        giving = [i for i, floor in enumerate(floors) if widths[i] > floor]
        if not giving:
            break
        widths[max(giving, key=widths.__getitem__)] -= 1
    return tuple(widths)


def _taken(widths: Sequence[int]) -> int:
    return sum(widths) + BETWEEN * len(widths) + EDGES


def _comfortable(cell: str) -> int:
    return max(min(cell_len(cell), UNBROKEN), _longest_word(cell))


def _longest_word(cell: str) -> int:
    return max(map(cell_len, cell.split()), default=0)
