"""The group in which layers talk: made once for a world, and let go with it."""

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import nn

import normwright.torch as nw
from beside_torch import same_bits
from normwright.torch.distributed import sync
from sync_cases import F64, KERNELS, OPERATIONS, Case, step
from test_torch_sync_compile import SLOW_START, compiled

CASE = Case((2, 3), "NCHW", F64)


def begin(folder, rank, name):
    dist.init_process_group("gloo", f"file://{folder}/{name}", rank=rank, world_size=2)


def end():
    dist.destroy_process_group()
    gc.collect()


def threads():
    """How many this process has: of each group, those that move its bytes. 0 where a system does not tell."""
    return len(list(Path("/proc/self/task").iterdir())) if sys.platform == "linux" else 0


def used(rank, is_compiled):
    """What layers keep of a step in the present world, by every way; and the statistics after each."""
    kept, moved = [], []
    for how in ("compiled",) if is_compiled else ("kernels", "operations", "function", "graph"):
        layer, (x, dy, _) = CASE.layer("world"), CASE.part(rank)
        kept.append(layer)
        moved.append(layer.running_var)
        if how == "compiled":
            kept.append(compiled(layer, "aot_eager"))
            kept[-1](x).backward(dy)
        elif how == "function":
            numbers = layer.running_mean, layer.running_var, layer.weight, layer.bias
            nw.batch_norm(x, *numbers, training=True, sync="world")
        elif how == "graph":  # backward never runs
            kept.append(layer(x.requires_grad_()))
        else:
            step(layer, x, dy, way=OPERATIONS if how == "operations" else KERNELS)
    return kept, moved


def let_go(rank, is_compiled, folder):
    dist.destroy_process_group()
    begin(folder, rank, "meet first")  # what a process needs once, for any group
    used(rank, is_compiled)
    end()
    before, found = threads(), []
    for name in ("meet again", "and again"):
        begin(folder, rank, name)
        kept, moved = used(rank, is_compiled)
        found.append(moved)
        world, own = dist.group.WORLD, sync._own[1]()
        assert set(dist.distributed_c10d._world.pg_map) == {world, own}
        assert own is not world
        gone = [weakref.ref(group) for group in (world, own)]
        del world, own
        if sys.platform == "linux":
            assert threads() > before
        end()
        assert [ref() for ref in gone] == [None, None]
        assert [ref() for ref in sync._own] == [None, None]
        assert threads() == before
        del kept  # not before
    for first, second in zip(*found, strict=True):
        same_bits("running_var", second, first)


def test_nothing_of_a_world_is_left_when_it_ends_and_the_next_has_a_group_of_its_own(processes, tmp_path):
    processes.run(let_go, False, str(tmp_path))


@pytest.mark.slow
def test_nor_where_a_program_was_compiled(processes, tmp_path):
    processes.run(let_go, True, str(tmp_path), **SLOW_START)


def one_for_all(rank):
    x = CASE.part(rank)[0]
    CASE.layer("world")(x)
    own, many = sync._own[1](), len(dist.distributed_c10d._world.pg_map)
    nn.Sequential(CASE.layer("world"), nw.convert(nn.Sequential(nn.BatchNorm2d(3).to(F64)), sync="world"))(x)
    CASE.layer(dist.group.WORLD)(x)
    assert own is not None
    assert sync._own[1]() is own
    assert len(dist.distributed_c10d._world.pg_map) == many


def test_all_layers_of_a_world_talk_in_one_group(processes):
    processes.run(one_for_all)
