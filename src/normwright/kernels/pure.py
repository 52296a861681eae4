"""The kernels of a package built without a compiler: the reference, its results rounded once to x's dtype.

Slow and right. `normwright info` says when this is what runs.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from normwright.core.activation import Activation
from normwright.core.moments import Gradients, Saved
from normwright.kernels import reference
from normwright.kernels.reference import moments

__all__ = ["backward_fixed", "backward_train", "forward_fixed", "forward_train", "moments"]

Array = NDArray[Any]


def forward_train(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    axis: int,
    activation: Activation | None = None,
    residual: Array | None = None,
) -> tuple[Array, Saved]:
    """See `reference.forward_train`."""
    wide = _extended(x)
    _, exact = reference.forward_train(wide, None, None, eps, axis)
    mean = exact.mean.astype(np.float64)
    tail = ((exact.mean - mean) + exact.mean_tail).astype(np.float64)
    m2, rstd = exact.m2.astype(np.float64), exact.rstd.astype(np.float64)
    saved = Saved(mean, tail, m2, rstd, exact.count)
    # from what is saved, as the backward pass has no more: the two then agree on the sign of every z
    return _rounded(reference.apply(wide, gamma, beta, saved, axis, activation, residual), x), saved


def backward_train(
    dy: Array,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    saved: Saved,
    axis: int,
    activation: Activation | None = None,
    residual: Array | None = None,
) -> Gradients:
    """See `reference.backward_train`."""
    wide = _extended(x)
    return _all_rounded(reference.backward_train(dy, wide, gamma, beta, saved, axis, activation, residual), x)


def forward_fixed(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    mean: Array,
    var: Array,
    eps: float,
    axis: int,
    activation: Activation | None = None,
    residual: Array | None = None,
    out: Array | None = None,
) -> Array:
    """See `reference.forward_fixed`; `out`: an array for the result, of x's shape and dtype, maybe x itself."""
    y = _rounded(reference.forward_fixed(x, gamma, beta, mean, var, eps, axis, activation, residual), x)
    if out is None:
        return y
    out[...] = y
    return out


def backward_fixed(
    dy: Array,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    mean: Array,
    var: Array,
    eps: float,
    axis: int,
    activation: Activation | None = None,
    residual: Array | None = None,
) -> Gradients:
    """See `reference.backward_fixed`."""
    return _all_rounded(
        reference.backward_fixed(dy, x, gamma, beta, mean, var, eps, axis, activation, residual), x
    )


def _extended(x: Array) -> Array:
    """float64 in long double, whose mean has digits beyond a double's; other types need none beyond a double's."""
    return x.astype(np.longdouble) if x.dtype == np.float64 else x


def _rounded(values: Array, x: Array) -> Array:
    """In x's type: infinite beyond its range, without a word, as from any kernel."""
    with np.errstate(over="ignore"):
        return values.astype(x.dtype)


def _all_rounded(exact: Gradients, x: Array) -> Gradients:
    """What is like x in x's type, sums over channels in float64."""
    dgamma, dbeta = exact.dgamma.astype(np.float64), exact.dbeta.astype(np.float64)
    dresidual = None if exact.dresidual is None else _rounded(exact.dresidual, x)
    return Gradients(_rounded(exact.dx, x), dgamma, dbeta, dresidual)
