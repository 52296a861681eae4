"""The PyTorch door under whatever follows operations: function transforms, compilation, tracing, modes."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import func, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import normwright.torch as nw
from beside_torch import UNIT, agree, normal, raised_by, same_bits, state, twins, untouched

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


def loss(y):
    return y.pow(3).sum()


MOVING = {  # in training, with statistics to move: what torch refuses too, first vmap, then the gradients
    "vmap": lambda layer, x: func.vmap(layer)(torch.stack([x, -x])),
    "grad": lambda layer, x: func.grad(lambda x: loss(layer(x)))(x),
    "vmap of grad": lambda layer, x: func.vmap(func.grad(lambda x: loss(layer(x))))(torch.stack([x, -x])),
    "jacrev": lambda layer, x: func.jacrev(layer)(x),
    "jacfwd": lambda layer, x: func.jacfwd(layer)(x),
    "vjp": lambda layer, x: func.vjp(layer, x),
    "jvp": lambda layer, x: func.jvp(layer, (x,), (-x,)),
    "hessian": lambda layer, x: func.hessian(lambda x: loss(layer(x)))(x),
    "gradient for weights": lambda layer, x: func.grad(
        lambda weight: loss(func.functional_call(layer, {"weight": weight}, (x,)))
    )(layer.weight.detach()),
}


@JIT_ENDS
@pytest.mark.parametrize("momentum", [0.1, None])  # None has arithmetic of its own, with the counter
@pytest.mark.parametrize("name", MOVING)
def test_statistics_that_would_move_under_a_transform_are_an_error_with_the_way_out(name, momentum):
    x = normal(4, 3, 5)
    ours, theirs = twins(x, momentum=momentum)
    before = state(ours)
    versions = {key: t._version for key, t in ours.named_buffers()}
    assert type(raised_by(lambda: MOVING[name](theirs, x))) is RuntimeError
    with pytest.raises(
        nw.TransformError, match=r"^normwright.torch.BatchNorm1d: .*Use normwright.torch.batch_norm_stats"
    ) as raised:
        MOVING[name](ours, x)
    assert isinstance(raised.value, RuntimeError)
    assert isinstance(raised.value.__cause__, RuntimeError)  # torch's own words stay in sight
    untouched(ours, before)
    assert {key: t._version for key, t in ours.named_buffers()} == versions


def test_the_function_under_vmap_refuses_statistics_that_would_move():
    running = torch.zeros(3), torch.ones(3)
    with pytest.raises(nw.TransformError, match=r"^normwright.torch.batch_norm: .*batch_norm_stats"):
        MOVING["vmap"](lambda x: nw.batch_norm(x, *running, training=True), normal(4, 3, 5))
    assert (running[0].tolist(), running[1].tolist()) == ([0.0] * 3, [1.0] * 3)


def test_the_function_under_grad_moves_statistics_once_as_torchs():
    # torch asks after the counter of a layer alone; the function has none, and nobody sees what it writes
    x, results = normal(4, 3, 5, dtype=F64), []
    for function in (nw.batch_norm, nn.functional.batch_norm):
        running = torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)
        results.append(
            (MOVING["grad"](lambda x, f=function, r=running: f(x, *r, training=True), x), *running)
        )
    for got, want in zip(*results, strict=True):
        agree("dx and statistics", got, want, BOUND)


@JIT_ENDS
@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("still", ["frozen", "in evaluation", "no_stat_update"])  # all ways to hold them
def test_statistics_that_stay_are_no_hindrance_to_a_transform(still, name):
    x = normal(4, 3, 5, dtype=F64)
    ours, theirs = twins(x)[0], open_to_transforms(x, still == "no_stat_update")[1]
    before = state(ours)
    with nw.no_stat_update(ours) if still == "no_stat_update" else nullcontext():
        got = MOVING[name](nw.freeze(ours) if still == "frozen" else ours.train(still != "in evaluation"), x)
    want = MOVING[name](theirs, x)
    if name in ("vjp", "jvp"):  # y, and the gradient, which of vjp is a function
        got, want = got[0], want[0]
    agree(name, got, want, BOUND)
    untouched(ours, before)


HALF = {  # a half layer is one whose statistics are float32, which torch's own transforms do not expect
    name: MOVING[name] for name in ("vmap", "grad", "vmap of grad", "jacrev", "jacfwd", "vjp", "jvp")
}


@JIT_ENDS
@MODES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", HALF)
def test_half_layers_are_open_to_transforms_as_torchs(name, dtype, training):
    x = normal(4, 3, 5).to(dtype)
    ours, theirs = open_to_transforms(normal(4, 3, 5), training)
    exact = copy.deepcopy(theirs.to(dtype)).to(F64)
    assert raised_by(lambda: HALF[name](theirs, x)) is None
    got, want = HALF[name](ours.to(dtype), x), HALF[name](exact, x.double())
    if name in ("vjp", "jvp"):
        got, want = got[0], want[0]
    assert got.dtype == dtype
    # a few roundings to the half type, each of terms that are no larger than the largest result
    unit = torch.finfo(dtype).eps / 2
    agree(name, got.double(), want, 16 * unit * want.abs().max().item())


GUARDS = pytest.mark.parametrize("options", [{}, {"on_nonfinite": "propagate"}], ids=["default", "propagate"])


@GUARDS  # with and without a look at each batch, whose count is no buffer
def test_an_ensemble_trains_under_vmap_as_torchs(options):
    # torch's tutorial "Model ensembling": parameters and buffers of all models are stacked, and move
    x, results = normal(2, 6, 3, 5, dtype=F64), []
    for norm, more in ((nw, options), (nn, {})):
        models = [norm.BatchNorm1d(3, dtype=F64, **more) for _ in x]
        named, buffers = func.stack_module_state(models)

        def one(named, buffers, x, model=models[0]):
            return func.functional_call(model, (named, buffers), (x,))

        results.append({"y": func.vmap(one)(named, buffers, x), **buffers})
    for name, want in results[1].items():
        agree(name, results[0][name], want, BOUND)


@GUARDS
def test_buffers_made_inside_a_transform_may_move_there_as_torchs(options):
    x, results = normal(4, 3, 5, dtype=F64), []
    for norm, more in ((nw, options), (nn, {})):
        layer = norm.BatchNorm1d(3, dtype=F64, **more)

        def of_weight(weight, layer=layer):
            mine = {name: t.clone() for name, t in layer.named_buffers()}
            return loss(func.functional_call(layer, {"weight": weight, **mine}, (x,)))

        results.append(func.grad(of_weight)(normal(3, dtype=F64)))
    agree("dweight", *results, BOUND)


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
