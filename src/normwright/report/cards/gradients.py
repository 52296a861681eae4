"""Gradients told: what depth and the scale of the first weights do to them, with BN and without."""

import math
from statistics import median

from normwright.report.cards import gradients_shown as shown
from normwright.report.cards.gradients_shown import (
    AFTER,
    BEFORE,
    WITH,
    WITHOUT,
    YANG,
    arrived,
    measured,
    short,
)
from normwright.report.document import Card, Verdict, outcome
from normwright.report.result import Result
from normwright.report.summary import WHOLE_PERCENT
from normwright.report.words import Say

CLAIMED = {0.9: 30, 1.1: 100}  # the sources' arithmetic: 0.9^30 and 1.1^100
# A measured power agrees with its arithmetic when it is this close: one layer more or less makes 9 % and more.
LAW = 0.05
# A gradient is kept when it arrives no more than ten times larger or smaller: one learning rate, which is chosen in
# steps of half a decade, still suits both ends.
KEPT = 10.0
# Activations have shrunk when a tenth of their scale is left, and are steady when they stay within a factor of two.
SHRUNK, STEADY = 0.1, 2.0
# Out of saturation: of a standard normal, which is what BN makes, 6.9 % lie where tanh is saturated (beyond 1.82);
# a tenth leaves room for inputs that are not normal.
SATURATED = 0.1
# A scale trains when it ends with this share of the best accuracy of either side at any scale: half-trained
# networks fall below it, and the noise of one validation set (about 0.01) does not decide.
TRAINS = 0.9
# Gradients explode when they grow by more than this per layer: over 60 layers that is a factor of 19.
EXPLODES = 1.05


def card(result: Result, say: Say) -> Card:
    """The card of gradients, saturation and the scale of the first weights."""
    mixed = result.each("step over weights", "scales", when=AFTER)
    return Card(
        name=result.name,
        title=say("Gradients, saturation and first weights", "梯度、饱和与初始权重"),
        claim=say(
            "Without batch normalization (BN), gradients vanish or explode with depth (0.9^30 = 0.04, "
            "1.1^100 = 13781), activations shrink, sigmoid and tanh saturate, and the first weights need care; "
            "BN removes the scale of the weights and with it these troubles.",
            "没有批量归一化（BN）时，梯度随深度消失或爆炸（0.9^30 = 0.04，1.1^100 = 13781），激活值逐层缩小，"
            "sigmoid 和 tanh 陷入饱和，初始权重需要小心选择；BN 消除了权重的尺度，也就消除了这些麻烦。",
        ),
        done=say(
            "Chains whose layers multiply the backward signal by 0.9 or 1.1; deep ReLU networks before training; "
            "and a network of three hidden layers whose first weights are torch's times a scale, trained at one "
            f"learning rate per side, chosen at scale 1. Images of 8x8 pixels, {result.settings['seeds']} seeds; "
            "lines are medians, bands the range.",
            "各层把反向信号乘以 0.9 或 1.1 的链；训练前的深层 ReLU 网络；以及三个隐藏层的网络，其初始权重为 torch "
            "默认值乘以一个尺度，两边各用一个在尺度 1 处选出的学习率。图像为 8x8 像素，"
            f"{result.settings['seeds']} 个随机种子；线为中位数，色带为范围。",
        ),
        verdicts=(
            *(kept(result, factor, depth, say) for factor, depth in judged(result)),
            activations(result, say),
            saturation(result, say),
            even_steps(result, say),
            *((mixed_steps(result, say),) if mixed else ()),
            less_care(result, say),
            explosion(result, say),
        ),
        pictures=shown.pictures(result, say),
        see=say(
            "A level line is a gradient that is kept, or a result that does not depend on the scale of the first "
            "weights. In the last picture a rising line is an explosion.",
            "水平线表示梯度得以保持，或结果不取决于初始权重的尺度。最后一幅图中，上升的线表示梯度爆炸。",
        ),
        tables=(
            shown.chains(result, say),
            *(shown.accuracies(result, activation, say) for activation in shown.trained(result)),
        ),
        details=(
            shown.deep(result, say),
            *(shown.steps(result, name, say) for name in result.each("step over weights", "activation")),
            *(shown.rates(result, activation, say) for activation in shown.trained(result)),
        ),
        command=result.command,
    )


# --- verdicts ---------------------------------------------------------


def judged(result: Result) -> list[tuple[float, int]]:
    """The linear chains that are judged: of each factor the claimed depth, or the deepest where it is missing."""
    found: list[tuple[float, int]] = []
    for factor in result.each("gradient in the chain", "factor", activation="linear"):
        depths = result.each("gradient in the chain", "depth", activation="linear", factor=factor)
        found.append((factor, next((d for d in depths if d == CLAIMED.get(factor)), max(depths))))
    return found


def kept(result: Result, factor: float, depth: int, say: Say) -> Verdict:
    """Without BN the gradient is multiplied by the factor to the power of the depth; with BN it is kept."""
    without, with_norm = (arrived(result, c, factor, depth, "linear") for c in (WITHOUT, WITH))
    law = factor**depth
    as_law = all(abs(ratio / law - 1) < LAW for ratio in without)
    is_kept = all(1 / KEPT < ratio < KEPT for ratio in with_norm)
    nearer = abs(math.log(median(with_norm))) < abs(math.log(median(without)))
    power = f"{factor:g}^{depth} = {short(law)}"
    en, zh = ("vanish", "消失") if factor < 1 else ("explode", "爆炸")
    arriving = measured(without), measured(with_norm)
    return Verdict(
        say(
            f"In a linear chain, gradients {en} as {factor:g}^{depth} without BN and are kept with it",
            f"在线性链中，无 BN 时梯度按 {factor:g}^{depth} {zh}，有 BN 时得以保持",
        ),
        outcome(as_law and is_kept, nearer),
        say(
            f"Back through {depth} linear layers, the gradient is multiplied by {arriving[0]} without BN ({power}) "
            f"and by {arriving[1]} with it.",
            f"反向穿过 {depth} 个线性层，无 BN 时梯度变为 {arriving[0]} 倍（{power}），"
            f"有 BN 时变为 {arriving[1]} 倍。",
        ),
    )


def activations(result: Result, say: Say) -> Verdict:
    """From the first to the last layer of the deep network, activations shrink without BN and do not with it."""
    left = {}
    for condition in (WITH, "default", "He"):
        layers = result.each("scale of activations", "layer", condition=condition)
        ends = [
            result.numbers("scale of activations", condition=condition, layer=layer)
            for layer in (min(layers), max(layers))
        ]
        left[condition] = [last / first for first, last in zip(*ends, strict=True)]
    depth = max(layers)
    shrinks = max(left["default"]) < SHRUNK
    steady = all(1 / STEADY < ratio < STEADY for ratio in left[WITH])
    words = {condition: measured(ratios) for condition, ratios in left.items()}
    return Verdict(
        say(
            "Activations shrink with depth without BN, not with it", "无 BN 时激活值随深度缩小，有 BN 时不会"
        ),
        outcome(shrinks and steady, median(left[WITH]) > median(left["default"])),
        say(
            f"Standard deviation over the images, layer {depth} over layer 1 of a ReLU network: {words['default']} "
            f"from torch's first weights, {words['He']} from He's, {words[WITH]} with BN.",
            f"ReLU 网络第 {depth} 层与第 1 层在图像间的标准差之比：torch 默认初始化 {words['default']}，He 初始化 "
            f"{words['He']}，有 BN {words[WITH]}。",
        ),
    )


def saturation(result: Result, say: Say) -> Verdict:
    """With BN no scale of the first weights saturates sigmoid or tanh: before training and after, or before it."""
    before = shown.saturated(result, BEFORE)
    after = shown.saturated(result, AFTER)

    def worst(found: dict[str, dict[str, float]], condition: str) -> float:
        return max((sides[condition] for sides in found.values()), default=0.0)

    def words(found: dict[str, dict[str, float]]) -> str:
        return say("; ", "；").join(
            say(
                f"{name} up to {WHOLE_PERCENT(sides[WITH])} with BN, {WHOLE_PERCENT(sides[WITHOUT])} without",
                f"{name} 有 BN 至多 {WHOLE_PERCENT(sides[WITH])}，无 BN 至多 {WHOLE_PERCENT(sides[WITHOUT])}",
            )
            for name, sides in found.items()
        )

    out = worst(before, WITH) <= SATURATED < worst(before, WITHOUT)
    return Verdict(
        say("Sigmoid and tanh stay out of saturation with BN", "有 BN 时 sigmoid 和 tanh 不陷入饱和"),
        outcome(out and worst(after, WITH) <= SATURATED, out),
        say(
            f"Saturated at the worst scale, before training: {words(before)}; after it: {words(after)}.",
            f"最差尺度下的饱和比例，训练前：{words(before)}；训练后：{words(after)}。",
        ),
    )


def even_steps(result: Result, say: Say) -> Verdict:
    """Where all layers begin at one scale, the worst spread of their steps over the scales is smaller with BN."""
    worst = {
        name: {c: shown.worst(result, name, c, BEFORE, "scale") for c in (WITHOUT, WITH)}
        for name in result.each("step over weights", "activation", when=BEFORE)
    }
    smaller = [sides[WITH] < sides[WITHOUT] for sides in worst.values()]
    return Verdict(
        say(
            "BN evens out the steps of the layers, whatever their scale",
            "无论尺度如何，BN 都使各层的步长更均匀",
        ),
        outcome(all(smaller), any(smaller)),
        say(
            "Largest over smallest relative step among the layers, before training, at the worst scale: "
            f"{shown.pairs(worst, say)}.",
            f"训练前各层相对步长的最大值与最小值之比，取最差尺度：{shown.pairs(worst, say)}。",
        ),
    )


def mixed_steps(result: Result, say: Say) -> Verdict:
    """Where each layer begins at its own scale, training with BN leaves a smaller spread: always, or somewhere."""
    smaller, worst = [], {}
    for name in shown.trained(result):
        spreads = {c: shown.spreads(result, name, c, AFTER, "scales") for c in (WITHOUT, WITH)}
        smaller += [spreads[WITH][scales] < spreads[WITHOUT][scales] for scales in spreads[WITH]]
        worst[name] = {c: max(found.values()) for c, found in spreads.items()}
    before = {
        name: {c: shown.worst(result, name, c, BEFORE, "scales") for c in (WITHOUT, WITH)} for name in worst
    }
    return Verdict(
        say("BN evens out the steps of differently scaled layers", "BN 使尺度不同的各层步长趋于均匀"),
        outcome(all(smaller), any(smaller)),
        say(
            "Largest over smallest relative step where the layers begin at different scales, before training: "
            f"{shown.pairs(before, say)}; after it: {shown.pairs(worst, say)}.",
            f"各层初始尺度不同时，相对步长的最大值与最小值之比，训练前：{shown.pairs(before, say)}；"
            f"训练后：{shown.pairs(worst, say)}。",
        ),
    )


def less_care(result: Result, say: Say) -> Verdict:
    """More scales of the first weights train with BN than without: for every activation, or for some."""
    more, words = [], []
    for name in shown.trained(result):
        tried = result.each("late validation accuracy", "scale", activation=name, scales=None)
        trains = {c: scales_that_train(result, name, c) for c in (WITHOUT, WITH)}
        more.append(len(trains[WITH]) > len(trains[WITHOUT]))
        counts = [
            f"{len(found)}" + (f" ({min(found):g}–{max(found):g})" if found else "")
            for found in trains.values()
        ]
        words.append(
            say(
                f"{name} {counts[1]} of {len(tried)} with, {counts[0]} without",
                f"{name}：{len(tried)} 个中，有 BN {counts[1]} 个，无 BN {counts[0]} 个",
            )
        )
    return Verdict(
        say("The first weights need less care with BN", "有 BN 时，初始权重不必那么小心选择"),
        outcome(all(more), any(more)),
        say(
            f"Scales that reach {WHOLE_PERCENT(TRAINS)} of the best accuracy: {'; '.join(words)}.",
            f"达到最佳准确率的 {WHOLE_PERCENT(TRAINS)} 的尺度：{'；'.join(words)}。",
        ),
    )


def scales_that_train(result: Result, activation: str, condition: str) -> list[float]:
    """The scales whose median accuracy is at least `TRAINS` of the best median of either side."""
    medians = {c: shown.medians(result, activation, c) for c in (WITHOUT, WITH)}
    best = max(height for heights in medians.values() for height in heights.values())
    return [scale for scale, height in medians[condition].items() if height >= TRAINS * best]


def explosion(result: Result, say: Say) -> Verdict:
    """With BN the gradient grows in every layer back, for every depth and seed, and without BN it does not."""
    grown, lowest = [], []
    for depth in result.each("growth per layer", "depth"):
        with_norm, without = (
            result.numbers("growth per layer", depth=depth, condition=c) for c in (WITH, "He")
        )
        grown.append(median(with_norm))
        lowest.append(min(with_norm) > max(EXPLODES, *without))
    words = {c: measured(result.numbers("growth per layer", depth=depth, condition=c)) for c in (WITH, "He")}
    tanh = result.values("gradient in the chain", activation="tanh", condition=WITH, factor=1.1, depth=100)
    arriving = measured([value for value in tanh if value is not None]) if tanh else ""
    return Verdict(
        say(
            "BN itself makes gradients explode in deep networks without skips",
            "在没有跳跃连接的深层网络中，BN 本身使梯度爆炸",
        ),
        outcome(all(lowest), max(grown) > EXPLODES),
        say(
            f"In {depth} ReLU layers before training, the gradient grows {words[WITH]} times per layer back with "
            f"BN (theory: {YANG:.2f}, in all {short(YANG ** (depth - 1))}), {words['He']} times without it from "
            f"He's first weights.",
            f"训练前的 {depth} 个 ReLU 层中，有 BN 时梯度每向后一层变为 {words[WITH]} 倍（理论：{YANG:.2f}，"
            f"累计 {short(YANG ** (depth - 1))} 倍），无 BN 且用 He 初始化时为 {words['He']} 倍。",
        )
        + (
            say(
                f" Through 100 tanh layers (the chain of 1.1) it is multiplied by {arriving} with BN.",
                f"穿过 100 个 tanh 层（系数 1.1 的链），有 BN 时梯度变为 {arriving} 倍。",
            )
            if tanh
            else ""
        ),
    )
