"""One value per channel in all processes together, by running statistics: every way sends the same messages."""

from contextlib import contextmanager
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch.autograd import grad

from beside_torch import same_bits
from normwright.torch.distributed import peers, synced
from sync_cases import F64, KERNELS, OPERATIONS, WAYS, Case, beside_one, overheard, same, step, watched
from test_torch_sync_compile import SLOW_START, compiled, compiled_step

# In a program; and by operations that may not ask a device for a number, as on a GPU.
COMPILED, UNTOLD = "compiled", "untold"
COUNTS = [(0, 1), (1, 0)]


def lone(counts, activation="silu", has_residual=True):
    options = {"on_degenerate": "running"}
    return Case(counts, "(N, C)", F64, 3, 0.0, activation, has_residual, options=options)


def one_step(case, rank, way):
    """What `step` finds, by any way, and one process's. A program's messages are not overheard."""
    layer = case.layer("world")
    if way == COMPILED:
        got = compiled_step(layer, compiled(layer, "aot_eager"), case.part(rank))
        got |= {f"d{name}": p.grad for name, p in layer.named_parameters()}
    else:
        with untold(way == UNTOLD):
            got = step(layer, *case.part(rank), way=OPERATIONS if way == UNTOLD else way)
        assert (got["merges"], got["totals"]) == (1, 1)
    return layer, got


@contextmanager
def untold(yes):
    """Python is told no number, of any tensor."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (peers, synced) if yes else ():
            patch.setattr(module, "is_told", lambda t: False)
        yield


def beside_each_other(rank, ways):
    """A value, and nothing, each by a way of its own; values and gradients of the order of 1."""
    for counts in COUNTS:
        for activation, has_residual in ((None, False), ("silu", True)):
            case = lone(counts, activation, has_residual)
            layer, got = one_step(case, rank, ways[rank])
            one = case.layer(None)
            want = step(one, *case.whole)
            for name in ("y", "dx", "dresidual"):
                if want[name] is not None:
                    same(f"{name} of {counts}", got[name], case.share(want[name], rank))
            for name, p in one.named_parameters():
                total = got[f"d{name}"].clone()
                dist.all_reduce(total)
                same(f"d{name} of {counts}", total, p.grad)
            for name, t in case.layer(None).named_buffers():  # as they were made
                same_bits(name, layer.get_buffer(name), t)
                same_bits(name, one.get_buffer(name), t)
    beside_one(rank, [Case((3, 2), "(N, C)", F64)])  # nobody has sent more than the other


@pytest.mark.parametrize("ways", [*product((*WAYS, UNTOLD), repeat=2)], ids=" and ".join)
def test_a_lone_value_is_normalized_by_the_running_statistics_whatever_way_each_rank_takes(ways, processes):
    processes.run(beside_each_other, ways)


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param((COMPILED, KERNELS), id="compiled and kernels"),
        pytest.param((OPERATIONS, COMPILED), id="operations and compiled", marks=pytest.mark.slow),
        pytest.param((COMPILED, COMPILED), id="compiled", marks=pytest.mark.slow),
    ],
)
def test_and_where_a_rank_is_compiled(ways, processes):
    processes.run(beside_each_other, ways, **SLOW_START)


# --- gradients of gradients ---------------------------------------------------


def penalty(case, rank, sync, way):
    """The loss's gradients, and those of the squares of its gradient to x; and how many messages backward took."""
    layer = case.layer(sync)
    x, dy, residual = case.whole if rank is None else case.part(rank)
    given = [t.clone().requires_grad_() for t in (x, dy, residual) if t is not None]
    is_watched = way in (OPERATIONS, UNTOLD)
    with untold(way == UNTOLD), overheard() as said:
        with watched(is_watched):
            y = layer(given[0], *given[2:])
        with watched(is_watched):
            (dx,) = grad(y, given[0], given[1], create_graph=True)
            ((dx**2).sum() + (y * given[1]).sum() / 2).backward()
    found = {"y": y, "dx": dx} | {f"to {k}": t.grad for k, t in enumerate(given)}
    return found, {name: p.grad for name, p in layer.named_parameters()}, len(said.sums)


def penalties(rank, ways):
    for counts in (*COUNTS, (3, 4)):  # and what such a layer makes of more
        for activation, has_residual in ((None, False), ("silu", True)):
            case = lone(counts, activation, has_residual)
            found, parameters, sent = penalty(case, rank, "world", ways[rank])
            wanted, one, _ = penalty(case, None, None, KERNELS)
            bound = 1e-12 if counts in COUNTS else 1e-11
            for name, want in wanted.items():
                # of the order of 1 to 10, of few terms: 1e-12 is hundreds of roundings; of more values as in
                # test_torch_sync_gradients.py
                same(f"{name} of {counts}", found[name], case.share(want, rank), bound)
            for name, want in one.items():
                total = parameters[name].clone()
                dist.all_reduce(total)
                same(f"d{name} of {counts}", total, want, bound)
            sends = torch.tensor([sent, -sent])
            dist.all_reduce(sends, dist.ReduceOp.MAX)
            assert sends.sum() == 0  # as many from each
            assert sent > 0
    beside_one(rank, [Case((3, 2), "(N, C)", F64)])


@pytest.mark.parametrize("ways", [*product((KERNELS, OPERATIONS, UNTOLD), repeat=2)], ids=" and ".join)
def test_the_gradient_of_a_lone_values_gradient_is_that_of_constants(ways, processes):
    processes.run(penalties, ways)
