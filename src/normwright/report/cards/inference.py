"""Prediction told: by which statistics, how far they are off, what they cost, and whether company matters."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from normwright.report import figures, style
from normwright.report.document import Card, Picture, Table, Verdict, outcome
from normwright.report.figures import Axis, Line
from normwright.report.result import Result
from normwright.report.summary import PERCENT, WHOLE_PERCENT, Unit, difference
from normwright.report.words import Say

# Half the distance of float32 numbers near 1. A layer keeps its statistics in float32: it cannot hold better ones.
FLOAT32 = 2.0**-24
# Outputs are of order 1, where neighbouring float32 numbers are 1.2e-7 apart: some dozens of them is rounding.
ROUNDING = 1e-5
# Of all test predictions, the share that other statistics may change before the two are said to differ: a little
# more than the standard error of an accuracy of 0.97 measured on 500 images, sqrt(0.97 * 0.03 / 500) = 0.008.
FEW_CHANGED = 0.01
# What the sources say a second eps does to y where the variance is 1e-6 and eps is 1e-5; they give two digits.
SOURCES_VARIANCE, SOURCES_SCALE, SOURCES_DIGITS = 1e-6, 0.72, 0.005
# Outputs of float64 are of order 1 here; var + eps - eps is off by at most 2^-53 * (var + eps) / var of itself,
# eleven roundings at the smallest variance. This is a thousand times as much.
CONVERTED = 1e-12

SHORT = Unit(form=".2g")
KILOBYTES = Unit(1e-3, ".3g", " kB")
MILLISECONDS = Unit(1e3, ".2g", " ms")
COLOURS = (style.WITHOUT, style.WITH, style.THIRD, style.FOURTH, style.FIFTH)


def card(result: Result, say: Say) -> Card:
    """The card of the statistics for prediction."""
    names = networks(result)
    seeds = len(result.each("noise at rest", "seed"))
    return Card(
        name=result.name,
        title=say("Predicting: by which statistics, and one image alone", "预测：用哪种统计量，以及单张图像"),
        claim=say(
            "To predict, BN takes fixed statistics, so that a single sample has a definite output: a moving "
            "average from training (cheap; the larger its a, the slower and steadier), or those of the whole "
            "training set (accurate, but said to cost storage).",
            "预测时 BN 使用固定的统计量，使单个样本也有确定的输出：或是训练中累积的滑动平均"
            "（省资源；a 越大，跟得越慢、越平稳），或是整个训练集的统计量（准确，但据说要占存储）。",
        ),
        done=say(
            "One training feeds three moving averages with the same batches. They, the paper's Algorithm 2 and one "
            "pass of normwright's Population are held against float64 sums over the whole training set. "
            f"{seeds} seeds.",
            "一次训练用相同的批次更新三个滑动平均。再把它们、论文的算法 2 以及 normwright 的 Population"
            f"（一遍扫描）与整个训练集上的 float64 计算结果对照。{seeds} 个随机种子。",
        ),
        verdicts=(
            exact(result, say),
            algorithm_2(result, say),
            slower_and_steadier(result, say),
            predicts(result, say),
            alone(result, say),
            eps_once(result, say),
        ),
        pictures=tuple(_picture(result, name, say) for name in names),
        see=say(
            "Each average first has to forget the 0 and 1 it started from, in some 1/(1 - a) steps; then it trails "
            "the moving weights. Lines are medians, bands the range.",
            "每个滑动平均先要用大约 1/(1 - a) 步忘掉初始的 0 和 1，然后跟在变化的权重后面。"
            "线为中位数，色带为范围。",
        ),
        tables=(*(_costs(result, name, say) for name in names), _accuracy(result, say)),
        details=(_eps(result, say),),
        command=result.command,
    )


def networks(result: Result) -> list[str]:
    """The networks that ran, in order."""
    return result.each("error of the mean", "network")


# --- verdicts ---------------------------------------------------------


def exact(result: Result, say: Say) -> Verdict:
    """The pooled statistics are exact, and in constant memory; partly: exact alone."""
    mean, deviation = _worst(result, "pooled")
    held, stored = ([_kept(result, name, which) for name in networks(result)] for which in STORING)
    constant = all(first == last for (_, first), (_, last) in held)
    (_, small), (_, large) = max(held, key=lambda pair: pair[1][1])
    (_, one), (batches, all_of_them) = max(stored, key=lambda pair: pair[1][1])
    right = max(mean, deviation) <= FLOAT32
    return Verdict(
        say("One pass gives the exact statistics in constant memory", "一遍扫描、恒定内存即可得到精确统计量"),
        outcome(right and constant, right),
        say(
            f"Pooled, the worst mean is off by {SHORT(mean)} standard deviations and the worst deviation by "
            f"{SHORT(deviation)} of itself (float32, which stores them: {SHORT(FLOAT32)}). Kept after one batch "
            f"and after all: {KILOBYTES(small)} and {KILOBYTES(large)}; by Algorithm 2, which stores every batch: "
            f"{KILOBYTES(one)} and {KILOBYTES(all_of_them)} ({batches} batches).",
            f"合并得到的均值最多偏差 {SHORT(mean)} 个标准差，标准差的相对偏差最多 {SHORT(deviation)}"
            f"（存储它们的 float32 的舍入误差：{SHORT(FLOAT32)}）。一个批次之后与全部批次之后的存储量："
            f"{KILOBYTES(small)} 与 {KILOBYTES(large)}；存储每个批次的算法 2：{KILOBYTES(one)} 与 "
            f"{KILOBYTES(all_of_them)}（{batches} 个批次）。",
        ),
    )


def algorithm_2(result: Result, say: Say) -> Verdict:
    """From shuffled batches, Algorithm 2 is off by less than the training set itself: all runs, or the median."""
    images = min(result.each("error of the deviation", "images"))
    # The standard errors of a mean and of a deviation taken from so many images (values of one image are not
    # independent): how far the training set itself is from the world it was drawn from.
    mean_by_chance, by_chance = images**-0.5, (2 * images) ** -0.5
    of_means = result.numbers("error of the mean", estimator=STORING[1])
    of_deviations = result.numbers("error of the deviation", estimator=STORING[1])
    _, by_class = _worst(result, BY_CLASS)
    between, sorted_between = (
        max(result.numbers("variance between batches", estimator=which)) for which in (STORING[1], BY_CLASS)
    )
    return Verdict(
        say("Algorithm 2 is accurate, if the batches are shuffled", "批次经过打乱时，算法 2 是准确的"),
        outcome(
            max(of_means) <= mean_by_chance and max(of_deviations) <= by_chance,
            median(of_means) <= mean_by_chance and median(of_deviations) <= by_chance,
        ),
        say(
            f"Its worst deviation is off by {PERCENT(max(of_deviations))}; having only {images} images makes "
            f"{PERCENT(by_chance)}. It leaves out the variance between batches, up to {PERCENT(between)} of a "
            "channel's; m/(m-1) makes up for what chance puts there. With batches of one class that is "
            f"{WHOLE_PERCENT(sorted_between)}, and it is off by {WHOLE_PERCENT(by_class)}.",
            f"其标准差最多偏差 {PERCENT(max(of_deviations))}；而只有 {images} 张图像本身就带来 "
            f"{PERCENT(by_chance)} 的偏差。它忽略批次之间的方差（最多占一个通道方差的 {PERCENT(between)}），"
            f"m/(m-1) 弥补其中偶然的部分。若批次按类别排序，则该方差占 {WHOLE_PERCENT(sorted_between)}，"
            f"偏差达 {WHOLE_PERCENT(by_class)}。",
        ),
    )


def slower_and_steadier(result: Result, say: Say) -> Verdict:
    """A larger a is off by more while weights move, and by less while they rest: every run, or in the medians."""
    every, slower, steadier, shown = True, True, True, []
    for name in networks(result):
        lags, noises = [], []
        for a in decays(result):
            lags.append(_lags(result, name, a))
            noises.append(result.numbers("noise at rest", network=name, a=a))
        every &= all(_rising(run) for run in zip(*lags, strict=True))
        every &= all(_rising(run[::-1]) for run in zip(*noises, strict=True))
        slower &= _rising([median(lag) for lag in lags])
        steadier &= _rising([median(noise) for noise in noises[::-1]])
        lag, noise = (" → ".join(SHORT(median(of)) for of in both) for both in (lags, noises))
        shown.append(
            say(
                f"{name}: off by {lag} on the way, by {noise} at rest",
                f"{name}：训练途中偏差 {lag}，权重静止时 {noise}",
            )
        )
    tried = " → ".join(f"{a:g}" for a in decays(result))
    return Verdict(
        say("A larger a is slower and steadier", "a 越大，跟得越慢、越平稳"),
        outcome(every, slower or steadier),
        say(
            f"a = {tried}, in standard deviations of a channel. {'; '.join(shown)}.",
            f"a = {tried}，单位为通道的标准差。{'；'.join(shown)}。",
        ),
    )


def predicts(result: Result, say: Say) -> Verdict:
    """With each moving average, at most a percent of the predictions is another one; partly: with one of them."""
    of = sum(int(r.where["of"] or 0) for r in result.pick("changed predictions", estimator="exact"))
    changed = {
        a: sum(result.numbers("changed predictions", estimator=f"average {a:g}")) for a in decays(result)
    }
    few = [count <= FEW_CHANGED * of for count in changed.values()]
    moving, after = (
        sum(result.numbers("changed predictions", estimator=which)) for which in ("last epoch", STORING[1])
    )
    last = {
        name: max(result.each("distance of the average", "step", network=name)) for name in networks(result)
    }
    steps = say.listed([f"{name} {step}" for name, step in last.items()])
    counts = say.listed(
        [say(f"{count:g} (a = {a:g})", f"{count:g}（a = {a:g}）") for a, count in changed.items()]
    )
    return Verdict(
        say("A moving average predicts as the exact statistics do", "用滑动平均与用精确统计量的预测相同"),
        outcome(all(few), any(few)),
        say(
            f"Of {of} predictions, the averages change {counts} (training steps: {steps}). The plain mean over "
            f"the last epoch's batches, gathered while the weights moved, changes {moving:g}; recomputed after "
            f"training by Algorithm 2, {after:g}.",
            f"{of} 次预测中，滑动平均改变的次数：{counts}；训练步数：{steps}。在权重变化时收集的最后一轮批次的"
            f"平均改变了 {moving:g} 次；训练后用算法 2 重新计算，改变了 {after:g} 次。",
        ),
    )


def alone(result: Result, say: Say) -> Verdict:
    """Predicting, the layer gives an image alone the very output that it gives it in a batch."""
    what = "difference alone to in a batch"
    layer, network, control, training = (
        max(result.numbers(what, of=of))
        for of in ("layer", "network with BN", "network without BN", "layer in training mode")
    )
    return Verdict(
        say("Alone or in a batch, the layer gives the same output", "单独或在批次中，该层的输出相同"),
        outcome(layer == 0, layer <= ROUNDING),
        say(
            f"Its outputs differ by {difference(layer, say)}; in training mode, where the batch counts, by "
            f"{difference(training, say)}. Whole networks differ by {difference(network, say)} with BN and by "
            f"{difference(control, say)} with it taken out: torch may sum a product in another order for another "
            "number of images.",
            f"其输出的差别：{difference(layer, say)}；在训练模式下（批次起作用）：{difference(training, say)}。"
            f"整个网络的差别：有 BN 时 {difference(network, say)}，去掉 BN 时 {difference(control, say)}："
            "图像数不同时，torch 的求和次序可能不同。",
        ),
    )


def eps_once(result: Result, say: Say) -> Verdict:
    """A second eps scales y as the sources say, and taking it off the record is exact; partly: y is scaled."""
    (record,) = result.pick("scale of y with eps twice", var=SOURCES_VARIANCE)
    scale = result.number("scale of y with eps twice", var=SOURCES_VARIANCE)
    left = max(result.numbers("difference after conversion"))
    real = min(result.numbers("scale of y in a trained network"))
    as_told = abs(scale - SOURCES_SCALE) <= SOURCES_DIGITS and left <= CONVERTED
    return Verdict(
        say(
            "A recorded variance with eps in it must not get eps again",
            "记录的方差若已含 eps，就不能再加一次",
        ),
        outcome(as_told, scale < 1 - SOURCES_DIGITS),
        say(
            f"At variance {SOURCES_VARIANCE:g} and eps {record.where['eps']:g}, adding it twice scales y by "
            f"{scale:.3f} (sources: {SOURCES_SCALE}); in the trained networks' narrowest channel by {real:.4f}. "
            f"With eps taken off the record, y differs by {difference(left, say)}.",
            f"方差为 {SOURCES_VARIANCE:g}、eps 为 {record.where['eps']:g} 时，加两次使 y 变为 {scale:.3f} 倍"
            f"（资料：{SOURCES_SCALE}）；在训练好的网络中方差最小的通道里为 {real:.4f} 倍。从记录中减去 eps 后，"
            f"y 的差别：{difference(left, say)}。",
        ),
    )


# --- what the records say ---------------------------------------------

STORING = ("pooled", "Algorithm 2")  # without storing every batch, and with
BY_CLASS = "Algorithm 2 by class"


def decays(result: Result) -> list[float]:
    """The averages' weights of the old value, rising."""
    return sorted(result.each("distance of the average", "a"))


def _worst(result: Result, estimator: str) -> tuple[float, float]:
    """Largest errors of any channel, network and seed: the mean's and the deviation's."""
    return (
        max(result.numbers("error of the mean", estimator=estimator)),
        max(result.numbers("error of the deviation", estimator=estimator)),
    )


def _kept(result: Result, network: str, estimator: str) -> tuple[tuple[int, float], tuple[int, float]]:
    """Batches taken in and bytes kept: at the fewest and at the most."""
    held = sorted(
        (int(r.where["batches"] or 0), r.value or 0.0)
        for r in result.pick("bytes kept", network=network, estimator=estimator)
    )
    return held[0], held[-1]


def _lags(result: Result, network: str, a: float) -> list[float]:
    """The distance of the average, mean over the steps looked at, a number for each seed."""
    _, rows = result.curves("distance of the average", "step", network=network, a=a)
    return [fmean(value for value in row if value is not None) for row in rows]


def _rising(values: Sequence[float]) -> bool:
    return all(before < after for before, after in pairwise(values))


# --- pictures and tables ----------------------------------------------


def _picture(result: Result, network: str, say: Say) -> Picture:
    return Picture(
        f"inference-{network.replace(' ', '-').lower()}",
        lambda: _curves(result, network, say),
        say(
            f"How far each moving average is from the exact mean of the {network}'s present weights, against the "
            "training step; both axes logarithmic.",
            f"各滑动平均与 {network} 当前权重下的精确均值的距离随训练步数的变化；两轴均为对数。",
        ),
        network,
    )


def _curves(result: Result, network: str, say: Say) -> Any:
    drawn = []
    for a, colour in zip(decays(result), COLOURS, strict=False):
        steps, heights = result.curves("distance of the average", "step", network=network, a=a)
        drawn.append(Line(f"a = {a:g}", steps, heights, colour))
    x = Axis(say("training step", "训练步数"), log=True)
    y = Axis(say("mean off by (standard deviations)", "均值的偏差（标准差）"), log=True)
    return figures.lines(drawn, x, y)


def estimator_name(estimator: str, say: Say) -> str:
    """An estimator in the reader's language."""
    words = {
        "last epoch": say("mean of the last epoch", "最后一轮的平均"),
        "Algorithm 2": say("Algorithm 2", "算法 2"),
        BY_CLASS: say("Algorithm 2, by class", "算法 2，按类别排序"),
        "pooled": say("pooled, one pass", "合并，一遍扫描"),
        "recalibrate": "nw.recalibrate",
        "exact": say("exact (float64)", "精确（float64）"),
    }
    return words[estimator] if estimator in words else f"a = {estimator.removeprefix('average ')}"


def _costs(result: Result, network: str, say: Say) -> Table:
    """Error, bytes and time of every estimator of one network, a row each."""

    def middle(what: str, unit: Unit, estimator: str) -> str:
        where = {"network": network, "estimator": estimator}
        return unit(median(result.numbers(what, **where))) if result.pick(what, **where) else "–"

    def row(estimator: str) -> tuple[str, ...]:
        told = result.pick("bytes kept", network=network, estimator=estimator)
        return (
            estimator_name(estimator, say),
            middle("error of the mean", SHORT, estimator),
            middle("error of the deviation", SHORT, estimator),
            KILOBYTES(_kept(result, network, estimator)[1][1]) if told else "–",
            middle("seconds of gathering", MILLISECONDS, estimator),
        )

    return Table(
        title=say(f"{network}: error and cost, medians", f"{network}：误差与代价，中位数"),
        columns=("", *say("mean off|deviation off|kept|time", "均值偏差|标准差偏差|存储|时间").split("|")),
        rows=tuple(row(e) for e in result.each("error of the mean", "estimator", network=network)),
        note=say(
            "The worst channel's mean in standard deviations, its deviation as a fraction. Time of one thread: of "
            "an average, all its updates during training (which has the batch's statistics anyway); of the others, "
            "a pass over the training images. The mean of the last epoch is gathered while the weights move.",
            "最差通道的均值偏差以标准差计，标准差偏差为比例。单线程时间：滑动平均为训练中的全部更新"
            "（批次统计量本来就有）；其余为扫描一遍训练图像。最后一轮的平均是在权重变化时收集的。",
        ),
    )


def _accuracy(result: Result, say: Say) -> Table:
    names = networks(result)

    def cells(network: str, estimator: str) -> tuple[str, str]:
        where = {"network": network, "estimator": estimator}
        changed = sum(result.numbers("changed predictions", **where))
        return PERCENT(median(result.numbers("test accuracy", **where))), f"{changed:g}"

    of = {
        name: sum(
            int(r.where["of"] or 0)
            for r in result.pick("changed predictions", network=name, estimator="exact")
        )
        for name in names
    }
    return Table(
        title=say("Test accuracy and changed predictions", "测试准确率与改变的预测"),
        columns=("", *(column for name in names for column in (name, say("changed", "改变")))),
        rows=tuple(
            (estimator_name(estimator, say), *(cell for name in names for cell in cells(name, estimator)))
            for estimator in result.each("test accuracy", "estimator")
        ),
        note=say(
            f"Medians. Changed: other than by the exact statistics, all seeds together, of {max(of.values())}.",
            f"中位数。改变：与使用精确统计量时不同的预测数，所有种子合计，共 {max(of.values())} 次。",
        ),
    )


def _eps(result: Result, say: Say) -> Table:
    return Table(
        title=say("Eps added twice", "加两次 eps"),
        columns=tuple(
            say("variance|y times|converted: y off by", "方差|y 的倍数|换算后 y 的差别").split("|")
        ),
        rows=tuple(
            (
                f"{record.where['var']:g}",
                f"{record.value:.4f}",
                difference(result.number("difference after conversion", var=record.where["var"]), say),
            )
            for record in result.pick("scale of y with eps twice")
        ),
        note=say(
            "Two layouts of the record: var, or var + eps. Converted: eps taken off the second.",
            "记录有两种写法：var 或 var + eps。换算：从后者中减去 eps。",
        ),
    )
