"""What works on whole models takes synchronized layers of ours as it takes others; DistributedDataParallel too."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import normwright.torch as nw
from beside_torch import UNIT, agree, normal, same_bits

if not dist.is_available():
    pytest.skip("this torch was built without processes", allow_module_level=True)


def network(norm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), norm(4), nn.ReLU(), nn.Linear(4, 2), norm(2))


@pytest.fixture
def pair():
    """The same network with synchronized layers and without. No process group is initialized."""
    return network(nw.SyncBatchNorm), network(nw.BatchNorm1d)


def batches():
    return [normal(8, 3, seed=seed) for seed in range(3)]


def test_recalibrate_by_oneself_needs_no_process_group(pair):
    for method in ("pooled", "algorithm2"):
        for order in ("joint", "sequential"):
            drifts = [nw.recalibrate(model, batches(), method=method, order=order) for model in pair]
            assert len(list(drifts[0].layers)) == 2
            for name, t in pair[1].state_dict().items():
                same_bits(name, pair[0].state_dict()[name], t)
    assert pair[0][1].sync == "world"


def test_statistics_are_carried_out_of_and_into_a_synchronized_layer(pair):
    synced, alone = pair
    nw.recalibrate(alone, batches())
    nw.copy_statistics(alone, synced)
    for name, t in alone.state_dict().items():
        same_bits(name, synced.state_dict()[name], t)
    arrays = [nw.export_statistics(model, "keras", count=8, debiased=True) for model in (synced, alone)]
    assert repr(arrays[0]) == repr(arrays[1])
    assert [finding.check for finding in nw.inspect(synced)] == [
        finding.check for finding in nw.inspect(alone)
    ]
    synced.load_state_dict(network(nn.SyncBatchNorm).state_dict())
    assert nw.skipped(synced) == {}


def test_weight_decay_leaves_a_synchronized_layer_out(pair):
    counts = [[len(group["params"]) for group in nw.param_groups(model, weight_decay=0.1)] for model in pair]
    assert counts[0] == counts[1]


def test_frozen_statistics_need_no_other_process(pair):
    synced, alone = (nw.freeze(model) for model in pair)
    x = normal(8, 3)
    same_bits("y", synced(x).detach(), alone(x).detach())  # in training
    assert nw.unfreeze(synced)[1].sync == "world"
    with pytest.raises(nw.ShapeError, match="an initialized process group"):
        synced(x)


# --- in two processes --------------------------------------------------------------------------------------------

X, DY = normal(12, 3, dtype=torch.float64), normal(12, 2, dtype=torch.float64, seed=1)
CUT = (0, 7, 12)  # 7 rows, and 5


def trained(rank, make, wrap):
    """Gradients summed over the ranks, and buffers, after one step of this rank's rows."""
    model = make().double()
    learner = wrap(model)
    rows = slice(CUT[rank], CUT[rank + 1])
    with nw.no_stat_update(model):
        learner(X[rows]).sum().backward()  # moves nothing, and sends what it must
    model.zero_grad()
    (learner(X[rows]) * DY[rows]).sum().backward()
    gradients = {name: 2 * p.grad for name, p in model.named_parameters()}  # of whose mean the wrapper takes
    return gradients, dict(model.named_buffers())


def in_parallel(rank, kind):
    if kind == "torch's":
        with pytest.raises(ValueError, match="GPU"):
            DistributedDataParallel(network(nn.SyncBatchNorm))
    make = {
        "SyncBatchNorm": lambda: network(nw.SyncBatchNorm),
        "torch's": lambda: nw.convert(network(nn.SyncBatchNorm)),
        "convert": lambda: nw.convert(network(nn.BatchNorm1d), sync="world"),
        "a copy": lambda: copy.deepcopy(nw.convert(network(nn.BatchNorm1d), sync=dist.group.WORLD)),
    }[kind]
    return trained(rank, make, DistributedDataParallel)


@pytest.mark.parametrize("kind", ["SyncBatchNorm", "torch's", "convert", "a copy"])
def test_two_processes_in_parallel_train_as_one(kind, processes):
    model = network(nw.BatchNorm1d).double()
    (model(X) * DY).sum().backward()
    results = processes.run(in_parallel, kind, size=2)
    # float64: sums of 12 terms of up to 10, through two layers, each of which divides by a deviation of about 0.5
    bound = 12 * 10 * 4 * 16 * UNIT[torch.float64]
    for gradients, buffers in results:
        for name, p in model.named_parameters():
            agree(name, gradients[name], p.grad, bound)
        for name, t in model.named_buffers():
            agree(name, buffers[name].double(), t.double(), bound)
            same_bits(name, buffers[name], results[0][1][name])


def lazily(rank):
    layer = nw.LazyBatchNorm1d(sync="world", dtype=torch.float64)
    layer(X[CUT[rank] : CUT[rank + 1]])
    return type(layer).__name__, layer.sync, layer.running_mean


def test_a_lazy_layer_learns_its_size_and_then_talks(processes):
    for name, sync, mean in processes.run(lazily, size=2):
        assert (name, sync) == ("BatchNorm1d", "world")
        agree("mean", mean, 0.1 * X.mean(0), 64 * UNIT[torch.float64])


def test_it_takes_torchs_word_for_its_processes():
    with pytest.raises(
        nw.DtypeError, match=r"SyncBatchNorm: expected process_group, as torch's has, got sync\."
    ):
        nw.SyncBatchNorm(4, sync="world")
