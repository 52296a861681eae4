"""The PyTorch door with channels on any axis: values beside torch's, memory, layers, and the words of errors."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normwright.torch as nw
from beside_torch import UNIT, agree, last_place, normal, same_bits, state, untouched
from normwright.kernels import NATIVE

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
# No two axes alike, so that a mix-up shows; an odd number of values for each channel
SHAPES = {2: (33, 5), 3: (6, 5, 7), 4: (3, 5, 4, 7), 5: (2, 5, 3, 4, 6), 6: (2, 5, 3, 1, 4, 3)}
AXES = [(rank, axis) for rank in SHAPES for axis in range(rank)]
EVERY_AXIS = pytest.mark.parametrize(("rank", "axis"), AXES, ids=lambda n: str(n))


def layouts(rank, dtype=F32):
    """How a tensor of a rank may lie in memory."""
    shape = SHAPES[rank]
    wide = tuple(2 * n + 1 for n in shape)
    return {
        "contiguous": normal(*shape, dtype=dtype),
        "transposed": normal(*shape[:-2], shape[-1], shape[-2], dtype=dtype).transpose(-1, -2),
        "first axis last": normal(*shape[1:], shape[0], dtype=dtype).movedim(-1, 0),
        "a slice of all axes": normal(*wide, dtype=dtype)[tuple(slice(1, 2 * n, 2) for n in shape)],
        "expanded": normal(1, *shape[1:], dtype=dtype).expand(shape),
    }


def numbers(channels, dtype=F32):
    """The numbers of each channel, none of them trivial, and none large where channels are many."""
    c = torch.arange(channels, dtype=dtype) % 5
    return {"running_mean": c / 2 + 0.25, "running_var": c + 0.5, "weight": 1.5 - c, "bias": c / 4 - 0.5}


def a_pass(x, dy, numbers, training, axis=None, affine=True):
    """y, gradients and statistics of one pass: ours for an axis, else torch's with the channels on axis 1."""
    leaves = {"x": x.detach().requires_grad_()}
    if affine:
        leaves |= {name: numbers[name].clone().requires_grad_() for name in ("weight", "bias")}
    running = {name: numbers[name].clone() for name in ("running_mean", "running_var")}
    learned = {name: p for name, p in leaves.items() if name != "x"}
    if axis is None:
        y = F.batch_norm(leaves["x"], **running, **learned, training=training, momentum=0.25)
    else:
        y = nw.batch_norm(
            leaves["x"], **running, **learned, training=training, momentum=0.25, channel_dim=axis
        )
    y.backward(dy)
    return {"y": y.detach(), **{f"d{name}": p.grad for name, p in leaves.items()}, **running}


def beside_torch(x, dy, axis, training, unit, scale=1, affine=True):
    """Our pass agrees with torch's of the moved tensor, as far as in beside_torch.same_step; `scale` as there."""
    channels = numbers(x.shape[axis], x.dtype)
    got = a_pass(x, dy, channels, training, axis, affine)
    want = a_pass(x.movedim(axis, 1), dy.movedim(axis, 1), channels, training, affine=affine)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        moved = tensor.movedim(1, axis) if name in ("y", "dx") else tensor
        assert got[name].dtype == moved.dtype, name
        agree(name, got[name], moved, 16 * unit * (1000 if name in ("dweight", "dbias") else 16) * scale)
    return got


# --- values ------------------------------------------------------------------


@MODES
@EVERY_AXIS
def test_channels_on_any_axis_are_torchs_on_the_second(rank, axis, training):
    for layout, x in layouts(rank).items():
        kept, dy = x.clone(), normal(*x.shape, seed=1, mean=0.5)
        # Where x is one value repeated the variance may be 0, and rstd up to 1/sqrt(eps) = 300
        scale = 300 if layout == "expanded" else 1
        for gradient in (dy, dy[:1].expand_as(dy), dy.transpose(0, -1).contiguous().transpose(0, -1)):
            got = beside_torch(x, gradient, axis, training, UNIT[F32], scale)
            if layout == "contiguous":
                assert got["y"].is_contiguous()
                assert got["dx"].is_contiguous()
        same_bits("x", x, kept)


@MODES
@EVERY_AXIS
def test_so_they_are_in_float64_and_without_weights(rank, axis, training):
    for layout, x in layouts(rank, F64).items():
        dy = normal(*x.shape, dtype=F64, seed=1, mean=0.5)
        for affine in (True, False):
            beside_torch(x, dy, axis, training, UNIT[F64], 300 if layout == "expanded" else 1, affine)


@MODES
@EVERY_AXIS
def test_a_negative_axis_is_the_same_axis(rank, axis, training):
    for x in layouts(rank).values():
        dy, channels = normal(*x.shape, seed=1), numbers(x.shape[axis])
        want = a_pass(x, dy, channels, training, axis)
        for name, t in a_pass(x, dy, channels, training, axis - rank).items():
            same_bits(name, t, want[name])


@pytest.mark.skipif(not NATIVE, reason="this package was built without native kernels")
@MODES
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])  # those of the kernels
@EVERY_AXIS
def test_kernels_that_see_the_same_memory_give_the_same_bits(rank, axis, dtype, training):
    x, dy = layouts(rank, dtype)["contiguous"] + 100, normal(*SHAPES[rank], dtype=dtype, seed=1)
    channels = numbers(x.shape[axis], dtype)
    got = a_pass(x, dy, channels, training, axis)
    folded = x.flatten(axis + 1) if axis + 1 < rank else x.unsqueeze(-1)
    shape = (-1, *folded.shape[axis:]) if axis else (1, *folded.shape)  # outer, channels, inner
    want = a_pass(folded.reshape(shape), dy.reshape(folded.reshape(shape).shape), channels, training, 1)
    for name, t in want.items():
        same_bits(name, got[name], t.reshape(x.shape) if name in ("y", "dx") else t)
    if axis == rank - 1 and rank in (4, 5):  # what torch calls channels-last
        moved = a_pass(x.movedim(-1, 1), dy.movedim(-1, 1), channels, training, 1)
        for name, t in moved.items():
            same_bits(name, got[name], t.movedim(1, -1) if name in ("y", "dx") else t)


@MODES
@EVERY_AXIS
def test_bfloat16_is_rounded_once(rank, axis, training):
    x, dy = (normal(*SHAPES[rank], seed=k, mean=0.5).to(BF16) for k in (0, 1))
    channels = numbers(x.shape[axis])  # float32
    got = a_pass(x, dy, channels, training, axis)
    wide = {name: t.double() for name, t in channels.items()}
    want = a_pass(x.movedim(axis, 1).double(), dy.movedim(axis, 1).double(), wide, training)
    for name, tensor in want.items():
        moved = tensor.movedim(1, axis) if name in ("y", "dx") else tensor
        assert got[name].dtype == (BF16 if name in ("y", "dx") else F32)
        rounding = last_place(got[name].dtype, moved).numpy() / 2
        if (
            name == "dx" and training
        ):  # torch's backward by rows holds x_hat * mean(dy * x_hat) in bfloat16 once
            rounding = rounding + last_place(BF16, moved.abs().max()).item()
        terms = 1000 if name in ("dweight", "dbias") else 16  # as in same_step
        agree(name, got[name].double(), moved, 16 * UNIT[F32] * terms + rounding)
    assert got["y"].is_contiguous()
    assert got["dx"].is_contiguous()


# --- layers ---------------------------------------------------------------------

LAYERS = [
    *(("BatchNorm1d", 2, axis) for axis in (0, -1, -2)),
    *(("BatchNorm1d", 3, axis) for axis in (0, 2, -1, -2)),
    *(("BatchNorm2d", 4, axis) for axis in (0, 2, 3, -1, -3)),
    *(("BatchNorm3d", 5, axis) for axis in (0, 3, 4, -1, -4)),
]
EVERY_LAYER = pytest.mark.parametrize(("kind", "rank", "axis"), LAYERS, ids=lambda part: str(part))


def layer_and_torchs(kind, rank, axis, dtype=F32, **options):
    """Our layer, and torch's in the same state."""
    channels = SHAPES[rank][axis]
    theirs = getattr(nn, kind)(channels, dtype=dtype, **options)
    named = {name: t for name, t in numbers(channels, dtype).items() if getattr(theirs, name) is not None}
    theirs.load_state_dict(named, strict=False)  # the counter stays 0
    ours = getattr(nw, kind)(channels, channel_dim=axis, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


# which differ in code
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}], ids=str)
@EVERY_LAYER
def test_layers_take_the_channels_from_their_axis(kind, rank, axis, options):
    ours, theirs = layer_and_torchs(kind, rank, axis, **options)
    for training in (True, True, False):
        x = normal(*SHAPES[rank]).requires_grad_()
        z, dy = x.detach().clone().requires_grad_(), normal(*SHAPES[rank], seed=1)
        y, want = ours.train(training)(x), theirs.train(training)(z.movedim(axis, 1)).movedim(1, axis)
        assert y.is_contiguous()
        for tensor in (y, want):
            tensor.backward(dy)
        bound = 16 * UNIT[F32] * 16  # as in same_step
        agree("y", y, want, bound)
        agree("dx", x.grad, z.grad, bound)
        for p, their in zip(ours.parameters(), theirs.parameters(), strict=True):
            agree("dweight or dbias", p.grad, their.grad, 2 * 16 * UNIT[F32] * 1000)  # of two or three passes
        for name, t in ours.named_buffers():
            agree(name, t, getattr(theirs, name), 0 if name == "num_batches_tracked" else 2 * bound)


@EVERY_LAYER
def test_copies_states_and_lazy_layers_keep_the_axis(kind, rank, axis):
    layer, _ = layer_and_torchs(kind, rank, axis)
    x = normal(*SHAPES[rank])
    layer.eval()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert (type(other), other.channel_dim) == (type(layer), axis)
        untouched(other, state(layer))
        same_bits("y", other(x).detach(), layer(x).detach())
    assert f"channel_dim={axis}" in repr(layer)
    lazy = getattr(nw, f"Lazy{kind}")(channel_dim=axis)
    lazy.train()(x)
    assert (type(lazy), lazy.num_features, lazy.channel_dim) == (getattr(nw, kind), x.shape[axis], axis)
    want = getattr(nw, kind)(x.shape[axis], channel_dim=axis)
    want(x)
    untouched(lazy, state(want))


def test_a_layer_on_the_usual_axis_does_not_speak_of_it():
    assert "channel_dim" not in repr(nw.BatchNorm2d(5, channel_dim=1))


# --- errors ---------------------------------------------------------------------

BAD_CALL = {  # x, channel_dim, C, and the message after the call
    "beyond": ((6, 5, 7), 3, 7, "expected channel_dim from -3 to 2, got 3; x is (6, 5, 7)."),
    "before": ((6, 5, 7), -4, 6, "expected channel_dim from -3 to 2, got -4; x is (6, 5, 7)."),
    "beyond rank 2": ((6, 5), 2, 5, "expected channel_dim from -2 to 1, got 2; x is (6, 5)."),
    "rank 1": ((5,), -1, 5, "expected x of rank 2 or more, (N, C, ...), got rank 1, shape (5,)."),
    "other channels": (
        (6, 5, 7),
        -1,
        5,
        "expected running_mean of shape (7,), got (5,); x is (6, 5, 7) with channels on axis 2.",
    ),
    "one value, last": (
        (1, 1, 5),
        -1,
        5,
        "expected more than one value per channel in training, got 1; x is (1, 1, 5) with channels on axis 2.",
    ),
    "one value, first": (
        (5, 1, 1),
        0,
        5,
        "expected more than one value per channel in training, got 1; x is (5, 1, 1) with channels on axis 0.",
    ),
}


@pytest.mark.parametrize("function", [nw.batch_norm, nw.batch_norm_stats], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])  # by the kernels, by torch
@pytest.mark.parametrize("name", BAD_CALL)
def test_a_wrong_axis_is_an_error_in_clear_words_and_moves_nothing(name, dtype, function):
    shape, axis, channels, words = BAD_CALL[name]
    mean, var = torch.zeros(channels), torch.ones(channels)
    training = {"training": True} if function is nw.batch_norm else {}
    for error in (ValueError, RuntimeError):  # which torch raises for the one, which for the other
        with pytest.raises(error, match="^" + re.escape(f"normwright.torch.{function.__name__}: {words}")):
            function(normal(*shape).to(dtype), mean, var, channel_dim=axis, **training)
    assert (mean.tolist(), var.tolist()) == ([0.0] * channels, [1.0] * channels)


def test_one_value_per_channel_is_no_error_in_evaluation():
    mean, var, x = torch.zeros(5), torch.ones(5), normal(1, 1, 5)
    want = F.batch_norm(x.view(1, 5), mean, var)
    agree("y", nw.batch_norm(x, mean, var, channel_dim=-1).view(1, 5), want, 16 * UNIT[F32] * 16)


@pytest.mark.parametrize("axis", [1.0, 2.0, 1.5, "1", None, (1,)], ids=repr)  # 1.0 equals the usual one
def test_an_axis_that_is_no_integer_is_an_error(axis):
    x, mean, var = normal(6, 5, 7), torch.zeros(5), torch.ones(5)
    words = "expected channel_dim to be an integer, got " + re.escape(repr(axis))
    with pytest.raises(TypeError, match=rf"^normwright\.torch\.batch_norm: {words}"):
        nw.batch_norm(x, mean, var, training=True, channel_dim=axis)
    with pytest.raises(TypeError, match=rf"^normwright\.torch\.batch_norm_stats: {words}"):
        nw.batch_norm_stats(x, mean, var, channel_dim=axis)
    with pytest.raises(TypeError, match=rf"^normwright\.torch\.BatchNorm1d: {words}"):
        nw.BatchNorm1d(5, channel_dim=axis)


def test_an_integer_of_numpy_is_one():
    x, axis = normal(6, 7, 5), np.int64(2)
    want = nw.batch_norm(x, training=True, channel_dim=2)
    same_bits("y", nw.batch_norm(x, training=True, channel_dim=axis), want)
    same_bits("y", nw.BatchNorm1d(5, affine=False, channel_dim=axis)(x), want)


def test_a_layer_says_which_axis_its_input_lacks():
    words = "normwright.torch.BatchNorm1d: expected channel_dim from -2 to 1, got 2; x is (6, 5)."
    layer = nw.BatchNorm1d(5, channel_dim=2)
    before = state(layer)
    with pytest.raises(IndexError, match="^" + re.escape(words)):
        layer(normal(6, 5))
    with pytest.raises(ValueError, match="BatchNorm1d: expected x to be 2-D or 3-D, got 4-D"):
        layer(normal(6, 5, 5, 2))
    untouched(layer, before)
    with pytest.raises(ValueError, match=r"expected x to be 4-D, got 3-D x of shape \(6, 5, 7\)"):
        nw.BatchNorm2d(7, channel_dim=-1)(normal(6, 5, 7))
