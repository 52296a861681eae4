"""Population statistics by three tools, beside NumPy on the whole data set: a table for terminal and docs."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import normwright.torch as nw
from normwright import __version__
from normwright.report import markdown, terminal
from normwright.report.document import Table

COMMAND, MARKERS = "normwright populations", "populations"
CHANNELS = 8
Float64 = NDArray[np.float64]
Batches = list[Tensor]
_Tool = Callable[[nn.Module, Batches], object]


# ---- the tools -----------------------------------------------------------------------------------------------


def by_torch(model: nn.Module, batches: Batches) -> None:
    """torch's: the mean of the batches' statistics."""
    update_bn(batches, model)


def by_fvcore(model: nn.Module, batches: Batches) -> None:
    """fvcore's precise BN, the modes as they are: its documentation leaves them to the caller."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it scripts functions at import, which torch deprecates
        from fvcore.nn.precise_bn import update_bn_stats
    update_bn_stats(model, batches, num_iters=len(batches))


def by_us(model: nn.Module, batches: Batches) -> None:
    """Ours: all values count alike."""
    nw.recalibrate(model, batches, progress=False)


TOOLS: dict[str, _Tool] = {"update_bn": by_torch, "fvcore": by_fvcore, "normwright": by_us}


# ---- the cases -----------------------------------------------------------------------------------------------


class _Twice(nn.Module):
    """A layer that is used twice in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(half) for half in x.chunk(2)])


def _plain() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(CHANNELS))


def _behind_dropout() -> nn.Module:
    return nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(CHANNELS))


def _norm_alone_in_training(model: nn.Module) -> None:
    model.eval()
    for module in model.modules():
        module.training = isinstance(module, nn.BatchNorm1d)


def _cut(x: Float64, size: int) -> list[Float64]:
    return [x[at : at + size] for at in range(0, len(x), size)]


def _normal(rng: np.random.Generator, count: int, mean: float = 1.0, deviation: float = 1.0) -> Float64:
    return rng.normal(mean, deviation, (count, CHANNELS))


def _alike(rng: np.random.Generator) -> list[Float64]:
    return _cut(_normal(rng, 3200), 64)


def _of_sizes(*sizes: int) -> Callable[[np.random.Generator], list[Float64]]:
    return lambda rng: [_normal(rng, size) for size in sizes]


def _far(rng: np.random.Generator) -> list[Float64]:
    return _cut(_normal(rng, 3200, 1e3, 0.03), 64)


def _drifting(rng: np.random.Generator) -> list[Float64]:
    return _cut(_normal(rng, 3200, 0.0) + np.linspace(0, 10, 3200)[:, None], 64)


def _by_class(rng: np.random.Generator) -> list[Float64]:
    means = rng.normal(0.0, 2.0, (10, CHANNELS))
    return [_normal(rng, 64, 0.0) + mean for mean in np.repeat(means, 5, axis=0)]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        title: what is special.
        batches: what enters the layer, in float64, batch by batch.
        build: a model with one batch norm layer.
        prepare: brings it into the modes in which a user hands it over.
    """

    title: str
    batches: Callable[[np.random.Generator], list[Float64]]
    build: Callable[[], nn.Module] = _plain
    prepare: Callable[[nn.Module], object] = nn.Module.train


CASES = (
    Case("Nothing special: 50 batches of 64", _alike),
    Case("Dropout before the layer", _alike, _behind_dropout),
    Case("The same; only the layer is in training", _alike, _behind_dropout, _norm_alone_in_training),
    Case("Batches of 1000 and 2", _of_sizes(1000, 2)),
    Case("Batches of 64, 64 and 1", _of_sizes(64, 64, 1)),
    Case("Mean 1000, deviation 0.03", _far),
    Case("Drifting data: the mean goes from 0 to 10", _drifting),
    Case("Correlated batches: each of one class, classes 2 deviations apart", _by_class),
    Case("The layer is used twice in a pass", _alike, _Twice),
)


# ---- measuring -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Off:
    """How far a tool's statistics are from the truth, in the worst channel.

    Attributes:
        mean: |mean - true mean| in true deviations.
        var: |var / true var - 1|.
        negative: a variance is below 0.
        failed: the error's type where the tool failed; the rest is NaN then.
    """

    mean: float
    var: float
    negative: bool = False
    failed: str = ""


def truth(batches: list[Float64]) -> tuple[Float64, Float64]:
    """Mean and unbiased variance of the whole data set, by NumPy in float64.

    NumPy adds rows up one after the other: what that loses of a mean far from zero is added again.
    """
    whole = np.concatenate(batches)
    near = whole.mean(axis=0)
    mean = near + (whole - near).mean(axis=0)
    return mean, (whole - mean).var(axis=0, ddof=1)


def off(found: tuple[Float64, Float64], true: tuple[Float64, Float64]) -> Off:
    """Compare two pairs of mean and variance."""
    mean, var = found
    return Off(
        float((np.abs(mean - true[0]) / np.sqrt(true[1])).max()),
        float(np.abs(var / true[1] - 1).max()),
        bool((var < 0).any()),
    )


def try_out(tool: _Tool, case: Case, dtype: torch.dtype) -> Off:
    """What `tool` makes of `case`; the process stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batches = _in_type(case, dtype)
        model = case.build().to(dtype)
        case.prepare(model)
        try:
            tool(model, batches)
        except (ValueError, AssertionError) as error:
            return Off(np.nan, np.nan, failed=type(error).__name__)
        (norm,) = (module for module in model.modules() if isinstance(module, nn.BatchNorm1d))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return off((norm.running_mean.double().numpy(), norm.running_var.double().numpy()), _truth(batches))


def nearest(case: Case, dtype: torch.dtype) -> Off:
    """How far the truth itself is off, once it is rounded to the type."""
    true = _truth(_in_type(case, dtype))
    return off((_rounded(true[0], dtype), _rounded(true[1], dtype)), true)


def _in_type(case: Case, dtype: torch.dtype) -> Batches:
    return [torch.from_numpy(x).to(dtype) for x in case.batches(np.random.default_rng(0))]


def _truth(batches: Batches) -> tuple[Float64, Float64]:
    return truth([x.double().numpy() for x in batches])


def _rounded(x: Float64, dtype: torch.dtype) -> Float64:
    rounded: Float64 = torch.from_numpy(x).to(dtype).double().numpy()
    return rounded


def measure(dtype: torch.dtype) -> Iterator[list[Off]]:
    """For each case, what each tool and rounding alone are off by."""
    for case in CASES:
        yield [*(try_out(tool, case, dtype) for tool in TOOLS.values()), nearest(case, dtype)]


# ---- telling -------------------------------------------------------------------------------------------------


def run(*, into: Path | None = None, console: Console | None = None) -> None:
    """Try every tool on every case, print the tables, and put them between a file's markers where asked.

    Args:
        into: a Markdown file.
        console: where to print.

    Raises:
        ImportError: fvcore is not installed.
        OSError: `into` cannot be read or written.
        ValueError: `into` has no markers; nothing was done then.
    """
    console = console or Console()
    if into is not None:
        markdown.put_into(into.read_text(encoding="utf-8"), MARKERS, "")
    tables = [table(dtype, list(measure(dtype))) for dtype in (torch.float32, torch.float64)]
    if into is not None:
        blocks = (f"**{each.title}**\n\n{markdown.table(each)}" for each in tables)
        markdown.write_into(into, MARKERS, "\n\n".join(blocks) + "\n\n" + _made())
    for each in tables:
        terminal.put(each, console)
    console.print(_made().replace("`", ""))
    if into is not None:
        console.print(f"The tables: {into}", soft_wrap=True)


def table(dtype: torch.dtype, rows: list[list[Off]]) -> Table:
    """The table of one type."""
    cells = ((case.title, *map(_cell, row)) for case, row in zip(CASES, rows, strict=True))
    title = f"{str(dtype).removeprefix('torch.')}: mean off by so many deviations, variance by such a share"
    return Table(title, ("case", *TOOLS, "rounding alone"), tuple(cells))


def _cell(of: Off) -> str:
    if of.failed:
        return of.failed
    return f"{_number(of.mean)}, {_number(of.var)}" + (" (negative)" if of.negative else "")


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or not value else f"{value:.2g}" if value >= 0.01 else f"{value:.0e}"


def _made() -> str:
    versions = f"torch {torch.__version__.partition('+')[0]}, fvcore {_version_of_fvcore()}"
    return f"Made by `{COMMAND}`: normwright {__version__}, {versions}."


def _version_of_fvcore() -> Any:
    import fvcore

    return fvcore.__version__
