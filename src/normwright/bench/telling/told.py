"""Records on their way into tables: which cells, in which language, and how numbers are put."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from normwright.bench.cases import DTYPES, LAYOUTS, OPS, PASSES, RIVALS
from normwright.bench.telling.cells import Cell, is_defeat
from normwright.bench.telling.notes import step
from normwright.report.document import Table
from normwright.report.words import Say

ABSENT = "-"
SHORT = dict[str, str](zip(PASSES, ("fwd", "both", "inf"), strict=True))


@dataclass(frozen=True)
class Told:
    """Records, and how their numbers are put.

    Attributes:
        of: the cells.
        about: what stands beside the records.
        say: the language.
        lost: how a defeat is marked.
        short: for a terminal, where a pass is one short word.
    """

    of: list[Cell]
    about: Mapping[str, Any]
    say: Say
    lost: str
    short: bool = False

    @property
    def states(self) -> list[str]:
        """Of the allocator; the first is that of the summary."""
        return list(self.about["allocators"])

    @property
    def rivals(self) -> list[str]:
        """Those who were timed."""
        return [who for who in RIVALS if any(c.timed(self.states[0], who) for c in self.of)]

    def step(self, what: str) -> str:
        """A pass."""
        return SHORT[what] if self.short else step(what, self.say)

    def ratio(self, value: float | None) -> str:
        """How many times faster we are."""
        if value is None:
            return ABSENT
        return self.lost.format(f"{value:.2f}") if is_defeat(value) else f"{value:.2f}"


def groups(of: Iterable[Cell], key: Callable[[Cell], tuple[Any, ...]]) -> list[tuple[Any, list[Cell]]]:
    """Cells of one key together; keys by number of threads, type and operation as those stand in `cases`."""
    found: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in of:
        found.setdefault(key(cell), []).append(cell)
    places = [*DTYPES, *LAYOUTS, *OPS]
    return sorted(
        found.items(), key=lambda item: [places.index(k) if k in places else int(k) for k in item[0]]
    )


def without_threads(table: Table) -> Table:
    """Without its first column, where that holds one number of threads alone."""
    if len({row[0] for row in table.rows}) > 1:
        return table
    rows = tuple(row[1:] for row in table.rows)
    return replace(table, columns=table.columns[1:], rows=rows, names=table.names - 1)


def threads_named(n: int, told: Told) -> str:
    """What a title says of them, where several numbers were measured."""
    several = len({cell.threads for cell in told.of}) > 1
    return told.say(f", {n} threads", f"，{n} 个线程") if several else ""


def times(value: float | None) -> str:
    """A multiple."""
    return ABSENT if value is None else f"{value:.2f}"


def figure(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value >= 0.1 else f"{value:.1g}"


def mega(value: float | None) -> str:
    """Millions."""
    return ABSENT if value is None else figure(value / 1e6)


def giga(value: float | None) -> str:
    """Thousands of millions."""
    return ABSENT if value is None else figure(value / 1e9)


def count(value: float | None) -> str:
    """A whole number."""
    return ABSENT if value is None else f"{value:.0f}"
