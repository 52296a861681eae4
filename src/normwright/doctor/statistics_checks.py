"""Checks of the recorded statistics: were they ever measured, can they be normalized by, how exact are they."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normwright.doctor.findings import Finding, Severity
from normwright.doctor.layer import LayerState

# FrozenBatchNorm of detectron2 starts at 1 - eps; no eps in use is larger than this.
LARGEST_EPS = 1e-3
# Below a hundredth of eps normalized values deviate by less than sqrt(1/101), a tenth of what gamma says.
CONSTANT = 0.01
# Half a unit in the last place, relative: what rounding to a type may change. What is not listed is as float32.
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
HALF = ("float16", "bfloat16")
LARGEST_FLOAT16 = 65504.0
# Rounding of the input, in deviations of its channel. A twentieth is as much as quantizing +-3 deviations to 6 bits
# does; from a half on, what is normalized is more rounding than data.
ROUGH, LOST = 0.05, 0.5
# A variance computed as E[x^2] - E[x]^2 in float32 is off by about (mean / deviation)^2 roundings. One per cent is
# as much as an estimate from 20 000 values is uncertain by.
ONE_PASS = 0.01

RECALIBRATE = "nw.recalibrate(model, batches)"


def where(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """The channels at which `mask` is true."""
    return tuple(int(channel) for channel in np.flatnonzero(mask))


def never_trained(layers: Sequence[LayerState]) -> Iterator[Finding]:
    """Means of 0 and variances of 1 (or 0, where a framework starts there) are those of no data."""
    for layer in layers:
        if not as_at_the_start(layer) or is_beside_trained(layer, layers):
            continue
        if layer.updates:
            cause = (
                "Means are 0 and variances 1 as at the start, although batches were counted: the momentum was 0, "
                "or a copy (EMA, SWA) took the counter along and not the statistics. Evaluation does not normalize."
            )
        else:
            cause = (
                "Means are 0 and variances 1 (0 in some frameworks), as at the start: no batch has moved them, or "
                "they were not loaded. Evaluation does not normalize."
            )
        yield Finding(
            "never trained",
            "error",
            layer.name,
            "batches counted",
            layer.updates,
            "batches",
            cause,
            f"Measure them: {RECALIBRATE}. Or load the checkpoint that has them.",
            of=layer.channels,
        )


def as_at_the_start(layer: LayerState) -> bool:
    """Whether the statistics are those that frameworks begin with, in every channel."""
    first = layer.var[0]
    begins = 1 - LARGEST_EPS <= first <= 1 or (first == 0 and not layer.updates)
    return bool((layer.mean == 0).all() and (layer.var == first).all() and begins)


def is_beside_trained(layer: LayerState, network: Sequence[LayerState]) -> bool:
    """Whether a layer has counted nothing and is at its start, where others of its network have counted."""
    others = any(other.updates for other in network if other.part == layer.part)
    return layer.updates == 0 and others and as_at_the_start(layer) and not layer.frozen


def not_counted(layers: Sequence[LayerState]) -> Iterator[Finding]:
    """Statistics that moved beside a counter of 0: with momentum=None the next batch replaces them."""
    for layer in layers:
        if layer.updates != 0 or layer.frozen or as_at_the_start(layer):
            continue
        severity: Severity = "note"
        if layer.settings is None:
            then = "If the layer has momentum=None, the first batch of training replaces the statistics."
        elif layer.settings.momentum is None:
            severity = "warning"
            then = "The layer has momentum=None: the first batch of training replaces the statistics."
        else:
            continue  # the counter then decides nothing
        yield Finding(
            "not counted",
            severity,
            layer.name,
            "batches counted",
            0,
            "batches",
            f"The counter is 0 beside statistics of data: they were loaded without it. {then}",
            "Set the counter to the number of batches behind them: layer.num_batches_tracked.fill_(n).",
            of=layer.channels,
        )


def no_counter(layers: Sequence[LayerState]) -> Iterator[Finding]:
    """No num_batches_tracked: a frozen layer, or one from before torch counted."""
    for layer in layers:
        if layer.updates is None and not layer.frozen:
            yield Finding(
                "no counter",
                "note",
                layer.name,
                "batches counted",
                None,
                "batches",
                "There is no num_batches_tracked: it comes from a FrozenBatchNorm, from another framework, or from "
                "torch before 0.4.1. How many batches are behind the statistics cannot be told.",
                "Nothing is wrong with it, unless a layer has momentum=None, which counts from there.",
                of=layer.channels,
            )


def not_finite(layers: Sequence[LayerState]) -> Iterator[Finding]:
    """One NaN in one batch is in a moving average for good."""
    for layer in layers:
        bad = where(~(np.isfinite(layer.mean) & np.isfinite(layer.var)))
        if bad:
            yield Finding(
                "not finite",
                "error",
                layer.name,
                "channels with NaN or infinity",
                len(bad),
                "channels",
                "A mean or a variance is NaN or infinite: one such batch stays in a moving average for good.",
                f"Measure them anew: {RECALIBRATE}. A layer of nw.convert(model) leaves such batches out.",
                bad,
                layer.channels,
            )


def negative_variance(layers: Sequence[LayerState]) -> Iterator[Finding]:
    """No variance is negative; its root is NaN, or is saved by eps and means nothing."""
    for layer in layers:
        bad = where(layer.var < 0)
        if bad:
            yield Finding(
                "negative variance",
                "error",
                layer.name,
                "smallest variance",
                float(np.nanmin(layer.var)),
                "input squared",
                "No data has a negative variance: it was computed as E[x^2] - E[x]^2, or a conversion took eps "
                "off. Below -eps evaluation is NaN.",
                f"Measure it anew: {RECALIBRATE}.",
                bad,
                layer.channels,
            )


def constant_channels(layers: Sequence[LayerState]) -> Iterator[Finding]:
    """Channels whose input never changes, and channels scaled by eps rather than by their data."""
    for layer in layers:
        if as_at_the_start(layer):
            continue
        low = layer.usable & (layer.var < layer.eps)
        constant = low & (layer.var <= CONSTANT * layer.eps)
        yield from _small_variance(
            layer,
            where(constant),
            "constant channels",
            "warning",
            "The input of these channels hardly ever changes: the variance is below a hundredth of eps, and the "
            "output is their bias. What is before them is dead (a ReLU's input, a filter of zeros).",
            "They can be pruned. Many at once ask for a smaller learning rate, or another start, before them.",
        )
        yield from _small_variance(
            layer,
            where(low & ~constant),
            "eps outweighs variance",
            "note",
            "The variance is below eps: eps rather than the data decides how these channels are scaled.",
            "Keep eps as it was in training; a smaller one would change what the weights were learned with.",
        )


def _small_variance(
    layer: LayerState, bad: tuple[int, ...], check: str, severity: Severity, cause: str, remedy: str
) -> Iterator[Finding]:
    if bad:
        smallest = float(layer.var[list(bad)].min())
        quantity, unit = "smallest variance", "input squared"
        yield Finding(
            check, severity, layer.name, quantity, smallest, unit, cause, remedy, bad, layer.channels
        )


def half_statistics(layers: Sequence[LayerState]) -> Iterator[Finding]:
    """A moving average in a half type stops moving once its steps are smaller than its spacing."""
    for layer in layers:
        if layer.dtype in HALF:
            yield Finding(
                "half statistics",
                "warning",
                layer.name,
                f"rounding of {layer.dtype}",
                ROUNDING[layer.dtype],
                "ratio",
                f"The statistics are {layer.dtype}. Their steps in training become smaller than the spacing of "
                "such numbers and get lost, and evaluation normalizes by rounded numbers.",
                "Keep them in float32: nw.convert(model) does, beside half weights.",
                of=layer.channels,
            )


def precision(layers: Sequence[LayerState]) -> Iterator[Finding]:
    """|mean| / deviation, against what the type of weights and activations can hold.

    An input of type D near its mean is rounded by up to u |mean|, u the rounding of D: u |mean| / deviation in
    deviations of the channel. By eps the layer divides too, so the deviation here is sqrt(var + eps).
    """
    for layer in layers:
        dtype = layer.weight_dtype or layer.dtype
        offset = in_deviations(layer)
        rough = offset * ROUNDING.get(dtype, ROUNDING["float32"])
        finest = np.square(offset) * ROUNDING["float32"]
        yield from _lost_to_rounding(layer, dtype, offset, rough >= LOST, "error", "half a deviation or more")
        between = (rough >= ROUGH) & (rough < LOST)
        yield from _lost_to_rounding(
            layer, dtype, offset, between, "warning", "a twentieth of a deviation or more"
        )
        noted = (rough < ROUGH) & (finest >= ONE_PASS)
        if noted.any():
            yield _offset(
                layer,
                offset,
                noted,
                "note",
                "The mean is hundreds of deviations away from 0: frameworks that compute the variance as "
                "E[x^2] - E[x]^2 in float32 (Keras on torch, Flax by default) lose a hundredth of it or all of it.",
                "Take the offset out of the input, or train with a kernel that keeps it: nw.convert(model).",
            )
        yield from _overflow(layer, dtype)


def in_deviations(layer: LayerState) -> NDArray[Any]:
    """(C,), |mean| / sqrt(var + eps); 0 where these are no numbers to divide."""
    spread = layer.var + max(layer.eps, 0.0)
    fit = layer.usable & (spread > 0)
    return np.divide(
        np.abs(layer.mean), np.sqrt(np.where(fit, spread, 1.0)), out=np.zeros(layer.channels), where=fit
    )


def _lost_to_rounding(
    layer: LayerState,
    dtype: str,
    offset: NDArray[Any],
    mask: NDArray[np.bool_],
    severity: Severity,
    share: str,
) -> Iterator[Finding]:
    if mask.any():
        yield _offset(
            layer,
            offset,
            mask,
            severity,
            f"The mean is so far from 0 that rounding the input to {dtype} moves its values by {share}.",
            "Take the offset out of the input, before it is rounded, or compute in a wider type.",
        )


def _offset(
    layer: LayerState,
    offset: NDArray[Any],
    mask: NDArray[np.bool_],
    severity: Severity,
    cause: str,
    remedy: str,
) -> Finding:
    largest = float(offset[mask].max())
    quantity, unit = "largest |mean|", "deviations"
    return Finding(
        "precision",
        severity,
        layer.name,
        quantity,
        largest,
        unit,
        cause,
        remedy,
        where(mask),
        layer.channels,
    )


def _overflow(layer: LayerState, dtype: str) -> Iterator[Finding]:
    """float16 ends at 65504, and activations that reach it are infinite from there on."""
    if dtype != "float16":
        return
    # Of normal data one value in 16 000 is further out than four deviations.
    reach = np.where(layer.usable, np.abs(layer.mean) + 4 * np.sqrt(np.maximum(layer.var, 0.0)), 0.0)
    mask = reach > LARGEST_FLOAT16
    if mask.any():
        yield Finding(
            "overflow",
            "error",
            layer.name,
            "mean and 4 deviations",
            float(reach.max()),
            "input",
            "Inputs of these channels go beyond 65504, the largest float16: they are infinite there.",
            "Compute in bfloat16 or float32.",
            where(mask),
            layer.channels,
        )
