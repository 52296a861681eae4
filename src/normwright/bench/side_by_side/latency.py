"""What a call costs where there is little to compute: a tiny layer's step, and gradients of gradients."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import normwright.torch as nw
from normwright.bench.timer import Budget, Contender, Timing, WrongValues, race
from normwright.report import markdown, terminal
from normwright.report.document import Table
from normwright.report.records import stamp

OURS, TORCHS, COMPOSED = "normwright", "torch", "composed operations"
STEPS = 50  # of a tiny layer, timed together: one alone is near what a clock can tell
DEFAULT = Budget(4, least=20, most=2000)
SECOND_ORDER = (
    ((8, 16, 8, 8), None),
    ((16, 64, 32, 32), None),
    ((16, 64, 32, 32), torch.channels_last),
)
LINES = 2 + len(SECOND_ORDER)
MARKERS = "latency"


class Measured(NamedTuple):
    """One line: what was timed, what each contender took, and how many calls that were."""

    what: str
    timings: dict[str, Timing]
    calls: int = 1


def run(*, into: Path | None = None, console: Console | None = None) -> None:
    """Measure, print the table, and put it between a file's markers where asked.

    Args:
        into: a Markdown file.
        console: where to print.

    Raises:
        OSError: `into` cannot be read or written.
        ValueError: `into` has no markers; nothing was done then.
        WrongValues: contenders do not agree; they were not timed.
    """
    console = console or Console()
    if into is not None:
        markdown.put_into(into.read_text(encoding="utf-8"), MARKERS, "")
    lines = []
    with terminal.Bars(console) as bars:
        bars.add("latency", work=LINES)
        for line in measure():
            lines.append(line)
            bars.begin("latency", line.what)
            bars.advance("latency", 1)
    shown = table(lines)
    if into is not None:
        markdown.write_into(into, MARKERS, markdown.table(shown))
    terminal.put(shown, console)


def measure(budget: Budget = DEFAULT) -> Iterable[Measured]:
    """Every line, one after the other.

    Raises:
        WrongValues: contenders do not agree; they were not timed.
    """
    threads = torch.get_num_threads()
    yield Measured("32 x 8, a training step", race(_tiny(), budget), STEPS)
    try:
        torch.set_num_threads(1)
        alone = race(_tiny(), budget)
    finally:
        torch.set_num_threads(threads)
    yield Measured("32 x 8, a training step, one thread", alone, STEPS)
    for shape, layout in SECOND_ORDER:
        size = " x ".join(map(str, shape)) + (", channels-last" if layout else "")
        yield Measured(f"{size}, a gradient's gradient", race(_second_order(shape, layout), budget))


def table(lines: Iterable[Measured]) -> Table:
    """Medians, and how many times ours the others take."""
    rows = []
    for what, timings, calls in lines:
        ours = timings[OURS].median
        others = (timings[name].median if name in timings else None for name in (TORCHS, COMPOSED))
        cells = ("-" if t is None else f"{t / ours:.2f}x" for t in others)
        rows.append((what, f"{ours / calls * 1e6:,.0f} µs", *cells))
    threads = torch.get_num_threads()
    machine = stamp()
    note = (
        f"Medians of interleaved rounds, {threads} threads; x: times ours, so below 1 we are slower. "
        f"{machine['processor']}, torch {machine['torch']}. Made by `normwright latency`."
    )
    return Table("", ("float32", OURS, TORCHS, COMPOSED), tuple(rows), note)


def _tiny() -> list[Contender]:
    """Forward and backward of (32, 8) with statistics that move, as in a loop over batches."""
    x, dy = _normal((32, 8), 0), _normal((32, 8), 1)

    def contender(name: str, layer: nn.Module) -> Contender:
        z = x.clone().requires_grad_()

        def run() -> None:
            for _ in range(STEPS):
                z.grad = None
                layer.zero_grad()
                layer(z).backward(dy)

        def answer() -> list[Tensor]:
            run()
            return [z.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]  # type: ignore[list-item]

        return Contender(name, run, lambda: _agree(name, answer(), wanted))

    theirs = nn.BatchNorm1d(8)
    wanted: list[Tensor] = []
    for _ in range(STEPS):
        theirs.zero_grad()
        theirs(z := x.clone().requires_grad_()).backward(dy)
    wanted += [z.grad, *(p.grad for p in theirs.parameters()), *theirs.buffers()]  # type: ignore[list-item]
    return [contender(OURS, nw.BatchNorm1d(8)), contender(TORCHS, nn.BatchNorm1d(8))]


def _second_order(shape: tuple[int, ...], layout: torch.memory_format | None) -> list[Contender]:
    """The gradient of |dy/dx|^2: a penalty, as of WGAN-GP."""
    x = _normal(shape, 0).contiguous(memory_format=layout or torch.contiguous_format)
    weight, bias = _normal(shape[1:2], 2) + 1, _normal(shape[1:2], 3)

    def penalty(norm: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        leaves = [
            t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight, bias)
        ]
        y = norm(*leaves)
        (dx,) = torch.autograd.grad(y.sin().sum(), leaves[0], create_graph=True)
        return list(torch.autograd.grad(dx.square().sum(), leaves))

    norms: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        OURS: lambda x, w, b: nw.batch_norm(x, None, None, w, b, True),
        TORCHS: lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        COMPOSED: _composed,
    }
    wanted = penalty(_composed)

    def contender(name: str, norm: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Contender:
        return Contender(name, lambda: penalty(norm), lambda: _agree(name, penalty(norm), wanted))

    return [contender(name, norm) for name, norm in norms.items()]


def _composed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Batch norm as anybody would write it."""
    var, mean = torch.var_mean(x, [0, 2, 3], correction=0, keepdim=True)
    along = (1, -1, 1, 1)
    return (x - mean) * torch.rsqrt(var + 1e-5) * weight.view(along) + bias.view(along)


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _agree(name: str, got: list[Tensor], wanted: list[Tensor]) -> None:
    for g, want in zip(got, wanted, strict=True):
        # Sums of up to 65,536 float32 terms of either sign, twice differentiated: three digits of the largest.
        if not (g - want).abs().max() <= 1e-3 * want.abs().max():  # NaN is no agreement
            raise WrongValues(f"{name}: other values than the other contenders; it was not timed.")
