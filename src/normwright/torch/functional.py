"""`batch_norm`, the function: checks, then the native kernels where they apply, else torch's own batch norm."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import has_torch_function_variadic

from normwright.core import checks
from normwright.torch import kernels


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize every channel over the batch, or by running statistics; scale and shift.

    y = weight * (x - mean) / sqrt(var + eps) + bias

    In training, mean and (biased) var are the batch's own, and the running statistics, where given, move in
    place: running <- (1 - momentum) * running + momentum * batch, with the unbiased var m/(m-1). Else they are
    running_mean and running_var, which stay.

    Args:
        x: (N, C, ...), any rank >= 2, floating point.
        running_mean, running_var: (C,), both or neither; needed unless training. Default None (torch's).
        weight, bias: (C,); None is 1 and 0. Default None (torch's).
        training: normalize by the batch. Default False (torch's).
        momentum: weight of the NEW batch, 0.1 (torch's).
        eps: 1e-5 (torch's); positive in training, not negative else.

    Returns:
        y of x's shape, dtype and memory format.

    Raises:
        ShapeError: a rank, shape or value that cannot be, or more than one device. Nothing was written then.
        DtypeError: x is not floating point.

    Numerics:
        float32 and float64 tensors on a CPU take the native kernels: each float32 y within 8 * 2^-24 of
        |weight * x_hat| + |bias| from the exact value, at any mean (float64 and gradients: docs/numerics.md); the
        same bits for any number of threads. All else (half types, other devices, function transforms,
        compilation, a package built without kernels) is torch's own batch norm, with its precision.

    Source:
        Ioffe & Szegedy 2015, Algorithms 1 and 2.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> batch_norm(x, training=True, eps=3.0)
        tensor([[-0.5000],
                [ 0.5000]])
    """
    return normalize(
        "normwright.torch.batch_norm", x, running_mean, running_var, weight, bias, training, momentum, eps
    )


def normalize(
    call: str,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    counter: Tensor | None = None,
) -> Tensor:
    """`batch_norm` on behalf of `call`, whose name errors carry; `counter` counts the call once it is checked."""
    native = False
    if (
        not has_torch_function_variadic(x, running_mean, running_var, weight, bias)
        and not kernels.being_traced()
    ):
        check(call, x, running_mean, running_var, weight, bias, training, momentum, eps)
        native = kernels.apply(x, running_mean, running_var, weight, bias)
    if counter is not None:
        counter.add_(1)
    if native and training:
        return kernels.batch_norm_train(x, running_mean, running_var, weight, bias, momentum, eps)
    if native and running_mean is not None and running_var is not None:
        return kernels.batch_norm_fixed(x, running_mean, running_var, weight, bias, eps)
    return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


def check(
    call: str,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> None:
    """Raise what `batch_norm` documents, before anything is written."""
    shape = _check_input(call, x)
    checks.check_both_or_neither(call, running_mean, running_var)
    if training:
        if x.numel() == shape[1]:  # as cheap a question as there is; the check below asks it exactly
            checks.check_more_than_one_value(
                call,
                shape,
                1,
                "Use a larger batch, drop the last one (DataLoader(drop_last=True)), or call .eval().",
            )
        checks.check_eps(call, eps)
        if momentum is None:
            raise checks.DtypeError(
                checks.message(
                    call, "momentum to be a number", "None", remedy="The layers know momentum=None."
                )
            )
    elif running_mean is None:
        raise checks.ShapeError(
            checks.message(
                call, "running_mean and running_var in evaluation", "neither", remedy="Or training=True."
            )
        )
    elif eps < 0:
        raise checks.ShapeError(checks.message(call, "eps >= 0", repr(eps)))
    channels, device = shape[1], x.device
    if running_mean is not None and running_var is not None:
        if running_mean.numel() != channels or running_mean.device != device:
            _raise_for_parameter(call, "running_mean", running_mean, x)
        if running_var.numel() != channels or running_var.device != device:
            _raise_for_parameter(call, "running_var", running_var, x)
    if weight is not None and (weight.numel() != channels or weight.device != device):
        _raise_for_parameter(call, "weight", weight, x)
    if bias is not None and (bias.numel() != channels or bias.device != device):
        _raise_for_parameter(call, "bias", bias, x)


def _check_input(call: str, x: object) -> torch.Size:
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


def _raise_for_parameter(call: str, name: str, tensor: Tensor, x: Tensor) -> None:
    checks.check_per_channel(call, name, tensor.shape, x.shape, 1)
    if tensor.device != x.device:
        raise checks.ShapeError(
            checks.message(
                call, f"{name} on {x.device}, where x is", f"{tensor.device}", remedy="Move one of them."
            )
        )
