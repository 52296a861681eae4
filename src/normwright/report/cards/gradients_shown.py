"""What the card of gradients shows: the numbers it draws from the records, its pictures and its tables."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from normwright.report import figures, style
from normwright.report.document import Picture, Table
from normwright.report.figures import Axis, Line
from normwright.report.result import Result
from normwright.report.summary import PERCENT, WHOLE_PERCENT, told
from normwright.report.words import Say

WITHOUT, WITH = "without BN", "BN"
BEFORE, AFTER = "before training", "after training"
YANG = math.sqrt(
    math.pi / (math.pi - 1)
)  # 1.211 per ReLU layer: Yang et al. 2019, for wide layers and large batches
SHOWN = 1e-6  # the smallest gradient in the picture of the deep network


def side(condition: str, say: Say) -> str:
    """One of the two sides in the reader's language."""
    return say("with BN", "有 BN") if condition == WITH else say("without BN", "无 BN")


# --- numbers from the records -------------------------------------------


def short(value: float) -> str:
    """Three digits, and a large number whole."""
    return "∞" if math.isinf(value) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def measured(values: Sequence[float]) -> str:
    """The median, and the range where it has a width."""
    low, middle, high = (short(value) for value in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} ({low}–{high})"


def trained(result: Result) -> list[str]:
    """The activations whose networks were trained."""
    return result.each("late validation accuracy", "activation")


def arrived(result: Result, condition: str, factor: float, depth: int, activation: str) -> list[float]:
    """The gradient at the images over that at the last layer of a chain, one for each seed."""
    where: dict[str, Any] = {"factor": factor, "depth": depth, "back": depth}
    return result.numbers("gradient in the chain", activation=activation, condition=condition, **where)


def medians(result: Result, activation: str, condition: str) -> dict[float, float]:
    """By scale, the median accuracy."""
    what = "late validation accuracy"
    where: dict[str, Any] = {"activation": activation, "condition": condition}
    scales = _known(result.each(what, "scale", **where))
    return {scale: median(result.numbers(what, scale=scale, **where)) for scale in scales}


def shares(result: Result, activation: str, condition: str, when: str) -> dict[float, float]:
    """By scale, the median share of saturated activations; a network that is broken counts as saturated."""
    what = "saturated activations"
    where: dict[str, Any] = {"activation": activation, "condition": condition, "when": when}
    found = {
        scale: result.values(what, scale=scale, **where)
        for scale in _known(result.each(what, "scale", **where))
    }
    return {scale: median(1.0 if v is None else v for v in values) for scale, values in found.items()}


def saturated(result: Result, when: str) -> dict[str, dict[str, float]]:
    """By activation and side, the share of saturated activations at the worst scale."""
    return {
        name: {c: max(shares(result, name, c, when).values()) for c in (WITHOUT, WITH)}
        for name in result.each("saturated activations", "activation", when=when)
    }


def spreads(result: Result, activation: str, condition: str, when: str, by: str) -> dict[Any, float]:
    """By `by`, ``"scale"`` or the layers' own ``"scales"``: how many times the largest step is the smallest.

    Median over the seeds of the relative steps of the layers; infinite where one is nothing or not a number.
    """
    what = "step over weights"
    where: dict[str, Any] = {"activation": activation, "condition": condition, "when": when}
    found = {}
    for key in _known(result.each(what, by, **where)):
        _, rows = result.curves(what, "layer", **{by: key}, **where)
        found[key] = median(_ratio(row) for row in rows)
    return found


def worst(result: Result, activation: str, condition: str, when: str, by: str) -> float:
    """The largest of `spreads`."""
    return max(spreads(result, activation, condition, when, by).values())


def pairs(of: Mapping[str, Mapping[str, float]], say: Say) -> str:
    """By activation and side, in words."""
    return say("; ", "；").join(
        say(
            f"{name} {short(sides[WITH])} with BN, {short(sides[WITHOUT])} without",
            f"{name} 有 BN {short(sides[WITH])}，无 BN {short(sides[WITHOUT])}",
        )
        for name, sides in of.items()
    )


def _known(values: Sequence[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _ratio(steps: Sequence[float | None]) -> float:
    known = [step for step in steps if step]
    return max(known) / min(known) if len(known) == len(steps) else math.inf


# --- pictures -------------------------------------------------------------


def pictures(result: Result, say: Say) -> tuple[Picture, ...]:
    """The gradient through the chains, accuracy and saturation by scale, the gradient in the deep network."""
    names = say.listed(trained(result)[:2])
    return (
        Picture(
            "gradients-chain",
            lambda: _chain_curves(result, say),
            say(
                "Gradient norm against layers back from the last, in chains of 0.9 and 1.1, with and without BN.",
                "梯度范数随（从最后一层向后的）层数的变化，链的系数为 0.9 和 1.1，有 BN 与无 BN。",
            ),
            say("Chains: each layer multiplies the signal by 0.9 or 1.1", "链：每层把信号乘以 0.9 或 1.1"),
        ),
        Picture(
            "gradients-accuracy",
            lambda: _by_scale(result, "late validation accuracy", trained(result)[:2], say),
            say(
                f"Final validation accuracy against the scale of the first weights ({names}), with BN and without.",
                f"最终验证准确率随初始权重尺度的变化（{names}），有 BN 与无 BN。",
            ),
            say("Accuracy against the scale of the first weights", "准确率与初始权重的尺度"),
        ),
        Picture(
            "gradients-saturation",
            lambda: _by_scale(result, "saturated activations", ["sigmoid", "tanh"], say),
            say(
                "Share of saturated activations before training against the scale of the first weights.",
                "训练前饱和激活值的比例随初始权重尺度的变化。",
            ),
            say("Saturation before training", "训练前的饱和"),
        ),
        Picture(
            "gradients-deep",
            lambda: _deep_curves(result, say),
            say(
                "Gradient norm against layers back in a deep ReLU network before training, with BN and without.",
                "训练前深层 ReLU 网络中梯度范数随向后层数的变化，有 BN 与无 BN。",
            ),
            say("Deep ReLU network without skips, before training", "无跳跃连接的深层 ReLU 网络，训练前"),
        ),
    )


def _back(say: Say) -> Axis:
    return Axis(say("layers back from the last one", "从最后一层向后的层数"), low=0)


def _gradient(say: Say, low: float | None = None) -> Axis:
    return Axis(say("gradient norm (last layer: 1)", "梯度范数（最后一层为 1）"), log=True, low=low)


def _chain_curves(result: Result, say: Say) -> Any:
    what = "gradient in the chain"
    drawn: list[Line] = []
    colours = iter((style.WITHOUT, style.WITH, style.FIFTH, style.THIRD))
    for factor in result.each(what, "factor", activation="linear"):
        depth = max(result.each(what, "depth", activation="linear", factor=factor))
        for condition in (WITHOUT, WITH):
            where: dict[str, Any] = {"factor": factor, "depth": depth, "condition": condition}
            back, norms = result.curves(what, "back", activation="linear", **where)
            marks: tuple[tuple[float, float, str], ...] = ()
            if factor == 0.9 and condition == WITHOUT and 30 in back:
                at = median(result.numbers(what, activation="linear", back=30, **where))
                marks = ((30, at, say(f"30 layers: {at:.2g}", f"30 层：{at:.2g}")),)
            label = f"{factor:g} {side(condition, say)}"
            over = (
                condition == WITH and len(drawn) > 1
            )  # drawn over the line of the other factor, which it equals
            drawn.append(Line(label, back, norms, next(colours), dashed=over, marks=marks))
    return figures.lines(drawn, _back(say), _gradient(say))


def _by_scale(result: Result, what: str, names: Sequence[str], say: Say) -> Any:
    """The evenly scaled stacks, before training where that was measured, one line for each side and activation."""
    drawn: list[Line] = []
    when = AFTER if what == "late validation accuracy" else BEFORE
    for name in names:
        for condition in (WITHOUT, WITH):
            where: dict[str, Any] = {"activation": name, "condition": condition, "when": when}
            scales, heights = result.curves(what, "scale", **where)
            pair = (style.WITHOUT, style.WITH) if name == "tanh" else (style.FIFTH, style.THIRD)
            colour = pair[condition == WITH]
            drawn.append(Line(f"{name} {side(condition, say)}", scales, heights, colour))
    x = Axis(say("scale of the first weights", "初始权重的尺度"), log=True)
    label = {
        "late validation accuracy": say("validation accuracy", "验证准确率"),
        "saturated activations": say("saturated activations", "饱和的激活值"),
    }
    return figures.lines(drawn, x, Axis(label[what], percent=True, low=0, high=1))


def _deep_curves(result: Result, say: Say) -> Any:
    names = {
        WITH: (say("with BN", "有 BN"), style.WITH),
        "He": (say("He, without BN", "He，无 BN"), style.WITHOUT),
        "default": (say("torch's, without BN", "torch 默认，无 BN"), style.FIFTH),
    }
    drawn = []
    for condition, (label, colour) in names.items():
        back, norms = result.curves("gradient in the deep network", "back", condition=condition)
        drawn.append(Line(label, back, norms, colour))
    theory = Line(
        say(f"theory: {YANG:.2f}^layers", f"理论：{YANG:.2f}^层数"),
        back,
        [YANG**layers for layers in back],
        style.FAINT,
        dashed=True,
    )
    return figures.lines([theory, *drawn], _back(say), _gradient(say, SHOWN))


# --- tables ---------------------------------------------------------------


def chains(result: Result, say: Say) -> Table:
    """Every chain: what arrives at the images."""
    what, rows = "gradient in the chain", []
    for activation in result.each(what, "activation"):
        for factor in result.each(what, "factor", activation=activation):
            for depth in result.each(what, "depth", activation=activation, factor=factor):
                medial = (
                    short(median(arrived(result, c, factor, depth, activation))) for c in (WITHOUT, WITH)
                )
                name = activation if activation != "linear" else say("linear", "线性")
                rows.append((f"{name}{say(', ', '，')}{factor:g}^{depth}", short(factor**depth), *medial))
    return Table(
        say("Gradient at the images (at the last layer: 1)", "图像处的梯度（最后一层为 1）"),
        (say("chain", "链"), say("arithmetic", "算术值"), side(WITHOUT, say), side(WITH, say)),
        tuple(rows),
        say(
            "Medians. 0.9 and 1.1 are the same to BN, which divides them out again.",
            "中位数。对 BN 而言 0.9 与 1.1 相同，它会把系数除掉。",
        ),
    )


def accuracies(result: Result, activation: str, say: Say) -> Table:
    """The trained stacks at every scale, and at the mixed ones."""
    what = "late validation accuracy"
    keys = [("scale", key) for key in medians(result, activation, WITH)]
    keys += [("scales", key) for key in _known(result.each(what, "scales", activation=activation))]

    def cells(by: str, key: Any) -> list[str]:
        reached, share = [], []
        for condition in (WITHOUT, WITH):
            where: dict[str, Any] = {by: key, "activation": activation, "condition": condition}
            reached.append(told(result.spread(what, **where), PERCENT, say))
            values = result.values("saturated activations", when=AFTER, **where)
            full = [1.0 if value is None else value for value in values]
            share.append(WHOLE_PERCENT(median(full)) if full else "")
        return reached + share

    saturable = bool(result.pick("saturated activations", activation=activation))
    rates = (result.number("chosen rate", activation=activation, condition=c) for c in (WITHOUT, WITH))
    columns = (
        say("scale", "尺度"),
        side(WITHOUT, say),
        side(WITH, say),
        *(
            (say("saturated, without", "饱和，无 BN"), say("saturated, with", "饱和，有 BN"))
            if saturable
            else ()
        ),
    )
    return Table(
        say(
            f"{activation}: validation accuracy by the scale of the first weights",
            f"{activation}：不同初始权重尺度下的验证准确率",
        ),
        columns,
        tuple((_scale(key), *cells(by, key)[: len(columns) - 1]) for by, key in keys),
        say(
            "Median (range), mean of the last quarter of a run; three scales: of the three hidden layers. Rates "
            "without and with BN: {}.",
            "中位数（范围），训练最后四分之一的平均；三个尺度：分属三个隐藏层。无 BN 与有 BN 的学习率：{}。",
        ).format(", ".join(f"{rate:g}" for rate in rates))
        + (_after(say) if saturable else ""),
    )


def _after(say: Say) -> str:
    return say(
        " Saturated: share of the activations after training whose slope is below a tenth of the steepest.",
        " 饱和：训练后斜率不到最大斜率十分之一的激活值所占比例。",
    )


def _scale(key: Any) -> str:
    return key if isinstance(key, str) else f"{key:g}"


def steps(result: Result, activation: str, say: Say) -> Table:
    """How unequal the layers' steps are, at every scale, before training and after it."""
    found = [
        {
            **spreads(result, activation, condition, when, "scale"),
            **spreads(result, activation, condition, when, "scales"),
        }
        for when in (BEFORE, AFTER)
        for condition in (WITHOUT, WITH)
    ]
    return Table(
        say(
            f"{activation}: largest over smallest relative step among the layers",
            f"{activation}：各层相对步长的最大值与最小值之比",
        ),
        (
            say("scale", "尺度"),
            say("before, without", "训练前，无"),
            say("before, with", "训练前，有"),
            say("after, without", "训练后，无"),
            say("after, with", "训练后，有"),
        ),
        tuple(
            (_scale(key), *(short(each[key]) if key in each else "–" for each in found)) for key in found[0]
        ),
        say(
            "A relative step is the gradient's norm over that of the weights. With BN, weights a times as large "
            "get a gradient 1/a as large: a relative step of 1/a^2, until training has changed their norm. ∞: a "
            "layer has no gradient left, or it is not finite.",
            "相对步长：梯度范数与权重范数之比。有 BN 时，权重放大 a 倍，梯度缩小为 1/a，相对步长即为 1/a^2，"
            "直到训练改变权重的范数。∞：某层梯度为零或非有限值。",
        ),
    )


def deep(result: Result, say: Say) -> Table:
    """Growth per layer of the gradient in deep networks, by depth."""
    what = "growth per layer"
    conditions = (WITH, "He", "default")
    return Table(
        say(
            "ReLU before training: growth of the gradient per layer back",
            "训练前的 ReLU 网络：梯度每向后一层的倍数",
        ),
        (
            say("layers", "层数"),
            side(WITH, say),
            say("He, without", "He，无 BN"),
            say("torch's, without", "torch 默认，无 BN"),
        ),
        tuple(
            (
                f"{depth}",
                *(measured(result.numbers(what, depth=depth, condition=c)) for c in conditions),
            )
            for depth in result.each(what, "depth")
        ),
        say(
            f"Theory for BN, wide layers and large batches: {YANG:.3f} (Yang et al. 2019). "
            f"{result.settings['width']} units wide, {result.settings['images']} images.",
            f"宽层、大批次时 BN 的理论值：{YANG:.3f}（Yang 等，2019）。宽度 {result.settings['width']}，"
            f"{result.settings['images']} 张图像。",
        ),
    )


def rates(result: Result, activation: str, say: Say) -> Table:
    """The learning rates tried at scale 1."""
    tried = result.each("score of a rate", "rate", activation=activation)

    def cell(rate: float, condition: str) -> str:
        where: dict[str, Any] = {"activation": activation, "condition": condition}
        chosen = result.number("chosen rate", **where) == rate
        score = PERCENT(result.number("score of a rate", rate=rate, **where))
        return score + (say(" chosen", " 选中") if chosen else "")

    return Table(
        say(f"{activation}: learning rates tried at scale 1", f"{activation}：在尺度 1 处尝试过的学习率"),
        (say("rate", "学习率"), side(WITHOUT, say), side(WITH, say)),
        tuple((f"{rate:g}", cell(rate, WITHOUT), cell(rate, WITH)) for rate in tried),
        say(
            f"Validation accuracy, mean over the last quarter of a run and {result.settings['tuning']} seeds.",
            f"训练最后四分之一的平均验证准确率，{result.settings['tuning']} 个随机种子的平均。",
        ),
    )
