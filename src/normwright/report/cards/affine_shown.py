"""What the card of gamma and beta shows: the numbers it draws from the records, its pictures and its tables."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from normwright.report import figures, style
from normwright.report.document import Picture, Table
from normwright.report.figures import Axis, Dots, Line
from normwright.report.result import Result
from normwright.report.summary import PERCENT, SHORT, WHOLE_PERCENT, Spread, told
from normwright.report.words import Say

WITHOUT, NO_AFFINE, WITH = "without BN", "no gamma, beta", "BN"
ONE_PAIR, NO_BIAS, AFTER = "one gamma, beta", "BN, no bias", "BN after"
NORMAL = (
    0.984  # how much of a sigmoid's output the best straight line explains when its input is normal, N(0, 1)
)


# --- numbers from the records -------------------------------------------


def judged(result: Result) -> list[str]:
    """The networks that learned the true labels."""
    return [str(name) for name in result.each("test accuracy", "network", labels="true")]


def conditions(result: Result, what: str, **where: Any) -> list[str]:
    """The conditions in which `what` was measured."""
    return [str(name) for name in result.each(what, "condition", **where)]


def straightness(result: Result, condition: str, labels: str) -> list[float]:
    """By seed, how much of the sigmoids' output a straight line explains, on average over the layers.

    A layer whose units are all constant has no such share; a constant is a straight line, and counts as one.
    """
    where: dict[str, Any] = {"condition": condition, "labels": labels}
    found = [
        result.values("fit of a straight line", seed=seed, **where)
        for seed in result.each("fit of a straight line", "seed", **where)
    ]
    return [fmean(1.0 if value is None else value for value in layers) for layers in found]


def with_sigmoids(result: Result) -> list[str]:
    """The labels that networks with sigmoids learned both with gamma and beta and without."""
    labels = result.each("fit of a straight line", "labels", condition=WITH)
    return [
        str(one) for one in labels if result.pick("fit of a straight line", labels=one, condition=NO_AFFINE)
    ]


def own_shares(result: Result) -> dict[tuple[str, str, int, str], float]:
    """By network, labels, layer and gamma or beta: the channels' own share of the squared moves, over the seeds."""
    names = ("network", "labels", "layer", "of")
    found: dict[Any, list[float]] = {}
    for record in result.pick("share of the channels' own"):
        # Where nothing moved, no channel has a move of its own.
        found.setdefault(tuple(record.where[name] for name in names), []).append(record.value or 0.0)
    return {key: median(values) for key, values in found.items()}


# --- pictures and tables ----------------------------------------------


def pictures(result: Result, say: Say) -> tuple[Picture, ...]:
    """Capacity, how straight the sigmoids are, and gamma and beta as they are learned."""
    network = str(result.each("gamma", "network")[0])
    learned = {
        what: Picture(
            f"affine-{what}",
            lambda what=what, start=start: _trace(result, network, what, start, say),  # type: ignore[misc]
            say(
                f"{what} of the {network} during training: the median over the channels, the band of 80 % of them, "
                "and three single channels.",
                f"{network} 训练中的 {what}：各通道的中位数、包含 80 % 通道的色带，以及三个单独的通道。",
            ),
            say(f"{what} of the channels while the {network} learns", f"{network} 训练中各通道的 {what}"),
        )
        for what, start in (("gamma", 1.0), ("beta", 0.0))
    }
    return (
        Picture(
            "affine-capacity",
            lambda: _by_heart_curves(result, say),
            say(
                "Share of random labels that the sigmoid network has learned by heart, against training step, with "
                "gamma and beta and without.",
                "sigmoid 网络记住的随机标签比例随训练步数的变化，有 gamma 和 beta 与没有。",
            ),
            say("Random labels learned by heart", "死记随机标签"),
        ),
        Picture(
            "affine-straight",
            lambda: _straight_dots(result, say),
            say(
                "Share of the sigmoids' output that a straight line explains, a dot for each seed.",
                "直线能解释的 sigmoid 输出的比例，每个种子一个点。",
            ),
            say(
                "How straight the sigmoids are where they are used, without gamma and beta and with them",
                "sigmoid 在实际使用范围内有多直：没有 gamma 和 beta，与有",
            ),
        ),
        learned["gamma"],
        learned["beta"],
    )


COLOURS: Mapping[str, str] = {
    WITHOUT: style.WITHOUT,
    NO_AFFINE: style.THIRD,
    WITH: style.WITH,
    ONE_PAIR: style.FOURTH,
}


def _by_heart_curves(result: Result, say: Say) -> Any:
    drawn = []
    for condition in (WITH, NO_AFFINE, WITHOUT):
        if condition in conditions(result, "accuracy", labels="random"):
            steps, heights = result.curves("accuracy", "step", labels="random", condition=condition)
            drawn.append(Line(condition_name(condition, say), steps, heights, COLOURS[condition]))
    x = Axis(say("training step", "训练步数"), low=0)
    y = Axis(say("labels known by heart", "记住的标签"), percent=True, low=0.0, high=1.0)
    return figures.lines(drawn, x, y, level=median(result.numbers("accuracy of a linear map")))


def _straight_dots(result: Result, say: Say) -> Any:
    has = {NO_AFFINE: say("without", "没有"), WITH: say("with", "有")}
    rows = [
        Dots(
            f"{labels_name(labels, say)}{say(', ', '，')}{has[condition]}",
            straightness(result, condition, labels),
            COLOURS[condition],
        )
        for labels in with_sigmoids(result)
        for condition in (NO_AFFINE, WITH)
    ]
    axis = Axis(say("explained by a straight line", "直线能解释的比例"), percent=True, high=1.0)
    return figures.dots(rows, axis, level=NORMAL)


def _trace(result: Result, network: str, what: str, start: float, say: Say) -> Any:
    quantiles = sorted(
        {float(str(r.where["quantile"])) for r in result.pick(what, network=network) if "quantile" in r.where}
    )
    bands = [result.curves(what, "step", network=network, quantile=quantile) for quantile in quantiles]
    drawn = [Line(say("median", "中位数"), bands[0][0], [rows[0] for _, rows in bands], style.WITH)]
    channels = [r.where["channel"] for r in result.pick(what, network=network) if "channel" in r.where]
    for channel, colour in zip(
        dict.fromkeys(channels), (style.WITHOUT, style.THIRD, style.FOURTH), strict=False
    ):
        steps, rows = result.curves(what, "step", network=network, channel=channel)
        name = say(f"channel {int(str(channel)) + 1}", f"通道 {int(str(channel)) + 1}")
        drawn.append(Line(name, steps, rows[0], colour))
    return figures.lines(drawn, Axis(say("training step", "训练步数"), low=0), Axis(what), level=start)


def condition_name(condition: str, say: Say) -> str:
    """A condition in the reader's language."""
    words = {
        WITHOUT: say("without BN", "无 BN"),
        NO_AFFINE: say("no gamma, beta", "无 gamma、beta"),
        WITH: say("full BN", "完整的 BN"),
        ONE_PAIR: say("one pair for the layer", "整层共用一对"),
        NO_BIAS: say("full BN, no bias", "完整的 BN，无偏置"),
        AFTER: say("BN after activation", "BN 在激活之后"),
    }
    return words[condition]


def labels_name(labels: str, say: Say) -> str:
    """Which labels were learned, in the reader's language."""
    return say("random labels", "随机标签") if labels == "random" else say("true labels", "真实标签")


def _rate(result: Result, condition: str, **where: Any) -> str:
    (record,) = result.pick("chosen rate", condition=condition, **where)
    edge = {"lowest": " (≤)", "highest": " (≥)"}.get(str(record.where["edge"]), "")
    return f"{record.value:g}{edge}"


def _edge_note(say: Say) -> str:
    return say(
        "≤, ≥: the lowest or highest rate tried; a better one may lie beyond.",
        "≤、≥：所尝试的最低或最高学习率；更好的值可能在此之外。",
    )


def by_heart(result: Result, say: Say) -> Table:
    """Learning random labels by heart, a row for each condition."""

    def middle(values: Sequence[float]) -> str:
        return told(Spread(min(values), median(values), max(values)), WHOLE_PERCENT, say)

    return Table(
        title=say("Sigmoid MLP, random labels", "sigmoid MLP，随机标签"),
        columns=(
            "",
            say("rate", "学习率"),
            say("known by heart", "记住的比例"),
            say("straight line", "直线"),
            say("inputs within 1", "|输入|<1"),
        ),
        rows=tuple(
            (
                condition_name(condition, say),
                _rate(result, condition, labels="random"),
                middle(result.numbers("train accuracy", labels="random", condition=condition)),
                middle(straightness(result, condition, "random")),
                middle(result.numbers("inputs in the linear part", labels="random", condition=condition)),
            )
            for condition in conditions(result, "train accuracy", labels="random")
        ),
        note=say(
            "Straight line: share of the sigmoids' output that it explains, mean over the layers. Inputs within 1: "
            "share of the sigmoids' inputs between -1 and 1, range over layers and seeds. ",
            "直线：它能解释的 sigmoid 输出的比例，各层平均。|输入|<1：sigmoid 的输入在 -1 与 1 之间的比例，"
            "范围取自各层和各种子。",
        )
        + _edge_note(say),
    )


def network_table(result: Result, network: str, say: Say) -> Table:
    """The true labels, a row for each condition."""

    def cell(what: str, condition: str) -> Spread:
        return result.spread(what, network=network, labels="true", condition=condition)

    return Table(
        title=say(f"{network}, true labels", f"{network}，真实标签"),
        columns=(
            "",
            say("rate", "学习率"),
            say("train loss", "训练损失"),
            say("train accuracy", "训练准确率"),
            say("test accuracy", "测试准确率"),
        ),
        rows=tuple(
            (
                condition_name(condition, say),
                _rate(result, condition, network=network, labels="true"),
                told(cell("train loss", condition), SHORT, say),
                told(cell("train accuracy", condition), PERCENT, say),
                told(cell("test accuracy", condition), PERCENT, say),
            )
            for condition in conditions(result, "test accuracy", network=network)
        ),
        note=_edge_note(say),
    )


def layers(result: Result, say: Say) -> Table:
    """Where gamma and beta of each layer ended."""

    def row(network: str, labels: str, layer: int, what: str, share: float) -> tuple[str, ...]:
        where: dict[str, Any] = {"network": network, "labels": labels, "layer": layer, "of": what}
        return (
            f"{network}, {labels_name(labels, say)}",
            f"{what} {layer}",
            told(result.spread("mean over channels", **where), SHORT, say),
            told(result.spread("deviation across channels", **where), SHORT, say),
            WHOLE_PERCENT(share),
        )

    return Table(
        title=say("Gamma and beta at the end, layer by layer", "训练结束时各层的 gamma 和 beta"),
        columns=(
            "",
            say("layer", "层"),
            say("mean", "均值"),
            say("across channels", "通道间标准差"),
            say("own", "各自"),
        ),
        rows=tuple(row(*key, share) for key, share in own_shares(result).items()),
        note=say(
            "Own: the channels' own share of the squared moves from 1 and 0; the rest is what all move together.",
            "各自：在从 1 和 0 出发的移动（平方）中，各通道自己所占的比例；其余是共同的移动。",
        ),
    )
