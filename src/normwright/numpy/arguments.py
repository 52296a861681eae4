"""What a user hands to the NumPy door, checked and brought into the form in which the kernels take it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normwright.core.checks import (
    DtypeError,
    ShapeError,
    check_axis,
    check_both_or_neither,
    check_eps,
    check_per_channel,
    message,
)

Array = NDArray[Any]
Float64 = NDArray[np.float64]


class Settings(NamedTuple):
    """bn_param, checked. Running statistics that were not given are None."""

    eps: float
    momentum: float
    running_mean: Float64 | None
    running_var: Float64 | None


FLOATS = ("float32", "float64", "float16", "bfloat16")
"""The types of x, by name: bfloat16 is that of the package ml_dtypes, which need not be there."""


def array(call: str, name: str, x: Any) -> Array:
    """x as a plain array of one of FLOATS. A masked array is refused: its mask would be lost unseen."""
    if isinstance(x, np.ma.MaskedArray):
        remedy = "Fill in or leave out the masked values first."
        raise DtypeError(message(call, f"{name} to be a plain array", "a masked array", remedy=remedy))
    if not isinstance(x, np.ndarray):
        remedy = f"Use np.asarray({name}, dtype=np.float32)."
        raise DtypeError(message(call, f"{name} to be a NumPy array", type(x).__name__, remedy=remedy))
    if x.dtype.name not in FLOATS or not x.dtype.isnative:
        remedy = f"Use {name}.astype(np.float32)."
        if x.dtype.kind == "c":
            remedy = f"Normalize {name}.real and {name}.imag, each for itself."
        expected = f"{name} of dtype {', '.join(FLOATS[:-1])} or {FLOATS[-1]}"
        raise DtypeError(message(call, expected, str(x.dtype), remedy=remedy))
    return np.asarray(x)


def like_x(call: str, name: str, given: Any, x: Array) -> Array:
    """An array of x's shape and dtype: dy, a residual, a place for the result."""
    other = array(call, name, given)
    if other.shape != x.shape:
        raise ShapeError(message(call, f"{name} of shape {x.shape}, as x", str(other.shape)))
    if other.dtype != x.dtype:
        remedy = f"Use {name}.astype(x.dtype)."
        raise DtypeError(message(call, f"{name} of dtype {x.dtype}, as x", str(other.dtype), remedy=remedy))
    return other


def residual(call: str, given: Any, x: Array) -> Array | None:
    """What is added before the activation; None stays None."""
    return None if given is None else like_x(call, "residual", given, x)


def out(call: str, given: Any, x: Array) -> Array | None:
    """Where the result is to be written; None stays None."""
    if given is None:
        return None
    place = like_x(call, "out", given, x)
    if not place.flags.writeable:
        raise ShapeError(message(call, "out that can be written", "a read-only array"))
    return place


def vector(call: str, name: str, values: Any, shape: tuple[int, ...], axis: int) -> Float64 | None:
    """One real number per channel, as a float64 array of the door's own; None stays None."""
    if values is None:
        return None
    given = np.asarray(values)
    if given.dtype.kind not in "fiu" and given.dtype.name not in FLOATS:
        raise DtypeError(message(call, f"{name} of real numbers", f"dtype {given.dtype}"))
    check_per_channel(call, name, given.shape, shape, axis)
    return given.astype(np.float64)


def inputs(
    call: str, x: Any, axis: int, gamma: Any, beta: Any
) -> tuple[Array, int, Float64 | None, Float64 | None]:
    """x, its channel axis from 0, gamma and beta."""
    x = array(call, "x", x)
    axis = check_axis(call, x.shape, axis)
    return x, axis, vector(call, "gamma", gamma, x.shape, axis), vector(call, "beta", beta, x.shape, axis)


def settings(call: str, bn_param: Any, shape: tuple[int, ...], axis: int) -> Settings:
    """The four keys of bn_param; other keys are the user's own."""
    if not isinstance(bn_param, Mapping):
        raise DtypeError(message(call, "bn_param to be a dictionary", type(bn_param).__name__))
    eps, momentum = bn_param.get("eps", 1e-5), bn_param.get("momentum", 0.9)
    check_eps(call, eps)
    check_momentum(call, momentum)
    mean, var = bn_param.get("running_mean"), bn_param.get("running_var")
    check_both_or_neither(call, mean, var)
    mean = vector(call, "running_mean", mean, shape, axis)
    var = vector(call, "running_var", var, shape, axis)
    if var is not None and (var < 0).any():
        raise ShapeError(message(call, "running_var >= 0", str(var.min())))
    return Settings(eps, momentum, mean, var)


def check_momentum(call: str, momentum: float) -> None:
    """Raise ShapeError unless `momentum` can weigh an old value."""
    if not 0 <= momentum <= 1:
        remedy = "It weighs the OLD value; 0.9 is usual."
        raise ShapeError(message(call, "momentum from 0 to 1", repr(momentum), remedy=remedy))


def check_channels(call: str, name: str, channels: int, shape: tuple[int, ...], axis: int) -> None:
    """Raise ShapeError unless `shape` has the channels that an object was made for."""
    if shape[axis] != channels:
        expected = f"{name} with {channels} channels on axis {axis}"
        raise ShapeError(message(call, expected, str(shape[axis]), f"{name} is {shape}"))
