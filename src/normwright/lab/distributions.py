"""Distributions of a layer's values, channel by channel, and how far one is from another."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

# Of an image's rows and columns as many tell the shape of a distribution; the moments take all.
POSITIONS = 4
ROUNDING = 1e-5  # of a channel's values: a deviation below that share of their size is float32's rounding


class Distribution:
    """The input of one nonlinearity over the probe, channel by channel.

    Attributes:
        mean, variance: of all values, ``(channels,)``.
    """

    def __init__(self, batches: Sequence[torch.Tensor]) -> None:
        """From the inputs ``(N, channels, ...)`` of a few batches."""
        # What is not finite makes its channel's statistics nan, and those compare as unknown.
        batches = [batch.where(batch.isfinite(), torch.nan) for batch in batches]
        variance, mean = torch.var_mean(_channels_first(batches).double(), dim=1, correction=0)
        self.mean, self.variance = mean.numpy(), variance.numpy()
        self._few = _channels_first([_few(batch) for batch in batches]).double().numpy()

    @property
    def alive(self) -> np.ndarray:
        """Which channels vary at all, ``(channels,)``: only they have a scale to measure by."""
        return np.asarray(np.sqrt(self.variance) > ROUNDING * np.sqrt(self.mean**2 + self.variance))

    @cached_property
    def shape(self) -> np.ndarray:
        """The values standardized and sorted, ``(channels, values)``."""
        centred = self._few - self._few.mean(axis=1, keepdims=True)
        deviation = self._few.std(axis=1, keepdims=True)
        return np.asarray(np.sort(centred / np.where(deviation > 0, deviation, 1.0), axis=1))

    def percentiles(self, channel: int, percents: Sequence[float]) -> tuple[float, ...]:
        """Of one channel's values, at each of `percents`."""
        return tuple(np.percentile(self._few[channel], percents).tolist())


def _channels_first(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """``(channels, values)``, all batches together."""
    return torch.cat([batch.transpose(0, 1).flatten(1) for batch in batches], dim=1)


def _few(batch: torch.Tensor) -> torch.Tensor:
    """Evenly spaced positions of the images: neighbours are nearly the same, and sorting all takes long."""
    if batch.ndim < 4:
        return batch
    apart = max(1, batch.shape[-1] // POSITIONS)
    return batch[:, :, ::apart, ::apart]


def mean_shift(before: Distribution, after: Distribution) -> float | None:
    """How far the mean moved, in standard deviations (of both together), averaged over the channels."""
    deviation = np.sqrt((before.variance + after.variance) / 2)
    return _average(np.abs(after.mean - before.mean), deviation, before.alive & after.alive)


def raw_mean_shift(before: Distribution, after: Distribution) -> float | None:
    """How far the mean moved, in the values' own unit, averaged over the channels.

    What a fixed nonlinearity feels: where the values hardly vary, a small move of the mean is many deviations.
    """
    distance = np.abs(after.mean - before.mean)
    return _average(distance, np.ones_like(distance), np.ones(len(distance), bool))


def variance_shift(before: Distribution, after: Distribution) -> float | None:
    """How far the variance moved, as the logarithm of its ratio either way, averaged over the channels."""
    alive = before.alive & after.alive
    ratio = np.where(alive, after.variance, 1.0) / np.where(alive, before.variance, 1.0)
    return _average(np.abs(np.log(ratio)), np.ones_like(ratio), alive)


def shape_shift(before: Distribution, after: Distribution) -> float | None:
    """The Wasserstein-1 distance of the standardized values, averaged over the channels.

    Of as many values each it is the mean distance of the values in sorted order. Mean and variance are equal,
    so whatever it finds, they cannot tell.
    """
    distance = np.abs(after.shape - before.shape).mean(axis=1)
    return _average(distance, np.ones_like(distance), before.alive & after.alive)


def _average(of: np.ndarray, unit: np.ndarray, alive: np.ndarray) -> float | None:
    """None where no channel has a scale, or where training has left the finite numbers."""
    if not alive.any():
        return None
    value = float((of[alive] / unit[alive]).mean())
    return value if np.isfinite(value) else None
