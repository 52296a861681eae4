"""Situations in training and around it: what a door's layers do there, found out by doing it, in a few words.

A situation is a function of a door, `torch.nn` or `normwright.torch`. Its words are the same in every run and on
every machine: nothing is timed, and errors are told to the digit that machines agree on.
"""

import copy
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, func, nn
from torch.utils.checkpoint import checkpoint

import normwright.torch as nw
from normwright.kernels import NATIVE

_Seen = Callable[[ModuleType], str]


@dataclass(frozen=True)
class Situation:
    """One row of the table.

    Attributes:
        title: what is done.
        section: the anchor of the heading in docs/pytorch.md that is about it.
        seen: what the layers of a door did.
    """

    title: str
    section: str
    seen: _Seen

    def tell(self, door: ModuleType) -> str:
        """What the layers of `door` do, an error's words where they fail. The process stays as it is, and quiet."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return _attempt(lambda: self.seen(door))


SITUATIONS: list[Situation] = []


def _situation(title: str, section: str) -> Callable[[_Seen], _Seen]:
    """Enter a function into the table, as its next row."""

    def enter(seen: _Seen) -> _Seen:
        SITUATIONS.append(Situation(title, section, seen))
        return seen

    return enter


# ---- statistics ----------------------------------------------------------------------------------------------


@_situation("One step under `checkpoint`, reentrant and not", "activation-checkpointing")
def checkpointed(door: ModuleType) -> str:
    plain, x, counts, same = door.BatchNorm1d(4), torch.randn(8, 4), [], True
    plain(x)
    for reentrant in (True, False):
        layer = door.BatchNorm1d(4)
        checkpoint(layer, x.clone().requires_grad_(), use_reentrant=reentrant).sum().backward()
        counts.append(_counted(layer))
        same = same and _has(layer, plain.state_dict())
    return f"{', '.join(dict.fromkeys(counts))}; buffers {'as' if same else 'not as'} in the plain run"


@_situation("A training pass that must not count", "passes-that-must-not-count")
def quiet(door: ModuleType) -> str:
    if door is nn:
        return "no such scope"
    stay = []
    for layer in (nw.BatchNorm1d(4), nn.BatchNorm1d(4)):
        before = _state(layer)
        with nw.no_stat_update(layer):
            layer(torch.randn(8, 4))
        stay.append(_stay(layer, before))
    return f"`no_stat_update`: {stay[0]}; in torch's layers: {stay[1]}"


@_situation("Statistics that should stay, after `.train()`", "freezing")
def frozen(door: ModuleType) -> str:
    layer = door.BatchNorm1d(4)
    before = _state(layer)
    model = nn.Sequential(layer.eval() if door is nn else nw.freeze(layer))
    model.train()(torch.randn(8, 4))
    return f"{'`.eval()`' if door is nn else '`freeze`'}: {_stay(layer, before)}"


@_situation("A batch with a NaN, then a good one: y in evaluation", "batches-that-are-not-finite")
def not_finite(door: ModuleType) -> str:
    layer, x = door.BatchNorm1d(4), torch.randn(8, 4)
    layer(x.index_fill(0, torch.tensor(3), torch.nan))
    layer(x)
    return _finite(layer.eval()(x))


@_situation("A batch of one in training", "a-batch-of-one")
def batch_of_one(door: ModuleType) -> str:
    layer = door.BatchNorm1d(4)
    return f"{_attempt(lambda: str(layer(torch.ones(1, 4))))}; {_counted(layer)}"


@_situation("A batch of one that is no error", "a-batch-of-one")
def batch_of_one_wanted(door: ModuleType) -> str:
    if door is nn:
        return "no such option"
    layer = nw.BatchNorm1d(4, on_degenerate="running")
    before = _state(layer)
    y = layer(torch.ones(1, 4))
    return f'`on_degenerate="running"`: y {_finite(y)}, {_stay(layer, before)}'


# ---- types and numbers ---------------------------------------------------------------------------------------


@_situation("Type of the statistics after `.bfloat16()`", "half-precision-and-autocast")
def half_type(door: ModuleType) -> str:
    return _name(door.BatchNorm1d(4).bfloat16().running_mean.dtype)


@_situation(
    "bfloat16, 1000 batches of mean 3 and variance 4: running mean and variance off by",
    "half-precision-and-autocast",
)
def half_stalls(door: ModuleType) -> str:
    layer = door.BatchNorm1d(1).bfloat16()
    x = torch.tensor([1.0, 5.0]).repeat(512)[:, None].bfloat16()  # exact in bfloat16
    for _ in range(1000):
        layer(x)
    off = layer.running_mean.item() - 3, layer.running_var.item() - x.double().var().item()
    return " and ".join(dict.fromkeys("less than 1e-4" if abs(o) < 1e-4 else f"{abs(o):.1g}" for o in off))


@_situation("A module all in bfloat16, mean 30 deviations: largest error of y", "half-precision-and-autocast")
def half_throughout(door: ModuleType) -> str:
    x = torch.from_numpy(np.random.default_rng(0).normal(3.0, 0.1, (64, 8))).bfloat16()
    exact = nn.functional.batch_norm(x.double(), None, None, training=True)
    return f"{(door.BatchNorm1d(8).bfloat16()(x) - exact).abs().max().item():.0e}"


@_situation("A float64 x beside float32 parameters", "mixed-types")
def mixed(door: ModuleType) -> str:
    layer, x = door.BatchNorm1d(4), torch.randn(8, 4, dtype=torch.float64)
    return f"y is {_name(layer(x).dtype)}"


@_situation("Channels-last float32, mean 10^4 deviations, one thread: largest error of y", "numbers")
def far_mean(door: ModuleType) -> str:
    x = _far_from_zero()
    exact = nn.functional.batch_norm(x.double(), None, None, training=True)
    with _threads(1):
        return f"{(door.BatchNorm2d(x.shape[1])(x) - exact).abs().max().item():.0e}"


@_situation("The same by one thread and by two", "numbers")
def thread_count(door: ModuleType) -> str:
    x, results = _far_from_zero(), []
    for count in (1, 2):
        with _threads(count):
            results.append(door.BatchNorm2d(x.shape[1])(x))
    return "the same bits" if torch.equal(*results) else "other bits"


def _far_from_zero() -> Tensor:
    """The same floats on every machine (torch's own draws differ between instruction sets), channels-last."""
    drawn = np.random.default_rng(0).normal(1e4, 1.0, (16, 8, 32, 32)).astype(np.float32)
    return torch.from_numpy(drawn).contiguous(memory_format=torch.channels_last)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    _use(count)
    try:
        yield
    finally:
        _use(before)


def _use(threads: int) -> None:
    torch.set_num_threads(threads)
    if NATIVE:
        from normwright import _native

        _native.set_threads(threads)


@_situation("x of (N, L, C), without a transposition", "channels-on-another-axis")
def channels_last_axis(door: ModuleType) -> str:
    layer = door.BatchNorm1d(4) if door is nn else nw.BatchNorm1d(4, channel_dim=-1)
    how = "" if door is nn else "`channel_dim=-1`: "
    return f"{how}y of {tuple(layer(torch.randn(8, 3, 4)).shape)}"


# ---- transforms, compilation, gradients ----------------------------------------------------------------------


@_situation("`vmap` over batches, in training", "torchfunc")
def vmapped(door: ModuleType) -> str:
    x, layer = torch.randn(3, 8, 4), door.BatchNorm1d(4)
    if door is nn:
        return str(func.vmap(layer)(x))
    running = torch.zeros(4), torch.ones(4)
    got = func.vmap(lambda x: nw.batch_norm_stats(x, *running))(x)
    each = zip(*(nw.batch_norm_stats(one, *running) for one in x), strict=True)
    near = all(torch.allclose(g, torch.stack(want), atol=1e-5) for g, want in zip(got, each, strict=True))
    return f"`batch_norm_stats`: y and statistics {'as' if near else 'not as'} of each batch alone"


@_situation("`jacrev`, in training", "torchfunc")
def jacrev(door: ModuleType) -> str:
    x, layer = torch.randn(8, 4, dtype=torch.float64), door.BatchNorm1d(4).double()
    if door is nn:
        return str(func.jacrev(layer)(x))
    got = func.jacrev(lambda x: nw.batch_norm_stats(x, torch.zeros(4), torch.ones(4)).y)(x)
    want = torch.autograd.functional.jacobian(layer, x)  # type: ignore[no-untyped-call]
    return f"`batch_norm_stats`: {'right' if torch.allclose(got, want) else 'wrong'}"


@_situation("`momentum=None` under `torch.compile(fullgraph=True)`", "torchcompile")
def cumulative_compiled(door: ModuleType) -> str:
    layer, eager = door.BatchNorm1d(4, momentum=None), door.BatchNorm1d(4, momentum=None)
    torch.compiler.reset()
    compiled: Any = torch.compile(layer, backend="eager", fullgraph=True)

    for x in torch.randn(2, 8, 4):
        compiled(x)
        eager(x)
    near = all(torch.allclose(t, layer.state_dict()[k]) for k, t in eager.state_dict().items())
    return f"compiles; statistics {'as' if near else 'not as'} uncompiled"


@_situation("A compiled layer inside an eager `checkpoint`, one step", "torchcompile")
def compiled_in_checkpoint(door: ModuleType) -> str:
    layer = door.BatchNorm1d(4)
    torch.compiler.reset()
    model = nn.Sequential(
        layer, nn.Sigmoid()
    )  # without which the repetition would stop before the statistics move
    compiled: Any = torch.compile(model, backend="eager")
    checkpoint(compiled, torch.randn(8, 4, requires_grad=True), use_reentrant=False).sum().backward()
    return _counted(layer)


@_situation("Compiled, batches of 4, 6, 8 and 16", "torchcompile")
def batch_sizes(door: ModuleType) -> str:
    programs = []

    def count(program: Any, inputs: Any) -> Any:
        programs.append(program)
        return program.forward

    layer = door.BatchNorm1d(4)
    torch.compiler.reset()
    compiled: Any = torch.compile(layer, backend=count, fullgraph=True)
    for size in (4, 6, 8, 16):
        compiled(torch.randn(size, 4))
    return f"{len(programs)} programs"


@_situation("`torch.fx.symbolic_trace`", "quantization-torchjitscript-and-fusion")
def traced(door: ModuleType) -> str:
    nodes = torch.fx.symbolic_trace(nn.Sequential(door.BatchNorm1d(4))).graph.nodes
    return (
        "the layer is a leaf" if "call_module" in [node.op for node in nodes] else "the layer is taken apart"
    )


@_situation("Gradients of gradients, in training", "numbers")
def second_order(door: ModuleType) -> str:
    layer = door.BatchNorm1d(3).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    return "right" if torch.autograd.gradgradcheck(layer, (x,), raise_exception=False) else "wrong"


# ---- what surrounds a layer ----------------------------------------------------------------------------------


class _NormReLU(nn.BatchNorm1d):
    """A user's subclass with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


@_situation("A subclass that applies ReLU in its own forward, converted", "convert-and-revert")
def subclass(door: ModuleType) -> str:
    change: Any = nn.SyncBatchNorm.convert_sync_batchnorm if door is nn else nw.convert
    y = change(nn.Sequential(_NormReLU(4))).eval()(torch.randn(8, 4))
    return f"`{change.__name__}`: ReLU {'lost' if (y < 0).any() else 'kept'}"


@_situation("weight after one step of SGD, no gradient, `weight_decay=0.1`, `lr=1`", "weight-decay")
def decay(door: ModuleType) -> str:
    layer = door.BatchNorm1d(4)
    groups = layer.parameters() if door is nn else nw.param_groups(layer, 0.1)
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.SGD(groups, lr=1.0, weight_decay=0.1 if door is nn else 0.0).step()
    how = "`model.parameters()`" if door is nn else "`param_groups`"
    return f"{how}: {layer.weight[0].item():.1f}"


@_situation("`load_state_dict(strict=True)` into the other library's layer", "convert-and-revert")
def states(door: ModuleType) -> str:
    layer, other = door.BatchNorm1d(4), (nw if door is nn else nn).BatchNorm1d(4)
    layer(torch.randn(8, 4))
    other.load_state_dict(layer.state_dict(), strict=True)
    return "loads" if _has(other, layer.state_dict()) else "loads other values"


@_situation("`copy.deepcopy` and pickle", "convert-and-revert")
def copies(door: ModuleType) -> str:
    layer = door.BatchNorm1d(4)
    layer(torch.randn(8, 4))
    made = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    equal = all(type(each) is type(layer) and _has(each, layer.state_dict()) for each in made)
    return "equal" if equal else "not equal"


# ---- words ---------------------------------------------------------------------------------------------------


def _counted(layer: nn.Module) -> str:
    times = int(layer.get_buffer("num_batches_tracked"))
    return {0: "not counted", 1: "counted once", 2: "counted twice"}.get(times, f"counted {times} times")


def _state(layer: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in layer.state_dict().items()}


def _has(layer: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(t, state[name]) for name, t in layer.state_dict().items())


def _stay(layer: nn.Module, before: dict[str, Tensor]) -> str:
    return f"statistics {'stay' if _has(layer, before) else 'move'}"


def _finite(y: Tensor) -> str:
    return "finite" if y.isfinite().all() else "NaN"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _attempt(of: Callable[[], str]) -> str:
    """What `of` returns; the error's type and its first words where it fails."""
    try:
        return of()
    except Exception as error:
        words = re.split(r"\n|[.;] | \(", re.sub(r" \([^()]*\)", "", str(error)))[0].removesuffix(".")
        short = words if len(words) <= 100 else words[:100].rpartition(" ")[0] + " …"
        return f"{type(error).__name__}: {short}"
