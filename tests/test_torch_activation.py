"""What follows batch norm in torch's door: values and every gradient, beside torch's operations in float64."""

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F

import normwright.torch as nw
from beside_torch import LAST, NAMES, UNIT, agree, gradients_for, last_place, normal, same_bits
from normwright.core.activation import Activation
from normwright.kernels import NATIVE

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
HALF = (BF16, F16)


class Follows(NamedTuple):
    """An activation as users say it, torch's function, and where its derivative jumps."""

    said: Any
    torchs: Callable[[torch.Tensor], torch.Tensor]
    corners: tuple[float, ...] = ()


FOLLOWS = {
    "nothing": Follows(None, lambda z: z),
    "relu": Follows("relu", F.relu, (0,)),
    "leaky_relu": Follows(nn.LeakyReLU(0.2), lambda z: F.leaky_relu(z, 0.2), (0,)),  # not the usual slope
    "relu6": Follows("relu6", F.relu6, (0, 6)),
    "hardtanh": Follows(nn.Hardtanh(-0.3, 1.1), lambda z: F.hardtanh(z, -0.3, 1.1), (-0.3, 1.1)),
    "hardswish": Follows("hardswish", F.hardswish, (-3, 3)),
    "silu": Follows("silu", F.silu),
    "gelu": Follows("gelu", F.gelu),
    "gelu_tanh": Follows(nn.GELU("tanh"), lambda z: F.gelu(z, approximate="tanh")),
    "sigmoid": Follows("sigmoid", torch.sigmoid),
    "tanh": Follows("tanh", torch.tanh),
    "elu": Follows(
        nn.ELU(0.7), lambda z: F.elu(z, 0.7), (0,)
    ),  # of another alpha than 1 its derivative jumps
}
PIECEWISE = ("relu", "leaky_relu", "relu6", "hardtanh", "hardswish")
LAYOUTS = {  # how x lies in memory; the kernels have code of their own for most
    "contiguous": lambda: normal(6, 5, 7, 9, dtype=F64),
    "channels-last": lambda: normal(6, 5, 7, 9, dtype=F64).contiguous(memory_format=LAST),
    "(N, C), one channel more than a vector": lambda: normal(33, 17, dtype=F64),
    "(N, C), rows that are folded": lambda: normal(67, 2, dtype=F64),
    "runs shorter than a vector": lambda: normal(7, 17, 2, 2, dtype=F64),
    "runs of 49": lambda: normal(3, 17, 7, 7, dtype=F64),
    "rows of 17 in images": lambda: normal(3, 17, 7, 7, dtype=F64).contiguous(memory_format=LAST),
    "a slice of channels": lambda: normal(6, 9, 7, 9, dtype=F64)[:, 2:7],
    "a slice of channels, last": lambda: normal(6, 9, 7, 9, dtype=F64).contiguous(memory_format=LAST)[:, 2:7],
}
MODES = pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
WITH_RESIDUAL = pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
NEEDS_KERNELS = pytest.mark.skipif(not NATIVE, reason="this package was built without native kernels")


def each_type(types=(F64, F32, BF16, F16)):
    return pytest.mark.parametrize("dtype", types, ids=lambda t: str(t).removeprefix("torch."))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # some 2000 numbers: more threads would only wait for each other
    yield
    torch.set_num_threads(before)


def laid_as(x, dtype):
    """x in another type, its gaps in memory kept."""
    return torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)


# --- values --------------------------------------------------------------------


def a_layer(x, said, mode="train"):
    """A layer for x whose numbers are not trivial, in x's type or, beside half types, float32."""
    dtype = F32 if x.dtype in HALF else x.dtype
    layer = getattr(nw, NAMES[x.dim()])(x.shape[1], activation=said, dtype=dtype)
    c = torch.arange(x.shape[1]) % 4
    with torch.no_grad():
        layer.weight.copy_(1.5 - c)
        layer.bias.copy_(c * 0.25 - 0.5)
        layer.running_mean.copy_(c * 0.5 + 0.25)
        layer.running_var.copy_(c + 0.5)
    return nw.freeze(layer) if mode == "frozen" else layer.train(mode == "train")


def z_in_float64(layer, x, residual, mode):
    """Batch norm and the addition, and the leaves that gradients are for: x, weight, bias, residual."""
    given = (x, layer.weight, layer.bias, residual)
    leaves = [None if t is None else t.detach().double().requires_grad_() for t in given]
    running = layer.running_mean.double(), layer.running_var.double()
    z = F.batch_norm(leaves[0], *running, *leaves[1:3], mode == "train")
    return (z if residual is None else z + leaves[3]), leaves


def away_from_corners(layer, x, residual, mode, corners):
    """x, changed a little until no z is as near to a corner as rounding, where either derivative is right.

    z is off by 16 * 2^-24 of terms below 16 at most, as in beside_torch.same_step.
    """
    for k in range(1, 20):
        z, _ = z_in_float64(layer, x, residual, mode)
        if all((z - corner).abs().min() > 16 * UNIT[F32] * 16 for corner in corners):
            return x
        x = laid_as(x, x.dtype).mul_(1 + k / 64)
    raise AssertionError("every x has a z near a corner")


def compared(what, got, want):
    """Right up to the arithmetic, in float32 or float64, and one rounding to a half type.

    The arithmetic errs by 16 units of the largest terms, below 16, as in beside_torch.same_step; a derivative
    and its product with dy no more (no |activation''| is above 1). A sum over a channel has up to 400 such terms,
    of both signs, each off on its own.
    """
    noise = 16 * UNIT[F64 if got.dtype is F64 else F32] * (400 if want.dim() == 1 else 16)
    rounding = last_place(got.dtype, want).numpy() / 2 if got.dtype in HALF else 0
    agree(what, got.double(), want, noise + rounding)


@MODES
@WITH_RESIDUAL
@each_type()
@pytest.mark.parametrize("name", FOLLOWS)
def test_values_and_all_gradients_are_those_of_torchs_operations_in_float64(name, dtype, with_residual, mode):
    follows = FOLLOWS[name]
    if name == "nothing" and dtype in HALF and not NATIVE:
        pytest.skip("torch's own batch norm adds up half types in half, where channels are last")
    for layout, make in LAYOUTS.items():
        wide = make()
        x = laid_as(wide, dtype)
        residual = normal(*x.shape, seed=2, mean=0).to(dtype) if with_residual else None
        layer = a_layer(x, follows.said, mode)
        x = away_from_corners(layer, x, residual, mode, follows.corners)
        dy = normal(*x.shape, seed=1, mean=0.5).to(dtype)

        z, leaves = z_in_float64(layer, x, residual, mode)
        want = follows.torchs(z)
        named = dict(zip(("dx", "dweight", "dbias", "dresidual"), leaves, strict=True))
        named = {key: t for key, t in named.items() if t is not None}
        wanted = dict(zip(named, grad(want, list(named.values()), dy.double()), strict=True))

        given = [x.requires_grad_(), layer.weight, layer.bias]
        given += [] if residual is None else [residual.requires_grad_()]
        y = layer(x, residual)
        assert (y.dtype, y.stride()) == (
            dtype,
            torch.empty_like(F.batch_norm(wide, None, None, training=True)).stride(),
        )
        compared(f"y, {layout}", y.detach(), want.detach())
        for (key, value), leaf, got in zip(wanted.items(), given, grad(y, given, dy), strict=True):
            assert got.dtype == leaf.dtype, key
            compared(f"{key}, {layout}", got, value)


# --- bits ------------------------------------------------------------------------


def one_by_one(follows, x, residual, numbers, training):
    """The same with a kernel call for batch norm alone, then torch's addition and activation."""
    z = nw.batch_norm(x, *numbers, training)
    return follows.torchs(z if residual is None else z + residual)


@NEEDS_KERNELS
@TRAINING
@WITH_RESIDUAL
@each_type((F64, F32))
@pytest.mark.parametrize("name", PIECEWISE)
def test_activations_in_pieces_have_the_bits_of_operations_one_by_one(name, dtype, with_residual, training):
    follows = FOLLOWS[name]
    for layout, make in LAYOUTS.items():
        x = laid_as(make(), dtype).requires_grad_()
        residual = torch.empty_like(x).copy_(normal(*x.shape, seed=2, mean=0)) if with_residual else None
        leaves = [x] if residual is None else [x, residual.detach().requires_grad_()]
        residual = leaves[-1] if with_residual else None
        c = torch.arange(x.shape[1], dtype=dtype) % 4
        numbers = (c * 0.5 + 0.25, c + 0.5, 1.5 - c, c / 4 - 0.5)
        got = nw.batch_norm(x, *numbers, training, activation=follows.said, residual=residual)
        want = one_by_one(follows, x, residual, numbers, training)
        dy = normal(*x.shape, dtype=dtype, seed=1, mean=0.5)
        results = [(y.detach(), *grad(y, leaves, dy)) for y in (got, want)]
        for what, ours, theirs in zip(("y", "dx", "dresidual"), *results, strict=False):
            same_bits(f"{what}, {layout}", ours + 0, theirs + 0)  # -0 is 0


def at_corners(follows, dtype):
    """Values at each corner, beside it, at 0 of either sign and far out; (1, n), for one channel a value."""
    points = torch.tensor([*follows.corners, 0.0, -0.0, 0.5, -0.5, 20.0, -20.0, -1000.0]).to(dtype)
    for end in (torch.inf, -torch.inf):
        points = torch.cat([points, points.nextafter(torch.tensor(end, dtype=dtype))])
    return points.clamp(-30000, 30000)[None]


@NEEDS_KERNELS
@WITH_RESIDUAL
@each_type()
@pytest.mark.parametrize("name", PIECEWISE)
def test_at_its_corners_an_activation_and_its_derivative_are_torchs(name, dtype, with_residual):
    # (x - 0) / sqrt(1 + 0) is x, and so is z: a corner is met exactly
    follows = FOLLOWS[name]
    x = at_corners(follows, dtype).requires_grad_()
    fixed = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    residual = torch.zeros_like(x) if with_residual else None
    y = nw.batch_norm(x, *fixed, eps=0.0, activation=follows.said, residual=residual)
    like = x.detach().clone().requires_grad_()
    want, dy = follows.torchs(like), normal(*x.shape, seed=1).to(dtype)
    same_bits("y", y.detach() + 0, want.detach() + 0)
    same_bits("dx", grad(y, x, dy)[0] + 0, grad(want, like, dy)[0] + 0)


ENDS = {  # what y is at -infinity and at infinity; None where torch's is 0 times infinity
    "relu": (0, torch.inf),
    "leaky_relu": (-torch.inf, torch.inf),
    "relu6": (0, 6),
    "hardtanh": (-0.3, 1.1),
    "hardswish": (None, torch.inf),
    "silu": (None, torch.inf),
    "gelu": (None, torch.inf),
    "gelu_tanh": (None, torch.inf),
    "sigmoid": (0, 1),
    "tanh": (-1, 1),
    "elu": (-0.7, torch.inf),
}


@NEEDS_KERNELS  # torch's own gelu of infinity is NaN in some vectors
@WITH_RESIDUAL
@each_type()
@pytest.mark.parametrize("name", ENDS)
def test_nan_stays_nan_and_infinities_go_to_the_ends(name, dtype, with_residual):
    x = torch.tensor([[torch.nan, -torch.inf, torch.inf]]).to(dtype).requires_grad_()
    residual = torch.zeros_like(x) if with_residual else None
    fixed = torch.zeros(3), torch.ones(3)
    y = nw.batch_norm(x, *fixed, eps=0.0, activation=FOLLOWS[name].said, residual=residual)
    got, (low, high) = y[0].tolist(), ENDS[name]
    assert got[0] != got[0]
    assert got[2] == torch.tensor(high, dtype=dtype).item()
    if low is not None:
        assert got[1] == torch.tensor(low, dtype=dtype).item()
    if name in ("relu", "relu6", "hardtanh"):  # a NaN is not closed: as torch's
        dx = grad(y, x, torch.full_like(x, 2.0))[0]
        assert dx[0].tolist() == [2, 0, 2 if name == "relu" else 0]


# --- dy --------------------------------------------------------------------------


CLOSED = {  # where torch's gradient is 0 whatever dy is; a tenth away, where no rounding leads
    "relu": lambda z: z < -0.1,
    "relu6": lambda z: (z < -0.1) | (z > 6.1),
    "hardtanh": lambda z: (z < -0.4) | (z > 1.2),
    "hardswish": lambda z: z < -3.1,
}


@TRAINING
@WITH_RESIDUAL
@each_type()
@pytest.mark.parametrize("create_graph", [False, True], ids=["once", "create_graph"])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("name", CLOSED)
def test_a_dy_that_is_not_finite_does_not_pass_where_the_activation_is_closed(
    name, bad, create_graph, dtype, with_residual, training
):
    x = normal(6, 5, 7).to(dtype).requires_grad_()
    residual = normal(6, 5, 7, seed=2, mean=0).to(dtype).requires_grad_() if with_residual else None
    layer = a_layer(x, FOLLOWS[name].said, "train" if training else "eval")
    with torch.no_grad():
        layer.weight.mul_(4)
    z, _ = z_in_float64(layer, x, residual, "train" if training else "eval")
    closed = CLOSED[name](z.detach())
    assert closed.sum() > 5
    leaves = [x, layer.weight, layer.bias] + ([] if residual is None else [residual])
    y, dy, results = layer(x, residual), normal(6, 5, 7, seed=1).to(dtype), []
    for there in (bad, 0.0):
        dy = torch.where(closed, there, dy)
        results.append(grad(y, leaves, dy, create_graph=create_graph, retain_graph=True))
    for got, want in zip(*results, strict=True):
        assert got.isfinite().all()
        same_bits("gradient", got.detach() + 0, want.detach() + 0)


@NEEDS_KERNELS  # torch's own add in another order
@TRAINING
@WITH_RESIDUAL
@each_type()
@pytest.mark.parametrize("name", ["relu", "hardswish", "silu"])  # told by a bit or not, smooth
def test_however_dy_lies_in_memory_gradients_have_the_same_bits(name, dtype, with_residual, training):
    for memory_format in (torch.contiguous_format, LAST):
        x = normal(6, 5, 7, 9).to(dtype).contiguous(memory_format=memory_format)
        residual = normal(6, 5, 7, 9, seed=2).to(dtype).requires_grad_() if with_residual else None
        layer = a_layer(x, FOLLOWS[name].said, "train" if training else "eval")
        y = layer(x.requires_grad_(), residual)
        leaves = [x, layer.weight, layer.bias] + ([] if residual is None else [residual])
        for how, dy in gradients_for(x.detach()).items():
            got, want = (
                grad(y, leaves, t, retain_graph=True)
                for t in (dy, dy.clone(memory_format=torch.contiguous_format))
            )
            for ours, theirs in zip(got, want, strict=True):
                same_bits(f"gradient, dy {how}", ours, theirs)
        y.sum().backward()  # a dy without memory
        for leaf, want in zip(leaves, grad(layer(x, residual), leaves, torch.ones_like(y)), strict=True):
            same_bits("gradient of a sum", leaf.grad, want)


# --- layers ------------------------------------------------------------------------

LAYERS = {nw.BatchNorm1d: (6, 5, 4), nw.BatchNorm2d: (6, 5, 4, 3), nw.BatchNorm3d: (6, 5, 2, 2, 3)}
SAID = {  # every name, beside what else says the same
    "relu": (nn.ReLU(), nn.ReLU(inplace=True), Activation("relu")),
    "leaky_relu": (nn.LeakyReLU(), Activation("leaky_relu", 0.01)),
    "relu6": (nn.ReLU6(), nn.Hardtanh(0.0, 6.0), Activation("hardtanh", 0.0, 6.0)),
    "hardtanh": (nn.Hardtanh(), Activation("hardtanh", -1.0, 1.0)),
    "hardswish": (nn.Hardswish(), Activation("hardswish")),
    "silu": (nn.SiLU(), "swish", Activation("silu")),
    "gelu": (nn.GELU(), nn.GELU(approximate="none"), Activation("gelu")),
    "gelu_tanh": (nn.GELU(approximate="tanh"), "gelu_pytorch_tanh", Activation("gelu_tanh")),
    "sigmoid": (nn.Sigmoid(), Activation("sigmoid")),
    "tanh": (nn.Tanh(), Activation("tanh")),
    "elu": (nn.ELU(), Activation("elu", 1.0)),
    "identity": (None, nn.Identity()),
}


@pytest.mark.parametrize("name", SAID)
def test_a_name_and_a_module_and_an_activation_say_the_same(name):
    layer = nw.BatchNorm1d(5, activation=name)
    assert layer.activation == SAID[name][-1] or name == "identity"
    x = normal(6, 5)
    want = nw.batch_norm(x, training=True, activation=name)
    for said in SAID[name]:
        assert nw.BatchNorm1d(5, activation=said).activation == layer.activation
        layer.activation = said
        assert not list(layer.children())
        same_bits("y", nw.batch_norm(x, training=True, activation=said), want)
        same_bits("y of a layer", layer(x).detach(), want)


@pytest.mark.parametrize("make", LAYERS)
def test_a_layer_holds_an_activation_apart_from_its_state(make):
    layer, x = make(5, activation=nn.LeakyReLU(0.2)), normal(*LAYERS[make])
    assert list(layer.state_dict()) == list(make(5).state_dict())
    assert repr(layer) == repr(make(5))[:-1] + ", activation=leaky_relu(0.2))"
    want = layer(x, x).detach()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert (type(twin), twin.activation) == (make, Activation("leaky_relu", 0.2))
        same_bits("y of a copy", twin(x, x).detach(), want)
    layer.load_state_dict(make(5).state_dict())
    assert layer.activation.kind == "leaky_relu"
    layer.activation = None
    assert repr(layer) == repr(make(5))
    same_bits("y without", layer(x).detach(), make(5)(x).detach())


@pytest.mark.parametrize("rank", [2, 4, 5])
def test_a_lazy_layer_keeps_its_activation_and_takes_a_residual_at_once(rank):
    lazy = {2: nw.LazyBatchNorm1d, 4: nw.LazyBatchNorm2d, 5: nw.LazyBatchNorm3d}[rank](activation="silu")
    assert lazy.activation == Activation("silu")
    x = normal(6, 5, *[3] * (rank - 2))
    y = lazy(x, 2 * x)
    assert (type(lazy), lazy.activation) == (getattr(nw, NAMES[rank]), Activation("silu"))
    same_bits("y", y, type(lazy)(5, activation="silu")(x, 2 * x))


def test_converting_gives_no_activation_and_reverting_drops_none():
    model = nw.convert(nn.Sequential(nn.BatchNorm1d(5), nn.ReLU()))
    assert model[0].activation is None
    model[0].activation = "relu6"
    words = (
        "normwright.torch.revert: expected layers without an activation, as torch's, "
        "got hardtanh(0, 6) at '0'. Put it behind the layer first."
    )
    with pytest.raises(nw.ShapeError, match=f"^{re.escape(words)}$"):
        nw.revert(model)
    assert type(model[0]) is nw.BatchNorm1d
    model[0].activation = None
    assert type(nw.revert(model)[0]) is nn.BatchNorm1d
