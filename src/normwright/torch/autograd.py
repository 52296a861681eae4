"""The autograd functions around the native kernels: what they save, and which way their gradients take."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normwright.core.activation import Activation
from normwright.core.layout import Layout
from normwright.core.running import debiased
from normwright.kernels import NATIVE
from normwright.torch import composed
from normwright.torch.backward import (
    Followed,
    Gradients,
    by_kernel,
    composed_fixed,
    composed_train,
    only,
    wide,
)
from normwright.torch.distributed.shared import numbers_in
from normwright.torch.running import Running
from normwright.torch.watched import being_watched, is_plain

if NATIVE:
    from normwright import _native

_is_grad_enabled = torch.is_grad_enabled
_is_batched = torch._C._functorch.is_batchedtensor
_is_batched_by_older = torch._C._functorch.is_legacy_batchedtensor
_increment_version = torch._C._increment_version


# ---- forward -----------------------------------------------------------------------------------------------


def forward_train(
    x: Tensor, seen: "_native.Seen", running: Running, eps: float, bits: Tensor | None = None
) -> tuple[Tensor, bytearray]:
    """y, and the rows of doubles that backward needs: mean, mean_tail, m2, rstd of (C,)."""
    y = torch.empty_like(x)
    saved = bytearray(32 * seen.channels)
    mean, var, counter, momentum, moves, guard, biased, debias = running
    guarded = moves and mean is not None and guard is not None
    rate = momentum or 0.0
    if debias and moves and momentum is not None and counter is not None:
        rate = debiased(momentum, counter.item() + 1)
    moved = _native.forward_train_seen(
        seen,
        y,
        eps,
        saved,
        moves,
        rate,
        momentum is None,
        guarded,
        biased,
        bits,
    )
    if moves and counter is not None:
        _increment_version((counter,) if mean is None else (mean, var, counter))  # type: ignore[arg-type]
    elif moves and mean is not None:
        _increment_version((mean, var))  # type: ignore[arg-type]
    if not moved:
        guard.refuse()  # type: ignore[union-attr]
    return y, saved


def forward_shared(x: Tensor, seen: "_native.Seen", saved: bytearray, bits: Tensor | None = None) -> Tensor:
    """y, by the statistics that all ranks have (see `share`)."""
    y = torch.empty_like(x)
    _native.forward_by_seen(seen, y, saved, bits)
    return y


def forward_fixed(
    x: Tensor, seen: "_native.Seen", eps: float, bits: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """y; in `out`, which lies as x does, where that is given."""
    y = torch.empty_like(x) if out is None else out
    _native.forward_fixed_seen(seen, y, eps, bits)
    if out is not None:
        _increment_version((out,))
    return y


# ---- autograd ----------------------------------------------------------------------------------------------

# What an activation leaves for backward beside tensors: itself; how the bits lie, and how many bytes they are.
_Told = tuple[Activation, tuple[int, ...], Layout | None, int]


def _followed(told: _Told | None, others: list[Tensor | None]) -> Followed | None:
    """What was saved, in one; `others` are as _to_save gave them."""
    if told is None:
        return None
    activation, strides, layout, size = told
    bias, residual, bits = others
    if bits is not None:
        bits = bits.to(torch.uint8).view(size)  # a hook may have brought it back otherwise
    return Followed(activation, strides, layout, bias, residual, bits)


_Saved = tuple[Tensor | None, ...]


def _room_for_bits(x: Tensor, seen: "_native.Seen", residual: Tensor | None) -> Tensor | None:
    """Like what is there: a default device must not reach in."""
    if residual is None or seen.bits_bytes == 0:
        return None
    return x.new_empty(seen.bits_bytes, dtype=torch.uint8)


def _to_save(bias: Tensor | None, residual: Tensor | None, bits: Tensor | None) -> _Saved:
    return (bias, residual, None) if bits is None else (None, None, bits)


def _must_compose(dy: Tensor) -> bool:
    """True where something must see the operations that make the gradient."""
    return (
        not is_plain(dy)
        or being_watched()
        # is_grads_batched takes torch's older vmap, which shows in the tensor alone
        or _is_batched(dy)
        or _is_batched_by_older(dy)
    )


class _Train(torch.autograd.Function):
    """Batch norm by the batch's own moments, and what follows it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        call: tuple[Any, ...],
    ) -> Tensor:
        laid, known, axis, seen, running, eps, activation, share = call
        bits = None if activation is None else _room_for_bits(laid, seen, residual)
        if share is None:
            shared = None
            y, saved = forward_train(laid, seen, running, eps, bits)
        else:
            shared, saved = share
            y = forward_shared(laid, seen, saved, bits)
        if activation is None:
            ctx.save_for_backward(x, weight)
            ctx.call = axis, saved, eps, None, shared
        else:
            ctx.save_for_backward(x, weight, *_to_save(bias, residual, bits))
            ctx.call = axis, saved, eps, (activation, y.stride(), known, seen.bits_bytes), shared
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *others = ctx.saved_tensors
        axis, saved, eps, told, shared = ctx.call
        wanted, followed = ctx.needs_input_grad, _followed(told, others)
        gradients: Gradients | None = None
        if not _must_compose(dy):
            if not _is_grad_enabled():
                run, asked = _native.backward_train_seen, wanted
                if shared is not None:  # the other ranks wait for the sums, whatever is wanted here
                    run, asked = shared.backward, (*wanted[:2], True, wanted[3])
                gradients = by_kernel(run, (saved,), dy, x, weight, axis, asked, followed)
            elif followed is None and shared is None:
                dx, dweight, dbias = _train_gradients(dy, x, weight, (axis, saved, eps, wanted))
                gradients = dx, dweight, dbias, dy if wanted[3] else None
        if gradients is None:
            gradients = composed_train(dy, x, weight, axis, saved, eps, followed, shared)
        return *only(gradients, wanted), None


class _Fixed(torch.autograd.Function):
    """Batch norm by a constant mean and variance, and what follows it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        call: tuple[Any, ...],
    ) -> Tensor:
        laid, known, axis, seen, mean, var, eps, activation = call
        # Copies, C numbers each: the running statistics may move on before the gradient is asked for.
        mean, var = mean.clone(), var.clone()
        if activation is None:
            ctx.save_for_backward(x, weight, mean, var)
            ctx.call = axis, eps, None
            return forward_fixed(laid, seen, eps)
        bits = _room_for_bits(laid, seen, residual)
        y = forward_fixed(laid, seen, eps, bits)
        ctx.save_for_backward(x, weight, mean, var, *_to_save(bias, residual, bits))
        ctx.call = axis, eps, (activation, y.stride(), known, seen.bits_bytes)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, *others = ctx.saved_tensors
        axis, eps, told = ctx.call
        wanted, followed = ctx.needs_input_grad, _followed(told, others)
        gradients: Gradients | None = None
        if not (_is_grad_enabled() or _must_compose(dy)):
            numbers = mean, var, eps
            gradients = by_kernel(_native.backward_fixed_seen, numbers, dy, x, weight, axis, wanted, followed)
        if gradients is None:
            gradients = only(composed_fixed(dy, x, weight, axis, mean, var, eps, followed), wanted)
        return *gradients, None


class _TrainGradients(torch.autograd.Function):
    """The gradients of `_Train` where they will be differentiated and no activation followed: by the kernel; their
    own in closed form.
    """

    @staticmethod
    def forward(
        ctx: Any,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        call: tuple[int, bytearray, float, tuple[bool, ...]],
    ) -> tuple[Tensor | None, ...]:
        axis, saved, eps, wanted = call
        ctx.save_for_backward(dy, x, weight)
        ctx.set_materialize_grads(False)
        ctx.call = axis, saved, eps
        gradients = by_kernel(_native.backward_train_seen, (saved,), dy, x, weight, axis, wanted, None)
        if gradients is None:
            gradients = only(composed_train(dy, x, weight, axis, saved, eps, None), wanted)
        return gradients[:3]

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, x, weight = (wide(t) for t in ctx.saved_tensors)
        axis, saved, eps = ctx.call
        of, kept = composed.Channels(x, axis), numbers_in(saved)
        if torch.is_grad_enabled() or being_watched():
            x_hat, rstd = composed.normalized(x, kept[0], eps, of)
        else:
            x_hat, rstd = composed.normalized_by(x, kept[0], kept[3], of)
        given = wide(u), wide(a), wide(b)
        to_dy, to_x, to_weight = composed.second_train(given, dy, x_hat, rstd, weight, of)
        return *only((to_dy, to_x, to_weight, None), (*ctx.needs_input_grad, False))[:3], None


# Function.apply asks for function transforms first, in Python; those never come here.
train: Callable[..., Tensor] = super(torch.autograd.Function, _Train).apply
fixed: Callable[..., Tensor] = super(torch.autograd.Function, _Fixed).apply
_train_gradients: Callable[..., Any] = super(torch.autograd.Function, _TrainGradients).apply
