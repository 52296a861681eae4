"""The PyTorch door's gradients: checked by differences, to the second order, and with every guard autograd has."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import close
import normwright.torch as nw
from beside_torch import UNIT, agree, layouts, normal, raised_by, same_bits, step, twins

F64 = torch.float64
OPTIONS = {
    "default": {},
    "not affine": {"affine": False},
    "without bias": {"bias": False},
    "not tracking": {"track_running_stats": False},
}
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
# Where only gradients of x, weight and bias differ from torch's by their last digits:
BOUND = 64 * UNIT[F64] * 1000  # sums of some 400 terms of up to a few units, twice differentiated


def leaf(t):
    return t.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def layer_and_leaves(x, training=True, **options):
    ours, theirs = (layer.train(training) for layer in twins(x, **options))
    return ours, theirs, list(ours.parameters())


# --- by differences -----------------------------------------------


@MODES
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layout", ["(N, C)", "contiguous", "channels-last"])
def test_gradients_and_their_gradients_are_right(layout, options, training):
    x = leaf(layouts(F64)[layout][:4, :3].clone(memory_format=torch.preserve_format))
    x = x if x.dim() == 2 else leaf(x.detach()[:, :, :2, :2])
    layer, _, leaves = layer_and_leaves(x, training, **OPTIONS[options])
    assert gradcheck(lambda x, *_: layer(x), (x, *leaves))
    assert gradgradcheck(lambda x, *_: layer(x), (x, *leaves))


@MODES
@pytest.mark.parametrize("options", OPTIONS)
def test_a_gradient_that_will_be_differentiated_is_the_same_gradient(options, training):
    x, dy = leaf(normal(6, 5, 7, dtype=F64, mean=100)), leaf(normal(6, 5, 7, dtype=F64, seed=1))
    ours, theirs, leaves = layer_and_leaves(x, training, **OPTIONS[options])
    first = torch.autograd.grad(ours(x), [x, *leaves], dy)
    again = torch.autograd.grad(ours(x), [x, *leaves], dy, create_graph=True)
    torchs = torch.autograd.grad(theirs(x), [x, *theirs.parameters()], dy)
    for k, (got, want, their) in enumerate(zip(again, first, torchs, strict=True)):
        agree(f"gradient {k}", got, want, BOUND)
        agree(f"gradient {k} beside torch's", got, their, BOUND)
        assert got.requires_grad
        assert not want.requires_grad


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])  # |mean| / std, up to what is promised
def test_a_gradient_that_will_be_differentiated_keeps_the_librarys_line(mean):
    x, dy = leaf(normal(33, 5, 7, mean=mean)), normal(33, 5, 7, seed=1, mean=0.5)
    layer = nw.BatchNorm1d(5)
    gradients = torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], dy, create_graph=True)
    got = tuple(g.detach().numpy() for g in gradients)
    close.backward_train(got, dy.numpy(), x.detach().numpy(), None, layer.eps, 1)


@MODES
@pytest.mark.parametrize("options", OPTIONS)
def test_second_order_gradients_are_torchs(options, training):
    x, dy = normal(6, 5, 7, dtype=F64), normal(6, 5, 7, dtype=F64, seed=1)
    results = []
    for layer in layer_and_leaves(x, training, **OPTIONS[options])[:2]:
        z, dz, leaves = leaf(x), leaf(dy), list(layer.parameters())
        penalty = torch.autograd.grad(layer(z), [z, *leaves], dz, create_graph=True)
        sum(g.square().sum() for g in penalty).backward()
        results.append([z.grad, dz.grad, *(p.grad for p in leaves)])
    for k, (got, want) in enumerate(zip(*results, strict=True)):
        if want is None or got is None:  # the bias changes no gradient, nor x one of fixed statistics
            assert not any(g is not None and g.any() for g in (got, want))
        else:
            agree(f"gradient {k}", got, want, BOUND * 1000)  # squares of sums


@MODES
def test_many_gradients_at_once_are_each_by_itself(training):
    x = leaf(normal(6, 5, 7, dtype=F64))
    layer, _, leaves = layer_and_leaves(x, training)
    y, many = layer(x), normal(3, 6, 5, 7, dtype=F64, seed=2)
    got = torch.autograd.grad(y, [x, *leaves], many, is_grads_batched=True, retain_graph=True)
    for k, dy in enumerate(many):
        for g, want in zip(got, torch.autograd.grad(y, [x, *leaves], dy, retain_graph=True), strict=True):
            agree(f"gradient for dy {k}", g[k], want, BOUND)


# --- what is asked for, and no more ---------------------------------


@MODES
@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("bias",), ("x", "bias"), ("weight", "bias")])
def test_any_part_may_be_the_only_one_that_wants_a_gradient(wanted, training):
    x, dy = normal(6, 5, 7), normal(6, 5, 7, seed=1)
    layer, _, _ = layer_and_leaves(x, training)
    full = step(layer, x, dy)
    layer, _, _ = layer_and_leaves(x, training)
    z = x.clone().requires_grad_("x" in wanted)
    leaves = {"x": z, "weight": layer.weight, "bias": layer.bias}
    for name, p in leaves.items():
        p.requires_grad_(name in wanted)
    layer(z).backward(dy)
    for name, p in leaves.items():
        if name in wanted:
            same_bits(name, p.grad, getattr(full, f"d{name}"))
        else:
            assert p.grad is None, name


@MODES
def test_without_grad_mode_nothing_is_kept_and_the_same_is_computed(training):
    x = leaf(normal(6, 5, 7))
    results = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        layer, _, _ = layer_and_leaves(x, training)
        with mode():
            y = layer(x)
        assert (y.requires_grad, y.is_inference()) == (
            mode is torch.enable_grad,
            mode is torch.inference_mode,
        )
        results.append((y, layer.running_mean, layer.running_var, layer.num_batches_tracked))
    for other in results[1:]:
        for name, got, want in zip(("y", "mean", "var", "counter"), other, results[0], strict=True):
            same_bits(name, got.detach().clone(), want.detach())


def test_a_layer_made_in_inference_mode_works_there():
    with torch.inference_mode():
        layer = nw.BatchNorm1d(5)
        theirs = nn.BatchNorm1d(5)
        x = normal(33, 5)
        agree("y", layer(x).clone(), theirs(x).clone(), 16 * UNIT[torch.float32] * 16)
        agree("mean", layer.running_mean.clone(), theirs.running_mean.clone(), 16 * UNIT[torch.float32])
        assert layer.num_batches_tracked.item() == 1


# --- guards -----------------------------------------------------------


@MODES
@pytest.mark.parametrize("what", ["x", "weight"])
def test_changing_what_backward_needs_is_an_error(what, training):
    x = leaf(normal(6, 5, 7))
    layer, _, _ = layer_and_leaves(x, training)
    z = x * 1
    loss = layer(z).square().sum()
    with torch.no_grad():
        (z if what == "x" else layer.weight).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_changing_y_in_place_is_allowed():
    x, dy = normal(6, 5, 7), normal(6, 5, 7, seed=1)
    ours, theirs, _ = layer_and_leaves(x)
    results = []
    for layer in (ours, theirs):
        z = leaf(x)
        layer(z).relu_().backward(dy)
        results.append(z.grad)
    agree("dx", *results, 16 * UNIT[torch.float32] * 16)  # as in same_step


def test_another_training_batch_before_backward_changes_nothing():
    x, dy = normal(6, 5, 7), normal(6, 5, 7, seed=1)
    layer, _, _ = layer_and_leaves(x)
    want = step(layer, x, dy)
    layer.zero_grad()
    z = leaf(x)
    y = layer(z)
    layer(x + 5)
    y.backward(dy)
    for name, got in {"dx": z.grad, "dweight": layer.weight.grad, "dbias": layer.bias.grad}.items():
        same_bits(name, got, getattr(want, name))


def test_statistics_that_move_after_an_evaluation_give_no_silently_wrong_gradient():
    x, dy = normal(6, 5, 7), normal(6, 5, 7, seed=1)
    layer, _, _ = layer_and_leaves(x, training=False)
    want = step(layer, x, dy)
    z = leaf(x)
    y = layer(z)
    layer.train()(x + 5)
    error = raised_by(lambda: y.backward(dy))
    if error is None:
        same_bits("dx", z.grad, want.dx)
    else:  # torch itself goes on, with the wrong statistics
        assert "modified by an inplace operation" in str(error)


def test_a_graph_is_freed_after_its_backward():
    x = leaf(normal(6, 5, 7))
    layer, _, _ = layer_and_leaves(x)
    loss = layer(x).square().sum()
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    loss.backward()
    same_bits("dx", x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@MODES
def test_saved_tensors_may_be_packed_away(training):
    x, dy = normal(6, 5, 7), normal(6, 5, 7, seed=1)
    layer, _, _ = layer_and_leaves(x, training)
    want = step(layer, x, dy)
    layer, _, _ = layer_and_leaves(x, training)
    with torch.autograd.graph.save_on_cpu():
        got = step(layer, x, dy)
    for name, tensor in vars(want).items():
        same_bits(name, getattr(got, name), tensor)


def test_a_checkpointed_layer_gives_the_same_gradients():
    x, dy = normal(6, 5, 7), normal(6, 5, 7, seed=1)
    layer, _, _ = layer_and_leaves(x)
    want = step(layer, x, dy)
    layer, _, _ = layer_and_leaves(x)
    z = leaf(x)
    checkpoint(layer, z, use_reentrant=False).backward(dy)
    same_bits("dx", z.grad, want.dx)
    same_bits("dweight", layer.weight.grad, want.dweight)
