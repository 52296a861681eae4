"""The PyTorch door under whatever follows operations: function transforms, compilation, tracing, modes."""

import pytest
import torch
from torch import func, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import normwright.torch as nw
from beside_torch import UNIT, agree, normal, same_bits, twins

F64 = torch.float64
BOUND = 64 * UNIT[F64] * 1000  # last digits of sums of some 100 terms, differentiated
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
# torch's forward-mode formulas and its tracer go through torch.jit, which warns of its own end
JIT_ENDS = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def open_to_transforms(x, training):
    """Twins that a function transform can see through: in training, without statistics to move."""
    return tuple(layer.train(training) for layer in twins(x, track_running_stats=not training))


@JIT_ENDS
@MODES
@pytest.mark.parametrize(
    "transform",
    {
        "grad": lambda layer, x: func.grad(lambda x: layer(x).pow(3).sum())(x),
        "jacrev": lambda layer, x: func.jacrev(layer)(x),
        "jacfwd": lambda layer, x: func.jacfwd(layer)(x),
        "jvp": lambda layer, x: func.jvp(layer, (x,), (x.sin(),))[1],
        "vjp": lambda layer, x: func.vjp(layer, x)[1](x.sin())[0],
        "hessian": lambda layer, x: func.hessian(lambda x: layer(x).pow(3).sum())(x),
        "vmap": lambda layer, x: func.vmap(layer)(torch.stack([x, x.sin(), -x])),
        "vmap of grad": lambda layer, x: func.vmap(func.grad(lambda x: layer(x).pow(3).sum()))(
            torch.stack([x, x.sin()])
        ),
        "vectorized jacobian": lambda layer, x: torch.autograd.functional.jacobian(layer, x, vectorize=True),
        "functional_call": lambda layer, x: func.functional_call(
            layer, {"weight": layer.weight * 2, "bias": layer.bias + 1}, (x,)
        ),
        "gradient for functional weights": lambda layer, x: func.grad(
            lambda weight: func.functional_call(layer, {"weight": weight}, (x,)).pow(3).sum()
        )(layer.weight.detach()),
    }.items(),
    ids=lambda item: item[0],
)
def test_function_transforms_give_torchs_results(transform, training):
    x = normal(4, 3, 5, dtype=F64)
    got, want = (transform[1](layer, x) for layer in open_to_transforms(x, training))
    agree(transform[0], got, want, BOUND)


@JIT_ENDS
@MODES
def test_forward_mode_differentiation_gives_torchs_results(training):
    x, direction = normal(4, 3, 5, dtype=F64), normal(4, 3, 5, dtype=F64, seed=1)
    results = []
    for layer in open_to_transforms(x, training):
        with forward_ad.dual_level():
            y = layer(forward_ad.make_dual(x, direction))
            results.append(forward_ad.unpack_dual(y).tangent)
    agree("tangent", *results, BOUND)


def test_gradients_of_single_samples_are_those_of_samples_alone():
    x = normal(4, 3, 5, dtype=F64)
    layer = twins(x)[0].eval()
    named = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(named, sample):
        return func.functional_call(layer, named, (sample[None],)).square().sum()

    each = func.vmap(func.grad(loss), (None, 0))(named, x)
    for k, sample in enumerate(x):
        layer.zero_grad()
        layer(sample[None]).square().sum().backward()
        agree("dweight", each["weight"][k], layer.weight.grad, BOUND)
        agree("dbias", each["bias"][k], layer.bias.grad, BOUND)


def test_training_with_statistics_under_vmap_is_torchs_error():
    x = normal(2, 4, 3, 5)
    ours, theirs = twins(x[0])
    for layer in (ours, theirs):
        with pytest.raises(RuntimeError, match="running_mean or running_var, which will be updated in place"):
            func.vmap(layer)(x)
    same_bits("running_mean", ours.running_mean, twins(x[0])[1].running_mean)


# --- compilation, tracing ---------------------------------------------


@MODES
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_has_no_graph_break_and_torchs_results(backend, training):
    x, dy = normal(6, 5, 7, dtype=F64), normal(6, 5, 7, dtype=F64, seed=1)
    ours, theirs = (layer.train(training) for layer in twins(x))
    torch.compiler.reset()
    compiled = torch.compile(ours, backend=backend, fullgraph=True)
    results = []
    for layer, call in ((ours, compiled), (theirs, theirs)):
        z = x.clone().requires_grad_()
        for _ in range(2):
            y = call(z)
        y.backward(dy)
        results.append((y, z.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var))
        assert layer.num_batches_tracked.item() == (2 if training else 0)
    for got, want in zip(*results, strict=True):
        agree("compiled", got, want, BOUND)


def test_a_compiled_function_is_torchs():
    x, weight = normal(6, 5, 7, dtype=F64), normal(5, dtype=F64)
    torch.compiler.reset()
    compiled = torch.compile(nw.batch_norm, backend="eager", fullgraph=True)
    want = nn.functional.batch_norm(x, None, None, weight, None, True)
    agree("y", compiled(x, None, None, weight, None, True), want, BOUND)


@MODES
def test_a_model_can_be_exported(training):
    x = normal(6, 5, 7, dtype=F64)
    ours, theirs = (layer.train(training) for layer in twins(x))
    agree("y", torch.export.export(ours, (x,)).module()(x), theirs(x), BOUND)


@JIT_ENDS
def test_a_model_can_be_traced():
    x = normal(6, 5, 7)
    layer = twins(x)[0].eval()
    traced = torch.jit.trace(layer, x)
    agree(
        "y", traced(x[:2]), layer(x[:2]), 16 * UNIT[torch.float32] * 16
    )  # the trace holds torch's operation


def test_a_model_can_be_traced_symbolically():
    x = normal(6, 5, 7)
    layer = twins(x)[0].eval()
    traced = torch.fx.symbolic_trace(nn.Sequential(layer))
    agree("y", traced(x), layer(x), 16 * UNIT[torch.float32] * 16)


# --- modes ---------------------------------------------------------------


class Calls(TorchFunctionMode):
    """Writes down every torch function that is called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Writes down every operation that is run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(operation.name())
        return operation(*args, **(kwargs or {}))


@MODES
def test_modes_see_the_work_as_torchs(training):
    x = normal(6, 5, 7)
    ours, theirs = (layer.train(training) for layer in twins(x))
    for mode, name in ((Calls(), "batch_norm"), (Operations(), "aten::native_batch_norm")):
        with mode:
            y = ours(x)
        assert name in mode.names
        agree("y", y, theirs(x), 16 * UNIT[torch.float32] * 16)
    same_bits("running_mean", ours.running_mean, theirs.running_mean)


@MODES
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}], ids=str)
def test_a_mode_that_begins_in_backward_sees_the_gradients_work(options, training):
    x, dy = normal(6, 5, 7, dtype=F64), normal(6, 5, 7, dtype=F64, seed=1)
    results = []
    for layer in twins(x, **options):
        layer.train(training)
        z = x.clone().requires_grad_()
        y = layer(z)
        with Operations() as seen:
            y.backward(dy)
        assert any("mul" in name or "batch_norm" in name for name in seen.names)
        results.append(z.grad)
    agree("dx", *results, BOUND)


def test_a_default_device_does_not_reach_into_backward():
    x, dy = normal(6, 5, 7), normal(6, 5, 7, seed=1)
    layer, theirs = twins(x)
    results = []
    for this in (layer, theirs):
        z = x.clone().requires_grad_()
        y = this(z)
        with torch.device("meta"):
            y.backward(dy)
        results.append(z.grad)
    agree("dx", *results, 16 * UNIT[torch.float32] * 16)


def test_autocast_leaves_types_as_torch_does():
    ours, theirs = twins(normal(6, 5, 7))
    with torch.autocast("cpu", torch.bfloat16):
        for x in (normal(6, 5, 7), normal(6, 5, 7).bfloat16()):
            assert ours(x).dtype == theirs(x).dtype
