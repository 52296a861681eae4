"""Where torch tensors meet the native kernels: who may take them, and the autograd functions around them.

The native path writes through addresses, which torch does not see. It therefore takes only plain tensors on the
CPU, with nothing in sight that follows operations (dispatch modes, function transforms, forward-mode AD, tracing,
compilation), and tells autograd of every buffer it wrote.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from normwright.core.layout import Layout, layout_of
from normwright.kernels import NATIVE
from normwright.torch import composed
from normwright.torch.running import Running

if NATIVE:
    from normwright import _native

    _native.use_tensors_of(torch.Tensor.__dlpack_c_exchange_api__, Tensor, torch.nn.Parameter)

PLAIN = (Tensor, torch.nn.Parameter)
_FLOAT, _DOUBLE, _STRIDED = torch.float32, torch.float64, torch.strided
_DTYPES = (_FLOAT, _DOUBLE)
# A layer of a few hundred values costs what these questions cost, so they are asked by their nearest names.
_is_grad_enabled = torch.is_grad_enabled
_tracing_state = torch._C._get_tracing_state
_dispatch_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.peek_interpreter_stack
_is_batched = torch._C._functorch.is_batchedtensor
_is_batched_by_older = torch._C._functorch.is_legacy_batchedtensor
_increment_version = torch._C._increment_version


def being_traced() -> bool:
    """True while torch.compile, torch.export or torch.jit.trace records what is called."""
    return torch.compiler.is_compiling() or _tracing_state() is not None


def being_watched() -> bool:
    """True while something follows tensor operations that would not see a kernel's work."""
    return _dispatch_modes() > 0 or _transforms() is not None or forward_ad._current_level >= 0


def is_plain(x: Tensor) -> bool:
    """True where x is on the CPU, and its memory is what x says it is."""
    return (
        type(x) in PLAIN and x.is_cpu and x.layout is _STRIDED and not x.is_neg() and not x._is_zerotensor()
    )


def batch_norm(
    x: Tensor,
    axis: int,
    running: Running,
    weight: Tensor | None,
    bias: Tensor | None,
    by_batch: bool,
    eps: float,
) -> Tensor | None:
    """y, by the native kernels; None where they do not apply, and where any argument is wrong.

    Whoever gets None must look for errors, which so costs the usual call nothing. Where a gradient is wanted, what
    autograd would refuse after the kernel has run (to save a tensor made in inference mode, a gradient for running
    statistics) is left to torch, which refuses before.
    """
    if (
        not NATIVE
        or type(x) not in PLAIN
        or x.dtype not in _DTYPES
        or not x.is_cpu  # tensors elsewhere can be seen too, but to fail there takes long
        or x.layout is not _STRIDED
        or x.is_neg()
        or being_watched()
        or not (eps > 0 if by_batch else eps >= 0)
    ):
        return None
    known = None
    laid = x
    if not x.is_contiguous():
        if axis != 1 or x.dim() < 2:
            return None
        laid, known = _laid_out(x)
    mean, var, counter = running.mean, running.var, running.counter
    seen = _native.see(laid, axis, weight, bias, mean, var, counter, by_batch, known)
    if seen is None:
        return None
    wanted = False
    grad = _is_grad_enabled()
    if weight is not None:
        if weight.is_neg():
            return None
        wanted = grad and weight.requires_grad
    if bias is not None:
        if bias.is_neg():
            return None
        wanted = wanted or (grad and bias.requires_grad)
    if (
        mean is not None
        and var is not None
        and (mean.is_neg() or var.is_neg() or (grad and (mean.requires_grad or var.requires_grad)))
    ):
        return None
    wanted = wanted or (grad and x.requires_grad)
    if wanted and (
        x.is_inference()
        or (weight is not None and weight.is_inference())
        or (mean is not None and mean.is_inference())
    ):
        return None
    if by_batch:
        if wanted:
            return _train(x, weight, bias, (laid, axis, seen, running, eps))
        return _forward_train(laid, seen, running, eps)[0]
    if wanted:
        return _fixed(x, weight, bias, (laid, axis, seen, mean, var, eps))
    return _forward_fixed(laid, seen, eps)


# ---- layout ------------------------------------------------------------------------------------------------


def _laid_out(x: Tensor) -> tuple[Tensor, Layout | None]:
    """x, which is not contiguous, and its layout; a dense copy where it has none, or y would not lie as torch's."""
    at = layout_of(x.shape, x.stride(), 1)
    if at is None or not _lies_as_torchs(x, at):
        return x.detach().contiguous(), None
    return x, at


def _lies_as_torchs(x: Tensor, at: Layout) -> bool:
    """True where x's axes are in the order that torch gives y: contiguous or, in 4-D and 5-D, channels-last."""
    strides = [s for n, s in zip(x.shape, x.stride(), strict=True) if n != 1]
    in_order = strides == sorted(strides, reverse=True)
    if at.inner > 1 or x.dim() not in (4, 5):
        return in_order
    spatial = [x.stride(d) for d in (0, *range(2, x.dim())) if x.shape[d] != 1]
    return spatial == sorted(spatial, reverse=True)


# ---- forward -----------------------------------------------------------------------------------------------


def _forward_train(x: Tensor, seen: "_native.Seen", running: Running, eps: float) -> tuple[Tensor, bytearray]:
    """y, and the rows of doubles that backward needs: mean, mean_tail, m2, rstd of (C,)."""
    y = torch.empty_like(x)
    saved = bytearray(32 * seen.channels)
    mean, var, counter, momentum, moves, guard = running
    guarded = moves and mean is not None and guard is not None
    moved = _native.forward_train_seen(seen, y, eps, saved, moves, momentum or 0.0, momentum is None, guarded)
    if moves and counter is not None:
        _increment_version((counter,) if mean is None else (mean, var, counter))  # type: ignore[arg-type]
    elif moves and mean is not None:
        _increment_version((mean, var))  # type: ignore[arg-type]
    if not moved:
        guard.refuse()  # type: ignore[union-attr]
    return y, saved


def _forward_fixed(x: Tensor, seen: "_native.Seen", eps: float) -> Tensor:
    y = torch.empty_like(x)
    _native.forward_fixed_seen(seen, y, eps)
    return y


# ---- backward ----------------------------------------------------------------------------------------------

_Gradients = composed.Gradients


def _lined_up(x: Tensor, dy: Tensor, dx: Tensor | None) -> Tensor:
    """dy as the kernels need it: dense, its axes in memory in x's order, as dx's are."""
    if dx is not None and dy.stride() == dx.stride():
        return dy
    dense = torch.empty_like(x)
    return dy if dy.stride() == dense.stride() else dense.copy_(dy)


def _backward_train(
    dy: Tensor, x: Tensor, weight: Tensor | None, axis: int, saved: bytearray, wanted: tuple[bool, ...]
) -> _Gradients | None:
    """The gradients; None where what was saved is not what forward saw (a hook may have changed it)."""
    laid, known = (x, None) if x.is_contiguous() else _laid_out(x)
    dx, dweight, dbias = _room(laid, weight, x.shape[axis], wanted)
    if not (laid.is_contiguous() and dy.is_contiguous()):
        dy = _lined_up(laid, dy, dx)
    if not _native.backward_train_seen(laid, axis, dy, weight, saved, dx, dweight, dbias, known):
        return None
    return dx, dweight, dbias


def _backward_fixed(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, axis: int, eps: float,
    wanted: tuple[bool, ...],
) -> _Gradients | None:  # fmt: skip
    laid, known = (x, None) if x.is_contiguous() else _laid_out(x)
    dx, dweight, dbias = _room(laid, weight, x.shape[axis], wanted)
    if not (laid.is_contiguous() and dy.is_contiguous()):
        dy = _lined_up(laid, dy, dx)
    if not _native.backward_fixed_seen(laid, axis, dy, weight, mean, var, eps, dx, dweight, dbias, known):
        return None
    return dx, dweight, dbias


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
    return x.new_empty(channels) if weight is None else torch.empty_like(weight)


def _must_compose(dy: Tensor) -> bool:
    """True where something must see the operations that make the gradient."""
    return (
        not is_plain(dy)
        or being_watched()
        # is_grads_batched takes torch's older vmap, which shows in the tensor alone
        or _is_batched(dy)
        or _is_batched_by_older(dy)
    )


def _only(gradients: _Gradients, wanted: tuple[bool, ...]) -> _Gradients:
    """The gradients that were asked for; autograd takes none for an input that is None."""
    dx, dweight, dbias = (g if n else None for g, n in zip(gradients, wanted, strict=False))
    return dx, dweight, dbias


def _composed_train(
    dy: Tensor, x: Tensor, weight: Tensor | None, axis: int, saved: bytearray, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    of = composed.Channels(x, axis)
    x_hat, rstd = composed.normalized(x, _rows(saved)[0], eps, of)
    return composed.train(dy, x_hat, rstd, weight, of)


def _rows(saved: bytearray) -> Tensor:
    return torch.frombuffer(saved, dtype=torch.float64).view(4, -1)


# ---- autograd ----------------------------------------------------------------------------------------------


class _Train(torch.autograd.Function):
    """Batch norm by the batch's own moments."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, call: tuple[Any, ...]
    ) -> Tensor:
        laid, axis, seen, running, eps = call
        y, saved = _forward_train(laid, seen, running, eps)
        ctx.save_for_backward(x, weight)
        ctx.call = axis, saved, eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        axis, saved, eps = ctx.call
        wanted = ctx.needs_input_grad
        gradients: _Gradients | None = None
        if not _must_compose(dy):
            if _is_grad_enabled():
                gradients = _train_gradients(dy, x, weight, (axis, saved, eps, wanted))
            else:
                gradients = _backward_train(dy, x, weight, axis, saved, wanted)
        if gradients is None:
            gradients = _only(_composed_train(dy, x, weight, axis, saved, eps), wanted)
        return *gradients, None


class _Fixed(torch.autograd.Function):
    """Batch norm by a constant mean and variance."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, call: tuple[Any, ...]
    ) -> Tensor:
        laid, axis, seen, mean, var, eps = call
        # Copies, C numbers each: the running statistics may move on before the gradient is asked for.
        ctx.save_for_backward(x, weight, mean.clone(), var.clone())
        ctx.call = axis, eps
        return _forward_fixed(laid, seen, eps)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        axis, eps = ctx.call
        wanted = ctx.needs_input_grad
        gradients: _Gradients | None = None
        if not (_is_grad_enabled() or _must_compose(dy)):
            gradients = _backward_fixed(dy, x, weight, mean, var, axis, eps, wanted)
        if gradients is None:
            of = composed.Channels(x, axis)
            x_hat, rstd = composed.normalized_by(x, mean.double(), (var.double() + eps).rsqrt(), of)
            gradients = _only(composed.fixed(dy, x_hat, rstd, weight, of), wanted)
        return *gradients, None


class _TrainGradients(torch.autograd.Function):
    """The gradients of `_Train` where they will be differentiated: by the kernel; their own in closed form."""

    @staticmethod
    def forward(
        ctx: Any,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        call: tuple[int, bytearray, float, tuple[bool, ...]],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        axis, saved, eps, wanted = call
        ctx.save_for_backward(dy, x, weight)
        ctx.set_materialize_grads(False)
        ctx.call = axis, saved, eps
        gradients = _backward_train(dy, x, weight, axis, saved, wanted)
        return gradients or _only(_composed_train(dy, x, weight, axis, saved, eps), wanted)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, x, weight = ctx.saved_tensors
        axis, saved, eps = ctx.call
        of, rows = composed.Channels(x, axis), _rows(saved)
        if torch.is_grad_enabled() or being_watched():
            x_hat, rstd = composed.normalized(x, rows[0], eps, of)
        else:
            x_hat, rstd = composed.normalized_by(x, rows[0], rows[3], of)
        gradients = composed.second_train((u, a, b), dy, x_hat, rstd, weight, of)
        return *_only(gradients, ctx.needs_input_grad), None


# Function.apply asks for function transforms first, in Python; those never come here.
_train: Callable[..., Tensor] = super(torch.autograd.Function, _Train).apply
_fixed: Callable[..., Tensor] = super(torch.autograd.Function, _Fixed).apply
_train_gradients: Callable[..., Any] = super(torch.autograd.Function, _TrainGradients).apply
