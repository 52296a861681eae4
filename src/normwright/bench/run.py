"""The whole benchmark: a process for each case and state of the allocator, its progress, its records."""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn

from normwright.bench import machine, table
from normwright.bench.cases import CASES, QUICK, Case
from normwright.bench.timer import Budget, WrongValues
from normwright.bench.worker import REFUSED, Job
from normwright.kernels import NATIVE
from normwright.report import records, terminal
from normwright.report.records import Record
from normwright.report.words import Say

# glibc reads these when a process starts: no block is mapped of its own, and none is ever handed back, so that an
# output finds the pages of one freed before.
WARM = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
FULL_BUDGET, QUICK_BUDGET = Budget(seconds=3, least=9, most=1000), Budget(seconds=0.6, least=3, most=200)


class CannotMeasure(Exception):  # noqa: N818  # a state of things, and the words a user reads
    """There is nothing here that could be measured."""


class Left(ProgressColumn):
    """The time that remains, by all that went before: rich's own goes by the last steps, and the jobs differ."""

    def render(self, task: Task) -> str:
        """Minutes and seconds, rounded."""
        if not task.completed or task.elapsed is None or task.total is None:
            return "-:--"
        seconds = round(task.elapsed * (task.total - task.completed) / task.completed)
        return f"{seconds // 60}:{seconds % 60:02}"


def run(
    *,
    quick: bool = False,
    threads: int | None = None,
    into: Path | None = None,
    console: Console | None = None,
    cases: Sequence[Case] | None = None,
    budget: Budget | None = None,
) -> list[Record]:
    """Measure every case in every state of the allocator, print the tables, write the records where asked.

    Args:
        quick: few cases, few rounds.
        threads: how many; None is as many as torch uses.
        into: a file; None writes nothing.
        console: where to print.
        cases, budget: others than those `quick` chooses from.

    Raises:
        CannotMeasure: no native kernels, or a process that measures broke.
        WrongValues: a contender does not compute what it should.
        OSError: `into` cannot be written; raised before anything is measured.
    """
    if not NATIVE:
        raise CannotMeasure(f"there is nothing to measure: {machine.PURE}.")
    console = console or Console()
    if into is not None:
        _claim(into)
    cases = cases or (QUICK if quick else CASES)
    budget = budget or (QUICK_BUDGET if quick else FULL_BUDGET)
    states = allocators()
    if len(states) == 1:
        console.print(
            "Warm memory is not measured: that takes glibc, and this Python uses another C library."
        )
    jobs = [Job(case, budget, state, threads) for case in cases for state in states]
    measured = _measure_all(jobs, states, console)
    about = {
        "command": _command(quick, threads),
        "quick": quick,
        "allocators": states,
        "kernels": machine.kernels(),
    }
    document = {"experiment": "bench", **about}
    if into is not None:
        records.write(into, measured, **document)
    terminal.show(table.document(measured, {**document, "stamp": records.stamp()}), console, Say())
    if into is not None:
        console.print(f"The records: {into}", soft_wrap=True)
    return measured


def file_name() -> str:
    """The results file of this machine, named after its processor and cores."""
    stamped = records.stamp()
    return (
        re.sub(r"[^a-z0-9]+", "-", f"{stamped['processor']} {stamped['cores']} cores".lower()).strip("-")
        + ".json"
    )


def allocators() -> dict[str, dict[str, str]]:
    """The states of the allocator that can be measured here, and the variables that bring each about."""
    default: dict[str, dict[str, str]] = {"default": {}}
    return {"warm": WARM, **default} if platform.libc_ver()[0] == "glibc" else default


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with these variables, and no others, for glibc's allocator."""
    theirs = {
        key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    return {**theirs, **variables}


def expected_seconds(job: Job) -> float:
    """About how long a job takes: start, values against float64, timing. Only the progress bar asks."""
    return 2.5 + 1.5e-7 * job.case.values + max(job.budget.seconds, 3e-8 * job.case.values * job.budget.least)


def measure_apart(job: Job, variables: Mapping[str, str], tell: Callable[[float], None]) -> list[Record]:
    """Measure one case in a process that is started with these variables."""
    command = [sys.executable, "-m", "normwright.bench.worker", job.dumps()]
    with tempfile.TemporaryFile("w+") as complaints, _worker(command, variables, complaints) as process:
        assert process.stdout is not None  # it is a pipe
        message: dict[str, Any] = {}
        for line in process.stdout:
            message = json.loads(line)
            tell(message.get("over", 1.0))
        status = process.wait()
        if status == REFUSED:
            raise WrongValues(message["refused"])
        if status != 0 or "records" not in message:
            complaints.seek(0)
            last = (complaints.read().strip().splitlines() or ["it said nothing"])[-1]
            raise CannotMeasure(
                f"{job.case.size} {job.case.layout}, {job.allocator}: ended with status {status}: {last}"
            )
    return [Record(**told) for told in message["records"]]


@contextmanager
def _worker(
    command: Sequence[str], variables: Mapping[str, str], complaints: Any
) -> Iterator[subprocess.Popen[str]]:
    """A worker that does not outlive us, however we leave."""
    with subprocess.Popen(
        command, env=environment(variables), stdout=subprocess.PIPE, stderr=complaints, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _measure_all(
    jobs: Sequence[Job], states: Mapping[str, Mapping[str, str]], console: Console
) -> list[Record]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        Left(),
    )
    measured: list[Record] = []
    with Progress(*columns, console=console, expand=True) as progress:
        task = progress.add_task("", total=sum(map(expected_seconds, jobs)))
        before = 0.0
        for job in jobs:
            progress.update(task, description=f"{job.case.size:>14} {job.case.layout:<13} {job.allocator:<7}")
            seconds = expected_seconds(job)
            measured += measure_apart(job, states[job.allocator], _bar(progress, task, before, seconds))
            before += seconds
            progress.update(task, completed=before)
        progress.update(task, description="Measured")
    return measured


def _bar(progress: Progress, task: TaskID, before: float, seconds: float) -> Callable[[float], None]:
    def tell(share: float) -> None:
        progress.update(task, completed=before + share * seconds)

    return tell


def _claim(into: Path) -> None:
    """Make the file's folder and see that it can be written, before minutes are spent."""
    if into.is_dir():
        raise IsADirectoryError(EISDIR, "it is a folder")
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=into.parent):
        pass


def _command(quick: bool, threads: int | None) -> str:
    return "normwright bench" + " --quick" * quick + (f" --threads {threads}" if threads is not None else "")
