"""A report in the terminal: the bars while it is measured, the tables when it is done."""

from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from normwright.report.document import Document, Outcome, Table, Verdict

STYLES: dict[Outcome, str] = {"holds": "green", "holds partly": "yellow", "does not hold here": "red"}


class Training:
    """Live bars: one for the whole, in estimated seconds, that says what runs now; one for each network."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description:<32}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, expand=True)
        self._whole = self._progress.add_task("Preparing", total=None)
        self._networks: dict[str, tuple[TaskID, float]] = {}
        self._now: tuple[TaskID, float] | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._progress.update(
                self._whole, description="Trained", completed=self._progress.tasks[self._whole].total
            )
        self._progress.stop()

    def add(self, network: str, *, steps: int, seconds_per_step: float) -> None:
        """Announce a network: how many steps it will take, and about how long each."""
        self._networks[network] = (
            self._progress.add_task(f"  {network}", total=steps, start=False),
            seconds_per_step,
        )
        seconds = sum(
            (self._progress.tasks[task].total or 0) * each for task, each in self._networks.values()
        )
        self._progress.update(self._whole, total=seconds)

    def run(self, network: str, what: str) -> None:
        """A training of `network` begins."""
        task, _ = self._now = self._networks[network]
        if not self._progress.tasks[task].started:
            self._progress.start_task(task)
        self._progress.update(self._whole, description=what)

    def step(self) -> None:
        """One step of it is done."""
        if self._now is not None:
            task, seconds = self._now
            self._progress.advance(task)
            self._progress.advance(self._whole, seconds)


def show(document: Document, console: Console) -> None:
    """Print the headline, each card's tables and its verdicts."""
    console.print()
    console.print(Text(document.headline, style="bold"))
    console.print(Text(document.about, style="dim"))
    for card in document.cards:
        console.print()
        console.print(Text(card.title, style="bold"))
        for table in card.tables:
            console.print(_table(table))
        for verdict in card.verdicts:
            console.print(_verdict(verdict))
    console.print()


def _table(table: Table) -> RichTable:
    rich = RichTable(
        box=box.SIMPLE_HEAD,
        title=Text(table.title),
        title_justify="left",
        caption=Text(table.note) if table.note else None,
        caption_justify="left",
        header_style="bold",
    )
    for number, column in enumerate(table.columns):
        rich.add_column(column, justify="right" if number else "left")
    for row in table.rows:
        rich.add_row(*(Text(cell) for cell in row))
    return rich


def _verdict(verdict: Verdict) -> Padding:
    outcome = (verdict.outcome, f"bold {STYLES[verdict.outcome]}")
    words = Text.assemble(f"{verdict.claim}: ", outcome, f". {verdict.sentence}")
    return Padding(words, (0, 0, 0, 1))
