"""Checks of what is learned beside the statistics, of how they move, and of one layer against the others."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from normwright.doctor.findings import Finding, Severity
from normwright.doctor.layer import LayerState
from normwright.doctor.statistics_checks import RECALIBRATE, is_beside_trained, where

# A thousandth of what is usual in the layer: bfloat16 and float16 resolve 1/256 and 1/2048 of a number, so beside
# the other channels little is left of this one, whatever reads the output.
DEAD = 1e-3
# torch's momentum is the weight of the new batch: 0.1, or less. Other frameworks' is the weight of the old value:
# 0.9, 0.99, 0.999. From here on it is likelier theirs; between that and 0.5 it is at least unusual.
OTHER_CONVENTION, UNUSUAL = 0.9, 0.5
# Counters of one run are equal. Half as much again, or half, is more than a few batches that were left out.
MORE, FEWER = 1.5, 0.5


def weights_not_finite(layers: Sequence[LayerState]) -> Iterator[Finding]:
    """gamma or beta is NaN or infinite: so is the output."""
    for layer in layers:
        bad = np.zeros(layer.channels, bool)
        for weights in (layer.weight, layer.bias):
            if weights is not None:
                bad |= ~np.isfinite(weights)
        if bad.any():
            yield Finding(
                "weights not finite",
                "error",
                layer.name,
                "channels with NaN or infinity",
                int(bad.sum()),
                "channels",
                "The weight or the bias is NaN or infinite: training has diverged, or a type has overflowed.",
                "Go back to a checkpoint before it; new statistics do not help.",
                where(bad),
                layer.channels,
            )


def dead_weights(layers: Sequence[LayerState]) -> Iterator[Finding]:
    """gamma near 0: the channel's output is its bias, whatever the input."""
    for layer in layers:
        if layer.weight is None or not np.isfinite(layer.weight).all():
            continue
        size = np.abs(layer.weight)
        usual = float(np.median(size))
        if not size.any():
            yield _dead(
                layer,
                "note",
                0.0,
                (),
                "Every weight of the layer is 0. A branch that was initialized so (zero_init_residual) starts like "
                "this; after training it means that the branch adds nothing but its bias.",
                "Nothing to do before training. After it, look whether the weight gets a gradient.",
            )
        elif (bad := where(size <= DEAD * usual)) or usual == 0:
            bad = bad or where(size == 0)
            yield _dead(
                layer,
                "warning",
                float(size[list(bad)].min()),
                bad,
                "The weight of these channels is below a thousandth of the layer's median: their output is their "
                "bias, whatever comes in. Weight decay on weights of batch norm does this.",
                "They can be pruned. Keep decay off: torch.optim.SGD(nw.param_groups(model, weight_decay), ...).",
            )


def _dead(
    layer: LayerState, severity: Severity, value: float, bad: tuple[int, ...], cause: str, remedy: str
) -> Finding:
    quantity, unit = "smallest |weight|", "output"
    return Finding(
        "dead weights", severity, layer.name, quantity, value, unit, cause, remedy, bad, layer.channels
    )


def momentum(layers: Sequence[LayerState]) -> Iterator[Finding]:
    """Statistics that never move, that are the last batch alone, or that move as another framework meant it."""
    for layer in layers:
        if layer.settings is None or layer.frozen or layer.settings.momentum is None:
            continue
        value = layer.settings.momentum
        told = _momentum_told(value)
        if told is not None:
            severity, cause, remedy = told
            yield Finding(
                "momentum",
                severity,
                layer.name,
                "momentum",
                float(value) if np.isfinite(value) else None,
                "fraction",
                cause,
                remedy,
                of=layer.channels,
            )


def _momentum_told(value: float) -> tuple[Severity, str, str] | None:
    usual = "torch's is the weight of the NEW batch, 0.1 by default"
    if not 0 <= value <= 1:
        return (
            "error",
            f"Outside 0 to 1 the statistics are no average of batches, and variances can become negative; {usual}.",
            "layer.momentum = 0.1",
        )
    if value == 0:
        return (
            "warning",
            "With momentum 0 the statistics never move in training; model zoos have left it so.",
            "Before training: layer.momentum = 0.1. To keep them on purpose: nw.freeze(model).",
        )
    if value >= OTHER_CONVENTION:
        alone = (
            "The statistics are those of the last batch alone"
            if value == 1
            else "The statistics are nearly those of the last batch alone"
        )
        return (
            "warning",
            f"{alone}: {usual}. In Keras, Flax and others it is the weight of the old value.",
            "Where the number is theirs: layer.momentum = 1 - layer.momentum. "
            "The statistics: nw.recalibrate(model, batches).",
        )
    if value > UNUSUAL:
        return "note", f"The last batch outweighs all others together: {usual}.", "layer.momentum = 0.1"
    return None


def eps(layers: Sequence[LayerState]) -> Iterator[Finding]:
    """An eps that cannot be, and one that differs from that of most layers."""
    known = [(layer, layer.settings.eps) for layer in layers if layer.settings is not None]
    for layer, value in known:
        if not value > 0:
            yield _eps_told(
                layer,
                value,
                "warning" if value == 0 else "error",
                "eps must be positive: a channel of variance 0 is divided by 0 else, and training refuses it.",
                "layer.eps = 1e-5, or what the weights were trained with.",
            )
    counts = Counter(value for _, value in known)
    if not counts:
        return
    ((usual, times),) = counts.most_common(1)
    if 2 * times <= len(known):
        return  # no eps is that of most
    for layer, value in known:
        if value > 0 and value != usual:
            yield _eps_told(
                layer,
                value,
                "warning",
                f"Most layers have eps={usual:g}. Frameworks differ (torch 1e-5, Keras 1e-3), and a layer that was "
                "replaced or ported by hand has the wrong one easily.",
                f"Where the weights were trained with it: layer.eps = {usual:g}.",
            )


def _eps_told(layer: LayerState, value: float, severity: Severity, cause: str, remedy: str) -> Finding:
    number = value if np.isfinite(value) else None
    return Finding(
        "eps", severity, layer.name, "eps", number, "input squared", cause, remedy, of=layer.channels
    )


def counters(layers: Sequence[LayerState]) -> Iterator[Finding]:
    """Layers that have counted other numbers of batches than most layers of their network."""
    for part in dict.fromkeys(layer.part for layer in layers):
        counting = [layer for layer in layers if layer.part == part and layer.updates and not layer.frozen]
        counts = Counter(layer.updates for layer in counting if layer.updates)
        if not counts:
            continue
        most = max(counts.values())
        usual = min(count for count, times in counts.items() if times == most)
        for layer in counting:
            ratio = (layer.updates or 0) / usual
            if ratio >= MORE:
                yield _counter_told(
                    layer,
                    ratio,
                    "warning",
                    "The layer has counted more batches than most: it runs several times a step, or activation "
                    "checkpointing runs it again and counts twice. Each pass moves its statistics.",
                    "nw.convert(model) does not count a pass that checkpointing repeats; for passes that must not "
                    "count there is nw.no_stat_update(model).",
                )
            elif ratio <= FEWER:
                yield _counter_told(
                    layer,
                    ratio,
                    "note",
                    "The layer has counted fewer batches than most: it is newer, was frozen for a while, or is "
                    "reached by some batches only.",
                    "If it was meant to see them all: nw.recalibrate(model, batches).",
                )


def _counter_told(layer: LayerState, ratio: float, severity: Severity, cause: str, remedy: str) -> Finding:
    quantity, unit = "batches, over the usual", "ratio"
    return Finding("counters", severity, layer.name, quantity, ratio, unit, cause, remedy, of=layer.channels)


def never_reached(layers: Sequence[LayerState]) -> Iterator[Finding]:
    """Layers at their start beside layers that have counted batches: no batch gets there."""
    for layer in layers:
        if is_beside_trained(layer, layers):
            yield Finding(
                "never reached",
                "warning",
                layer.name,
                "batches counted",
                0,
                "batches",
                "Other layers of the network have counted batches and this one has not: no batch gets there, or it "
                "was put in after training.",
                "Nothing, where it is not used in evaluation either: there it does not normalize. Else measure its "
                f"statistics: {RECALIBRATE}.",
                of=layer.channels,
            )
