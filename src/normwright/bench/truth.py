"""What batch normalization must give, alone and with what follows it, in float64; and who gives something else."""

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normwright.bench.cases import Dtype
from normwright.bench.timer import WrongValues
from normwright.core.activation import Activation
from normwright.kernels import reference

Array = NDArray[Any]

RATE = 0.1  # weight of the new batch in the running statistics, torch's default
#: Half of the distance from 1 to the next number: what rounding to a type costs.
UNITS: dict[Dtype, float] = {
    "float32": 2.0**-24,
    "float64": 2.0**-53,
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
}
TINY: dict[Dtype, float] = {  # and near 0, where numbers lie evenly
    "float32": 2.0**-149,
    "float64": 2.0**-1074,
    "bfloat16": 2.0**-133,
    "float16": 2.0**-24,
}
HALVES: tuple[Dtype, ...] = ("bfloat16", "float16")
# So many values are compared with float64: of larger tensors a sample of channels, spread evenly.
VALUES_COMPARED = 1 << 20
RELU = Activation("relu")


@dataclass(frozen=True)
class Tolerance:
    """How far a result may be from the exact one, in units of the terms it is made of.

        y          |gamma| * (|x_hat| + floor) + |beta| + |residual|
        dx         |gamma| * rstd * (|dz| + D/m + (|x_hat| + floor) * S/m)     D = sum|dz|, S = sum|dz * x_hat|
        dgamma     S + floor * D
        dbeta      D

    dz is dy where relu lets it pass. Where z is so near to 0 that rounding decides, either is right.

    Attributes:
        units: how many.
        floor: an error that every x_hat of a channel may share, because mean and variance were rounded.
        unit: 2^-24 for float32.
        rounding: of the result to a half type, relative to the result.
        tiny: absolute, where the type's numbers lie evenly.
    """

    units: float
    floor: float
    unit: float = UNITS["float32"]
    rounding: float = 0.0
    tiny: float = TINY["float32"]

    def bound(self, terms: Array, want: Array | float = 0.0) -> Array:
        """The distance that is allowed; `want` where the result is rounded to x's type."""
        computed = self.units * self.unit * terms
        return np.asarray(computed + self.rounding * (np.abs(want) + computed) + self.tiny)


def promised(dtype: Dtype) -> Tolerance:
    """The bound that normwright promises: 8 units, componentwise; half types are rounded once, at the end.

    In float64 the mean's own rounding shows too; the means here are no larger than the deviations. Where long
    double is no wider than double, the reference's own rounding takes as much.
    """
    if dtype == "float64":
        wide = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps
        return Tolerance(8 if wide else 16, floor=1, unit=UNITS[dtype], tiny=TINY[dtype])
    half = dtype in HALVES
    return Tolerance(8, floor=0, rounding=UNITS[dtype] if half else 0.0, tiny=TINY[dtype])


def summed_plainly(count: int, dtype: Dtype) -> Tolerance:
    """What plain sums over `count` values of a channel leave: 8 for the arithmetic, times their drift.

    Each addition rounds by up to half a unit of the sum so far; independent roundings add up like a random walk, to
    sqrt(count). Half types are summed in float32, but rounded after each operation: up to 4 times. Others promise
    no bound: this one lets their rounding pass, and no layer with another eps, other parameters, or a mistaken
    layout.
    """
    drift = 8 * max(1.0, sqrt(count))
    if dtype in HALVES:
        unit = UNITS[dtype]
        return Tolerance(4 + drift * UNITS["float32"] / unit, floor=1, unit=unit, tiny=TINY[dtype])
    return Tolerance(drift, floor=1, unit=UNITS[dtype], tiny=TINY[dtype])


@dataclass(frozen=True)
class Inputs:
    """What a layer is given: rows of channels, (C, m), and numbers of each channel, (C,), in float64 or wider."""

    x: Array
    dy: Array
    gamma: Array
    beta: Array
    mean: Array
    var: Array
    eps: float
    residual: Array | None = None
    relu: bool = False


@dataclass(frozen=True)
class Results:
    """What one contender computed of a training step, as in `Inputs`. None is not looked at."""

    y: Array
    running_mean: Array
    running_var: Array
    dx: Array | None = None
    dgamma: Array | None = None
    dbeta: Array | None = None
    dresidual: Array | None = None


class Truth:
    """The reference: a training step with running statistics from 0 and 1, and inference by `mean` and `var`."""

    def __init__(self, given: Inputs) -> None:
        self._given = given
        activation = RELU if given.relu else None
        x, gamma, beta, eps = given.x, given.gamma, given.beta, given.eps
        follows = activation, given.residual
        self._y, saved = reference.forward_train(x, gamma, beta, eps, 0, *follows)
        self._want = reference.backward_train(given.dy, x, gamma, beta, saved, 0, *follows)
        self._z = reference.apply(x, gamma, beta, saved, 0, residual=given.residual)
        self._fixed = reference.forward_fixed(x, gamma, beta, given.mean, given.var, eps, 0, *follows)
        self._mean, self._m2, self._rstd = saved.mean, saved.m2, saved.rstd
        self._count = x.shape[1]
        self._x_hat = np.abs(x - saved.mean[:, None]) * saved.rstd[:, None]

    def check(self, who: str, got: Results, allowed: Tolerance) -> None:
        """Raise WrongValues unless every value of a training step is finite and within its bound."""
        near_z = self._near_z(allowed)
        _within(who, "y", got.y, self._y, near_z)
        self._check_running(who, got, allowed)
        if got.dx is None:
            return
        given, want, count, floor = self._given, self._want, self._count, allowed.floor
        undecided = np.abs(given.dy) * (np.abs(self._z) <= near_z) if given.relu else np.zeros_like(given.dy)
        let_pass = np.abs(given.dy) * (self._z > 0) if given.relu else np.abs(given.dy)
        D, S = let_pass.sum(axis=1), (let_pass * self._x_hat).sum(axis=1)
        more_D, more_S = undecided.sum(axis=1), (undecided * self._x_hat).sum(axis=1)
        scale = np.abs(given.gamma[:, None]) * self._rstd[:, None]
        sums = D[:, None] / count + (self._x_hat + floor) * S[:, None] / count
        more = undecided + more_D[:, None] / count + self._x_hat * more_S[:, None] / count
        bound = allowed.bound(scale * (let_pass + sums), want.dx) + (1 + allowed.rounding) * scale * more
        _within(who, "dx", got.dx, want.dx, bound)
        if got.dgamma is not None:
            _within(who, "dgamma", got.dgamma, want.dgamma, allowed.bound(S + floor * D) + more_S)
        if got.dbeta is not None:
            _within(who, "dbeta", got.dbeta, want.dbeta, allowed.bound(D) + more_D)
        if got.dresidual is not None:
            _within(who, "dresidual", got.dresidual, want.dresidual, undecided + allowed.tiny)

    def check_inference(self, who: str, y: Array, allowed: Tolerance) -> None:
        """Raise WrongValues unless every value of y by fixed statistics is finite and within its bound."""
        given = self._given
        rstd = 1 / np.sqrt(given.var + given.eps)
        x_hat = np.abs(given.x - given.mean[:, None]) * rstd[:, None]
        _within(who, "y", y, self._fixed, allowed.bound(self._terms(x_hat, allowed.floor), self._fixed))

    def _near_z(self, allowed: Tolerance) -> Array:
        return allowed.bound(self._terms(self._x_hat, allowed.floor), self._z)

    def _terms(self, x_hat: Array, floor: float) -> Array:
        given = self._given
        terms = np.abs(given.gamma[:, None]) * (x_hat + floor) + np.abs(given.beta[:, None])
        return terms if given.residual is None else terms + np.abs(given.residual)

    def _check_running(self, who: str, got: Results, allowed: Tolerance) -> None:
        """running <- (1 - rate) * running + rate * batch, from 0 and 1; the terms are their own measure."""
        deviation = np.sqrt(self._m2 / self._count)
        mean, var = RATE * self._mean, (1 - RATE) + RATE * self._m2 / max(self._count - 1, 1)
        near = allowed.bound(RATE * (np.abs(self._mean) + deviation))
        _within(who, "running_mean", got.running_mean, mean, near)
        _within(who, "running_var", got.running_var, var, allowed.bound(var))


def sample(channels: int, count: int) -> Array:
    """Which of the channels, of `count` values each, are compared: all of a small tensor, else some, spread evenly.

    >>> sample(4, 100), sample(64, 1 << 18)
    (array([0, 1, 2, 3]), array([ 0, 21, 42, 63]))
    """
    some = min(channels, max(1, VALUES_COMPARED // max(1, count)))
    return np.unique(np.linspace(0, channels - 1, some).round().astype(int))


def _within(who: str, what: str, got: Array, want: Array | None, bound: Array) -> None:
    """|got - want| <= bound for every element. Put so that NaN fails."""
    assert want is not None  # the reference was given what this is the gradient of
    good = np.abs(got - want) <= bound
    if not good.all():
        at = tuple(int(i) for i in np.argwhere(~good)[0])
        raise WrongValues(
            f"{who}: {np.count_nonzero(~good)} of {good.size} values of {what} are wrong (such as {got[at]:g}, "
            f"where float64 gives {want[at]:g}); it was not timed."
        )
