"""What once went wrong, or could: memory that is not what it seems, hooks, threads, modes, users' own classes."""

import copy
import pickle
import threading
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import normwright.torch as nw
from beside_torch import UNIT, agree, normal, same_bits, state, untouched

BOUND = 16 * UNIT[torch.float32] * 16  # as in beside_torch.same_step
NAN = torch.full((4, 3), torch.nan)


def negated(values):
    """A tensor whose memory holds the negative of what it says."""
    t = torch._neg_view(-torch.tensor(values))
    assert t.is_neg()
    return t


# --- memory -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_negated_view_has_the_sign_it_says(name, training):
    x = normal(6, 3)
    plain = {"weight": 2.0, "bias": 0.5, "running_mean": 0.25, "running_var": 1.5}
    given = {key: torch.full((3,), value) for key, value in plain.items()}
    want = F.batch_norm(x, **copy.deepcopy(given), training=training)
    given[name] = negated([plain[name]] * 3)
    agree("y", nw.batch_norm(x, **given, training=training), want, BOUND)


def test_an_x_that_grew_under_the_graph_is_no_read_beyond_its_gradient():
    x = normal(4, 3).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: torch.cat([t, t, t])):
        y = nw.batch_norm(x, training=True)
        with pytest.raises(RuntimeError):
            y.backward(normal(4, 3))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_tensors_that_come_back_in_another_type_still_give_gradients(training):
    results = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: t.double(), lambda t: t)
    for around in (nullcontext(), hooks):
        x, weight = normal(6, 3).requires_grad_(), normal(3).requires_grad_()
        with around:
            y = nw.batch_norm(x, torch.zeros(3), torch.ones(3), weight, training=training)
        y.backward(normal(6, 3, seed=1))
        results.append((x.grad, weight.grad))
    for got, want in zip(results[1], results[0], strict=True):
        agree("gradient", got, want, BOUND)


# --- modes ---------------------------------------------------------------------


def test_a_default_device_does_not_cost_digits():
    x, dy = normal(32, 3, 4, 4, mean=1e4), normal(32, 3, 4, 4, seed=1)
    results = []
    for around in (nullcontext(), torch.device("cpu"), torch.device("meta")):
        layer, z = nw.BatchNorm2d(3), x.clone().requires_grad_()
        with around:
            y = layer(z)
            y.backward(dy)
        results.append((y.detach(), z.grad, layer.weight.grad, layer.running_mean))
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            same_bits("result", got, want)


def test_an_x_of_inference_mode_does_not_cost_digits_where_no_gradient_is_wanted():
    x = normal(64, 3, mean=1e4)
    with torch.inference_mode():
        frozen = x.clone()
    same_bits("y", nw.batch_norm(frozen, training=True), nw.batch_norm(x, training=True))


def test_layers_live_under_fake_tensors():
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer = nw.BatchNorm1d(3)
        assert layer(torch.empty(4, 3)).shape == (4, 3)
        assert list(layer.eval().state_dict()) == list(nn.BatchNorm1d(3).state_dict())
    layer = nw.BatchNorm1d(3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer.eval()


def test_training_that_is_neither_true_nor_false_is_named():
    with pytest.raises(
        TypeError, match=r"^normwright\.torch\.batch_norm: expected training to be True or False, got 1"
    ):
        nw.batch_norm(normal(4, 3), training=1)


def test_a_counter_stays_where_a_transform_refuses():
    layer = nw.convert(nn.BatchNorm1d(3), strict_torch=True)
    before = state(layer)
    with pytest.raises(nw.TransformError):
        torch.func.vmap(layer)(normal(2, 4, 3))
    untouched(layer, before)


# --- threads ----------------------------------------------------------------------


def test_a_scope_that_another_thread_leaves_is_left():
    layer = nw.BatchNorm1d(3)

    def passes():
        with nw.no_stat_update(layer):
            yield

    held = passes()
    thread = threading.Thread(target=lambda: next(held))
    thread.start()
    thread.join()
    held.close()  # here
    for k in (1, 2):
        layer(normal(4, 3))
        assert layer.num_batches_tracked.item() == k


class Refusing(nn.BatchNorm1d):
    """A class that is not derived from like any other."""

    def __init_subclass__(cls, *, tag):
        pass


def test_a_scope_that_cannot_be_entered_leaves_no_trace():
    model = nn.Sequential(nn.BatchNorm1d(3), Refusing(3))
    with pytest.raises(TypeError), nw.no_stat_update(model):
        pass
    assert [type(m) for m in model] == [nn.BatchNorm1d, Refusing]
    model(normal(4, 3))
    assert model[0].num_batches_tracked.item() == 1


class Twice(nn.Module):
    def forward(self, w):
        return 2 * w


def test_copies_of_a_parametrized_layer_are_quiet_each_for_itself():
    layer = nn.BatchNorm1d(3)
    nn.utils.parametrize.register_parametrization(layer, "weight", Twice())
    other = copy.deepcopy(layer)
    with nw.no_stat_update(layer):
        with nw.no_stat_update(other):
            pass
        layer(normal(4, 3))
        other(normal(4, 3))
    layer(normal(4, 3))
    assert (layer.num_batches_tracked.item(), other.num_batches_tracked.item()) == (1, 1)


# --- guards that follow ------------------------------------------------------------


def test_the_guard_of_a_layer_from_the_meta_device_counts():
    layer = nw.BatchNorm1d(3, device="meta")
    layer.load_state_dict(nn.BatchNorm1d(3).state_dict(), assign=True)
    with pytest.warns(nw.SkippedUpdateWarning):
        layer(NAN)
    assert nw.skipped(layer) == {"": 1}


def test_every_layer_warns_though_its_words_are_anothers():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")  # which shows a line's words once
        for _ in range(3):
            nw.BatchNorm1d(3)(NAN)
    assert [w.category for w in told] == [nw.SkippedUpdateWarning] * 3
    assert {w.filename for w in told} == {__file__}


# --- users' own classes ---------------------------------------------------------------


class Pickled(nn.BatchNorm1d):
    """A subclass with its own idea of pickling."""

    def __reduce__(self):
        return Pickled, (self.num_features,)


class Sized(nn.LazyBatchNorm1d):
    cls_to_become = nn.BatchNorm1d


class Elsewhere(nn.BatchNorm1d):
    """A subclass that calls something of its own as we call an option."""

    def __init__(self, channels):
        super().__init__(channels)
        self.channel_dim = 3


@pytest.mark.parametrize(
    "make", [lambda: Pickled(3), Sized, lambda: Elsewhere(3)], ids=["pickled", "lazy", "named"]
)
def test_a_subclass_that_conversion_would_break_is_named_and_left(make):
    layer = make()
    kind = type(layer)
    with pytest.warns(UserWarning, match=kind.__qualname__):
        nw.convert(layer)
    assert type(layer) is kind
    assert layer(normal(4, 3)).shape == (4, 3)
    assert pickle.loads(pickle.dumps(layer))(normal(4, 3)).shape == (4, 3)


def test_half_statistics_without_a_weight_come_back_half():
    layer = nn.BatchNorm1d(3, affine=False).half()
    buffers = layer.running_mean, layer.running_var
    nw.convert(layer)
    assert layer.running_mean.dtype is torch.float32
    with pytest.warns(UserWarning, match="cast float32 statistics"):
        nw.revert(layer)
    assert layer.running_mean is buffers[0]
    assert layer.running_var is buffers[1]
    assert layer.running_mean.dtype is torch.float16
