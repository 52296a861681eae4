"""Batch norm of a shared batch as tensor operations: what is compiled, what is not on a CPU, and what is empty.

Nothing here asks a device: it can be compiled whole, and captured.
"""

import math
from typing import Any

import torch
from torch import Tensor

from normwright.core import checks
from normwright.core.activation import Activation
from normwright.torch import composed, delegated
from normwright.torch.backward import wide
from normwright.torch.peers import Peers, is_told, merged
from normwright.torch.running import Running
from normwright.torch.shared import (
    Together,
    first_gradients,
    known,
    move,
    numbers_in,
    rstd_of,
    settle,
)
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
        ShapeError, SyncError: see `settle` and `Peers.gather`.
    """
    if being_transformed() and not being_traced():
        expected = "no function transform around a layer with sync"
        raise checks.TransformError(checks.message(call, expected, "one", remedy="Set sync=None there."))
    of = composed.Channels(x, axis)
    with torch.no_grad():
        rows = peers.gather(of.values, *composed.moments(wide(x.detach()), of))
        by = _told(rows, running, eps, peers, x, axis) if is_told(rows) else _asked(rows, running, eps, peers)
    if by is None:
        return delegated.batch_norm_fixed(x, axis, running, weight, bias, eps, activation, residual)
    # bias and residual so that backward, for which other ranks wait, runs where these alone want a gradient
    z: Tensor = _Normalized.apply(x, weight, bias, residual, *by, (axis, eps, peers))  # type: ignore[no-untyped-call]
    if bias is not None:
        z = z + of.along(wide(bias)).to(z.dtype)
    return delegated.follow(z, x.dtype, activation, residual)


# mean, mean_tail and rstd of (C,), and the count of (1,), all float64.
_Numbers = tuple[Tensor, Tensor, Tensor, Tensor]


def _told(rows: Tensor, running: Running, eps: float, peers: Peers, x: Tensor, axis: int) -> _Numbers | None:
    """What normalizes; None where running statistics do."""
    count, saved = known(rows, eps)
    if not settle(count, saved, running, peers, x, axis):
        return None
    mean, mean_tail, _, rstd = numbers_in(saved)
    return mean, mean_tail, rstd, torch.tensor([count], dtype=rows.dtype, device="cpu")


def _asked(rows: Tensor, running: Running, eps: float, peers: Peers) -> _Numbers:
    """The same without a question to a device, which asserts that no value is alone, or replaces it."""
    whole = merged(rows)
    count = whole.count
    if peers.lone == "raise" or running.mean is None:
        words = f"{peers.label}: one value per channel in all {peers.size} ranks together."
        torch._assert_async(count.squeeze(0) != 1, words)
        move(whole, running)
        return whole.mean, whole.mean_tail, rstd_of(whole, eps), count
    lone = count == 1
    var = torch.where(lone, running.var.double(), whole.m2 / count.clamp(min=1))  # type: ignore[union-attr]
    mean = torch.where(lone, running.mean.double(), whole.mean)
    move(whole, running)
    # constants have no share in dx
    return mean, whole.mean_tail, (var + eps).sqrt().reciprocal(), torch.where(lone, math.inf, count)


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
            dx, dweight, _ = composed.train(dz, x_hat, rstd_of_x, weight_as_x, together)
        else:
            of = composed.Channels(x, axis)
            x_hat, scale = composed.normalized_by(wide(x), mean, rstd, of, mean_tail)
            dx, dweight, _ = first_gradients(dz, x_hat, scale, weight_as_x, of, count, peers)
        gradients = dx.to(x.dtype), None if weight is None else dweight.to(weight.dtype)
        given = (g if n else None for g, n in zip(gradients, ctx.needs_input_grad, strict=False))
        return *given, None, None, None, None, None, None, None
