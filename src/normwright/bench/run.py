"""The whole benchmark: what is measured of whom, its progress, its records."""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn

from normwright.bench import cases, grid, machine
from normwright.bench.cases import DTYPES, Case
from normwright.bench.grid import Grid
from normwright.bench.job import Job
from normwright.bench.memory import NOISE
from normwright.bench.processes import CannotMeasure as CannotMeasure  # also for those who call `run`
from normwright.bench.processes import Workers, allocators, can_count
from normwright.bench.telling import table
from normwright.bench.telling.notes import BUSY
from normwright.bench.timer import Budget
from normwright.bench.truth import VALUES_COMPARED
from normwright.kernels import NATIVE
from normwright.report import records, terminal
from normwright.report.records import Record
from normwright.report.words import Say
from normwright.report.writable import check_writable

FULL_BUDGET, QUICK_BUDGET = Budget(seconds=0.6, least=5, most=300), Budget(seconds=0.25, least=3, most=100)
SLOW = (cases.COMPILED, cases.JAX)


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Attributes:
        quick: few inputs, few rounds, warm memory alone.
        threads: numbers of threads; empty is as many as torch uses.
        only: a pattern that a cell's name must hold.
        names: contenders beside ours; None is all that are here.
    """

    quick: bool = False
    threads: tuple[int, ...] = ()
    only: str | None = None
    names: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        *,
        quick: bool = False,
        threads: Sequence[str] | None = None,
        only: str | None = None,
        contenders: str | None = None,
    ) -> "Order":
        """From the words of a command line.

        Raises:
            CannotMeasure: a word is none of those that can be.
        """
        counts: list[int] = []
        for word in ",".join(threads or ()).split(",") if threads else ():
            if word != "all" and not (word.isdecimal() and int(word) > 0):
                raise CannotMeasure(f"expected --threads from 1, or all, got {word}.")
            counts.append(_cores() if word == "all" else int(word))
        try:
            re.compile(only or "")
        except re.error as error:
            raise CannotMeasure(
                f"expected --only to be a regular expression, got {only!r}: {error}."
            ) from error
        names = None if contenders is None else tuple(contenders.split(","))
        for name in names or ():
            if name not in (*cases.RIVALS, cases.OURS):
                known = ", ".join((*cases.RIVALS, cases.OURS))
                raise CannotMeasure(f"expected --contenders among {known}, got {name}.")
        return cls(quick, tuple(dict.fromkeys(counts)), only, names)

    @property
    def command(self) -> str:
        """The command that asks for it."""
        parts = ["normwright bench", *["--quick"] * self.quick]
        parts += [f"--threads {','.join(map(str, self.threads))}"] * bool(self.threads)
        parts += [f"--only {shlex.quote(self.only)}"] if self.only is not None else []
        parts += [f"--contenders {','.join(self.names)}"] if self.names is not None else []
        return " ".join(parts)


class Left(ProgressColumn):
    """The time that remains, by all that went before: rich's own goes by the last steps, and the jobs differ."""

    def render(self, task: Task) -> str:
        """Minutes and seconds, rounded."""
        if not task.completed or task.elapsed is None or task.total is None:
            return "-:--"
        seconds = round(task.elapsed * (task.total - task.completed) / task.completed)
        return f"{seconds // 60}:{seconds % 60:02}"


def run(
    order: Order,
    *,
    into: Path | None = None,
    figure: Path | None = None,
    console: Console | None = None,
    of: Grid | None = None,
    budget: Budget | None = None,
) -> bool:
    """Measure, print the tables, write the records where asked; False where a contender was refused.

    Args:
        order: what.
        into: a file for the records, in a folder that is there; None writes nothing.
        figure: a file for a picture of them.
        console: where to print.
        of, budget: others than those `order.quick` chooses from.

    Raises:
        CannotMeasure: no native kernels, nothing chosen, a contender that is not here, or a process broke.
        WrongValues: a sweep of the floor does not do what it should.
        OSError: a file cannot be written, or its folder is not there: raised before anything is measured.
    """
    if not NATIVE:
        raise CannotMeasure(f"there is nothing to measure: {machine.PURE}.")
    console = console or Console()
    for file in (into, figure):
        if file is not None:
            check_writable(file)
    names, missing = _contenders(order)
    states = allocators()
    if len(states) == 1:
        console.print(
            "Warm memory is not measured: that takes glibc, and this Python uses another C library."
        )
    for name, why in missing.items():
        console.print(f"{name} is not measured: {why}.", highlight=False)
    of = of or (grid.quick() if order.quick else grid.full())
    budget = budget or (QUICK_BUDGET if order.quick else FULL_BUDGET)
    jobs = plan(order, of, names, list(states), budget)
    if not jobs:
        raise CannotMeasure(f"expected --only to be found in a cell's name, got {order.only!r}.")
    load = _load()
    if load > BUSY:
        console.print(f"The machine is busy (load {load:.1f}): times will be rough.", highlight=False)
    with Workers(states, names) as workers:
        measured = _measure_all(jobs, workers, console)
    document = {**_about(order, of, jobs, states), "missing": missing, "load": round(load, 2)}
    if into is not None:
        records.write(into, measured, **document)
    about = {**document, "stamp": records.stamp()}
    terminal.show(table.document(measured, about), console, Say())
    if into is not None:
        console.print(f"The records: {into}", soft_wrap=True)
    if figure is not None:
        from normwright.bench.telling import figure as picture

        picture.save(measured, figure, Say())
        console.print(f"The figure: {figure}", soft_wrap=True)
    return all(r.value is not None for r in measured)


def plan(order: Order, of: Grid, names: Sequence[str], states: Sequence[str], budget: Budget) -> list[Job]:
    """Every job: each input in the first state of the allocator with torch's layer and ours.

    Rivals that take long, and torch's layer in the other state, only join on the subset; where cells were chosen by
    name, on all. Large inputs come once more, for the memory that a step takes.
    """
    only = None if order.only is None else re.compile(order.only)
    jobs = []
    for threads in order.threads or (None,):
        for entry, case in of.cases(DTYPES[:2] if order.quick else DTYPES):
            ops = grid.chosen(case, only)
            if not ops:
                continue
            whole = only is not None or (entry.subset and case.dtype in DTYPES[:2] and not order.quick)
            slow = whole or (order.quick and order.names is not None)
            everyone = tuple(name for name in names if slow or name not in SLOW)
            quick_ones = tuple(name for name in names if name not in SLOW)
            jobs.append(Job(case, ops, everyone, budget, states[0], threads))
            others = states[1:] if whole else ()
            jobs += [Job(case, ops, quick_ones, budget, state, threads) for state in others]
            if can_count() and case.bytes >= NOISE:
                jobs.append(Job(case, ops, everyone, budget, cases.COUNTING, threads))
    return jobs


def file_name() -> str:
    """The results file of this machine, named after its processor and cores."""
    stamped = records.stamp()
    return (
        re.sub(r"[^a-z0-9]+", "-", f"{stamped['processor']} {stamped['cores']} cores".lower()).strip("-")
        + ".json"
    )


def expected_seconds(job: Job) -> float:
    """About how long a job takes: start, values against float64, timing. Only the progress bar asks."""
    values, ops = job.case.values, len(job.ops)
    if job.allocator == cases.COUNTING:
        return 0.3 + ops * (4e-8 * values * len(job.names) + 1.5 * (cases.COMPILED in job.names))
    compiling = 4.0 * (cases.COMPILED in job.names) + 2.0 * (cases.JAX in job.names)
    slow = 1e-7 * values * sum(name in SLOW for name in job.names)
    compared = 1e-7 * min(values, VALUES_COMPARED) * len(job.names)
    timed = min(
        max(job.budget.seconds, 2e-8 * values * job.budget.least), 1e-4 * job.budget.most + 1e-6 * values
    )
    return 0.2 + 4e-8 * values + ops * (compiling + slow + compared + timed)


def _contenders(order: Order) -> tuple[list[str], dict[str, str]]:
    """The names of those who are timed, ours last, and of those who cannot be, why."""
    from normwright.bench import peers  # loads torch

    missing = peers.missing()
    for name in order.names or ():
        if name in missing:
            raise CannotMeasure(f"expected --contenders that are here, got {name}: {missing[name]}.")
    asked = [name for name in cases.RIVALS if order.names is None or name in order.names]
    return [*(name for name in asked if name not in missing), cases.OURS], {
        name: why for name, why in missing.items() if name in asked
    }


def _about(order: Order, of: Grid, jobs: Sequence[Job], states: dict[str, dict[str, str]]) -> dict[str, Any]:
    """What stands beside the records."""
    used = {job.allocator for job in jobs}
    names = dict.fromkeys(name for job in jobs for name in job.names)
    whole = [job.case for job in jobs if set(job.names) & set(SLOW) or job.allocator == cases.DEFAULT]
    places = {(entry.shape, entry.layout): entry.reason for entry in of.entries}
    measured = dict.fromkeys((job.case.shape, job.case.layout) for job in jobs)
    return {
        "experiment": "bench",
        "command": order.command,
        "quick": order.quick,
        "allocators": {name: variables for name, variables in states.items() if name in used},
        "kernels": machine.kernels(),
        "contenders": {name: _version(name) for name in names},
        "subset": list(dict.fromkeys(_named(case.shape, case.layout) for case in whole)),
        "reasons": {_named(*place): places[place] for place in measured},
        "grids": {
            name: {_named(*place): weight for place, weight in weights.items() if place in measured}
            for name, weights in of.weights.items()
        },
    }


def _named(shape: tuple[int, ...], layout: cases.Layout) -> str:
    return f"{Case(shape, layout).size} {layout}"


def _version(name: str) -> str:
    return metadata.version("torch" if name == cases.COMPILED else name)


def _load() -> float:
    """How many processes ran in the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _cores() -> int:
    return int(records.stamp()["cores"] or 1)


def _measure_all(jobs: Sequence[Job], workers: Workers, console: Console) -> list[Record]:
    measured: list[Record] = []
    with _bar(jobs, console) as begin:
        for job in jobs:
            measured += workers.measure(job, begin(job))
    return measured


@contextmanager
def _bar(jobs: Sequence[Job], console: Console) -> Iterator[Callable[[Job], Callable[[float], None]]]:
    """A bar over all jobs; what it gives is called as each begins, and what that gives with the share done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        Left(),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        task = progress.add_task("", total=sum(map(expected_seconds, jobs)))
        before = 0.0

        def begin(job: Job) -> Callable[[float], None]:
            nonlocal before
            case, start, seconds = job.case, before, expected_seconds(job)
            before += seconds
            words = f"{case.size:>15} {case.layout:<13} {case.dtype:<8} {job.allocator:<7}"
            progress.update(task, description=words, completed=start)
            return lambda share: progress.update(task, completed=start + share * seconds)

        yield begin
        progress.update(task, description="Measured", completed=before)
