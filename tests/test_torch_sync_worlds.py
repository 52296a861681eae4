"""Worlds that end and begin again: whoever knew the old one must ask anew."""

import datetime
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

import normwright.torch as nw
from beside_torch import normal, state, untouched
from sync_cases import same

F64 = torch.float64
PARTS = normal(2, 4, 3, dtype=F64)


def begin(path, rank, size):
    """A world of `size`."""
    store, timeout = dist.FileStore(path, size), datetime.timedelta(seconds=9)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)


def through_worlds(rank, folder, backend):
    """The same program in a world of one, of two, and in none."""
    if dist.is_initialized():
        dist.destroy_process_group()
    layer = nw.BatchNorm1d(3, sync="world", dtype=F64)
    run = torch.compile(layer, backend=backend, fullgraph=True)
    alone = nn.functional.batch_norm(PARTS[rank], None, None, training=True)
    joined = nn.functional.batch_norm(PARTS.flatten(0, 1), None, None, training=True).view(2, 4, 3)[rank]
    found = []
    with warnings.catch_warnings():  # torch's compiler makes an object of an autograd function
        warnings.filterwarnings("ignore", "(?s).*should not be instantiated", DeprecationWarning)
        for size, want in ((1, alone), (2, joined), (1, alone)):
            at = f"{folder}/{len(found)}" + (f" {rank}" if size == 1 else "")
            begin(at, rank if size > 1 else 0, size)
            found.append((run(PARTS[rank]) - want).abs().max().item())
            dist.destroy_process_group()
        try:
            run(PARTS[rank])
        except RuntimeError as error:
            found.append(str(error).splitlines()[0])
    torch.compiler.reset()
    return found


def test_a_compiled_layer_asks_again_in_another_world(tmp_path, processes):
    for *distances, words in processes.run(through_worlds, str(tmp_path), "aot_eager", timeout=9.0):
        assert max(distances) < 1e-14  # values near 1: a few roundings
        assert words.startswith(
            "normwright.torch.BatchNorm1d: expected an initialized process group, got none."
        )


def asked_anew(rank, folder):
    """One layer in a world of one, of two, of another one, and in none."""
    dist.destroy_process_group()
    layer = nw.BatchNorm1d(3, sync="world", dtype=F64)
    alone = nn.functional.batch_norm(PARTS[rank], None, None, training=True)
    joined = nn.functional.batch_norm(PARTS.flatten(0, 1), None, None, training=True).view(2, 4, 3)[rank]
    held = []
    for k, (size, want) in enumerate(((1, alone), (2, joined), (1, alone), (1, alone))):
        begin(f"{folder}/{k}" + (f" {rank}" if size == 1 else ""), rank if size > 1 else 0, size)
        held.append(dist.group.WORLD)  # a world that somebody still holds is another all the same
        for _ in range(2):
            same("y", layer(PARTS[rank]), want)
        dist.destroy_process_group()
        before = state(layer)
        with pytest.raises(nw.ShapeError, match="expected an initialized process group, got none"):
            layer(PARTS[rank])
        untouched(layer, before)


def test_a_layer_asks_again_in_another_world(tmp_path, processes):
    processes.run(asked_anew, str(tmp_path))


def stale(rank, folder):
    """Groups of a world that has ended, where others have their names."""
    old = [dist.group.WORLD, dist.new_group([0, 1]), [dist.new_group([k]) for k in range(2)][rank]]
    layers = [nw.BatchNorm1d(3, sync=group, dtype=F64) for group in old]
    late = [layer(PARTS[rank].clone().requires_grad_()) for layer in layers]
    dist.destroy_process_group()
    begin(f"{folder}/again", rank, 2)
    new = [dist.group.WORLD, dist.new_group([0, 1]), [dist.new_group([k]) for k in range(2)][rank]]
    assert [group.group_name for group in new] == [group.group_name for group in old]
    for layer, group in zip(layers, old, strict=True):
        before, words = state(layer), "to be a group that is there, got one that was destroyed"
        with pytest.raises(nw.ShapeError, match=rf"BatchNorm1d\(3\): expected sync {words}"):
            layer(PARTS[rank])
        with pytest.raises(nw.ShapeError, match=f"batch_norm: expected sync {words}"):
            nw.batch_norm(PARTS[rank], training=True, sync=group)
        for call in (
            lambda group=group, layer=layer: nw.pool_running_stats(layer, group=group),
            lambda group=group, layer=layer: nw.recalibrate(layer, [PARTS[rank]], group=group),
            lambda group=group: nw.verify_sync(group),
        ):
            with pytest.raises(nw.ShapeError, match=f"expected group {words}"):
                call()
        untouched(layer, before)
    for y in late[:2]:  # the third shared its batch with nobody
        words = "expected the group of its forward pass in backward, got one that was destroyed"
        with pytest.raises(nw.SyncError, match=words):
            y.sum().backward()
    layers[1].sync = new[1]
    joined = nn.functional.batch_norm(PARTS.flatten(0, 1), None, None, training=True).view(2, 4, 3)[rank]
    same("y", layers[1](PARTS[rank]), joined)


def test_a_group_that_was_destroyed_is_not_taken_for_the_one_that_has_its_name_now(tmp_path, processes):
    processes.run(stale, str(tmp_path))


def other_heads(rank):
    """Two heads; rank 0 trains one of them, rank 1 the other: their sums must not be added up."""
    heads = nw.convert(nn.ModuleList(nn.BatchNorm1d(3, dtype=F64) for _ in range(2)), sync="world")
    x = PARTS[rank].clone().requires_grad_()
    each = [head(x).square().sum() for head in heads]
    words = rf"BatchNorm1d '{rank}': expected all 2 ranks .* in backward, got another layer on some rank"
    with pytest.raises(nw.SyncError, match=words):
        each[rank].backward()


def test_backward_passes_of_different_layers_are_not_added_up(processes):
    processes.run(other_heads)
