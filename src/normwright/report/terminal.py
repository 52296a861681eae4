"""A report in the terminal: the bars while it is measured, the tables when it is done."""

from collections.abc import Callable, Iterable
from io import StringIO
from shutil import get_terminal_size
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from normwright.report.document import Document, Notice, Outcome, Table, Tone, Verdict, outcome_words
from normwright.report.fitting import fit, taken
from normwright.report.words import Say

_WIDE = 116  # of the widest table of ours; text in a file or a log has this width
STYLES: dict[Outcome, str] = {"holds": "green", "holds partly": "yellow", "does not hold here": "red"}
TONES: dict[Tone, str] = {"error": "red", "warning": "yellow", "note": "cyan"}


class Bars:
    """Live bars: one for each experiment, with what it is doing, and one for all of them together."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=3, no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        # The speed of the last minute and not of the last steps: experiments differ in the pace of theirs.
        self._progress = Progress(*columns, console=console, expand=True, speed_estimate_period=60)
        self._whole = self._progress.add_task("all: starting", total=0)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:  # the work was an estimate; what is done is done
            for task in self._progress.tasks:
                self._progress.update(task.id, completed=task.total)
        self._progress.stop()

    def add(self, experiment: str, *, work: float) -> None:
        """Announce an experiment, and about how much work it is."""
        self._tasks[experiment] = self._progress.add_task(experiment, total=work, start=False)
        self._progress.update(self._whole, total=(self._progress.tasks[self._whole].total or 0) + work)

    def begin(self, experiment: str, what: str) -> None:
        """A trial of `experiment` begins."""
        self._progress.update(self._whole, description="all")
        self._progress.start_task(self._tasks[experiment])
        self._progress.update(self._tasks[experiment], description=f"{experiment}: {what}")

    def advance(self, experiment: str, work: float) -> None:
        """So much of `experiment` is done."""
        self._progress.advance(self._tasks[experiment], work)
        self._progress.advance(self._whole, work)


def show(document: Document, console: Console, say: Say) -> None:
    """Print the headline, each card's tables and its verdicts."""
    console.print()
    console.print(Text(document.headline, style="bold"))
    console.print(Text(document.about, style="dim"))
    for card in document.cards:
        console.print()
        console.print(Text(card.title, style="bold"))
        for table in card.tables:
            put(table, console)
        for verdict in card.verdicts:
            console.print(_verdict(verdict, say))
    console.print()


def show_notices(headline: str, about: str, notices: Iterable[Notice], console: Console) -> None:
    """Print the headline and each notice: where it comes from, the table of where it was seen, what to do."""
    console.print()
    console.print(Text(headline, style="bold"))
    if about:
        console.print(Text(about, style="dim"))
    for notice in notices:
        console.print()
        console.print(Text(notice.title, style=f"bold {TONES[notice.tone]}"))
        console.print(Padding(Text(notice.before), (0, 0, 0, 1)))
        put(notice.table, console)
        console.print(Padding(Text(notice.after), (0, 0, 0, 1)))
    console.print()


def as_text(headline: str, about: str, notices: Iterable[Notice]) -> str:
    """What `show_notices` prints, without colours, as wide as `table_as_text`."""
    return _as_text(lambda console: show_notices(headline, about, notices, console))


def table_as_text(table: Table) -> str:
    """The table, without colours, as wide as the terminal is: at most `_WIDE`, and that where there is none."""
    return _as_text(lambda console: put(table, console))


def _as_text(show: Callable[[Console], None]) -> str:
    written = StringIO()
    width = min(_WIDE, get_terminal_size((_WIDE, 0)).columns)
    show(Console(file=written, width=width, color_system=None))
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()).strip("\n")


def put(table: Table, console: Console, *, numbers: bool = True) -> None:
    """Print a table: numbers to the right, and taken apart where they need more room; words stay together."""
    for part, widths in fit(table, console.width, whole=not numbers):
        rich = RichTable(
            box=box.SIMPLE_HEAD,
            title=Text(part.title) if part.title else None,
            title_justify="left",
            caption=Text(part.note) if part.note else None,
            caption_justify="left",
            header_style="bold",
            width=taken(widths),  # else rich leaves out columns where the terminal is too narrow
        )
        for number, (column, width) in enumerate(zip(part.columns, widths, strict=True)):
            right = numbers and number >= part.names
            rich.add_column(Text(column), justify="right" if right else "left", width=width, overflow="fold")
        for row in part.rows:
            rich.add_row(*(Text(cell) for cell in row))
        console.print(rich, crop=False)


def _verdict(verdict: Verdict, say: Say) -> Padding:
    outcome = (outcome_words(verdict.outcome, say), f"bold {STYLES[verdict.outcome]}")
    words = Text.assemble(f"{verdict.claim}: ", outcome, f". {verdict.sentence}")
    return Padding(words, (0, 0, 0, 1))
