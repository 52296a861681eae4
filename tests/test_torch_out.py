"""`out=`: y in memory that is given, x's own too; and what a call with an activation or a residual refuses."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normwright.torch as nw
from beside_torch import LAST, normal, same_bits, state, untouched
from normwright.core.activation import NAMES as KNOWN
from normwright.core.activation import Activation
from test_torch_activation import FOLLOWS, NEEDS_KERNELS, each_type, laid_as

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
NAMED = pytest.mark.parametrize("name", ["nothing", "relu", "silu"])  # alone, told by a bit, smooth
WITH_RESIDUAL = pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
CALL = "normwright.torch.batch_norm: "


def statistics(channels):
    """running_mean, running_var, weight and bias."""
    c = torch.arange(channels) % 4
    return c * 0.5 + 0.25, c + 0.5, 1.5 - c, c / 4 - 0.5


# --- where y may go ------------------------------------------------------------------

LAYOUTS = {  # the last values of a run or row fill no vector: what is written there must not be read again
    "runs of 49, 17 channels": lambda: normal(3, 17, 7, 7),
    "rows of 17": lambda: normal(3, 17, 7, 7).contiguous(memory_format=LAST),
    "(N, C) of 17": lambda: normal(33, 17),
    "folded rows of 5": lambda: normal(33, 5),
    "(N, C, L)": lambda: normal(4, 3, 21),
    "one value each": lambda: normal(1, 3, 1, 1),
    "a slice of channels": lambda: normal(3, 23, 7, 7)[:, 3:20],  # a kernel writes to dense memory alone:
    "a slice of channels, last": lambda: normal(3, 23, 7, 7).contiguous(memory_format=LAST)[:, 3:20],
    "transposed": lambda: normal(17, 33).T,  # here and in the two before y is copied
    "none": lambda: normal(0, 17),
}


@NAMED
@WITH_RESIDUAL
@each_type()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_y_in_place_of_x_or_the_residual_or_elsewhere_has_the_same_bits(layout, dtype, with_residual, name):
    source = LAYOUTS[layout]()
    values = {
        "x": source,
        "residual": normal(*source.shape, seed=2, mean=0),
        "another": torch.full_like(source, 7),
    }
    numbers, after = statistics(source.shape[1]), {"activation": FOLLOWS[name].said}
    want = None
    for over in ("nowhere", "another", "x", "residual"):
        if over == "residual" and not with_residual:
            continue
        base = {key: laid_as(source, dtype).copy_(t) for key, t in values.items()}
        before = {key: (t.clone(), t._version) for key, t in base.items()}
        given = {"residual": base["residual"]} if with_residual else {}
        out = base.get(over)
        y = nw.batch_norm(base["x"], *numbers, **after, **given, out=out)
        want = y if want is None else want
        same_bits(over, y, want)
        assert out is None or y is out
        for key, t in base.items():
            if key == over:
                assert t._version > before[key][1] or t.numel() == 0
            else:
                same_bits(f"{key} of {over}", t, before[key][0])
                assert t._version == before[key][1]


@each_type()
@pytest.mark.parametrize("rows", [False, True], ids=["runs", "rows"])
def test_y_in_place_has_the_same_bits_at_every_width(rows, dtype):
    for width in range(1, 70):
        x, residual = (t.to(dtype) for t in normal(2, *((5, width) if rows else (2, 3, width))))
        numbers = statistics(x.shape[1])
        want = nw.batch_norm(x, *numbers, activation="silu", residual=residual)
        for out in (x, residual):
            given = x.clone(), residual.clone()
            out = given[0 if out is x else 1]
            y = nw.batch_norm(given[0], *numbers, activation="silu", residual=given[1], out=out)
            same_bits(f"{width} wide", y, want)


@each_type((F32, BF16))
@pytest.mark.parametrize("step", [-40, -3, 3, 40])
@pytest.mark.parametrize("of", ["x", "residual"])
def test_memory_that_overlaps_x_or_the_residual_is_written_after_all_is_read(of, step, dtype):
    memory = {"x": normal(800).to(dtype), "residual": normal(800, seed=2).to(dtype)}
    x, residual = (t[100:695].view(5, 17, 7) for t in memory.values())
    want = nw.batch_norm(x, *statistics(17), activation="relu", residual=residual)
    out = memory[of][100 + step : 695 + step].view(5, 17, 7)
    assert nw.batch_norm(x, *statistics(17), activation="relu", residual=residual, out=out) is out
    same_bits("y", out, want)


@NEEDS_KERNELS
@each_type()
@pytest.mark.parametrize("layout", ["runs of 49, 17 channels", "rows of 17", "(N, C) of 17"])
def test_a_kernel_writes_to_dense_memory_itself(layout, dtype, monkeypatch):
    x = laid_as(LAYOUTS[layout](), dtype)
    residual = laid_as(x, dtype)
    with monkeypatch.context() as nothing_is:
        nothing_is.setattr(torch.Tensor, "copy_", None)  # what a detour would end with
        for out in (residual, x):
            nw.batch_norm(x, *statistics(17), activation="relu", residual=residual, out=out)


def test_out_may_lie_as_torch_lays_y():
    x = normal(3, 23, 7, 7)[:, 3:20]
    out, numbers = torch.empty(3, 17, 7, 7), statistics(17)
    assert nw.batch_norm(x, *numbers, out=out) is out
    same_bits("y", out, nw.batch_norm(x, *numbers))


def test_out_goes_with_channels_on_another_axis():
    x = normal(4, 6, 17)
    for given in (x, x[:, ::2]):
        out = torch.empty_like(given)
        assert nw.batch_norm(given, *statistics(17), channel_dim=-1, out=out) is out
        same_bits("y", out, nw.batch_norm(given, *statistics(17), channel_dim=-1))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_out_may_be_written_where_gradients_are_off(mode):
    layer, x = nn.BatchNorm1d(5), normal(6, 5)
    numbers = layer.running_mean, layer.running_var, layer.weight, layer.bias
    want = nw.batch_norm(x, *numbers).detach()
    with mode():
        same_bits("y", nw.batch_norm(x, *numbers, out=x), want)


@each_type((F32, BF16))
def test_a_graph_that_needs_what_was_there_is_told_by_the_version(dtype):
    x = normal(6, 5).to(dtype).requires_grad_()
    y = (x * 1).exp()  # whose gradient needs y
    with torch.no_grad():
        nw.batch_norm(y, *statistics(5), out=y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# --- what out must not be --------------------------------------------------------------

GRADIENT = "expected no out where a gradient is wanted, got one. Call it under torch.no_grad()."
LAID = "expected out laid out like x, with strides "
BAD_OUT = {  # what out is, or what else is given; the error, and its words
    "training": (
        {"training": True, "out": lambda x: x},
        "expected no out in training, got one. Batch norm by the batch reads x twice, and its gradient needs x.",
    ),
    "another type": (
        {"out": lambda x: torch.empty_like(x, dtype=F16)},
        "expected out of x's shape (6, 5, 4) and type torch.float32, got (6, 5, 4) and torch.float16.",
    ),
    "another shape": (
        {"out": lambda x: torch.empty(6, 5, 1)},
        "expected out of x's shape (6, 5, 4) and type torch.float32, got (6, 5, 1) and torch.float32.",
    ),
    "another layout": (
        {"out": lambda x: torch.empty(6, 4, 5).transpose(1, 2)},
        f"{LAID}(20, 4, 1), got (20, 1, 5). Use torch.empty_like(x).",
    ),
    "one memory for all": (
        {"out": lambda x: torch.empty(1).expand(6, 5, 4)},
        f"{LAID}(20, 4, 1), got (0, 0, 0). Use torch.empty_like(x).",
    ),
    "another device": (
        {"out": lambda x: torch.empty_like(x, device="meta")},
        "expected out on cpu, where x is, got meta. Move one of them.",
    ),
    "no tensor": ({"out": lambda x: x.numpy()}, "expected out to be a torch.Tensor, got numpy.ndarray."),
    "a gradient of x": ({"out": torch.empty_like, "x": normal(6, 5, 4).requires_grad_()}, GRADIENT),
    "a gradient of out": ({"out": lambda x: torch.empty_like(x).requires_grad_()}, GRADIENT),
    "a gradient of the weight": ({"out": torch.empty_like, "weight": torch.ones(5).requires_grad_()}, GRADIENT),
    "a gradient of the residual": (
        {"out": torch.empty_like, "residual": normal(6, 5, 4).requires_grad_()},
        GRADIENT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_OUT)
def test_memory_that_cannot_hold_y_is_named_and_stays(name):
    given, words = BAD_OUT[name]
    given = {"x": normal(6, 5, 4), **given}
    out, before = given.pop("out")(given["x"]), given["x"].detach().clone()
    error = nw.DtypeError if name == "no tensor" else nw.ShapeError
    with pytest.raises(error, match=f"^{re.escape(CALL + words)}$"):
        nw.batch_norm(running_mean=torch.zeros(5), running_var=torch.ones(5), **given, out=out)
    same_bits("x", given["x"].detach(), before)


# --- what a residual and an activation must not be ----------------------------------------

BAD_RESIDUAL = {
    "another shape": (
        lambda: normal(6, 5, 1, 1),
        "expected residual of x's shape (6, 5, 3, 4), got (6, 5, 1, 1). Use residual.expand_as(x).",
    ),
    "as many values": (
        lambda: normal(6, 5, 4, 3),
        "expected residual of x's shape (6, 5, 3, 4), got (6, 5, 4, 3). Use residual.expand_as(x).",
    ),
    "another device": (
        lambda: normal(6, 5, 3, 4).to("meta"),
        "expected residual on cpu, where x is, got meta. Move one of them.",
    ),
    "integers": (
        lambda: normal(6, 5, 3, 4).long(),
        "expected residual of a floating point dtype, got torch.int64.",
    ),
    "complex": (
        lambda: normal(6, 5, 3, 4).cfloat(),
        "expected residual of a floating point dtype, got torch.complex64.",
    ),
    "an array": (
        lambda: normal(6, 5, 3, 4).numpy(),
        "expected residual to be a torch.Tensor, got numpy.ndarray.",
    ),
    "a number": (lambda: 1.0, "expected residual to be a torch.Tensor, got builtins.float."),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("name", BAD_RESIDUAL)
def test_what_cannot_be_added_is_named_and_nothing_moves(name, activation, training):
    make, words = BAD_RESIDUAL[name]
    error = nw.ShapeError if name in ("another shape", "as many values", "another device") else nw.DtypeError
    layer, x = nw.BatchNorm2d(5, activation=activation).train(training), normal(6, 5, 3, 4)
    before = state(layer)
    with pytest.raises(error, match=f"^{re.escape('normwright.torch.BatchNorm2d: ' + words)}$"):
        layer(x, make())
    running = layer.running_mean, layer.running_var
    with pytest.raises(error, match=f"^{re.escape(CALL + words)}$"):
        nw.batch_norm(x, *running, training=training, activation=activation, residual=make())
    with pytest.raises(error, match=f"^{re.escape(f'normwright.torch.batch_norm_stats: {words}')}$"):
        nw.batch_norm_stats(x, *running, activation=activation, residual=make())
    untouched(layer, before)


MODULES = "Identity, ReLU, ReLU6, LeakyReLU, Hardtanh, Hardswish, SiLU, GELU, Sigmoid, Tanh, ELU"
ONE_OF = f"expected activation to be a name, or one of torch.nn's {MODULES}, got "
BAD_ACTIVATION = {
    "a class": (nn.ReLU, nw.DtypeError, f"{ONE_OF}{nn.ReLU!r}. Say ReLU()."),
    "another module": (nn.Softmax(1), nw.DtypeError, f"{ONE_OF}Softmax(dim=1). Apply it behind batch norm."),
    "a function": (F.relu, nw.DtypeError, f"expected activation to be a name or None, got {F.relu!r}."),
    "an unknown name": (
        "mish",
        nw.ShapeError,
        f"expected activation to be one of {', '.join(sorted(KNOWN))}, got 'mish'.",
    ),
    "a negative slope": (
        nn.LeakyReLU(-0.1),
        nw.ShapeError,
        "expected leaky_relu with a slope >= 0, got -0.1.",
    ),
    "another kind": (
        Activation("prelu"),
        nw.ShapeError,
        "expected activation of a kind among identity, relu, leaky_relu, hardtanh, hardswish, silu, gelu, "
        "gelu_tanh, sigmoid, tanh, elu, got 'prelu'.",
    ),
}


@pytest.mark.parametrize("name", BAD_ACTIVATION)
def test_what_is_no_activation_is_named(name):
    said, error, words = BAD_ACTIVATION[name]
    layer, x = nw.BatchNorm2d(5, activation="relu"), normal(6, 5)
    calls = {
        "batch_norm": lambda: nw.batch_norm(x, training=True, activation=said),
        "batch_norm_stats": lambda: nw.batch_norm_stats(x, torch.zeros(5), torch.ones(5), activation=said),
        "BatchNorm1d": lambda: nw.BatchNorm1d(5, activation=said),
        "BatchNorm2d": lambda: setattr(layer, "activation", said),
        "LazyBatchNorm3d": lambda: nw.LazyBatchNorm3d(activation=said),
    }
    for call, make in calls.items():
        with pytest.raises(error, match=f"^{re.escape(f'normwright.torch.{call}: {words}')}$"):
            make()
    assert layer.activation == Activation("relu")
