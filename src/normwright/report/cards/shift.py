"""The shift told: how far the layers' input distributions move, by depth, and whether moving them does harm."""

import math
from collections.abc import Sequence
from statistics import correlation
from typing import Any

from normwright.report import figures, style
from normwright.report.cards.shift_numbers import (
    LOOKS,
    NOISY,
    SAME_RATE,
    SIZE,
    START,
    STEP,
    WITH,
    WITHOUT,
    by_layer,
    chosen_rate,
    condition_name,
    layers,
    middle,
    moments,
    networks,
    rates,
    shapes,
    speeds,
    typical,
)
from normwright.report.document import Card, Picture, Verdict, outcome
from normwright.report.figures import Axis, Line
from normwright.report.result import Result
from normwright.report.summary import PLAIN, told
from normwright.report.words import Say

# A rank correlation with depth that nine layers in random order reach in fewer than 1 of 100 draws (the critical
# value is 0.783). Three layers reach it in perfect order alone, which is 1 order of 6.
GROWS = 0.8
# Times the distance that other images make. That distance is an average over channels, and differs by about a
# tenth from one draw of images to the next: half as much again is not the draw.
DIFFERENT = 1.5
# Times the steps. Less than BN's own seeds differ: with one rate they take 24 to 48 steps on the deep CNN.
AS_FAST = 1.5
# float32 keeps 24 bits: means of a few hundred normalized values are right to about 1e-6.
ROUNDING = 1e-5


def card(result: Result, say: Say) -> Card:
    """The shift's card."""
    return Card(
        name=result.name,
        title=say("The shift of the layers' inputs", "各层输入分布的偏移"),
        claim=say(
            "While a network learns, the distribution of each layer's inputs moves, the more the deeper the "
            "layer; BN is said to work because it lessens this internal covariate shift, which others call "
            "wrapping paper.",
            "网络学习时，每一层输入的分布都在移动，层越深移动越大；有人说 BN 之所以有效，是因为减小了这种“内部协"
            "变量偏移”，也有人说这只是包装纸。",
        ),
        done=say(
            "The same training images were passed through the network at regular steps of its training. Shifts "
            "of the mean are in standard deviations of the channel, so that they compare with BN and without. As "
            "a control, noise after BN moves each channel by another amount in every step. Each side chose its "
            f"rate from the same grid; {_seeds(result)} seeds.",
            "训练过程中每隔固定步数，让同一批训练图像通过网络。均值的偏移以该通道的标准差为单位，因此有 BN 与无 "
            "BN 可以比较。作为对照，在 BN 之后加入噪声，使每个通道在每一步都移动不同的量。各方从同样的网格中选择"
            f"学习率；{_seeds(result)} 个随机种子。",
        ),
        verdicts=(
            smaller(result, say),
            depth(result, say),
            law(result, say),
            shape(result, say),
            *(control(result, name, say) for name in networks(result)),
        ),
        pictures=(
            _depth_picture(result, say),
            *(_unit_picture(result, condition, say) for condition in (WITHOUT, WITH)),
            _control_picture(result, say),
        ),
        see=say(
            "By depth: the lower a line, the less its layers move. One unit: three percentiles of its input, "
            "flat where nothing moves (mind the two scales). Noise: whether BN with noise learns like BN or like "
            "no BN.",
            "按深度：线越低，各层移动越小。单个单元：其输入的三个百分位数，不移动则为平线（注意两图刻度不同）。噪"
            "声：BN 加噪声的学习过程像有 BN 还是像无 BN。",
        ),
        tables=tuple(speeds(result, name, say) for name in networks(result)),
        details=tuple(
            table(result, name, say) for name in networks(result) for table in (moments, shapes, rates)
        ),
        command=result.command,
    )


# --- verdicts ---------------------------------------------------------


def smaller(result: Result, say: Say) -> Verdict:
    """With BN, means and variances move less: in every layer, over both spans; or in more than half of these."""
    shares, shown = [], []
    for name in networks(result):
        fewer = [
            w < o
            for what in ("mean shift", "variance shift")
            for span in (LOOKS, START)
            for o, w in zip(*(by_layer(result, what, span, name, c) for c in (WITHOUT, WITH)), strict=True)
        ]
        shares.append(sum(fewer) / len(fewer))
        before, after = (SIZE(typical(result, "mean shift", LOOKS, name, c)) for c in (WITHOUT, WITH))
        shown.append(
            say(
                f"{name}: {sum(fewer)} of {len(fewer)} shifts (each layer's mean and variance, between looks and "
                f"from the start) are smaller with BN; between looks a mean moves by {after} deviations with BN, "
                f"{before} without (median layer)",
                f"{name}：{len(fewer)} 个偏移（各层的均值与方差，相邻观察之间与从起点算）中有 {sum(fewer)} 个在有 "
                f"BN 时更小；相邻两次观察之间，均值移动 {after} 个标准差（有 BN），{before} 个（无 BN）（各层的中"
                "位数）",
            )
        )
    return Verdict(
        say("The distributions move less with BN", "有 BN 时分布移动更小"),
        outcome(min(shares) == 1, min(shares) > 0.5),
        _joined(shown, say),
    )


def depth(result: Result, say: Say) -> Verdict:
    """Without BN, deeper layers move more: means and variances, over both spans; or between looks alone."""
    always, between, shown = [], [], []
    for name in networks(result):
        grows = {
            (what, span): _grows(by_layer(result, what, span, name, WITHOUT))
            for what in ("mean shift", "variance shift")
            for span in (LOOKS, START)
        }
        always.append(min(grows.values()) >= GROWS)
        between.append(min(value for (_, span), value in grows.items() if span == LOOKS) >= GROWS)
        first, *_, last = by_layer(result, "mean shift", LOOKS, name, WITHOUT)
        spans = [
            [f"{grows[what, span]:.2f}" for what in ("mean shift", "variance shift")]
            for span in (LOOKS, START)
        ]
        shown.append(
            say(
                f"{name}: between looks a mean moves by {SIZE(first)} deviations in the first layer, {SIZE(last)} "
                f"in the last; rank correlation of shift and depth {spans[0][0]} (mean) and {spans[0][1]} "
                f"(variance), from the start {spans[1][0]} and {spans[1][1]}",
                f"{name}：相邻两次观察之间，均值在第一层移动 {SIZE(first)} 个标准差，在最后一层移动 {SIZE(last)} "
                f"个；偏移与深度的秩相关为 {spans[0][0]}（均值）和 {spans[0][1]}（方差），从起点算为 "
                f"{spans[1][0]} 和 {spans[1][1]}",
            )
        )
    return Verdict(
        say("Without BN, deeper layers move more", "无 BN 时，越深的层移动越大"),
        outcome(all(always), any(between)),
        _joined(shown, say),
    )


def law(result: Result, say: Say) -> Verdict:
    """The mean of what BN puts out is beta, whatever the layers before it do."""
    distances = [d for c in (WITH, SAME_RATE) for d in result.values("mean minus beta", condition=c)]
    largest = max(math.inf if distance is None else distance for distance in distances)
    return Verdict(
        say("The mean of what BN puts out is beta alone", "BN 输出的均值只取决于 beta"),
        outcome(largest <= ROUNDING, False),
        say(
            f"After training, no channel's mean is further than {largest:.1e} from its beta: a mean moves as its "
            "own beta is learned, and not as the layers before it are.",
            f"训练后，任何通道的均值与其 beta 的差都不超过 {largest:.1e}：均值只随自身的 beta 移动，而不随前面的层"
            "移动。",
        ),
    )


def shape(result: Result, say: Say) -> Verdict:
    """With BN, shapes change beyond what a draw of images does: in every layer, or in some."""
    ratios, shown = [], []
    for name in networks(result):
        moved = by_layer(result, "shape shift", START, name, WITH)
        drawn = by_layer(result, "shape of other images", None, name, WITH)
        # What has no number is no evidence.
        times = [m / d if m < math.inf else 0.0 for m, d in zip(moved, drawn, strict=True)]
        ratios += times
        shown.append(
            say(
                f"{name}: {_range(moved)} deviations in the mean over the values, {_range(times)} times what other "
                "images make",
                f"{name}：平均每个值 {_range(moved)} 个标准差，是换一批图像所产生距离的 {_range(times)} 倍",
            )
        )
    return Verdict(
        say(
            "With mean and variance made equal, the distributions still differ",
            "均值和方差相等之后，分布仍然不同",
        ),
        outcome(min(ratios) >= DIFFERENT, max(ratios) >= DIFFERENT),
        say("From start to end with BN. ", "有 BN 时从开始到结束。") + _joined(shown, say),
    )


def control(result: Result, network: str, say: Say) -> Verdict:
    """Noise after BN moves every layer more in a step than it moves without BN, and training is as fast as with BN.

    More in deviations and in the input's own unit too. Partly: it moves most layers more, in one of the two, and
    training is faster than without BN.
    """
    more = []
    for what in ("mean shift", "raw mean shift"):
        noise, plain = (by_layer(result, what, STEP, network, c) for c in (NOISY, WITHOUT))
        more.append(sum(n > p for n, p in zip(noise, plain, strict=True)))
    count = len(layers(result, network))
    conditions = (NOISY, WITH, WITHOUT)
    steps = [middle(result, "steps to the goal", network=network, condition=c) for c in conditions]
    as_fast = steps[0] < math.inf and steps[0] <= AS_FAST * steps[1]
    told_steps = [
        told(result.spread("steps to the goal", network=network, condition=c), PLAIN, say) for c in conditions
    ]
    moved = [SIZE(typical(result, "mean shift", STEP, network, c)) for c in conditions]
    return Verdict(
        say(
            f"{network}: more shift than without BN, and as fast as with it",
            f"{network}：偏移比无 BN 时更大，却与有 BN 时一样快",
        ),
        outcome(min(more) == count and as_fast, 2 * max(more) > count and steps[0] < steps[2]),
        say(
            f"In one step a mean moves by {moved[0]} deviations with BN and noise, {moved[1]} with BN, {moved[2]} "
            f"without (median layer); with noise by more than without BN in {more[0]} of {count} layers, in the "
            f"input's own unit in {more[1]}. Steps to the goal: {told_steps[0]} with BN and noise, {told_steps[1]} "
            f"with BN, {told_steps[2]} without.",
            f"每一步中，均值移动 {moved[0]} 个标准差（BN 加噪声）、{moved[1]} 个（有 BN）、{moved[2]} 个（无 BN）"
            f"（各层的中位数）；加噪声后，{count} 层中有 {more[0]} 层的移动大于无 BN，以输入自身的单位计则有 "
            f"{more[1]} 层。达到目标的步数：BN 加噪声 {told_steps[0]}，有 BN {told_steps[1]}，无 BN "
            f"{told_steps[2]}。",
        ),
    )


def _grows(values: Sequence[float]) -> float:
    """The rank correlation of values with their place in the row."""
    ranks = {place: rank for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i]))}
    return correlation(range(len(values)), [ranks[place] for place in range(len(values))])


def _range(values: Sequence[float]) -> str:
    return f"{SIZE(min(values))}–{SIZE(max(values))}"


def _joined(sentences: Sequence[str], say: Say) -> str:
    return say("; ", "；").join(sentences) + say(".", "。")


# --- pictures ---------------------------------------------------------


def deepest(result: Result) -> str:
    return max(networks(result), key=lambda name: len(layers(result, name)))


def _depth_picture(result: Result, say: Say) -> Picture:
    name = deepest(result)
    return Picture(
        name="shift-depth",
        draw=lambda: _by_depth(result, name, say),
        alt=say(
            f"Shift of the mean between two looks against depth in the {name}: without BN, with BN, with noise.",
            f"{name} 中相邻两次观察之间均值的偏移随深度的变化：无 BN、有 BN、加噪声。",
        ),
        title=say(f"{name}: shift by depth", f"{name}：偏移与深度"),
    )


def _by_depth(result: Result, network: str, say: Say) -> Any:
    shown = [
        (WITHOUT, style.WITHOUT, False),
        (WITH, style.WITH, False),
        (SAME_RATE, style.WITH, True),
        (NOISY, style.THIRD, False),
    ]
    if chosen_rate(result, network, WITH) == chosen_rate(result, network, SAME_RATE):
        shown = [line for line in shown if line[0] != SAME_RATE]
    drawn = []
    for condition, colour, dashed in shown:
        where: dict[str, Any] = {"network": network, "condition": condition, "span": LOOKS}
        layers, heights = result.curves("mean shift", "layer", **where)
        drawn.append(Line(condition_name(condition, say), layers, heights, colour, dashed))
    return figures.lines(
        drawn,
        Axis(say("hidden layer", "隐藏层")),
        Axis(say("shift of the mean (deviations)", "均值的偏移（标准差）"), log=True),
    )


def _unit_picture(result: Result, condition: str, say: Say) -> Picture:
    network = result.each("input of a unit", "network")[0]
    name = condition_name(condition, say)
    return Picture(
        name=f"shift-unit-{'with' if condition == WITH else 'without'}",
        draw=lambda: _unit(result, network, condition, say),
        alt=say(
            f"{network}, {name}: the 15th, 50th and 85th percentile of one unit's input against training step.",
            f"{network}，{name}：一个单元输入的第 15、50、85 百分位数随训练步数的变化。",
        ),
        title=say(f"{network}, {name}: one unit's input", f"{network}，{name}：一个单元的输入"),
    )


def _unit(result: Result, network: str, condition: str, say: Say) -> Any:
    where: dict[str, Any] = {"network": network, "condition": condition}
    steps, heights = result.curves("input of a unit", "step", "percentile", **where)
    colour = style.WITH if condition == WITH else style.WITHOUT
    percents = result.each("input of a unit", "percentile", **where)
    return figures.lines(
        [
            Line(f"{percent} %", steps, row, colour, dashed=percent != 50)
            for percent, row in zip(percents, heights, strict=True)
        ],
        Axis(say("training step", "训练步数")),
        Axis(say("input of the sigmoid", "sigmoid 的输入")),
    )


def _control_picture(result: Result, say: Say) -> Picture:
    name = deepest(result)
    return Picture(
        name="shift-noise",
        draw=lambda: _control(result, name, say),
        alt=say(
            f"Validation accuracy of the {name} against training step: without BN, with BN, with BN and noise.",
            f"{name} 的验证准确率随训练步数的变化：无 BN、有 BN、BN 加噪声。",
        ),
        title=say(f"{name}: BN with noise after it", f"{name}：BN 之后加噪声"),
    )


def _control(result: Result, network: str, say: Say) -> Any:
    drawn = []
    for condition, colour in ((WITHOUT, style.WITHOUT), (WITH, style.WITH), (NOISY, style.THIRD)):
        steps, heights = result.curves(
            "validation accuracy as trained", "step", network=network, condition=condition
        )
        drawn.append(Line(condition_name(condition, say), steps, heights, colour))
    return figures.lines(
        drawn,
        Axis(say("training step", "训练步数")),
        Axis(say("validation accuracy", "验证准确率"), percent=True, high=1.0),
        level=middle(result, "goal", network=network, condition=WITH),
    )


def _seeds(result: Result) -> int:
    return int(result.settings["seeds"])
