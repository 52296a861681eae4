"""The PyTorch door's values: beside torch's own layers, beside the reference, in every layout a user may have."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import close
import normwright.torch as nw
from beside_torch import (
    LAST,
    LAYOUTS,
    UNIT,
    agree,
    gradients_for,
    last_place,
    layouts,
    normal,
    parameters,
    same_bits,
    same_step,
    step,
    twins,
)
from normwright.kernels import NATIVE, best

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
NEEDS_KERNELS = pytest.mark.skipif(not NATIVE, reason="this package was built without native kernels")
OPTIONS = {
    "default": {},
    "not affine": {"affine": False},
    "without bias": {"bias": False},
    "not tracking": {"track_running_stats": False},
    "neither": {"affine": False, "track_running_stats": False},
    "momentum 0": {"momentum": 0.0},  # both ends, and
    "momentum 1": {"momentum": 1.0},
    "cumulative": {"momentum": None},
    "large eps": {"eps": 0.5},
}
EPS = 1e-5


def numbers(tensor):
    return None if tensor is None else tensor.detach().numpy()


# --- beside torch -----------------------------------------------


@DTYPES
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", ["(N, C)", "(N, C, L)", "contiguous", "channels-last", "channels-last 3d"])
def test_layers_do_what_torchs_do(layout, training, options, dtype):
    x = layouts(dtype)[layout]
    ours, theirs = (layer.train(training) for layer in twins(x, **OPTIONS[options]))
    for batch in range(3):  # the running statistics of one batch are where the next begins
        x, dy = x + batch, normal(*x.shape, dtype=dtype, seed=batch, mean=0.5)
        same_step(step(ours, x, dy), step(theirs, x, dy))


@DTYPES
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_torchs_values(layout, training, dtype):
    x = layouts(dtype)[layout]
    ours, theirs = (layer.train(training) for layer in twins(x))
    before = x.clone()
    # Where x is one value repeated the variance is 0 or small, and rstd up to 1/sqrt(eps) = 300
    scale = 300 if "expanded" in layout else 1
    for dy in gradients_for(x).values():
        kept = dy.clone()
        same_step(step(ours, x, dy), step(theirs, x, dy), scale)
        same_bits("dy", dy, kept)
    same_bits("x", x, before)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_lie_in_memory_as_torchs_do(layout, training):
    x = layouts(torch.float32)[layout]
    ours, theirs = (layer.train(training) for layer in twins(x))
    for name, dy in gradients_for(x).items():
        got, want = step(ours, x, dy), step(theirs, x, dy)
        for tensor in ("y", "dx", "dweight", "dbias"):
            assert getattr(got, tensor).stride() == getattr(want, tensor).stride(), (tensor, name)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_function_is_torchs_function(options):
    x = normal(6, 5, 7)
    layer, _ = twins(x, **OPTIONS[options])
    for training in (True, False):
        running = [None if t is None else t.clone() for t in (layer.running_mean, layer.running_var)]
        theirs = [None if t is None else t.clone() for t in running]
        if not training and running[0] is None:
            continue
        arguments = (layer.weight, layer.bias, training, layer.momentum or 0.25, layer.eps)
        y = nw.batch_norm(x, *running, *arguments)
        want = F.batch_norm(x, *theirs, *arguments)
        agree("y", y, want, 16 * UNIT[x.dtype] * 16)  # as in same_step
        for name, got, moved in zip(("running_mean", "running_var"), running, theirs, strict=True):
            if moved is not None:
                agree(name, got, moved, 16 * UNIT[x.dtype] * 16)


# --- beside the reference ----------------------------------------


@NEEDS_KERNELS
@DTYPES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_keeps_the_librarys_line(layout, dtype):
    x = layouts(dtype)[layout] + 1000  # torch itself would be off by hundreds of units
    layer, _ = twins(x)
    dy = gradients_for(x)["contiguous"]
    got = step(layer, x, dy)
    gamma, beta = numbers(layer.weight), numbers(layer.bias)
    close.forward_train(numbers(got.y), numbers(x), gamma, beta, EPS, 1)
    gradients = (numbers(got.dx), numbers(got.dweight), numbers(got.dbias))
    close.backward_train(gradients, numbers(dy), numbers(x), gamma, EPS, 1)


@NEEDS_KERNELS
@DTYPES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_evaluation_keeps_the_librarys_line(layout, dtype):
    x = layouts(dtype)[layout] + 1000
    layer, _ = twins(x)
    layer.eval().running_mean.add_(1000)
    dy = gradients_for(x)["contiguous"]
    got = step(layer, x, dy)
    fixed = numbers(layer.running_mean), numbers(layer.running_var), EPS, 1
    close.forward_fixed(numbers(got.y), numbers(x), numbers(layer.weight), numbers(layer.bias), *fixed)
    gradients = (numbers(got.dx), numbers(got.dweight), numbers(got.dbias))
    close.backward_fixed(gradients, numbers(dy), numbers(x), numbers(layer.weight), *fixed)


@NEEDS_KERNELS
@DTYPES
def test_float32_and_float64_take_the_native_kernels(dtype):
    # torch's own batch norm has other bits on such an input
    x, dy = normal(6, 5, 7, 9, dtype=dtype, mean=100), normal(6, 5, 7, 9, dtype=dtype, seed=1)
    layer, theirs = twins(x)
    got = step(layer, x, dy)
    gamma, beta = numbers(layer.weight), numbers(layer.bias)
    y, saved = best.forward_train(numbers(x), gamma, beta, EPS, 1)
    dx, dgamma, dbeta, _ = best.backward_train(numbers(dy), numbers(x), gamma, beta, saved, 1)
    close.same_bits("y", numbers(got.y), y)
    close.same_bits("dx", numbers(got.dx), dx)
    close.same_bits("dweight", numbers(got.dweight), dgamma.astype(gamma.dtype))
    close.same_bits("dbias", numbers(got.dbias), dbeta.astype(gamma.dtype))
    assert not torch.equal(step(theirs, x, dy).y, got.y)


@NEEDS_KERNELS
def test_running_statistics_are_rounded_once():
    x = normal(6, 5, 7, mean=1000)
    layer, _ = twins(x)
    mean, var = (t.double().numpy() for t in (layer.running_mean, layer.running_var))
    layer(x)
    rows = x.double().numpy()
    want_mean = 0.9 * mean + 0.1 * rows.mean(axis=(0, 2))
    want_var = 0.9 * var + 0.1 * rows.var(axis=(0, 2), ddof=1)
    # one rounding to float32, and a float32 variance's 8 units (weighed 0.1) before it
    close.within("running_mean", layer.running_mean.numpy(), want_mean, 1.01 * 2.0**-24 * np.abs(want_mean))
    close.within("running_var", layer.running_var.numpy(), want_var, 2 * 2.0**-24 * want_var)


# --- half types ----------------------------------------------------


HALF_TYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


@HALF_TYPES
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_half_input_beside_float32_parameters_is_off_from_torchs_by_a_last_place(dtype, training):
    x = normal(6, 5, 7, 9)
    ours, theirs = (layer.train(training) for layer in twins(x))
    x, dy = x.to(dtype), normal(6, 5, 7, 9, seed=1).to(dtype)
    got, want = step(ours, x, dy), step(theirs, x, dy)
    for name, tensor in vars(want).items():
        found = getattr(got, name)
        assert found.dtype == tensor.dtype, name
        if name == "num_batches_tracked" or not NATIVE:
            same_bits(name, found, tensor)
            continue
        # float32 errs as in same_step; then each of the two rounds by half of the half type's last place
        noise = 16 * UNIT[torch.float32] * (1000 if name in ("dweight", "dbias") else 16)
        rounding = last_place(dtype, tensor).numpy() if found.dtype == dtype else 0
        agree(name, found.double(), tensor.double(), noise + rounding)


@HALF_TYPES
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_half_layer_computes_in_float32_and_rounds_once(dtype, training):
    x = normal(6, 5, 7, 9)
    layer = twins(x)[0].train(training).to(dtype)
    exact = nn.BatchNorm2d(5).double().train(training)
    exact.load_state_dict(layer.state_dict())
    x, dy = x.to(dtype), normal(6, 5, 7, 9, seed=1).to(dtype)
    got, want = step(layer, x, dy), step(exact, x.double(), dy.double())
    for name, tensor in vars(want).items():
        found = getattr(got, name)
        if name == "num_batches_tracked":
            assert found.item() == tensor.item()
            continue
        assert found.dtype == (torch.float32 if name.startswith("running") else dtype), name
        # float32 errs as in same_step; then the half type rounds, by half of the last place that it has there
        noise = 16 * UNIT[torch.float32] * (1000 if name in ("dweight", "dbias") else 16)
        rounding = 0 if found.dtype == torch.float32 else last_place(dtype, tensor).numpy() / 2
        agree(name, found.double(), tensor, noise + rounding)


# --- what goes to torch whole --------------------------------------


def test_meta_tensors_and_subclasses_are_torchs():
    class Labelled(torch.Tensor):
        pass

    layer, theirs = twins(normal(6, 5, 7))
    y = layer(normal(6, 5, 7).as_subclass(Labelled))
    assert type(y) is Labelled
    same_bits("y", y.as_subclass(torch.Tensor), theirs(normal(6, 5, 7)))
    y = layer.to("meta")(torch.empty(6, 5, 7, device="meta"))
    assert (y.device.type, y.shape) == ("meta", (6, 5, 7))


# --- sizes at the edge ------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 4, 4), (3, 5, 0), (3, 5, 4, 0)])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_batch_of_none_is_torchs(shape, training):
    x = torch.zeros(shape)
    ours, theirs = (layer.train(training) for layer in twins(x))
    before = ours.running_mean.clone(), ours.running_var.clone()
    got, want = step(ours, x, x), step(theirs, x, x)
    assert got.y.shape == got.dx.shape == shape
    for name, tensor in vars(want).items():
        same_bits(name, getattr(got, name), tensor)
    assert (got.dweight.tolist(), got.dbias.tolist()) == ([0.0] * 5, [0.0] * 5)
    same_bits("running_mean", ours.running_mean, before[0])
    same_bits("running_var", ours.running_var, before[1])


@DTYPES
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=["nchw", "channels-last"])
def test_a_sample_alone_is_itself_within_a_batch(memory_format, dtype):
    x = normal(7, 19, 5, 5, dtype=dtype).contiguous(memory_format=memory_format)
    layer = twins(x)[0].eval()
    whole = layer(x)
    for k in range(len(x)):
        same_bits(f"sample {k}", layer(x[k : k + 1]), whole[k : k + 1])


def test_one_sample_in_evaluation_is_as_torch_has_it():
    ours, theirs = (layer.eval() for layer in twins(normal(33, 5)))
    agree("y", ours(normal(1, 5)), theirs(normal(1, 5)), 16 * UNIT[torch.float32] * 16)


def test_layers_are_torchs_classes():
    for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"):
        ours, theirs = getattr(nw, name)(4), getattr(nn, name)(4)
        assert isinstance(ours, type(theirs))
        assert isinstance(ours, nn.modules.batchnorm._BatchNorm)
        assert (repr(ours), list(parameters(ours))) == (repr(theirs), list(parameters(theirs)))
