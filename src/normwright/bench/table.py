"""The benchmark's records, told: tables for the terminal and for a README. Defeats come first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from normwright.bench.cases import LAYOUTS
from normwright.bench.machine import caches
from normwright.report.document import Card, Document, Outcome, Table, Verdict, outcome_words
from normwright.report.records import Record
from normwright.report.words import Say

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
    """What the terminal prints, in English."""
    say, states = Say(), list(about["allocators"])
    columns = (
        *_columns(states, say)[1:],  # without MB: a terminal is narrow
        Column("GB/s", "GB/s", lambda c: _times(1e-9, c.bytes_a_second(BOTH, states[0]))),
    )
    table = Table(
        "Times as fast as torch",
        ("shape", "layout", *(column.short for column in columns)),
        _rows(cells(records), columns, states, "{}<", say),
        f"fwd: forward; both: and backward, {states[0]} memory"
        f"{''.join(f'; {state}: both in {state} memory' for state in states[1:])}; floor: the time of both over "
        "the floor's; GB/s: of the least that must be moved. <: slower. Means are geometric.",
    )
    verdict = _verdict(cells(records), states, say)
    return Document(
        title="Batch normalization in training, beside torch and the memory floor",
        headline=_headline(cells(records), states),
        about=" ".join(_notes(records, about, say)).replace("`", ""),
        cards=(Card("speed", "Speed", claim="", done="", verdicts=(verdict,), tables=(table,)),),
        command=about["command"],
        stamp=tuple((key, str(value)) for key, value in about["stamp"].items()),
    )


def markdown(records: Sequence[Record], about: Mapping[str, Any], say: Say) -> str:
    """What a README shows: the table, and what must be said beside it."""
    states = list(about["allocators"])
    columns = _columns(states, say)
    verdict = _verdict(cells(records), states, say)
    outcome = outcome_words(verdict.outcome, say)
    told = say(
        f"{verdict.claim}: {outcome}. {verdict.sentence}", f"{verdict.claim}：{outcome}。{verdict.sentence}"
    )
    titles = (say("shape", "形状"), say("layout", "布局"), *(column.title for column in columns))
    heads = (":---", ":---", *("---:" for _ in columns))
    rows = [titles, heads, *_rows(cells(records), columns, states, "**{}**", say)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    means = say(
        "Means are geometric; what is slower than torch is bold.", "平均为几何平均；慢于 torch 的用粗体。"
    )
    notes = "\n".join([*_notes(records, about, say), means])
    return "\n\n".join([told, "\n".join(lines), notes]) + "\n"


def _columns(states: Sequence[str], say: Say) -> tuple[Column, ...]:
    def beside_torch(short: str, what: str, state: str) -> Column:
        step, memory = say("fwd" if what == FORWARD else "fwd+bwd", _step(what, say)), _state(state, say)
        title = say(f"{step} x torch, {memory}", f"{step}速度 / torch，{memory}")
        return Column(short, title, lambda cell: cell.speed_up(what, state), versus=True)

    first, *others = states
    floor = say(f"fwd+bwd over floor, {first}", f"{_step(BOTH, say)}耗时 / 下限，{_state(first, say)}")
    return (
        Column("MB", "MB", lambda c: c.bytes / 1e6),
        beside_torch("fwd", FORWARD, first),
        beside_torch("both", BOTH, first),
        *(beside_torch(other, BOTH, other) for other in others),
        Column("floor", floor, lambda c: c.over_floor(BOTH, first)),
    )


def _step(what: str, say: Say) -> str:
    return say(what, "前向" if what == FORWARD else "前向+反向")


def _state(allocator: str, say: Say) -> str:
    return say(allocator, {"warm": "热", "default": "默认"}.get(allocator, allocator))


def _rows(
    of: Sequence[Cell], columns: Sequence[Column], states: Sequence[str], defeat: str, say: Say
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
            rows.append((say("mean > 8 MB", "平均，> 8 MB"), layout, *means))
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


def _verdict(of: Sequence[Cell], states: Sequence[str], say: Say) -> Verdict:
    """Never slower than torch: every shape, forward and with backward, in every state of the allocator."""
    slower = []
    for cell in of:
        found = {(what, state): cell.speed_up(what, state) for what in (FORWARD, BOTH) for state in states}
        lost = [
            say(f"{value:.2f} {what} {state}", f"{_step(what, say)}（{_state(state, say)}）{value:.2f}")
            for (what, state), value in found.items()
            if value is not None and is_defeat(value)
        ]
        if lost:
            named = f"{cell.size} {cell.layout}"
            slower.append(say(f"{named} ({', '.join(lost)})", f"{named}：{'、'.join(lost)}"))
    count, asked = sum(cell.defeats(states) for cell in of), len(of) * 2 * len(states)
    outcome: Outcome = (
        "holds" if count == 0 else "holds partly" if 2 * count < asked else "does not hold here"
    )
    sentence = say(
        f"Slower in {count} of {asked} measurements" + (": " if slower else "") + "; ".join(slower) + ".",
        f"{asked} 项测量中有 {count} 项更慢" + ("：" if slower else "") + "；".join(slower) + "。",
    )
    return Verdict(say("Never slower than torch", "从不慢于 torch"), outcome, sentence)


def _notes(records: Sequence[Record], about: Mapping[str, Any], say: Say) -> list[str]:
    """What a number means little without."""
    return [
        _conditions(records, about, say),
        _memory(about["allocators"], say),
        say(
            "The floor is what memory allows, measured in the same rounds on as many bytes: a copy for forward, "
            "a copy and a triad for forward and backward.",
            "下限是内存所允许的最短时间，在同样的轮次中以同样多的字节测得：前向为一次复制（copy），"
            "前向加反向为一次复制和一次三元运算（triad）。",
        )
        + _cached(records, about["kernels"], say),
        say(f"Measured by `{about['command']}`.", f"由 `{about['command']}` 测得。"),
    ]


def _conditions(records: Sequence[Record], about: Mapping[str, Any], say: Say) -> str:
    """What was measured how often, and on which machine."""
    stamped, kernels, where = about["stamp"], about["kernels"], records[0].where
    rounds = [int(r.where["rounds"] or 0) for r in records]
    sizes = caches(kernels, stamped)
    sizes = say(sizes, sizes.replace("last level", "末级").replace("not told by the system", "系统未告知"))
    return say(
        f"Float32, training, medians of {min(rounds)} to {max(rounds)} interleaved rounds, {where['threads']} "
        f"threads: {stamped['processor']}, {stamped['cores']} cores ({sizes}), "
        f"{kernels['instruction set']} kernels, normwright {stamped['normwright']}, torch {stamped['torch']}, "
        f"Python {stamped['python']}.",
        f"float32，训练模式，{min(rounds)} 到 {max(rounds)} 轮交错测量的中位数，{where['threads']} 个线程："
        f"{stamped['processor']}，{stamped['cores']} 核（{sizes}），{kernels['instruction set']} 内核，"
        f"normwright {stamped['normwright']}，torch {stamped['torch']}，Python {stamped['python']}。",
    )


def _memory(allocators: Mapping[str, Mapping[str, str]], say: Say) -> str:
    """What the states of the allocator are."""
    variables = [f"`{key}={value}`" for key, value in allocators.get("warm", {}).items()]
    warm = say(
        f"Warm: the allocator keeps freed memory ({', '.join(variables)}), so outputs find its pages. ",
        f"热：分配器保留已释放的内存（{'、'.join(variables)}），因此输出能用上其中现成的页。",
    )
    default = say(
        "Default: the allocator as users get it, with which most outputs above 32 MB, and now and then a "
        "smaller one, fault in every page again, on both sides.",
        "默认：用户实际使用的分配器，此时大于 32 MB 的输出大多（偶尔也有较小的）每一页都要重新缺页，两边都是如此。",
    )
    return (warm if "warm" in allocators else "") + default


def _cached(records: Sequence[Record], kernels: Mapping[str, Any], say: Say) -> str:
    """A warning, where the floor of the largest tensor is not memory's."""
    last = int(kernels.get("last-level cache bytes") or 0)
    if max(int(r.where["bytes"] or 0) for r in records) >= 2 * last:
        return ""
    return say(
        f" No tensor here is twice the last-level cache ({last / (1 << 20):g} MB): "
        "this floor is a cache's, not memory's.",
        f"这里没有一个张量达到末级缓存（{last / (1 << 20):g} MB）的两倍：这个下限是缓存的，而不是内存的。",
    )
