"""Experiments side by side: one process a core, each computing in one thread, telling how far it is."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from normwright.lab.data import Source, load
from normwright.lab.experiment import Desk, Size
from normwright.lab.notebook import Notebook
from normwright.lab.registry import EXPERIMENTS
from normwright.lab.train import one_thread
from normwright.report.records import Record

TELL_EVERY = 0.1  # seconds between two messages to the parent about how much work is done
_messages: Any = None  # in a worker: its end of the queue


class Bars(Protocol):
    """Where progress is shown."""

    def begin(self, experiment: str, what: str) -> None:
        """A trial of `experiment` begins."""

    def advance(self, experiment: str, work: float) -> None:
        """So much of `experiment` is done."""


@dataclass(frozen=True)
class Task:
    """One experiment to run, and the file that remembers its trials (None: none does)."""

    name: str
    size: Size
    data: str
    seed: int
    trials: Path | None


def measure(tasks: Sequence[Task], bars: Bars, jobs: int) -> dict[str, tuple[list[Record], float]]:
    """Run all tasks, `jobs` at a time: records and seconds by name. The same numbers for any `jobs`."""
    if jobs == 1 or len(tasks) == 1:
        return {task.name: _run(task, bars) for task in tasks}
    context = multiprocessing.get_context("spawn")
    messages = context.SimpleQueue()  # no thread behind it: what a worker told is there when its result is
    pool = ProcessPoolExecutor(jobs, context, initializer=_start, initargs=(messages,))
    try:
        futures = {pool.submit(_work, task): task.name for task in _longest_first(tasks)}
        _follow(futures, messages, bars)
        return {name: future.result() for future, name in futures.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _longest_first(tasks: Sequence[Task]) -> list[Task]:
    def work(task: Task) -> float:
        experiment = EXPERIMENTS[task.name]
        return experiment.work(experiment.plans[task.size])

    return sorted(tasks, key=work, reverse=True)


def _follow(futures: Mapping[Future[Any], str], messages: Any, bars: Bars) -> None:
    """Show what the workers tell until all are done or one has failed."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=TELL_EVERY, return_when=FIRST_EXCEPTION)
        while not messages.empty():
            name, what, work = messages.get()
            if what is not None:
                bars.begin(name, what)
            bars.advance(name, work)
        for future in done:
            future.result()


def _run(task: Task, bars: Bars) -> tuple[list[Record], float]:
    """One experiment, here and now."""
    experiment = EXPERIMENTS[task.name]
    began = time.perf_counter()
    notebook = Notebook(_Watch(task.name, bars), task.trials)
    desk = Desk(_source(task.data), task.seed, notebook)
    with one_thread():
        found = list(experiment.measure(desk, experiment.plans[task.size]))
    return found, time.perf_counter() - began


@dataclass(frozen=True)
class _Watch:
    """The notebook's watch: passes on whose work it is."""

    name: str
    bars: Bars

    def begin(self, what: str) -> None:
        self.bars.begin(self.name, what)

    def advance(self, work: float) -> None:
        self.bars.advance(self.name, work)


@cache
def _source(spec: str) -> Source:
    return load(spec)


# --- in a worker ------------------------------------------------------


def _start(messages: Any) -> None:
    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers: they end themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Task) -> tuple[list[Record], float]:
    messenger = _Messenger()
    done = _run(task, messenger)
    messenger.flush(task.name)
    return done


class _Messenger:
    """The bars as a worker sees them: small amounts of work are told together."""

    def __init__(self) -> None:
        self._work = 0.0
        self._told = time.monotonic()

    def begin(self, experiment: str, what: str) -> None:
        _messages.put((experiment, what, 0.0))

    def advance(self, experiment: str, work: float) -> None:
        self._work += work
        if time.monotonic() - self._told >= TELL_EVERY:
            self.flush(experiment)

    def flush(self, experiment: str) -> None:
        _messages.put((experiment, None, self._work))
        self._work, self._told = 0.0, time.monotonic()
