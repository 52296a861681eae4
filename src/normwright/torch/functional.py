"""`batch_norm`, the function: checks, then the native kernels where they apply, else torch's own batch norm."""

from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack, has_torch_function_variadic
from torch.utils._device import DeviceContext

from normwright.core import checks
from normwright.core.activation import Activation
from normwright.torch import activations, arguments, composed, delegated, kernels
from normwright.torch.activations import ActivationLike
from normwright.torch.distributed import sync as sync_module
from normwright.torch.distributed import synced
from normwright.torch.distributed.peers import Peers
from normwright.torch.distributed.sync import SyncLike
from normwright.torch.running import RecordedVar, Running
from normwright.torch.watched import PLAIN, being_traced


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
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    channel_dim: int = 1,
    out: Tensor | None = None,
    recorded_var: RecordedVar = "unbiased",
    sync: SyncLike = None,
) -> Tensor:
    """Normalize every channel over the batch, or by running statistics; scale and shift; add and activate.

    y = activation(weight * (x - mean) / sqrt(var + eps) + bias + residual)

    In training, mean and (biased) var are the batch's own, and the running statistics, where given, move in
    place: running <- (1 - momentum) * running + momentum * batch, with the variance that recorded_var names. Else
    mean and var are running_mean and running_var, which stay.

    Args:
        x: (N, C, ...), any rank >= 2, floating point; C on channel_dim.
        running_mean, running_var: (C,), both or neither; needed unless training. Default None (torch's).
        weight, bias: (C,); None is 1 and 0. Default None (torch's).
        training: normalize by the batch. Default False (torch's).
        momentum: weight of the NEW batch, 0.1 (torch's).
        eps: 1e-5 (torch's); positive in training, not negative else.
        activation: a name ("relu", "leaky_relu", "relu6", "hardtanh", "hardswish", "silu", "gelu", "gelu_tanh",
            "sigmoid", "tanh", "elu"), or a module of torch.nn, for one with numbers of its own. Default None.
        residual: of x's shape, on its device; added before the activation, in x's type. Default None.
        channel_dim: the axis of x that holds the channels, 1 (torch's); -1 for (N, L, C) and (N, H, W, C).
        out: a tensor like x to hold y, x itself too; in evaluation, where no gradient is wanted. Default None.
        recorded_var: which variance of m values moves running_var: "unbiased", m2/(m-1) (torch's), or "biased",
            m2/m. Default "unbiased".
        sync: "world" or a torch.distributed.ProcessGroup: in training, the batch is that of all its processes
            together (see `BatchNorm1d`). Default None: this process alone.

    Returns:
        y of x's shape, dtype and memory format; `out` where that is given.

    Raises:
        ShapeError: a rank, shape or value that cannot be, or more than one device. Nothing was written then.
        DtypeError: x is not floating point.
        SyncError: another process did not take part.

    Numerics:
        On a CPU float32, float64 and the half types take the native kernels: each float32 y within 8 * 2^-24 of
        |weight * x_hat| + |bias| from the exact value, at any mean (float64 and gradients: docs/numerics.md),
        half types as float32 and rounded once; the same bits for any number of threads. All else (other devices,
        function transforms, compilation, half running statistics, a package built without kernels) is torch's
        own batch norm, and its addition and activation, with its precision. Types may be mixed: the per-channel
        tensors are then taken as x's type, or as float32 beside half types.

    Source:
        Ioffe & Szegedy 2015, Algorithms 1 and 2.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> batch_norm(x, training=True, eps=3.0)
        tensor([[-0.5000],
                [ 0.5000]])
        >>> batch_norm(x, training=True, eps=3.0, activation="relu", residual=torch.full((2, 1), 0.25))
        tensor([[0.0000],
                [0.7500]])
    """
    call = "normwright.torch.batch_norm"
    biased = recorded_var != "unbiased" and _is_biased(call, recorded_var)
    running = Running(running_mean, running_var, None, momentum, biased=biased)
    axis = (
        1 if type(channel_dim) is int and channel_dim == 1 else arguments.channel_axis(call, x, channel_dim)
    )
    if training is not True and training is not False:
        raise checks.DtypeError(checks.message(call, "training to be True or False", repr(training)))
    if training:
        arguments.check_momentum(call, momentum)
    follows = None if activation is None else activations.parse(call, activation)
    with_whom = None if sync is None else sync_module.parse(call, sync)
    if out is None:
        peers = sync_module.peers_of(with_whom, call, call, "raise") if with_whom and training else None
        return normalize(call, x, axis, running, weight, bias, training, eps, follows, residual, None, peers)
    arguments.check_input(call, x)
    read = (running_mean, running_var, weight, bias, residual)
    arguments.check_out(call, x, out, training, read)
    y = normalize(call, x, axis, running, weight, bias, training, eps, follows, residual, out)
    return y if y is out else out.copy_(y)


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
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    channel_dim: int = 1,
    recorded_var: RecordedVar = "unbiased",
) -> BatchNormStats:
    """Normalize by the batch and return the new running statistics; nothing is written.

    y = activation(weight * (x - mean) / sqrt(var + eps) + bias + residual)
    running <- (1 - momentum) * running + momentum * batch, with the variance that recorded_var names

    It is `batch_norm` in training for whoever needs a function without side effects: `torch.func.vmap`, `grad`,
    `jacrev`, and state that is passed along.

    Args:
        x: (N, C, ...), any rank >= 2, floating point; C on channel_dim.
        running_mean, running_var: (C,).
        weight, bias: (C,); None is 1 and 0. Default None (torch's).
        momentum: weight of the NEW batch, 0.1 (torch's).
        eps: 1e-5 (torch's), positive.
        activation, residual: as `batch_norm`.
        channel_dim: the axis of x that holds the channels, 1 (torch's).
        recorded_var: as `batch_norm`.

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
    axis = arguments.channel_axis(call, x, channel_dim)
    arguments.check_momentum(call, momentum)
    biased = _is_biased(call, recorded_var)
    follows = None if activation is None else activations.parse(call, activation)
    given: tuple[Tensor | None, Tensor | None] = running_mean, running_var
    checks.check_both_or_neither(call, *given)
    if given[0] is None:
        expected = "running_mean and running_var"
        raise checks.ShapeError(checks.message(call, expected, "None", remedy="Or use batch_norm."))
    if not being_traced():
        arguments.check(call, x, axis, running_mean, running_var, weight, bias, True, eps, residual)
        running = Running(running_mean.clone(), running_var.clone(), None, momentum, biased=biased)
        native = kernels.batch_norm(x, axis, running, weight, bias, True, eps, follows, residual)
        if native is not None:
            return BatchNormStats(native, *(t.detach() for t in running[:2]))  # type: ignore[union-attr]
    y = normalize(call, x, axis, Running(None, None), weight, bias, True, eps, follows, residual)
    if x.numel() == 0:  # as batch_norm: no batch, no change
        return BatchNormStats(y, running_mean.detach().clone(), running_var.detach().clone())
    dtype = torch.promote_types(torch.promote_types(x.dtype, running_mean.dtype), torch.float32)
    var, mean = torch.var_mean(
        x.detach().to(dtype), composed.Channels(x, axis).dims, correction=0 if biased else 1
    )
    new = (
        ((1 - momentum) * old.detach().to(dtype) + momentum * batch).to(old.dtype)
        for old, batch in ((running_mean, mean), (running_var, var))
    )
    return BatchNormStats(y, *new)


def _is_biased(call: str, recorded_var: object) -> bool:
    arguments.check_choice(call, "recorded_var", recorded_var, get_args(RecordedVar))
    return recorded_var == "biased"


def normalize(
    call: str,
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
) -> Tensor:
    """`batch_norm` on behalf of `call`, whose name errors carry. y is `out` only where a kernel wrote there."""
    if not being_traced():
        mean, var = running.mean, running.var
        tensors = (x, mean, var, weight, bias, residual)
        if not has_torch_function_variadic(*tensors) or _only_a_default_device(tensors):
            y = kernels.batch_norm(
                x, axis, running, weight, bias, by_batch, eps, activation, residual, out, peers
            )
            if y is not None:
                return y
            arguments.check(
                call, x, axis, mean, var, weight, bias, by_batch, eps, residual, alone=peers is None
            )
            # again, in the order of axes that the kernels and torch know
            if axis != 1 and not x.is_contiguous():
                moved = x.movedim(axis, 1), None if residual is None else residual.movedim(axis, 1)
                y = normalize(
                    call, moved[0], 1, running, weight, bias, by_batch, eps, activation, moved[1], None, peers
                )
                return y.movedim(1, axis)
    if residual is not None:
        arguments.check_residual(call, x, residual)
    if peers is not None:
        return synced.batch_norm_train(call, x, axis, running, weight, bias, eps, activation, residual, peers)
    if by_batch:
        return delegated.batch_norm_train(call, x, axis, running, weight, bias, eps, activation, residual)
    return delegated.batch_norm_fixed(x, axis, running, weight, bias, eps, activation, residual)


def _only_a_default_device(tensors: tuple[object, ...]) -> bool:
    """Whether nothing but `torch.set_default_device` listens, which matters where a tensor is made of nothing."""
    return all(t is None or type(t) in PLAIN for t in tensors) and all(
        isinstance(mode, DeviceContext)
        for mode in _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    )
