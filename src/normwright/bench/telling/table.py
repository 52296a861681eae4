"""The benchmark's records, told: a summary for the terminal and a README, a table per cell. Defeats come first."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from normwright.bench.cases import DTYPES
from normwright.bench.telling.cells import cells
from normwright.bench.telling.notes import notes
from normwright.bench.telling.overall import by_layout, defeats, grids, headline, means, verdicts
from normwright.bench.telling.percell import beside_rivals, by_default, each_cell
from normwright.bench.telling.told import Told
from normwright.report import markdown as paper
from normwright.report.document import Card, Document, Table, outcome_words
from normwright.report.records import Record
from normwright.report.words import Say

FEW = 40  # cells that a terminal shows one by one


def document(records: Sequence[Record], about: Mapping[str, Any]) -> Document:
    """What the terminal prints, in English."""
    say = Say()
    told = Told(cells(records), about, say, "{}<", short=True)
    tables = [means(told), *grids(told), *defeats(told)]
    if len(told.of) <= FEW:
        tables += each_cell(told)
    return Document(
        title="Batch normalization beside torch and the memory floor",
        headline=headline(told),
        about=" ".join(notes(records, about, say)).replace("`", ""),
        cards=(Card("speed", "Speed", "", "", tuple(verdicts(told)), tables=tuple(tables)),),
        command=about["command"],
        stamp=tuple((key, str(value)) for key, value in about["stamp"].items()),
    )


def summary(records: Sequence[Record], about: Mapping[str, Any], say: Say) -> str:
    """What a README shows: means, and what was lost."""
    told = Told(cells(records), about, say, "**{}**")
    lines = [
        say(
            f"- {v.claim}: {outcome_words(v.outcome, say)}. {v.sentence}",
            f"- {v.claim}：{outcome_words(v.outcome, say)}。{v.sentence}",
        )
        for v in verdicts(told)
    ]
    tables = [means(told, DTYPES[:2]), *grids(told), *defeats(told)]
    return _paper(["\n".join(lines), *map(_with_title, tables), "\n".join(notes(records, about, say))])


def per_cell(records: Sequence[Record], about: Mapping[str, Any], say: Say) -> str:
    """The long tables, for a page of their own."""
    told = Told(cells(records), about, say, "**{}**")
    tables = [means(told), by_layout(told), *each_cell(told), *beside_rivals(told), *by_default(told)]
    return _paper([*map(_with_title, tables), "\n".join(notes(records, about, say))])


def _with_title(table: Table) -> str:
    words = any(" " in row[-1] for row in table.rows)  # the last column holds no numbers
    return f"**{table.title}**\n\n{paper.table(table, numbers=not words)}"


def _paper(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
