"""A benchmark in sum: verdicts, means, and where we lost."""

from collections.abc import Sequence
from itertools import groupby

from normwright.bench.cases import BOTH, DTYPES, LAYOUTS, PASSES, TORCH
from normwright.bench.telling.cells import Ratio, geometric_mean, is_defeat, ratios
from normwright.bench.telling.notes import OP_NAMES, SHOWN, state
from normwright.bench.telling.told import SHORT, Told, groups, times, without_threads
from normwright.report.document import Table, Verdict, outcome
from normwright.report.words import Say

LISTED = 20  # defeats that are listed one by one


def verdicts(told: Told) -> list[Verdict]:
    """Never slower: every cell, every pass, every state of the allocator, for each rival."""
    say, found = told.say, []
    for rival in told.rivals:
        measured = ratios(told.of, told.states, [rival])
        lost = sum(is_defeat(r.value) for r in measured)
        name = SHOWN[rival]
        sentence = say(
            f"Slower in {lost} of {len(measured)} measurements.",
            f"{len(measured)} 项测量中有 {lost} 项更慢。",
        )
        claim = say(f"Never slower than {name}", f"从不慢于 {name}")
        found.append(Verdict(claim, outcome(lost == 0, 2 * lost < len(measured)), sentence))
    wrong = [words for cell in told.of for words in cell.refused]
    if wrong:
        more = say(f" And {len(wrong) - 1} more.", f"另有 {len(wrong) - 1} 项。") if len(wrong) > 1 else ""
        claim = say("Every contender computes what float64 does", "每个参与者都与 float64 的结果一致")
        found.append(Verdict(claim, "does not hold here", wrong[0] + more))
    return found


def means(told: Told, dtypes: Sequence[str] = DTYPES) -> Table:
    """Geometric means over all cells of a type, an operation and a pass, in the first state."""
    say, first = told.say, told.states[0]
    rows = []
    for (threads, dtype, op), group in groups(told.of, lambda c: (c.threads, c.dtype, c.op)):
        if dtype not in dtypes:
            continue
        for what in PASSES:
            beside = [geometric_mean(c.speed_up(what, first, who) for c in group) for who in told.rivals]
            least = min((c.speed_up(what, first) or float("inf") for c in group), default=float("inf"))
            rows.append(
                (
                    str(threads),
                    dtype,
                    OP_NAMES[op],
                    told.step(what),
                    *map(told.ratio, beside[:1]),
                    told.ratio(None if least == float("inf") else least),
                    *map(told.ratio, beside[1:]),
                    times(geometric_mean(c.over_floor(what, first) for c in group)),
                )
            )
    first_rival, *others = [f"x {SHOWN[who]}" for who in told.rivals] or ["x torch"]
    titles = (
        say("threads", "线程"),
        say("type", "类型"),
        say("operation", "运算"),
        say("pass", "过程"),
        first_rival,
        say("least", "最小"),
        *others,
        say("over floor", "/ 下限"),
    )
    note = say(
        f"x: how many times faster than that, geometric means over all shapes and layouts in {first} memory; "
        "least: the slowest beside torch.",
        f"x：比其快多少倍，在{state(first, say)}内存下对所有形状与布局取几何平均；最小：与 torch 相比最慢的一项。",
    )
    words = f" {', '.join(SHORT.values())}: {', '.join(SHORT)}." if told.short else ""
    title = say("In the mean", "平均")
    return without_threads(Table(title, titles, tuple(rows), note + words, names=4))


def by_layout(told: Told) -> Table:
    """Geometric means beside torch and over the floor for each layout."""
    say, first = told.say, told.states[0]
    rows = []
    order = sorted(told.of, key=lambda c: (DTYPES.index(c.dtype), LAYOUTS.index(c.layout)))
    for (threads, dtype, layout, op), group in groups(order, lambda c: (c.threads, c.dtype, c.layout, c.op)):
        speeds = (geometric_mean(c.speed_up(what, first) for c in group) for what in PASSES)
        floors = (geometric_mean(c.over_floor(what, first) for c in group) for what in PASSES)
        names = (str(threads), dtype, layout, OP_NAMES[op], str(len(group)))
        rows.append((*names, *map(told.ratio, speeds), *map(times, floors)))
    titles = (
        say("threads", "线程"),
        say("type", "类型"),
        say("layout", "布局"),
        say("operation", "运算"),
        say("shapes", "形状数"),
        *(f"{told.step(what)} x torch" for what in PASSES),
        *(say(f"{told.step(what)} over floor", f"{told.step(what)} / 下限") for what in PASSES),
    )
    return without_threads(Table(say("By layout", "按布局"), titles, tuple(rows), names=4))


def grids(told: Told) -> list[Table]:
    """Means over the lists of shapes, each weighted by how often it occurs there."""
    say, first, rows = told.say, told.states[0], []
    for name, weights in told.about.get("grids", {}).items():
        some = [cell for cell in told.of if cell.place in weights]
        for (threads, dtype, layouts), group in groups(some, lambda c: (c.threads, c.dtype, c.layout)):
            if dtype not in DTYPES[:2] or layouts not in LAYOUTS[:2]:
                continue
            weighed = [weights[cell.place] for cell in group]
            numbers = (geometric_mean((c.speed_up(w, first) for c in group), weighed) for w in PASSES)
            floor = geometric_mean((c.over_floor(BOTH, first) for c in group), weighed)
            named = (str(threads), _grid_name(name, say), layouts, dtype)
            rows.append((*named, *map(told.ratio, numbers), times(floor)))
    if len({row[1] for row in rows}) < 2:
        return []
    titles = (
        say("threads", "线程"),
        say("shapes", "形状"),
        say("layout", "布局"),
        say("type", "类型"),
        *(f"{told.step(what)} x torch" for what in PASSES),
        say(f"{told.step(BOTH)} over floor", f"{told.step(BOTH)} / 下限"),
    )
    note = say(
        "Geometric means over the three operations; the layers of networks count as often as they occur there.",
        "对三种运算取几何平均；网络中的层按其出现次数加权。",
    )
    return [
        without_threads(
            Table(say("By where the shapes come from", "按形状来源"), titles, tuple(rows), note, names=4)
        )
    ]


def defeats(told: Told) -> list[Table]:
    """Where we are slower, the slowest first."""
    say = told.say
    found: dict[str, list[Ratio]] = {}
    for ratio in ratios(told.of, told.states):
        if is_defeat(ratio.value):
            found.setdefault(f"{ratio.cell.threads} {ratio.cell.name}", []).append(ratio)
    worst = sorted(found.values(), key=lambda of: min(r.value for r in of))
    if not worst:
        return []
    rows = []
    for lost in worst[:LISTED]:
        cell = lost[0].cell
        named = (str(cell.threads), cell.size, cell.layout, cell.dtype, OP_NAMES[cell.op])
        rows.append((*named, _lost(lost, told)))
    more = len(worst) - len(rows)
    note = say(f"And {more} more cells.", f"另有 {more} 个单元。") if more else ""
    titles = (
        say("threads", "线程"),
        say("shape", "形状"),
        say("layout", "布局"),
        say("type", "类型"),
        say("operation", "运算"),
        say("times as fast as", "速度之比"),
    )
    title = say("Where it is slower", "更慢之处")
    return [without_threads(Table(title, titles, tuple(rows), note, names=len(titles)))]


def _lost(of: Sequence[Ratio], told: Told) -> str:
    """The defeats of one cell in words."""
    say, parts = told.say, []
    for (rival, allocator), some in groupby(of, key=lambda r: (r.rival, r.allocator)):
        numbers = ", ".join(f"{told.step(r.what)} {r.value:.2f}" for r in some)
        memory = say(f", {allocator} memory", f"，{state(allocator, say)}内存")
        parts.append(f"{SHOWN[rival]}{memory if allocator != 'warm' else ''}: {numbers}")
    return "; ".join(parts)


def headline(told: Told) -> str:
    """How many times torch's speed, in one line."""
    parts, first = [], told.states[0]
    for dtype in DTYPES:
        some = [cell for cell in told.of if cell.dtype == dtype]
        mean = geometric_mean(r.value for r in ratios(some, [first], [TORCH]))
        if mean is not None:
            parts.append(f"{mean:.2f} times torch's speed in {dtype}")
    return f"In the geometric mean, {first} memory: " + (", ".join(parts) or "torch was not measured") + "."


def _grid_name(name: str, say: Say) -> str:
    return say(name, {"listed": "列出的形状", "vision models": "视觉模型"}.get(name, name))
