"""The kernels of a package built without a compiler: the reference, its results rounded once to x's dtype.

Slow and right. `normwright info` says when this is what runs.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from normwright.core.moments import FloatArray, Saved
from normwright.kernels import reference
from normwright.kernels.reference import moments

__all__ = ["backward_fixed", "backward_train", "forward_fixed", "forward_train", "moments"]

Array = NDArray[Any]


def _extended(x: Array) -> Array:
    """float64 in long double, whose mean has digits beyond a double's; float32 needs none beyond a double's."""
    return x.astype(np.longdouble) if x.dtype == np.float64 else x


def forward_train(
    x: Array, gamma: Array | None, beta: Array | None, eps: float, axis: int
) -> tuple[Array, Saved]:
    """See `reference.forward_train`."""
    y, saved = reference.forward_train(_extended(x), gamma, beta, eps, axis)
    mean = saved.mean.astype(np.float64)
    tail = ((saved.mean - mean) + saved.mean_tail).astype(np.float64)
    m2, rstd = saved.m2.astype(np.float64), saved.rstd.astype(np.float64)
    return y.astype(x.dtype), Saved(mean, tail, m2, rstd, saved.count)


def backward_train(
    dy: Array, x: Array, gamma: Array | None, saved: Saved, axis: int
) -> tuple[Array, FloatArray, FloatArray]:
    """See `reference.backward_train`."""
    dx, dgamma, dbeta = reference.backward_train(dy, x, gamma, saved, axis)
    return dx.astype(x.dtype), dgamma, dbeta


def forward_fixed(
    x: Array, gamma: Array | None, beta: Array | None, mean: Array, var: Array, eps: float, axis: int
) -> Array:
    """See `reference.forward_fixed`."""
    return reference.forward_fixed(x, gamma, beta, mean, var, eps, axis).astype(x.dtype)


def backward_fixed(
    dy: Array, x: Array, gamma: Array | None, mean: Array, var: Array, eps: float, axis: int
) -> tuple[Array, FloatArray, FloatArray]:
    """See `reference.backward_fixed`."""
    dx, dgamma, dbeta = reference.backward_fixed(dy, x, gamma, mean, var, eps, axis)
    return dx.astype(x.dtype), dgamma, dbeta
