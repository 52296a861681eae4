"""torch's own batch norm, for what the native kernels do not take: devices, half types, transforms, compilation.

What torch's lacks is done around it: channels on any axis, mixed types, statistics that must not move, or not to
NaN. Everything here is tensor operations without a question to a device, so that it can be compiled and captured.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from normwright.core import checks
from normwright.torch import kernels
from normwright.torch.running import HALF, Guard, Running

_CANNOT_SEE = ("updated in place", "mutate a captured", "in-place arithmetic", "in-place operation")


def batch_norm_train(
    call: str,
    x: Tensor,
    axis: int,
    running: Running,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Normalize by the batch; move the running statistics in place."""
    if not running.moves and _is_transformed():
        running = Running(None, None)
    elif not running.moves:  # the same operations, on copies: a repeated pass is compared with the first
        copies = _copy(running.mean), _copy(running.var), _copy(running.counter)
        running = running._replace(mean=copies[0], var=copies[1], counter=copies[2])
    if running.mean is None or running.var is None:
        if running.counter is not None:
            running.counter.add_(1)
        weight, bias, _, _ = _in_one_type(x, axis, running, weight, bias)
        return _batch_norm(x, axis, None, None, weight, bias, True, 0.0, eps)
    weight, bias, mean, var = _in_one_type(x, axis, running, weight, bias)
    assert mean is not None
    assert var is not None
    in_place = mean is running.mean and var is running.var
    as_torchs = in_place and running.guard is None and running.momentum is not None
    try:
        if as_torchs or x.numel() == 0:
            y = _batch_norm(x, axis, mean, var, weight, bias, True, running.momentum or 0.0, eps)
            if running.counter is not None:
                running.counter.add_(1)
        else:
            # With momentum 1 what torch remembers are the statistics of the batch alone.
            mean, var = torch.zeros_like(mean), torch.ones_like(var)
            y = _batch_norm(x, axis, mean, var, weight, bias, True, 1.0, eps)
            _move(running, mean.detach(), var.detach())
    except RuntimeError as error:
        raise _in_other_words(call, error) from error
    return y


def batch_norm_fixed(
    x: Tensor, axis: int, running: Running, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Normalize by a given mean and variance, which are constants."""
    weight, bias, mean, var = _in_one_type(x, axis, running, weight, bias)
    return _batch_norm(x, axis, mean, var, weight, bias, False, 0.0, eps)


def _batch_norm(
    x: Tensor, axis: int, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    by_batch: bool, momentum: float, eps: float,
) -> Tensor:  # fmt: skip
    """torch's, with channels on any axis."""
    dtype = x.dtype
    if dtype in HALF and _is_transformed():  # vmap's rule refuses float32 numbers beside a half x
        x = x.float()
    y = _channels_back(
        F.batch_norm(_channels_second(x, axis), mean, var, weight, bias, by_batch, momentum, eps), x, axis
    )
    return y if y.dtype == dtype else y.to(dtype)


def _is_laid_last(x: Tensor) -> bool:
    """Whether x, moved to channels on axis 1, may lie channels-last, which torch knows in 4-D and 5-D."""
    return x.dim() in (4, 5) and not x.is_contiguous()


def _channels_second(x: Tensor, axis: int) -> Tensor:
    """x with its channels on axis 1, the axes before and behind them joined. A view where x is contiguous."""
    if axis == 1:
        return x
    if _is_laid_last(x):
        return x.movedim(axis, 1)
    if axis < x.dim() - 1:
        x = x.flatten(axis + 1)
    return x.flatten(0, axis - 1) if axis else x.unsqueeze(0)


def _channels_back(y: Tensor, x: Tensor, axis: int) -> Tensor:
    """y in the shape of x."""
    if axis == 1:
        return y
    return y.movedim(1, axis) if _is_laid_last(x) else y.view(x.shape)


def _in_one_type(
    x: Tensor, axis: int, running: Running, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """weight, bias, mean and var as torch takes them: of x's type or, beside half types, float32.

    Without any float32 number torch would hold the statistics of a half x in x's type, and y with them; so there is
    always one. But what is half throughout, running statistics too, is torch's affair.
    """
    numbers = (weight, bias, running.mean, running.var)
    half = x.dtype in HALF
    if all(t is None or t.dtype == x.dtype for t in numbers) and (
        not half or (running.mean is not None and not _is_transformed())
    ):
        return numbers
    dtype = torch.float32 if half else x.dtype
    if half and weight is None:
        weight = torch.ones(x.shape[axis], dtype=dtype, device=x.device)
    numbers = (weight, bias, running.mean, running.var)
    return tuple(t if t is None or t.dtype == dtype else t.to(dtype) for t in numbers)


def _copy(t: Tensor | None) -> Tensor | None:
    """A copy that no mode sees being made: selective checkpointing wants the operations of the first pass again."""
    if t is None or kernels.being_traced():
        return None if t is None else t.clone()
    with _disable_current_modes():
        return t.clone()


def _move(running: Running, mean: Tensor, var: Tensor) -> None:
    """The rule of core.running for a batch's statistics, where they are finite."""
    assert running.mean is not None
    assert running.var is not None
    finite = torch.isfinite(mean).all() & torch.isfinite(var).all()
    guarded = running.guard is not None
    if running.counter is not None:
        running.counter.add_(finite if guarded else 1)
    rate: Tensor | float
    if running.momentum is None:
        # 0 batches: the first one was left out
        rate = 0.0 if running.counter is None else 1 / running.counter.clamp(min=1).to(mean.dtype)
    else:
        rate = running.momentum
    for old, batch in ((running.mean, mean), (running.var, var)):
        new = (1 - rate) * old.to(batch.dtype) + rate * batch
        old.copy_(torch.where(finite, new, old) if guarded else new)
    if running.guard is not None:
        _report(running.guard, finite, running.moves)


def _report(guard: Guard, finite: Tensor, moves: bool) -> None:
    """Let the guard know whether the batch was finite, without waiting for a device unless it is to raise."""
    skipped = guard.skipped if moves else _copy(guard.skipped)
    assert skipped is not None
    if kernels.being_traced():
        if guard.raises and moves:
            torch._assert_async(finite, f"{guard.layer}: the batch's mean or variance is NaN or infinite.")
        elif not guard.raises and not torch.compiler.is_exporting():
            skipped.add_((~finite).to(skipped.device))  # an exported program has no place to count in
    elif type(finite) is not Tensor or finite.is_meta or (_is_transformed() and not guard.raises):
        pass  # shapes without values; and a transform lets nobody count outside of it
    elif guard.raises or (finite.is_cpu and not kernels.being_watched()):
        if not finite and moves:
            guard.refuse()
    else:
        skipped.add_(
            (~finite).to(skipped.device)
        )  # elsewhere only under DataParallel, whose replicas share a guard


def _is_transformed() -> bool:
    """True inside a function transform: vmap, grad, jacrev."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _in_other_words(call: str, error: RuntimeError) -> RuntimeError:
    """torch's error; with the way out, where a function transform met statistics that would move."""
    if not _is_transformed() or not any(words in str(error) for words in _CANNOT_SEE):
        return error
    return checks.TransformError(
        f"{call}: expected no running statistics to move under a function transform (vmap, grad, jacrev, ...), "
        "got a layer in training that tracks them. Use normwright.torch.batch_norm_stats, which returns the new "
        "ones; or .eval(), normwright.torch.freeze, no_stat_update, or track_running_stats=False."
    )
