"""torch's own cases of batch norm, from the suites inside its wheel, with our layers and our function in them."""

import inspect
import io
import pickle
import warnings
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from types import SimpleNamespace

import hypothesis
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn import functional as F

import normwright.torch as nw
from beside_torch import agree, normal, raised_by, same_bits, state, step, twins, untouched

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
LAYERS = pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])  # all that torch has
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
# All that torch's batch norm takes on a CPU. Its suite of modules declares the first two, that of functions all.
DTYPES = pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=["f64", "f32", "bf16", "f16"])
# torch's forward-mode formulas go through torch.jit, which warns of its own end
JIT_ENDS = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def _the_same_numbers_by_one_thread():
    """make_tensor and gradcheck's fast mode draw from torch's global generator, which is given back as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # forward mode starts threads for 40 values: 100 ms where cores are shared
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


@cache
def suites():
    """torch's suites for batch norm: {name of a layer: its entry}, the function's entry, and what makes gaps.

    Imported here and not above, because it takes 5 s, warns of what is missing for other parts of torch, and
    changes the process for the tests that run after these, which gets undone: hypothesis is set to 10 examples
    instead of 100, and torch.backends refuses to be configured.
    """
    hypothesis.settings.register_profile("before torch's suites", hypothesis.settings())
    frozen = torch.backends.flags_frozen()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
        from torch.testing._internal.common_modules import module_db
        from torch.testing._internal.common_utils import noncontiguous_like
    hypothesis.settings.load_profile("before torch's suites")
    torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = not frozen
    assert torch.backends.flags_frozen() is frozen
    layers = {e.module_cls.__name__: e for e in module_db if e.name.startswith("nn.BatchNorm")}
    (op,) = (o for o in op_db if (o.name, o.variant_test_name) == ("nn.functional.batch_norm", ""))
    return SimpleNamespace(layers=layers, op=op, with_gaps=noncontiguous_like)


@contextmanager
def case(*words):
    """Names the case of a suite in whatever goes wrong inside."""
    try:
        yield
    except Exception as error:
        error.add_note("in torch's case " + " ".join(str(word) for word in words))
        raise


def options_and_x(layer_input, name):
    """How a layer is made, by name and without num_features, which `twins` takes from x; and x."""
    given = layer_input.constructor_input
    options = inspect.signature(getattr(nn, name)).bind(*given.args, **given.kwargs).arguments
    (x,) = layer_input.forward_input.args
    assert options.pop("num_features") == x.shape[1]
    return options, x


def cases_of(name, dtype, training=True, requires_grad=False):
    """What torch's suite does with a layer: (words for the case, options of the layer, x)."""
    entry = suites().layers[name]
    inputs = entry.module_inputs_func(entry, "cpu", dtype, requires_grad, training)
    assert len(inputs) > 5, "torch's suite has lost its cases, or we do not find them"
    for layer_input in inputs:
        options, x = options_and_x(layer_input, name)
        yield (name, layer_input.desc, options, tuple(x.shape)), options, x


# --- how far two results may be apart ---------------------------------------------


def allowed(x, dy, weight, bias, stats, eps, by_batch, rate):
    """What rounding may do to each result: 8 units of x's type in each of the terms that make it up.

    torch has y = x*a + b with a and b rounded (for half types also mean and rstd), so |x| and the mean, itself
    a mean of |x|, are terms of x_hat, before the one is taken off the other. A gradient is the sum of its three
    parts, each with the terms of x_hat; a running statistic that of old and new, var's new of squares of x.
    With that, torch's float32 layers are up to 4 units from its float64 layers here, its half layers 2; 8 leave
    ours as many. Statistics that do not move are exact.
    """
    unit = 4 * torch.finfo(x.dtype).eps  # finfo's eps is two units of rounding
    x, dy = x.detach().double(), dy.double()
    dims, across = [d for d in range(x.dim()) if d != 1], [1, -1] + [1] * (x.dim() - 2)
    m = x.numel() // x.shape[1]
    centred = x - x.mean(dims, keepdim=True)
    of_batch = x.abs().mean(dims), centred.square().mean(dims)
    mean, var = of_batch if by_batch else (t.double() for t in stats)
    gamma = torch.ones_like(mean) if weight is None else weight.detach().double().abs()
    beta = torch.zeros_like(mean) if bias is None else bias.detach().double().abs()
    gamma, beta, mean, rstd = (t.view(across) for t in (gamma, beta, mean, (var + eps).rsqrt()))
    x_hat = (x.abs() + mean.abs()) * rstd
    dbias, dweight = dy.abs().sum(dims), (dy.abs() * x_hat).sum(dims)
    dx = gamma * rstd * dy.abs()
    if by_batch:
        dx = dx + gamma * rstd * (dbias.view(across) + x_hat * dweight.view(across)) / m
    terms = {"y": gamma * x_hat + beta, "dx": dx, "dweight": dweight, "dbias": dbias}
    if stats[0] is not None:
        old_mean, old_var = (abs(1 - rate) * t.double().abs() for t in stats)
        terms["running_mean"] = by_batch * (old_mean + abs(rate) * x.abs().sum(dims) / max(m, 1))
        terms["running_var"] = by_batch * (old_var + abs(rate) * x.square().sum(dims) / max(m - 1, 1))
    return {name: (unit * t).numpy() for name, t in terms.items()}


def same_results(ours, theirs, bounds, wider=()):
    """The results agree in type, shape and value; those in `wider` are float32 where torch's are of a half type."""
    assert vars(ours).keys() == vars(theirs).keys()
    for name, want in vars(theirs).items():
        got = getattr(ours, name)
        if want is None:
            assert got is None, name
            continue
        dtype = F32 if name in wider and want.dtype in (BF16, F16) else want.dtype
        assert (got.dtype, got.shape, got.device) == (dtype, want.shape, want.device), name
        if name == "num_batches_tracked":
            assert got.item() == want.item()
            continue
        agree(name, got.double(), want.double(), bounds[name])  # NumPy has no bfloat16


def same_steps(ours, theirs, x, number=2):
    """Steps of two layers in the same state; the second finds what the first left, and averages with it."""
    dy = normal(*x.shape, dtype=x.dtype, seed=1, mean=0.5)
    for k in range(number):
        count = theirs.num_batches_tracked
        rate = theirs.momentum if theirs.momentum is not None or count is None else 1 / (count.item() + 1)
        stats = [None if t is None else t.clone() for t in (theirs.running_mean, theirs.running_var)]
        by_batch = theirs.training or stats[0] is None
        bounds = allowed(x, dy, theirs.weight, theirs.bias, stats, theirs.eps, by_batch, rate)
        with case(f"step {k}"):
            wider = ("running_mean", "running_var")  # half layers of ours keep them in float32
            same_results(step(ours, x, dy), step(theirs, x, dy), bounds, wider)


# --- layers ---------------------------------------------------------------------------


@LAYERS
@MODES
@DTYPES
def test_a_layer_gives_torchs_results_in_torchs_cases(dtype, training, name):
    for words, options, x in cases_of(name, dtype, training):
        with case(*words):
            ours, theirs = (layer.train(training) for layer in twins(x, **options))
            assert type(theirs).__name__ == type(ours).__name__ == name
            same_steps(ours, theirs, x)


def through(layer):
    """The layer as a function of x and its parameters, so that gradcheck can move all of them."""
    names = [name for name, _ in layer.named_parameters()]
    return lambda x, *values: functional_call(layer, dict(zip(names, values, strict=True)), (x,))


@JIT_ENDS
@LAYERS
@MODES
def test_a_layers_gradients_are_right_in_torchs_cases(name, training):
    """With batched gradients as in torch's suite, and in forward mode, which the function's entry declares."""
    entry = suites().layers[name]
    for words, options, x in cases_of(name, F64, training, requires_grad=True):
        with case(*words):
            layer = twins(x, **options)[0].train(training)
            inputs = (x, *layer.parameters())
            fast = x.numel() > 50  # torch's way for all; whole Jacobians where these are small enough
            how = {"nondet_tol": entry.gradcheck_nondet_tol, "check_batched_grad": True, "fast_mode": fast}
            assert gradcheck(through(layer), inputs, check_forward_ad=True, **how)
            assert gradgradcheck(through(layer), inputs, check_fwd_over_rev=True, **how)


@pytest.mark.parametrize("name", ["BatchNorm2d", "BatchNorm3d"])  # channels-last is for ranks 4 and 5
@MODES
def test_a_layers_results_lie_in_memory_as_torchs(name, training):
    last = {"BatchNorm2d": torch.channels_last, "BatchNorm3d": torch.channels_last_3d}[name]
    for words, options, x in cases_of(name, F32, training):
        for of_x, of_layer in product((torch.contiguous_format, last), repeat=2):
            results = []
            for layer in twins(x, **options):
                layer.to(memory_format=of_layer).train(training)
                leaf = x.clone(memory_format=of_x).requires_grad_()
                y = layer(leaf)
                y.backward(torch.ones_like(y))
                results.append((y.stride(), leaf.grad.stride()))
            with case(*words, of_x, of_layer):
                assert results[0] == results[1]
                assert y.is_contiguous(memory_format=of_x)


@LAYERS
@MODES
def test_a_layer_reads_tensors_with_gaps_as_those_without(name, training):
    for words, options, x in cases_of(name, F32, training):
        with case(*words):
            ours, theirs = (layer.train(training) for layer in twins(x, **options))
            gaps = suites().with_gaps(x)  # of NaN
            assert not gaps.is_contiguous() or x.numel() == 0
            same_steps(ours, theirs, gaps, number=1)


@LAYERS
@MODES
@DTYPES
def test_a_layer_survives_pickling_in_torchs_cases(dtype, training, name):
    for words, options, x in cases_of(name, dtype, training):
        with case(*words):
            layer = twins(x, **options)[0].train(training)
            y = layer(x)  # in training too the next is equal: no y sees the running statistics
            torch.save(layer, file := io.BytesIO())
            loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
            for again in (loaded, pickle.loads(pickle.dumps(layer))):
                assert type(again) is type(layer)
                assert again.training is training
                assert repr(again) == repr(layer)
                untouched(again, state(layer))
                same_bits("y", again(x).detach(), y.detach())


@LAYERS
@MODES
def test_a_layer_refuses_what_torchs_suite_says_it_should(name, training):
    entry = suites().layers[name]
    inputs = entry.module_error_inputs_func(entry, "cpu", F32, False, training)
    assert {e.module_error_input.constructor_input.kwargs["eps"] for e in inputs} == {0.0, -1.0}
    for error_input in inputs:
        options, x = options_and_x(error_input.module_error_input, name)
        with case(name, options):
            ours, theirs = (layer.train(training) for layer in twins(x, **options))
            before = state(ours)
            torchs, error = (raised_by(partial(layer, x)) for layer in (theirs, ours))
            if torchs is None:  # an eps of 0 is torch's error in training alone
                assert (training, options) == (False, {"eps": 0.0})
                assert error is None
            else:
                assert isinstance(error, error_input.error_type), repr(error)
                assert isinstance(error, type(torchs)), repr(error)
            untouched(ours, before)


@LAYERS
def test_a_layer_is_made_where_and_of_what_type_torchs_is(name):
    for dtype in suites().layers[name].dtypes:  # no half type: of those our running statistics are not
        for words, options, x in cases_of(name, dtype):
            made = []
            for module in (nw, nn):
                make = partial(getattr(module, name), x.shape[1], dtype=dtype, **options)
                layers = [make(device="cpu"), make(device="meta"), make(device="meta").to_empty(device="cpu")]
                with torch.device("meta"):
                    layers.append(make())
                states = [layer.state_dict().items() for layer in layers]
                made.append([[(k, t.dtype, t.device, t.shape) for k, t in items] for items in states])
            with case(*words, dtype):
                assert made[0] == made[1]


# --- the function ---------------------------------------------------------------------


def samples(dtype, requires_grad, refused=False):
    """The function in torch's suite: (words, x, statistics, weight, bias, options); `refused`: by ours, also."""
    found = list(suites().op.sample_inputs("cpu", dtype, requires_grad=requires_grad))
    assert len(found) > 10, "torch's suite has lost its samples, or we do not find them"
    for s in (s for s in found if s.input.dim() >= 2 or refused):
        mean, var, weight, bias = s.args
        words = tuple(s.input.shape), s.kwargs, "affine" if weight is not None else "not affine"
        yield words, s.input, (mean, var), weight, bias, s.kwargs


def called(function, x, stats, weight, bias, options, dy):
    """y, the gradients and the statistics after one call with copies of everything."""
    x, mean, var, weight, bias = (
        None if t is None else t.detach().clone().requires_grad_(t.requires_grad)
        for t in (x, *stats, weight, bias)
    )
    y = function(x, mean, var, weight, bias, **options)
    assert y.requires_grad == x.requires_grad
    if y.requires_grad:
        y.backward(dy)
    leaves = {"dx": x, "dweight": weight, "dbias": bias}
    gradients = {name: None if t is None else t.grad for name, t in leaves.items()}
    return SimpleNamespace(y=y.detach(), running_mean=mean, running_var=var, **gradients), y.stride()


@pytest.mark.parametrize("requires_grad", [True, False], ids=["grad", "no grad"])
@DTYPES
def test_the_function_gives_torchs_results_in_torchs_samples(dtype, requires_grad):
    assert dtype in suites().op.dtypes
    for words, x, stats, weight, bias, options in samples(dtype, requires_grad):
        given = x, stats, weight, bias, options, (dy := normal(*x.shape, dtype=dtype, seed=1, mean=0.5))
        training, rate, eps = ({"training": False, "momentum": 0.1, "eps": 1e-5} | options).values()
        bounds = allowed(x, dy, weight, bias, stats, eps, training, rate)
        with case(*words):
            ours, theirs = (called(f, *given) for f in (nw.batch_norm, F.batch_norm))
            same_results(ours[0], theirs[0], bounds)
            assert ours[1] == theirs[1]


def test_the_only_samples_refused_have_no_channels():
    """torch's suite has two, of shape (0,); with a single value torch refuses such an x itself."""
    modes = set()
    for words, x, stats, weight, bias, options in samples(F32, False, refused=True):
        error = raised_by(partial(nw.batch_norm, x, *stats, weight, bias, **options))
        if error is not None:
            assert x.shape == (0,), words
            assert "expected x of rank 2 or more" in str(error)
            modes.add(options["training"])
    assert modes == {True, False}
    assert raised_by(lambda: F.batch_norm(torch.ones(1), torch.zeros(1), torch.ones(1))) is not None


def with_copies(stats, options, x, *parameters):
    """The function, with the same statistics in every call: they would grow without end at a momentum of -1."""
    return nw.batch_norm(x, *(None if t is None else t.clone() for t in stats), *parameters, **options)


@JIT_ENDS
def test_the_functions_gradients_are_right_in_torchs_samples():
    op = suites().op
    for words, x, stats, weight, bias, options in samples(F64, True):
        inputs = tuple(t for t in (x, weight, bias) if t is not None)
        function = partial(with_copies, stats, options)
        how = {"nondet_tol": op.gradcheck_nondet_tol, "check_batched_grad": op.check_batched_grad}
        forward = {"check_forward_ad": True, "check_batched_forward_grad": op.check_batched_forward_grad}
        with case(*words):
            assert gradcheck(function, inputs, **how, **forward)
            assert gradgradcheck(function, inputs, check_fwd_over_rev=op.supports_fwgrad_bwgrad, **how)


# --- what the suites leave out ----------------------------------------------------------

SHAPES = [(33, 5), (6, 5, 7), (6, 5, 7, 3), (2, 5, 3, 4, 2)]  # every rank that a layer takes
OPTIONS = {
    "plain mean": {"momentum": None},  # whose rate is 1, then 1/2
    "statistics stay": {"momentum": 0.0},
    "the last batch alone": {"momentum": 1.0},
    "away from the batch": {"momentum": -0.5},  # torch's suite of functions has such, and takes it
    "not affine": {"affine": False},
    "without bias": {"bias": False},
    "not tracking": {"track_running_stats": False},
    "not tracking, plain mean": {"track_running_stats": False, "momentum": None},
    "nothing to learn, nothing to keep": {"affine": False, "track_running_stats": False},
    "large eps": {"eps": 1e-3},  # TensorFlow's
    "no eps": {"eps": 0.0},  # which torch takes in evaluation
}


@pytest.mark.parametrize("options", OPTIONS)
@DTYPES
def test_odd_layers_give_torchs_results(dtype, options):
    modes = [False] if options == "no eps" else [True, False]
    for shape, training in product(SHAPES, modes):
        x = normal(*shape, dtype=dtype)
        ours, theirs = (layer.train(training) for layer in twins(x, **OPTIONS[options]))
        with case(shape, training):
            same_steps(ours, theirs, x)


@pytest.mark.parametrize("on_nonfinite", ["skip", "propagate"])  # without values nothing is not finite
@pytest.mark.parametrize("options", ["plain mean", "not affine", "without bias", "not tracking", "large eps"])
@MODES
@DTYPES
def test_an_empty_batch_leaves_the_statistics_and_counts_as_torchs(dtype, training, options, on_nonfinite):
    for shape in [(0, 5), (0, 5, 7), (6, 5, 0), (0, 5, 7, 3), (6, 5, 0, 3), (0, 5, 3, 4, 2)]:
        x = torch.empty(shape, dtype=dtype)
        usual, theirs = twins(x, **OPTIONS[options])
        ours = type(usual)(5, on_nonfinite=on_nonfinite, **OPTIONS[options]).to(dtype)
        before = usual.state_dict()
        ours.load_state_dict(before)
        with case(shape):
            results = [step(layer.train(training), x, x.clone()) for layer in (ours, theirs)]
            # bounds of 0: there is nothing to round
            same_results(*results, dict.fromkeys(vars(results[1]), 0.0), ("running_mean", "running_var"))
            for k, t in ours.state_dict().items():
                same_bits(k, t, before[k] + training if k == "num_batches_tracked" else before[k])
            assert nw.skipped(ours) == {}
