"""The laws of scale told: which hold to rounding, and what eps changes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from normwright.report import figures, style
from normwright.report.document import Card, Outcome, Picture, Table, Verdict, outcome
from normwright.report.figures import Axis, Line
from normwright.report.records import Scalar
from normwright.report.result import Result
from normwright.report.summary import PERCENT, SHORT, WHOLE_PERCENT, difference
from normwright.report.words import Say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPS = 1e-5
SCALED, FIXED = "eps a^2", "eps"
EXACT, TOLD = "sqrt(var + eps)", "sqrt(var)"
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24}  # the largest relative error of one rounding
# How many roundings a law may be off. aWu is a sum of up to 784 products, each rounded, whose sizes sum to about
# ten deviations of the output: 784 * 10. Where a channel sits a thousand deviations from zero, the kernels promise
# float64 outputs within 8 roundings of that offset, so the variance within 16 * 1000. A law that failed would be
# off by parts of one, as it is with a fixed eps: a thousand times as much even in float32.
ROUNDINGS = 2e4
# The identity has neither: the kernels promise 8 roundings of |x - mean| + |mean|, at most 24 of the largest |x|,
# and gamma and beta are rounded themselves.
IDENTITY_ROUNDINGS = 32
# A law that is not exact still holds to the eye when nothing is off by more than this.
NEARLY = 0.01


def card(result: Result, say: Say) -> Card:
    """The card of the laws of scale."""
    return Card(
        name=result.name,
        title=say("The laws of scale, and what eps is for", "尺度定律，以及 eps 的作用"),
        claim=say(
            "BN removes the scale of the weights: BN(aWu) = BN(Wu), the gradient to u stays, that to aW is 1/a of "
            "that to W; outputs have mean beta, variance gamma^2 whatever comes before; it can be the identity.",
            "BN 消除权重的尺度：BN(aWu) = BN(Wu)，对 u 的梯度不变，对 aW 的梯度变为 1/a；无论前面是什么，"
            "输出的均值为 beta、方差为 gamma^2；它也可以成为恒等映射。",
        ),
        done=say(
            f"The first map of {_networks(result, say)} with real images, its weights times a, in float64 and "
            "float32; then any scales and offsets before BN, and weights that learn.",
            f"{_networks(result, say)} 的第一层映射，输入真实图像，权重乘以 a，分别用 float64 和 float32 计算；"
            "然后在 BN 之前加入任意的尺度和偏移，以及正在学习的权重。",
        ),
        verdicts=(
            scale(result, say),
            gradients(result, say),
            moments(result, say),
            formula(result, say),
            identity(result, say),
            constant(result, say),
        ),
        pictures=_pictures(result, say),
        see=say(
            "To the right the weights get smaller. Where the variance of Wu comes down to eps, eps is no longer "
            "negligible: the output shrinks, and the laws break unless eps shrinks too.",
            "越往右权重越小。当 Wu 的方差降到 eps 附近时，eps 不再可以忽略：输出缩小，"
            "除非 eps 同时缩小，定律就会失效。",
        ),
        tables=(_laws(result, say),),
        details=(_deviations(result, say),),
        command=result.command,
    )


# --- verdicts ---------------------------------------------------------


def scale(result: Result, say: Say) -> Verdict:
    """BN(aWu) = BN(Wu) to rounding when eps is multiplied by a^2."""
    worst = _worst(result, ("output off",), eps=SCALED)
    shown = _shown(worst, say)
    smallest, off = _smallest(result, "output off", eps=FIXED)
    return Verdict(
        say("BN(aWu) = BN(Wu), with eps scaled by a^2", "BN(aWu) = BN(Wu)（eps 乘以 a^2）"),
        _judged(worst),
        say(
            f"Largest difference, relative to the largest output: {shown}. With eps fixed at {EPS:g} it is "
            f"{WHOLE_PERCENT(off)} at a = {smallest:g}.",
            f"最大差异（相对于最大输出）：{shown}。若 eps 固定为 {EPS:g}，"
            f"在 a = {smallest:g} 时为 {WHOLE_PERCENT(off)}。",
        ),
    )


def gradients(result: Result, say: Say) -> Verdict:
    """The gradient to u stays and that to aW is 1/a of that to W, with eps multiplied by a^2."""
    worst = _worst(result, ("gradient to u off", "a times the gradient to aW off"))
    shown = _shown(worst, say)
    smallest, times = _smallest(result, "gradient to aW")
    return Verdict(
        say("The gradient to u stays, that to aW is 1/a of it", "对 u 的梯度不变，对 aW 的梯度变为 1/a"),
        _judged(worst),
        say(
            f"Largest difference, relative to the largest gradient: {shown}, eps scaled by a^2. Eps fixed, the "
            f"gradient to aW at a = {smallest:g} is up to {SHORT(times)} times that to W, not {1 / smallest:g}.",
            f"eps 乘以 a^2 时的最大差异（相对于最大梯度）：{shown}。若 eps 固定，在 a = {smallest:g} 时对 aW 的梯度"
            f"至多是对 W 的 {SHORT(times)} 倍，而不是 {1 / smallest:g} 倍。",
        ),
    )


def moments(result: Result, say: Say) -> Verdict:
    """Mean beta and variance gamma^2 var/(var+eps), for any scales and offsets before, and while weights learn."""
    worst = _worst(result, ("mean off beta", "variance off the formula"))
    shown = _shown(worst, say)
    moved = max(result.numbers("input mean moved"))
    draws = sum(int(r.where["draws"] or 0) for r in result.pick("mean off beta", upstream="drawn"))
    return Verdict(
        say("Mean beta, variance gamma^2 var/(var+eps)", "均值为 beta，方差为 gamma^2 var/(var+eps)"),
        _judged(worst),
        say(
            f"Over {draws} draws of scales and offsets before BN, and while the layers before it learned and its "
            f"input moved by {SHORT(moved)} deviations: off by at most {shown}.",
            f"在 BN 之前随机抽取尺度和偏移共 {draws} 次，并在前面的层学习、其输入移动了 {SHORT(moved)} 个标准差时："
            f"最大偏差 {shown}。",
        ),
    )


def formula(result: Result, say: Say) -> Verdict:
    """The output's deviation with a fixed eps is ``sqrt(var / (var + eps))``."""
    worst = _worst(result, ("output deviation off",))
    shown = _shown(worst, say)
    least = min(result.numbers("output deviation", eps=EPS))
    holding = _holding(result)
    reach = say("for no a", "任何 a 都不成立") if holding is None else f"a ≥ {holding:g}"
    return Verdict(
        say(
            "With a fixed eps, the output's deviation is sqrt(var/(var+eps))",
            "eps 固定时，输出的标准差为 sqrt(var/(var+eps))",
        ),
        _judged(worst),
        say(
            f"Off by at most {shown}. With eps {EPS:g} it falls from 1 to {PERCENT(least)} at the smallest a; "
            f"BN(aWu) = BN(Wu) holds within {WHOLE_PERCENT(NEARLY)}: {reach}.",
            f"最大偏差 {shown}。eps 为 {EPS:g} 时，它从 1 降到最小 a 处的 {PERCENT(least)}；"
            f"BN(aWu) = BN(Wu) 在 {WHOLE_PERCENT(NEARLY)} 以内成立的范围：{reach}。",
        ),
    )


def identity(result: Result, say: Say) -> Verdict:
    """``gamma = sqrt(var + eps)`` and ``beta = mean`` restore the input to rounding."""
    worst = _worst(result, ("identity off",), gamma=EXACT)
    shown = _shown(worst, say)
    own = max(result.numbers("identity off", gamma=TOLD, dtype="float64", factor=1.0))
    smallest, far = _smallest(result, "identity off", gamma=TOLD, dtype="float64")
    return Verdict(
        say("The layer can be the identity", "该层可以成为恒等映射"),
        _judged(worst, IDENTITY_ROUNDINGS),
        say(
            f"With gamma = sqrt(var + eps), beta = mean the input is restored within {shown} of its largest value; "
            f"with the sources' gamma = sqrt(var) within {own:.2g}, and {far:.2g} at a = {smallest:g}.",
            f"取 gamma = sqrt(var + eps)、beta = 均值时，输入被恢复，误差相对于最大值为 {shown}；"
            f"取原文的 gamma = sqrt(var) 时误差为 {own:.2g}，在 a = {smallest:g} 时为 {far:.2g}。",
        ),
    )


def constant(result: Result, say: Say) -> Verdict:
    """A channel without variance stays finite with eps, and would not without."""
    channels = max(result.numbers("constant channels"))
    with_eps = max(result.numbers("channels not finite", eps=EPS))
    without = max(result.numbers("channels not finite", eps=0.0, of="output"))
    refused = min(result.numbers("eps 0 refused")) == 1
    words = say(
        "normwright refuses eps 0" if refused else "normwright accepts eps 0",
        "normwright 拒绝 eps 为 0" if refused else "normwright 接受 eps 为 0",
    )
    return Verdict(
        say("eps protects from channels without variance", "eps 防止方差为零的通道出错"),
        outcome(with_eps == 0 and without > 0, with_eps < without),
        say(
            f"Of a batch's pixels, taken as channels, up to {channels:g} are constant. Channels whose output or "
            f"gradient is not finite, with eps: {with_eps:g}; by the formula without it: {without:g} ({words}).",
            f"把像素当作通道，一个批次中最多有 {channels:g} 个是常数。有 eps 时，输出或梯度非有限的通道："
            f"{with_eps:g} 个；按无 eps 的公式计算：{without:g} 个（{words}）。",
        ),
    )


def _worst(result: Result, whats: Sequence[str], **where: Scalar) -> dict[str, float]:
    """The largest of these differences in each type."""
    return {
        dtype: max(value for what in whats for value in result.numbers(what, dtype=dtype, **where))
        for dtype in ROUNDING
    }


def _judged(worst: dict[str, float], roundings: float = ROUNDINGS) -> Outcome:
    exact = all(off <= roundings * ROUNDING[dtype] for dtype, off in worst.items())
    return outcome(exact, max(worst.values()) <= NEARLY)


def _shown(worst: dict[str, float], say: Say) -> str:
    return say(", ", "，").join(f"{difference(off, say)} ({dtype})" for dtype, off in worst.items())


def _smallest(result: Result, what: str, **where: Scalar) -> tuple[float, float]:
    """The smallest a, and the largest value there."""
    a = min(result.each(what, "factor", **where))
    return a, max(result.numbers(what, factor=a, **where))


def _holding(result: Result) -> float | None:
    """The smallest a from which on, with eps fixed, BN(aWu) is BN(Wu) as nearly as the eye sees."""
    holding = None
    for a in sorted(result.each("output off", "factor", eps=FIXED), reverse=True):
        if max(result.numbers("output off", eps=FIXED, factor=a)) > NEARLY:
            break
        holding = float(a)
    return holding


# --- pictures and tables ----------------------------------------------


def _pictures(result: Result, say: Say) -> tuple[Picture, ...]:
    return (
        Picture(
            "scale-eps",
            lambda: _draw_eps(result, say),
            say(
                "Standard deviation of the output of BN against the factor of the weights, for several eps.",
                "不同 eps 下，BN 输出的标准差随权重倍数的变化。",
            ),
            say("What eps does (dashed: the formula)", "eps 的作用（虚线：公式）"),
        ),
        Picture(
            "scale-law",
            lambda: _draw_law(result, say),
            say(
                "Largest difference between BN(aWu) and BN(Wu) against a, with eps fixed and scaled by a^2.",
                "BN(aWu) 与 BN(Wu) 的最大差异随 a 的变化，eps 固定或乘以 a^2。",
            ),
            say("How far BN(aWu) is from BN(Wu)", "BN(aWu) 与 BN(Wu) 相差多少"),
        ),
        Picture(
            "scale-gradients",
            lambda: _draw_gradients(result, say),
            say(
                "Sizes of the gradients to u and to aW against a, with eps fixed, beside their laws.",
                "eps 固定时，对 u 和对 aW 的梯度大小随 a 的变化，以及相应的定律。",
            ),
            say("Gradients with a fixed eps (dashed: the law)", "eps 固定时的梯度（虚线：定律）"),
        ),
        Picture(
            "scale-identity",
            lambda: _draw_identity(result, say),
            say(
                "How far the output is from the input with gamma sqrt(var) and sqrt(var + eps), against a.",
                "gamma 取 sqrt(var) 与 sqrt(var + eps) 时，输出与输入的差异随 a 的变化。",
            ),
            say("How nearly the layer is the identity", "该层与恒等映射的接近程度"),
        ),
    )


def _falling(
    result: Result, what: str, *, drop_one: bool = False, **where: str | float
) -> tuple[list[float], list[list[float | None]]]:
    """A curve over a of the first network, from large a to small; `drop_one` leaves out a = 1, which is compared.

    What is exactly 0 has no place on a logarithmic axis: a gap.
    """
    network = result.each("output deviation", "network")[0]
    conditions: dict[str, Any] = {"network": network, **where}
    points, rows = result.curves(what, "factor", **conditions)
    kept = [place for place, a in enumerate(points) if not (drop_one and a == 1)][::-1]
    return [points[place] for place in kept], [[row[place] or None for place in kept] for row in rows]


def _x(result: Result, say: Say) -> Axis:
    factors = result.each("output deviation", "factor")
    return Axis(
        say("a, by which the weights are multiplied", "权重所乘的 a"),
        log=True,
        low=max(factors),
        high=min(factors),
    )


def _draw_eps(result: Result, say: Say) -> "Figure":
    colours = (style.WITHOUT, style.WITH, style.THIRD, style.FOURTH)
    drawn = []
    for eps, colour in zip(result.each("output deviation", "eps"), colours, strict=False):
        drawn.append(
            Line(f"eps {eps:g}", *_falling(result, "output deviation", dtype="float64", eps=eps), colour)
        )
        law = _falling(result, "output deviation by the formula", dtype="float64", eps=eps)
        drawn.append(Line("", *law, style.INK, dashed=True))
    y = Axis(say("standard deviation of the output", "输出的标准差"), log=True)
    return figures.lines(drawn, _x(result, say), y)


def _draw_law(result: Result, say: Say) -> "Figure":
    def line(label: str, dtype: str, eps: str, colour: str) -> Line:
        points, rows = _falling(result, "output off", drop_one=True, dtype=dtype, eps=eps)
        return Line(label, points, rows, colour)

    drawn = (
        line(say("eps fixed", "eps 固定"), "float64", FIXED, style.WITHOUT),
        line(say("eps a², float32", "eps a²，float32"), "float32", SCALED, style.THIRD),
        line(say("eps a², float64", "eps a²，float64"), "float64", SCALED, style.WITH),
    )
    return figures.lines(
        drawn, _x(result, say), Axis(say("largest difference", "最大差异"), log=True, high=10.0)
    )


def _draw_gradients(result: Result, say: Say) -> "Figure":
    points, to_weight = _falling(result, "gradient to aW")
    _, to_u = _falling(result, "gradient to u")
    drawn = (
        Line("1/a", points, [1 / a for a in points], style.FAINT, dashed=True),
        Line(say("to aW", "对 aW"), points, to_weight, style.WITH),
        Line("1", points, [1.0] * len(points), style.FAINT, dashed=True),
        Line(say("to u", "对 u"), points, to_u, style.WITHOUT),
    )
    y = Axis(say("gradient, relative to a = 1", "梯度（相对于 a = 1）"), log=True)
    return figures.lines(drawn, _x(result, say), y)


def _draw_identity(result: Result, say: Say) -> "Figure":
    drawn = [
        Line(f"{label}{dtype}", *_falling(result, "identity off", dtype=dtype, gamma=gamma), colour)
        for label, dtype, gamma, colour in (
            ("√var, ", "float64", TOLD, style.WITHOUT),
            ("√(var+eps), ", "float32", EXACT, style.THIRD),
            ("√(var+eps), ", "float64", EXACT, style.WITH),
        )
    ]
    return figures.lines(drawn, _x(result, say), Axis(say("largest |y - x|", "最大 |y - x|"), log=True))


def _laws(result: Result, say: Say) -> Table:
    rows: tuple[tuple[str, str, dict[str, Scalar]], ...] = (
        ("BN(aWu) = BN(Wu)", "output off", {"eps": SCALED}),
        (say("gradient to u the same", "对 u 的梯度不变"), "gradient to u off", {}),
        (say("gradient to aW 1/a", "对 aW 的梯度为 1/a"), "a times the gradient to aW off", {}),
        (say("mean is beta", "均值为 beta"), "mean off beta", {}),
        (say("variance is its formula", "方差符合公式"), "variance off the formula", {}),
        (say("deviation with fixed eps", "eps 固定时的标准差"), "output deviation off", {}),
        (say("identity, √(var+eps)", "恒等，√(var+eps)"), "identity off", {"gamma": EXACT}),
        (say("identity, √var, a = 1", "恒等，√var，a = 1"), "identity off", {"gamma": TOLD, "factor": 1.0}),
    )
    return Table(
        title=say("Largest deviation from each law", "各定律的最大偏差"),
        columns=("", "float64", "float32"),
        rows=tuple(
            (label, *(difference(off, say) for off in _worst(result, (what,), **where).values()))
            for label, what, where in rows
        ),
        note=say(
            f"Worst over {_networks(result, say)}, {result.settings['seeds']} seeds and every a, relative to the "
            "largest value; eps is scaled by a^2 in the first three rows. One rounding is 1.1e-16 in float64, "
            "6.0e-08 in float32; sums of thousands of products, each rounded, leave tens to hundreds of them.",
            f"在 {_networks(result, say)}、{result.settings['seeds']} 个种子和所有 a 上的最差值，相对于最大值；"
            "前三行中 eps 乘以 a^2。一次舍入在 float64 中为 1.1e-16，在 float32 中为 6.0e-08；"
            "成千上万个乘积之和，每一步都要舍入，会留下几十到几百次舍入的误差。",
        ),
    )


def _deviations(result: Result, say: Say) -> Table:
    epsilons = result.each("output deviation", "eps")
    factors = result.each("output deviation", "factor")
    network = result.each("output deviation", "network")[0]

    def cell(factor: float, eps: float) -> str:
        of = result.spread("output deviation", network=network, dtype="float64", factor=factor, eps=eps)
        return "" if of.middle is None else f"{of.middle:.4f}"

    return Table(
        title=say("The output's standard deviation with a fixed eps", "eps 固定时输出的标准差"),
        columns=("a", *(f"eps {eps:g}" for eps in epsilons)),
        rows=tuple(
            (f"{factor:g}", *(cell(factor, eps) for eps in epsilons))
            for factor in factors[:: max(1, (len(factors) - 1) // 4)]
        ),
        note=say(
            f"{network}, median of the seeds; root mean square over channels.",
            f"{network}，各种子的中位数；对通道取均方根。",
        ),
    )


def _networks(result: Result, say: Say) -> str:
    return say.listed([network["name"] for network in result.settings["networks"]])
