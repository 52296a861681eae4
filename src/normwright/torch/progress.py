"""How far long work is: a bar in the terminal, or whatever the caller wants to be told."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from normwright.core.checks import DtypeError, message

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Tell = Callable[[int, int | None], object]
_LONG = 2.0  # seconds after which somebody at a terminal wants to know


class Told:
    """Counts steps and tells of them.

    Args:
        call: whose name errors and the bar carry.
        progress: True for a bar, False for silence, None for a bar where stderr is a terminal and the work takes
            longer than 2 seconds; or a function of (steps done, steps in all or None).
    """

    def __init__(self, call: str, progress: bool | Tell | None) -> None:
        given: object = progress
        if not (given is None or isinstance(given, bool) or callable(given)):
            expected = "progress to be None, True, False or a function of (done, total)"
            raise DtypeError(message(call, expected, repr(progress)))
        self._name, self._began, self._done = call.rpartition(".")[2], time.monotonic(), 0
        self._total: int | None = None
        self._words = ""
        self._tell: Tell | None = None if progress is None or isinstance(progress, bool) else progress
        self._at_once, self._late = progress is True, progress is None and sys.stderr.isatty()
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def expect(self, total: int | None, words: str) -> None:
        """So many steps in all, None where nobody knows; `words` say what they are."""
        self._total, self._words = total, words
        if self._tell is not None:
            self._tell(self._done, total)
        self._draw()

    def step(self) -> None:
        """One more step is done."""
        self._done += 1
        if self._tell is not None:
            self._tell(self._done, self._total)
        self._draw()

    def _draw(self) -> None:
        if not (self._at_once or (self._late and time.monotonic() - self._began > _LONG)):
            return
        if self._bar is None:
            self._bar = _bar()
        bar, task = self._bar
        bar.update(task, completed=self._done, total=self._total, description=f"{self._name}: {self._words}")
        bar.start()  # once, and with its words


def _bar() -> "tuple[Progress, TaskID]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True))
    return bar, bar.add_task("", total=None)
