"""running_var="biased" and debias=True: what is recorded by every path, what is refused, how options travel."""

import copy
import pickle
import re
import shutil
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import BaseTorchDispatchMode

import close
import normwright.torch as nw
from beside_torch import LAST, NAMES, UNIT, normal, same_bits, state, step, twins, untouched
from moved import (
    AOT,
    BOTH,
    DRIFTING,
    EACH,
    EAGER,
    F32,
    F64,
    PATHS,
    SIZES,
    THREE,
    as_wanted,
    call_by,
    made,
    wanted,
)
from normwright.kernels import NATIVE
from normwright.torch import delegated


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # some 30 numbers: more threads would only wait for each other
    yield
    torch.set_num_threads(before)


# --- what is recorded -----------------------------------------------------------------------------------------


MOMENTA = [0.1, 0.01, 1.0, 0.0, None]  # torch's; slow; the last batch alone; nothing; all batches alike


def moves_as_wanted(path, on_nonfinite="skip", **options):
    """A layer's statistics after each of the batches."""
    layer, call = made(path, on_nonfinite=on_nonfinite, **options)
    seen = []
    for x in DRIFTING:
        call(x)
        seen.append(x.to(PATHS[path][0]))
        as_wanted(layer, wanted(seen, **options), len(seen))
    assert layer.num_batches_tracked.item() == len(SIZES)


@EAGER
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("debias", [False, True], ids=["", "debias"])
@pytest.mark.parametrize("running_var", ["unbiased", "biased"])
def test_statistics_are_the_weighted_mean_of_the_batches(running_var, debias, momentum, path):
    moves_as_wanted(path, running_var=running_var, debias=debias, momentum=momentum)


@pytest.mark.skipif(not NATIVE, reason="this package was built without native kernels")
def test_neither_option_leaves_the_native_kernels(monkeypatch):
    monkeypatch.setattr(delegated, "batch_norm_train", None)
    for momentum in (0.1, None):
        moves_as_wanted("native", momentum=momentum, **BOTH)


@pytest.mark.parametrize("options", [{"running_var": "biased"}, {"debias": True}, BOTH], ids=str)
def test_compiled_statistics_are_the_weighted_mean_of_the_batches(options):
    moves_as_wanted(AOT, **options)


@pytest.mark.parametrize("momentum", MOMENTA)
def test_compiled_with_both_options_every_momentum_is_obeyed(momentum):
    moves_as_wanted(AOT, momentum=momentum, **BOTH)


@pytest.mark.parametrize("on_nonfinite", ["raise", "propagate"])  # "skip" is the default
@pytest.mark.parametrize("options", [{"running_var": "biased"}, {"debias": True}], ids=str)
@THREE
def test_they_are_the_same_with_another_guard_and_without_one(path, options, on_nonfinite):
    moves_as_wanted(path, on_nonfinite=on_nonfinite, **options)


LAYOUTS = {
    "(N, C, L)": (normal(4, 5, 3), 1),
    "(N, L, C)": (normal(4, 3, 5), -1),
    "(N, C, H, W)": (normal(3, 5, 2, 2), 1),
    "channels-last": (normal(3, 5, 2, 2).contiguous(memory_format=LAST), 1),
    "a crop": (normal(4, 9, 5, 6)[:, 2:7, 1:4, 2:5], 1),
    "a crop of (N, H, W, C)": (normal(4, 5, 6, 9)[:, 1:4, 2:5, 2:7], -1),
}


@pytest.mark.parametrize("path", ["native", "torch's own"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_values_of_a_channel_are_counted_in_every_layout(name, path):
    x, axis = LAYOUTS[name]
    layer = getattr(nw, NAMES[x.dim()])(5, channel_dim=axis, **BOTH)
    call = call_by(path, layer)
    call(x)
    call(2 * x)
    as_wanted(layer, wanted([x, 2 * x], axis=axis, **BOTH), 2)


@pytest.mark.parametrize("path", ["native", "torch's own"])
def test_y_and_gradients_know_nothing_of_it(path):
    x = DRIFTING[0]
    results = []
    for options in ({}, BOTH):
        layer = nw.BatchNorm1d(5, **options)
        layer.load_state_dict(twins(x)[1].state_dict())
        with BaseTorchDispatchMode() if "torch's" in path else nullcontext():
            results.append(step(layer, x, x.cos()))
    for name in ("y", "dx", "dweight", "dbias"):
        same_bits(name, getattr(results[1], name), getattr(results[0], name))
    assert not torch.equal(results[1].running_var, results[0].running_var)


# --- compiled, exported, transformed ---------------------------------------------------------------------------


def test_a_compiled_layer_sees_that_an_option_was_set():
    layer, call = made("compiled")
    other, call_other = made("torch's own")
    settings = [
        {},
        {"debias": True},
        {"recorded_var": "biased"},
        {"momentum": 0.25},
        {"momentum": None},
        {"debias": False},
    ]
    for change, x in zip(settings, DRIFTING + DRIFTING, strict=False):
        for this, each in ((layer, call), (other, call_other)):
            for name, value in change.items():
                setattr(this, name, value)
            each(x)
        for name in ("running_mean", "running_var"):
            got, want = getattr(layer, name).numpy(), getattr(other, name).numpy()
            close.within(name, got, want, 64 * UNIT[F32] * 16)  # the same operations, in another order


@pytest.mark.parametrize("on_nonfinite", ["skip", "propagate"])
def test_an_exported_layer_in_training_records_as_the_layer_does(on_nonfinite):
    layer = nw.BatchNorm1d(5, dtype=F64, on_nonfinite=on_nonfinite, **BOTH)
    batch = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(layer, (DRIFTING[0].double(),), dynamic_shapes=batch)
    module = program.module()
    for x in DRIFTING:
        module(x.double())
    for name, t in zip(("running_mean", "running_var"), wanted(DRIFTING, **BOTH), strict=True):
        close.within(name, module.state_dict()[name].numpy(), t, 200 * UNIT[F64] * 16)  # as in as_wanted


def test_a_transform_refuses_to_move_statistics_as_ever():
    layer = nw.BatchNorm1d(5, **BOTH)
    before = state(layer)
    with pytest.raises(nw.TransformError, match="batch_norm_stats"):
        torch.func.vmap(layer)(torch.stack([DRIFTING[0], DRIFTING[0] + 1]))
    untouched(layer, before)
    with nw.no_stat_update(layer):
        torch.func.vmap(layer)(torch.stack([DRIFTING[0], DRIFTING[0] + 1]))


@pytest.mark.parametrize("recorded_var", ["unbiased", "biased"])
@EACH
def test_the_functions_record_the_variance_that_they_are_told(path, recorded_var):
    dtype, held = PATHS[path]
    x = DRIFTING[2].to(dtype)
    mean, var = torch.zeros(5, dtype=held), torch.ones(5, dtype=held)
    functions = [partial(f, recorded_var=recorded_var) for f in (nw.batch_norm, nw.batch_norm_stats)]
    if path == "compiled":
        torch.compiler.reset()
        functions = [torch.compile(f, backend="eager", fullgraph=True) for f in functions]
    want = wanted([x], running_var=recorded_var)
    with BaseTorchDispatchMode() if "torch's" in path else nullcontext():
        moved = functions[1](x, mean, var)[1:]
        functions[0](x, mean, var, training=True)
    for w, *both in zip(want, moved, (mean, var), strict=True):
        for got in both:
            close.within("statistic", got.double().numpy(), w, 16 * UNIT[held] * 16)  # as in as_wanted


def test_batch_norm_stats_records_it_under_vmap_and_grad():
    x, stats = (
        torch.stack([DRIFTING[0], 2 * DRIFTING[0]]).double(),
        partial(nw.batch_norm_stats, recorded_var="biased"),
    )
    mean, var = torch.zeros(5, dtype=F64), torch.ones(5, dtype=F64)
    got = torch.func.vmap(stats, (0, None, None))(x, mean, var)
    for k in range(2):
        want = wanted([x[k]], running_var="biased")[1]
        close.within("running_var", got.running_var[k].numpy(), want, 16 * UNIT[F64] * 16)  # as in as_wanted
    _, var = torch.func.grad(lambda x: (stats(x, mean, var).y.sum(), stats(x, mean, var)[2]), has_aux=True)(
        x[0]
    )
    close.within("running_var", var.numpy(), wanted([x[0]], running_var="biased")[1], 16 * UNIT[F64] * 16)


# --- what cannot be -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("make", [lambda **o: nw.BatchNorm2d(5, **o), nw.LazyBatchNorm2d], ids=["", "lazy"])
@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (
            {"running_var": "sample"},
            nw.ShapeError,
            "running_var to be one of ('unbiased', 'biased'), got 'sample'",
        ),
        ({"running_var": None}, nw.ShapeError, "running_var to be one of ('unbiased', 'biased'), got None"),
        ({"debias": 1}, nw.DtypeError, "debias to be True or False, got 1"),
        (
            {"debias": True, "track_running_stats": False},
            nw.ShapeError,
            "track_running_stats=True with debias=True, got False",
        ),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused_at_once(options, kind, words, make):
    with pytest.raises(kind, match=rf"^normwright\.torch\.(Lazy)?BatchNorm2d: expected {re.escape(words)}"):
        make(**options)
    layer = nw.BatchNorm2d(5, track_running_stats=options.get("track_running_stats", True))
    name, value = next(iter(options.items()))
    with pytest.raises(kind):
        setattr(layer, {"running_var": "recorded_var"}.get(name, name), value)
    assert (layer.recorded_var, layer.debias) == ("unbiased", False)


@pytest.mark.parametrize("call", [nw.batch_norm, nw.batch_norm_stats])
def test_the_functions_refuse_another_variance(call):
    mean, var = torch.zeros(5), torch.ones(5)
    words = rf"{call.__name__}: expected recorded_var to be one of \('unbiased', 'biased'\), got 0"
    with pytest.raises(nw.ShapeError, match=f"^normwright.torch.{words}"):
        call(DRIFTING[0], mean, var, recorded_var=0)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_without_a_counter_a_layer_that_debiases_refuses_to_train(momentum):
    layer = nw.BatchNorm1d(5, debias=True, momentum=momentum)
    layer.num_batches_tracked = None
    before = state(layer)
    with pytest.raises(
        nw.ShapeError, match=r"expected num_batches_tracked with debias=True, got None\. Set it"
    ):
        layer(DRIFTING[0])
    untouched(layer, before)
    layer.eval()(DRIFTING[0])
    layer.train().num_batches_tracked = torch.tensor(0)
    layer(DRIFTING[0])
    as_wanted(layer, wanted(DRIFTING[:1], momentum, debias=True), 1)
    layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    layer(DRIFTING[0])  # nothing to debias


@pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan")])
@THREE
def test_a_momentum_that_is_no_weight_is_refused_where_the_average_is_debiased(path, momentum):
    layer, _ = made(path, momentum=momentum, **BOTH)
    before = state(layer)
    with pytest.raises(
        nw.ShapeError, match=rf"expected momentum from 0 to 1 with debias=True, got {momentum}"
    ):
        (call_by("native", layer) if path == "compiled" else call_by(path, layer))(DRIFTING[0])
    untouched(layer, before)


def test_a_single_value_is_refused_or_takes_the_statistics_as_ever():
    layer = nw.BatchNorm1d(5, **BOTH)
    layer(DRIFTING[0])
    before = state(layer)
    with pytest.raises(nw.ShapeError, match="more than one value per channel"):
        layer(DRIFTING[0][:1])
    layer.on_degenerate = "running"
    layer(DRIFTING[0][:1])
    untouched(layer, before)


# --- options travel with the layer -----------------------------------------------------------------------------


def test_options_show_in_repr_and_survive_copies():
    layer = nw.BatchNorm2d(4, **BOTH)
    assert repr(layer).endswith("track_running_stats=True, debias=True, running_var='biased')")
    assert repr(nw.BatchNorm2d(4, running_var="unbiased", debias=False)) == repr(nw.BatchNorm2d(4))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.to(F64)):
        assert (other.recorded_var, other.debias) == ("biased", True)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_lazy_layer_takes_them_along():
    layer = nw.LazyBatchNorm1d(**BOTH)
    for x in DRIFTING[:2]:
        layer(x)
    assert type(layer) is nw.BatchNorm1d
    as_wanted(layer, wanted(DRIFTING[:2], **BOTH), 2)


def test_a_converted_layer_may_be_given_them():
    layer = nw.convert(nn.BatchNorm1d(5))
    assert (layer.recorded_var, layer.debias) == ("unbiased", False)
    layer.recorded_var, layer.debias = "biased", True
    nw.convert(layer, strict_torch=True)  # which takes back our defaults, and nothing that was asked for
    for x in DRIFTING:
        layer(x)
    as_wanted(layer, wanted(DRIFTING, **BOTH), len(SIZES))


@pytest.mark.parametrize(
    ("option", "value", "torchs"), [("recorded_var", "biased", "unbiased"), ("debias", True, False)]
)
def test_revert_refuses_what_torchs_layer_would_move_otherwise(option, value, torchs):
    model = nn.Sequential(nw.BatchNorm1d(5), nw.BatchNorm1d(5))
    setattr(model[1], option, value)
    words = f"{option}={torchs!r}, as torch's, got {option}={value!r} at '1'. Set {option} = {torchs!r} first"
    with pytest.raises(
        nw.ShapeError, match=f"^normwright.torch.revert: expected layers with {re.escape(words)}"
    ):
        nw.revert(model)
    assert type(model[0]) is nw.BatchNorm1d
    model(DRIFTING[0])
    kept = state(model)
    setattr(model[1], option, torchs)
    untouched(nw.revert(model), kept)
    assert model[1].__dict__.keys() == nn.BatchNorm1d(5).__dict__.keys()


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="inductor needs a C++ compiler, and none is here",
)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # a module that inductor imports
def test_inductor_moves_statistics_as_wanted():
    torch.compiler.reset()
    layer = nw.BatchNorm1d(5, **BOTH)
    layer.running_mean.fill_(1e30)  # which the first batch replaces
    compiled = torch.compile(layer, fullgraph=True)
    for k, x in enumerate(DRIFTING, start=1):
        compiled(x)
        as_wanted(layer, wanted(DRIFTING[:k], **BOTH), k)
