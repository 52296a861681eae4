"""Generalization told: accuracy on the test images, and how far the training images are ahead."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from normwright.report import figures, style
from normwright.report.document import Card, Picture, Table, Verdict, outcome
from normwright.report.figures import Axis, Dots, Line
from normwright.report.result import Result
from normwright.report.summary import PERCENT, SHORT, Unit, told
from normwright.report.words import Say

WITHOUT, WITH = "without BN", "BN"
AT_LEVEL = "test loss at a training loss"


@dataclass(frozen=True)
class Cell:
    """One network on one number of training images: a quantity on both sides, a pair for each seed."""

    network: str
    images: int
    without: Sequence[float]
    with_norm: Sequence[float]
    note: str = ""

    @property
    def gains(self) -> list[float]:
        """By how much it is larger with BN, seed by seed: same first weights, same training images."""
        pairs = zip(self.without, self.with_norm, strict=True)
        return [0.0 if after == before else after - before for before, after in pairs]  # also inf and inf


def card(result: Result, say: Say) -> Card:
    """The card of generalization."""
    return Card(
        name=result.name,
        title=say("Generalization: training images and test images", "泛化：训练图像与测试图像"),
        claim=say(
            "Batch normalization (BN) makes a network overfit less and generalize better, so that it ends with a "
            "higher accuracy.",
            "批量归一化（BN）减轻过拟合，改善泛化，因而最终准确率更高。",
        ),
        done=say(
            "Networks were trained long enough to name (nearly) every training image rightly, with few images and "
            "with many: each seed draws its own images, alike for both sides, and each learning rate is chosen "
            f"from one grid on the validation images. {result.settings['seeds']} seeds.",
            "用少量和较多的图像训练网络，直到（几乎）每张训练图像都被正确识别：每个种子抽取自己的图像，两边相同；"
            f"两边的学习率在验证图像上从同一网格中选择。{result.settings['seeds']} 个种子。",
        ),
        verdicts=(
            higher_accuracy(result, say),
            smaller_gap(result, say),
            smaller_loss_gap(result, say),
            at_equal_loss(result, say),
            *((noise(result, say),) if _controls(result) else ()),
        ),
        pictures=tuple(picture for name in networks(result) for picture in _pictures(result, name, say)),
        see=say(
            "Each dot is a seed: how far training accuracy is ahead of test accuracy. The lines: test loss when "
            "the training loss has come down to a value, so that speed does not count.",
            "每个点是一个种子：训练准确率高出测试准确率多少。曲线：训练损失降到某一值时的测试损失，与训练快慢无关。",
        ),
        tables=tuple(_ends(result, name, say) for name in networks(result)),
        details=tuple(_rates(result, name, say) for name in networks(result)),
        command=result.command,
    )


def networks(result: Result) -> list[str]:
    """The networks that were compared, in order."""
    return result.each("test accuracy", "network")


def cells(result: Result, what: str) -> list[Cell]:
    """Each comparison of `what`; a loss that is no number counts as larger than any other."""
    return [
        _cell(result, what, name, images, (WITHOUT, WITH))
        for name in result.each(what, "network")
        for images in result.each(what, "images", network=name)
    ]


def _cell(
    result: Result, what: str, network: str, images: int, sides: tuple[str, str], level: float | None = None
) -> Cell:
    found = []
    for condition in sides:
        where: dict[str, Any] = {"network": network, "images": images, "condition": condition}
        values = result.values(what, **where, **({} if level is None else {"level": level}))
        found.append([math.inf if value is None else value for value in values])
    return Cell(network, images, found[0], found[1])


# --- verdicts ---------------------------------------------------------


def higher_accuracy(result: Result, say: Say) -> Verdict:
    """With BN, the accuracy on the test images is higher."""
    return _judged(
        say("Higher test accuracy in the end", "最终测试准确率更高"),
        cells(result, "test accuracy"),
        1,
        PERCENT,
        say,
    )


def smaller_gap(result: Result, say: Say) -> Verdict:
    """With BN, training accuracy is less far ahead of test accuracy."""
    return _judged(
        say("Smaller gap between training and test accuracy", "训练与测试准确率的差距更小"),
        cells(result, "gap in accuracy"),
        -1,
        PERCENT,
        say,
    )


def smaller_loss_gap(result: Result, say: Say) -> Verdict:
    """With BN, the test loss at the end is less far above the training loss."""
    return _judged(
        say("Smaller gap between training and test loss", "训练与测试损失的差距更小"),
        cells(result, "gap in loss"),
        -1,
        SHORT,
        say,
    )


def at_equal_loss(result: Result, say: Say) -> Verdict:
    """With BN, the test loss is lower at the same training loss: the lowest that all trainings of a cell reached.

    Whoever trains faster is further along at the end; here both sides are compared equally far along.
    """
    compared = []
    for name in result.each(AT_LEVEL, "network"):
        for images in result.each(AT_LEVEL, "images", network=name):
            level = common_level(result, name, images)
            if level is not None:
                cell = _cell(result, AT_LEVEL, name, images, (WITHOUT, WITH), level)
                compared.append(replace(cell, note=say(f"at {level:g}", f"训练损失 {level:g}")))
    return _judged(
        say("Lower test loss at the same training loss", "训练损失相同时，测试损失更低"),
        compared,
        -1,
        SHORT,
        say,
    )


def common_level(result: Result, network: str, images: int) -> float | None:
    """The lowest training loss that every training of both sides reached; None where there is none."""
    where: dict[str, Any] = {"network": network, "images": images}
    reached = [
        level
        for level in result.each(AT_LEVEL, "level", **where)
        if all(
            value is not None
            for side in (WITHOUT, WITH)
            for value in result.values(AT_LEVEL, level=level, condition=side, **where)
        )
    ]
    return min(reached, default=None)


def noise(result: Result, say: Say) -> Verdict:
    """Noisier statistics alone make the gap smaller: those of the fewest images against the whole batch's."""
    fewest = min(_controls(result), key=lambda condition: int(condition.rpartition(" ")[2]))
    size = int(fewest.rpartition(" ")[2])
    compared = [
        _cell(result, "gap in accuracy", name, images, (WITH, fewest))
        for name in result.each("gap in accuracy", "network", condition=fewest)
        for images in result.each("gap in accuracy", "images", network=name, condition=fewest)
    ]
    return _judged(
        say("The noise of the statistics is what makes the gap smaller", "缩小差距的是统计量的噪声"),
        compared,
        -1,
        PERCENT,
        say,
        order=say(
            f"Statistics of {size} images less those of the whole batch",
            f"{size} 张图像的统计量减整个批次的统计量",
        ),
    )


def _judged(
    claim: str, compared: Sequence[Cell], sign: int, unit: Unit, say: Say, order: str = ""
) -> Verdict:
    """Whether a quantity is larger (`sign` 1) or smaller (-1) with BN, pair by pair.

    The claim holds where it does so for every seed of every comparison: were there no difference, all of five
    seeds would fall on that side with a chance of 1/32. It holds partly where it does so for every seed of one
    comparison at least, and in the median of more than half: the latter alone is the toss of a coin.
    """
    every = sum(all(sign * gain > 0 for gain in cell.gains) for cell in compared)
    middle = sum(sign * median(cell.gains) > 0 for cell in compared)
    shown = [
        f"{cell.network} {cell.images}"
        + (f" ({cell.note})" if cell.note else "")
        + f" {_signed(median(cell.gains), unit)} ({_signed(min(cell.gains), unit)}"
        + say(" to ", " 到 ")
        + f"{_signed(max(cell.gains), unit)})"
        for cell in compared
    ]
    order = order or say("With BN less without", "有 BN 减无 BN")
    of = say(" in points", "，单位为百分点") if unit is PERCENT else ""
    return Verdict(
        claim,
        outcome(bool(compared) and every == len(compared), every > 0 and 2 * middle > len(compared)),
        say(
            f"True for every seed in {every} of {len(compared)} comparisons, in the median in {middle}. {order}"
            f"{of}, median and range, by training images: {'; '.join(shown) or 'none compared'}.",
            f"{len(compared)} 组比较中，{every} 组的每个种子都如此，{middle} 组的中位数如此。"
            f"{order}{of}，中位数与范围（按训练图像数）：{'；'.join(shown) or '无可比较'}。",
        ),
    )


def _signed(value: float, unit: Unit) -> str:
    """A difference with its sign.

    >>> _signed(-0.012, PERCENT), _signed(0.0, SHORT), _signed(0.12345, SHORT)
    ('−1.2', '0', '+0.123')
    """
    number = unit.number(abs(value))
    return "0" if float(number) == 0 else ("−" if value < 0 else "+") + number


# --- pictures and tables ----------------------------------------------


def _pictures(result: Result, network: str, say: Say) -> list[Picture]:
    name = f"generalization-{network.replace(' ', '-').lower()}"
    return [
        Picture(
            f"{name}-gap",
            lambda: _gaps(result, network, say),
            say(
                f"Training accuracy less test accuracy of the {network}, a dot for each seed, with BN and without.",
                f"{network} 的训练准确率减去测试准确率，每个种子一个点，有 BN 与无 BN。",
            ),
            say(
                f"{network}: training less test accuracy, by training images",
                f"{network}：训练准确率减测试准确率（按训练图像数）",
            ),
        ),
        Picture(
            f"{name}-equal-loss",
            lambda: _equal_loss(result, network, say),
            say(
                f"Test loss of the {network} against its training loss as it falls, with BN and without.",
                f"{network} 的测试损失随训练损失下降的变化，有 BN 与无 BN。",
            ),
            say(f"{network}: test loss at equal training loss", f"{network}：训练损失相同时的测试损失"),
        ),
    ]


def _gaps(result: Result, network: str, say: Say) -> Any:
    rows = [
        Dots(
            f"{images}, {_name(condition, say)}",
            result.numbers("gap in accuracy", network=network, images=images, condition=condition),
            style.WITHOUT if condition == WITHOUT else style.WITH,
        )
        for images in result.each("gap in accuracy", "images", network=network)
        for condition in (WITHOUT, WITH)
    ]
    axis = Axis(say("training less test accuracy", "训练减测试准确率"), percent=True)
    return figures.dots(rows, axis, level=0.0)


def _equal_loss(result: Result, network: str, say: Say) -> Any:
    """With the fewest images and with the most."""
    counts = result.each(AT_LEVEL, "images", network=network)
    drawn = []
    for images in dict.fromkeys((counts[0], counts[-1])):
        for condition, colour in ((WITHOUT, style.WITHOUT), (WITH, style.WITH)):
            where = {"network": network, "images": images, "condition": condition}
            levels, heights = result.curves(AT_LEVEL, "level", **where)
            falling = [list(reversed(row)) for row in heights]
            drawn.append(
                Line(
                    f"{images}, {_name(condition, say)}",
                    levels[::-1],
                    falling,
                    colour,
                    dashed=images != counts[0],
                )
            )
    seen = {x for line in drawn for x, y in zip(line.x, line.middle, strict=True) if math.isfinite(y)}
    low, high = (max(seen), min(seen)) if len(seen) > 1 else (1.0, 0.1)  # it falls from left to right
    x = Axis(say("training loss, falling", "训练损失（下降）"), log=True, low=low, high=high)
    return figures.lines(drawn, x, Axis(say("test loss", "测试损失"), low=0))


def _name(condition: str, say: Say) -> str:
    """A condition in the reader's language."""
    if condition == WITHOUT:
        return say("without BN", "无 BN")
    if condition == WITH:
        return say("with BN", "有 BN")
    size = condition.rpartition(" ")[2]
    return say(f"BN by {size}", f"BN，每 {size} 张")


def _controls(result: Result) -> list[str]:
    return [name for name in result.each("test accuracy", "condition") if name not in (WITHOUT, WITH)]


def _ends(result: Result, network: str, say: Say) -> Table:
    def cell(what: str, unit: Unit, images: int, condition: str) -> str:
        return told(result.spread(what, network=network, images=images, condition=condition), unit, say)

    entry = _entry(result, network)
    budget = entry["budget"]
    note = say(
        f"{budget['steps']} steps of {budget['batch_size']} images. Accuracy on the training images and on the "
        "test images, and their mean loss, at the end.",
        f"{budget['steps']} 步，每步 {budget['batch_size']} 张图像。训练结束时训练图像与测试图像上的准确率，"
        "以及平均损失。",
    )
    for size in entry["pieces"]:
        note += say(
            f" BN by {size}: each batch is normalized in pieces of {size} images, so that the statistics are "
            "noisier and nothing else differs.",
            f" “BN，每 {size} 张”：每个批次分成 {size} 张图像的小块分别归一化，只有统计量的噪声更大。",
        )
    where = {"network": network}
    return Table(
        title=say(
            f"{network}: median of {result.settings['seeds']} seeds (range)",
            f"{network}：{result.settings['seeds']} 个种子的中位数（范围）",
        ),
        columns=(
            say("images", "图像数"),
            say("training", "训练准确率"),
            say("test", "测试准确率"),
            say("training loss", "训练损失"),
            say("test loss", "测试损失"),
        ),
        rows=tuple(
            (
                f"{images}, {_name(condition, say)}",
                cell("training accuracy", PERCENT, images, condition),
                cell("test accuracy", PERCENT, images, condition),
                cell("training loss", SHORT, images, condition),
                cell("test loss", SHORT, images, condition),
            )
            for images in result.each("test accuracy", "images", **where)
            for condition in result.each("test accuracy", "condition", images=images, **where)
        ),
        note=note,
    )


def _rates(result: Result, network: str, say: Say) -> Table:
    conditions = result.each("chosen rate", "condition", network=network)

    def cell(images: int, rate: float, condition: str) -> str:
        where: dict[str, Any] = {"network": network, "images": images, "condition": condition}
        score = PERCENT.number(result.number("score of a rate", rate=rate, **where))
        return score + ("*" if result.number("chosen rate", **where) == rate else "")

    return Table(
        title=say(
            f"{network}: learning rates tried, validation accuracy in %",
            f"{network}：尝试过的学习率，验证准确率（%）",
        ),
        columns=(
            say("images", "图像数"),
            say("rate", "学习率"),
            *(_name(condition, say) for condition in conditions),
        ),
        rows=tuple(
            (f"{images}", f"{rate:g}", *(cell(images, rate, condition) for condition in conditions))
            for images in result.each("chosen rate", "images", network=network)
            for rate in _entry(result, network)["rates"]
        ),
        note=say(
            "* chosen; at the edge of the grid a better one may lie beyond. Mean over the last quarter of a run: "
            "every rate with the first seed, the best two with all seeds.",
            "* 为选中的学习率；若位于网格边缘，更好的值可能在网格之外。一次训练最后四分之一的平均值："
            "每个学习率用第一个种子，最好的两个用全部种子。",
        ),
    )


def _entry(result: Result, network: str) -> dict[str, Any]:
    return next(entry for entry in result.settings["entries"] if entry["network"]["name"] == network)
