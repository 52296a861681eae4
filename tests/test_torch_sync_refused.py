"""What a layer with sync cannot take: an error of ours on every rank, before anybody has been told anything."""

import re

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import normwright.torch as nw
from beside_torch import normal, state, untouched
from sync_cases import F64, KERNELS, OPERATIONS, Case, beside_one, overheard, same, watched


def no_channels(rank):
    """As torch's layer, which raises an IndexError for it; whatever the batch, and whatever a lone value does."""
    for samples, how, way in (
        (4, {}, KERNELS),
        (4, {}, OPERATIONS),
        (rank, {}, KERNELS),
        (rank, {"on_degenerate": "running"}, KERNELS),
    ):
        layer = nw.BatchNorm1d(0, sync="world", **how)
        x = torch.empty(samples, 0, requires_grad=True)
        before = state(layer)
        words = rf"BatchNorm1d: expected a channel or more in training, got none; x is \({samples}, 0\)"
        with (
            overheard() as said,
            watched(way == OPERATIONS),
            pytest.raises(nw.ShapeError, match=words) as caught,
        ):
            layer(x)
        assert isinstance(caught.value, IndexError)
        assert said.moments == []
        untouched(layer, before)
    with pytest.raises(nw.ShapeError, match="batch_norm: expected a channel or more in training, got none"):
        nw.batch_norm(torch.empty(4, 0), training=True, sync="world")
    beside_one(rank, [Case((3, 2), "(N, C)", F64)])  # and those that follow get through


def test_no_channel_at_all_is_an_error_on_all_ranks(processes):
    processes.run(no_channels)


def spread(rank):
    """Each argument in turn is a DTensor; what it says to use instead is what works."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    x, residual = normal(6, 3, dtype=F64), normal(6, 3, dtype=F64, seed=1)
    numbers = normal(3, dtype=F64, seed=2), normal(3, dtype=F64, seed=3)
    own = [t.chunk(2)[rank] for t in (x, residual)]
    given = {"x": own[0], "weight": numbers[0], "bias": numbers[1], "residual": own[1]}
    joined = {"x": x, "weight": numbers[0], "bias": numbers[1], "residual": residual}
    for t in joined.values():
        t.requires_grad_()
    want = nw.batch_norm(**joined, training=True)
    towards = normal(6, 3, dtype=F64, seed=4)
    want.backward(towards)
    gradients = {name: t.grad.clone() for name, t in joined.items()}
    for name, placed in {
        "x": Shard(0),
        "weight": Replicate(),
        "bias": Replicate(),
        "residual": Replicate(),
    }.items():
        whole = DTensor.from_local(given[name].detach().clone(), mesh, [placed]).requires_grad_()
        beside = (
            {"residual": DTensor.from_local(own[1].detach(), mesh, [placed])} if name == "x" else {}
        )  # of x's shape
        is_number = name in ("weight", "bias")
        how = "to_local() where that is this process's samples."
        if is_number:
            how = "full_tensor(grad_placements=[Partial()] * 1): each process has a part of its gradient."
        words = f"expected {name} to be this process's own with sync, got a DTensor, which several hold"
        words = re.escape(f"batch_norm: {words}. Use {name}.{how}")
        with overheard() as said, pytest.raises(nw.DtypeError, match=words):
            nw.batch_norm(**{**given, name: whole, **beside}, training=True, sync="world")
        assert said.moments == []
        again = whole.full_tensor(grad_placements=[Partial()] * 1) if is_number else whole.to_local()
        y = nw.batch_norm(**{**given, name: again}, training=True, sync="world")
        same("y", y, want.chunk(2)[rank])  # float64 of the order of 1
        y.backward(towards.chunk(2)[rank])
        expected = gradients[name] if is_number else gradients[name].chunk(2)[rank]
        same(f"d{name}", whole.grad.full_tensor() if is_number else whole.grad.to_local(), expected)
    buffers = dict(zip(("running_mean", "running_var"), numbers, strict=True))
    for name, t in buffers.items():
        several = {**buffers, name: DTensor.from_local(t.detach(), mesh, [Replicate()])}
        words = f"expected {name} to be .*, which several hold. Keep {name} out of what is distributed"
        with overheard() as said, pytest.raises(nw.DtypeError, match=words):
            nw.batch_norm(own[0].detach(), **several, training=True, sync="world")
        assert said.moments == []
    layer = nw.BatchNorm1d(3, sync="world", dtype=F64)
    before = state(layer)
    with pytest.raises(nw.DtypeError, match="BatchNorm1d: expected x to be this process's own with sync"):
        layer(DTensor.from_local(own[0], mesh, [Shard(0)]))
    untouched(layer, before)


def test_a_tensor_that_several_processes_hold_is_refused_with_what_to_give_instead(processes):
    processes.run(spread)
