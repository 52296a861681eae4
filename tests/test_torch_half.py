"""bfloat16 and float16 in torch's door: the float32 results rounded once, with what follows; and autocast."""

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F

import normwright.torch as nw
from beside_torch import UNIT, agree, last_place, normal, same_bits, state
from every_kernel import threads
from test_torch_activation import (
    FOLLOWS,
    HALF,
    LAYOUTS,
    NEEDS_KERNELS,
    TRAINING,
    WITH_RESIDUAL,
    a_layer,
    each_type,
    laid_as,
)

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
SHAPE = (6, 5, 7, 9)
EVERY = pytest.mark.parametrize("name", FOLLOWS)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # some 2000 numbers: more threads would only wait for each other
    yield
    torch.set_num_threads(before)


def stepped(layer, x, residual, dy):
    """y, dx and dresidual (dy's type), dweight and dbias of one step."""
    leaves = [t.detach().requires_grad_() for t in (x, residual) if t is not None]
    y = layer(*leaves)
    found = grad(y, [*leaves, layer.weight, layer.bias], dy)
    names = ("dx", "dresidual")[: len(leaves)]
    return dict(zip(("y", *names, "dweight", "dbias"), (y.detach(), *found), strict=True))


# --- one rounding -------------------------------------------------------------------


@NEEDS_KERNELS
@TRAINING
@WITH_RESIDUAL
@each_type(HALF)
@EVERY
def test_half_results_are_float32_results_rounded_once(name, dtype, with_residual, training):
    for layout, make in LAYOUTS.items():
        x = laid_as(make(), dtype)
        residual = normal(*x.shape, seed=2, mean=0).to(dtype) if with_residual else None
        dy = normal(*x.shape, seed=1, mean=0.5).to(dtype)
        layers = [a_layer(x, FOLLOWS[name].said, "train" if training else "eval") for _ in range(2)]
        got = stepped(layers[0], x, residual, dy)
        want = stepped(layers[1], laid_as(x, F32), None if residual is None else residual.float(), dy.float())
        for what, t in want.items():
            per_channel = what in ("dweight", "dbias")
            same_bits(f"{what}, {layout}", got[what], t if per_channel else t.to(dtype))
        for key, t in state(layers[1]).items():
            same_bits(key, layers[0].state_dict()[key], t)


@each_type(HALF)
def test_between_batch_norm_and_the_activation_nothing_is_rounded_or_overflows(dtype):
    # 2 * 40000 is beyond float16, whose largest is 65504, and 2 + 2^-12 between the halves around 2 in both types
    large, small = torch.tensor([[40000.0, -40000.0]]).to(dtype), torch.tensor([[1.0, 1.0]]).to(dtype)
    numbers = torch.zeros(2), torch.ones(2), torch.full((2,), 2.0), torch.full((2,), 2.0**-12)
    after = nw.batch_norm(large, *numbers, eps=0.0, residual=-large)
    assert after.tolist() == large.tolist()
    assert nw.batch_norm(large, *numbers, eps=0.0, activation="relu6").tolist() == [[6, 0]]
    assert nw.batch_norm(large, *numbers, eps=0.0, activation="tanh").tolist() == [[1, -1]]
    assert nw.batch_norm(small, *numbers, eps=0.0).tolist() == [[2, 2]]
    assert nw.batch_norm(small, *numbers, eps=0.0, residual=-2 * small).tolist() == [[2.0**-12] * 2]


def test_float16_results_beyond_its_largest_are_infinite():
    x, numbers = (
        torch.tensor([[40000.0, -40000.0]]).half(),
        (torch.zeros(2), torch.ones(2), torch.full((2,), 2.0)),
    )
    ends = {
        None: [torch.inf, -torch.inf],
        "relu": [torch.inf, 0],
        "silu": [torch.inf, 0],
        "elu": [torch.inf, -1],
    }
    for name, want in ends.items():
        assert nw.batch_norm(x, *numbers, eps=0.0, activation=name)[0].tolist() == want


# --- types of parameters ------------------------------------------------------------


@TRAINING
@each_type(HALF)
@pytest.mark.parametrize("parameters_in", [F64, BF16, F16], ids=lambda t: str(t).removeprefix("torch."))
@EVERY
def test_parameters_of_any_type_beside_a_half_x_are_float32_ones_and_their_gradients_go_back(
    name, parameters_in, dtype, training
):
    x, residual = normal(*SHAPE).to(dtype), normal(*SHAPE, seed=2, mean=0).to(dtype)
    dy, results = normal(*SHAPE, seed=1, mean=0.5).to(dtype), []
    for held in (F32, parameters_in):
        layer = a_layer(x, FOLLOWS[name].said, "train" if training else "eval").to(
            held
        )  # exact in every type
        results.append(stepped(layer, x, residual, dy))
        assert layer.running_mean.dtype == (F64 if held is F64 else F32)
    want, got = results
    for what in ("y", "dx", "dresidual"):
        assert got[what].dtype == dtype
        # float64 statistics move by digits that float32 has not, and some y are rounded the other way
        agree(what, got[what].double(), want[what].double(), 1.01 * last_place(dtype, want[what]).numpy())
    for what in ("dweight", "dbias"):
        assert got[what].dtype == parameters_in
        bound = 4 * UNIT[F32] * 400 + last_place(parameters_in, want[what]).numpy() / 2  # of up to 400 terms
        agree(what, got[what].double(), want[what].double(), bound)


@NEEDS_KERNELS
@each_type(HALF)
@EVERY
def test_a_half_layer_has_the_bits_of_one_with_the_same_numbers_in_float32(name, dtype):
    x, residual = normal(*SHAPE).to(dtype), normal(*SHAPE, seed=2, mean=0).to(dtype)
    dy = normal(*SHAPE, seed=1, mean=0.5).to(dtype)
    half, wide = (a_layer(x, FOLLOWS[name].said).to(held) for held in (dtype, F32))
    want = stepped(wide, x, residual, dy)
    for what, got in stepped(half, x, residual, dy).items():
        same_bits(what, got, want[what].to(dtype))
    assert half.activation == wide.activation
    same_bits("running_var", half.running_var, wide.running_var)


# --- gradients of gradients -----------------------------------------------------------


def penalized(function, leaves, dy, dtype):
    """Gradients of the squares of all gradients."""
    y = function(*leaves)
    found = grad(y, leaves, dy, create_graph=True)
    for g, leaf in zip(found, leaves, strict=True):
        assert (g.dtype, g.shape) == (leaf.dtype, leaf.shape)
    assert y.dtype == dtype
    return grad(sum(g.square().sum() for g in found), leaves[:2])


@TRAINING
@WITH_RESIDUAL
@each_type(HALF)
@pytest.mark.parametrize("name", ["nothing", "relu", "relu6", "silu", "gelu"])
def test_a_penalty_on_gradients_is_off_by_a_few_units_of_the_half_type(name, dtype, with_residual, training):
    follows = FOLLOWS[name]
    x, residual = normal(8, 5, 6).to(dtype), normal(8, 5, 6, seed=2, mean=0).to(dtype)
    c, dy = torch.arange(5) % 4, normal(8, 5, 6, seed=1, mean=0.5).to(dtype)
    given = [x, 1.5 - c, c / 4 - 0.5] + [residual] * with_residual

    def ours(x, weight, bias, residual=None):
        running = torch.zeros(5), torch.ones(5)
        return nw.batch_norm(x, *running, weight, bias, training, activation=follows.said, residual=residual)

    def exact(x, weight, bias, residual=0.0):
        running = torch.zeros(5, dtype=F64), torch.ones(5, dtype=F64)
        return follows.torchs(F.batch_norm(x, *running, weight, bias, training) + residual)

    got = penalized(ours, [t.detach().clone().requires_grad_() for t in given], dy, dtype)
    leaves = [t.detach().double().requires_grad_() for t in given]
    for found, want in zip(got, penalized(exact, leaves, dy.double(), F64), strict=True):
        # the result is rounded by half an eps, and so were the gradients that it is made of
        agree("gradient", found.double(), want, torch.finfo(dtype).eps * want.abs().max().item())


# --- autocast -------------------------------------------------------------------------


@each_type(HALF)
@TRAINING
@pytest.mark.parametrize("name", ["nothing", "relu", "silu"])
def test_under_autocast_a_float32_residual_beside_a_half_x_has_a_float32_gradient(name, training, dtype):
    torch.manual_seed(0)
    linear, layer = nn.Linear(5, 5, bias=False), a_layer(normal(32, 5), FOLLOWS[name].said)
    exact = nn.Linear(5, 5, bias=False).double(), nn.BatchNorm1d(5).double()
    for copied, source in zip(exact, (linear, layer), strict=True):
        copied.load_state_dict(source.state_dict())
    layer.train(training)
    exact[1].train(training)
    x = normal(32, 5).requires_grad_()
    with torch.autocast("cpu", dtype):
        y = layer(linear(x), x)  # the way around the branch is not half
    dy = normal(32, 5, seed=1, mean=0.5).to(dtype)
    assert y.dtype == dtype
    y.backward(dy)
    wide = x.detach().double().requires_grad_()
    want = FOLLOWS[name].torchs(exact[1](exact[0](wide)) + wide)
    want.backward(dy.double())
    assert {t.grad.dtype for t in (x, linear.weight, *layer.parameters())} == {F32}
    # x, the linear layer's weight and its result are rounded to the half type, and what is made of them
    unit = torch.finfo(dtype).eps
    agree("y", y.double(), want, 4 * unit * want.abs().max().item())
    for what, got, t in (("dx", x.grad, wide.grad), ("dweight", layer.weight.grad, exact[1].weight.grad)):
        near = (got - t).abs() <= 4 * unit * t.abs().max()
        assert near.double().mean() >= (0.9 if name == "relu" else 1), (
            what
        )  # a z near 0 may be on either side


# --- threads --------------------------------------------------------------------------


@NEEDS_KERNELS
@each_type()
@pytest.mark.parametrize("name", ["nothing", "relu", "silu"])
def test_any_number_of_threads_gives_the_same_bits(name, dtype):
    # as large as kernels want it before they take seven threads; test_cpu_threads has every shape
    x = normal(64, 17, 13, 13).to(dtype).requires_grad_()
    residual = normal(64, 17, 13, 13, seed=2).to(dtype).requires_grad_()
    dy, results = normal(64, 17, 13, 13, seed=1).to(dtype), []
    for n in (1, 2, 3):
        layer = a_layer(x, FOLLOWS[name].said)
        with threads(n):
            y = layer(x, residual)
            results.append([y.detach(), *grad(y, [x, residual, layer.weight, layer.bias], dy)])
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            same_bits("result", got, want)
