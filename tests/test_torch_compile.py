"""torch.compile: no graph break, few programs, and the values of torch's own layers where those stay eager."""

import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import normwright.torch as nw
from beside_torch import agree, normal, twins
from torch_networks import BOUND, F64, Torchs, network, outcome, same

OPTIONS = {
    "default": {},
    "cumulative": {"momentum": None},
    "channels last": {"channel_dim": -1},
    "channels last, cumulative": {"channel_dim": -1, "momentum": None},
    "not affine": {"affine": False},
    "not tracking": {"track_running_stats": False},
    "raise": {"on_nonfinite": "raise"},
    "propagate": {"on_nonfinite": "propagate"},
    "running where degenerate": {"on_degenerate": "running"},
    "frozen": {},
}
BACKENDS = pytest.mark.parametrize("backend", ["eager", "aot_eager"])
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def compilable(name, backend):
    """A layer of ours, the same compiled without a graph break, and torch's that stays eager."""
    layer = nw.BatchNorm2d(5, dtype=F64, **OPTIONS[name])
    layer.load_state_dict(twins(normal(6, 5, 4, 3, dtype=F64))[1].state_dict(), strict=False)
    torch.compiler.reset()
    return layer, torch.compile(layer, backend=backend, fullgraph=True), Torchs(layer)


def batch_for(layer, size, seed=0):
    x = normal(size, 5, 4, 3, dtype=F64, seed=seed)
    return x if layer.channel_dim == 1 else x.movedim(1, -1).contiguous()


def by(layer, x, call=None):
    """What one step of `layer` leaves, by `call` where that is given."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = (layer if call is None else call)(x)
    (y * normal(*y.shape, dtype=y.dtype, seed=9)).sum().backward()
    found = {"y": y, "dx": x.grad, **{f"d{name}": p.grad for name, p in layer.named_parameters()}}
    found |= layer.state_dict()
    return {name.replace("module.", ""): t.detach().clone() for name, t in found.items()}


def set_modes(name, training, layer, theirs):
    """Both train or evaluate; torch's has but its evaluation to be frozen in."""
    layer.train(training)
    theirs.train(training and name != "frozen")
    if name == "frozen":
        nw.freeze(layer)


@BACKENDS
@MODES
@pytest.mark.parametrize("name", OPTIONS)
def test_a_compiled_layer_does_what_torchs_eager_one_does(name, training, backend):
    layer, compiled, theirs = compilable(name, backend)
    set_modes(name, training, layer, theirs)
    for seed in range(3):
        x = batch_for(layer, 6, seed)
        same(by(layer, x, compiled), by(theirs, x))
    if layer.track_running_stats:
        assert layer.num_batches_tracked.item() == (3 if training and name != "frozen" else 0)


@MODES
@pytest.mark.parametrize("name", ["default", "cumulative", "channels last", "frozen"])
def test_four_batch_sizes_are_compiled_twice_at_most(name, training):
    counter = CompileCounterWithBackend("aot_eager")
    layer, compiled, theirs = compilable(name, counter)
    set_modes(name, training, layer, theirs)
    for size in (4, 6, 8, 16):
        x = batch_for(layer, size)
        same(by(layer, x, compiled), by(theirs, x))
    assert counter.frame_count in (1, 2)  # once for the first size, once for all others


@BACKENDS
def test_a_compiled_layer_sees_when_its_statistics_must_not_move(backend):
    layer, compiled, theirs = compilable("default", backend)
    counts = []
    for seed, quiet in enumerate([False, True, False, True]):
        x, models = batch_for(layer, 6, seed), nn.ModuleList([layer, theirs] if quiet else [])
        with nw.no_stat_update(models):
            same(by(layer, x, compiled), by(theirs, x))
        counts.append(layer.num_batches_tracked.item())
    assert counts == [1, 1, 2, 2]


@BACKENDS
def test_a_compiled_function_may_itself_keep_statistics_still(backend):
    layer, _, theirs = compilable("default", backend)

    def twice(x, layer=layer):
        with nw.no_stat_update(layer):
            y = layer(x)
        return y + layer(x).sin()

    x = batch_for(layer, 6)
    got = by(layer, x, torch.compile(twice, backend=backend, fullgraph=True))
    same(got, by(theirs, x, lambda x: twice(x, theirs)))
    assert layer.num_batches_tracked.item() == 1


@BACKENDS
def test_a_compiled_layer_sees_that_it_was_frozen_and_unfrozen(backend):
    layer, compiled, theirs = compilable("default", backend)
    counts = []
    for seed, change in enumerate([nw.unfreeze, nw.freeze, nw.unfreeze]):
        x = batch_for(layer, 6, seed)
        change(layer)
        theirs.train(change is nw.unfreeze)
        same(by(layer, x, compiled), by(theirs, x))
        counts.append(layer.num_batches_tracked.item())
    assert counts == [1, 1, 2]


@BACKENDS
@pytest.mark.parametrize("name", ["default", "cumulative", "channels last"])
def test_a_compiled_layer_leaves_out_and_counts_a_batch_that_is_not_finite(name, backend):
    layer, compiled, theirs = compilable(name, backend)
    bad = batch_for(layer, 6, 1)
    bad[0, 0, 0, 0] = torch.nan
    for x in (batch_for(layer, 6, 0), bad, batch_for(layer, 6, 2)):
        y = compiled(x)
        assert y.isnan().any() == x.isnan().any()
        if x is not bad:
            agree("y", y, theirs(x), BOUND * 100)  # values below 100
    assert nw.skipped(layer) == {"": 1}
    same(layer.state_dict(), theirs.module.state_dict())
    assert layer.num_batches_tracked.item() == 2


def by_inductor(test):
    """A test of the real compiler, which is one of C++."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    for mark in (
        pytest.mark.slow,
        pytest.mark.skipif(not compiler, reason="inductor needs a C++ compiler, and none is here"),
        pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),  # a module that inductor imports
    ):
        test = mark(test)
    return test


@by_inductor
@pytest.mark.parametrize("name", ["cumulative", "channels last"])
def test_inductor_gives_torchs_eager_values(name):
    layer, compiled, theirs = compilable(name, "inductor")
    for size in (4, 6, 8):  # the second and third by one program, of any size
        x = batch_for(layer, size)
        same(by(layer, x, compiled), by(theirs, x))


@by_inductor
def test_inductor_trains_a_converted_network_as_torchs():
    torch.compiler.reset()
    ours, theirs = nw.convert(network()), network()
    compiled = torch.compile(ours, fullgraph=True)
    x = normal(4, 3, 6, 6, dtype=F64)
    got = {name.replace("_orig_mod.", ""): t for name, t in outcome(compiled, x).items()}
    same(got, outcome(theirs, x))
    agree("y", compiled.eval()(x), theirs.eval()(x), BOUND * 100)  # values below 100
