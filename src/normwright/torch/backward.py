"""The gradients of a call, by the native kernels; and as tensor operations, where something follows operations."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from normwright.core.activation import Activation
from normwright.core.layout import Layout
from normwright.kernels import NATIVE
from normwright.torch import activations, composed
from normwright.torch.distributed.shared import Shared, Together, first_gradients, numbers_in
from normwright.torch.layouts import laid_out, lined_up, room_like
from normwright.torch.running import HALF

if NATIVE:
    from normwright import _native


class Followed(NamedTuple):
    """The activation that followed batch norm, and what its derivative needs beside x and per-channel numbers.

    Attributes:
        activation: it.
        strides, layout: y's strides and x's layout, or None where it was contiguous; in that order the bits are.
        bias: (C,), for z is made again; None where there is none, or bits.
        residual: what was added; None where nothing was, or bits.
        bits: uint8, what the kernel wrote of each z.
    """

    activation: Activation
    strides: tuple[int, ...]
    layout: Layout | None
    bias: Tensor | None = None
    residual: Tensor | None = None
    bits: Tensor | None = None


# ---- backward, by the kernels ------------------------------------------------------------------------------

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]  # of x, weight, bias, residual


def by_kernel(
    run: Callable[..., bool], numbers: tuple[Any, ...], dy: Tensor, x: Tensor, weight: Tensor | None, axis: int,
    wanted: tuple[bool, ...], followed: Followed | None,
) -> Gradients | None:  # fmt: skip
    """The gradients; None where what was saved is not what forward saw (a hook may have changed it)."""
    laid, known = (x, None) if x.is_contiguous() else laid_out(x)
    if followed is not None and followed.bits is not None and known != followed.layout:
        laid, known = _room_as_then(x, x.dtype, followed).copy_(x), followed.layout
    dx, dweight, dbias = _room(laid, weight, x.shape[axis], wanted)
    further: tuple[Any, ...] = ()
    dresidual: Tensor | None = dy
    if followed is None:
        if dx is None and dweight is None and dbias is None:
            return None, None, None, dy
    else:
        dresidual = torch.empty_like(laid) if wanted[3] else None
        if dx is None and dresidual is not None:
            dx = torch.empty_like(laid)
        further = _further(laid, followed, dresidual)
    if not (laid.is_contiguous() and dy.is_contiguous()):
        dy = lined_up(laid, dy, dx)
    if not run(laid, axis, dy, weight, *numbers, dx, dweight, dbias, known, *further):
        if weight is not None and weight.dtype in HALF:  # the kernels take it in float32
            return by_kernel(run, numbers, dy, x, weight.float(), axis, wanted, followed)
        return None
    return only((dx, dweight, dbias, dresidual), wanted)


def _further(laid: Tensor, followed: Followed, dresidual: Tensor | None) -> tuple[Any, ...]:
    """bias, activation, residual, bits and dresidual, as the kernels take them."""
    activation, bias, residual, bits = followed.activation, followed.bias, followed.residual, followed.bits
    if residual is not None and not (laid.is_contiguous() and residual.is_contiguous()):
        residual = lined_up(laid, residual)
    return in_float32(bias), activations.native(activation), residual, bits, dresidual


def in_float32(t: Tensor | None) -> Tensor | None:
    """Numbers of a half type in float32, without a graph; all else as it is."""
    return t.detach().float() if isinstance(t, Tensor) and t.dtype in HALF else t


def _room_as_then(x: Tensor, dtype: torch.dtype, followed: Followed) -> Tensor:
    """Room for x that lies as x did when the bits were written."""
    y = torch.empty_strided(x.shape, followed.strides, dtype=dtype, device="cpu")
    return room_like(y, followed.layout)


def _room(
    x: Tensor, weight: Tensor | None, channels: int, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Room for the gradients wanted. Like what is there: a default device must not reach in."""
    return (
        torch.empty_like(x) if wanted[0] else None,
        _per_channel(x, weight, channels) if wanted[1] else None,
        _per_channel(x, weight, channels) if wanted[2] else None,
    )


def _per_channel(x: Tensor, weight: Tensor | None, channels: int) -> Tensor:
    if weight is not None:
        return torch.empty_like(weight)
    return x.new_empty(channels, dtype=torch.float32 if x.dtype in HALF else x.dtype)


def only(gradients: Gradients, wanted: tuple[bool, ...]) -> Gradients:
    """The gradients that were asked for; autograd takes none for an input that is None."""
    dx, dweight, dbias, dresidual = (g if n else None for g, n in zip(gradients, wanted, strict=False))
    return dx, dweight, dbias, dresidual


# ---- backward, by operations -------------------------------------------------------------------------------

_T = TypeVar("_T", Tensor, Tensor | None)


def wide(t: _T) -> _T:
    """Half types in float32, to be rounded once at the end: autograd gives a gradient the type of what it is of."""
    return t.float() if t is not None and t.dtype in HALF else t


def composed_train(
    dy: Tensor, x: Tensor, weight: Tensor | None, axis: int, saved: bytearray, eps: float,
    followed: Followed | None, shared: Shared | None = None,
) -> Gradients:  # fmt: skip
    of = composed.Channels(x, axis) if shared is None else Together(x, axis, shared.count, shared.peers)
    bit = _bit(_native.backward_train_seen, (saved,), dy, x, axis, followed)
    dy, x, weight = wide(dy), wide(x), wide(weight)
    if shared is not None and not torch.is_grad_enabled():
        mean, mean_tail, _, rstd = numbers_in(saved)
        x_hat, rstd = composed.normalized_by(x, mean, rstd, of, mean_tail)
        dz = _dz(dy, x_hat, weight, of, followed, bit)
        return *first_gradients(dz, x_hat, rstd, weight, of, shared.count, shared.peers), dz
    x_hat, rstd = composed.normalized(x, numbers_in(saved)[0], eps, of)
    dz = _dz(dy, x_hat, weight, of, followed, bit)
    return *composed.train(dz, x_hat, rstd, weight, of), dz


def composed_fixed(
    dy: Tensor, x: Tensor, weight: Tensor | None, axis: int, mean: Tensor, var: Tensor, eps: float,
    followed: Followed | None,
) -> Gradients:  # fmt: skip
    of = composed.Channels(x, axis)
    bit = _bit(_native.backward_fixed_seen, (mean, var, eps), dy, x, axis, followed)
    dy, x, weight = wide(dy), wide(x), wide(weight)
    x_hat, rstd = composed.normalized_by(x, mean.double(), (var.double() + eps).rsqrt(), of)
    dz = _dz(dy, x_hat, weight, of, followed, bit)
    return *composed.fixed(dz, x_hat, rstd, weight, of), dz


def _dz(
    dy: Tensor, x_hat: Tensor, weight: Tensor | None, of: composed.Channels, followed: Followed | None,
    bit: Tensor | None,
) -> Tensor:  # fmt: skip
    """The gradient of z = weight * x_hat + bias + residual; z's own where the kernel's bits do not tell."""
    if followed is None:
        return dy
    if bit is not None:
        return activations.gradient_by_bit(followed.activation, bit, dy)
    z = x_hat if weight is None else x_hat * of.along(weight)
    if followed.bias is not None:
        z = z + of.along(wide(followed.bias))
    if followed.residual is not None:
        z = z + wide(followed.residual)
    return activations.gradient(followed.activation, z, dy.to(z.dtype))


def _bit(
    run: Callable[..., bool], numbers: tuple[Any, ...], dy: Tensor, x: Tensor, axis: int,
    followed: Followed | None,
) -> Tensor | None:  # fmt: skip
    """True where the kernel's bit is set: where it makes 1 of a gradient of ones. None without bits."""
    if followed is None or followed.bits is None:
        return None
    ones = _room_as_then(x, dy.dtype, followed).fill_(1)
    made = by_kernel(run, numbers, ones, ones, None, axis, (False, False, False, True), followed)
    if made is None or made[3] is None:
        raise RuntimeError("normwright.torch: the bits that were saved for backward cannot be read here.")
    return made[3] == 1
