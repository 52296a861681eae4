"""The relatives told: who is sooner, who is more accurate, and what whitening costs."""

import math
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

from normwright.report import figures, style
from normwright.report.cards.race import AS_WELL
from normwright.report.document import Card, Picture, Table, Verdict, outcome
from normwright.report.figures import Axis, Dots, Line
from normwright.report.result import Result
from normwright.report.summary import MILLISECONDS, PERCENT, PLAIN, TIMES, Unit, told
from normwright.report.words import Say

NONE, WITH, WHITENING = "none", "BN", "whitening"
# A layer costs a multiple of another from twice its time on: the least whole number that is one.
MULTIPLE = 2.0
# In each picture beside the network without normalization and the one with BN.
PICTURED = ((WHITENING, "local response"), ("layer norm", "group norm", "weight norm"))


def card(result: Result, say: Say) -> Card:
    """The relatives' card."""
    network = result.settings["network"]
    return Card(
        name=result.name,
        title=say("The relatives: whitening and other normalizations", "同类方法：白化与其他归一化"),
        claim=say(
            "Batch normalization (BN) normalizes each dimension on its own because whitening all of them together "
            "costs too much; local response, layer and weight normalization are its relatives.",
            "批量归一化（BN）对每个维度单独归一化，因为对所有维度一起做白化代价太高；"
            "局部响应归一化、层归一化和权重归一化是它的同类方法。",
        ),
        done=say(
            f"The {network['name']} ({network['layers']}) with each of them where BN stands, from the same "
            "weights and on the same batches, plain SGD; learning rates from one grid, chosen on the validation "
            f"images. {result.settings['seeds']} seeds.",
            f"{network['name']}（{network['layers']}）：把每种方法放在 BN 的位置，权重与批次相同，普通 SGD；"
            f"学习率取自同一网格，在验证图像上选择。{result.settings['seeds']} 个种子。",
        ),
        verdicts=(
            faster(result, say),
            alternatives(result, say),
            accuracy(result, say),
            whitening_cost(result, say),
        ),
        pictures=(*_curves(result, say), *_dots(result, say)),
        see=say(
            "Dashed in the first pictures: the best accuracy without normalization. In the rows each dot is a "
            "seed, or a round of the clock.",
            "前两幅图中的虚线：不做归一化时的最佳准确率。点图中每个点是一个种子，或一轮计时。",
        ),
        tables=(_variants(result, say), _layers(result, say)),
        details=(_rates(result, say),),
        command=result.command,
    )


def variants(result: Result) -> list[str]:
    """Who was compared, in order."""
    return result.each("test accuracy", "variant")


def relatives(result: Result) -> list[str]:
    """All but BN and the network without normalization."""
    return [variant for variant in variants(result) if variant not in (NONE, WITH)]


def variant_name(variant: str, say: Say) -> str:
    """A normalization in the reader's language."""
    return {
        NONE: say("none", "无归一化"),
        WITH: "BN",
        WHITENING: say("whitening", "白化"),
        "layer norm": say("layer norm", "层归一化"),
        "group norm": say("group norm", "组归一化"),
        "weight norm": say("weight norm", "权重归一化"),
        "local response": say("local response", "局部响应"),
    }[variant]


# --- verdicts ---------------------------------------------------------


def faster(result: Result, say: Say) -> Verdict:
    """With BN, fewer steps than without normalization reach the goal: for every seed, or in the median."""
    base, own = (_steps(result, variant) for variant in (NONE, WITH))
    sooner = sum(after < before for before, after in zip(base, own, strict=True))
    shown = [
        f"{variant_name(variant, say)} "
        f"{told(result.spread('steps to the goal', variant=variant), PLAIN, say)}"
        for variant in sorted(variants(result), key=lambda variant: median(_steps(result, variant)))
    ]
    goal = PERCENT(result.number("goal"))
    return Verdict(
        say("BN learns faster than no normalization", "有 BN 比不做归一化学得更快"),
        outcome(sooner == len(own), median(own) < median(base)),
        say(
            f"BN was sooner at {goal}, the median best without normalization, for {sooner} of {len(own)} seeds. "
            f"Steps, fastest first: {'; '.join(shown)}.",
            f"以不做归一化时最佳准确率的中位数 {goal} 为目标，{len(own)} 个种子中有 {sooner} 个 BN 更早达到。"
            f"所用步数（由快到慢）：{'；'.join(shown)}。",
        ),
    )


def alternatives(result: Result, say: Say) -> Verdict:
    """The relatives help too: each reaches the goal in fewer steps than without normalization, in the median."""
    base = median(_steps(result, NONE))
    middle = {variant: median(_steps(result, variant)) for variant in relatives(result)}
    help_too = [variant_name(variant, say) for variant, steps in middle.items() if steps < base]
    do_not = [variant_name(variant, say) for variant, steps in middle.items() if steps >= base]
    return Verdict(
        say("The relatives speed up training too", "同类方法也能加快训练"),
        outcome(not do_not, bool(help_too)),
        say(
            f"Sooner than without normalization in the median: {_listed(help_too, say)}; not sooner: "
            f"{_listed(do_not, say)}.",
            f"中位数早于不做归一化的：{_listed(help_too, say)}；不早于的：{_listed(do_not, say)}。",
        ),
    )


def accuracy(result: Result, say: Say) -> Verdict:
    """BN ends at least as accurate as each relative: by the medians, or but for the error of an accuracy."""
    middle = {
        variant: median(result.numbers("test accuracy", variant=variant)) for variant in variants(result)
    }
    ahead = {variant: middle[variant] - middle[WITH] for variant in relatives(result)}
    ranked = sorted(middle, key=lambda variant: -middle[variant])
    shown = say("; ", "；").join(
        f"{variant_name(variant, say)} {told(result.spread('test accuracy', variant=variant), PERCENT, say)}"
        for variant in ranked
    )
    return Verdict(
        say("BN ends at least as accurate as each relative", "BN 的最终准确率不低于任何同类方法"),
        outcome(max(ahead.values()) <= 0, max(ahead.values()) <= AS_WELL),
        say(f"Test accuracy, best first: {shown}.", f"测试准确率（由高到低）：{shown}。"),
    )


def whitening_cost(result: Result, say: Say) -> Verdict:
    """A layer that whitens takes a multiple of BN's time, at every number of channels or at some."""
    middle = {
        channels: median(result.numbers("cost of a layer", variant=WHITENING, channels=channels))
        for channels in result.each("cost of a layer", "channels")
    }
    costly = [ratio >= MULTIPLE for ratio in middle.values()]
    steps = [result.numbers("cost of a step", variant=variant) for variant in (WITH, WHITENING)]
    step = TIMES(median(after / before for before, after in zip(*steps, strict=True)))
    shown = ", ".join(f"{channels}: {_ratio(ratio)}" for channels, ratio in middle.items())
    return Verdict(
        say("Whitening costs a multiple of BN", "白化的代价是 BN 的数倍"),
        outcome(all(costly), any(costly)),
        say(
            f"Time of the layer as a multiple of BN's, by channels: {shown}. A training step of the whole network "
            f"takes {step} as long as with BN.",
            f"该层耗时与 BN 之比，按通道数：{shown}。整个网络的一个训练步耗时是有 BN 时的 {step}。",
        ),
    )


def _ratio(value: float) -> str:
    """A ratio with as many digits as mean something."""
    return TIMES(value) if value < 10 else f"{value:.0f}x"


def _steps(result: Result, variant: str) -> list[float]:
    """Steps to the goal of each seed; never is later than any step."""
    found = result.values("steps to the goal", variant=variant)
    return [math.inf if steps is None else steps for steps in found]


def _listed(names: list[str], say: Say) -> str:
    return say.listed(names) if names else say("none of them", "没有")


# --- pictures and tables ----------------------------------------------


def _curves(result: Result, say: Say) -> list[Picture]:
    there = variants(result)
    pictures = []
    for number, others in enumerate(PICTURED, start=1):
        shown = [variant for variant in others if variant in there]
        if shown:
            names = say.listed([variant_name(variant, say) for variant in shown])
            pictures.append(
                Picture(
                    f"relatives-accuracy-{number}",
                    partial(_lines, result, shown, say),
                    say(
                        f"Validation accuracy against training step: none, BN, {names}.",
                        f"验证准确率随训练步数的变化：无归一化、BN、{names}。",
                    ),
                    say(f"BN beside {names}", f"BN 与{names}"),
                )
            )
    return pictures


def _lines(result: Result, others: Sequence[str], say: Say) -> Any:
    colours = (style.THIRD, style.FOURTH, style.FIFTH)
    shown = [(NONE, style.WITHOUT), (WITH, style.WITH), *zip(others, colours, strict=False)]
    drawn = []
    for variant, colour in shown:
        steps, heights = result.curves("validation accuracy", "step", variant=variant)
        middle = [median(height or 0.0 for height in column) for column in zip(*heights, strict=True)]
        drawn.append(Line(variant_name(variant, say), steps, middle, colour))
    x = Axis(say("training step", "训练步数"), low=0)
    y = Axis(say("validation accuracy", "验证准确率"), percent=True, low=0, high=1.0)
    return figures.lines(drawn, x, y, level=result.number("goal"))


def _dots(result: Result, say: Say) -> list[Picture]:
    def rows(what: str) -> list[Dots]:
        tone = {NONE: style.WITHOUT, WITH: style.WITH}
        return [
            Dots(
                variant_name(variant, say),
                result.numbers(what, variant=variant),
                tone.get(variant, style.THIRD),
            )
            for variant in variants(result)
        ]

    def accuracies() -> Any:
        axis = Axis(say("test accuracy", "测试准确率"), percent=True)
        middle = median(result.numbers("test accuracy", variant=WITH))
        return figures.dots(rows("test accuracy"), axis, level=middle)

    def costs() -> Any:
        return figures.dots(
            rows("cost of a step"),
            Axis(say("time of a step, none = 1", "一步耗时，无归一化 = 1"), low=0),
            level=1.0,
        )

    return [
        Picture(
            "relatives-test",
            accuracies,
            say(
                "Test accuracy of each normalization, a dot for each seed.",
                "各归一化方法的测试准确率，每个种子一个点。",
            ),
            say("Test accuracy; dashed: BN's median", "测试准确率；虚线：BN 的中位数"),
        ),
        Picture(
            "relatives-cost",
            costs,
            say(
                "Time of a training step with each normalization, as a multiple of a step without.",
                "使用各归一化方法时一个训练步的耗时，以不做归一化的一步为 1。",
            ),
            say("What a training step costs", "一个训练步的代价"),
        ),
    ]


def _variants(result: Result, say: Say) -> Table:
    def cell(what: str, unit: Unit, variant: str) -> str:
        return told(result.spread(what, variant=variant), unit, say)

    settings, goal = result.settings, PERCENT(result.number("goal"))
    budget = settings["budget"]
    return Table(
        title=say(
            f"{settings['network']['name']}: median of {settings['seeds']} seeds (range)",
            f"{settings['network']['name']}：{settings['seeds']} 个种子的中位数（范围）",
        ),
        columns=(
            "",
            say("rate", "学习率"),
            say("steps to the goal", "到达目标的步数"),
            say("test accuracy", "测试准确率"),
            say("cost of a step", "一步的代价"),
        ),
        rows=tuple(
            (
                variant_name(variant, say),
                f"{result.number('chosen rate', variant=variant):g}",
                cell("steps to the goal", PLAIN, variant),
                cell("test accuracy", PERCENT, variant),
                cell("cost of a step", TIMES, variant),
            )
            for variant in variants(result)
        ),
        note=say(
            f"{budget['steps']} steps of {budget['batch_size']} images, looked at every {budget['every']}; the "
            f"goal is {goal}. Cost: time of forward and backward, none = 1, median of {settings['rounds']} "
            f"rounds of {settings['steps']} steps each, in turn, one thread. Group norm: 4 channels a group. "
            "Local response: 5 neighbours with weight 1; AlexNet's is smaller, for images up to 255.",
            f"{budget['steps']} 步，每步 {budget['batch_size']} 张图像，每 {budget['every']} 步评估一次；"
            f"目标为 {goal}。代价：前向与反向的耗时，无归一化为 1，{settings['rounds']} 轮（每轮各 "
            f"{settings['steps']} 步，轮流进行，单线程）的中位数。组归一化：每组 4 个通道。局部响应：5 个相邻通道，"
            "系数为 1；AlexNet 的系数更小，因为其图像取值到 255。",
        ),
    )


def _layers(result: Result, say: Say) -> Table:
    def cell(variant: str, channels: int) -> str:
        seconds = result.spread("cost of a layer, seconds", variant=variant, channels=channels)
        return told(seconds, MILLISECONDS, say)

    return Table(
        title=say("One layer by itself: forward and backward", "单独一层：前向与反向"),
        columns=(say("channels", "通道数"), "BN", say("whitening", "白化"), say("ratio", "比值")),
        rows=tuple(
            (
                f"{channels}",
                cell(WITH, channels),
                cell(WHITENING, channels),
                _ratio(median(result.numbers("cost of a layer", variant=WHITENING, channels=channels))),
            )
            for channels in result.each("cost of a layer", "channels")
        ),
        note=say(
            f"{result.settings['budget']['batch_size']} images of 8x8. Whitening computes a covariance matrix and "
            "its inverse root by eigenvalues in double precision.",
            f"{result.settings['budget']['batch_size']} 张 8x8 的图像。白化需计算协方差矩阵，"
            "并用双精度特征分解求其逆平方根。",
        ),
    )


def _rates(result: Result, say: Say) -> Table:
    rates = [float(rate) for rate in result.settings["rates"]]

    def cell(rate: float, variant: str) -> str:
        chosen = result.number("chosen rate", variant=variant) == rate
        score = result.number("score of a rate", rate=rate, variant=variant)
        return PERCENT.number(score) + ("*" if chosen else "")

    return Table(
        title=say("Learning rates tried: validation accuracy in %", "尝试过的学习率：验证准确率（%）"),
        columns=("", *(f"{rate:g}" for rate in rates)),
        rows=tuple(
            (variant_name(variant, say), *(cell(rate, variant) for rate in rates))
            for variant in variants(result)
        ),
        note=say(
            "* chosen; at the edge a better one may lie beyond. Mean over the last quarter of a run: every rate "
            "with the first seed, each one's best two with all seeds.",
            "* 为选中的学习率；若位于边缘，更好的值可能在网格之外。一次训练最后四分之一的平均值："
            "每个学习率用第一个种子，每种方法最好的两个用全部种子。",
        ),
    )
