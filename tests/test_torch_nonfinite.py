"""Batches whose mean or variance is not finite: what moves, what is said, what comes out."""

import copy
import pickle
import warnings
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import BaseTorchDispatchMode

import close
import normwright.torch as nw
from beside_torch import LAST, NAMES, UNIT, normal, state, step, twins, untouched
from normwright.kernels import NATIVE

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
GOOD = [normal(6, 5, 7, seed=k, mean=k) for k in range(4)]
TAKEN = {  # name: x's type and the layer's; the native kernels take two, the rest is torch's own batch norm
    "native": (F32, F32),
    "native, float64": (F64, F64),
    "torch's own, bfloat16": (BF16, F32),
    "torch's own, all bfloat16": (BF16, BF16),
    "torch's own, float16": (F16, F32),
    "torch's own, a mode": (F32, F32),
    "compiled": (F32, F32),
}
EACH = pytest.mark.parametrize("path", TAKEN)
EAGER = pytest.mark.parametrize("path", [name for name in TAKEN if "mode" not in name and name != "compiled"])


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # some 200 numbers: more threads would only wait for each other
    yield
    torch.set_num_threads(before)


def ours(x, **options):
    """Our layer for x; weights and statistics are not the initial ones."""
    layer = getattr(nw, NAMES[x.dim()])(x.shape[1], **options).to(x.dtype)
    layer.load_state_dict(twins(x)[1].state_dict())
    return layer


def layer_for(path, **options):
    """A layer, and a call of it that takes the path."""
    dtype, held = TAKEN[path]
    layer = ours(GOOD[0], **options).to(held)
    if path == "compiled":
        torch.compiler.reset()
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        return layer, compiled

    def call(x):
        # A mode sees every operation: the native kernels give way to torch's own batch norm.
        with BaseTorchDispatchMode() if "mode" in path else nullcontext():
            return layer(x.to(dtype))

    return layer, call


def spoilt(x, value=float("nan"), channel=2):
    """x with one value of one channel replaced."""
    x = x.clone(memory_format=torch.preserve_format)
    x[(1, channel) + (0,) * (x.dim() - 2)] = value
    return x


@contextmanager
def told():
    """The warnings of ours in a block, as a list of their words."""
    words = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", nw.SkippedUpdateWarning)
        yield words
    words += [str(w.message) for w in caught if w.category is nw.SkippedUpdateWarning]


# --- skip: nothing moves --------------------------------------------------------------------------------------

BAD = {  # name: one batch whose statistics are not finite
    "NaN": lambda x: spoilt(x),
    "inf": lambda x: spoilt(x, float("inf")),
    "-inf": lambda x: spoilt(x, -float("inf")),
    "both": lambda x: spoilt(spoilt(x, float("inf")), -float("inf"), channel=4),
    "the last channel": lambda x: spoilt(x, channel=4),
    "all NaN": lambda x: x * float("nan"),
}


@EACH
@pytest.mark.parametrize(
    "momentum", [0.1, None, 0.0]
)  # torch's; by the counter; 0, where 0 * NaN may slip in
def test_bad_batches_leave_no_trace_and_good_ones_go_on(momentum, path):
    huge = 1e200 if path == "native, float64" else 1e30  # squares that the statistics' type does not hold
    layer, call = layer_for(path, momentum=momentum)
    other, call_other = layer_for(path.replace("compiled", "torch's own, a mode"), momentum=momentum)
    bad = {**BAD, "huge": lambda x: x.double() * huge if huge == 1e200 else x * huge}
    for k, spoil in enumerate(bad.values(), start=1):
        before = state(other)
        with told():
            call(spoil(GOOD[k % 4]))
            untouched(layer, before)  # all channels, and the counter
        call(GOOD[k % 4])
        call_other(GOOD[k % 4])
        untouched(layer, state(other))
        assert nw.skipped(layer) == {"": k}, list(bad)[k - 1]
    assert nw.skipped(other) == {}


@pytest.mark.parametrize("shape", ["(N, C)", "contiguous", "channels-last", "3d, channels-last"])
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("on_nonfinite", ["skip", "propagate"])
def test_outputs_and_gradients_of_a_bad_batch_are_torchs(on_nonfinite, bad, dtype, shape):
    x = normal(
        *{"(N, C)": (33, 5), "3d, channels-last": (4, 5, 2, 3, 2)}.get(shape, (6, 5, 3, 4)), dtype=dtype
    )
    if "last" in shape:
        x = x.contiguous(memory_format=LAST if x.dim() == 4 else torch.channels_last_3d)
    wide = x if dtype is not BF16 else x.float()
    layer, theirs = ours(wide, on_nonfinite=on_nonfinite), twins(wide)[1]
    dy = x.cos()
    with told():
        got, want = step(layer, BAD[bad](x), dy), step(theirs, BAD[bad](x), dy)
    unit = UNIT.get(dtype) or 2.0**-8
    for name in ("y", "dx", "dweight", "dbias"):
        g, w = getattr(got, name).double().numpy(), getattr(want, name).double().numpy()
        # as in same_step: roundings of values up to 16, of sums up to 1000; NaN where torch has NaN
        bound = 16 * unit * (1000 if name in ("dweight", "dbias") else 16)
        close.within(name, g, w, bound, match_nan=True)
    if on_nonfinite == "propagate":
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            g, w = getattr(got, name).double().numpy(), getattr(want, name).double().numpy()
            close.within(name, g, w, 16 * UNIT[wide.dtype] * 16, match_any=True)


@pytest.mark.skipif(not NATIVE, reason="this package was built without native kernels: torch's y is 0")
@pytest.mark.parametrize("shape", ["contiguous", "channels-last"])
def test_a_variance_that_float32_does_not_hold_still_normalizes_and_is_left_out(shape):
    x = normal(6, 5, 3, 4)
    x[:, 2] *= 1e30
    x = x.contiguous(memory_format=LAST) if shape == "channels-last" else x
    layer, dy = ours(x), x.cos()
    before = state(layer)
    with told() as words:
        got = step(layer, x, dy)
        untouched(layer, before)
    one(words, "left 1 batch out")
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    # against the reference: torch's own y is 0 here
    close.forward_train(got.y.numpy(), x.numpy(), weight, bias, layer.eps, 1)
    gradients = tuple(getattr(got, name).numpy() for name in ("dx", "dweight", "dbias"))
    close.backward_train(gradients, dy.numpy(), x.numpy(), weight, layer.eps, 1)


@EACH
def test_the_mean_of_all_is_that_of_the_good_also_when_the_first_is_bad(path):
    layer, call = layer_for(path, momentum=None)
    layer.reset_running_stats()
    with told():
        for x in (spoilt(GOOD[0]), spoilt(GOOD[1]), GOOD[1], spoilt(GOOD[2]), GOOD[2], GOOD[3]):
            call(x)
    assert layer.num_batches_tracked.item() == 3
    batches = [x.to(TAKEN[path][0]).double() for x in GOOD[1:]]
    for name, of in (("running_mean", torch.Tensor.mean), ("running_var", torch.Tensor.var)):
        want = torch.stack([of(x, (0, 2)) for x in batches]).mean(0)
        # three updates of values below 16, in float32 or better
        close.within(name, getattr(layer, name).double().numpy(), want.numpy(), 32 * UNIT[F32] * 16)


# --- what is said ---------------------------------------------------------------------------------------------


def one(words, *parts):
    """One warning, with all these parts."""
    assert len(words) == 1, words
    for part in parts:
        assert part in words[0]


@EAGER
def test_the_first_bad_batch_is_told_at_once_and_further_ones_when_asked(path):
    layer, call = layer_for(path)
    with told() as words:
        call(spoilt(GOOD[0]))
    one(words, "normwright.torch.BatchNorm1d(5): left 1 batch out of the running statistics so far")
    with told() as words:
        call(spoilt(GOOD[1]))
        call(GOOD[2])
        layer.train()
        layer.train(True)
    assert words == []
    with told() as words:
        layer.eval()
    one(words, "left 2 batches out")
    with told() as words:
        layer.train().eval()
        layer.state_dict()
        layer.train()
        call(spoilt(GOOD[1]))
    assert words == []
    with told() as words:
        nn.Sequential(layer).state_dict()
    one(words, "left 3 batches out")
    with told() as words:
        call(spoilt(GOOD[1]))
        assert nw.skipped(layer) == {"": 4}
        layer.state_dict()  # who has asked has been told
    assert words == []


@pytest.mark.parametrize("path", ["torch's own, a mode", "compiled"])
@pytest.mark.parametrize("asked", ["eval", "state_dict"])
def test_where_nothing_can_be_said_at_once_it_is_said_when_asked(asked, path):
    layer, call = layer_for(path)
    with told() as words:
        call(spoilt(GOOD[0]))
        call(spoilt(GOOD[1]))
    assert words == []
    with told() as words:
        getattr(layer, asked)()
    one(words, "left 2 batches out")
    with told() as words:
        getattr(layer, asked)()
    assert words == []
    assert nw.skipped(layer) == {"": 2}


def test_a_converted_layer_is_named_by_its_path():
    model = nn.Module()
    model.stem = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(5))
    model.head = nn.BatchNorm1d(5)
    nw.convert(model)
    with told() as words:
        model.stem(spoilt(GOOD[0], float("inf")))
        model.head(GOOD[0])
    one(words, "normwright.torch.BatchNorm1d 'stem.1': left 1 batch out")
    assert nw.skipped(model) == {"stem.1": 1}
    with told():
        model.head(spoilt(GOOD[0]))
        model.stem(spoilt(GOOD[0], float("inf")))
    assert nw.skipped(model) == {"stem.1": 2, "head": 1}
    with pytest.raises(nw.DtypeError, match=r"BatchNorm1d at '1'. Call normwright.torch.convert"):
        nw.skipped(nn.Sequential(model, nn.BatchNorm1d(5)))


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["", "pickle"]
)
def test_copies_keep_the_count_and_go_on_by_themselves(how):
    layer = nw.BatchNorm1d(5)
    with told():
        layer(spoilt(GOOD[0]))
        other = how(layer)
        assert nw.skipped(other) == {"": 1}
        other(spoilt(GOOD[0]))
    assert (nw.skipped(layer), nw.skipped(other)) == ({"": 1}, {"": 2})
    assert "skipped" not in "".join(layer.state_dict())


# --- raise, propagate -----------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("momentum", [0.1, None])  # which move in other operations
@pytest.mark.parametrize("bad", BAD)
def test_raise_raises_and_nothing_has_moved(bad, momentum, path):
    layer, call = layer_for(path, momentum=momentum, on_nonfinite="raise")
    call(GOOD[0])
    before = state(layer)
    # a compiled program can only assert
    kind = RuntimeError if path == "compiled" else nw.NonfiniteError
    with pytest.raises(kind, match=r"normwright.torch.BatchNorm1d\(5\):.* mean"):
        call(BAD[bad](GOOD[1]))
    untouched(layer, before)
    call(GOOD[1])
    assert layer.num_batches_tracked.item() == before["num_batches_tracked"].item() + 1
    assert nw.skipped(layer) == {}
    layer.eval()
    call(spoilt(GOOD[1]))  # nothing would move


@EACH
def test_propagate_lets_it_in_as_torch_does(path):
    layer, call = layer_for(path, on_nonfinite="propagate")
    theirs = twins(GOOD[0])[1].to(F64 if TAKEN[path][1] is F64 else F32)  # beside halves, as ours
    if TAKEN[path][1] is BF16:
        layer, call = layer_for("torch's own, bfloat16", on_nonfinite="propagate")
    as_torchs(layer, call, theirs, TAKEN[path][0])


@pytest.mark.parametrize("path", ["native", "native, float64", "torch's own, bfloat16"])
def test_a_strict_conversion_lets_it_in_as_torch_does(path):
    dtype, held = TAKEN[path]
    theirs, layer = (twins(GOOD[0])[1].to(held) for _ in range(2))
    nw.convert(layer, strict_torch=True)
    as_torchs(layer, lambda x: layer(x.to(dtype)), theirs, dtype)


def as_torchs(layer, call, theirs, dtype):
    """Statistics after a good batch, a bad one and a good one."""
    for x in (GOOD[0], spoilt(GOOD[1]), GOOD[2]):
        call(x)
        theirs(x.to(dtype))
    for name, t in theirs.state_dict().items():
        got = layer.state_dict()[name].double().numpy()
        # three updates of values below 16
        close.within(name, got, t.double().numpy(), 32 * 16 * UNIT[theirs.weight.dtype], match_nan=True)
    assert layer.running_mean.isnan().tolist() == [False, False, True, False, False]
    assert nw.skipped(layer) == {}


def test_the_function_lets_it_in_as_torchs_does():
    x, results = spoilt(GOOD[0]), []
    for f in (nw.batch_norm, F.batch_norm):
        running = torch.zeros(5), torch.ones(5)
        results.append((f(x, *running, training=True), *running))
    for name, got, want in zip(("y", "running_mean", "running_var"), *results, strict=True):
        # roundings of values below 16
        close.within(name, got.numpy(), want.numpy(), 16 * UNIT[F32] * 16, match_nan=True)
    assert results[0][1].isnan().tolist() == [False, False, True, False, False]


@EACH
@pytest.mark.parametrize("kind", ["skip", "raise"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_poisoned_statistics_from_a_checkpoint_are_not_blamed_on_the_batch(poison, kind, path):
    layer, call = layer_for(path, on_nonfinite=kind)
    poisoned = state(layer)
    poisoned["running_mean"][1] = poisoned["running_var"][3] = poison
    layer.load_state_dict(poisoned)
    count = layer.num_batches_tracked.item()
    with told() as words:
        call(GOOD[0])
        layer.eval()
    assert words == []
    assert nw.skipped(layer) == {}
    assert layer.num_batches_tracked.item() == count + 1
    assert layer.running_mean.isfinite().tolist() == [True, False, True, True, True]
    assert layer.running_var.isfinite().tolist() == [True, True, True, False, True]
    assert (layer.running_mean[0] != poisoned["running_mean"][0]).item()  # the others moved


def test_an_option_that_is_set_later_holds():
    layer = nw.convert(nn.BatchNorm1d(5))
    layer.on_nonfinite = "raise"
    with pytest.raises(nw.NonfiniteError):
        layer(spoilt(GOOD[0]))
    layer.on_nonfinite = "propagate"
    layer(spoilt(GOOD[0]))
    assert layer.running_mean.isnan().any()


def test_a_layer_without_statistics_has_nothing_to_spoil():
    layer = nw.BatchNorm1d(5, track_running_stats=False, on_nonfinite="raise")
    y = layer(spoilt(GOOD[0]))
    assert np.array_equal(y.isnan().any(2).any(0), [False, False, True, False, False])
    assert nw.skipped(layer) == {}
