"""Synchronized layers in torch's surroundings: checkpoints, DistributedDataParallel, fully_shard; fake devices."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import normwright.torch as nw
from beside_torch import normal
from normwright.torch.distributed.peers import Peers
from sync_cases import F64, overheard, same
from torch_networks import whole

PARTS = [(4, 2), (0, 6), (3, 0, 3)]


def network(sync):
    """Three norms among convolutions, in float64; the same weights everywhere."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Sequential(nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1, bias=False), nn.BatchNorm2d(4)),
    ).to(F64)
    return nw.convert(model, sync=sync)


def batches(parts, rank, times=3):
    """This rank's part of each batch, or all of it."""
    first = 0 if rank is None else sum(parts[:rank])
    last = sum(parts) if rank is None else first + parts[rank]
    return [normal(sum(parts), 3, 5, 5, dtype=F64, seed=k)[first:last] for k in range(times)]


def loss(y, first):
    """A sum over samples, with a weight of its own for each value, by its place in the whole batch."""
    weights = normal(16, *y.shape[1:], dtype=F64, seed=99)
    return (y * weights[first : first + len(y)]).sum() / 16


def trained(model, inputs, first, factor=1.0, step=lambda model, k, run: run()):
    """Three steps of SGD; the parameters and buffers, by name."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for k, x in enumerate(inputs):
        optimizer.zero_grad()
        step(model, k, lambda x=x: (loss(model(x), first) * factor).backward())
        optimizer.step()
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name.removeprefix("module."): whole(t).detach().clone() for name, t in found.items()}


def all_same(got, want):
    """Of the order of 1, after three steps of sums of some 100 terms: 1e-11 is hundreds of their roundings."""
    assert sorted(got) == sorted(want)
    for name, t in want.items():
        if t.dtype == torch.int64:
            assert torch.equal(got[name], t), name
        else:
            same(name, got[name], t, 1e-11)


# --- checkpoints --------------------------------------------------------------


def checkpointed(rank, parts, reentrant):
    """Two sync layers in a checkpoint, one of them in another; and the same without."""
    results = []
    for how in ("plain", "checkpoint"):
        model = nw.convert(
            nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)).to(F64), sync="world"
        )
        x = batches(parts, rank, 1)[0].requires_grad_()

        def inner(x, model=model, how=how):
            if how == "plain":
                return model[1](model[0](x))
            return checkpoint(lambda x: model[1](model[0](x)), x, use_reentrant=reentrant)

        def outer(x, model=model, inner=inner):
            return model[2](inner(x))

        with overheard() as said:
            y = outer(x) if how == "plain" else checkpoint(outer, x, use_reentrant=reentrant)
            forward = len(said.moments)
            loss(y, sum(parts[:rank])).backward()
        results.append((forward, len(said.moments), len(said.sums)))
        found = {"y": y, "dx": x.grad, **{name: p.grad for name, p in model.named_parameters()}}
        found |= dict(model.named_buffers())
        results.append(found)
    (plain, want, again, got) = results
    assert plain == (2, 2, 2)
    assert again[0] == 2
    assert again[2] == 2
    for name, t in want.items():
        assert torch.equal(got[name], t), name
    assert got["0.num_batches_tracked"].item() == 1
    return again


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_pass_that_a_checkpoint_repeats_is_told_again_and_moves_nothing(parts, reentrant, processes):
    found = processes.run(checkpointed, parts, reentrant, size=len(parts))
    assert len(set(found)) == 1  # as often in all ranks
    # 2 in forward; both again for the outer one; and the first a third time, for the inner one in that
    assert found[0] == (2, 5, 2)


# --- DistributedDataParallel --------------------------------------------------


def parallel(rank, parts, options, micro):
    """Under DDP, which takes the mean over the ranks of gradients: so their loss is theirs times the ranks."""
    size, first = len(parts), sum(parts[:rank])
    model = DistributedDataParallel(network("world"), **options)
    inputs = batches(parts, rank)

    def step(model, k, run):
        if micro:  # the same batch twice, of which the first pass keeps its gradients to itself
            with model.no_sync():
                run()
        run()

    got = trained(model, inputs, first, size, step)
    one = network(None)
    want = trained(
        one, batches(parts, None), 0, 1.0, lambda model, k, run: (run(), run()) if micro else run()
    )
    all_same(got, want)


@pytest.mark.parametrize("parts", PARTS[:2], ids=str)
@pytest.mark.parametrize(
    ("options", "micro"),
    [({}, False), ({"static_graph": True}, False), ({"find_unused_parameters": True}, False), ({}, True)],
    ids=["default", "static graph", "find unused", "no_sync"],
)
def test_data_parallel_trains_as_one_process(parts, options, micro, processes):
    processes.run(parallel, parts, options, micro, size=len(parts))


class Branched(nn.Module):
    """A branch before the norm, whose parameters are as many bytes as the norm's message in backward.

    What comes last in forward is first in backward, and tells DDP of the parameters that wait for nothing.
    """

    def __init__(self, sync):
        super().__init__()
        self.last = nn.Parameter(torch.full((3,), 0.5, dtype=F64))
        self.norm = nw.BatchNorm1d(3, sync=sync, dtype=F64)
        self.branch = nn.ParameterList([torch.ones(2 + 6, dtype=F64)])  # the last, so DDP's first bucket

    def forward(self, x, uses_branch):
        return self.last * self.norm(self.branched(x) if uses_branch else x)

    def branched(self, x):
        return x * self.branch[0][2:5] + self.branch[0][5:]


def branch_on_one_rank(rank, groups):
    """Rank 0's input goes through the branch, rank 1's does not; and all gradients, as one process has them."""
    one_group = dist.new_group() if groups == "one" else None
    whole, weights = normal(7, 3, dtype=F64), normal(7, 3, dtype=F64, seed=1)
    mine = slice(0, 4) if rank == 0 else slice(4, 7)
    model = Branched({"world": "world", "default": dist.group.WORLD, "one": one_group}[groups])
    # a bucket to each parameter, as large ones have
    options = {"find_unused_parameters": True, "bucket_cap_mb": 1e-5}
    wrapped = DistributedDataParallel(model, process_group=one_group, **options)
    x = whole[mine].clone().requires_grad_()
    (2 * wrapped(x, rank == 0) * weights[mine]).sum().backward()

    one, all_of_it = Branched(None), whole.clone().requires_grad_()
    joined = torch.cat([one.branched(all_of_it[:4]), all_of_it[4:]])
    (one.last * one.norm(joined) * weights).sum().backward()
    gradients = [(x.grad / 2, all_of_it.grad[mine])]
    gradients += [(p.grad, q.grad) for p, q in zip(model.parameters(), one.parameters(), strict=True)]
    return [torch.allclose(got, want, rtol=0, atol=1e-12) for got, want in gradients]


@pytest.mark.parametrize("sync", ["world", "default"])
def test_a_branch_that_one_rank_uses_alone_is_no_matter(sync, processes):
    """DDP sends a bucket that a rank does not use at once. In one group with the norm's it would meet that."""
    assert processes.run(branch_on_one_rank, sync) == [[True] * 5] * 2


def test_one_group_for_layers_and_buckets_is_no_place_beside_unused_parameters(processes):
    """Which is why layers have a group of their own: here messages of one length meet, and are added up."""
    found = processes.run(branch_on_one_rank, "one")
    assert not all(found[0])
    assert not all(found[1])


# --- fully_shard --------------------------------------------------------------


def sharded(rank, parts, units):
    model = network("world")
    mesh = init_device_mesh("cpu", (len(parts),))
    for unit in [*{"norms": [model[1], model[3][2]], "blocks": [model[3]]}[units], model]:
        fully_shard(unit, mesh=mesh)
    got = trained(model, batches(parts, rank), sum(parts[:rank]), len(parts))
    all_same(got, trained(network(None), batches(parts, None), 0))


@pytest.mark.parametrize("units", ["norms", "blocks"])
@pytest.mark.parametrize("parts", PARTS[:2], ids=str)
def test_sharded_processes_train_as_one(parts, units, processes):
    processes.run(sharded, parts, units, size=len(parts))


# --- no question to a device --------------------------------------------------


@pytest.fixture
def pretended():
    """A process group of four, of which this process is all there is: its messages go nowhere."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64])
@pytest.mark.parametrize("on_degenerate", ["raise", "running"])
@pytest.mark.parametrize("count", [5, 0])
def test_nothing_asks_a_device_for_a_value(dtype, on_degenerate, count, pretended):
    """Tensors without values, as on a device whose numbers nobody waits for: whoever asks for one raises."""
    with FakeTensorMode():
        layer = nw.BatchNorm2d(3, sync=pretended, activation="relu", on_degenerate=on_degenerate)
        x = torch.empty(count, 3, 4, 4, dtype=dtype, requires_grad=True)
        y = layer(x, torch.empty(count, 3, 4, 4, dtype=dtype))
        y.sum().backward()
        assert (y.dtype, y.device.type, x.grad.shape) == (dtype, "cpu", x.shape)
        peers = Peers(pretended.group_name, 4, "here", 7, "raise")
        with pytest.raises(DataDependentOutputException):  # that would be seen
            bool(peers.gather(5, *torch.zeros(3, 3, dtype=F64))[0, 0] == 1)
