"""What `batch_norm` and the layers are given: every check, and the words of its error."""

import torch
from torch import Tensor

from normwright.core import checks


def check_momentum(call: str, momentum: float | None) -> None:
    if momentum is None:
        remedy = "The layers know momentum=None."
        raise checks.DtypeError(checks.message(call, "momentum to be a number", "None", remedy=remedy))


def check_choice(call: str, option: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ShapeError unless `value` is one of `known`."""
    if value not in known:
        raise checks.ShapeError(checks.message(call, f"{option} to be one of {known}", repr(value)))


def check_flag(call: str, option: str, value: object) -> None:
    """Raise DtypeError unless `value` is True or False."""
    if value is not True and value is not False:
        raise checks.DtypeError(checks.message(call, f"{option} to be True or False", repr(value)))


def channel_axis(call: str, x: Tensor, channel_dim: int) -> int:
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
    residual: Tensor | None = None,
    alone: bool = True,
) -> None:
    """Raise what `batch_norm` documents, before anything is written. Not `alone`: others may have more values."""
    shape = check_input(call, x)
    if (running_mean is None) is not (running_var is None):
        checks.check_both_or_neither(call, running_mean, running_var)
    if by_batch:
        if (
            alone and x.numel() == shape[axis]
        ):  # as cheap a question as there is; the check below asks it exactly
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
    check_residual(call, x, residual)


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
    _check_device(call, name, t, x)


def check_residual(call: str, x: Tensor, residual: object) -> None:
    """Raise unless `residual` is None, or a tensor like x; its type is its own."""
    if residual is None:
        return
    if not isinstance(residual, Tensor):
        got = f"{type(residual).__module__}.{type(residual).__name__}"
        raise checks.DtypeError(checks.message(call, "residual to be a torch.Tensor", got))
    if not residual.dtype.is_floating_point:
        got = str(residual.dtype)
        raise checks.DtypeError(checks.message(call, "residual of a floating point dtype", got))
    if residual.shape != x.shape:
        expected, got = f"residual of x's shape {tuple(x.shape)}", f"{tuple(residual.shape)}"
        raise checks.ShapeError(checks.message(call, expected, got, remedy="Use residual.expand_as(x)."))
    _check_device(call, "residual", residual, x)


def check_out(call: str, x: Tensor, out: object, training: bool, read: tuple[object, ...]) -> None:
    """Raise unless y may be written to `out`: in evaluation, where no gradient is wanted of what is `read`."""
    if training:
        remedy = "Batch norm by the batch reads x twice, and its gradient needs x."
        raise checks.ShapeError(checks.message(call, "no out in training", "one", remedy=remedy))
    if not isinstance(out, Tensor):
        got = f"{type(out).__module__}.{type(out).__name__}"
        raise checks.DtypeError(checks.message(call, "out to be a torch.Tensor", got))
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in (out, x, *read)):
        remedy = "Call it under torch.no_grad()."
        raise checks.ShapeError(
            checks.message(call, "no out where a gradient is wanted", "one", remedy=remedy)
        )
    if (out.shape, out.dtype) != (x.shape, x.dtype):
        expected = f"out of x's shape {tuple(x.shape)} and type {x.dtype}"
        raise checks.ShapeError(checks.message(call, expected, f"{tuple(out.shape)} and {out.dtype}"))
    _check_device(call, "out", out, x)
    if out.stride() not in (x.stride(), torch.empty_like(x).stride()):
        expected = f"out laid out like x, with strides {tuple(x.stride())}"
        remedy = "Use torch.empty_like(x)."
        raise checks.ShapeError(checks.message(call, expected, str(tuple(out.stride())), remedy=remedy))


def _check_device(call: str, name: str, t: Tensor, x: Tensor) -> None:
    if t.device != x.device:
        expected, remedy = f"{name} on {x.device}, where x is", "Move one of them."
        raise checks.ShapeError(checks.message(call, expected, f"{t.device}", remedy=remedy))
