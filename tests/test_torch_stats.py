"""`batch_norm_stats`: what training computes, as a function without side effects, open to every transform."""

import re

import pytest
import torch
from torch import func, nn
from torch.nn import functional as F

import normwright.torch as nw
from beside_torch import LAST, UNIT, agree, last_place, layouts, normal, same_bits
from normwright.kernels import NATIVE

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
BOUND = 64 * UNIT[F64] * 1000  # last digits of sums of some 100 terms, differentiated
# torch's forward-mode formulas go through torch.jit, which warns of its own end
JIT_ENDS = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
NEEDS_KERNELS = pytest.mark.skipif(not NATIVE, reason="this package was built without native kernels")
RESULTS = ("y", "running_mean", "running_var")


def numbers(channels, dtype=F32, running_type=None):
    """The numbers of each channel, none of them trivial."""
    c = torch.arange(channels, dtype=dtype) % 5
    running = {"running_mean": c / 2 + 0.25, "running_var": c + 0.5}
    running = {name: t.to(running_type or dtype) for name, t in running.items()}
    return running | {"weight": 1.5 - c, "bias": c / 4 - 0.5}


def by_training(x, given, function=nw.batch_norm, **options):
    """y and the statistics that training leaves in copies of those given."""
    given = {name: t.clone() for name, t in given.items()}
    y = function(x, **given, training=True, **options)
    return dict(zip(RESULTS, (y, given["running_mean"], given["running_var"]), strict=True))


def by_stats(x, given, **options):
    return nw.batch_norm_stats(x, **given, **options)._asdict()


def rounded_twice(t):
    """What two orders of adding may make of a half type: one is rounded up and the other down."""
    return last_place(t.dtype, t).numpy() if t.dtype is BF16 else 0


def frozen_in(*tensors):
    """A check that nothing has been written to any of them."""
    kept = [(t, t.detach().clone(), t._version) for t in tensors]

    def check():
        for t, value, version in kept:
            same_bits("an argument", t.detach(), value)
            assert t._version == version

    return check


# --- the same as training ------------------------------------------------------


@NEEDS_KERNELS
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])  # those of the kernels
@pytest.mark.parametrize("layout", layouts(F32))
def test_it_is_training_without_a_trace_bit_for_bit(layout, dtype):
    x, dy = layouts(dtype)[layout], normal(*layouts(dtype)[layout].shape, dtype=dtype, seed=1)
    given = numbers(5 if x.shape[1] != 1 else 1, dtype)
    for options in ({}, {"momentum": 0.25}, {"momentum": 0.0}, {"momentum": 1.0}, {"eps": 0.5}):
        unwritten = frozen_in(x, *given.values())
        steps = []
        for call in (by_stats, by_training):
            z, w = x.detach().requires_grad_(), given["weight"].clone().requires_grad_()
            found = call(z, given | {"weight": w}, **options)
            found["y"].backward(dy)
            steps.append({name: t.detach() for name, t in found.items()} | {"dx": z.grad, "dweight": w.grad})
        unwritten()
        for name, want in steps[1].items():
            same_bits(name, steps[0][name], want)
            assert steps[0][name].stride() == want.stride(), name


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])  # the channels' place, from both ends
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
def test_channels_may_be_on_any_axis(dtype, axis):
    x = normal(3, 5, 4, 7).to(dtype)
    given = numbers(x.shape[axis])
    got = by_stats(x, given, channel_dim=axis)
    want = by_training(x, given, channel_dim=axis)
    for name, t in want.items():
        assert (got[name].dtype, got[name].shape) == (t.dtype, t.shape)
        if dtype is F32 and NATIVE:
            same_bits(name, got[name], t)
        agree(name, got[name].double(), t.double(), 16 * UNIT[F32] * 16 + rounded_twice(t))


@pytest.mark.parametrize("names", [(), ("weight",), ("bias",), ("weight", "bias")], ids=str)
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=lambda t: str(t).removeprefix("torch."))
def test_values_are_right_in_every_type_with_any_parameters(dtype, names):
    x = normal(6, 5, 7, 9, mean=30).to(dtype)  # bfloat16 knows such a mean to 1/8
    all_given = numbers(5, F64 if dtype is F64 else F32)
    given = {name: t for name, t in all_given.items() if "running" in name or name in names}
    unwritten = frozen_in(x, *given.values())
    got = by_stats(x, given)
    unwritten()
    exact = {name: t.double() for name, t in given.items()}
    unit = UNIT[F64] if dtype is F64 else UNIT[F32]
    for name, want in by_training(x.double(), exact, F.batch_norm).items():
        assert got[name].dtype == (dtype if name == "y" else given["running_mean"].dtype)
        # y is x * a + b with terms up to 128; then it is rounded, once
        bound = 16 * unit * 128 + last_place(got[name].dtype, want).numpy() / 2
        agree(name, got[name].double(), want, bound)


MIXED = [  # x, statistics: what a user may mix
    (F32, F64),
    (F64, F32),  # which knows no mean of 1e5 and a variance of 1 at once
    (F32, BF16),
    (BF16, F64),
    (BF16, BF16),
]


# by the kernels, by operations
@pytest.mark.parametrize("seen", [False, True], ids=["directly", "under vmap"])
@pytest.mark.parametrize(("x_type", "running_type"), MIXED, ids=lambda t: str(t).removeprefix("torch."))
def test_statistics_of_another_type_are_computed_in_the_better_of_both(x_type, running_type, seen):
    x = normal(6, 5, 7, 9, dtype=F64, mean=1e5 if x_type is F64 else 30).to(x_type)
    given = numbers(5, F32, running_type)

    def call(x):
        return tuple(by_stats(x, given).values())

    y, mean, var = (t[0] for t in func.vmap(call)(x[None])) if seen else call(x)
    assert (y.dtype, mean.dtype, var.dtype) == (x_type, running_type, running_type)
    want = by_training(x.double(), {name: t.double() for name, t in given.items()}, F.batch_norm)
    for name, t in {"running_mean": mean, "running_var": var}.items():
        # float32 errs in a mean of 30 by a few units of it, also where x is bfloat16; then the type rounds
        noise = 16 * UNIT[F64] * 1e5**2 if x_type is F64 else 16 * UNIT[F32] * 30
        agree(name, t.double(), want[name], noise + last_place(running_type, want[name]).numpy() / 2)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
def test_a_batch_that_is_not_finite_shows_in_its_channel_as_in_the_function(dtype, bad):
    x, given = normal(6, 5, 7).to(dtype), numbers(5)
    x[0, 2, 3] = bad
    got, want = by_stats(x, given), by_training(x, given)
    for name in RESULTS[1:]:
        finite = [c != 2 for c in range(5)]
        assert got[name].isfinite().tolist() == want[name].isfinite().tolist() == finite, name


@pytest.mark.parametrize("shape", [(0, 5), (3, 5, 0)], ids=str)  # no sample, no position
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
def test_a_batch_of_none_moves_nothing_as_in_the_function(dtype, shape):
    x, given = torch.zeros(shape, dtype=dtype), numbers(5)
    got, want = by_stats(x, given), by_training(x, given)
    for name, t in want.items():
        same_bits(name, got[name], t)


# --- transforms --------------------------------------------------------------------


@JIT_ENDS
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("own", ["statistics of each task", "statistics in common"])
def test_under_vmap_every_task_has_its_statistics(own, dtype):
    x, given = normal(3, 6, 5, 7).to(dtype), numbers(5, F64 if dtype is F64 else F32)
    x = x * torch.tensor([1, 2, -1], dtype=dtype).view(3, 1, 1, 1)
    running = [given["running_mean"], given["running_var"]]
    if own == "statistics of each task":
        running = [torch.stack([t, t + 1, t + 2]) for t in running]
    unwritten = frozen_in(x, *running)
    along = 0 if own == "statistics of each task" else None
    got = func.vmap(nw.batch_norm_stats, (0, along, along, None, None))(
        x, *running, given["weight"], given["bias"]
    )
    unwritten()
    assert isinstance(got, nw.BatchNormStats)
    for k, task in enumerate(x):
        mine = [t[k] if along == 0 else t for t in running]
        want = by_training(task, given | dict(zip(RESULTS[1:], mine, strict=True)))
        unit = UNIT[F64] if dtype is F64 else UNIT[F32]
        for name, t in want.items():
            agree(name, getattr(got, name)[k].double(), t.double(), 16 * unit * 16 + rounded_twice(t))


def loss(x, given):
    """A number to differentiate, and all else that comes out."""
    y, *running = nw.batch_norm_stats(x, **given)
    return y.pow(3).sum(), (y, *running)


def torchs_loss(x, given):
    learned = {name: t for name, t in given.items() if "running" not in name}
    return F.batch_norm(x, None, None, **learned, training=True).pow(3).sum()


def test_grad_gives_the_gradient_and_the_statistics_at_once():
    x, given = normal(6, 5, 7, dtype=F64), numbers(5, F64)
    unwritten = frozen_in(x, *given.values())
    dx, found = func.grad(loss, has_aux=True)(x, given)
    unwritten()
    agree("dx", dx, func.grad(torchs_loss)(x, given), BOUND)
    for name, want in zip(RESULTS, by_training(x, given).values(), strict=True):
        agree(name, found[RESULTS.index(name)], want, BOUND)


TRANSFORMS = {
    "grad for the weight": lambda f, x, given: func.grad(lambda w: f(x, given | {"weight": w}))(
        given["weight"]
    ),
    "vmap of grad": lambda f, x, given: func.vmap(func.grad(f), (0, None))(torch.stack([x, x.sin()]), given),
    "grad of vmap": lambda f, x, given: func.grad(lambda xs: func.vmap(f, (0, None))(xs, given).sum())(
        torch.stack([x, x.sin()])
    ),
    "jacrev": lambda f, x, given: func.jacrev(f)(x, given),
    "jacfwd": lambda f, x, given: func.jacfwd(f)(x, given),
    "jvp": lambda f, x, given: func.jvp(lambda x: f(x, given), (x,), (x.sin(),))[1],
    "vjp": lambda f, x, given: func.vjp(lambda x: f(x, given), x)[1](torch.ones((), dtype=x.dtype))[0],
    "hessian": lambda f, x, given: func.hessian(f)(x, given),
}


@JIT_ENDS
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_give_torchs_derivatives_and_write_nothing(name):
    x, given = normal(4, 3, 5, dtype=F64), numbers(3, F64)
    unwritten = frozen_in(x, *given.values())
    got = TRANSFORMS[name](lambda x, given: loss(x, given)[0], x, given)
    unwritten()
    agree(name, got, TRANSFORMS[name](torchs_loss, x, given), BOUND)


@JIT_ENDS
def test_no_derivative_flows_into_the_statistics():
    x, given = normal(4, 3, 5, dtype=F64).requires_grad_(), numbers(3, F64)
    for inputs in (given, {name: t.clone().requires_grad_() for name, t in given.items()}):
        y, *running = nw.batch_norm_stats(x, **inputs)
        assert [t.requires_grad for t in (y, *running)] == [True, False, False]

    def statistics(x):
        return torch.cat(nw.batch_norm_stats(x, **given)[1:])

    for derivative in (func.jacrev(statistics)(x), func.jacfwd(statistics)(x)):
        assert derivative.shape == (6, *x.shape)
        assert derivative.count_nonzero() == 0
    assert func.jvp(statistics, (x,), (x.sin(),))[1].count_nonzero() == 0


class Pure(nn.Module):
    """A layer whose statistics go in and out as arguments: what a user makes of the function."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(t) for t in list(numbers(5, F64).values())[2:])
        for name, t in list(numbers(5, F64).items())[:2]:
            self.register_buffer(name, t)

    def forward(self, x):
        return nw.batch_norm_stats(x, self.running_mean, self.running_var, self.weight, self.bias)


def test_functional_call_passes_state_along():
    layer, layer_state = Pure(), numbers(5, F64)
    unwritten = frozen_in(*layer.state_dict().values())
    theirs = nn.BatchNorm1d(5, dtype=F64)
    theirs.load_state_dict(layer_state, strict=False)
    for k in range(3):
        x = normal(6, 5, 7, dtype=F64, seed=k)
        y, mean, var = func.functional_call(layer, layer_state, (x,))
        layer_state |= {"running_mean": mean, "running_var": var}
        agree("y", y, theirs(x), BOUND)
    unwritten()
    agree("running_mean", mean, theirs.running_mean, BOUND)
    agree("running_var", var, theirs.running_var, BOUND)


def test_an_ensemble_of_tasks_learns_with_its_own_statistics():
    xs, given = normal(3, 6, 5, 7, dtype=F64), numbers(5, F64)
    stacked = {name: torch.stack([t * k for k in (1.0, 1.5, 2.0)]) for name, t in given.items()}
    gradients, found = func.vmap(func.grad(loss, argnums=(0, 1), has_aux=True))(xs, stacked)
    for k, x in enumerate(xs):
        mine = {name: t[k].clone() for name, t in stacked.items()}
        want = by_training(x, mine)
        for name, t in zip(RESULTS, found, strict=True):
            agree(name, t[k], want[name], BOUND)
        dx, dgiven = func.grad(torchs_loss, (0, 1))(x, mine)
        agree("dx", gradients[0][k], dx, BOUND)
        for name, t in dgiven.items():
            agree(f"d{name}", gradients[1][name][k], t, BOUND)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=["float64", "float32", "bfloat16"])
def test_it_compiles_without_a_graph_break(dtype, axis):
    torch.compiler.reset()
    compiled = torch.compile(nw.batch_norm_stats, backend="eager", fullgraph=True)
    for size in (6, 4, 9):
        x = normal(size, 5, 7, 5).to(dtype)
        given = numbers(5, F64 if dtype is F64 else F32)
        unwritten = frozen_in(x, *given.values())
        got = compiled(x, **given, channel_dim=axis)
        unwritten()
        unit = UNIT[F64] if dtype is F64 else UNIT[F32]
        for name, want in by_training(x, given, channel_dim=axis).items():
            agree(name, getattr(got, name).double(), want.double(), 16 * unit * 16 + rounded_twice(want))


@NEEDS_KERNELS
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_it_is_the_same(mode):
    x, given = normal(6, 5, 7, 9).contiguous(memory_format=LAST), numbers(5)
    with mode():
        got = by_stats(x, given)
        got = {name: t.clone() for name, t in got.items()}
    for name, want in by_training(x, given).items():
        same_bits(name, got[name], want)


# --- errors ------------------------------------------------------------------------------

BAD = {  # changes to the arguments, and the message after the call
    "one value": (
        {"x": normal(1, 5)},
        "expected more than one value per channel in training, got 1; x is (1, 5)",
    ),
    "eps 0": ({"eps": 0.0}, "expected eps > 0, got 0.0."),
    "integers": (
        {"x": torch.ones(6, 5, dtype=torch.int64)},
        "expected x of a floating point dtype, got torch.int64.",
    ),
    "rank 1": ({"x": normal(5)}, "expected x of rank 2 or more, (N, C, ...), got rank 1, shape (5,)."),
    "an array": ({"x": normal(6, 5).numpy()}, "expected x to be a torch.Tensor, got numpy.ndarray."),
    "mean alone": (
        {"running_var": None},
        "expected running_mean and running_var, or neither, got running_mean",
    ),
    "long mean": ({"running_mean": torch.zeros(6)}, "expected running_mean of shape (5,), got (6,)"),
    "long variance": ({"running_var": torch.zeros(6)}, "expected running_var of shape (5,), got (6,)"),
    "short weight": ({"weight": torch.ones(4)}, "expected weight of shape (5,), got (4,)"),
    "short bias": ({"bias": torch.ones(4)}, "expected bias of shape (5,), got (4,)"),
    "elsewhere": ({"weight": torch.ones(5, device="meta")}, "expected weight on cpu, where x is, got meta."),
    "no momentum": ({"momentum": None}, "expected momentum to be a number, got None."),
}


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])  # by the kernels, by torch
@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_the_functions_errors_and_nothing_is_written(name, dtype):
    changes, words = BAD[name]
    given = {"x": normal(6, 5).to(dtype), **numbers(5)} | changes
    unwritten = frozen_in(*(t for t in given.values() if isinstance(t, torch.Tensor) and not t.is_meta))
    with pytest.raises((nw.ShapeError, nw.DtypeError)) as raised:
        nw.batch_norm_stats(**given)
    assert re.match(re.escape(f"normwright.torch.batch_norm_stats: {words}"), str(raised.value))
    unwritten()


def test_without_statistics_it_says_what_it_needs():
    with pytest.raises(
        (nw.ShapeError, nw.DtypeError), match=r"^normwright\.torch\.batch_norm_stats: .*running_mean"
    ):
        nw.batch_norm_stats(normal(6, 5), None, None)


def test_under_vmap_a_task_of_one_value_is_an_error():
    given = numbers(5)
    with pytest.raises(nw.ShapeError, match="expected more than one value per channel"):
        func.vmap(lambda x: nw.batch_norm_stats(x, **given))(normal(3, 1, 5))
