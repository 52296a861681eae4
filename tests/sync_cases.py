"""A batch in parts, one for each process; what a step on its part leaves in each; and whether that is one batch's.

found = processes.run(steps, [case], size=len(case.counts))
check(case, [each[0] for each in found])
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import BaseTorchDispatchMode

import close
import normwright.torch as nw
from beside_torch import LAST, LAST_3D, NAMES, UNIT
from normwright.core.activation import NAMES as ACTIVATIONS
from normwright.core.moments import Moments
from normwright.kernels import reference
from normwright.torch.distributed.peers import Peers, Whole, merged

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
# The axes behind the samples (C is -1), and what the layer and the memory are told of them.
LAYOUTS: dict[str, tuple[tuple[int, ...], int, Any]] = {
    "(N, C)": ((-1,), 1, None),
    "(N, C, L)": ((-1, 3), 1, None),
    "NCHW": ((-1, 3, 2), 1, None),
    "channels-last": ((-1, 3, 2), 1, LAST),
    "NCDHW": ((-1, 2, 1, 3), 1, None),
    "channels-last 3d": ((-1, 2, 3, 1), 1, LAST_3D),
    "(N, L, C)": ((3, -1), -1, None),
    "NHWC": ((2, 3, -1), -1, None),
}
# Which way a process takes to its numbers: any two must understand each other.
KERNELS, OPERATIONS, BOTH = "kernels", "operations", "kernels, then operations"
WAYS = (KERNELS, OPERATIONS, BOTH)


@dataclass(frozen=True)
class Case:
    """A batch, in parts.

    Attributes:
        counts: samples of each rank.
        ways: of each rank, one of WAYS; none given is KERNELS for all.
        offset: the mean, in standard deviations.
        options: of the layer.
    """

    counts: tuple[int, ...]
    layout: str = "NCHW"
    dtype: torch.dtype = F32
    channels: int = 3
    offset: float = 0.0
    activation: str | None = None
    has_residual: bool = False
    ways: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def axis(self) -> int:
        return LAYOUTS[self.layout][1]

    @property
    def whole(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, dy and the residual of all ranks together; every channel has a mean and a scale of its own."""
        shape = [self.channels if size < 0 else size for size in LAYOUTS[self.layout][0]]
        rng = np.random.default_rng(self.seed)
        x, dy, residual = (
            torch.from_numpy(rng.standard_normal((sum(self.counts), *shape))) for _ in range(3)
        )
        each = torch.arange(self.channels, dtype=F64)
        along = [-1 if d == self.axis % x.dim() else 1 for d in range(x.dim())]
        x = x * (1 + each / 2).view(along) + self.offset + each.view(along)
        parts = (self._laid(t.to(self.dtype)) for t in (x, dy + 0.5, residual))
        x, dy, residual = parts
        return x, dy, residual if self.has_residual else None

    def part(self, rank: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """This rank's share of `whole`."""
        return tuple(None if t is None else self.share(t, rank) for t in self.whole)  # type: ignore[return-value]

    def share(self, t: Tensor, rank: int) -> Tensor:
        """A rank's part of a tensor like x."""
        first = sum(self.counts[:rank])
        return self._laid(t[first : first + self.counts[rank]])

    def _laid(self, t: Tensor) -> Tensor:
        memory = LAYOUTS[self.layout][2]
        return t.contiguous() if memory is None else t.contiguous(memory_format=memory)

    def layer(self, sync: Any) -> Any:
        """A layer of ours whose weight, bias and statistics are not trivial; half batches meet float32 numbers."""
        dtype = F64 if self.dtype == F64 else F32
        options = {"activation": self.activation, "channel_dim": self.axis, "sync": sync} | self.options
        rank = len(LAYOUTS[self.layout][0]) + 1
        layer = getattr(nw, NAMES[rank])(self.channels, dtype=dtype, **options)
        each = torch.arange(self.channels, dtype=dtype)
        with torch.no_grad():
            for name, value in {
                "weight": 1.5 - each,
                "bias": each / 4 - 0.5,
                "running_mean": each / 2 + 0.25,
                "running_var": each + 0.5,
            }.items():
                if getattr(layer, name) is not None:
                    getattr(layer, name).copy_(value)
        return layer


class Said(NamedTuple):
    """What a process and the others told each other: moments merged, sums added up."""

    moments: list[Whole]
    sums: list[Tensor]


@contextmanager
def overheard() -> Iterator[Said]:
    """What layers tell those of other processes meanwhile."""
    said, gather, total = Said([], []), Peers.gather, Peers.total

    def heard_gather(*arguments: Any) -> Tensor:
        rows = gather(*arguments)
        said.moments.append(merged(rows))
        return rows

    def heard_total(*arguments: Any) -> Tensor:
        sums = total(*arguments)
        said.sums.append(sums.clone())
        return sums

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Peers, "gather", heard_gather)
        patch.setattr(Peers, "total", heard_total)
        yield said


def watched(yes: bool) -> Any:
    """A dispatch mode sees operations alone: what it watches is not left to the kernels."""
    return BaseTorchDispatchMode() if yes else nullcontext()


def step(
    layer: Any, x: Tensor, dy: Tensor, residual: Tensor | None = None, way: str = KERNELS
) -> dict[str, Tensor | None]:
    """y, the gradients, the statistics, and what was told, of one step."""
    x = x.detach().requires_grad_()
    residual = None if residual is None else residual.detach().requires_grad_()
    with overheard() as said:
        with watched(way == OPERATIONS):
            y = layer(x, residual)
        with watched(way != KERNELS):
            y.backward(dy)
    found = {"y": y.detach(), "dx": x.grad, "dresidual": None if residual is None else residual.grad}
    found |= {f"d{name}": p.grad for name, p in layer.named_parameters()}
    found |= dict(layer.named_buffers())
    found["merges"], found["totals"] = (torch.tensor(len(told)) for told in said)
    if said.moments:
        found |= {f"told {name}": t for name, t in said.moments[0]._asdict().items()}
    return found


def steps(rank: int, cases: list[Case]) -> list[dict[str, Tensor | None]]:
    """A step of each case on this rank's part."""
    return [
        step(case.layer("world"), *case.part(rank), way=case.ways[rank] if case.ways else KERNELS)
        for case in cases
    ]


def check(case: Case, ranks: list[dict[str, Any]], was_heard: bool = True) -> None:
    """All ranks' steps are that of one process on the whole batch, within the lines of close.py.

    These are 8 roundings of the terms of each value around its exact one: for float64 about 1e-15 of the terms,
    far below 1e-12. A gradient of a parameter is the sum over the ranks of what each of them rounded; its line
    is made of the sum of all terms' sizes, of which each rank has its part. Statistics are the same bits on all.
    What they are is looked at where the ranks were overheard, which nobody is in a compiled program.
    """
    x, dy, residual = (None if t is None else in_numpy(t) for t in case.whole)
    layer = case.layer(None)
    weight, bias = (None if p is None else p.detach().numpy() for p in (layer.weight, layer.bias))
    follows = None if case.activation is None else ACTIVATIONS[case.activation]
    same_on_all(ranks)
    got = {name: np.concatenate([in_numpy(each[name]) for each in ranks]) for name in ("y", "dx")}
    if residual is not None:
        got["dresidual"] = np.concatenate([in_numpy(each["dresidual"]) for each in ranks])
    for name in ("dweight", "dbias"):
        got[name] = sum(each[name].double().numpy() for each in ranks)
    for (part, *_), each in zip(map(case.part, range(len(ranks))), ranks, strict=True):
        for name in ("y", "dx"):
            assert each[name].dtype == case.dtype, name
            # as the input lies; what holds nothing lies anyhow
            assert each[name].stride() == part.stride() or not part.numel(), name
    given = {"activation": follows, "residual": residual}
    gradients = got["dx"], got["dweight"], got["dbias"], got.get("dresidual")
    with mean_off():
        close.forward_train(got["y"], x, weight, bias, layer.eps, case.axis, **given)
        close.backward_train(gradients, dy, x, weight, layer.eps, case.axis, beta=bias, **given)
    if was_heard:
        told_moments(case, ranks[0])
        moved(layer, ranks[0])


@contextmanager
def mean_off() -> Iterator[None]:
    """The lines of close.py, with |x_hat| + 1 for |x_hat|.

    Its line for the mean is 8 units of the values' distances from it, so no x_hat is known better than to 8 units
    of 1. Those near 0 come out closer from most batches; but not from all that can be drawn.
    """
    x_hat = close._x_hat
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(close, "_x_hat", lambda *arguments: np.abs(x_hat(*arguments)) + 1)
        yield


def told_moments(case: Case, found: dict[str, Any]) -> None:
    """The moments that all agreed on are those of the whole batch."""
    x, axis = in_numpy(case.whole[0]), case.axis
    count, mean, tail, m2 = (found[f"told {name}"].numpy() for name in Whole._fields)
    want = reference.moments(close.widen(x), axis)
    assert count.item() == want.count
    close.moments(Moments(want.count, mean + tail, m2), x, axis)


def moved(layer: Any, found: dict[str, Any]) -> None:
    """The statistics are those of `layer`, moved once by the moments that were told."""
    count, mean, _, m2 = (found[f"told {name}"].numpy() for name in Whole._fields)
    rate = layer.momentum
    for name, batch in (("running_mean", mean), ("running_var", m2 / (count - 1))):
        old, got = getattr(layer, name), found[name]
        want = (1 - rate) * old.double().numpy() + rate * batch
        # both terms and the sum are rounded in float64, and the result once to its type
        terms = (1 - rate) * np.abs(old.double().numpy()) + rate * np.abs(batch)
        close.within(name, got.double().numpy(), want, 4 * UNIT[F64] * terms + UNIT[got.dtype] * np.abs(want))
    assert found["num_batches_tracked"].item() == 1


def same_on_all(ranks: list[dict[str, Any]]) -> None:
    """Every process heard the same, as often, and has the same statistics, to the bit."""
    alike = [name for name in ranks[0] if name.startswith(("told", "running", "num", "merges", "totals"))]
    assert alike
    for rank, each in enumerate(ranks[1:], 1):
        for name in alike:
            close.same_bits(f"{name} of rank {rank}", each[name].numpy(), ranks[0][name].numpy())


def in_numpy(t: Tensor) -> np.ndarray:
    """The same values; NumPy has a bfloat16 by another package."""
    t = t.detach()
    return t.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16) if t.dtype == BF16 else t.numpy()


def beside_one(rank: int, cases: list[Case], times: int = 3) -> None:
    """So many steps on this rank's parts, beside those of one process on the whole, both made here; in float64.

    Values and gradients are of the order of 1, and the sums of some ten: 1e-12 is hundreds of their roundings.
    """
    for case in cases:
        layer, one = case.layer("world"), case.layer(None)
        for k in range(times):
            now = replace(case, seed=case.seed + k)
            layer.zero_grad()
            one.zero_grad()
            got = step(layer, *now.part(rank), way=case.ways[rank] if case.ways else KERNELS)
            want = step(one, *now.whole)
            for name in ("y", "dx", "dresidual"):
                if want[name] is not None:
                    same(f"{name} of {case}", got[name], case.share(want[name], rank))
            for name, p in one.named_parameters():
                total = got[f"d{name}"].clone()
                dist.all_reduce(total)
                same(f"d{name} of {case}", total, p.grad)
            for name, t in one.named_buffers():
                same(f"{name} of {case}", got[name], t)
            assert got["merges"] == 1
            assert got["totals"] == 1


def same(what: str, got: Any, want: Any, bound: float = 1e-12) -> None:
    """Equal to the bound, and of one type and shape."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape), what
    close.within(what, got.detach().numpy(), want.detach().numpy(), bound)
