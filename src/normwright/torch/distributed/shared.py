"""A batch that several processes share, once its moments are known: what it leaves behind, and its gradients."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from normwright.core import checks
from normwright.kernels import NATIVE
from normwright.torch import composed, delegated
from normwright.torch.distributed.peers import Peers, Whole, merged, total
from normwright.torch.running import Running
from normwright.torch.watched import being_watched

if NATIVE:
    from normwright import _native

_increment_version = torch._C._increment_version


def merge_told(rows: Tensor, eps: float) -> tuple[float, bytearray]:
    """All ranks' values together, where their moments are told: the count, and mean, mean_tail, m2 and rstd."""
    channels = (rows.shape[1] - 1) // 3
    saved = bytearray(32 * channels)
    if NATIVE:
        return _native.merge_rows(rows, eps, saved), saved
    whole, of = merged(rows), numbers_in(saved)
    of[0], of[1], of[2], of[3] = whole.mean, whole.mean_tail, whole.m2, rstd_of(whole, eps)
    return float(whole.count), saved


def numbers_in(saved: bytearray) -> Tensor:
    """Rows of (C,) float64: mean, mean_tail, m2 and rstd."""
    return torch.frombuffer(saved, dtype=torch.float64).view(4, -1)


def rstd_of(whole: Whole, eps: float) -> Tensor:
    return (whole.m2 / whole.count.clamp(min=1) + eps).sqrt().reciprocal()


def settle(count: float, saved: bytearray, running: Running, peers: Peers, x: Tensor, axis: int) -> bool:
    """Move the running statistics, alike on all ranks; False where these are to normalize a lone value instead.

    Raises:
        ShapeError: all ranks together have one value per channel.
    """
    if count == 1:
        if peers.lone == "running" and running.mean is not None:
            return False
        expected = "more than one value per channel in training"
        got = f"1 in all {peers.size} ranks together; {checks.where_channels_are(x.shape, axis)}"
        raise checks.ShapeError(checks.message(peers.label, expected, got, remedy="Use a larger batch."))
    mean, var, counter, momentum, moves, guard, biased, debias = running
    if NATIVE and moves and count and not debias and not being_watched():
        guarded = guard is not None and mean is not None
        rate = momentum or 0.0
        moved = _native.move(mean, var, counter, saved, count, rate, momentum is None, guarded, biased)
        if moved is not None:
            _increment_version([t for t in (mean, var, counter) if t is not None])
            if not moved:
                guard.refuse()  # type: ignore[union-attr]
            return True
    of = numbers_in(saved)
    whole = Whole(torch.tensor([count], dtype=of.dtype, device="cpu"), of[0], of[1], of[2])
    move_by_operations(whole, running)
    return True


def move_by_operations(whole: Whole, running: Running) -> None:
    """Move the running statistics, by operations."""
    if not running.moves:
        running = delegated.on_copies(running)
    if running.mean is None:
        if running.counter is not None:
            running.counter.add_(1)
    else:
        ddof = 0 if running.biased else 1
        delegated.move(running, whole.mean, whole.m2 / (whole.count - ddof).clamp(min=1), whole.count)


class Shared(NamedTuple):
    """What the backward pass of a shared batch knows of it.

    Attributes:
        peers: who shares it.
        count: values per channel in all ranks together.
    """

    peers: Peers
    count: float  # type: ignore[assignment]  # hides tuple.count, which nobody asks of this

    def backward(
        self, x: Tensor, axis: int, dy: Tensor, weight: Tensor | None, saved: bytearray,
        dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, known: Any,
        bias: Tensor | None = None, activation: Any = None, residual: Tensor | None = None,
        bits: Tensor | None = None, dresidual: Tensor | None = None,
    ) -> bool:  # fmt: skip
        """As `_native.backward_train_seen`, with the other ranks' sums in between."""
        channels = x.shape[axis]
        sums = torch.empty(2 * channels, dtype=torch.float64, device="cpu")
        with_it = bias, activation, residual, bits
        if not _native.backward_sums_seen(x, axis, dy, weight, saved, sums, known, *with_it):
            return False
        whole = self.peers.total(sums)
        for into, of in ((dbias, sums[:channels]), (dweight, sums[channels:])):
            if into is not None:
                into.copy_(of)
        return dx is None or _native.backward_by_seen(
            x, axis, dy, weight, saved, whole, self.count, dx, known, *with_it, dresidual
        )


def share(
    x: Tensor, axis: int, seen: "_native.Seen", running: Running, eps: float, peers: Peers
) -> tuple[Shared, bytearray] | None:
    """Tell the others of this batch; what backward will know, and the rows of doubles that the kernels need.

    None where all ranks have a lone value, which running statistics are to normalize.
    """
    mine = bytearray(32 * seen.channels)
    _native.moments_seen(seen, mine)
    count, saved = merge_told(peers.gather(x.numel() // seen.channels, *numbers_in(mine)[:3]), eps)
    if not settle(count, saved, running, peers, x, axis):
        return None
    return Shared(peers, count), saved


class Together(composed.Channels):
    """Means over all ranks' values, and sums over this rank's: gradients through all of them."""

    def __init__(self, x: Tensor, axis: int, count: Tensor | float, peers: Peers) -> None:
        super().__init__(x, axis)
        self._count, self._peers = count, peers

    def mean(self, t: Tensor) -> Tensor:
        sums = total(self.sum(t).double(), self._peers) / self._count
        return self.along(sums.to(t.dtype))


def first_gradients(
    dz: Tensor, x_hat: Tensor, rstd: Tensor, weight: Tensor | None, of: composed.Channels,
    count: Tensor | float, peers: Peers,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`composed.train` with all ranks' means, in one message; not to be differentiated."""
    dbias, dweight = of.sum(dz), of.sum(dz * x_hat)
    means = peers.total(torch.cat((dbias, dweight)).double()) / count
    dz_mean, agreement = (of.along(each.to(x_hat.dtype)) for each in means.chunk(2))
    scale = rstd if weight is None else rstd * of.along(weight)
    return scale * (dz - dz_mean - x_hat * agreement), dweight, dbias
