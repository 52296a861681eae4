"""The PyTorch door's gradients of gradients: by differences on every axis, in every type; guarded by versions."""

import pytest
import torch
from torch import nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn import functional as F

import normwright.torch as nw
from beside_torch import LAST, LAST_3D, UNIT, agree, normal, raised_by, same_bits, state, twins, untouched
from normwright.kernels import NATIVE

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
NEEDS_KERNELS = pytest.mark.skipif(
    not NATIVE,
    reason="built without native kernels: torch's own are less exact, and wrong in the third order",
)
AFFINE = {"affine": ("weight", "bias"), "without bias": ("weight",), "not affine": ()}
OPTIONS = pytest.mark.parametrize("affine", AFFINE.values(), ids=list(AFFINE))
# Small, for differences take a step per value; a channel has 4 values or more, in every rank, on every axis
SHAPES = {2: (4, 5), 3: (3, 2, 4), 4: (2, 3, 2, 2), 5: (2, 2, 1, 3, 2), 6: (2, 1, 2, 2, 1, 3)}
AXES = [(rank, axis) for rank in SHAPES for axis in range(rank)]
EVERY_AXIS = pytest.mark.parametrize(("rank", "axis"), AXES, ids=lambda n: str(n))


def leaves_of(x, axis, names, dtype=F64):
    """x, dy and the parameters that are wanted, each a leaf; x and dy lie as x does."""
    c = torch.arange(x.shape[axis], dtype=dtype)
    dy = torch.empty_like(x).copy_(normal(*x.shape, dtype=F64, seed=1, mean=0.5))
    known = {"x": x.clone(), "dy": dy, "weight": 1.5 - 0.75 * c, "bias": c / 4 - 0.5}
    return {name: t.requires_grad_() for name, t in known.items() if name in ("x", "dy", *names)}


def with_fresh_statistics(function, leaves, training, **options):
    """y of one call, whose running statistics begin as they always do."""
    channels = leaves["x"].shape[options.get("channel_dim", 1)]
    c = torch.arange(channels, dtype=torch.promote_types(leaves["x"].dtype, F32))
    named = {name: t for name, t in leaves.items() if name in ("weight", "bias")}
    return function(leaves["x"], c / 2 + 0.25, c + 0.5, **named, training=training, **options)


def first(leaves, training, create_graph=True, function=nw.batch_norm, **options):
    """The gradients of a call to x and the parameters, by name."""
    y = with_fresh_statistics(function, leaves, training, **options)
    wanted = {name: t for name, t in leaves.items() if name != "dy"}
    found = grad(y, list(wanted.values()), leaves["dy"], create_graph=create_graph)
    return dict(zip(wanted, found, strict=True))


# --- by differences ------------------------------------------------------------


@MODES
@OPTIONS
@EVERY_AXIS
def test_gradients_of_gradients_are_right_on_every_axis(rank, axis, affine, training):
    leaves = leaves_of(normal(*SHAPES[rank], dtype=F64), axis, affine)

    def call(x, dy, *parameters):
        named = {"x": x, **dict(zip(affine, parameters, strict=True))}
        return with_fresh_statistics(nw.batch_norm, named, training, channel_dim=axis)

    inputs = list(leaves.values())
    # in random directions: a sum over all pairs of values, which the next test looks at one by one
    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


WHOLE = {  # x: the usual layouts, for which the kernels have code of their own; sizes of a few values
    "rows": (lambda: normal(5, 2, dtype=F64), 1),
    "channels first": (lambda: normal(2, 3, 2, dtype=F64), 1),
    "channels last": (lambda: normal(3, 2, 2, dtype=F64), -1),
    "channels last in memory": (lambda: normal(2, 2, 2, 2, dtype=F64).contiguous(memory_format=LAST), 1),
    "channels last in memory, 3d": (
        lambda: normal(2, 2, 1, 2, 2, dtype=F64).contiguous(memory_format=LAST_3D),
        1,
    ),
    "no channels outside": (lambda: normal(2, 5, dtype=F64), 0),
    "a slice": (lambda: normal(3, 5, 3, dtype=F64)[:, ::2, 1:], 1),
    "an expanded batch": (lambda: normal(1, 2, 4, dtype=F64).expand(2, 2, 4), 1),
}


@MODES
@OPTIONS
@pytest.mark.parametrize("layout", WHOLE)
def test_every_second_derivative_is_right(layout, affine, training):
    make, axis = WHOLE[layout]
    leaves = leaves_of(make(), axis, affine)

    def call(x, dy, *parameters):
        named = {"x": x, **dict(zip(affine, parameters, strict=True))}
        return with_fresh_statistics(nw.batch_norm, named, training, channel_dim=axis)

    assert gradgradcheck(call, list(leaves.values()))


@NEEDS_KERNELS
@MODES
@OPTIONS
# one of each code path
@pytest.mark.parametrize("layout", ["rows", "channels last", "channels last in memory"])
def test_third_derivatives_are_right(layout, affine, training):
    make, axis = WHOLE[layout]
    leaves = leaves_of(make(), axis, affine)

    def second(*values):
        named = dict(zip(leaves, values, strict=True))
        found = list(first(named, training, channel_dim=axis).values())
        directions = [normal(*g.shape, dtype=F64, seed=5 + k, mean=0.5) for k, g in enumerate(found)]
        again = grad(found, list(named.values()), directions, create_graph=True, allow_unused=True)
        return tuple(g for g in again if g is not None and g.requires_grad)

    values = list(leaves.values())
    # to x, dy and weight; where neither statistics nor weight depend on anything, they are constants
    expected = 2 + ("weight" in affine) if training or affine else 0
    assert len(second(*values)) == expected
    assert expected == 0 or gradcheck(second, values)


# --- in every type ---------------------------------------------------------------


def second(leaves, training, function=nw.batch_norm, create_graph=False, **options):
    """The gradients of a mixture of all gradients, by what they are for; None where there is none."""
    found = first(leaves, training, function=function, **options)
    found = list(found.values())
    given = [normal(*g.shape, dtype=F64, seed=7 + k, mean=0.2).to(g.dtype) for k, g in enumerate(found)]
    again = grad(found, list(leaves.values()), given, allow_unused=True, create_graph=create_graph)
    return dict(zip(leaves, again, strict=True))


def widened(leaves):
    return {name: t.detach().double().requires_grad_() for name, t in leaves.items()}


def close_to_float64(leaves, training, units, **options):
    """Second-order gradients are as in float64, up to units of x's type in proportion to the largest of each."""
    unit = torch.finfo(leaves["x"].dtype).eps / 2
    got = second(leaves, training, **options)
    for name, want in second(widened(leaves), training, F.batch_norm).items():
        if want is None or not want.any():  # torch has zeros where we have none
            assert got[name] is None or not got[name].any(), name
            continue
        assert got[name].dtype == leaves[name].dtype, name
        assert got[name].shape == leaves[name].shape, name
        agree(name, got[name].double(), want, units * unit * want.abs().max().item())


@NEEDS_KERNELS
@MODES
@OPTIONS
# other formulas
@pytest.mark.parametrize("create_graph", [False, True], ids=["the last", "with more to come"])
@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, LAST], ids=["contiguous", "channels-last"]
)
@pytest.mark.parametrize("mean", [1.0, 1e3])
def test_float32_is_as_good_as_its_terms(mean, memory_format, create_graph, affine, training):
    x = normal(6, 5, 7, 9, mean=mean).contiguous(memory_format=memory_format)
    if not training and mean > 1:
        x = x - mean + 1  # fixed statistics near 1 would make x_hat, and all with it, as large as the mean
    # some ten operations, and sums of 378 terms in trees: a few units; 16 for accidents
    close_to_float64(leaves_of(x, 1, affine, F32), training, 16, create_graph=create_graph)


@MODES
@OPTIONS
@pytest.mark.parametrize("parameters_in", ["x's type", "float32"])  # as a half module's, as under autocast
@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, LAST], ids=["contiguous", "channels-last"]
)
@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bfloat16", "float16"])
def test_half_types_are_off_by_a_few_of_their_units(dtype, memory_format, parameters_in, affine, training):
    x = normal(6, 5, 7, 9).to(dtype).contiguous(memory_format=memory_format)
    leaves = leaves_of(x, 1, affine, dtype if parameters_in == "x's type" else F32)
    # torch rounds to the half type a few times in between, some of it larger than the result: as above
    close_to_float64(leaves, training, 16)


@MODES
@OPTIONS
# the kernels take both
@pytest.mark.parametrize(("x_type", "parameters_type"), [(F32, F64), (F64, F32)], ids=str)
def test_the_kernels_mixtures_keep_the_narrower_types_units(x_type, parameters_type, affine, training):
    leaves = leaves_of(normal(6, 5, 7, 9, dtype=x_type), 1, affine, parameters_type)
    got = second(leaves, training)
    for name, want in second(widened(leaves), training, F.batch_norm).items():
        if want is None or not want.any():
            assert got[name] is None or not got[name].any(), name
            continue
        assert got[name].dtype == leaves[name].dtype, name
        agree(name, got[name].double(), want, 16 * UNIT[F32] * want.abs().max().item())  # as above


# --- what must not change before it was used ----------------------------------------


TYPES = pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=["float32", "float64", "bfloat16"])
MODIFIED = "modified by an inplace operation"


def a_step(dtype):
    """Leaves, and copies of them that may be written to."""
    leaves = leaves_of(normal(6, 5, 7, dtype=dtype), 1, AFFINE["affine"], dtype)
    return leaves, {name: t * 1 for name, t in leaves.items()}


@MODES
@TYPES
@pytest.mark.parametrize("what", ["x", "weight"])
def test_writing_to_what_is_saved_before_backward_is_an_error(what, dtype, training):
    results = []
    for write in (False, True):
        leaves, used = a_step(dtype)
        y = with_fresh_statistics(nw.batch_norm, used, training)
        if write:
            used[what].detach().mul_(2)
        # without kernels a half weight is copied to float32, and the copy used
        if write and (NATIVE or not (dtype is BF16 and what == "weight")):
            with pytest.raises(RuntimeError, match=MODIFIED):
                y.backward(used["dy"])
        else:
            results.append(grad(y, [leaves["x"], leaves["weight"]], used["dy"]))
    for got, want in zip(*results, strict=True) if len(results) == 2 else ():
        same_bits(f"gradient when {what} was written to", got, want)


@MODES
@TYPES
@pytest.mark.parametrize("what", ["x", "weight", "dy"])
def test_writing_to_what_is_saved_before_double_backward_is_an_error_or_changes_nothing(
    what, dtype, training
):
    results = []
    for write in (False, True):
        leaves, used = a_step(dtype)
        found = list(first(used, training).values())
        if write:
            used[what].detach().mul_(2)
        wanted, given = [leaves[name] for name in ("x", "dy", "weight")], [torch.ones_like(g) for g in found]
        error = raised_by(lambda: results.append(grad(found, wanted, given)))  # noqa: B023  # called at once
        if error is not None:
            assert write
            assert MODIFIED in str(error)
    # the kernels' gradient saves all three in training; else what is half may be a copy in float32 by then
    if (training and (NATIVE or dtype is not BF16)) or (what == "dy" and not (NATIVE and dtype is BF16)):
        assert len(results) == 1
    for results_of_one in zip(*results, strict=True):  # what was made of them may be all that is needed
        same_bits(f"gradient when {what} was written to", results_of_one[-1], results_of_one[0])


@MODES
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
def test_writing_to_y_or_bias_changes_no_gradient(dtype, training):
    results = []
    for write in (False, True):
        leaves, used = a_step(dtype)
        y = with_fresh_statistics(nw.batch_norm, used, training)
        if write:
            y.detach().mul_(2)
            used["bias"].detach().mul_(2)
        results.append(grad(y, list(leaves.values())[:1], used["dy"])[0])
    same_bits("dx", *results)


@NEEDS_KERNELS
@pytest.mark.parametrize("written", ["running_mean", "running_var"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])  # torch itself errs in silence
def test_writing_to_statistics_after_an_evaluation_is_an_error_or_changes_nothing(dtype, order, written):
    results = []
    for write in (False, True):
        layer = twins(normal(6, 5, 7, dtype=dtype))[0].eval()
        x = normal(6, 5, 7, dtype=dtype).requires_grad_()
        y = layer(x)
        if write and order == 1:
            getattr(layer, written).mul_(2)
        gradients = grad(y, [x, layer.weight], normal(6, 5, 7, dtype=dtype, seed=1), create_graph=order == 2)
        if order == 2:
            if write:
                getattr(layer, written).mul_(2)
            gradients = grad(gradients[1].sum(), [x])
        results.append(gradients)
    for k, (got, want) in enumerate(zip(*results, strict=True)):
        same_bits(f"gradient {k}", got.detach(), want.detach())


# --- versions -------------------------------------------------------------------------


def versions(layer):
    return {name: t._version for name, t in layer.named_buffers()}


@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad], ids=["grad", "no grad"])
@pytest.mark.parametrize("momentum", [0.1, None])  # None reads the counter too
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("axis", [1, -1])
def test_every_buffer_that_training_moves_has_a_new_version(axis, dtype, momentum, grad_mode):
    layer = nw.BatchNorm2d(5, momentum=momentum, channel_dim=axis, dtype=dtype)
    x = normal(6, 5, 7, 5).to(dtype)
    w = torch.ones(5, requires_grad=True)
    loss = sum((w * t).sum() for t in (layer.running_mean, layer.running_var))
    before = versions(layer)
    with grad_mode():
        layer(x)
    assert {name: v > before[name] for name, v in versions(layer).items()} == dict.fromkeys(before, True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # needs what the statistics were


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
def test_passes_that_move_nothing_leave_versions_alone(dtype):
    layer, x = nw.BatchNorm2d(5, dtype=dtype), normal(6, 5, 7, 9).to(dtype).requires_grad_()
    before, kept = versions(layer), state(layer)
    with nw.no_stat_update(layer):
        layer(x).sum().backward()
    layer.eval()(x).sum().backward()
    nw.freeze(layer.train())(x).sum().backward()
    nw.unfreeze(layer).track_running_stats = False
    layer(x).sum().backward()
    assert versions(layer) == before
    untouched(layer, kept)


@MODES
def test_a_penalty_on_gradients_trains_a_network_as_torchs(training):
    results = []
    for norm in (nw, nn):
        torch.manual_seed(0)
        convolutions = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 2, 2, bias=False)
        model = nn.Sequential(
            convolutions[0], norm.BatchNorm2d(4), nn.Tanh(), convolutions[1], norm.BatchNorm2d(2)
        )
        model.to(F64).train(training)
        x = normal(3, 3, 6, 6, dtype=F64).requires_grad_()
        (dx,) = grad(model(x).pow(3).sum(), [x], create_graph=True)
        ((dx.flatten(1).norm(dim=1) - 1) ** 2).sum().backward()  # the penalty of WGAN-GP
        results.append([p.grad for p in model.parameters()])
    for k, (got, want) in enumerate(zip(*results, strict=True)):
        if want is None or not want.any():
            assert got is None or not got.any()
            continue
        # two norms, each differentiated twice, and sums of terms of both signs, some 1000 times as large
        agree(f"gradient {k}", got, want, 1e6 * UNIT[F64] * want.abs().max().item())
