"""The numbers of the shift: what its records say by layer and condition, and the tables of them."""

import math
from statistics import median
from typing import Any

from normwright.report.document import Table
from normwright.report.result import Result
from normwright.report.summary import PERCENT, PLAIN, Unit, told
from normwright.report.words import Say

WITHOUT, WITH, NOISY, SAME_RATE = "without BN", "BN", "noisy BN", "BN, the rate without"
CONDITIONS = (WITHOUT, WITH, SAME_RATE, NOISY)
LOOKS, START, STEP = "between looks", "from the start", "one step"

SIZE = Unit(form=".2g")


def networks(result: Result) -> list[str]:
    """The networks that ran, in order."""
    return result.each("mean shift", "network")


def condition_name(condition: str, say: Say) -> str:
    """A condition of this experiment in the reader's language."""
    return {
        WITHOUT: say("without BN", "无 BN"),
        WITH: say("BN", "BN"),
        SAME_RATE: say("BN, same rate", "BN，同学习率"),
        NOISY: say("BN + noise", "BN＋噪声"),
    }[condition]


def middle(result: Result, what: str, **where: Any) -> float:
    """The median over the seeds; a None, which has no number, is above them all."""
    value = result.spread(what, **where).middle
    return math.inf if value is None else value


def by_layer(result: Result, what: str, span: str | None, network: str, condition: str) -> list[float]:
    """The median over the seeds of each layer, by depth."""
    where = {"network": network, "condition": condition, **({"span": span} if span else {})}
    return [middle(result, what, layer=layer, **where) for layer in layers(result, network)]


def typical(result: Result, what: str, span: str, network: str, condition: str) -> float:
    """The median over the layers of the medians over the seeds."""
    return median(by_layer(result, what, span, network, condition))


def chosen_rate(result: Result, network: str, condition: str) -> float:
    """The rate chosen for a condition; BN with the rate of another has that one."""
    chooser = WITHOUT if condition == SAME_RATE else condition
    return result.number("chosen rate", network=network, condition=chooser)


def layers(result: Result, network: str) -> list[int]:
    """The hidden layers of a network, from 1."""
    return sorted(result.each("mean shift", "layer", network=network))


# --- tables -----------------------------------------------------------


def speeds(result: Result, network: str, say: Say) -> Table:
    """How soon each side learned, and how well."""

    def cell(what: str, condition: str, unit: Unit) -> str:
        return told(result.spread(what, network=network, condition=condition), unit, say)

    entry = _entry(result, network)
    budget, noise = entry["budget"], entry["noise"]
    return Table(
        title=say(f"{network}: speed", f"{network}：速度"),
        columns=(
            "",
            say("rate", "学习率"),
            say("steps to the goal", "到达目标的步数"),
            say("accuracy as trained", "训练方式的准确率"),
            say("as it predicts", "预测方式的准确率"),
        ),
        rows=tuple(
            (
                condition_name(condition, say),
                f"{chosen_rate(result, network, condition):g}",
                cell("steps to the goal", condition, PLAIN),
                cell("test accuracy as trained", condition, PERCENT),
                cell("test accuracy", condition, PERCENT),
            )
            for condition in CONDITIONS
        ),
        note=say(
            f"{budget['steps']} steps of {budget['batch_size']} images, looked at every {budget['every']}. The "
            "goal: 95 % of the best validation accuracy with BN, seed by seed. The noise moves each channel by "
            f"up to {noise:g} either way. Progress is judged as the network trains, with batch statistics and "
            "noise; running statistics, by which it predicts, have averaged over noise that is then absent. Last "
            "columns: test images." + _edges(result, network, say),
            f"{budget['steps']} 步，每步 {budget['batch_size']} 张图像，每 {budget['every']} 步观察一次。目标：逐"
            f"个种子，有 BN 时最佳验证准确率的 95 %。噪声使每个通道最多移动 ±{noise:g}。进度按网络训练时的方式衡"
            "量，即使用批统计量和噪声；预测时所用的滑动统计量对噪声取过平均，而预测时并无噪声。最后两列：测试图"
            "像。" + _edges(result, network, say),
        ),
    )


def moments(result: Result, network: str, say: Say) -> Table:
    """How far means and variances moved, by layer."""

    def cell(layer: int, condition: str) -> str:
        where: dict[str, Any] = {"network": network, "condition": condition, "layer": layer, "span": LOOKS}
        moved = (SIZE(middle(result, what, **where)) for what in ("mean shift", "variance shift"))
        return " / ".join(moved)

    return Table(
        title=say(f"{network}: shift between looks", f"{network}：相邻两次观察之间的偏移"),
        columns=(say("layer", "层"), *(condition_name(condition, say) for condition in CONDITIONS)),
        rows=tuple(
            (str(layer), *(cell(layer, condition) for condition in CONDITIONS))
            for layer in layers(result, network)
        ),
        note=say(
            "Of the mean, in deviations / of the variance, as the logarithm of its ratio either way. Averages over "
            "channels and looks; channels whose values do not vary have no scale and are left out.",
            "均值的偏移（标准差）/ 方差的偏移（比值的对数，取绝对值）。对通道和各次观察取平均；数值不变的通道没有"
            "尺度，不计入。",
        ),
    )


def shapes(result: Result, network: str, say: Say) -> Table:
    """How far standardized distributions moved, by layer."""
    conditions = (WITHOUT, WITH, NOISY)
    columns = [by_layer(result, "shape shift", START, network, condition) for condition in conditions]
    columns.append(by_layer(result, "shape of other images", None, network, WITH))
    return Table(
        title=say(f"{network}: change of shape from start to end", f"{network}：从开始到结束的形状变化"),
        columns=(
            say("layer", "层"),
            *(condition_name(condition, say) for condition in conditions),
            say("other images", "另一批图像"),
        ),
        rows=tuple(
            (str(layer), *map(SIZE, row))
            for layer, *row in zip(layers(result, network), *columns, strict=True)
        ),
        note=say(
            "Wasserstein-1 distance of the standardized values, in deviations. Other images: the distance "
            "between two draws of images in the same network, with BN.",
            "标准化后数值的 Wasserstein-1 距离，以标准差为单位。另一批图像：同一网络（有 BN）中两批图像之间的距"
            "离。",
        ),
    )


def rates(result: Result, network: str, say: Say) -> Table:
    """Every rate tried, and its score."""
    conditions = (WITHOUT, WITH, NOISY)

    def cell(rate: float, condition: str) -> str:
        chosen = chosen_rate(result, network, condition) == rate
        score = result.number("score of a rate", network=network, condition=condition, rate=rate)
        return PERCENT(score) + (say(" chosen", " 选中") if chosen else "")

    return Table(
        title=say(f"{network}: learning rates tried", f"{network}：尝试过的学习率"),
        columns=(say("rate", "学习率"), *(condition_name(condition, say) for condition in conditions)),
        rows=tuple(
            (f"{rate:g}", *(cell(rate, condition) for condition in conditions))
            for rate in _entry(result, network)["rates"]
        ),
        note=say(
            "Validation accuracy as trained, mean over the whole run: who is sooner scores more. Seeds tried: "
            f"{result.settings['choosing']}.",
            "训练方式下的验证准确率，对整个训练取平均：越快得分越高。尝试的种子数："
            f"{result.settings['choosing']}。",
        ),
    )


def _edges(result: Result, network: str, say: Say) -> str:
    if not any(record.where["edge"] for record in result.pick("chosen rate", network=network)):
        return ""
    return say(
        " A chosen rate is at the edge of its grid: a better one may lie beyond.",
        "有一个选中的学习率位于网格边缘：更好的值可能在网格之外。",
    )


def _entry(result: Result, network: str) -> dict[str, Any]:
    return next(entry for entry in result.settings["entries"] if entry["network"]["name"] == network)
