"""A benchmark cell by cell."""

from collections.abc import Sequence

from normwright.bench.cases import BOTH, LAYOUTS, OURS, PASSES, TORCH
from normwright.bench.cells import Cell, geometric_mean, is_defeat, ratios
from normwright.bench.notes import OP_NAMES, SHOWN, state, step
from normwright.bench.told import ABSENT, Told, count, figure, giga, groups, mega, threads_named, times
from normwright.report.document import Table
from normwright.report.words import Say

LARGE_BYTES = 8_000_000


def each_cell(told: Told, narrow: bool = False) -> list[Table]:
    """A table for each type and operation: a row for each shape and layout, those with defeats first."""
    say, first, found = told.say, told.states[0], []
    for (threads, dtype, op), group in groups(told.of, lambda c: (c.threads, c.dtype, c.op)):
        order = sorted(
            group, key=lambda c: not any(is_defeat(r.value) for r in ratios([c], [first], [TORCH]))
        )
        rows = [(c.size, c.layout, *_numbers(c, told, narrow)) for c in order]
        for layout in LAYOUTS:
            large = [c for c in group if c.layout == layout and c.bytes > LARGE_BYTES]
            if large and not narrow:
                rows.append((say("mean > 8 MB", "平均，> 8 MB"), layout, *_mean_numbers(large, told)))
        title = f"{dtype}, {OP_NAMES[op]}" + threads_named(threads, told)
        found.append(Table(title, _titles(say, narrow), tuple(rows)))
    return found


def _titles(say: Say, narrow: bool) -> tuple[str, ...]:
    if narrow:
        return ("shape", "layout", "fwd", "both", "inf", "floor: fwd", "both", "inf", "GB/s", "peak MB")
    speeds = [f"{step(what, say)} x torch" for what in PASSES]
    floors = [say(f"{step(what, say)} over floor", f"{step(what, say)} / 下限") for what in PASSES]
    peaks = (say("peak MB", "峰值 MB"), say("torch's", "torch 的"))
    return (say("shape", "形状"), say("layout", "布局"), "MB", *speeds, *floors, "GB/s", *peaks)


def _numbers(cell: Cell, told: Told, narrow: bool) -> tuple[str, ...]:
    first = told.states[0]
    speeds = (told.ratio(cell.speed_up(what, first)) for what in PASSES)
    floors = (times(cell.over_floor(what, first)) for what in PASSES)
    size = () if narrow else (figure(cell.bytes / 1e6),)
    peaks = (mega(cell.peak()), *(() if narrow else (mega(cell.peak(TORCH)),)))
    return (*size, *speeds, *floors, giga(cell.bytes_a_second(BOTH, first)), *peaks)


def _mean_numbers(of: Sequence[Cell], told: Told) -> tuple[str, ...]:
    first = told.states[0]
    speeds = (told.ratio(geometric_mean(c.speed_up(what, first) for c in of)) for what in PASSES)
    floors = (times(geometric_mean(c.over_floor(what, first) for c in of)) for what in PASSES)
    rate = giga(geometric_mean(c.bytes_a_second(BOTH, first) for c in of))
    return (ABSENT, *speeds, *floors, rate, ABSENT, ABSENT)


def beside_rivals(told: Told) -> list[Table]:
    """The subset: those who compile, and what a step of each needs."""
    say, first = told.say, told.states[0]
    slow = [who for who in told.rivals if who != TORCH]
    found = []
    for (threads, dtype), group in groups(told.of, lambda c: (c.threads, c.dtype)):
        some = [c for c in group if any(c.timed(first, who) for who in slow)]
        if not some:
            continue
        rows = [
            (
                c.size,
                c.layout,
                OP_NAMES[c.op],
                *(told.ratio(c.speed_up(what, first, who)) for who in slow for what in PASSES),
                *(mega(c.peak(who)) for who in slow),
            )
            for c in some
        ]
        titles = (
            say("shape", "形状"),
            say("layout", "布局"),
            say("operation", "运算"),
            *(f"{step(what, say)} x {SHOWN[who]}" for who in slow for what in PASSES),
            *(say(f"{SHOWN[who]}'s peak MB", f"{SHOWN[who]} 的峰值 MB") for who in slow),
        )
        title = say(f"{dtype} beside those who compile", f"{dtype}，与编译者相比") + threads_named(
            threads, told
        )
        found.append(Table(title, titles, tuple(rows)))
    return found


def by_default(told: Told) -> list[Table]:
    """The subset in the state of the allocator that users get, with the pages that a step faults in."""
    say, found = told.say, []
    for other in told.states[1:]:
        for (threads, dtype), group in groups(told.of, lambda c: (c.threads, c.dtype)):
            some = [c for c in group if c.timed(other, TORCH)]
            if not some:
                continue
            rows = [
                (
                    c.size,
                    c.layout,
                    OP_NAMES[c.op],
                    *(told.ratio(c.speed_up(what, other)) for what in PASSES),
                    *(count(c.faults(BOTH, other, who)) for who in (OURS, TORCH)),
                )
                for c in some
            ]
            titles = (
                say("shape", "形状"),
                say("layout", "布局"),
                say("operation", "运算"),
                *(f"{step(what, say)} x torch" for what in PASSES),
                say("page faults", "缺页"),
                say("torch's", "torch 的"),
            )
            memory = say(f"{dtype} in {other} memory", f"{dtype}，{state(other, say)}内存")
            found.append(Table(memory + threads_named(threads, told), titles, tuple(rows)))
    return found
