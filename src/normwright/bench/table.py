"""The benchmark's records, told: tables for the terminal and for a README. Defeats come first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from normwright.bench.cases import LAYOUTS
from normwright.bench.machine import caches
from normwright.report.document import Card, Document, Outcome, Table, Verdict
from normwright.report.records import Record

FORWARD, BOTH = "forward", "forward+backward"
LARGE_BYTES = 8_000_000
ABSENT = "-"


@dataclass(frozen=True)
class Cell:
    """All that was measured of one shape in one layout."""

    size: str
    layout: str
    bytes: int
    records: Mapping[tuple[str, str, str], Record]

    def seconds(self, what: str, allocator: str, contender: str) -> float | None:
        """The median, None where it was not measured."""
        record = self.records.get((what, allocator, contender))
        return None if record is None else record.value

    def speed_up(self, what: str, allocator: str) -> float | None:
        """How many times faster than torch."""
        return _ratio(self.seconds(what, allocator, "torch"), self.seconds(what, allocator, "normwright"))

    def over_floor(self, what: str, allocator: str) -> float | None:
        """The time as a multiple of what memory allows."""
        return _ratio(
            self.seconds(what, allocator, "normwright"), self.seconds(f"floor {what}", allocator, "memory")
        )

    def bytes_a_second(self, what: str, allocator: str) -> float | None:
        """The bytes that must be moved, by the time it took."""
        record = self.records.get((what, allocator, "normwright"))
        return None if record is None else _ratio(float(record.where["bytes_moved"] or 0), record.value)

    def defeats(self, allocators: Sequence[str]) -> int:
        """How many of its speed-ups are below 1, as printed: two digits after the point."""
        return sum(is_defeat(self.speed_up(what, state)) for what in (FORWARD, BOTH) for state in allocators)


@dataclass(frozen=True)
class Column:
    """A number of each cell, its title on wide and narrow paper; `versus` where below 1 is a defeat."""

    short: str
    title: str
    of: Callable[[Cell], float | None]
    versus: bool = False


def cells(records: Sequence[Record]) -> list[Cell]:
    """The records sorted by shape and layout, in the order in which they were measured."""
    found: dict[tuple[str, str], dict[tuple[str, str, str], Record]] = {}
    for r in records:
        at = str(r.where["shape"]), str(r.where["layout"])
        found.setdefault(at, {})[r.what, str(r.where["allocator"]), str(r.where["contender"])] = r
    return [
        Cell(size, layout, int(next(iter(of.values())).where["bytes"] or 0), of)
        for (size, layout), of in found.items()
    ]


def is_defeat(speed_up: float | None) -> bool:
    """True below 1 as it is printed.

    >>> is_defeat(0.99), is_defeat(0.997), is_defeat(None)
    (True, False, False)
    """
    return speed_up is not None and round(speed_up, 2) < 1


def document(records: Sequence[Record], about: Mapping[str, Any]) -> Document:
    """What the terminal prints."""
    states = list(about["allocators"])
    columns = (
        *_columns(states)[1:],  # without MB: a terminal is narrow
        Column("GB/s", "GB/s", lambda c: _times(1e-9, c.bytes_a_second(BOTH, states[0]))),
    )
    table = Table(
        "Times as fast as torch",
        ("shape", "layout", *(column.short for column in columns)),
        _rows(cells(records), columns, states, defeat="{}<"),
        f"fwd: forward; both: and backward, {states[0]} memory"
        f"{''.join(f'; {state}: both in {state} memory' for state in states[1:])}; floor: the time of both over "
        "the floor's; GB/s: of the least that must be moved. <: slower. Means are geometric.",
    )
    verdict = _verdict(cells(records), states)
    return Document(
        title="Batch normalization in training, beside torch and the memory floor",
        headline=_headline(cells(records), states),
        about=" ".join(_notes(records, about)).replace("`", ""),
        cards=(Card(title="Speed", done="", tables=(table,), verdicts=(verdict,)),),
        command=about["command"],
        stamp=tuple((key, str(value)) for key, value in about["stamp"].items()),
    )


def markdown(records: Sequence[Record], about: Mapping[str, Any]) -> str:
    """What a README shows: the table, and what must be said beside it."""
    states = list(about["allocators"])
    columns = _columns(states)
    verdict = _verdict(cells(records), states)
    titles = ("shape", "layout", *(column.title for column in columns))
    heads = (":---", ":---", *("---:" for _ in columns))
    rows = [titles, heads, *_rows(cells(records), columns, states, defeat="**{}**")]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    notes = "\n".join([*_notes(records, about), "Means are geometric; what is slower than torch is bold."])
    return (
        "\n\n".join([f"{verdict.claim}: {verdict.outcome}. {verdict.sentence}", "\n".join(lines), notes])
        + "\n"
    )


def _columns(states: Sequence[str]) -> tuple[Column, ...]:
    first, *others = states
    return (
        Column("MB", "MB", lambda c: c.bytes / 1e6),
        Column("fwd", f"fwd x torch, {first}", lambda c: c.speed_up(FORWARD, first), versus=True),
        Column("both", f"fwd+bwd x torch, {first}", lambda c: c.speed_up(BOTH, first), versus=True),
        *(
            Column(f"{o}", f"fwd+bwd x torch, {o}", lambda c, o=o: c.speed_up(BOTH, o), versus=True)  # type: ignore[misc]
            for o in others
        ),
        Column("floor", f"fwd+bwd over floor, {first}", lambda c: c.over_floor(BOTH, first)),
    )


def _rows(
    of: Sequence[Cell], columns: Sequence[Column], states: Sequence[str], defeat: str
) -> tuple[tuple[str, ...], ...]:
    """A row for each cell, those with defeats first; then the geometric means of the large ones."""

    def shown(column: Column, value: float | None) -> str:
        if value is None:
            return ABSENT
        if column.title in ("MB", "GB/s"):
            return f"{value:.3g}" if value >= 0.1 else f"{value:.1g}"
        text = f"{value:.2f}"
        return defeat.format(text) if column.versus and is_defeat(value) else text

    rows = [
        (cell.size, cell.layout, *(shown(column, column.of(cell)) for column in columns))
        for cell in sorted(of, key=lambda cell: cell.defeats(states) == 0)
    ]
    for layout in LAYOUTS:
        large = [cell for cell in of if cell.layout == layout and cell.bytes > LARGE_BYTES]
        if large:
            means = (
                shown(c, None if c.title == "MB" else geometric_mean([c.of(cell) for cell in large]))
                for c in columns
            )
            rows.append(("mean > 8 MB", layout, *means))
    return tuple(rows)


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """The mean of ratios; None where one is missing.

    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    numbers = [value for value in values if value is not None]
    return prod(numbers) ** (1 / len(numbers)) if numbers and len(numbers) == len(values) else None


def _ratio(of: float | None, to: float | None) -> float | None:
    return None if of is None or not to else of / to


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _headline(of: Sequence[Cell], states: Sequence[str]) -> str:
    parts = []
    for layout in LAYOUTS:
        large = [cell for cell in of if cell.layout == layout and cell.bytes > LARGE_BYTES]
        mean = geometric_mean([cell.speed_up(BOTH, states[0]) for cell in large])
        if mean is not None:
            parts.append(f"{mean:.2f} times torch's speed in {layout}")
    measured = f"Forward and backward over 8 MB, {states[0]} memory: "
    return measured + (", ".join(parts) + "." if parts else "no such tensor was measured.")


def _verdict(of: Sequence[Cell], states: Sequence[str]) -> Verdict:
    """Never slower than torch: every shape, forward and with backward, in every state of the allocator."""
    slower = []
    for cell in of:
        found = {
            f"{what} {state}": cell.speed_up(what, state) for what in (FORWARD, BOTH) for state in states
        }
        lost = [
            f"{value:.2f} {name}" for name, value in found.items() if value is not None and is_defeat(value)
        ]
        slower += [f"{cell.size} {cell.layout} ({', '.join(lost)})"] * bool(lost)
    count, asked = sum(cell.defeats(states) for cell in of), len(of) * 2 * len(states)
    outcome: Outcome = (
        "holds" if count == 0 else "holds partly" if 2 * count < asked else "does not hold here"
    )
    sentence = (
        f"Slower in {count} of {asked} measurements" + (": " if slower else "") + "; ".join(slower) + "."
    )
    return Verdict("Never slower than torch", outcome, sentence)


def _notes(records: Sequence[Record], about: Mapping[str, Any]) -> list[str]:
    """What a number means little without."""
    stamped, kernels, states = about["stamp"], about["kernels"], list(about["allocators"])
    where = records[0].where
    rounds = [int(r.where["rounds"] or 0) for r in records]
    memory = [
        "Warm: the allocator keeps freed memory ("
        + ", ".join(f"`{key}={value}`" for key, value in about["allocators"]["warm"].items())
        + "), so outputs find its pages. "
        if "warm" in states
        else "",
        "Default: the allocator as users get it, with which most outputs above 32 MB, and now and then a "
        "smaller one, fault in every page again, on both sides.",
    ]
    last = int(kernels.get("last-level cache bytes") or 0)
    largest = max(int(r.where["bytes"] or 0) for r in records)
    cached = (
        f" No tensor here is twice the last-level cache ({last / (1 << 20):g} MB): "
        "this floor is a cache's, not memory's."
    )
    return [
        f"Float32, training, medians of {min(rounds)} to {max(rounds)} interleaved rounds, {where['threads']} "
        f"threads: {stamped['processor']}, {stamped['cores']} cores ({caches(kernels, stamped)}), "
        f"{kernels['instruction set']} kernels, normwright {stamped['normwright']}, torch {stamped['torch']}, "
        f"Python {stamped['python']}.",
        "".join(memory),
        "The floor is what memory allows, measured in the same rounds on as many bytes: a copy for forward, "
        "a copy and a triad for forward and backward." + (cached if largest < 2 * last else ""),
        f"Measured by `{about['command']}`.",
    ]
