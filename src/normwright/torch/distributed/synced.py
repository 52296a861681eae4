"""Batch norm of a shared batch as tensor operations: what is compiled, what is not on a CPU, and what is empty.

Nothing here waits for a device: it can be compiled whole, and captured.
"""

import math
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from normwright.core import checks
from normwright.core.activation import Activation
from normwright.torch import composed, delegated
from normwright.torch.backward import wide
from normwright.torch.distributed.peers import Peers, is_told, merged
from normwright.torch.distributed.shared import (
    Together,
    first_gradients,
    merge_told,
    move_by_operations,
    numbers_in,
    rstd_of,
    settle,
)
from normwright.torch.running import Running
from normwright.torch.watched import being_traced, being_transformed


def batch_norm_train(
    call: str,
    x: Tensor,
    axis: int,
    running: Running,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: Activation | None,
    residual: Tensor | None,
    peers: Peers,
) -> Tensor:
    """Normalize by all ranks' batches; move the running statistics in place.

    Raises:
        TransformError: under a function transform.
        DtypeError: an argument is a DTensor. ShapeError: x has no channel; and see `settle`.
        SyncError: see `Peers.gather`.
    """
    if not x.shape[axis]:
        where = checks.where_channels_are(x.shape, axis)
        raise checks.ShapeError(checks.message(call, "a channel or more in training", "none", where))
    if not being_traced():
        buffers = {"running_mean": running.mean, "running_var": running.var}
        _check_is_own(call, x=x, weight=weight, bias=bias, residual=residual, **buffers)
        _check_can_follow(call, x, weight, bias, residual)
    of = composed.Channels(x, axis)
    rows = peers.gather(of.values, *composed.moments(wide(x.detach()), of))
    by = _told(rows, running, eps, peers, x, axis) if is_told(rows) else _asked(rows, running, eps, peers)
    return normalize_by(by, x, axis, weight, bias, eps, activation, residual, peers)


class Numbers(NamedTuple):
    """What normalizes a shared batch, in float64.

    Attributes:
        mean, mean_tail, rstd: (C,).
        count: (1,), of values per channel; infinity where the others are constants, which have no share in dx.
    """

    mean: Tensor
    mean_tail: Tensor
    rstd: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody asks of this


def normalize_by(
    by: Numbers, x: Tensor, axis: int, weight: Tensor | None, bias: Tensor | None, eps: float,
    activation: Activation | None, residual: Tensor | None, peers: Peers,
) -> Tensor:  # fmt: skip
    """y. Its backward pass waits for that of the other ranks, whatever normalizes."""
    # bias and residual so that it runs where these alone want a gradient
    z: Tensor = _Normalized.apply(x, weight, bias, residual, *by, (axis, eps, peers))  # type: ignore[no-untyped-call]
    if bias is not None:
        z = z + composed.Channels(x, axis).along(wide(bias)).to(z.dtype)
    return delegated.follow(z, x.dtype, activation, residual)


def by_running(running: Running, eps: float) -> Numbers:
    """What normalizes a lone value with on_degenerate="running"."""
    assert running.mean is not None
    assert running.var is not None
    mean, var = running.mean.detach().double(), running.var.detach().double()
    return Numbers(
        mean, torch.zeros_like(mean), (var + eps).sqrt().reciprocal(), mean.new_full((1,), math.inf)
    )


def _check_is_own(call: str, **given: Tensor | None) -> None:
    """Raise DtypeError where a tensor is what several processes hold, and not this one's."""
    spread = sys.modules.get("torch.distributed.tensor")  # long to load; who has a DTensor has loaded it
    if spread is None:
        return
    for name, t in given.items():
        if isinstance(t, spread.DTensor):
            expected, got = f"{name} to be this process's own with sync", "a DTensor, which several hold"
            raise checks.DtypeError(checks.message(call, expected, got, remedy=_instead(name, t)))


def _instead(name: str, spread: Any) -> str:
    if name in ("x", "residual"):
        return f"Use {name}.to_local() where that is this process's samples."
    if name.startswith("running"):
        return f"Keep {name} out of what is distributed."
    whole = f"{name}.full_tensor(grad_placements=[Partial()] * {spread.device_mesh.ndim})"
    return f"Use {whole}: each process has a part of its gradient."


def _check_can_follow(call: str, x: Tensor, weight: Tensor | None, *others: Tensor | None) -> None:
    """Raise what autograd would raise too late: when the others have been told, and statistics have moved."""
    if being_transformed() or forward_ad._current_level >= 0:
        expected = "no function transform and no forward-mode AD around a layer with sync"
        raise checks.TransformError(checks.message(call, expected, "one", remedy="Set sync=None there."))
    wanted = any(t is not None and t.requires_grad for t in (x, weight, *others))
    if torch.is_grad_enabled() and wanted and any(t is not None and t.is_inference() for t in (x, weight)):
        expected, remedy = (
            "no inference tensor where a gradient is wanted",
            "Clone it outside of inference mode.",
        )
        raise checks.ShapeError(checks.message(call, expected, "one", remedy=remedy))


def _told(rows: Tensor, running: Running, eps: float, peers: Peers, x: Tensor, axis: int) -> Numbers:
    """What normalizes."""
    count, saved = merge_told(rows, eps)
    if not settle(count, saved, running, peers, x, axis):
        return by_running(running, eps)
    mean, mean_tail, _, rstd = numbers_in(saved)
    return Numbers(mean, mean_tail, rstd, torch.tensor([count], dtype=rows.dtype, device="cpu"))


def _asked(rows: Tensor, running: Running, eps: float, peers: Peers) -> Numbers:
    """The same without a question to a device, which asserts that no value is alone, or replaces it."""
    whole = merged(rows)
    by = Numbers(whole.mean, whole.mean_tail, rstd_of(whole, eps), whole.count)
    if peers.lone == "raise" or running.mean is None:
        words = f"{peers.label}: one value per channel in all {peers.size} ranks together."
        torch._assert_async(whole.count.squeeze(0) != 1, words)
    else:
        lone, instead = whole.count == 1, by_running(running, eps)
        by = Numbers(*(torch.where(lone, b, a) for a, b in zip(by, instead, strict=True)))
    move_by_operations(whole, running)
    return by


class _Normalized(torch.autograd.Function):
    """x_hat * weight, of float32 where x is of a half type; bias and residual are not used."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor,
        mean_tail: Tensor,
        rstd: Tensor,
        count: Tensor,
        call: tuple[int, float, Peers],
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, mean_tail, rstd, count)
        ctx.call = call
        of = composed.Channels(x, call[0])
        x_hat, _ = composed.normalized_by(wide(x), mean, rstd, of, mean_tail)
        return x_hat if weight is None else x_hat * of.along(weight).to(x_hat.dtype)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, mean_tail, rstd, count = ctx.saved_tensors
        axis, eps, peers = ctx.call
        weight_as_x = None if weight is None else weight.to(dz.dtype)
        if torch.is_grad_enabled() and not being_traced():
            together = Together(x, axis, count, peers)
            x_hat, rstd_of_x = composed.normalized(wide(x), mean, eps, together)
            if peers.lone == "running":  # where they were constants, they stay so
                constant = composed.normalized_by(wide(x), mean, rstd, together, mean_tail)
                lone = torch.isinf(count)
                x_hat, rstd_of_x = (
                    torch.where(lone, c, v) for c, v in zip(constant, (x_hat, rstd_of_x), strict=True)
                )
            dx, dweight, _ = composed.train(dz, x_hat, rstd_of_x, weight_as_x, together)
        else:
            of = composed.Channels(x, axis)
            x_hat, scale = composed.normalized_by(wide(x), mean, rstd, of, mean_tail)
            dx, dweight, _ = first_gradients(dz, x_hat, scale, weight_as_x, of, count, peers)
        gradients = dx.to(x.dtype), None if weight is None else dweight.to(weight.dtype)
        given = (g if n else None for g, n in zip(gradients, ctx.needs_input_grad, strict=False))
        return *given, None, None, None, None, None, None, None
