"""The kernels on a CPU, natively. Same functions as `reference`, on float32 and float64 NumPy arrays; y and dx
have x's dtype and memory layout.

Numerics: float32 results lie within 8 units of 2^-24, componentwise, of the float64 reference at any mean (see
docs/numerics.md); the same bits for any number of threads and any instruction set.
"""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normwright import _native
from normwright.core.layout import Layout, layout_of
from normwright.core.moments import Moments, Saved

Array = NDArray[Any]


def isa() -> str:
    """The instruction set whose kernels run: ``"baseline"``, ``"avx2"`` or ``"avx512"``."""
    return _native.isa()


def force_isa(name: str) -> None:
    """Run the kernels of the instruction set `name` from now on.

    Raises:
        ValueError: this machine cannot run it.
    """
    if not _native.force_isa(name):
        raise ValueError(f"normwright: expected NORMWRIGHT_ISA to be one of {_native.isas()}, got {name!r}.")


if "NORMWRIGHT_ISA" in os.environ:
    force_isa(os.environ["NORMWRIGHT_ISA"])


def moments(x: Array, axis: int) -> Moments:
    """Count, mean and m2 of every channel. See `reference.moments`."""
    x, at = _seen(x, axis)
    saved = _rows(at.channels)
    if x.size:
        _native.moments(x.dtype == np.float64, _address(x), *at, saved)
    mean, _, m2, _ = _read(saved)
    return Moments(at.values, mean, m2)


def forward_train(
    x: Array, gamma: Array | None, beta: Array | None, eps: float, axis: int
) -> tuple[Array, Saved]:
    """Normalize by the batch's own moments. See `reference.forward_train`."""
    x, at = _seen(x, axis)
    y = _dense_like(x)
    saved = _rows(at.channels)
    gamma, beta = _numbers(gamma), _numbers(beta)
    if x.size:
        _native.forward_train(
            x.dtype == np.float64, _address(x), *at, _address(y), _address(gamma), _address(beta), eps, saved
        )  # fmt: skip
    mean, mean_tail, m2, rstd = _read(saved)
    return y, Saved(mean, mean_tail, m2, rstd, at.values)


def backward_train(
    dy: Array, x: Array, gamma: Array | None, saved: Saved, axis: int
) -> tuple[Array, Array, Array]:
    """Gradients of `forward_train`: dx, dgamma, dbeta. See `reference.backward_train`."""
    x, at, dy = _seen_with(x, dy, axis)
    dx = _dense_like(x)
    gradients = np.zeros((2, at.channels))
    rows = bytearray(np.array(saved[:4], dtype=np.float64))
    gamma = _numbers(gamma)
    if x.size:
        _native.backward_train(
            x.dtype == np.float64, _address(x), *at, _address(dy), _address(dx), _address(gamma),
            rows, _address(gradients), _address(gradients[1]),
        )  # fmt: skip
    return dx, gradients[0], gradients[1]


def forward_fixed(
    x: Array, gamma: Array | None, beta: Array | None, mean: Array, var: Array, eps: float, axis: int
) -> Array:
    """Normalize by a given mean and variance. See `reference.forward_fixed`."""
    x, at = _seen(x, axis)
    y = _dense_like(x)
    gamma, beta = _numbers(gamma), _numbers(beta)
    mean, var = np.ascontiguousarray(mean, np.float64), np.ascontiguousarray(var, np.float64)
    if x.size:
        _native.forward_fixed(
            x.dtype == np.float64, _address(x), *at, _address(y), _address(gamma), _address(beta),
            _address(mean), _address(var), eps,
        )  # fmt: skip
    return y


def backward_fixed(
    dy: Array, x: Array, gamma: Array | None, mean: Array, var: Array, eps: float, axis: int
) -> tuple[Array, Array, Array]:
    """Gradients of `forward_fixed`: dx, dgamma, dbeta. See `reference.backward_fixed`."""
    x, at, dy = _seen_with(x, dy, axis)
    dx = _dense_like(x)
    gradients = np.zeros((2, at.channels))
    gamma = _numbers(gamma)
    mean, var = np.ascontiguousarray(mean, np.float64), np.ascontiguousarray(var, np.float64)
    if x.size:
        _native.backward_fixed(
            x.dtype == np.float64, _address(x), *at, _address(dy), _address(dx), _address(gamma),
            _address(mean), _address(var), eps, _address(gradients), _address(gradients[1]),
        )  # fmt: skip
    return dx, gradients[0], gradients[1]


def _rows(channels: int) -> bytearray:
    """Room for what forward saves: rows of (C,) doubles, mean, mean_tail, m2 and rstd."""
    return bytearray(4 * 8 * channels)


def _read(saved: bytearray) -> Array:
    return np.frombuffer(saved, np.float64).reshape(4, -1)


def _address(array: Array | None) -> int:
    return 0 if array is None else int(array.ctypes.data)


def _seen(x: Array, axis: int) -> tuple[Array, Layout]:
    """x as the kernels can see it, copied where its strides leave no other way."""
    if x.size == 0:
        return x, Layout(0, x.shape[axis], 1, x.shape[axis])
    at = layout_of(x.shape, [s // x.itemsize for s in x.strides], axis % x.ndim)
    if at is None or not x.flags.aligned or any(s % x.itemsize for s in x.strides):
        x = np.array(x, order="C")
        at = layout_of(x.shape, [s // x.itemsize for s in x.strides], axis % x.ndim)
        assert at is not None  # a C-contiguous array always has a layout
    return x, at


def _dense_like(x: Array) -> Array:
    """An uninitialised array with x's shape and order of axes in memory, without x's gaps."""
    return np.empty_like(x, order="K", subok=False)


def _seen_with(x: Array, dy: Array, axis: int) -> tuple[Array, Layout, Array]:
    """x and dy as the kernels can see them: dy dense, its axes in memory in x's order."""
    x, at = _seen(x, axis)
    dense = _dense_like(x)
    if dy.strides != dense.strides or dy.dtype != x.dtype:
        dense[...] = dy
        dy = dense
    return x, at, dy


def _numbers(per_channel: Array | None) -> Array | None:
    """Per-channel numbers as contiguous float64."""
    return None if per_channel is None else np.ascontiguousarray(per_channel, dtype=np.float64)
