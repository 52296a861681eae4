"""Where torch tensors meet the native kernels: who may take them.

The native path writes through addresses, which torch does not see. It therefore takes only plain tensors on the
CPU, with nothing in sight that follows operations (dispatch modes, function transforms, forward-mode AD, tracing,
compilation), and tells autograd of every buffer it wrote.
"""

from typing import Any

import torch
from torch import Tensor

from normwright.core.activation import Activation
from normwright.kernels import NATIVE
from normwright.torch import activations, autograd
from normwright.torch.backward import in_float32
from normwright.torch.distributed import synced
from normwright.torch.distributed.peers import Peers
from normwright.torch.distributed.shared import share
from normwright.torch.layouts import laid_out, lined_up, may_be_written
from normwright.torch.running import Running
from normwright.torch.watched import PLAIN, being_watched, is_plain

if NATIVE:
    from normwright import _native

    _native.use_tensors_of(torch.Tensor.__dlpack_c_exchange_api__, Tensor, torch.nn.Parameter)

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# A layer of a few hundred values costs what these questions cost, so they are asked by their nearest names.
_STRIDED = torch.strided
_is_grad_enabled = torch.is_grad_enabled


def batch_norm(
    x: Tensor,
    axis: int,
    running: Running,
    weight: Tensor | None,
    bias: Tensor | None,
    by_batch: bool,
    eps: float,
    activation: Activation | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    peers: Peers | None = None,
) -> Tensor | None:
    """y, by the native kernels; None where they do not apply, and where any argument is wrong.

    Whoever gets None must look for errors, which so costs the usual call nothing. Where a gradient is wanted, what
    autograd would refuse after the kernel has run (to save a tensor made in inference mode, a gradient for running
    statistics) is left to torch, which refuses before. `out`, whose type and shape are right, is y where a kernel
    may write to it, in evaluation without a gradient. `peers`, in training, are told only when all this is settled.
    """
    if not _may_be_taken(x) or not (eps > 0 if by_batch else eps >= 0):
        return None
    known = None
    laid = x
    if not x.is_contiguous():
        if axis != 1 or x.dim() < 2:
            return None
        laid, known = laid_out(x)
    dense = follows = None
    if residual is not None:
        if not is_plain(residual) or residual.shape != x.shape or not residual.dtype.is_floating_point:
            return None
        residual, dense = _beside(laid, residual.to(x.dtype))
    if activation is not None:
        follows = activations.native(activation)
    mean, var = running.mean, running.var
    moved = (mean, var, running.counter) if peers is None else (None, None, None)  # else not by this kernel
    least = 0 if not by_batch else 2 if peers is None else 1
    seen = _native.see(laid, axis, weight, bias, *moved, least, known, dense, follows)
    if seen is None:
        # half parameters are taken in float32, and held until the kernel has read them
        numbers = in_float32(weight), in_float32(bias)
        if numbers[0] is not weight or numbers[1] is not bias:
            seen = _native.see(laid, axis, *numbers, *moved, least, known, dense, follows)
        if seen is None:
            return None
    wanted = _is_wanted(x, weight, bias, mean, var, residual, activation is not None)
    if wanted is None:
        return None
    if peers is not None:
        call = laid, known, axis, seen, running, eps, activation
        return _together(x, weight, bias, residual, call, peers, wanted)
    if by_batch:
        if wanted:
            alone = laid, known, axis, seen, running, eps, activation, None
            return autograd.train(x, weight, bias, residual, alone)
        return autograd.forward_train(laid, seen, running, eps)[0]
    if wanted:
        fixed = laid, known, axis, seen, mean, var, eps, activation
        return autograd.fixed(x, weight, bias, residual, fixed)
    if out is not None and not (laid is x and is_plain(out) and may_be_written(out, x, dense)):
        out = None
    return autograd.forward_fixed(laid, seen, eps, None, out)


def _may_be_taken(x: Tensor) -> bool:
    return (
        NATIVE
        and type(x) in PLAIN
        and x.dtype in _DTYPES
        and x.is_cpu  # tensors elsewhere can be seen too, but to fail there takes long
        and x.layout is _STRIDED
        and not x.is_neg()
        and not being_watched()
    )


def _together(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    call: tuple[Any, ...], peers: Peers, wanted: bool,
) -> Tensor:  # fmt: skip
    """y, by the batches of all ranks; `call` as `autograd.train` takes it."""
    laid, _, axis, seen, running, eps, activation = call
    told = share(x, axis, seen, running, eps, peers)
    if told is None:
        by = synced.by_running(running, eps)
        return synced.normalize_by(by, x, axis, weight, bias, eps, activation, residual, peers)
    if wanted:
        return autograd.train(x, weight, bias, residual, (*call, told))
    return autograd.forward_shared(laid, seen, told[1])


def _beside(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """The residual, and as it is read along with x."""
    both = x.is_contiguous() and residual.is_contiguous()
    return residual, residual if both else lined_up(x, residual.detach())


def _is_wanted(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None,
    residual: Tensor | None, is_followed: bool,
) -> bool | None:  # fmt: skip
    """Whether a gradient is wanted. None where numbers are not what their memory is, or autograd would refuse."""
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
    if residual is not None:
        wanted = wanted or (grad and residual.requires_grad)
    wanted = wanted or (grad and x.requires_grad)
    if wanted and (
        x.is_inference()
        or (weight is not None and weight.is_inference())
        or (mean is not None and mean.is_inference())
    ):
        return None
    if wanted and is_followed and any(t is not None and t.is_inference() for t in (bias, residual)):
        return None
    return wanted
