"""A rank that does not come, is at another layer, or ends: an error that names the layer, and never a hang."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn

import normwright.torch as nw
from beside_torch import normal, same_bits, state, untouched
from sync_cases import KERNELS, OPERATIONS, watched

TIMEOUT = 2.0  # seconds of the groups here
ENOUGH = 3 * TIMEOUT  # making a group may take its timeout once more
LATE = r"A rank has ended, or is late, or does not train this layer as often as the others"
FORWARD = "each of the 2 ranks of its group to send its batch's moments in forward"
BACKWARD = "each of the 2 ranks of its group to send its gradients' sums in backward"
FIRST = "each of the 2 ranks of its group to come to its first forward pass in training"


def network():
    """Two layers of one width, named by `convert`; their weights do not matter here."""
    return nw.convert(nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3))), sync="world")


def fails(call, layer, words):
    """A SyncError within the timeout, and of these words. The process goes on, and makes another group."""
    began = time.monotonic()
    with pytest.raises(nw.SyncError) as caught:
        call()
    assert time.monotonic() - began < ENOUGH
    assert isinstance(caught.value, RuntimeError)
    found = str(caught.value)
    assert found.startswith(f"normwright.torch.BatchNorm1d {layer!r}: expected {words}, got "), found
    assert "\n" not in found
    return found


def goes_on(path, rank, size=2):
    """What was broken is destroyed, and another world works."""
    dist.destroy_process_group()
    dist.init_process_group("gloo", f"file://{path}", rank=rank, world_size=size)
    layer = nw.BatchNorm1d(3, sync="world")
    layer(normal(4, 3, seed=rank)).sum().backward()
    assert layer.num_batches_tracked.item() == 1


# --- who does not come --------------------------------------------------------


def late(rank, when, way, path):
    """Rank 1 lives, and does something else."""
    model, x = network(), normal(4, 3, seed=rank).requires_grad_()
    if when != "first":
        model(x)
    if rank == 0:
        before = state(model)
        with watched(way == OPERATIONS):
            if when == "backward":
                fails(model(x).sum().backward, "1.0", BACKWARD)
            else:
                found = fails(lambda: model(x), "0", FIRST if when == "first" else FORWARD)
                assert LATE in found
                untouched(model, before)
    elif when == "backward":
        model(x)
    # of the old world's two groups, nobody asks any more; who is late is not waited for
    goes_on(path, rank)


@pytest.mark.parametrize(
    ("when", "way"),
    [
        ("first", KERNELS),
        ("forward", KERNELS),
        ("forward", OPERATIONS),
        ("backward", KERNELS),
        ("backward", OPERATIONS),
    ],
)
def test_a_rank_that_does_not_arrive_ends_in_an_error_that_names_the_layer(when, way, processes, tmp_path):
    processes.run(late, when, way, str(tmp_path / "meet"), timeout=TIMEOUT)


# --- who ends -----------------------------------------------------------------


def ends(rank, when, how):
    """Rank 1 is killed where rank 0 waits for it: in its own forward or backward pass."""
    model, x = network(), normal(4, 3, seed=rank).requires_grad_()
    model(x)
    y = model(x) if when == "backward" else None
    if rank == 1:
        time.sleep(0.2)  # rank 0 is waiting by now
        if how == "exit":
            os._exit(1)
        os.kill(os.getpid(), signal.SIGKILL)
    if when == "backward":
        return fails(y.sum().backward, "1.0", BACKWARD)
    return fails(lambda: model(x), "0", FORWARD)


@pytest.mark.parametrize(("when", "how"), [("forward", "kill"), ("backward", "exit")])
def test_a_rank_that_is_killed_ends_in_an_error_at_once(when, how, processes):
    began = time.monotonic()
    words, _ = processes.run(ends, when, how, dying=[1], timeout=30)
    assert time.monotonic() - began < 25  # of which most is to start; nobody waited for the timeout
    assert LATE in words


# --- who is elsewhere ---------------------------------------------------------


def elsewhere(rank, what):
    model, x = network(), normal(4, 3, seed=rank)
    first, second = model[0], model[1][0]
    model(x)
    before = state(model)
    mine, other = ("0", "1.0") if rank == 0 else ("1.0", "0")
    if what == "skips":
        first(x)
        before = state(model)
        here = (lambda: second(x)) if rank == 0 else (lambda: first(x))
        mine, other = other, mine
    else:
        here = (lambda: first(x)) if rank == 0 else (lambda: second(x))
    found = fails(here, mine, "all 2 ranks of its group to be at this layer in forward")
    assert f"got another layer on rank {1 - rank}. Every rank must run the same layers" in found
    untouched(model, before)
    # All have told what they had to tell: the group is as it was.
    y = model(x)
    total = y.detach().clone()
    dist.all_reduce(total)
    return state(model)


@pytest.mark.parametrize("what", ["skips", "another order"])
def test_ranks_at_different_layers_are_told_so_and_may_go_on(what, processes):
    first, second = processes.run(elsewhere, what)
    for name, t in first.items():
        same_bits(name, t, second[name])


def forward_meets_backward(rank, path):
    """Rank 1 leaves the second layer out, and is in backward while rank 0 is still on its way."""
    model, x = network(), normal(4, 3, seed=rank).requires_grad_()
    model(x)
    y = model[0](x)
    if rank == 0:
        fails(lambda: model[1][0](y), "1.0", FORWARD)
    else:
        fails(y.sum().backward, "0", BACKWARD)
    goes_on(path, rank)


def test_a_forward_pass_that_meets_a_backward_pass_ends_on_both_sides(processes, tmp_path):
    processes.run(forward_meets_backward, str(tmp_path / "meet"), timeout=TIMEOUT)


# --- an error of one rank alone -----------------------------------------------


def wrong_before_it_is_told(rank):
    """An input that cannot be is refused before any message: the rank may try again, and the other still waits."""
    layer = nw.BatchNorm1d(3, sync="world")
    x = normal(4, 3, seed=rank)
    if rank == 1:
        for wrong in (normal(4, 2), normal(4, 3, 2, 2), torch.zeros(4, 3, dtype=torch.int64)):
            with pytest.raises((nw.ShapeError, nw.DtypeError, ValueError)):
                layer(wrong)
        with pytest.raises(nw.ShapeError):
            layer(x, normal(4, 2))
    layer(x).sum().backward()
    return state(layer)


def test_a_rank_whose_input_cannot_be_says_so_before_the_others_hear_of_it(processes):
    first, second = processes.run(wrong_before_it_is_told)
    for name, t in first.items():
        same_bits(name, t, second[name])
