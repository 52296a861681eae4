"""Compiled layers that share their batch: no graph break, few programs, and what eager ranks make of them."""

import shutil
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import normwright.torch as nw
from beside_torch import same_bits
from sync_cases import BF16, F32, F64, Case, check, overheard, same, step

PARTS = [(4, 6), (6, 3), (5, 2), (0, 8), (9, 0)]
SLOW_START = {"timeout": 30.0, "limit": 60.0}  # a rank compiles while the others wait for it
OPTIONS = {
    "relu and residual": {"activation": "relu", "has_residual": True},
    "silu": {"activation": "silu"},
    "cumulative, channels on the last axis": {"layout": "NHWC", "options": {"momentum": None}},
    "running where degenerate": {"options": {"on_degenerate": "running"}},
}


def compiled(module, backend):
    """As one program. torch's compiler warns of what it does itself: of a module that inductor imports, and of an
    autograd function, of which it makes an object.
    """
    torch.compiler.reset()
    warnings.filterwarnings("ignore", ".torch.jit", DeprecationWarning)
    warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
    return torch.compile(module, backend=backend, fullgraph=True)


def compiled_beside_one(rank, options, backend, eager_rank):
    """Batches of several sizes through one compiled layer, beside those of one process, which is not compiled.

    Values and gradients are of the order of 1, and the sums of some ten: 1e-12 is hundreds of their roundings.
    """
    counter = CompileCounterWithBackend(backend)
    given = dict(OPTIONS[options])
    case = Case(PARTS[0], given.pop("layout", "NCHW"), F64, **given)
    layer, one = case.layer("world"), case.layer(None)
    call = layer if rank == eager_rank else compiled(layer, counter)
    for k, parts in enumerate(PARTS):
        now = Case(parts, case.layout, F64, seed=k, **given)
        layer.zero_grad()
        one.zero_grad()
        found, want = compiled_step(layer, call, now.part(rank)), step(one, *now.whole)
        for name in ("y", "dx", "dresidual"):
            if want[name] is not None:
                same(f"{name} of {parts}", found[name], now.share(want[name], rank))
        for name, p in layer.named_parameters():
            total = p.grad.clone()
            dist.all_reduce(total)
            same(f"d{name} of {parts}", total, want[f"d{name}"])
        for name, t in one.named_buffers():
            same(f"{name} of {parts}", layer.get_buffer(name), t)
    return counter.frame_count, dict(layer.named_buffers())


def compiled_step(layer, call, part):
    x, dy, residual = part
    x = x.clone().requires_grad_()
    residual = None if residual is None else residual.clone().requires_grad_()
    y = call(x) if residual is None else call(x, residual)
    y.backward(dy)
    return {"y": y.detach(), "dx": x.grad, "dresidual": None if residual is None else residual.grad}


def one_again(processes, options, backend, eager_rank=None):
    (_, first), (_, second) = found = processes.run(
        compiled_beside_one, options, backend, eager_rank, **SLOW_START
    )
    for name, t in first.items():
        same_bits(name, t, second[name])
    return [count for count, _ in found]


@pytest.mark.parametrize(
    "options",
    ["relu and residual", *(pytest.param(each, marks=pytest.mark.slow) for each in list(OPTIONS)[1:])],
)
def test_compiled_processes_are_one_in_few_programs(options, processes):
    # one for the first size, one for any other, one for none at all
    assert all(1 <= count <= 3 for count in one_again(processes, options, "aot_eager"))


def test_a_compiled_rank_understands_one_that_is_not(processes):
    counts = one_again(processes, "relu and residual", "aot_eager", eager_rank=1)
    assert counts[0] > counts[1] == 0


def in_float32(rank, dtype, parts):
    """One step of what is compiled, as `sync_cases.check` wants it."""
    case = Case(parts, "channels-last", dtype, 5, 1e3, "relu", True)
    layer = case.layer("world")
    found = compiled_step(layer, compiled(layer, "aot_eager"), case.part(rank))
    found |= {f"d{name}": p.grad for name, p in layer.named_parameters()}
    return found | dict(layer.named_buffers())


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_compiled_processes_round_no_more_than_others(dtype, processes):
    parts = (4, 3)
    case = Case(parts, "channels-last", dtype, 5, 1e3, "relu", True)
    found = processes.run(in_float32, dtype, parts, **SLOW_START)
    check(case, found, was_heard=False)


def lone_value(rank):
    """A program is not told how many values all ranks have: it looks, without leaving the graph."""
    case = Case((0, 1), "(N, C)", F64, activation="silu", options={"on_degenerate": "running"})
    layer, held = case.layer("world"), case.layer(None)
    call = compiled(layer, "aot_eager")
    got = compiled_step(layer, call, case.part(rank))
    want = step(held.eval(), *case.part(rank))
    for name in ("y", "dx"):
        same(name, got[name], want[name])
    same("dweight", layer.weight.grad, want["dweight"])
    for name, t in case.layer(None).named_buffers():
        same_bits(name, layer.get_buffer(name), t)

    call = compiled(Case((0, 1), "(N, C)", F64).layer("world"), "aot_eager")
    with pytest.raises(RuntimeError, match=r"BatchNorm1d.*: one value per channel in all 2 ranks together"):
        call(case.part(rank)[0])


def test_one_value_in_all_ranks_is_seen_in_a_program(processes):
    processes.run(lone_value, **SLOW_START)


def whole_model(rank):
    """A model whose norms share their batches, compiled in one; evaluation in the same program sends nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4))
    model = nw.convert(model.to(F64), sync="world")
    x = torch.randn(9, 6, dtype=F64, generator=torch.Generator().manual_seed(1))
    mine = x[:4] if rank == 0 else x[4:]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    want = model(mine)
    after = {name: t.clone() for name, t in model.state_dict().items()}
    model.load_state_dict(before)
    program = compiled(model, "aot_eager")
    same("y", program(mine), want)
    for name, t in model.state_dict().items():
        same(name, t.detach(), after[name].detach())
    model.eval()
    if rank == 0:  # alone: a message would wait for the other
        with overheard() as said:
            same("y in evaluation", program(mine), model(mine))
        assert said.moments == []
    dist.monitored_barrier()


def test_a_model_is_compiled_in_one_with_its_messages(processes):
    processes.run(whole_model, **SLOW_START)


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="inductor needs a C++ compiler, and none is here",
)
def test_inductor_keeps_processes_one(processes):
    assert all(1 <= count <= 3 for count in one_again(processes, "relu and residual", "inductor"))
