"""The PyTorch door and types: every mixture of them, and half modules, whose statistics stay float32."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normwright.torch as nw
from beside_torch import UNIT, agree, last_place, normal, same_bits, state, step, twins, untouched
from normwright.kernels import NATIVE

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
HALF = (BF16, F16)


def each(name, types=(F64, F32, BF16, F16)):
    """A test for every floating point type that layers are used with."""
    return pytest.mark.parametrize(name, types, ids=lambda t: str(t).removeprefix("torch."))


MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
SHAPE = (6, 5, 7, 9)


def bound_of(name, want, dtype, unit):
    """How far `name`, computed with `unit` and rounded to `dtype`, may be from `want`.

    The arithmetic errs by 16 units of the largest terms, which here are below 16 (sums: below 1000), as in
    beside_torch.same_step; at the end a type rounds by half of its last place.
    """
    return 16 * unit * (1000 if name in ("dweight", "dbias") else 16) + last_place(dtype, want).numpy() / 2


# --- mixtures, in the function ---------------------------------------------


def pieces(x_type, weight_type, running_type, bias_type=None, var_type=None):
    """x, dy and the numbers of each channel by name; those are the same in every type."""
    c = torch.arange(SHAPE[1])
    numbers = {
        "weight": (1.5 - c).to(weight_type),
        "bias": (c * 0.25 - 0.5).to(bias_type or weight_type),
        "running_mean": (c * 0.5 + 0.25).to(running_type),
        "running_var": (c + 0.5).to(var_type or running_type),
    }
    return normal(*SHAPE).to(x_type), normal(*SHAPE, seed=1, mean=0.5).to(x_type), numbers


def a_pass(function, x, dy, numbers, training):
    """y, the gradients and the running statistics after a forward and backward pass; no argument changes."""
    x = x.clone().requires_grad_()
    learn = {name: numbers[name].clone().requires_grad_() for name in ("weight", "bias")}
    running = {name: numbers[name].clone() for name in ("running_mean", "running_var")}
    y = function(x, **running, **learn, training=training, momentum=0.25)
    y.backward(dy)
    return {"y": y.detach(), "dx": x.grad, **{f"d{name}": p.grad for name, p in learn.items()}, **running}


def in_float64(x, dy, numbers, training):
    wide = {name: t.double() for name, t in numbers.items()}
    return a_pass(F.batch_norm, x.double(), dy.double(), wide, training)


@MODES
@each("running_type")
@each("weight_type")
@each("x_type")
def test_every_mixture_of_types_gives_each_result_its_type_and_right_values(
    x_type, weight_type, running_type, training
):
    x, dy, numbers = pieces(x_type, weight_type, running_type)
    got = a_pass(nw.batch_norm, x, dy, numbers, training)
    types = {"y": x_type, "dx": x_type, "dweight": weight_type, "dbias": weight_type}
    types |= {"running_mean": running_type, "running_var": running_type}
    assert {name: t.dtype for name, t in got.items()} == types
    pure = x_type == weight_type == running_type
    unit = UNIT[F64] if x_type is F64 else UNIT[F32]
    if pure and x_type in HALF and training:
        unit = torch.finfo(x_type).eps / 16  # torch keeps the batch's mean and rstd in the half type then
    for name, want in in_float64(x, dy, numbers, training).items():
        agree(name, got[name].double(), want, bound_of(name, want, types[name], unit))
    if not pure and not (x_type in HALF and weight_type == running_type == F32):
        return  # torch refuses the mixture
    for name, want in a_pass(F.batch_norm, x, dy, numbers, training).items():
        assert types[name] == want.dtype
        if x_type in HALF and (pure or not NATIVE):  # torch's own operation, and nothing around it
            same_bits(name, got[name], want)
        elif x_type in HALF:  # both as far from the truth as above
            agree(name, got[name].double(), want.double(), 2 * bound_of(name, want, types[name], unit))
        else:
            agree(name, got[name], want, bound_of(name, want, x_type, unit))


ODD = {  # weight, bias, running mean, running variance, beside an x that the kernels take
    "weight and bias differ": (F32, F64, F32, F32),
    "weight and bias differ, one is half": (BF16, F32, F32, F32),
    "mean and variance differ": (F32, F32, F64, F32),
    "mean and variance differ, one is half": (F32, F32, F32, BF16),
    "all four differ": (F16, BF16, F64, F32),
}


@MODES
@each("x_type")
@pytest.mark.parametrize("name", ODD)
def test_numbers_of_a_pair_may_differ_in_type(name, x_type, training):
    weight_type, bias_type, mean_type, var_type = ODD[name]
    x, dy, numbers = pieces(x_type, weight_type, mean_type, bias_type, var_type)
    got = a_pass(nw.batch_norm, x, dy, numbers, training)
    types = {"y": x_type, "dx": x_type, "dweight": weight_type, "dbias": bias_type}
    types |= {"running_mean": mean_type, "running_var": var_type}
    for this, want in in_float64(x, dy, numbers, training).items():
        assert got[this].dtype == types[this], this
        unit = UNIT[F64] if x_type is F64 else UNIT[F32]
        agree(this, got[this].double(), want, bound_of(this, want, types[this], unit))


# --- half layers keep float32 statistics --------------------------------------


def a_layer(dtype=F32):
    """A trained layer: no statistic of it is exact in a half type."""
    layer = twins(normal(*SHAPE))[0].to(dtype)
    layer(normal(*SHAPE, dtype=dtype))
    return layer


def statistics(layer):
    return {name: getattr(layer, name) for name in ("running_mean", "running_var")}


TO_HALF = {
    "the method": lambda layer, dtype: layer.half() if dtype is F16 else layer.bfloat16(),
    "to a type": lambda layer, dtype: layer.to(dtype),
    "to a type and device": lambda layer, dtype: layer.to("cpu", dtype, non_blocking=True),
    "to a tensor's type": lambda layer, dtype: layer.to(torch.zeros((), dtype=dtype)),
    "in a model": lambda layer, dtype: nn.Sequential(nn.Linear(2, 2), layer).to(dtype)[1],
    "of all tensors": lambda layer, dtype: layer.type(dtype),
    "by way of the other half type": lambda layer, dtype: layer.to(BF16 if dtype is F16 else F16).to(dtype),
    "and a copy": lambda layer, dtype: copy.deepcopy(layer.to(dtype)),
    "and pickled": lambda layer, dtype: pickle.loads(pickle.dumps(layer.to(dtype))),
    "frozen": lambda layer, dtype: nw.freeze(layer).to(dtype),
}


@each("dtype", HALF)
@pytest.mark.parametrize("how", TO_HALF)
def test_a_layer_that_becomes_half_keeps_its_statistics_bit_for_bit(how, dtype):
    layer = a_layer()
    before = state(layer)
    layer = TO_HALF[how](layer, dtype)
    assert (layer.weight.dtype, layer.bias.dtype) == (dtype, dtype)
    for name, t in statistics(layer).items():
        same_bits(name, t, before[name])
    back = layer.float()
    for name, t in statistics(back).items():
        same_bits(name, t, before[name])
    assert back.num_batches_tracked.item() == 1
    same_bits("weight", back.weight.detach(), before["weight"].to(dtype).float())


@each("dtype", HALF)
def test_statistics_of_a_double_layer_are_rounded_to_float32_once(dtype):
    layer = a_layer(F64)
    before = state(layer)
    assert {t.dtype for t in statistics(layer).values()} == {F64}
    layer.to(dtype)
    for name, t in statistics(layer).items():
        same_bits(name, t, before[name].float())
    for name, t in statistics(layer.double()).items():
        same_bits(name, t, before[name].float().double())


def assigned(dtype, **options):
    layer = nw.BatchNorm2d(5, **options)
    layer.load_state_dict(nn.BatchNorm2d(5, dtype=dtype, **options).state_dict(), assign=True)
    return layer


def of_nothing(dtype, **options):
    with torch.device("meta"):
        layer = nw.BatchNorm2d(5, dtype=dtype, **options)
    assert {t.dtype for t in statistics(layer).values() if t is not None} <= {F32}
    layer.to_empty(device="cpu").reset_parameters()
    return layer


def lazy(dtype, **options):
    layer = nw.LazyBatchNorm2d(dtype=dtype, **options)
    layer(normal(*SHAPE).to(dtype))
    layer.reset_parameters()
    return layer


def lazy_of_torchs(dtype, **options):
    layer = nw.convert(nn.LazyBatchNorm2d(dtype=dtype, **options))
    layer(normal(*SHAPE).to(dtype))
    layer.reset_parameters()
    return layer


MADE_HALF = {
    "with a type": lambda dtype, **options: nw.BatchNorm2d(5, dtype=dtype, **options),
    "lazily": lazy,
    "without memory at first": of_nothing,
    "from a state that is assigned": assigned,
    "from torch's": lambda dtype, **options: nw.convert(nn.BatchNorm2d(5, dtype=dtype, **options)),
    "lazily, from torch's": lazy_of_torchs,
}


OPTIONS = {
    "default": {},
    "not affine": {"affine": False},  # no weight tells the type
    "without bias": {"bias": False},
    "cumulative": {"momentum": None},
}
UNTRACKED = {
    "not tracking": {"track_running_stats": False},  # no number is float32, and
    "neither": {"affine": False, "track_running_stats": False},  # no number at all
}


def exact_but_for_one_rounding(layer, dtype, **options):
    """Two steps of a half layer agree with those of a float64 layer in the same state."""
    assert {p.dtype for p in layer.parameters()} <= {dtype}
    exact = nn.BatchNorm2d(5, dtype=F64, **options).train(layer.training)
    exact.load_state_dict(layer.state_dict())
    for seed in range(2):  # the second begins where the first has left the statistics
        x, dy = (normal(*SHAPE, seed=k + seed, mean=0.5).to(dtype) for k in (0, 5))
        got, want = step(layer, x, dy), step(exact, x.double(), dy.double())
        for name, tensor in vars(want).items():
            found = getattr(got, name)
            if tensor is None or name == "num_batches_tracked":
                assert found == tensor
                continue
            agree(name, found.double(), tensor, bound_of(name, tensor, found.dtype, UNIT[F32]))


@each("dtype", HALF)
@MODES
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("how", MADE_HALF)
def test_a_half_layer_is_exact_but_for_one_rounding(how, options, training, dtype):
    layer = MADE_HALF[how](dtype, **OPTIONS[options]).train(training)
    assert {t.dtype for t in statistics(layer).values()} == {F32}
    exact_but_for_one_rounding(layer, dtype, **OPTIONS[options])


@each("dtype", HALF)
@pytest.mark.parametrize("options", UNTRACKED)
def test_so_is_a_half_layer_that_tracks_nothing(options, dtype):
    exact_but_for_one_rounding(nw.BatchNorm2d(5, **UNTRACKED[options]).to(dtype), dtype, **UNTRACKED[options])


@each("dtype", HALF)
def test_so_is_a_half_layer_whose_statistics_must_not_move(dtype):
    layer = nw.BatchNorm2d(5, dtype=dtype)
    before = state(layer)
    with nw.no_stat_update(layer):
        y = layer(x := normal(*SHAPE, mean=30).to(dtype))  # half types know such a mean to 1/8 or 1/64
    want = F.batch_norm(x.double(), None, None, training=True)
    agree("y", y.double(), want, bound_of("y", want, dtype, UNIT[F32]))
    untouched(layer, before)


def test_a_half_layer_follows_statistics_that_half_types_lose():
    # steps of 1/100 of what is missing: near the end they are below half of a last place of bfloat16, and lost
    ours, theirs, exact = (m.BatchNorm2d(5, momentum=0.01) for m in (nw, nn, nn))
    for layer, dtype in ((ours, BF16), (theirs, BF16), (exact, F64)):
        layer.to(dtype)
        x = (normal(*SHAPE, mean=3).to(BF16)).to(dtype)
        for _ in range(300):
            layer(x)
    for name, want in statistics(exact).items():
        # each of 300 updates rounds values below 4 a few times, and the older errors decay
        agree(name, getattr(ours, name).double(), want, 4 * UNIT[F32] * 4 * 100)
        assert ((getattr(theirs, name).double() - want).abs() > 0.1).any()


# --- states ------------------------------------------------------------------


@each("dtype", HALF)
def test_states_of_half_layers_load_into_torchs_and_back(dtype):
    ours, theirs = a_layer().to(dtype), nn.BatchNorm2d(5, dtype=dtype)
    before = state(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for name, t in theirs.state_dict().items():
        same_bits(name, t, before[name].to(t.dtype))
    assert theirs.running_mean.dtype == dtype
    untouched(ours, before)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for name, t in ours.state_dict().items():  # float32, with no more digits than torch's had
        same_bits(name, t, theirs.state_dict()[name].to(before[name].dtype))
    again = nw.BatchNorm2d(5, dtype=dtype)
    again.load_state_dict(before, strict=True)
    untouched(again, before)


@each("dtype", HALF)
def test_a_state_that_is_assigned_stays_as_it_is(dtype):
    layer, given = nw.BatchNorm2d(5), nn.BatchNorm2d(5, dtype=dtype).state_dict()
    kept = {name: t.clone() for name, t in given.items()}
    layer.load_state_dict(given, assign=True)
    assert {t.dtype for t in statistics(layer).values()} == {F32}
    assert layer.weight.dtype == dtype
    for name, t in given.items():
        same_bits(name, t, kept[name])


# --- back to torch -------------------------------------------------------------


@each("dtype", HALF)
def test_revert_gives_statistics_the_weights_type_and_says_so(dtype):
    model = nn.Sequential(a_layer().to(dtype), nn.Sequential(a_layer().to(dtype)), a_layer())
    before = [state(layer) for layer in (model[0], model[1][0], model[2])]
    with pytest.warns(UserWarning, match=r"^normwright.torch.revert: .*weight's type: 0, 1.0\.$") as warned:
        nw.revert(model)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    for layer, kept, kind in zip((model[0], model[1][0], model[2]), before, (dtype, dtype, F32), strict=True):
        assert type(layer) is nn.BatchNorm2d
        for name, t in statistics(layer).items():
            same_bits(name, t, kept[name].to(kind))
        layer(normal(*SHAPE).to(kind))
    with pytest.warns(UserWarning, match="the model itself"):
        nw.revert(a_layer().to(dtype))


@each("dtype", HALF)
def test_a_half_model_of_torchs_is_converted_and_comes_back_bit_for_bit(dtype):
    model = nn.Sequential(nn.BatchNorm2d(5), nn.BatchNorm2d(5, affine=False)).to(dtype)
    model(normal(*SHAPE).to(dtype))
    before, buffers = state(model), dict(model.named_buffers())
    nw.convert(model)
    for name, t in model.named_buffers():
        assert t is buffers[name]
        assert t.dtype == (torch.int64 if "num_batches" in name else F32), name
        same_bits(name, t.to(before[name].dtype), before[name])
    with pytest.warns(UserWarning, match="weight's type: 0"):
        nw.revert(model)
    model[1].to(dtype)  # nothing tells its type: it stays float32, which torch takes beside half inputs
    untouched(model, before)


def test_revert_of_layers_that_are_not_half_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nw.revert(nn.Sequential(a_layer(), a_layer(F64), nw.BatchNorm2d(5, track_running_stats=False).half()))


# --- autocast ------------------------------------------------------------------


def a_network(norm):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(5, 4, 3),
        norm.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(140, 6),
        norm.BatchNorm1d(6),
    )


@each("dtype", HALF)
@pytest.mark.parametrize("how", ["made", "converted"])
def test_training_under_autocast_is_torchs_but_for_last_places(how, dtype):
    ours, theirs = a_network(nw) if how == "made" else nw.convert(a_network(nn)), a_network(nn)
    seen = []
    for model in (ours, theirs):
        model[1].register_forward_hook(lambda layer, args, y: seen.append((args[0].dtype, y.dtype)))
        for seed in range(2):
            with torch.autocast("cpu", dtype):
                loss = model(normal(*SHAPE, seed=seed)).float().square().mul(normal(6, 6)).sum()
            loss.backward()
    assert set(seen) == {(dtype, dtype)}  # a half input beside float32 parameters
    # A few values of y are rounded the other way, by a last place of the half type, and the other layers go on with
    # that. The gradient of a bias before batch norm is noise of the weight's: so in proportion to both.
    unit = torch.finfo(dtype).eps if NATIVE else 0
    for layer, like in zip(ours.modules(), theirs.modules(), strict=True):
        wanted = dict(like.named_parameters(recurse=False))
        largest = max((p.grad.abs().max().item() for p in wanted.values()), default=0)
        for name, p in layer.named_parameters(recurse=False):
            assert p.grad.dtype == F32
            agree(name, p.grad, wanted[name].grad, 4 * unit * largest)
    for name, want in state(theirs).items():
        got = ours.state_dict()[name]
        assert got.dtype == want.dtype
        agree(name, got.double(), want.double(), 4 * unit * want.abs().max().item())
