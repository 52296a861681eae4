"""The kernels of a package built without a compiler: the reference, its results rounded once to x's dtype.

Slow and right. `normwright info` says when this is what runs.
"""

from typing import Any

from numpy.typing import NDArray

from normwright.core.moments import FloatArray, Saved
from normwright.kernels import reference
from normwright.kernels.reference import moments

__all__ = ["backward_fixed", "backward_train", "forward_fixed", "forward_train", "moments"]

Array = NDArray[Any]


def forward_train(
    x: Array, gamma: Array | None, beta: Array | None, eps: float, axis: int
) -> tuple[Array, Saved]:
    """See `reference.forward_train`."""
    y, saved = reference.forward_train(x, gamma, beta, eps, axis)
    return y.astype(x.dtype), saved


def backward_train(
    dy: Array, x: Array, gamma: Array | None, saved: Saved, axis: int, *, need_dx: bool = True
) -> tuple[Array | None, FloatArray, FloatArray]:
    """See `reference.backward_train`; dx is None unless wanted."""
    dx, dgamma, dbeta = reference.backward_train(dy, x, gamma, saved, axis)
    return dx.astype(x.dtype) if need_dx else None, dgamma, dbeta


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
