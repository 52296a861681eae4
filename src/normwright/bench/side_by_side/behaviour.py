"""What torch's layers do in every situation, and what ours do: a table for the terminal and for the docs."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from rich.console import Console
from torch import nn

import normwright.torch as nw
from normwright import __version__
from normwright.bench.side_by_side.situations import SITUATIONS
from normwright.kernels import NATIVE
from normwright.report import markdown, terminal
from normwright.report.document import Table

DOORS: dict[str, ModuleType] = {"torch": nn, "normwright": nw}
COMMAND, MARKERS = "normwright behaviour", "behaviour"
Cells = list[tuple[str, ...]]


def run(*, into: Path | None = None, console: Console | None = None) -> None:
    """Bring every situation about, print the table, and put it between a file's markers where asked.

    Args:
        into: a Markdown file.
        console: where to print.

    Raises:
        OSError: `into` cannot be read or written.
        ValueError: `into` has no markers; nothing was done then.
    """
    console = console or Console()
    if into is not None:
        markdown.put_into(into.read_text(encoding="utf-8"), MARKERS, "")
    cells = measure(console)
    if into is not None:
        markdown.write_into(into, MARKERS, as_markdown(cells))
    shown = _table([each.title for each in SITUATIONS], cells)
    plain = replace(shown, rows=tuple(tuple(map(_plain, row)) for row in shown.rows), note=_plain(shown.note))
    terminal.put(plain, console, numbers=False)
    if into is not None:
        console.print(f"The table: {into}", soft_wrap=True)


def measure(console: Console) -> Cells:
    """What the layers of each door do: a row for each situation, a cell for each door."""
    cells = []
    with terminal.Bars(console) as bars:
        for name in DOORS:
            bars.add(name, work=len(SITUATIONS))
        for each in SITUATIONS:
            row = []
            for name, door in DOORS.items():
                bars.begin(name, _plain(each.title))
                row.append(each.tell(door))
                bars.advance(name, 1)
            cells.append(tuple(row))
    return cells


def as_markdown(cells: Cells) -> str:
    """The table for docs/pytorch.md, each row with a link to its section."""
    return markdown.table(
        _table([f"[{each.title}](#{each.section})" for each in SITUATIONS], cells), numbers=False
    )


def _table(titles: list[str], cells: Cells) -> Table:
    rows = tuple((title, *row) for title, row in zip(titles, cells, strict=True))
    made = f"Made by `{COMMAND}`: normwright {__version__} beside torch {torch.__version__.partition('+')[0]}"
    return Table("", ("situation", *DOORS), rows, f"{made}{'' if NATIVE else ', without native kernels'}.")


def _plain(words: str) -> str:
    return words.replace("`", "")
