"""The kernels on a CPU, natively. Same functions as `reference`, on NumPy arrays of float32, float64, float16 and
bfloat16 (of the package ml_dtypes); y, dx and dresidual have x's dtype and memory layout.

Numerics: float32 results lie within 8 units of 2^-24, componentwise, of the float64 reference at any mean (see
docs/numerics.md); half types are computed in float32 and rounded once, at the end; the same bits for any number of
threads and any instruction set.
"""

import os
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from normwright import _native
from normwright.core.activation import Activation
from normwright.core.layout import Layout, layout_of
from normwright.core.moments import Gradients, Moments, Saved

Array = NDArray[Any]


def isa() -> str:
    """The instruction set whose kernels run: ``"baseline"``, ``"avx2"``, ``"avx512"`` or
    ``"avx512_bf16"`` (the same with instructions for bfloat16)."""
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
        _native.moments(_code(x), _address(x), *at, saved)
    mean, _, m2, _ = _read(saved)
    return Moments(at.values, mean, m2)


def forward_train(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    axis: int,
    activation: Activation | None = None,
    residual: Array | None = None,
) -> tuple[Array, Saved]:
    """Normalize by the batch's own moments. See `reference.forward_train`."""
    x, at = _seen(x, axis)
    residual, y = _lined_up(residual, x), _dense_like(x)
    saved, bits = _rows(at.channels), _room_for_bits(x, at, activation, residual)
    gamma, beta = _numbers(gamma), _numbers(beta)
    if x.size:
        _native.forward_train(
            _code(x), _address(x), *at, _address(y), _address(gamma), _address(beta), eps, saved,
            _address(residual), _address_of_bytes(bits), *_numbered(activation),
        )  # fmt: skip
    mean, mean_tail, m2, rstd = _read(saved)
    return y, Saved(mean, mean_tail, m2, rstd, at.values, bits)


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
    """Gradients of `forward_train`. See `reference.backward_train`.

    Args:
        residual: not needed where `saved` has bits; None will do there.

    Raises:
        ValueError: the derivative is told by bits after a residual, and `saved` has none.
    """
    x, at = _seen(x, axis)
    dy = _lined_up(dy, x)
    if saved.bits is None and _room_for_bits(x, at, activation, residual) is not None:
        raise ValueError("normwright: expected saved with bits, got none. Use that of cpu.forward_train.")
    after = _After(x, dy, activation, residual, saved.bits)
    dx, sums = _dense_like(x), np.zeros((2, at.channels))
    rows = bytearray(np.array(saved[:4], dtype=np.float64))
    gamma, beta = _numbers(gamma), _numbers(beta)
    if x.size:
        _native.backward_train(
            _code(x), _address(x), *at, _address(dy), _address(dx), _address(gamma), _address(beta), rows,
            _address(sums), _address(sums[1]), **after.arguments(),
        )  # fmt: skip
    return Gradients(dx, sums[0], sums[1], after.dresidual)


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
    """Normalize by a given mean and variance. See `reference.forward_fixed`.

    Args:
        out: an array for the result, of x's shape and dtype; it may be x itself, or the residual.
    """
    x, at = _seen(x, axis)
    residual = _lined_up(residual, x)
    y = out if out is not None and _may_be_written(out, x, residual) else _dense_like(x)
    _forward_fixed(x, at, y, gamma, beta, mean, var, eps, activation, residual, None)
    if out is None or out is y:
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
    """Gradients of `forward_fixed`. See `reference.backward_fixed`."""
    x, at = _seen(x, axis)
    dy, residual = _lined_up(dy, x), _lined_up(residual, x)
    dx, sums = _dense_like(x), np.zeros((2, at.channels))
    bits = _room_for_bits(x, at, activation, residual)
    if bits is not None:  # forward tells them; its y goes where dx will be
        _forward_fixed(x, at, dx, gamma, beta, mean, var, eps, activation, residual, bits)
    after = _After(x, dy, activation, residual, bits)
    gamma, beta = _numbers(gamma), _numbers(beta)
    mean, var = np.ascontiguousarray(mean, np.float64), np.ascontiguousarray(var, np.float64)
    if x.size:
        _native.backward_fixed(
            _code(x), _address(x), *at, _address(dy), _address(dx), _address(gamma), _address(beta),
            _address(mean), _address(var), eps, _address(sums), _address(sums[1]), **after.arguments(),
        )  # fmt: skip
    return Gradients(dx, sums[0], sums[1], after.dresidual)


def _forward_fixed(
    x: Array,
    at: Layout,
    y: Array,
    gamma: Array | None,
    beta: Array | None,
    mean: Array,
    var: Array,
    eps: float,
    activation: Activation | None,
    residual: Array | None,
    bits: bytearray | None,
) -> None:
    gamma, beta = _numbers(gamma), _numbers(beta)
    mean, var = np.ascontiguousarray(mean, np.float64), np.ascontiguousarray(var, np.float64)
    if x.size:
        _native.forward_fixed(
            _code(x), _address(x), *at, _address(y), _address(gamma), _address(beta), _address(mean),
            _address(var), eps, _address(residual), _address_of_bytes(bits), *_numbered(activation),
        )  # fmt: skip


# --- what comes after normalization ----------------------------


def _numbered(activation: Activation | None) -> tuple[int, float, float]:
    """An activation as the native kernels take it: kind, a, b."""
    return (0, 0.0, 0.0) if activation is None else (activation.number, activation.a, activation.b)


def _room_for_bits(
    x: Array, at: Layout, activation: Activation | None, residual: Array | None
) -> bytearray | None:
    """Room for the bits of this call; None where the derivative is not told by bits."""
    if activation is None or residual is None or not activation.is_told_by_a_bit:
        return None
    return bytearray(_native.bits_bytes(_code(x), *at) if x.size else 0)


class _After:
    """Residual, bits and activation of a backward call; dresidual, for the call to fill or dy itself."""

    def __init__(
        self,
        x: Array,
        dy: Array,
        activation: Activation | None,
        residual: Array | None,
        bits: bytearray | None,
    ) -> None:
        self._activation = activation
        self._bits = bits
        self._residual: Array | None = None
        self._filled: Array | None = None
        self.dresidual: Array | None = None
        if residual is None and bits is None:
            return
        if activation is None or activation.kind == "identity":
            self.dresidual = dy
            return
        self.dresidual = self._filled = _dense_like(x)
        if bits is None:
            self._residual = _lined_up(residual, x)

    def arguments(self) -> dict[str, Any]:
        """What a native backward pass takes of it."""
        kind, a, b = _numbered(self._activation)
        residual, bits, dresidual = (
            _address(self._residual),
            _address_of_bytes(self._bits),
            _address(self._filled),
        )
        return {"residual": residual, "bits": bits, "dresidual": dresidual, "kind": kind, "a": a, "b": b}


# --- arrays as the kernels see them ----------------------------

CODES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
"""Types by their names: bfloat16 is not NumPy's own, and its package need not be imported."""


def _code(x: Array) -> int:
    return CODES[x.dtype.name]


def _rows(channels: int) -> bytearray:
    """Room for what forward saves: rows of (C,) doubles, mean, mean_tail, m2 and rstd."""
    return bytearray(4 * 8 * channels)


def _read(saved: bytearray) -> Array:
    return np.frombuffer(saved, np.float64).reshape(4, -1)


def _address(array: Array | None) -> int:
    return 0 if array is None else int(array.ctypes.data)


def _address_of_bytes(room: bytearray | None) -> int:
    return 0 if not room else int(np.frombuffer(room, np.uint8).ctypes.data)


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


T = TypeVar("T", Array, Array | None)


def _lined_up(other: T, x: Array) -> T:
    """dy or a residual as the kernels can see it beside x: dense, its axes in memory in x's order; None is None."""
    if other is None:
        return other
    dense = _dense_like(x)
    if other.strides == dense.strides and other.dtype == x.dtype and other.flags.aligned:
        return other
    dense[...] = other
    return dense


def _may_be_written(out: Array, x: Array, residual: Array | None) -> bool:
    """Whether the kernels can write to `out` itself: it lies as y would, and no value is overwritten unread."""
    if out.strides != _dense_like(x).strides or out.dtype != x.dtype or not out.flags.aligned:
        return False
    read = (x,) if residual is None else (x, residual)
    return all(_same_memory(out, array) or not np.may_share_memory(out, array) for array in read)


def _same_memory(a: Array, b: Array) -> bool:
    return a.strides == b.strides and a.ctypes.data == b.ctypes.data


def _numbers(per_channel: Array | None) -> Array | None:
    """Per-channel numbers as contiguous float64."""
    return None if per_channel is None else np.ascontiguousarray(per_channel, dtype=np.float64)
