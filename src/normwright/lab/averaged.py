"""Weights that are averaged (EMA, SWA): from which statistics does the averaged network predict?

The average of the weights is another network than the one that was trained. What enters its layers has other
statistics, and four of them are in use: those of the moment when the copy was made, the trained network's, the
average of those, and its own.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import normwright.torch as nw
from normwright import __version__
from normwright.lab.data import Splits, load
from normwright.lab.networks import BN, DEEP_CNN, Network, build
from normwright.lab.train import Budget, accuracy, chunks, one_thread, train
from normwright.report import markdown, terminal
from normwright.report.document import Table
from normwright.report.records import Record, Scalar

COMMAND, MARKERS = "normwright averages", "averages"
STATISTICS = ("of the copy's making", "copied", "averaged too", "recalibrate")
WHERE = "digits"


@dataclass(frozen=True)
class Average:
    """A way to average weights.

    Attributes:
        name: in the table.
        decay: weight of the old average in each step; None for the plain mean (SWA).
        begins: share of the training after which it begins.
        every: steps from one taking-in to the next.
    """

    name: str
    decay: float | None
    begins: float = 0.0
    every: int = 1

    def begin(self, model: nn.Module, buffers: bool) -> AveragedModel:
        """torch's average of `model`, whose `buffers` it averages too or copies at each step."""
        rule = None if self.decay is None else get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
        return AveragedModel(model, multi_avg_fn=rule, use_buffers=buffers)


@dataclass(frozen=True)
class Plan:
    """What is trained, and which averages are taken of it."""

    network: Network
    rate: float
    budget: Budget
    seeds: int
    averages: tuple[Average, ...]


FULL = Plan(
    DEEP_CNN,
    rate=0.1,
    budget=Budget(300, 60, 300),
    seeds=5,
    averages=(
        Average("SWA: once an epoch, second half", None, begins=0.5, every=15),
        Average("EMA, decay 0.9", 0.9),
        Average("EMA, decay 0.99", 0.99),
        Average("EMA, decay 0.998", 0.998),
    ),
)


def measure(plan: Plan, after_step: Callable[[], object] = lambda: None) -> Iterator[Record]:
    """Each average with each of its statistics: test accuracy, and how far the worst mean is off."""
    source = load(WHERE)
    for seed in range(plan.seeds):
        data = source.splits(seed, size=plan.network.size, channels=plan.network.channels)
        with one_thread():
            yield from _trial(plan, data, seed, after_step)


def _trial(plan: Plan, data: Splits, seed: int, after_step: Callable[[], object]) -> Iterator[Record]:
    model = build(plan.network, seed, BN)
    made = deepcopy(model)
    kept = {a: (a.begin(model, buffers=False), a.begin(model, buffers=True)) for a in plan.averages}

    def on_step(step: int) -> None:
        for average, both in kept.items():
            if step > average.begins * plan.budget.steps and step % average.every == 0:
                for each in both:
                    each.update_parameters(model)
        after_step()

    train(model, data, rate=plan.rate, seed=seed, budget=plan.budget, on_step=on_step)
    batches = list(chunks(data.train.images, plan.budget.batch_size))
    trained = {"copied": model, "recalibrate": _own(model, batches)}
    yield from _told("none: the trained network", seed, trained, data, batches)
    for average, (weights, with_buffers) in kept.items():
        found = {
            "of the copy's making": nw.copy_statistics(made, deepcopy(weights.module)),
            "copied": nw.copy_statistics(model, deepcopy(weights.module)),
            "averaged too": with_buffers.module,
            "recalibrate": _own(weights.module, batches),
        }
        yield from _told(average.name, seed, found, data, batches)


def _own(model: nn.Module, batches: list[torch.Tensor]) -> nn.Module:
    """A copy with statistics of its own."""
    model = deepcopy(model)
    nw.recalibrate(model, batches, progress=False)
    return model


def _told(
    average: str, seed: int, found: Mapping[str, nn.Module], data: Splits, batches: list[torch.Tensor]
) -> Iterator[Record]:
    """Accuracy of the same weights with each of the statistics, and how far these are from what inference sees."""
    exact = deepcopy(found["recalibrate"])
    layers = nw.recalibrate(exact, batches, order="sequential", progress=False).layers
    for statistics, model in found.items():
        where: dict[str, Scalar] = {"average": average, "statistics": statistics, "seed": seed}
        yield Record("test accuracy", accuracy(model, data.test), "fraction", where)
        for layer in layers:
            mean = model.get_buffer(f"{layer.name}.running_mean").double().numpy()
            off = float((np.abs(mean - layer.new_mean) / np.sqrt(layer.new_var)).max())
            yield Record("error of the mean", off, "deviations", {**where, "layer": layer.name})


def run(*, into: Path | None = None, console: Console | None = None, plan: Plan = FULL) -> None:
    """Measure, print the table, and put it between a file's markers where asked.

    Args:
        into: a Markdown file.
        console: where to print.
        plan: what is measured.

    Raises:
        OSError: `into` cannot be read or written.
        ValueError: `into` has no markers; nothing was done then.
    """
    console = console or Console()
    if into is not None:
        markdown.put_into(into.read_text(encoding="utf-8"), MARKERS, "")
    with terminal.Bars(console) as bars:
        bars.add("averages", work=plan.seeds * plan.budget.steps)
        bars.begin("averages", f"{plan.seeds} trainings")
        made = table(list(measure(plan, lambda: bars.advance("averages", 1))), plan)
    if into is not None:
        markdown.write_into(into, MARKERS, markdown.table(made))
    terminal.put(made, console)
    if into is not None:
        console.print(f"The table: {into}", soft_wrap=True)


def table(records: list[Record], plan: Plan) -> Table:
    """Each average a row, each of the statistics a column: mean accuracy, and the largest error of a mean."""
    rows: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        of = rows.setdefault(str(record.where["average"]), {})
        of.setdefault(str(record.where["statistics"]), []).append(record)
    cells = ((name, *(_cell(found.get(kind, [])) for kind in STATISTICS)) for name, found in rows.items())
    note = (
        f"Mean test accuracy of {plan.seeds} trainings; behind it the largest error of a mean, in deviations. "
        f"Made by `{COMMAND}`: {plan.network.name} with batch norm, {plan.network.layers}; {WHERE}; "
        f"{plan.budget.steps} steps of {plan.budget.batch_size} images, rate {plan.rate:g}; "
        f"normwright {__version__}, torch {torch.__version__.partition('+')[0]}."
    )
    return Table("", ("average of the weights", *STATISTICS), tuple(cells), note)


def _cell(records: list[Record]) -> str:
    """Empty where nothing was measured."""
    right = [record.value for record in records if record.what == "test accuracy"]
    far = [record.value for record in records if record.what == "error of the mean"]
    if not right:
        return ""
    # every value is a number: a network predicts something, and a mean that is NaN is off by NaN
    return f"{100 * np.mean(np.array(right, float)):.1f} %, {np.max(np.array(far, float)):.1g}"
