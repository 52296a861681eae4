"""Worlds that end and begin again: whoever knew the old one must ask anew."""

import datetime
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

import normwright.torch as nw
from beside_torch import normal

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
