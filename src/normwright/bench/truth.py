"""What a training step of batch normalization must give, in float64, and who gives something else."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normwright.bench.timer import WrongValues
from normwright.kernels import reference

Array = NDArray[Any]

UNIT = 2.0**-24
RATE = 0.1  # weight of the new batch in the running statistics, torch's default
# So many values are looked at together: their float64 temporaries stay near the cache.
VALUES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Tolerance:
    """How far from float64 a float32 result may be, in units of 2^-24 of the terms it is made of.

        y       |gamma| * (|x_hat| + floor) + |beta|
        dx      |gamma| * rstd * (|dy| + D/m + (|x_hat| + floor) * S/m)     D = sum|dy|, S = sum|dy * x_hat|
        dgamma  S + floor * D
        dbeta   D

    Attributes:
        units: how many.
        floor: an error that every x_hat of a channel may share, because mean and variance were rounded.
    """

    units: float
    floor: float


#: The bound that normwright promises: 8 units, componentwise.
PROMISED = Tolerance(units=8, floor=0)


def summed_in_float32(count: int) -> Tolerance:
    """What plain float32 sums over `count` values of a channel leave: 8 for the arithmetic, times their drift.

    Each addition rounds by up to half a unit of the sum so far; independent roundings add up like a random walk, to
    sqrt(count). torch promises no bound: this one lets its rounding pass, and no layer with another eps, other
    parameters, or a layout mistaken.
    """
    return Tolerance(units=8 * max(1.0, sqrt(count)), floor=1)


@dataclass(frozen=True)
class Results:
    """What one contender computed: y and dx as rows of channels, (C, m), all else (C,). None is not looked at."""

    y: Array
    running_mean: Array
    running_var: Array
    dx: Array | None = None
    dgamma: Array | None = None
    dbeta: Array | None = None


class Truth:
    """The float64 reference of one training step on rows of channels, (C, m); running statistics from 0 and 1."""

    def __init__(self, x: Array, dy: Array, gamma: Array, beta: Array, eps: float) -> None:
        channels, self._count = x.shape
        self._x, self._dy, self._gamma, self._beta = x, dy, gamma, beta
        self._y, self._dx = (np.empty(x.shape) for _ in range(2))
        self._dgamma, self._dbeta, self._mean, self._m2 = (np.empty(channels) for _ in range(4))
        for at in self._channels():
            self._y[at], saved = reference.forward_train(x[at], gamma[at], beta[at], eps, 0)
            gradients = reference.backward_train(dy[at], x[at], gamma[at], saved, 0)
            self._dx[at], self._dgamma[at], self._dbeta[at] = gradients
            self._mean[at], self._m2[at] = saved.mean, saved.m2
        self._rstd = 1 / np.sqrt(self._m2 / self._count + eps)

    def check(self, who: str, got: Results, allowed: Tolerance) -> None:
        """Raise WrongValues unless every value is finite and within its bound."""
        units, floor = allowed.units, allowed.floor
        for at in self._channels():
            x_hat = np.abs(self._x[at] - self._mean[at, None]) * self._rstd[at, None]
            dy = np.abs(self._dy[at].astype(np.float64))
            gamma, beta = (
                np.abs(values[at, None].astype(np.float64)) for values in (self._gamma, self._beta)
            )
            bound = gamma * (x_hat + floor) + beta
            _within(who, "y", got.y[at], self._y[at], units * bound)
            D, S = dy.sum(axis=1), (dy * x_hat).sum(axis=1)
            if got.dx is not None:
                d, s = D[:, None] / self._count, S[:, None] / self._count
                bound = gamma * self._rstd[at, None] * (dy + d + (x_hat + floor) * s)
                _within(who, "dx", got.dx[at], self._dx[at], units * bound)
            if got.dgamma is not None:
                _within(who, "dgamma", got.dgamma[at], self._dgamma[at], units * (S + floor * D))
            if got.dbeta is not None:
                _within(who, "dbeta", got.dbeta[at], self._dbeta[at], units * D)
        self._check_running(who, got, units)

    def _check_running(self, who: str, got: Results, units: float) -> None:
        """running <- (1 - rate) * running + rate * batch, from 0 and 1; the terms are their own measure."""
        deviation = np.sqrt(self._m2 / self._count)
        mean, var = RATE * self._mean, (1 - RATE) + RATE * self._m2 / max(self._count - 1, 1)
        _within(who, "running_mean", got.running_mean, mean, units * RATE * (np.abs(self._mean) + deviation))
        _within(who, "running_var", got.running_var, var, units * var)

    def _channels(self) -> Iterator[slice]:
        channels, count = self._x.shape
        step = max(1, VALUES_AT_ONCE // max(1, count))
        return (slice(c, c + step) for c in range(0, channels, step))


def _within(who: str, what: str, got: Array, want: Array, bound: Array) -> None:
    """|got - want| <= 2^-24 * bound for every element. Put so that NaN fails."""
    good = np.abs(got - want) <= UNIT * bound + np.finfo(np.float32).smallest_subnormal
    if not good.all():
        at = tuple(int(i) for i in np.argwhere(~good)[0])
        raise WrongValues(
            f"{who}: {np.count_nonzero(~good)} of {good.size} values of {what} are wrong (such as {got[at]:g}, "
            f"where float64 gives {want[at]:g}); it was not timed."
        )
