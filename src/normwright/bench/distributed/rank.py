"""What each of the processes does that measure what synchronizing costs: one rank, one thread, all in step.

Rank 0 writes a line of JSON for each part that is done, and a last one with all that was measured.
"""

import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import normwright.torch as nw
from normwright.bench.distributed.networks import (
    ALONE,
    BARE,
    COMPOSED,
    LAYER_SHAPE,
    NETWORKS,
    OURS,
    SYNC,
    TORCH,
    Network,
)
from normwright.bench.timer import Budget, Contender, WrongValues, race

# How far values may be off, of their norm. float32 sums in another order, through 20 layers, lose three digits of
# seven. A gradient may lose more: rounding puts a value next to zero on either side of a ReLU, and one of the 500
# or so values behind a gradient is then there or not.
VALUES, GRADIENTS = 1e-3, 2e-2
TIMEOUT = timedelta(seconds=60)  # of the process group: a rank that broke ends the others
SIZES = {
    "double": 8,
    "float": 4,
    "long int": 8,
    "int": 4,
    "c10::BFloat16": 2,
    "c10::Half": 2,
    "unsigned char": 1,
}


class Sent(NamedTuple):
    """A collective that was seen: its name, and the bytes that this rank put in."""

    name: str
    bytes: int


# ---- synchronizing as anybody would write it -------------------------------------------------------------------


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        whole = x.clone()
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        whole = gradient.contiguous().clone()
        dist.all_reduce(whole, group=ctx.group)
        return whole, None


class Composed(_BatchNorm):
    """Means of values and squares over ranks of equal batches: E[x^2] - E[x]^2 in float32, as is often written."""

    group: Any

    def forward(self, x: Tensor) -> Tensor:
        axes = [0, *range(2, x.dim())]
        sums: Tensor = _AllReduce.apply(torch.cat((x.mean(axes), x.square().mean(axes))), self.group)  # type: ignore[no-untyped-call]
        mean, square = (sums / self.group.size()).chunk(2)
        var = square - mean.square()
        with torch.no_grad():
            count = x.numel() // x.shape[1] * self.group.size()
            for running, now in ((self.running_mean, mean), (self.running_var, var * count / (count - 1))):
                assert running is not None
                assert self.momentum is not None
                running.lerp_(now, self.momentum)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        along = (1, -1, *(1,) * (x.dim() - 2))
        scale = self.weight * torch.rsqrt(var + self.eps)
        y: Tensor = x * scale.view(along) + (self.bias - mean * scale).view(along)
        return y


def _composed(model: nn.Module, group: Any) -> nn.Module:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = Composed
            module.group = group
    return model


# ---- a training step -------------------------------------------------------------------------------------------


def steps(network: Network, budget: Budget) -> dict[str, list[float]]:
    """Seconds of each contender's steps, the slowest rank's of each round.

    Raises:
        WrongValues: on every rank, where one of them computes something else.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    joined = _normal((network.batch * ranks, *network.shape))
    mine = joined.narrow(0, network.batch * rank, network.batch)
    base = network.make()
    group = dist.new_group()
    models = {
        TORCH: copy.deepcopy(base),
        OURS: nw.convert(copy.deepcopy(base)),
        SYNC: nw.convert(copy.deepcopy(base), sync="world"),
        COMPOSED: _composed(copy.deepcopy(base), group),
    }
    # What each must come to: its own batch's values, or its share of the values of all batches together.
    apart = _wanted(copy.deepcopy(base), mine)
    together = _wanted(copy.deepcopy(base), joined, slice(network.batch * rank, network.batch * (rank + 1)))
    found = [
        _step(name, model, mine, together if name in (SYNC, COMPOSED) else apart)
        for name, model in models.items()
    ]
    return _in_step(found, budget)


class _Answer(NamedTuple):
    """What a step comes to; all gradients in a row."""

    y: Tensor
    gradients: Tensor
    buffers: list[Tensor]


def _gradients(model: nn.Module) -> Tensor:
    return torch.cat([_grad(p).flatten() for p in model.parameters()])


def _wanted(model: nn.Module, x: Tensor, share: slice = slice(None)) -> _Answer:
    """Outputs, gradients averaged over the ranks, and statistics."""
    y = model(x)
    y.square().mean().backward()
    gradients = _gradients(model)
    dist.all_reduce(gradients)  # of the whole batch they are the same everywhere, and stay so
    return _Answer(y.detach()[share], gradients / dist.get_world_size(), list(model.buffers()))


def _step(name: str, model: nn.Module, x: Tensor, wanted: _Answer) -> Contender:
    parallel = DistributedDataParallel(model)

    def run() -> Tensor:
        parallel.zero_grad()
        out: Tensor = parallel(x)
        out.square().mean().backward()  # type: ignore[no-untyped-call]
        return out

    def check() -> None:
        y = run().detach()
        statistics = ((b, want, VALUES) for b, want in zip(model.buffers(), wanted.buffers, strict=True))
        gradients = _gradients(model), wanted.gradients, GRADIENTS
        _agree(name, (y, wanted.y, VALUES), gradients, *statistics)

    return Contender(name, run, check, dist.barrier)


# ---- one layer -------------------------------------------------------------------------------------------------


def layer(channels: int, budget: Budget) -> dict[str, list[float]]:
    """Seconds of a layer's forward and backward alone, synchronized, and of the two collectives with nothing else.

    Raises:
        WrongValues: as `steps`.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    shape = (LAYER_SHAPE[0], channels, *LAYER_SHAPE[1:])
    whole, above = _normal((ranks * shape[0], *shape[1:])), _normal((ranks * shape[0], *shape[1:]), seed=1)
    share = slice(shape[0] * rank, shape[0] * (rank + 1))
    found = [
        _pass(ALONE, nw.BatchNorm2d(channels), whole[share], above[share], slice(None)),
        _pass(SYNC, nw.BatchNorm2d(channels, sync="world"), whole, above, share),
        _collectives(channels),
    ]
    return _in_step(found, budget)


def _pass(name: str, module: nn.Module, x: Tensor, dy: Tensor, share: slice) -> Contender:
    """Forward and backward of a share, beside torch's layer on all of `x`."""
    z = x.clone().requires_grad_()
    y = nn.BatchNorm2d(x.shape[1])(z)
    y.backward(dy)
    wanted, dx = y.detach()[share], _grad(z)[share]
    mine, above = x[share].clone().requires_grad_(), dy[share].clone()

    def run() -> Tensor:
        mine.grad = None
        module.zero_grad()
        out: Tensor = module(mine)
        out.backward(above)  # type: ignore[no-untyped-call]
        return out

    def check() -> None:
        y = run().detach()
        _agree(name, (y, wanted, VALUES), (_grad(mine), dx, VALUES))

    return Contender(name, run, check, dist.barrier)


def _collectives(channels: int) -> Contender:
    """The floor: what a layer sends, and nothing else."""
    ranks, group = dist.get_world_size(), dist.new_group()
    row = torch.full((3 * channels + 2,), float(dist.get_rank()), dtype=torch.float64)
    rows, sums = row.new_empty(ranks * len(row)), row.new_ones(2 * channels + 2)

    def run() -> None:
        dist.all_gather_single(rows, row, group=group)
        dist.all_reduce(sums, group=group)

    def check() -> None:
        run()
        wanted = torch.arange(ranks, dtype=torch.float64).repeat_interleave(len(row))
        _agree(BARE, (rows, wanted, 0), (sums, torch.full_like(sums, ranks), 0))
        sums.zero_()  # which they stay, however often they are added up

    return Contender(BARE, run, check, dist.barrier)


# ---- counting --------------------------------------------------------------------------------------------------


def counted(network: Network) -> dict[str, list[Sent]]:
    """The collectives of a synchronized model's forward and backward, as torch's profiler saw them on this rank."""
    model = nw.convert(network.make(), sync="world")
    x = _normal((network.batch, *network.shape))
    model(x).square().mean().backward()  # makes the group
    y, forward = _seen(partial(model, x))
    _, backward = _seen(y.square().mean().backward)
    return {"forward": forward, "backward": backward}


def _seen(work: Callable[[], Any]) -> tuple[Any, list[Sent]]:
    dist.barrier()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        result = work()
    with TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        seen.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    return result, list(_sent(events))


def _sent(events: Sequence[Mapping[str, Any]]) -> Iterator[Sent]:
    for event in events:
        backend, colon, name = str(event.get("name", "")).partition(":")
        if colon and backend in dist.Backend.backend_list:
            told = event["args"]
            sizes = (
                torch.Size(dims).numel() * SIZES[kind]
                for dims, kind in zip(told["Input Dims"], told["Input type"], strict=True)
            )
            yield Sent(name, sum(sizes))


# ---- all ranks together ----------------------------------------------------------------------------------------


def _in_step(contenders: Sequence[Contender], budget: Budget) -> dict[str, list[float]]:
    """Race in every process at once: the same rounds in the same order, a barrier before each.

    A budget of rounds alone ends everywhere at once, where one of seconds would not.
    """
    assert budget.least == budget.most
    found = race(contenders, budget)
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, {name: timing.samples for name, timing in found.items()})
    return {
        name: [max(samples) for samples in zip(*(each[name] for each in everywhere), strict=True)]
        for name in found
    }


def _agree(name: str, *pairs: tuple[Tensor, Tensor, float]) -> None:
    """Raise WrongValues on every rank where one has a pair that is further apart than it may be."""
    words = None
    for got, wanted, share in pairs:
        wanted = wanted.double()
        if not (got.double() - wanted).norm() <= share * wanted.norm():  # NaN is no agreement
            words = f"{name}: other values than one process on the same batch; it was not timed."
    everywhere: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, words)
    for each in everywhere:
        if each is not None:
            raise WrongValues(each)


def _normal(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _grad(of: Tensor) -> Tensor:
    assert of.grad is not None
    return of.grad


def _say(what: Mapping[str, Any]) -> None:
    """To the process that started this one."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main(folder: str, rank: int, ranks: int, rounds: int, parts: Sequence[str]) -> None:
    """Measure the parts that are named, and tell.

    Args:
        folder: where the processes meet.
        rank: this one.
        ranks: how many they are.
        rounds: of every race.
        parts: names of networks, and numbers of channels.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", TIMEOUT, world_size=ranks, rank=rank)
    tell: dict[str, Any] = {"steps": {}, "layers": {}, "counted": {}}
    budget = Budget(0, least=rounds, most=rounds)
    try:
        for part in parts:
            if part in NETWORKS:
                tell["steps"][part] = steps(NETWORKS[part], budget)
                tell["counted"][part] = counted(NETWORKS[part])
            else:
                tell["layers"][part] = layer(int(part), budget)
            if rank == 0:
                _say({"part": part})
    except WrongValues as words:
        tell = {"refused": str(words)}
    if rank == 0:
        _say(tell)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
