"""`batch_norm`, the function: checks, then the native kernels where they apply, else torch's own batch norm."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack, has_torch_function_variadic
from torch.utils._device import DeviceContext

from normwright.core import checks
from normwright.torch import composed, delegated, kernels
from normwright.torch.running import Running


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    channel_dim: int = 1,
) -> Tensor:
    """Normalize every channel over the batch, or by running statistics; scale and shift.

    y = weight * (x - mean) / sqrt(var + eps) + bias

    In training, mean and (biased) var are the batch's own, and the running statistics, where given, move in
    place: running <- (1 - momentum) * running + momentum * batch, with the unbiased var m/(m-1). Else they are
    running_mean and running_var, which stay.

    Args:
        x: (N, C, ...), any rank >= 2, floating point; C on channel_dim.
        running_mean, running_var: (C,), both or neither; needed unless training. Default None (torch's).
        weight, bias: (C,); None is 1 and 0. Default None (torch's).
        training: normalize by the batch. Default False (torch's).
        momentum: weight of the NEW batch, 0.1 (torch's).
        eps: 1e-5 (torch's); positive in training, not negative else.
        channel_dim: the axis of x that holds the channels, 1 (torch's); -1 for (N, L, C) and (N, H, W, C).

    Returns:
        y of x's shape, dtype and memory format.

    Raises:
        ShapeError: a rank, shape or value that cannot be, or more than one device. Nothing was written then.
        DtypeError: x is not floating point.

    Numerics:
        float32 and float64 tensors on a CPU take the native kernels: each float32 y within 8 * 2^-24 of
        |weight * x_hat| + |bias| from the exact value, at any mean (float64 and gradients: docs/numerics.md); the
        same bits for any number of threads. All else (half types, other devices, function transforms,
        compilation, a package built without kernels) is torch's own batch norm, with its precision. Types may
        be mixed: the per-channel tensors are then taken as x's type, or as float32 beside half types.

    Source:
        Ioffe & Szegedy 2015, Algorithms 1 and 2.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> batch_norm(x, training=True, eps=3.0)
        tensor([[-0.5000],
                [ 0.5000]])
    """
    call = "normwright.torch.batch_norm"
    running = Running(running_mean, running_var, None, momentum)
    axis = 1 if type(channel_dim) is int and channel_dim == 1 else _axis(call, x, channel_dim)
    if training is not True and training is not False:
        raise checks.DtypeError(checks.message(call, "training to be True or False", repr(training)))
    if training:
        _check_momentum(call, momentum)
    return normalize(call, x, axis, running, weight, bias, training, eps)


class BatchNormStats(NamedTuple):
    """What `batch_norm_stats` returns.

    Attributes:
        y: as x.
        running_mean, running_var: (C,), the running statistics after this batch; no gradient flows into them.
    """

    y: Tensor
    running_mean: Tensor
    running_var: Tensor


def batch_norm_stats(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    channel_dim: int = 1,
) -> BatchNormStats:
    """Normalize by the batch and return the new running statistics; nothing is written.

    y = weight * (x - mean) / sqrt(var + eps) + bias
    running <- (1 - momentum) * running + momentum * batch, with the unbiased var

    It is `batch_norm` in training for whoever needs a function without side effects: `torch.func.vmap`, `grad`,
    `jacrev`, and state that is passed along.

    Args:
        x: (N, C, ...), any rank >= 2, floating point; C on channel_dim.
        running_mean, running_var: (C,).
        weight, bias: (C,); None is 1 and 0. Default None (torch's).
        momentum: weight of the NEW batch, 0.1 (torch's).
        eps: 1e-5 (torch's), positive.
        channel_dim: the axis of x that holds the channels, 1 (torch's).

    Returns:
        BatchNormStats(y, running_mean, running_var).

    Raises:
        ShapeError, DtypeError: as `batch_norm`.

    Numerics: as `batch_norm`.

    Source:
        Ioffe & Szegedy 2015, Algorithm 1 and section 3.1.

    Example:
        >>> x = torch.tensor([[[1.0], [3.0]], [[5.0], [9.0]]])  # two batches of two samples
        >>> each = torch.func.vmap(batch_norm_stats, (0, None, None))
        >>> each(x, torch.zeros(1), torch.ones(1)).running_mean
        tensor([[0.2000],
                [0.7000]])
    """
    call = "normwright.torch.batch_norm_stats"
    axis = _axis(call, x, channel_dim)
    _check_momentum(call, momentum)
    given: tuple[Tensor | None, Tensor | None] = running_mean, running_var
    checks.check_both_or_neither(call, *given)
    if given[0] is None:
        expected = "running_mean and running_var"
        raise checks.ShapeError(checks.message(call, expected, "None", remedy="Or use batch_norm."))
    if not kernels.being_traced():
        check(call, x, axis, running_mean, running_var, weight, bias, True, eps)
        running = Running(running_mean.clone(), running_var.clone(), None, momentum)
        native = kernels.batch_norm(x, axis, running, weight, bias, True, eps)
        if native is not None:
            return BatchNormStats(native, *(t.detach() for t in running[:2]))  # type: ignore[union-attr]
    y = normalize(call, x, axis, Running(None, None), weight, bias, True, eps)
    if x.numel() == 0:  # as batch_norm: no batch, no change
        return BatchNormStats(y, running_mean.detach().clone(), running_var.detach().clone())
    dtype = torch.promote_types(torch.promote_types(x.dtype, running_mean.dtype), torch.float32)
    var, mean = torch.var_mean(x.detach().to(dtype), composed.Channels(x, axis).dims, correction=1)
    new = (
        ((1 - momentum) * old.detach().to(dtype) + momentum * batch).to(old.dtype)
        for old, batch in ((running_mean, mean), (running_var, var))
    )
    return BatchNormStats(y, *new)


def normalize(
    call: str,
    x: Tensor,
    axis: int,
    running: Running,
    weight: Tensor | None,
    bias: Tensor | None,
    by_batch: bool,
    eps: float,
) -> Tensor:
    """`batch_norm` on behalf of `call`, whose name errors carry."""
    if not kernels.being_traced():
        mean, var = running.mean, running.var
        tensors = (x, mean, var, weight, bias)
        if not has_torch_function_variadic(*tensors) or _only_a_default_device(tensors):
            y = kernels.batch_norm(x, axis, running, weight, bias, by_batch, eps)
            if y is not None:
                return y
            check(call, x, axis, mean, var, weight, bias, by_batch, eps)
            if (
                axis != 1 and not x.is_contiguous()
            ):  # again, in the order of axes that the kernels and torch know
                moved = x.movedim(axis, 1)
                return normalize(call, moved, 1, running, weight, bias, by_batch, eps).movedim(1, axis)
    if by_batch:
        return delegated.batch_norm_train(call, x, axis, running, weight, bias, eps)
    return delegated.batch_norm_fixed(x, axis, running, weight, bias, eps)


def _only_a_default_device(tensors: tuple[object, ...]) -> bool:
    """Whether nothing but `torch.set_default_device` listens, which matters where a tensor is made of nothing."""
    return all(t is None or type(t) in kernels.PLAIN for t in tensors) and all(
        isinstance(mode, DeviceContext)
        for mode in _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    )


def _check_momentum(call: str, momentum: float | None) -> None:
    if momentum is None:
        remedy = "The layers know momentum=None."
        raise checks.DtypeError(checks.message(call, "momentum to be a number", "None", remedy=remedy))


def _axis(call: str, x: Tensor, channel_dim: int) -> int:
    """channel_dim counted from 0."""
    return checks.check_axis(call, check_input(call, x), channel_dim, "channel_dim")


def check(
    call: str,
    x: Tensor,
    axis: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    by_batch: bool,
    eps: float,
) -> None:
    """Raise what `batch_norm` documents, before anything is written."""
    shape = check_input(call, x)
    if (running_mean is None) is not (running_var is None):
        checks.check_both_or_neither(call, running_mean, running_var)
    if by_batch:
        if x.numel() == shape[axis]:  # as cheap a question as there is; the check below asks it exactly
            checks.check_more_than_one_value(
                call,
                shape,
                axis,
                "Use a larger batch, drop the last one (DataLoader(drop_last=True)), or call .eval(); a layer with "
                "on_degenerate='running' goes on with its running statistics.",
            )
        if not eps > 0:
            checks.check_eps(call, eps)
    elif running_mean is None:
        raise checks.ShapeError(
            checks.message(
                call, "running_mean and running_var in evaluation", "neither", remedy="Or training=True."
            )
        )
    elif eps < 0:
        raise checks.ShapeError(checks.message(call, "eps >= 0", repr(eps)))
    for name, t in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if t is not None:
            _check_parameter(call, name, t, x, axis)


def check_input(call: str, x: object) -> torch.Size:
    """The shape of x, a floating point tensor of rank 2 or more."""
    if not isinstance(x, Tensor):
        got = f"{type(x).__module__}.{type(x).__name__}"
        remedy = "Use torch.as_tensor(x)."
        raise checks.DtypeError(checks.message(call, "x to be a torch.Tensor", got, remedy=remedy))
    if x.dim() < 2:
        got = f"rank {x.dim()}, shape {tuple(x.shape)}"
        raise checks.ShapeError(checks.message(call, "x of rank 2 or more, (N, C, ...)", got))
    if not x.dtype.is_floating_point:
        remedy = "Normalize x.real and x.imag apart." if x.dtype.is_complex else "Use x.to(torch.float32)."
        raise checks.DtypeError(
            checks.message(call, "x of a floating point dtype", str(x.dtype), remedy=remedy)
        )
    return x.shape


def _check_parameter(call: str, name: str, t: object, x: Tensor, axis: int) -> None:
    if not isinstance(t, Tensor):
        got = f"{type(t).__module__}.{type(t).__name__}"
        raise checks.DtypeError(checks.message(call, f"{name} to be a torch.Tensor", got))
    if t.numel() != x.shape[axis]:
        others = [d for d, n in enumerate(x.shape) if n == t.numel() and d != axis]
        remedy = f"Axis {others[-1]} of x has {t.numel()}: say channel_dim={others[-1]}." if others else ""
        checks.check_per_channel(call, name, t.shape, x.shape, axis, remedy)
    if t.device != x.device:
        expected, remedy = f"{name} on {x.device}, where x is", "Move one of them."
        raise checks.ShapeError(checks.message(call, expected, f"{t.device}", remedy=remedy))
