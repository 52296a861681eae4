"""Bad input to the PyTorch door: torch's kind of exception, in clear words, and nothing has moved."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normwright.torch as nw
from beside_torch import normal, raised_by, same_bits, state, twins, untouched

CALL = "normwright.torch.BatchNorm2d"
META = torch.device("meta")
X = (6, 5, 3, 4)
BAD_LAYER = {  # how the layer is made, x, and the beginning of the message after the call
    "rank 2": ({}, lambda: normal(6, 5), "expected x to be 4-D, got 2-D x of shape (6, 5)"),
    "rank 5": ({}, lambda: normal(6, 5, 2, 2, 2), "expected x to be 4-D, got 5-D x of shape (6, 5, 2, 2, 2)"),
    "other channels": (
        {},
        lambda: normal(6, 4, 3, 3),
        "expected running_mean of shape (4,), got (5,); x is (6, 4, 3, 3) with channels on axis 1.",
    ),
    "other channels, not tracked": (
        {"track_running_stats": False},
        lambda: normal(6, 4, 3, 3),
        "expected weight of shape (4,), got (5,); x is (6, 4, 3, 3) with channels on axis 1.",
    ),
    "integers": ({}, lambda: normal(*X).long(), "expected x of a floating point dtype, got torch.int64"),
    "complex": ({}, lambda: normal(*X).cfloat(), "expected x of a floating point dtype, got torch.complex64"),
    "bool": ({}, lambda: normal(*X) > 0, "expected x of a floating point dtype, got torch.bool"),
    "one value": (
        {},
        lambda: normal(1, 5, 1, 1),
        "expected more than one value per channel in training, got 1; x is (1, 5, 1, 1)",
    ),
    "eps 0": ({"eps": 0.0}, lambda: normal(*X), "expected eps > 0, got 0.0."),
    "eps below 0": ({"eps": -1e-5}, lambda: normal(*X), "expected eps > 0, got -1e-05."),
    "another device": ({}, lambda: normal(*X).to(META), "expected running_mean on meta, where x is, got cpu"),
}


@pytest.mark.parametrize("name", BAD_LAYER)
def test_bad_input_to_a_layer_is_torchs_error_in_clear_words_and_moves_nothing(name):
    options, make, words = BAD_LAYER[name]
    layer, theirs = (m.BatchNorm2d(5, **options) for m in (nw, nn))
    before = state(layer)
    torchs = raised_by(lambda: theirs(make()))
    with pytest.raises(type(torchs), match="^" + re.escape(f"{CALL}: {words}")):
        layer(make())
    untouched(layer, before)


BAD_CALL = {  # arguments of batch_norm beside x of shape (6, 5, 7)
    "mean without var": (
        {"running_mean": torch.zeros(5)},
        "expected running_mean and running_var, or neither",
    ),
    "var without mean": ({"running_var": torch.ones(5)}, "expected running_mean and running_var, or neither"),
    "mean without var, eval": (
        {"running_mean": torch.zeros(5), "training": False},
        "expected running_mean and running_var, or neither, got running_mean without running_var.",
    ),
    "neither in eval": (
        {"training": False},
        "expected running_mean and running_var in evaluation, got neither",
    ),
    "long mean": (
        {"running_mean": torch.zeros(6), "running_var": torch.ones(5)},
        "expected running_mean of shape (5,), got (6,); x is (6, 5, 7) with channels on axis 1.",
    ),
    "long var": (
        {"running_mean": torch.zeros(5), "running_var": torch.ones(6)},
        "expected running_var of shape (5,), got (6,)",
    ),
    "short weight": ({"weight": torch.ones(4)}, "expected weight of shape (5,), got (4,)"),
    "short bias": ({"bias": torch.ones(4)}, "expected bias of shape (5,), got (4,)"),
    "weight elsewhere": (
        {"weight": torch.ones(5, device=META)},
        "expected weight on cpu, where x is, got meta",
    ),
    "bias elsewhere": ({"bias": torch.ones(5, device=META)}, "expected bias on cpu, where x is, got meta"),
    "eps 0": ({"eps": 0.0}, "expected eps > 0, got 0.0."),
    "eps below 0 in eval": (
        {"eps": -1.0, "training": False, "running_mean": torch.zeros(5), "running_var": torch.ones(5)},
        "expected eps >= 0, got -1.0.",
    ),
    "no momentum": ({"momentum": None}, "expected momentum to be a number, got None"),
}


@pytest.mark.parametrize("name", BAD_CALL)
def test_bad_arguments_are_torchs_error_in_clear_words_and_move_nothing(name):
    arguments, words = BAD_CALL[name]
    whole = {"running_mean": None, "running_var": None, "training": True} | arguments
    kept = {k: t.clone() for k, t in arguments.items() if isinstance(t, torch.Tensor)}
    x = normal(6, 5, 7)
    torchs = raised_by(lambda: F.batch_norm(x, **whole))
    with pytest.raises(type(torchs), match="^" + re.escape(f"normwright.torch.batch_norm: {words}")):
        nw.batch_norm(x, **whole)
    for k, t in kept.items():
        if not t.is_meta:
            same_bits(k, arguments[k], t)


@pytest.mark.parametrize("shape", [(), (5,)])
def test_a_tensor_without_a_channel_axis_is_torchs_error(shape):
    torchs = raised_by(lambda: F.batch_norm(torch.zeros(shape), torch.zeros(5), torch.ones(5), training=True))
    with pytest.raises(type(torchs), match=r"^normwright\.torch\.batch_norm: expected x of rank 2 or more"):
        nw.batch_norm(torch.zeros(shape), torch.zeros(5), torch.ones(5), training=True)


def test_the_layers_name_themselves_and_the_ranks_they_take():
    for layer, words in {
        nw.BatchNorm1d(5): "BatchNorm1d: expected x to be 2-D or 3-D, got 4-D",
        nw.BatchNorm3d(5): "BatchNorm3d: expected x to be 5-D, got 4-D",
    }.items():
        with pytest.raises(ValueError, match="^" + re.escape("normwright.torch." + words)):
            layer(normal(2, 5, 3, 3))


def test_an_error_that_autograd_raises_moves_nothing():
    with torch.inference_mode():
        x = normal(6, 5, 7)
    layer, _ = twins(normal(6, 5, 7))
    before = state(layer)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        layer(x)
    after = state(layer)
    for name in ("running_mean", "running_var"):  # the counter moves, as torch's does
        same_bits(name, after[name], before[name])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_running_statistics_that_want_a_gradient_are_torchs_error(name, training):
    running = {"running_mean": torch.zeros(5), "running_var": torch.ones(5)}
    running[name].requires_grad_()
    torchs = raised_by(lambda: F.batch_norm(normal(6, 5), **running, training=training))
    with pytest.raises(type(torchs), match=re.escape(str(torchs))):
        nw.batch_norm(normal(6, 5), **running, training=training)


def test_an_array_of_numpy_is_refused_with_the_way_to_a_tensor():
    words = re.escape("expected x to be a torch.Tensor, got numpy.ndarray. Use torch.as_tensor(x).")
    for call in (nw.BatchNorm1d(3), lambda x: nw.batch_norm(x, training=True)):
        with pytest.raises(TypeError, match=words):
            call(torch.ones(4, 3).numpy())
