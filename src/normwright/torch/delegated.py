"""torch's own batch norm, for what the native kernels do not take: other devices, transforms, compilation.

What torch's lacks is done around it: channels on any axis, mixed types, statistics that must not move, or not to
NaN; and what follows, the addition and the activation. Everything here is tensor operations without a question to a
device, so that it can be compiled and captured.

Half types are rounded once where that costs no memory that would last: on a CPU, where operations are compiled, and
under transforms. Elsewhere, and where the statistics are half as well, they are rounded by each of the operations.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from normwright.core import checks
from normwright.core.activation import Activation
from normwright.core.running import debiased
from normwright.torch import activations
from normwright.torch.running import HALF, Guard, Running
from normwright.torch.watched import being_traced, being_transformed, being_watched

_CANNOT_SEE = ("updated in place", "mutate a captured", "in-place arithmetic", "in-place operation")


def batch_norm_train(
    call: str,
    x: Tensor,
    axis: int,
    running: Running,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: Activation | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Normalize by the batch; move the running statistics in place."""
    dtype = x.dtype
    x = _wide(x, running, activation, residual)
    if not running.moves and being_transformed():
        running = Running(None, None)
    elif not running.moves:
        running = on_copies(running)
    if running.mean is None or running.var is None:
        if running.counter is not None:
            running.counter.add_(1)
        weight, bias, _, _ = _in_one_type(x, axis, running, weight, bias)
        y = _batch_norm(x, axis, None, None, weight, bias, True, 0.0, eps)
        return follow(y, dtype, activation, residual)
    weight, bias, mean, var = _in_one_type(x, axis, running, weight, bias)
    assert mean is not None
    assert var is not None
    in_place = mean is running.mean and var is running.var
    ours = running.momentum is None or running.biased or running.debias
    as_torchs = in_place and running.guard is None and not ours
    try:
        if as_torchs or x.numel() == 0:
            y = _batch_norm(x, axis, mean, var, weight, bias, True, running.momentum or 0.0, eps)
            if running.counter is not None and not running.debias:
                running.counter.add_(1)  # torch's counts what is empty, too
        else:
            # With momentum 1 what torch remembers are the statistics of the batch alone.
            mean, var = torch.zeros_like(mean), torch.ones_like(var)
            y = _batch_norm(x, axis, mean, var, weight, bias, True, 1.0, eps)
            if running.biased:
                values = x.numel() // x.shape[axis]
                var = var * ((values - 1) / values)
            move(running, mean.detach(), var.detach())
    except RuntimeError as error:
        raise _in_other_words(call, error) from error
    return follow(y, dtype, activation, residual)


def batch_norm_fixed(
    x: Tensor,
    axis: int,
    running: Running,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: Activation | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Normalize by a given mean and variance, which are constants."""
    dtype = x.dtype
    x = _wide(x, running, activation, residual)
    weight, bias, mean, var = _in_one_type(x, axis, running, weight, bias)
    y = _batch_norm(x, axis, mean, var, weight, bias, False, 0.0, eps)
    return follow(y, dtype, activation, residual)


def _wide(x: Tensor, running: Running, activation: Activation | None, residual: Tensor | None) -> Tensor:
    """A half x in float32 where more than torch's batch norm is to come and the copy is no burden (see above)."""
    if (
        (activation is None and residual is None)
        or x.dtype not in HALF
        or (running.mean is not None and running.mean.dtype in HALF)
        or not (x.device.type == "cpu" or being_traced() or being_transformed())
    ):
        return x
    return x.float()


def follow(y: Tensor, dtype: torch.dtype, activation: Activation | None, residual: Tensor | None) -> Tensor:
    """activation(y + residual), the residual taken in `dtype`, in which the result is."""
    if residual is not None:
        y = y + _in_type(_in_type(residual, dtype), y.dtype)
    if activation is not None:
        y = activations.apply(activation, y)
    return _in_type(y, dtype)


def _in_type(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t in `dtype`; an exported program shows no conversion where there is none."""
    return t if t.dtype == dtype else t.to(dtype)


def _batch_norm(
    x: Tensor, axis: int, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    by_batch: bool, momentum: float, eps: float,
) -> Tensor:  # fmt: skip
    """torch's, with channels on any axis."""
    dtype = x.dtype
    if dtype in HALF and being_transformed():  # vmap's rule refuses float32 numbers beside a half x
        x = x.float()
    y = _channels_back(
        F.batch_norm(_channels_second(x, axis), mean, var, weight, bias, by_batch, momentum, eps), x, axis
    )
    return _in_type(y, dtype)


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
        not half or (running.mean is not None and not being_transformed())
    ):
        return numbers
    dtype = torch.float32 if half else x.dtype
    if half and weight is None:
        weight = torch.ones(x.shape[axis], dtype=dtype, device=x.device)
    numbers = (weight, bias, running.mean, running.var)
    return tuple(t if t is None else _in_type(t, dtype) for t in numbers)


def on_copies(running: Running) -> Running:
    """For the same operations, of which nothing is to stay: a repeated pass is compared with the first."""
    copies = _copy(running.mean), _copy(running.var), _copy(running.counter)
    return running._replace(mean=copies[0], var=copies[1], counter=copies[2])


def _copy(t: Tensor | None) -> Tensor | None:
    """A copy that no mode sees being made: selective checkpointing wants the operations of the first pass again."""
    if t is None or being_traced():
        return None if t is None else t.clone()
    with _disable_current_modes():
        return t.clone()


def move(running: Running, mean: Tensor, var: Tensor, count: Tensor | None = None) -> None:
    """The rule of core.running for a batch's statistics, where they are finite.

    `count` is (1,), the values per channel, where none or a single one is possible: they move nothing, and of
    these two none is counted, as in torch's.
    """
    assert running.mean is not None
    assert running.var is not None
    finite = (
        torch.isfinite(mean.to(running.mean.dtype)).all() & torch.isfinite(var.to(running.var.dtype)).all()
    )
    guarded = running.guard is not None
    takes, counts = (finite, finite) if guarded else (None, None)
    if count is not None:
        some, none = count.squeeze(0) > 1, count.squeeze(0) == 0
        takes = some if takes is None else takes & some
        counts = takes if running.debias else takes | none
        finite = finite | ~some
    if running.counter is not None:
        running.counter.add_(1 if counts is None else counts)
    rate: Tensor | float = running.momentum or 0.0
    if running.counter is not None and (running.momentum is None or running.debias):
        k = running.counter.clamp(min=1).to(mean.dtype)  # 0: the first one was left out
        rate = 1 / k if running.momentum is None else debiased(running.momentum, k, torch.expm1)
    for old, batch in ((running.mean, mean), (running.var, var)):
        new = (1 - rate) * old.to(batch.dtype) + rate * batch
        old.copy_(new if takes is None else torch.where(takes, new, old))
    if running.guard is not None:
        _report(running.guard, finite, running.moves)


def _report(guard: Guard, finite: Tensor, moves: bool) -> None:
    """Let the guard know whether the batch was finite, without waiting for a device unless it is to raise."""
    skipped = guard.skipped if moves else _copy(guard.skipped)
    assert skipped is not None
    if being_traced():
        if guard.raises and moves:
            torch._assert_async(finite, f"{guard.layer}: the batch's mean or variance is NaN or infinite.")
        elif not guard.raises and not torch.compiler.is_exporting():
            skipped.add_((~finite).to(skipped.device))  # an exported program has no place to count in
    elif type(finite) is not Tensor or finite.is_meta or (being_transformed() and not guard.raises):
        pass  # shapes without values; and a transform lets nobody count outside of it
    elif guard.raises or (finite.is_cpu and not being_watched()):
        if not finite and moves:
            guard.refuse()
    else:
        skipped.add_(
            (~finite).to(skipped.device)
        )  # elsewhere only under DataParallel, whose replicas share a guard


def _in_other_words(call: str, error: RuntimeError) -> RuntimeError:
    """torch's error; with the way out, where a function transform met statistics that would move."""
    if not being_transformed() or not any(words in str(error) for words in _CANNOT_SEE):
        return error
    return checks.TransformError(
        f"{call}: expected no running statistics to move under a function transform (vmap, grad, jacrev, ...), "
        "got a layer in training that tracks them. Use normwright.torch.batch_norm_stats, which returns the new "
        "ones; or .eval(), normwright.torch.freeze, no_stat_update, or track_running_stats=False."
    )
