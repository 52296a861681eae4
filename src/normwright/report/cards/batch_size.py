"""The batch size told: the error of its statistics, the accuracy it allows, the gap between the two modes."""

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from normwright.report import figures, style
from normwright.report.document import Card, Picture, Table, Verdict, outcome
from normwright.report.figures import Axis, Line
from normwright.report.records import Scalar
from normwright.report.result import Result
from normwright.report.summary import PERCENT, SHORT, Unit, spread, told
from normwright.report.words import Say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WITHOUT, WITH, ONE = "without BN", "BN", "BN, one network"
LAW = -0.5  # the slope of 1/sqrt(m) where both axes are logarithmic
# A root mean square over B independent draws has a relative standard error of 1/sqrt(2B) where they are normal;
# channels are drawn together, so they are not counted. Three standard errors of the slope that such points give.
STANDARD_ERRORS = 3
# The biased deviation of a small batch is too small besides: its root mean square error is 1 + 9/(16m) times the
# law. From 8 images on that steepens the slope by 0.015.
LARGE_ENOUGH, STEEPER = 8, 0.02
# A little more than the standard error of an accuracy of 0.97 on 500 images, sqrt(0.97 * 0.03 / 500) = 0.008.
AS_WELL = 0.01
DEVIATIONS = Unit(form=".3f")


def card(result: Result, say: Say) -> Card:
    """The card of the batch size."""
    images, seeds = result.settings["images"], result.settings["seeds"]
    return Card(
        name=result.name,
        title=say("How large a batch has to be", "批次需要多大"),
        claim=say(
            "BN needs a batch large enough for its statistics to be accurate.",
            "BN 需要足够大的批次，统计量才准确。",
        ),
        done=say(
            "Random batches, drawn with replacement from what enters the BN of a trained network, against all its "
            f"images. Then the MLP trained with each batch size m: {images} images seen each time, the learning "
            f"rate chosen on the validation images from one grid, with BN and without, {seeds} seeds.",
            "从训练后网络的 BN 输入中有放回地随机抽取批次，与全部图像的统计量比较。"
            f"然后用各种批次大小 m 训练 MLP：每次共看 {images} 张图像，有 BN 与无 BN 都从同一组学习率中"
            f"按验证图像选择，{seeds} 个种子。",
        ),
        verdicts=(statistics(result, say), accuracy(result, say), gap(result, say)),
        pictures=_pictures(result, say),
        see=say(
            "Four times the images halve the error of the statistics. In training a network meets its batches' "
            "statistics, when it predicts it meets others: the picture shows how many predictions that changes.",
            "图像增加到四倍，统计量的误差减半。网络在训练中遇到的是各批次的统计量，预测时遇到的却是另一组：图中显示了"
            "由此改变的预测有多少。",
        ),
        tables=(_accuracies(result, say), _modes(result, say)),
        details=(_errors(result, say), _rates(result, say)),
        command=result.command,
    )


# --- verdicts ---------------------------------------------------------


def statistics(result: Result, say: Say) -> Verdict:
    """Errors of mean and deviation fall as ``1/sqrt(m)``, each network by the slope of a line through all m."""
    draws = result.settings["statistics"]["batches"]
    within: dict[str, list[bool]] = {"error of the mean": [], "error of the deviation": []}
    shown = []
    for network in result.each("error of the mean", "network"):
        slopes = []
        for what, least, more in (
            ("error of the mean", 0, 0.0),
            ("error of the deviation", LARGE_ENOUGH, STEEPER),
        ):
            sizes, errors, seeds = _mean_curve(result, what, network, least)
            slope, tolerance = _slope(sizes, errors, draws * seeds)
            within[what].append(abs(slope - LAW) <= tolerance + more)
            slopes.append(f"{slope:.3f}")
        shown.append(
            say(
                f"{network} {slopes[0]} (mean), {slopes[1]} (deviation)",
                f"{network} {slopes[0]}（均值）、{slopes[1]}（标准差）",
            )
        )
    mean, deviation = (all(networks) for networks in within.values())
    return Verdict(
        say("The statistics' error falls as 1/sqrt(m)", "统计量的误差按 1/sqrt(m) 下降"),
        outcome(mean and deviation, mean or deviation),
        say(
            f"Slope on logarithmic axes, where the law is {LAW}: {'; '.join(shown)}.",
            f"双对数坐标中的斜率（定律为 {LAW}）：{'；'.join(shown)}。",
        ),
    )


def accuracy(result: Result, say: Say) -> Verdict:
    """With BN the smallest batch is less accurate than the best one, and loses more than it does without BN."""
    lost, clear, shown = {}, False, []
    for condition, name in ((WITH, say("with BN", "有 BN")), (WITHOUT, say("without", "无 BN"))):
        smallest = min(result.each("test accuracy", "size", condition=condition))
        best = _best(result, condition)
        few, enough = (
            result.numbers("test accuracy", condition=condition, size=size) for size in (smallest, best)
        )
        lost[condition] = median(enough) - median(few)
        clear = clear or (condition == WITH and max(few) < min(enough))
        before, after = (told(spread(values), PERCENT, say) for values in (few, enough))
        shown.append(
            say(
                f"{name} {before} at m = {smallest} and {after} at m = {best}",
                f"{name}：m = {smallest} 时 {before}，m = {best} 时 {after}",
            )
        )
    return Verdict(
        say("Small batches cost accuracy with BN", "有 BN 时，小批次损失准确率"),
        outcome(clear and lost[WITH] > lost[WITHOUT], lost[WITH] > AS_WELL),
        say(
            f"Test accuracy {'; '.join(shown)} (the best m by validation).",
            f"测试准确率，{'；'.join(shown)}（最佳 m 按验证准确率）。",
        ),
    )


def gap(result: Result, say: Say) -> Verdict:
    """Training mode and evaluation mode come closer as the batch grows: predictions and losses."""
    sizes = result.each("predictions that differ", "size", condition=WITH)
    ends = min(sizes), max(sizes)
    shares = {
        condition: [result.numbers("predictions that differ", condition=condition, size=m) for m in ends]
        for condition in (WITH, ONE, WITHOUT)
    }
    losses = [loss_gaps(result, WITH, m) for m in ends]
    falls = [max(large) < min(small) for small, large in (shares[WITH], shares[ONE], losses)]
    few, many = (told(spread(values), PERCENT, say) for values in shares[WITH])
    one_few, one_many = (told(spread(values), PERCENT, say) for values in shares[ONE])
    control = PERCENT(max(value for values in shares[WITHOUT] for value in values))
    return Verdict(
        say(
            "The gap between training and evaluation mode shrinks with m", "训练模式与评估模式的差距随 m 缩小"
        ),
        outcome(all(falls), median(shares[WITH][1]) < median(shares[WITH][0])),
        say(
            f"Predictions on training images that differ between the modes: {few} at m = {ends[0]}, {many} at "
            f"m = {ends[1]}; of one network, whatever it was trained with: {one_few} and {one_many}. Without BN: "
            f"{control}.",
            f"训练图像上两种模式不同的预测：m = {ends[0]} 时 {few}，m = {ends[1]} 时 {many}；"
            f"同一个网络（不随 m 重新训练）：{one_few} 和 {one_many}。无 BN：{control}。",
        ),
    )


def loss_gaps(result: Result, condition: str, size: int) -> list[float]:
    """How far apart the losses of the two modes are, seed by seed; infinite where one is not a number."""
    where: dict[str, Scalar] = {"condition": condition, "size": size}
    pairs = zip(
        result.values("loss in training mode", **where),
        result.values("loss in evaluation mode", **where),
        strict=True,
    )
    return [math.inf if None in pair else abs((pair[0] or 0.0) - (pair[1] or 0.0)) for pair in pairs]


def _best(result: Result, condition: str) -> int:
    """The batch size with the highest median validation accuracy: not chosen on the test images."""
    sizes = result.each("late validation accuracy", "size", condition=condition)
    return int(
        max(
            sizes,
            key=lambda m: median(result.numbers("late validation accuracy", condition=condition, size=m)),
        )
    )


def _mean_curve(result: Result, what: str, network: str, least: int) -> tuple[list[float], list[float], int]:
    """Batch sizes from `least` on, the mean error over the seeds at each, and how many seeds."""
    sizes = [size for size in result.each(what, "size", network=network) if size >= least]
    errors = [result.numbers(what, network=network, size=size) for size in sizes]
    return sizes, [fmean(values) for values in errors], len(errors[0])


def _slope(sizes: Sequence[float], errors: Sequence[float], draws: int) -> tuple[float, float]:
    """The slope of a straight line on logarithmic axes, and how far from the law chance alone may take it."""
    x = [math.log(size) for size in sizes]
    y = [math.log(error) for error in errors]
    spread_of_x = sum((value - fmean(x)) ** 2 for value in x)
    slope = sum((a - fmean(x)) * (b - fmean(y)) for a, b in zip(x, y, strict=True)) / spread_of_x
    return slope, STANDARD_ERRORS / math.sqrt(2 * draws * spread_of_x)


# --- pictures and tables ----------------------------------------------


def _pictures(result: Result, say: Say) -> tuple[Picture, ...]:
    return (
        Picture(
            "batch-size-gap",
            lambda: _draw_gap(result, say),
            say(
                "Share of predictions that differ between training and evaluation mode, against batch size.",
                "训练模式与评估模式不同的预测所占比例随批次大小的变化。",
            ),
            say("Predictions that differ between the modes", "两种模式不同的预测"),
        ),
        Picture(
            "batch-size-accuracy",
            lambda: _draw_accuracy(result, say),
            say(
                "Test accuracy against batch size, with BN, with BN and exact statistics, and without BN.",
                "测试准确率随批次大小的变化：有 BN、有 BN 且用精确统计量、无 BN。",
            ),
            say("Accuracy by batch size", "不同批次大小的准确率"),
        ),
        Picture(
            "batch-size-error",
            lambda: _draw_error(result, say),
            say(
                "Error of a batch's statistics against batch size, beside 1/sqrt(m).",
                "批次统计量的误差随批次大小的变化，以及 1/sqrt(m)。",
            ),
            say("Error of the batch's statistics (dashed: 1/√m)", "批次统计量的误差（虚线：1/√m）"),
        ),
    )


def _curve(result: Result, what: str, label: str, colour: str, **where: Any) -> Line:
    return Line(label, *result.curves(what, "size", **where), colour)


def _size(say: Say) -> Axis:
    return Axis(say("batch size m", "批次大小 m"), log=True, low=1)  # so that there is more than one tick


def _draw_error(result: Result, say: Say) -> "Figure":
    drawn = []
    colours = iter((style.WITH, style.THIRD, style.FOURTH, style.FIFTH))
    for network in result.each("error of the mean", "network"):
        for what, name in (
            ("error of the mean", say("mean", "均值")),
            ("error of the deviation", say("deviation", "标准差")),
        ):
            drawn.append(_curve(result, what, f"{network}, {name}", next(colours), network=network))
    sizes = drawn[0].x
    drawn.append(Line("", sizes, [1 / math.sqrt(m) for m in sizes], style.INK, dashed=True))
    least = min(float(line.heights.min()) for line in drawn)
    y = Axis(
        say("error, in deviations", "误差（标准差）"),
        log=True,
        low=10 ** math.floor(math.log10(least)),
        high=1,
    )
    return figures.lines(drawn, _size(say), y)


def _draw_accuracy(result: Result, say: Say) -> "Figure":
    exact = "test accuracy with exact statistics"
    drawn = (
        _curve(result, "test accuracy", say("without BN", "无 BN"), style.WITHOUT, condition=WITHOUT),
        _curve(result, "test accuracy", say("with BN", "有 BN"), style.WITH, condition=WITH),
        _curve(result, exact, say("with BN, exact", "有 BN，精确"), style.THIRD, condition=WITH),
    )
    return figures.lines(drawn, _size(say), Axis(say("test accuracy", "测试准确率"), percent=True))


def _draw_gap(result: Result, say: Say) -> "Figure":
    what = "predictions that differ"
    drawn = (
        _curve(result, what, say("trained with m", "用 m 训练"), style.WITH, condition=WITH),
        _curve(result, what, say("one network", "同一网络"), style.THIRD, condition=ONE),
        _curve(result, what, say("without BN", "无 BN"), style.WITHOUT, condition=WITHOUT),
    )
    y = Axis(say("predictions that differ", "不同的预测"), percent=True, low=0)
    return figures.lines(drawn, _size(say), y)


def _accuracies(result: Result, say: Say) -> Table:
    def cell(size: int, condition: str, what: str = "test accuracy") -> str:
        return told(result.spread(what, condition=condition, size=size), PERCENT, say)

    steps = int(result.settings["images"]) // max(result.each("test accuracy", "size", condition=WITH))
    return Table(
        title=say("Test accuracy by batch size", "不同批次大小的测试准确率"),
        columns=(
            "m",
            say("without BN", "无 BN"),
            say("with BN", "有 BN"),
            say("with BN, exact", "有 BN，精确"),
        ),
        rows=tuple(
            (
                str(size),
                cell(size, WITHOUT),
                cell(size, WITH),
                cell(size, WITH, "test accuracy with exact statistics"),
            )
            for size in result.each("test accuracy", "size", condition=WITH)
        ),
        note=say(
            "Exact: predicts with the statistics of all training images instead of the running average, in which "
            f"each batch weighs 10 %: after the {steps} steps of the largest m its start still weighs "
            f"{PERCENT(0.9**steps)}. Where exact is more accurate, the average was to blame; the rest is training.",
            f"精确：预测时用全部训练图像的统计量代替滑动平均。滑动平均中每个批次占 10 %：最大的 m 只有 {steps} 步，"
            f"其初始值仍占 {PERCENT(0.9**steps)}。“精确”更准确之处应归咎于滑动平均，其余则归于训练本身。",
        ),
    )


def _modes(result: Result, say: Say) -> Table:
    def share(size: int, condition: str) -> str:
        where: dict[str, Scalar] = {"condition": condition, "size": size}
        return told(result.spread("predictions that differ", **where), PERCENT, say)

    def loss(size: int, mode: str) -> str:
        middle = result.spread(f"loss in {mode} mode", condition=WITH, size=size).middle
        return "∞" if middle is None else SHORT(middle)

    return Table(
        title=say("The same network in training and in evaluation mode", "同一网络在训练模式与评估模式下"),
        columns=(
            "m",
            say("differ", "不同的预测"),
            say("one network", "同一网络"),
            say("training loss", "训练模式损失"),
            say("evaluation loss", "评估模式损失"),
        ),
        rows=tuple(
            (str(size), share(size, WITH), share(size, ONE), loss(size, "training"), loss(size, "evaluation"))
            for size in result.each("predictions that differ", "size", condition=WITH)
        ),
        note=say(
            "On training images, with BN; losses of the networks trained with m. One network was trained with "
            "batches of 60 and only meets other batch sizes when the modes are compared.",
            "在训练图像上，有 BN；损失属于用 m 训练的网络。“同一网络”用 60 张的批次训练，"
            "只在比较两种模式时使用其他批次大小。",
        ),
    )


def _errors(result: Result, say: Say) -> Table:
    networks = result.each("error of the mean", "network")
    whats = ("error of the mean", "error of the deviation")
    heads = {whats[0]: say("mean", "均值"), whats[1]: say("deviation", "标准差")}
    worth = []
    for name in networks:
        values = result.numbers("values of an image", network=name)[0]
        independent = told(result.spread("values that an image is worth", network=name), SHORT, say)
        if values > 1:
            worth.append(
                say(
                    f" {name}: an image gives a channel {values:g} values; they are alike, and for the mean worth "
                    f"{independent} independent ones.",
                    f"{name}：每张图像给一个通道带来 {values:g} 个值；它们彼此相似，对均值而言只相当于 "
                    f"{independent} 个独立的值。",
                )
            )
    return Table(
        title=say("Error of the batch's statistics, in deviations", "批次统计量的误差（以标准差为单位）"),
        columns=("m", *(f"{name}, {heads[what]}" for name in networks for what in whats)),
        rows=tuple(
            (
                str(size),
                *(
                    told(result.spread(what, network=name, size=size), DEVIATIONS, say)
                    for name in networks
                    for what in whats
                ),
            )
            for size in result.each("error of the mean", "size")
        ),
        note=say(
            f"Root mean square over {result.settings['statistics']['batches']} batches and all channels.",
            f"对 {result.settings['statistics']['batches']} 个批次和所有通道取均方根。",
        )
        + "".join(worth),
    )


def _rates(result: Result, say: Say) -> Table:
    def cell(size: int, condition: str) -> str:
        (record,) = result.pick("chosen rate", condition=condition, size=size)
        edge = {"lowest": say(" (lowest)", "（最小）"), "highest": say(" (highest)", "（最大）")}
        return f"{record.value:g}" + edge.get(str(record.where.get("edge")), "")

    rates = say(", ", "、").join(f"{rate:g}" for rate in result.settings["rates"])
    return Table(
        title=say("Learning rates chosen", "选择的学习率"),
        columns=("m", say("without BN", "无 BN"), say("with BN", "有 BN")),
        rows=tuple(
            (str(size), cell(size, WITHOUT), cell(size, WITH))
            for size in result.each("chosen rate", "size", condition=WITH)
        ),
        note=say(
            f"From {rates}: the best mean over the last quarter of the validation curve. Where it is the lowest or "
            "the highest, a better one may lie beyond.",
            f"选自 {rates}：验证曲线最后四分之一的平均值最高者。若为最小或最大，更好的值可能在范围之外。",
        ),
    )
