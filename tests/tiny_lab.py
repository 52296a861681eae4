"""Experiments at tiny size for the tests: measured in memory, told as the report tells them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from normwright.lab.data import Source, load
from normwright.lab.experiment import AnyExperiment, Desk
from normwright.lab.notebook import Notebook
from normwright.lab.run import plain
from normwright.lab.train import one_thread
from normwright.report.document import Card
from normwright.report.figures import svg
from normwright.report.records import Record
from normwright.report.result import Result
from normwright.report.words import Say

EN, ZH = Say("en"), Say("zh")


class Counted:
    """A watch that remembers: which trials, and how much work."""

    def __init__(self) -> None:
        self.trials: list[str] = []
        self.work = 0.0

    def begin(self, what: str) -> None:
        self.trials.append(what)

    def advance(self, work: float) -> None:
        self.work += work


@cache
def _digits() -> Source:
    return load("digits")


def measure(experiment: AnyExperiment, plan: Any = None, *, seed: int = 0) -> tuple[Result, Counted]:
    """Run `experiment` on the digits, by default as its tiny plan; the result, and what the watch saw."""
    watch = Counted()
    plan = experiment.plans["tiny"] if plan is None else plan
    with one_thread():
        found = list(experiment.measure(Desk(_digits(), seed, Notebook(watch)), plan))
    return made_up(experiment.name, found, plain(plan)), watch


def made_up(name: str, records: Sequence[Record], settings: Mapping[str, Any] | None = None) -> Result:
    """A result of records that a test wrote down itself."""
    told = [replace(record, experiment=name) for record in records]
    return Result(name, told, settings or {}, f"normwright lab {name}")


def assert_told(card: Card) -> None:
    """A card is whole: a claim, a verdict, pictures that can be drawn, in letters that are there."""
    assert card.claim
    assert card.done
    assert card.verdicts
    assert card.command
    for picture in card.pictures:
        assert picture.alt
        assert "<path" in svg(
            picture.draw(), picture.name
        )  # a sign that the type lacks is a warning: an error
    for table in card.tables + card.details:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
