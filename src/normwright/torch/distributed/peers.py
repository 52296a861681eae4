"""What the processes that share a batch tell each other: moments in forward, sums in backward; each one message.

All ranks send the same messages whatever way each takes to its numbers (kernels, operations, an empty batch), and
move their statistics by the same bits.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from normwright.core.checks import SyncError, TransformError, message
from normwright.torch.distributed.missing import named
from normwright.torch.watched import being_traced


def is_told(t: Tensor) -> bool:
    """Whether Python may know a number without waiting for a device, or leaving a graph."""
    return not being_traced() and type(t) is Tensor and t.is_cpu


def is_there(group: Any) -> bool:
    """Whether a group was not destroyed. In another world its name may be that of another group."""
    return group in dist.distributed_c10d._world.pg_map  # torch's public way to ask copies all ranks


class Whole(NamedTuple):
    """The moments of all ranks' values.

    Attributes:
        count: (1,) float64, values per channel.
        mean, mean_tail: (C,) float64; their sum is the mean to more digits than one double holds.
        m2: (C,) float64.
    """

    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody asks of this
    mean: Tensor
    mean_tail: Tensor
    m2: Tensor


class Peers(NamedTuple):
    """The processes that share a batch.

    Attributes:
        name: of the process group.
        size: how many they are.
        label: the layer's, for errors.
        tag: a number that is the same where the layer is; 0 where that is not known.
        lone: what a single value per channel in all of them does, as a layer's `on_degenerate`.
        group: itself, while anybody has it; None in a graph, which knows groups by their names.
    """

    name: str
    size: int
    label: str
    tag: int
    lone: str
    group: Callable[[], Any] | None = None

    def gather(self, count: int, mean: Tensor, mean_tail: Tensor, m2: Tensor) -> Tensor:
        """Every rank's moments, a row (count, mean (C,), mean_tail (C,), m2 (C,)) each, in the order of ranks.

        One all-gather.

        Args:
            count: values per channel here; may be 0.
            mean, mean_tail, m2: (C,) float64; zeros where there is no value. The mean is mean + mean_tail, to more
                digits than one double.

        Raises:
            SyncError: a rank did not come, or came with another layer of this width (of another width, gloo ends
                a process).
        """
        header = mean.new_empty(2)
        header[0] = self.tag  # filled one by one: a number that a compiler does not know stays one
        header[1] = count
        mine = torch.cat((header, mean, mean_tail, m2))
        ops = torch.ops._c10d_functional
        with waited(self.label, self.size, "to send its batch's moments in forward"):
            rows: Tensor = ops.wait_tensor(ops.all_gather_into_tensor(mine, self.size, self.name))
        rows = rows.view(self.size, -1)
        self._check_tags(rows)
        return rows[:, 1:]

    def total(self, sums: Tensor) -> Tensor:
        """The sums over all ranks: one all-reduce.

        Raises:
            SyncError: a rank did not come, or came with another layer, or the group was destroyed.
            TransformError: vmap asks for several backward passes in one, whose sums no message carries.
        """
        if not being_traced() and any(is_batched(sums) for is_batched in _BATCHED):
            expected, remedy = (
                "no vmap around the backward pass of a layer with sync",
                "Ask for one at a time.",
            )
            raise TransformError(message(self.label, expected, "one", remedy=remedy))
        if not being_traced() and self.group is not None and not is_there(self.group()):
            expected, remedy = "the group of its forward pass in backward", "Destroy groups when all is done."
            raise SyncError(message(self.label, expected, "one that was destroyed", remedy=remedy))
        header = sums.new_empty(2)
        header[0] = self.tag
        header[1] = self.tag != 0
        mine = torch.cat((header, sums))
        ops = torch.ops._c10d_functional
        with waited(self.label, self.size, "to send its gradients' sums in backward"):
            whole: Tensor = ops.wait_tensor(ops.all_reduce(mine, "sum", self.name))
        if self.tag and is_told(whole) and whole[0].item() != whole[1].item() * self.tag:
            raise self._elsewhere("backward", "another layer on some rank")
        return whole[2:]

    def _check_tags(self, rows: Tensor) -> None:
        """Raise where ranks are at different layers. Not where that would wait for a device."""
        if not self.tag or not is_told(rows):
            return
        tags = [int(tag) for tag in rows[:, 0].tolist()]
        others = [str(rank) for rank, tag in enumerate(tags) if tag not in (0, self.tag)]
        if others:
            raise self._elsewhere("forward", f"another layer on rank {', '.join(others)}")

    def _elsewhere(self, when: str, got: str) -> SyncError:
        expected = f"all {self.size} ranks of its group to be at this layer in {when}"
        remedy = "Every rank must run the same layers in the same order."
        return SyncError(message(self.label, expected, got, remedy=remedy))


_BATCHED = torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor


def waited(label: str, size: int, what: str) -> AbstractContextManager[None]:
    """An error of the process group says which layer waited, and for what. A graph has no place for it."""
    if being_traced():
        return nullcontext()
    remedy = (
        "A rank has ended, or is late, or does not train this layer as often as the others, or the group was "
        "destroyed. It cannot be used any more: end all ranks, and start again."
    )
    return named(label, f"each of the {size} ranks of its group {what}", remedy)


def merged(rows: Tensor) -> Whole:
    """The moments of all rows together, each as `Peers.gather` has them, in their order.

    mean = p + s,  s = sum n_k (mean_k - p) / n;  m2 = sum m2_k + n_k (mean_k - p - s)^2;  p the largest row's mean

    Numerics:
        Every term of m2 is positive, and differences are of means alone, which are told to more digits than one
        double: nothing cancels, whatever the means. An empty row changes nothing, to the bit.

    Source:
        Chan, Golub & LeVeque 1979 (see core.moments.Moments.merge).
    """
    counts, (means, tails, m2s) = rows[:, :1], rows[:, 1:].chunk(3, 1)
    count = _in_order(counts)
    largest = counts.argmax(0)
    pivot, tail = means.index_select(0, largest).squeeze(0), tails.index_select(0, largest).squeeze(0)
    pivot = torch.where(torch.isfinite(pivot), pivot, 0.0)  # infinity is no place to look from
    # an empty row knows no mean, and has no weight
    away = torch.where(counts > 0, (means - pivot) + (tails - tail), 0.0)
    shift = _in_order(counts * away) / count.clamp(min=1)
    mean = pivot + shift
    left = ((pivot - mean) + shift) + tail
    left = torch.where(torch.isfinite(left), left, 0.0)
    return Whole(count, mean, left, _in_order(m2s + counts * (away - shift).square()))


def _in_order(rows: Tensor) -> Tensor:
    """The sum of the rows, the same bits on all ranks.

    On a CPU one after the other, for `sum` adds in an order that depends on the processor's vectors. Elsewhere the
    devices are alike, and `cumsum` is refused where deterministic algorithms are asked for.
    """
    return rows.cumsum(0)[-1] if rows.is_cpu else rows.sum(0)


class _Total(torch.autograd.Function):
    """A sum over all ranks, of which each rank's part has the gradient that all ranks' losses give it."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        return peers.total(sums)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return total(gradient, ctx.peers), None


def total(sums: Tensor, peers: Peers) -> Tensor:
    """The sums over all ranks, differentiable any number of times; one all-reduce each time."""
    whole: Tensor = _Total.apply(sums, peers)  # type: ignore[no-untyped-call]
    return whole
