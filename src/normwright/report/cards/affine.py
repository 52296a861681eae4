"""Gamma and beta told: what is lost without them, how they are learned, where the layer stands, what it leaves."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from normwright.report.cards import affine_shown as shown
from normwright.report.cards.affine_shown import (
    AFTER,
    NO_AFFINE,
    NO_BIAS,
    NORMAL,
    ONE_PAIR,
    WITH,
    WITHOUT,
    conditions,
    judged,
    labels_name,
    own_shares,
    straightness,
    with_sigmoids,
)
from normwright.report.document import Card, Verdict, outcome
from normwright.report.result import Result
from normwright.report.summary import PERCENT, SHORT, WHOLE_PERCENT, difference, spread, told
from normwright.report.words import Say

# Two accuracies are as good when they are this close: a little more than the standard error of an accuracy of
# 0.97 measured on 497 images, sqrt(0.97 * 0.03 / 497) = 0.008.
AS_WELL = 0.01
# How much of a sigmoid's output the best straight line explains when its input has mean 0 and variance 1: 0.984
# for the normal distribution, and still 0.953 for Laplace's, whose tails are far heavier. Below, it is curved.
STRAIGHT = 0.95
HALF = (
    0.5  # of the squared moves of gamma or beta: with more, what a channel does alone outweighs what all do
)
# A gradient that is a sum of m numbers, each rounded in float32 a few times (2^-24 each) and exact otherwise, is at
# worst m * 2^-23 of their sizes when the numbers cancel; here m is the batch of 60.
ROUNDING = 60 * 2.0**-23
# Next to a bias of size 3, an input with deviations of 0.3 is rounded to 3 / 0.3 * 2^-24 = 6e-7 of its deviation; a
# hundred times that is still far below what moves a prediction.
SAME = 1e-4
# x is read back from y to float32's rounding over the smallest gamma, 2^-24 / 0.001 and some; a thousandth of a
# deviation tells any two inputs apart that a network could.
RECOVERED = 1e-3


def card(result: Result, say: Say) -> Card:
    """The card of gamma and beta."""
    return Card(
        name=result.name,
        title=say("Gamma and beta, and where BN stands", "gamma 与 beta，以及 BN 的位置"),
        claim=say(
            "Normalizing alone keeps a sigmoid in its linear part and costs capacity, which gamma and beta, "
            "learned for each channel, give back; BN stands before the activation, and the bias before it is "
            "redundant.",
            "单纯的归一化会使 sigmoid 停留在线性区并损失表达能力，而为每个通道学习的 gamma 和 beta 把它还回来；"
            "BN 放在激活之前，它前面的偏置是多余的。",
        ),
        done=say(
            "Capacity: a network has to learn by heart labels that were drawn at random, which no linear map can. "
            "Placement, bias and what is left of the features: on the true labels. "
            + _chosen(result, Say("en")),
            "表达能力：网络必须死记随机抽取的标签，线性映射做不到。位置、偏置以及特征的保留：使用真实标签。"
            + _chosen(result, Say("zh")),
        ),
        verdicts=_verdicts(result, say),
        pictures=shown.pictures(result, say),
        see=say(
            "Dashed in the first picture: what the best linear map of the images learns by heart. Gamma and beta "
            "start at 1 and 0 for all channels and part; bands hold 80 % of the channels.",
            "第一幅图中的虚线：图像的最佳线性映射能记住的比例。所有通道的 gamma 和 beta 从 1 和 0 出发，"
            "然后各走各路；色带包含 80 % 的通道。",
        ),
        tables=(
            shown.by_heart(result, say),
            *(shown.network_table(result, name, say) for name in judged(result)),
        ),
        details=(shown.layers(result, say),),
        command=result.command,
    )


def _chosen(result: Result, say: Say) -> str:
    if _fixed(result):
        return say("Rates were fixed beforehand.", "学习率事先固定。")
    return say(
        "Every condition chooses its rate from the same grid, on the validation images (for random labels: by what "
        "is learned).",
        "每种条件从同一网格中选择学习率，依据验证图像（随机标签则依据记住的比例）。",
    )


def _fixed(result: Result) -> bool:
    return all(record.where["edge"] == "fixed" for record in result.pick("chosen rate"))


def _both(result: Result, *wanted: str) -> list[str]:
    """The networks that learned the true labels in all of the conditions `wanted`."""
    names = judged(result)
    return [n for n in names if set(wanted) <= set(conditions(result, "test accuracy", network=n))]


# --- verdicts ---------------------------------------------------------


def _verdicts(result: Result, say: Say) -> tuple[Verdict, ...]:
    told_of = [capacity(result, say), straight(result, say), accuracy(result, say)]
    told_of += [before(result, say), after(result, say), bias(result, say), per_channel(result, say)]
    if ONE_PAIR in conditions(result, "train accuracy"):
        told_of.append(pairs(result, say))
    return (*told_of, features(result, say))


def capacity(result: Result, say: Say) -> Verdict:
    """With gamma and beta more random labels are learned by heart: the worst seed above the best without them."""
    full, bare = (
        result.numbers("train accuracy", labels="random", condition=condition)
        for condition in (WITH, NO_AFFINE)
    )
    linear = WHOLE_PERCENT(median(result.numbers("accuracy of a linear map")))
    words = [told(spread(side), WHOLE_PERCENT, say) for side in (full, bare)]
    return Verdict(
        say("Gamma and beta give capacity back", "gamma 和 beta 把表达能力还回来"),
        outcome(min(full) > max(bare), median(full) > median(bare)),
        say(
            f"In the same number of steps the sigmoid network learned {words[0]} of random labels by heart with "
            f"gamma and beta, {words[1]} without; a linear map alone: {linear}.",
            f"用同样的步数，sigmoid 网络有 gamma 和 beta 时记住了 {words[0]} 的随机标签，没有时为 {words[1]}；"
            f"单靠线性映射：{linear}。",
        ),
    )


def straight(result: Result, say: Say) -> Verdict:
    """Without gamma and beta the sigmoids stay straight, and with them they are less so, seed by seed."""
    stays, less, words = [], [], []
    for labels in with_sigmoids(result):
        bare, full = (straightness(result, condition, labels) for condition in (NO_AFFINE, WITH))
        stays.append(min(bare) >= STRAIGHT)
        less.append(all(w < o for w, o in zip(full, bare, strict=True)))
        ends = [told(spread(side), PERCENT, say) for side in (bare, full)]
        name = labels_name(labels, say)
        words.append(
            say(f"{name} {ends[0]} without, {ends[1]} with", f"{name} 没有时 {ends[0]}，有时 {ends[1]}")
        )
    return Verdict(
        say("Without gamma and beta a sigmoid stays linear", "没有 gamma 和 beta，sigmoid 停留在线性区"),
        outcome(all(stays) and all(less), any(s and part for s, part in zip(stays, less, strict=True))),
        say(
            f"How much of the sigmoids' output the best straight line explains: {'; '.join(words)}. For a normal "
            f"input it is {PERCENT(NORMAL)}.",
            f"最佳直线能解释的 sigmoid 输出的比例：{'；'.join(words)}。输入为标准正态分布时是 {PERCENT(NORMAL)}。",
        ),
    )


def _better(
    result: Result, first: str, second: str, names: Sequence[str], say: Say
) -> tuple[list[bool], list[bool], list[str]]:
    """By network: the first condition clearly better than the second, better by more than noise, both in words."""
    clear, higher, words = [], [], []
    for name in names:
        sides = [
            result.numbers("test accuracy", network=name, labels="true", condition=c) for c in (first, second)
        ]
        clear.append(min(sides[0]) > max(sides[1]))
        higher.append(median(sides[0]) > median(sides[1]) + AS_WELL)
        words.append(f"{name} " + " / ".join(told(spread(side), PERCENT, say) for side in sides))
    return clear, higher, words


def accuracy(result: Result, say: Say) -> Verdict:
    """On the true labels too, gamma and beta help: the worst seed above the best without, or by more than noise."""
    clear, higher, words = _better(result, WITH, NO_AFFINE, _both(result, WITH, NO_AFFINE), say)
    return Verdict(
        say("They raise the test accuracy", "它们提高测试准确率"),
        outcome(all(clear), any(higher)),
        say(
            f"With gamma and beta / without, true labels: {'; '.join(words)}.",
            f"有 gamma 和 beta / 没有，真实标签：{'；'.join(words)}。",
        ),
    )


def before(result: Result, say: Say) -> Verdict:
    """The paper's placement is the better: before the activation, on every network, or by more than noise."""
    clear, higher, words = _better(result, WITH, AFTER, _both(result, WITH, AFTER), say)
    return Verdict(
        say("Before the activation is better (the paper)", "放在激活之前更好（论文）"),
        outcome(all(clear), any(higher)),
        say(f"Before / after: {'; '.join(words)}.", f"之前 / 之后：{'；'.join(words)}。"),
    )


def after(result: Result, say: Say) -> Verdict:
    """Later practice: after the activation works as well, but for noise."""
    names = _both(result, WITH, AFTER)
    _, worse, _ = _better(result, WITH, AFTER, names, say)
    _, better, words = _better(result, AFTER, WITH, names, say)
    count = sum(better)
    return Verdict(
        say("After the activation works as well (later practice)", "放在激活之后同样可行（后来的做法）"),
        outcome(not any(worse), not all(worse)),
        say(
            f"After / before: {'; '.join(words)}. After is worse by more than a point on {sum(worse)} of "
            f"{len(names)} networks, better on {count}.",
            f"之后 / 之前：{'；'.join(words)}。{len(names)} 个网络中，之后差一个百分点以上的有 {sum(worse)} 个，"
            f"好一个百分点以上的有 {count} 个。",
        ),
    )


def bias(result: Result, say: Say) -> Verdict:
    """The bias before BN gets no gradient, changes no output and no accuracy."""
    left = max(result.numbers("bias gradient left", condition=WITH))
    base = median(result.numbers("bias gradient left", condition=WITHOUT))
    moved = max(result.numbers("logits moved by a bias"))
    apart = max(
        abs(w - o)
        for name in _both(result, WITH, NO_BIAS)
        for w, o in zip(
            result.numbers("test accuracy", network=name, condition=WITH),
            result.numbers("test accuracy", network=name, condition=NO_BIAS),
            strict=True,
        )
    )
    no_gradient = left <= ROUNDING
    return Verdict(
        say("The bias before BN is redundant", "BN 之前的偏置是多余的"),
        outcome(no_gradient and moved <= SAME and apart <= AS_WELL, no_gradient),
        say(
            f"Its gradient is {difference(left, say)} of the sizes of its summands (rounding; without BN "
            f"{SHORT(base)}); drawing it anew moves the logits by {difference(moved, say)} of the largest. Test "
            f"accuracy trained with it and without: the largest difference between equal seeds is "
            f"{difference(apart, say)}.",
            f"它的梯度是各被加项大小之和的 {difference(left, say)}（舍入误差；无 BN 时为 {SHORT(base)}）；"
            f"重新抽取它，logits 的变化为最大值的 {difference(moved, say)}。有它与没有它训练，"
            f"同一种子的测试准确率的最大差为 {difference(apart, say)}。",
        ),
    )


def per_channel(result: Result, say: Say) -> Verdict:
    """Channels go their own ways: in every layer their own moves outweigh the common one, or in some."""
    shares = own_shares(result)
    own = sum(share > HALF for share in shares.values())
    where: dict[str, Any] = {"network": judged(result)[0], "labels": "true", "layer": 1}
    spreads = {
        what: told(result.spread("deviation across channels", of=what, **where), SHORT, say)
        for what in ("gamma", "beta")
    }
    return Verdict(
        say("Each channel learns its own gamma and beta", "每个通道学到自己的 gamma 和 beta"),
        outcome(own == len(shares), own > 0),
        say(
            f"All start equal; at the end their standard deviation across channels is {spreads['gamma']} for gamma "
            f"and {spreads['beta']} for beta ({judged(result)[0]}, first layer). In {own} of {len(shares)} gammas "
            "and betas of layers the channels' own moves are more than half of all (squared); in the others the "
            "move that all channels share is the larger.",
            f"起点都相同；最后各通道之间的标准差，gamma 为 {spreads['gamma']}，beta 为 {spreads['beta']}"
            f"（{judged(result)[0]}，第一层）。在 {len(shares)} 组（每层的 gamma 或 beta）中，有 {own} 组中，"
            "各通道自己的移动占全部（平方）的一半以上；其余各组中，所有通道共同的移动更大。",
        ),
    )


def pairs(result: Result, say: Say) -> Verdict:
    """A pair for each channel is better than one for the layer: at random labels, and on the true ones."""
    clear, higher, words = _better(result, WITH, ONE_PAIR, _both(result, WITH, ONE_PAIR), say)
    full, one = (
        result.numbers("train accuracy", labels="random", condition=condition)
        for condition in (WITH, ONE_PAIR)
    )
    clear.append(min(full) > max(one))
    higher.append(median(full) > median(one) + AS_WELL)
    ends = " / ".join(told(spread(side), PERCENT, say) for side in (full, one))
    words.append(f"{labels_name('random', say)} {ends}")
    return Verdict(
        say("One pair for a whole layer would not do", "整层共用一对 gamma 和 beta 不够用"),
        outcome(all(clear), any(higher)),
        say(
            f"A pair for each channel / one for the layer: {'; '.join(words)}.",
            f"每个通道一对 / 整层一对：{'；'.join(words)}。",
        ),
    )


def features(result: Result, say: Say) -> Verdict:
    """Nothing that a linear classifier reads is lost, and the input can be had back from the output."""
    probe = {place: result.numbers("accuracy of a probe", place=place) for place in ("before BN", "after BN")}
    kept = median(probe["after BN"]) >= median(probe["before BN"]) - AS_WELL
    error = max(math.inf if value is None else value for value in result.values("input recovered to"))
    smallest = min(result.numbers("smallest gamma"))
    words = [told(spread(side), PERCENT, say) for side in probe.values()]
    return Verdict(
        say("Features are not destroyed", "特征没有被破坏"),
        outcome(kept and error <= RECOVERED, kept or error <= RECOVERED),
        say(
            f"A linear classifier on the hidden layer is right for {words[0]} of the test images before BN and "
            f"{words[1]} after it. The input is recovered from the output to {difference(error, say)} of a "
            f"standard deviation (smallest gamma {SHORT(smallest)}; only a gamma of 0 would forget its channel).",
            f"隐藏层上的线性分类器，BN 之前的测试准确率为 {words[0]}，之后为 {words[1]}。由输出恢复输入，"
            f"误差为标准差的 {difference(error, say)}（最小的 gamma 为 {SHORT(smallest)}；"
            "只有 gamma 为 0 才会丢掉该通道）。",
        ),
    )
