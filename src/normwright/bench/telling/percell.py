"""A benchmark cell by cell."""

from collections.abc import Sequence

from normwright.bench.cases import BOTH, LAYOUTS, OURS, PASSES, TORCH
from normwright.bench.telling.cells import Cell, geometric_mean, is_defeat, ratios
from normwright.bench.telling.notes import OP_NAMES, SHOWN, state
from normwright.bench.telling.told import (
    ABSENT,
    Told,
    count,
    figure,
    giga,
    groups,
    mega,
    threads_named,
    times,
)
from normwright.report.document import Table

LARGE_BYTES = 8_000_000


def each_cell(told: Told) -> list[Table]:
    """A table for each type and operation: a row for each shape and layout, those with defeats first."""
    say, first, found = told.say, told.states[0], []
    for (threads, dtype, op), group in groups(told.of, lambda c: (c.threads, c.dtype, c.op)):
        order = sorted(
            group, key=lambda c: not any(is_defeat(r.value) for r in ratios([c], [first], [TORCH]))
        )
        rows = [(c.size, c.layout, *_numbers(c, told)) for c in order]
        for layout in LAYOUTS:
            large = [c for c in group if c.layout == layout and c.bytes > LARGE_BYTES]
            if large and not told.short:
                rows.append((say("mean > 8 MB", "平均，> 8 MB"), layout, *_mean_numbers(large, told)))
        title = f"{dtype}, {OP_NAMES[op]}" + threads_named(threads, told)
        found.append(Table(title, _titles(told), tuple(rows), names=2))
    return found


def _titles(told: Told) -> tuple[str, ...]:
    say = told.say
    speeds = [f"{told.step(what)} x torch" for what in PASSES]
    floors = [say(f"{told.step(what)} over floor", f"{told.step(what)} / 下限") for what in PASSES]
    peak, theirs = say("peak MB", "峰值 MB"), say("torch's", "torch 的")
    named = say("shape", "形状"), say("layout", "布局")
    # Where a terminal is too narrow for all, either half can stand alone.
    return (
        (*named, *speeds, peak, *floors, "GB/s")
        if told.short
        else (*named, "MB", *speeds, *floors, "GB/s", peak, theirs)
    )


def _numbers(cell: Cell, told: Told) -> tuple[str, ...]:
    first = told.states[0]
    speeds = [told.ratio(cell.speed_up(what, first)) for what in PASSES]
    floors = [times(cell.over_floor(what, first)) for what in PASSES]
    rate, peak = giga(cell.bytes_a_second(BOTH, first)), mega(cell.peak())
    if told.short:
        return (*speeds, peak, *floors, rate)
    return (figure(cell.bytes / 1e6), *speeds, *floors, rate, peak, mega(cell.peak(TORCH)))


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
            *(f"{told.step(what)} x {SHOWN[who]}" for who in slow for what in PASSES),
            *(say(f"{SHOWN[who]}'s peak MB", f"{SHOWN[who]} 的峰值 MB") for who in slow),
        )
        title = say(f"{dtype} beside those who compile", f"{dtype}，与编译者相比") + threads_named(
            threads, told
        )
        found.append(Table(title, titles, tuple(rows), names=3))
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
                *(f"{told.step(what)} x torch" for what in PASSES),
                say("page faults", "缺页"),
                say("torch's", "torch 的"),
            )
            memory = say(f"{dtype} in {other} memory", f"{dtype}，{state(other, say)}内存")
            found.append(Table(memory + threads_named(threads, told), titles, tuple(rows), names=3))
    return found
