"""Two runs of the benchmark side by side: what changed in our times, measured against what did not.

A machine is never equally fast twice. Each of our times is therefore divided by the floor of its own run, and by
torch's time of its own run; what both say is likely so.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from normwright.bench.cases import DTYPES, OPS, OURS, PASSES, TORCH
from normwright.bench.telling.cells import Cell, cells, geometric_mean
from normwright.bench.telling.notes import OP_NAMES
from normwright.report.document import Card, Document, Table
from normwright.report.records import Record

SHOWN = 10  # cells at either end


class Change(NamedTuple):
    """How one of our times changed, NEW's over OLD's: above 1, NEW is slower.

    Attributes:
        cell: of NEW.
        what, allocator: which time.
        time: as it was measured.
        floor, torch: each run's time over its own floor, and over its own torch; None where that is missing.
    """

    cell: Cell
    what: str
    allocator: str
    time: float
    floor: float | None
    torch: float | None

    @property
    def judged(self) -> float:
        """The change that both measures agree on; 1 where one says faster and the other slower."""
        found = [value for value in (self.floor, self.torch) if value is not None] or [self.time]
        if min(found) > 1:
            return min(found)
        return max(found) if max(found) < 1 else 1.0


def changes(old: Sequence[Record], new: Sequence[Record]) -> list[Change]:
    """Of all times of ours that both runs have."""
    before = {(cell.name, cell.threads): cell for cell in cells(old)}
    found = []
    for cell in cells(new):
        earlier = before.get((cell.name, cell.threads))
        if earlier is None:
            continue
        for what, allocator, who in cell.records:
            if who != OURS:
                continue
            old_time, new_time = (c.seconds(what, allocator, OURS) for c in (earlier, cell))
            if old_time and new_time:
                floors = (c.over_floor(what, allocator) for c in (cell, earlier))
                torches = (c.speed_up(what, allocator, TORCH) for c in (earlier, cell))
                found.append(
                    Change(cell, what, allocator, new_time / old_time, _over(*floors), _over(*torches))
                )
    return found


def document(
    old: tuple[Sequence[Record], Mapping[str, Any]], new: tuple[Sequence[Record], Mapping[str, Any]]
) -> Document:
    """What the terminal prints of two runs, each its records and what stands beside them.

    Raises:
        ValueError: they have no cell in common.
    """
    found = changes(old[0], new[0])
    if not found:
        raise ValueError("expected two records with cells in common, got none.")
    means = [geometric_mean(of(c) for c in found) for of in _MEASURES.values()]
    told = ", ".join(f"{_number(m)} {name}" for name, m in zip(_MEASURES, means, strict=True))
    ordered = sorted(found, key=lambda change: change.judged)
    tables = [
        _means(found),
        _listed("Slower in NEW", [c for c in reversed(ordered) if c.judged > 1]),
        _listed("Faster in NEW", [c for c in ordered if c.judged < 1]),
        _differences(old[1], new[1]),
    ]
    counts = [len({(c.name, c.threads) for c in cells(records)}) for records in (old[0], new[0])]
    common = len({(c.cell.name, c.cell.threads) for c in found})
    return Document(
        title="Two runs of the benchmark",
        headline=f"NEW's times over OLD's, in the geometric mean: {told}. Above 1, NEW is slower.",
        about=f"{common} cells of {counts[0]} in OLD and {counts[1]} in NEW. Over the floor, over torch: each time "
        "divided by the same run's. Listed by what both agree on.",
        cards=(Card("compare", "Compared", "", "", (), tables=tuple(t for t in tables if t.rows)),),
        command="normwright bench compare",
        stamp=(),
    )


_MEASURES: dict[str, Callable[[Change], float | None]] = {
    "as measured": lambda change: change.time,
    "over the floor": lambda change: change.floor,
    "over torch": lambda change: change.torch,
}


def _means(found: Sequence[Change]) -> Table:
    rows = []
    for dtype in DTYPES:
        for op in OPS:
            for what in PASSES:
                some = [c for c in found if (c.cell.dtype, c.cell.op, c.what) == (dtype, op, what)]
                if some:
                    numbers = (_number(geometric_mean(of(c) for c in some)) for of in _MEASURES.values())
                    rows.append((dtype, OP_NAMES[op], what, str(len(some)), *numbers))
    titles = ("type", "operation", "pass", "times", *_MEASURES)
    return Table("In the mean, NEW over OLD", titles, tuple(rows), names=3)


def _listed(title: str, of: Sequence[Change]) -> Table:
    rows = tuple(
        (
            f"{c.cell.name}, {c.what}, {c.allocator}",
            str(c.cell.threads),
            *(_number(measure(c)) for measure in _MEASURES.values()),
        )
        for c in of[:SHOWN]
    )
    note = f"And {len(of) - SHOWN} more." if len(of) > SHOWN else ""
    return Table(title, ("cell", "threads", *_MEASURES), rows, note, names=2)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Table:
    """Of machines, versions and commands."""
    facts = [_facts(about) for about in (old, new)]
    rows = tuple(
        (name, *(str(of.get(name, "-")) for of in facts))
        for name in dict.fromkeys([*facts[0], *facts[1]])
        if facts[0].get(name) != facts[1].get(name)
    )
    return Table("What else differs", ("", "OLD", "NEW"), rows)


def _facts(about: Mapping[str, Any]) -> dict[str, Any]:
    kernels = {f"kernels: {name}": fact for name, fact in about.get("kernels", {}).items()}
    rivals = {f"{name}'s version": version for name, version in about.get("contenders", {}).items()}
    variables = {f"{name} memory": of for name, of in about.get("allocators", {}).items()}
    return {"command": about.get("command"), **about.get("stamp", {}), **kernels, **rivals, **variables}


def _over(new: float | None, old: float | None) -> float | None:
    return None if new is None or not old else new / old


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
