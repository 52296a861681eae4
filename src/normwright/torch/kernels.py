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
from torch.autograd.graph import increment_version

from normwright.core.layout import Layout, layout_of
from normwright.kernels import NATIVE

if NATIVE:
    from normwright import _native

_PLAIN = (Tensor, torch.nn.Parameter)
_DTYPES = (torch.float32, torch.float64)


def being_traced() -> bool:
    """True while torch.compile, torch.export or torch.jit.trace records what is called."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _is_watched() -> bool:
    """True while something follows tensor operations that would not see a kernel's work."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def _is_plain(x: Tensor) -> bool:
    """True where x's memory is what x says it is."""
    return (
        type(x) in _PLAIN
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_neg()
        and not x._is_zerotensor()
    )


def apply(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> bool:
    """True where the native kernels apply to x and these per-channel tensors, whose shapes were checked before."""
    dtype = x.dtype
    if not NATIVE or dtype not in _DTYPES or not _is_plain(x) or _is_watched() or x.numel() == 0:
        return False
    grad = torch.is_grad_enabled()
    for t in (running_mean, running_var, weight, bias):
        if t is None:
            continue  # a plain loop: all() over a generator takes twice the time
        if t.dtype is not dtype or not t.is_contiguous() or not _is_plain(t):
            return False
        if grad and t.is_inference():
            return False
    # What autograd refuses (to save a tensor made in inference mode, a gradient for running statistics) it would
    # refuse after the kernel has run: torch's own raises before.
    if grad and x.is_inference():
        return False
    return not (
        grad
        and running_mean is not None
        and running_var is not None
        and (running_mean.requires_grad or running_var.requires_grad)
    )


def batch_norm_train(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    rate: float,
    eps: float,
) -> Tensor:
    """Normalize by the batch; move the running statistics in place."""
    running = (running_mean, running_var, rate)
    if _wants_gradient(x, weight, bias):
        return _train(x, weight, bias, running, eps)
    return _forward_train(x, weight, bias, running, eps)[0]


def batch_norm_fixed(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Normalize by a given mean and variance, which are constants."""
    if _wants_gradient(x, weight, bias):
        return _fixed(x, weight, bias, mean, var, eps)
    return _forward_fixed(x, weight, bias, mean, var, eps)


def _wants_gradient(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
    )


# ---- layout ------------------------------------------------------------------------------------------------


def _seen(x: Tensor) -> tuple[Tensor, Layout]:
    """x as the kernels can see it; copied where it cannot be seen so, or where y would not lie as torch's."""
    shape = x.shape
    if x.is_contiguous():
        inner = x.numel() // (shape[0] * shape[1])
        return x, Layout(shape[0], shape[1], inner, shape[1] * inner)
    at = layout_of(shape, x.stride(), 1)
    if at is None or not _lies_as_torchs(x, at):
        return _seen(x.contiguous())
    return x, at


def _lies_as_torchs(x: Tensor, at: Layout) -> bool:
    """True where x's axes are in the order that torch gives y: contiguous or, in 4-D and 5-D, channels-last."""
    strides = [s for n, s in zip(x.shape, x.stride(), strict=True) if n != 1]
    in_order = strides == sorted(strides, reverse=True)
    if at.inner > 1 or x.dim() not in (4, 5):
        return in_order
    spatial = [x.stride(d) for d in (0, *range(2, x.dim())) if x.shape[d] != 1]
    return spatial == sorted(spatial, reverse=True)


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


# ---- forward -----------------------------------------------------------------------------------------------

_Running = tuple[Tensor | None, Tensor | None, float]


def _forward_train(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running: _Running, eps: float
) -> tuple[Tensor, Tensor]:
    """y, and the (4, C) doubles that backward needs: mean, mean_tail, m2, rstd."""
    x, at = _seen(x)
    y = torch.empty_like(x)
    saved = torch.empty((4, at.channels), dtype=torch.float64)
    running_mean, running_var, rate = running
    is_double = x.dtype is torch.float64
    _native.forward_train(
        is_double, x.data_ptr(), *at, y.data_ptr(), is_double, _address(weight), _address(bias), eps,
        saved.data_ptr(), _address(running_mean), _address(running_var), rate,
    )  # fmt: skip
    if running_mean is not None and running_var is not None and not running_mean.is_inference():
        increment_version((running_mean, running_var))
    return y, saved


def _forward_fixed(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    x, at = _seen(x)
    y = torch.empty_like(x)
    is_double = x.dtype is torch.float64
    _native.forward_fixed(
        is_double, x.data_ptr(), *at, y.data_ptr(), is_double, _address(weight), _address(bias),
        mean.data_ptr(), var.data_ptr(), eps,
    )  # fmt: skip
    return y


# ---- autograd ----------------------------------------------------------------------------------------------

_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class _Train(torch.autograd.Function):
    """Batch norm by the batch's own moments."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, running: _Running, eps: float
    ) -> Tensor:
        y, saved = _forward_train(x, weight, bias, running, eps)
        ctx.save_for_backward(x, weight, saved)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, saved = ctx.saved_tensors
        if _must_compose(dy):
            return *_only(ctx, _composed_train(dy, x, weight, saved[0], ctx.eps)), None, None
        x, at = _seen(x)
        dy, dx, dweight, dbias = _gradients_for(dy, x, ctx.needs_input_grad)
        is_double = x.dtype is torch.float64
        _native.backward_train(
            is_double, x.data_ptr(), *at, dy.data_ptr(), _address(dx), is_double, _address(weight),
            saved.data_ptr(), _address(dweight), _address(dbias),
        )  # fmt: skip
        return dx, dweight, dbias, None, None


class _Fixed(torch.autograd.Function):
    """Batch norm by a constant mean and variance."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
    ) -> Tensor:
        # Copies, C numbers each: the running statistics may move on before the gradient is asked for.
        ctx.save_for_backward(x, weight, mean.clone(), var.clone())
        ctx.eps = eps
        return _forward_fixed(x, weight, bias, mean, var, eps)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        if _must_compose(dy):
            return *_only(ctx, _composed_fixed(dy, x, weight, mean, var, ctx.eps)), None, None, None
        x, at = _seen(x)
        dy, dx, dweight, dbias = _gradients_for(dy, x, ctx.needs_input_grad)
        is_double = x.dtype is torch.float64
        _native.backward_fixed(
            is_double, x.data_ptr(), *at, dy.data_ptr(), _address(dx), is_double, _address(weight),
            mean.data_ptr(), var.data_ptr(), ctx.eps, _address(dweight), _address(dbias),
        )  # fmt: skip
        return dx, dweight, dbias, None, None, None


# Function.apply asks for function transforms first, in Python; those never come here.
_train: Callable[..., Tensor] = super(torch.autograd.Function, _Train).apply
_fixed: Callable[..., Tensor] = super(torch.autograd.Function, _Fixed).apply


def _must_compose(dy: Tensor) -> bool:
    """True where the gradient itself will be differentiated, or something must see its operations."""
    return (
        torch.is_grad_enabled()
        or not _is_plain(dy)
        or _is_watched()
        # is_grads_batched takes torch's older vmap, which shows in the tensor alone
        or torch._C._functorch.is_batchedtensor(dy)
        or torch._C._functorch.is_legacy_batchedtensor(dy)
    )


def _only(ctx: Any, gradients: "_Gradients") -> "_Gradients":
    """The gradients that were asked for; autograd takes none for an input that is None."""
    dx, dweight, dbias = (g if n else None for g, n in zip(gradients, ctx.needs_input_grad, strict=False))
    return dx, dweight, dbias


def _gradients_for(
    dy: Tensor, x: Tensor, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """dy as the kernels need it (dense, its axes in memory in x's order), and room for the gradients wanted."""
    need_dx, need_dweight, need_dbias = wanted[:3]
    dx = torch.empty_like(x) if need_dx else None
    dense = torch.empty_like(x) if dx is None else dx
    if dy.stride() != dense.stride():
        dy = torch.empty_like(x).copy_(dy)
    channels = x.shape[1]
    dweight = torch.empty(channels, dtype=x.dtype) if need_dweight else None
    dbias = torch.empty(channels, dtype=x.dtype) if need_dbias else None
    return dy, dx, dweight, dbias


# ---- composed gradients: differentiable, and open to whatever follows operations ---------------------------


def _composed_train(dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, eps: float) -> _Gradients:
    """dx = weight * rstd * (dy - mean(dy) - x_hat * mean(dy * x_hat)), with x_hat as a function of x."""
    dims, per_channel = _axes(x)
    # Any constant may be taken off first; one near the mean keeps the digits of what is left.
    centred = x - mean.to(x.dtype).view(per_channel)
    centred = centred - centred.mean(dims, keepdim=True)
    rstd = (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    x_hat = centred * rstd
    product = dy * x_hat
    scale = rstd if weight is None else rstd * weight.view(per_channel)
    dx = scale * (dy - dy.mean(dims, keepdim=True) - x_hat * product.mean(dims, keepdim=True))
    return dx, product.sum(dims), dy.sum(dims)


def _composed_fixed(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> _Gradients:
    """dx = weight * rstd * dy."""
    dims, per_channel = _axes(x)
    rstd = (var.view(per_channel) + eps).rsqrt()
    scale = rstd if weight is None else rstd * weight.view(per_channel)
    return scale * dy, (dy * ((x - mean.view(per_channel)) * rstd)).sum(dims), dy.sum(dims)


def _axes(x: Tensor) -> tuple[list[int], list[int]]:
    """All axes but the channels', and the shape that lays (C,) along the channels."""
    return [d for d in range(x.dim()) if d != 1], [1, -1] + [1] * (x.dim() - 2)
