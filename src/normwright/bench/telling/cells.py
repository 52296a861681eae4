"""The benchmark's records, put together: one cell for each input and what is done with it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import NamedTuple

from normwright.bench.cases import COUNTING, MEMORY, OURS, PASSES, PEAK, RIVALS, TORCH
from normwright.bench.memory import NOISE
from normwright.report.records import Record


@dataclass(frozen=True)
class Cell:
    """All that was measured of one input with one operation.

    Attributes:
        size, layout, dtype, op, threads: which.
        bytes: of one tensor.
        records: by pass (or its floor), state of the allocator, and contender.
    """

    size: str
    layout: str
    dtype: str
    op: str
    threads: int
    bytes: int
    records: Mapping[tuple[str, str, str], Record]

    @property
    def place(self) -> str:
        """Shape and layout."""
        return f"{self.size} {self.layout}"

    @property
    def name(self) -> str:
        """As `normwright bench --only` finds it."""
        return f"{self.place} {self.dtype} {self.op}"

    def seconds(self, what: str, allocator: str, contender: str) -> float | None:
        """The median, None where it was not measured."""
        record = self.records.get((what, allocator, contender))
        return None if record is None else record.value

    def speed_up(self, what: str, allocator: str, over: str = TORCH) -> float | None:
        """How many times faster than another contender we are."""
        return _ratio(self.seconds(what, allocator, over), self.seconds(what, allocator, OURS))

    def over_floor(self, what: str, allocator: str, who: str = OURS) -> float | None:
        """The time as a multiple of what memory allows."""
        return _ratio(self.seconds(what, allocator, who), self.seconds(f"floor {what}", allocator, MEMORY))

    def bytes_a_second(self, what: str, allocator: str, who: str = OURS) -> float | None:
        """The bytes that must be moved, by the time it took."""
        record = self.records.get((what, allocator, who))
        return None if record is None else _ratio(_number(record, "bytes_moved"), record.value)

    def peak(self, who: str = OURS) -> float | None:
        """Bytes that a training step adds to the process's memory at its highest; None below what can be told."""
        record = self.records.get((PEAK, COUNTING, who))
        return None if record is None or (record.value or 0) < NOISE else record.value

    def faults(self, what: str, allocator: str, who: str = OURS) -> float | None:
        """Pages that the system handed out during a step."""
        return _number(self.records.get((what, allocator, who)), "page_faults")

    def timed(self, allocator: str, who: str) -> bool:
        """Whether a contender was timed here."""
        return any(self.seconds(what, allocator, who) is not None for what in PASSES)

    @property
    def refused(self) -> list[str]:
        """What was not timed, because it computed something else."""
        return [str(r.where["refused"]) for r in self.records.values() if r.where.get("refused")]


class Ratio(NamedTuple):
    """One of our times beside that of a rival: how many times faster we are."""

    cell: Cell
    what: str
    allocator: str
    rival: str
    value: float


def cells(records: Iterable[Record]) -> list[Cell]:
    """In the order in which they were measured. Records of before there were operations are of batch norm alone."""
    found: dict[tuple[str, str, str, str, int], dict[tuple[str, str, str], Record]] = {}
    for r in records:
        names = [str(r.where.get(name, otherwise)) for name, otherwise in _NAMED.items()]
        key = (names[0], names[1], names[2], names[3], int(r.where.get("threads") or 0))
        found.setdefault(key, {})[r.what, str(r.where["allocator"]), str(r.where["contender"])] = r
    return [Cell(*key, int(next(iter(of.values())).where["bytes"] or 0), of) for key, of in found.items()]


_NAMED = {"shape": "", "layout": "", "dtype": "float32", "op": "bn"}


def ratios(of: Iterable[Cell], states: Sequence[str], rivals: Sequence[str] = RIVALS) -> list[Ratio]:
    """Every pair of times that was measured."""
    return [
        Ratio(cell, what, state, rival, value)
        for cell in of
        for state in states
        for rival in rivals
        for what in PASSES
        if (value := cell.speed_up(what, state, rival)) is not None
    ]


def is_defeat(speed_up: float | None) -> bool:
    """True below 1 as it is printed.

    >>> is_defeat(0.99), is_defeat(0.997), is_defeat(None)
    (True, False, False)
    """
    return speed_up is not None and round(speed_up, 2) < 1


def geometric_mean(values: Iterable[float | None], weights: Iterable[float] | None = None) -> float | None:
    """The mean of those ratios that there are; None where there is none.

    >>> geometric_mean([1.0, None, 4.0]), geometric_mean([1.0, 8.0], [2.0, 1.0])
    (2.0, 2.0)
    """
    values = list(values)
    each = list(weights) if weights is not None else [1.0] * len(values)
    pairs = [(value, weight) for value, weight in zip(values, each, strict=True) if value is not None]
    if not pairs:
        return None
    return round(exp(sum(w * log(v) for v, w in pairs) / sum(w for _, w in pairs)), 12)


def _ratio(of: float | None, to: float | None) -> float | None:
    return None if of is None or not to else of / to


def _number(record: Record | None, name: str) -> float | None:
    value = None if record is None else record.where.get(name)
    return None if value is None else float(value)
