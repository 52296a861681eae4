"""The layers' state: what moves and when, what is saved, copied and shared."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import normwright.torch as nw
from beside_torch import UNIT, agree, normal, same_bits, state, step, twins, untouched
from every_kernel import run_python
from normwright.kernels import NATIVE

RANKS = {1: (6, 5, 7), 2: (6, 5, 3, 4), 3: (6, 5, 2, 3, 2)}


# --- running statistics ---------------------------------------------


@pytest.mark.parametrize(
    "momentum", [0.1, 0.0, 1.0, 0.75]
)  # torch's, both ends, and one that weighs the new more
def test_momentum_weighs_the_new_batch(momentum):
    layer = nw.BatchNorm1d(1, momentum=momentum).double()
    layer(torch.tensor([[1.0], [5.0]], dtype=torch.float64))  # mean 3, unbiased variance 8
    want = (momentum * 3, (1 - momentum) + momentum * 8)
    got = layer.running_mean.item(), layer.running_var.item()
    assert got == pytest.approx(want, rel=4 * 2.0**-53, abs=0)  # two products and a sum
    assert layer.num_batches_tracked.item() == 1


def test_momentum_none_is_the_plain_mean_of_all_batches():
    layer, theirs = (m.BatchNorm1d(2, momentum=None).double() for m in (nw, nn))
    batches = [normal(7, 2, dtype=torch.float64, seed=k, mean=5.0 * k) for k in range(5)]
    for k, x in enumerate(batches, start=1):
        layer(x)
        theirs(x)
        assert layer.num_batches_tracked.item() == k
        mean = torch.stack([x.mean(0) for x in batches[:k]]).mean(0)
        var = torch.stack([x.var(0) for x in batches[:k]]).mean(0)
        # k updates, each rounded a few times, of values below 32
        agree("running_mean", layer.running_mean, mean, 8 * k * 2.0**-53 * 32)
        agree("running_var", layer.running_var, var, 8 * k * 2.0**-53 * 32)
        agree("running_mean beside torch's", layer.running_mean, theirs.running_mean, 8 * k * 2.0**-53 * 32)


def test_buffers_are_the_same_objects_and_their_versions_count():
    x = normal(6, 5, 7)
    layer, _ = twins(x)
    buffers = dict(layer.named_buffers())
    versions = {name: t._version for name, t in buffers.items()}
    layer(x)
    for name, t in layer.named_buffers():
        assert t is buffers[name]
        assert t._version > versions[name], name
    versions = {name: t._version for name, t in buffers.items()}
    layer.eval()(x)
    nw.batch_norm(x, layer.running_mean, layer.running_var)
    assert {name: t._version for name, t in layer.named_buffers()} == versions


def test_a_buffer_that_autograd_needs_and_training_moved_is_an_error():
    layer, _ = twins(normal(6, 5, 7))
    w = torch.ones(5, requires_grad=True)
    loss = (w * layer.running_mean).sum()
    layer(normal(6, 5, 7))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_evaluation_and_untracked_training_move_nothing():
    x = normal(6, 5, 7)
    layer, theirs = twins(x)
    before = state(layer)
    layer.eval()(x)
    untouched(layer, before)
    for this in (layer, theirs):  # torch: a flag that is turned off stops the updates, and keeps the buffers
        this.train().track_running_stats = False
    agree("y", layer(x), theirs(x), 16 * UNIT[x.dtype] * 16)
    untouched(layer, before)
    agree("y", layer.eval()(x), theirs.eval()(x), 16 * UNIT[x.dtype] * 16)
    untouched(layer, before)
    layer, theirs = twins(x, track_running_stats=False)
    agree("y", layer.eval()(x), theirs.eval()(x), 16 * UNIT[x.dtype] * 16)
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_parameters_that_want_no_gradient_still_see_statistics_move():
    x = normal(6, 5, 7)
    layer, theirs = twins(x)
    for this in (layer, theirs):
        this.requires_grad_(False)(x)
    agree("running_mean", layer.running_mean, theirs.running_mean, 16 * UNIT[x.dtype])


def test_reset_and_replaced_buffers_are_respected():
    layer, _ = twins(normal(6, 5, 7))
    layer.reset_running_stats()
    assert layer.running_mean.tolist() == [0.0] * 5
    layer.running_mean = mine = torch.full((5,), 2.0)
    layer(normal(6, 5, 7))
    assert layer.running_mean is mine
    assert (mine < 2).all()


def test_exact_statistics_by_torchs_own_tool():
    batches = [normal(6, 5, 7, seed=k) for k in range(3)]
    layer, theirs = twins(batches[0])
    for this in (layer, theirs):
        torch.optim.swa_utils.update_bn(batches, this)
        assert (this.momentum, this.num_batches_tracked.item()) == (0.1, 3)
    agree("running_mean", layer.running_mean, theirs.running_mean, 16 * UNIT[torch.float32] * 2)
    agree("running_var", layer.running_var, theirs.running_var, 16 * UNIT[torch.float32] * 2)


# --- saved, copied, shared ----------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"bias": False}, {"track_running_stats": False}], ids=str
)
def test_state_dicts_load_strictly_both_ways(rank, options):
    x = normal(*RANKS[rank])
    ours, theirs = twins(x, **options)
    ours(x)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    untouched(theirs, state(ours))
    fresh = getattr(nw, f"BatchNorm{rank}d")(5, **options)
    fresh.load_state_dict(theirs.state_dict(), strict=True)
    untouched(fresh, state(ours))
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata


def test_a_state_dict_from_before_the_counter_loads():
    old = {k: t for k, t in nn.BatchNorm2d(5).state_dict().items() if k != "num_batches_tracked"}
    layer = nw.BatchNorm2d(5)
    layer.load_state_dict(old, strict=False)
    assert layer.num_batches_tracked.item() == 0


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_equal_and_apart(how):
    x, dy = normal(6, 5, 7), normal(6, 5, 7, seed=1)
    layer, _ = twins(x, momentum=0.25, eps=1e-3)
    if how == "deepcopy":
        other = copy.deepcopy(layer)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(layer))
    else:
        torch.save(layer, file := io.BytesIO())
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert (type(other), other.momentum, other.eps, other.training) == (nw.BatchNorm1d, 0.25, 1e-3, True)
    before = state(layer)
    untouched(other, before)
    first = step(other, x, dy)
    untouched(layer, before)
    for name, t in vars(step(layer, x, dy)).items():
        same_bits(name, getattr(first, name), t)


# --- one pool of threads ---------------------------------------------------

ONE_POOL = """
import {first}
import {second}
import torch
from normwright import _native
for n in (1, 3, 2):
    torch.set_num_threads(n)
    print(_native.threads(), end=" ")
maps = open("/proc/self/maps").read().split()
print(len({{path for path in maps if "libgomp" in path}}))
"""


@pytest.mark.skipif(not NATIVE, reason="this package was built without native kernels")
@pytest.mark.parametrize(
    ("first", "second"),
    [("torch", "normwright.torch"), ("normwright.torch", "torch"), ("normwright.numpy", "torch")],
)
def test_torch_and_the_kernels_share_their_threads(first, second):
    # the last number: how many OpenMP libraries the process has loaded
    assert run_python(ONE_POOL.format(first=first, second=second)).split() == ["1", "3", "2", "1"]


# --- what is loaded -------------------------------------------------


def test_the_import_does_not_load_torchs_compiler():
    """It takes a second, and its threads outlive process groups."""
    assert (
        run_python("import sys, normwright.torch; print('torch._dynamo' in sys.modules)").strip() == "False"
    )
