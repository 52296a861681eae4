"""Gradients of gradients through a batch that processes share; and gradients of a part of what there is."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.autograd import forward_ad, grad

import normwright.torch as nw
from sync_cases import F64, KERNELS, OPERATIONS, WAYS, Case, overheard, same, watched

PARTS = [(3, 4), (0, 5), (5, 0), (2, 0, 4), (1, 2, 1, 3)]
# Without a second derivative, and with one.
ACTIVATIONS = [None, "relu", "silu"]


def leaves(case, rank, sync):
    """A layer, and what goes into it, of which gradients are wanted."""
    x, dy, residual = case.whole if rank is None else case.part(rank)
    tensors = {"x": x, "dy": dy} | ({} if residual is None else {"residual": residual})
    tensors = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    return case.layer(sync), tensors


def penalized(case, rank, sync, way=KERNELS):
    """As WGAN-GP has it: the gradient of the layer's loss and of the squares of its gradient to x.

    The penalty is the sum over all values, so that the sum over the ranks is that of one process.
    """
    layer, tensors = leaves(case, rank, sync)
    with watched(way == OPERATIONS):
        y = layer(tensors["x"], tensors.get("residual"))
    with watched(way != KERNELS):
        (dx,) = grad(y, tensors["x"], tensors["dy"], create_graph=True)
        loss = (dx**2).sum() + (y * tensors["dy"]).sum() * 0.5
        loss.backward()
    found = {"y": y, "dx": dx} | {name: t.grad for name, t in tensors.items()}
    return found, {name: p.grad for name, p in layer.named_parameters()}


def penalties(rank, parts):
    for activation in ACTIVATIONS:
        for ways in ((KERNELS,) * 4, (KERNELS, OPERATIONS) * 2, (OPERATIONS,) * 4):
            case = Case(parts, "NCHW", F64, 3, 0.0, activation, activation is not None)
            found, parameters = penalized(case, rank, "world", ways[rank])
            wanted, one = penalized(case, None, None)
            for name, want in wanted.items():
                # second gradients are of the order of 100, sums of some ten terms: 1e-11 is hundreds of roundings
                same(f"{name} of {case}, {ways}", found[name], case.share(want, rank), 1e-11)
            for name, want in one.items():
                total = parameters[name].clone()
                dist.all_reduce(total)
                same(f"d{name} of {case}, {ways}", total, want, 1e-10)


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_a_gradient_penalty_is_that_of_one_process(parts, processes):
    processes.run(penalties, parts, size=len(parts))


def twice(rank):
    """All gradients of first order, differentiated once more to everything that they depend on."""
    case = Case((3, 2), "NCHW", F64, 2)
    results = []
    for sync, of in (("world", rank), (None, None)):
        layer, tensors = leaves(case, of, sync)
        inputs = [tensors["x"], layer.weight, layer.bias]
        first = grad(layer(tensors["x"]), inputs, tensors["dy"], create_graph=True)
        rng = torch.Generator().manual_seed(7)
        to_dx = case.whole[1].new_empty(case.whole[1].shape).normal_(generator=rng)
        to_dx = to_dx if of is None else case.share(to_dx, rank)
        to_numbers = [torch.tensor([0.5, -1.5], dtype=F64), torch.tensor([2.0, 0.25], dtype=F64)]
        second = grad(first, [tensors["x"], tensors["dy"], layer.weight], [to_dx, *to_numbers])
        results.append((*first, *second))
    got, want = results
    for k in (1, 2, 5):  # of numbers: each rank has its share
        dist.all_reduce(got[k])
        same(str(k), got[k], want[k], 1e-11)
    for k in (0, 3, 4):
        same(str(k), got[k], case.share(want[k], rank), 1e-11)


def test_all_first_gradients_can_be_differentiated(processes):
    processes.run(twice)


def to_x_alone(rank):
    for way in WAYS:
        case = Case((3, 0, 2), "channels-last", F64, activation="relu", has_residual=True)
        layer, tensors = leaves(case, rank, "world")
        one, whole = leaves(case, None, None)
        with watched(way == OPERATIONS):
            y = layer(tensors["x"], tensors["residual"])
        with overheard() as said, watched(way != KERNELS):
            (dx,) = grad(y, tensors["x"], tensors["dy"])
        (want,) = grad(one(whole["x"], whole["residual"]), whole["x"], whole["dy"])
        same("dx", dx, case.share(want, rank))
        assert len(said.sums) == 1
        assert [p.grad for p in layer.parameters()] == [None, None]


def test_the_gradient_to_x_alone_is_that_of_one_process(processes):
    processes.run(to_x_alone, size=3)


def to_the_weight_alone(rank):
    """The first layer of a network: whose input is data. The others need not know, and are not asked less often."""
    for way in WAYS:
        case = Case((3, 2), "NCHW", F64)
        layer, one = case.layer("world"), case.layer(None)
        x, dy, _ = case.part(rank)
        with watched(way == OPERATIONS):
            y = layer(x)
        with overheard() as said, watched(way != KERNELS):
            got = grad(y, layer.weight, dy)[0]
        assert len(said.sums) == 1
        dist.all_reduce(got)
        same("dweight", got, grad(one(case.whole[0]), one.weight, case.whole[1])[0])


def test_the_gradient_to_the_weight_alone_is_that_of_one_process(processes):
    processes.run(to_the_weight_alone)


def kept_graph(rank):
    case = Case((3, 2), "NCHW", F64)
    layer, tensors = leaves(case, rank, "world")
    y = layer(tensors["x"])
    first, second = (grad(y, tensors["x"], tensors["dy"], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    moved = layer.num_batches_tracked.item()
    words = r"no function transform and no forward-mode AD around a layer with sync, got one"
    with pytest.raises(nw.TransformError, match=words):
        torch.func.grad(lambda x: layer(x).sum())(tensors["x"].detach())
    with forward_ad.dual_level(), pytest.raises(nw.TransformError, match=words):
        layer(tensors["x"].detach())
    with torch.inference_mode():
        inside = tensors["x"].detach().clone()
    with pytest.raises(nw.ShapeError, match=r"no inference tensor where a gradient is wanted, got one"):
        layer(inside)
    assert layer.num_batches_tracked == moved  # all before the others were told


def batched(rank):
    """vmap runs several backward passes in one, and no message carries several."""
    case = Case((3, 2), "NCHW", F64)
    for way in WAYS:
        layer, tensors = leaves(case, rank, "world")
        with watched(way == OPERATIONS):
            y = layer(tensors["x"])
        dys = torch.stack([tensors["dy"].detach()] * 2)
        words = r"no vmap around the backward pass of a layer with sync, got one"
        with pytest.raises(nw.TransformError, match=words):
            grad(y, tensors["x"], dys, is_grads_batched=True, retain_graph=True)
        backward = partial(grad, y, tensors["x"], retain_graph=True)
        with pytest.raises(nw.TransformError, match=words):
            torch.func.vmap(backward)(dys)


def test_several_backward_passes_in_one_are_refused(processes):
    processes.run(batched)


def test_a_graph_that_is_kept_gives_the_same_again_and_a_transform_is_refused(processes):
    processes.run(kept_graph)
