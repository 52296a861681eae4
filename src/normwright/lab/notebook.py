"""The notebook of an experiment: what was measured stays measured when the run is cut off."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from normwright.report.records import Record


class Watch(Protocol):
    """Whoever looks on while an experiment runs."""

    def begin(self, what: str) -> None:
        """A trial begins."""

    def advance(self, work: float) -> None:
        """So much of the experiment's work is done; the unit is one training step of the MLP."""


class Notebook:
    """Trials by name, each measured once: in memory, and in `path` too where there is one.

    A line of the file is one trial, written when it is complete: whenever the run ends, every line but the
    last is whole, and the last is dropped where it is not.
    """

    def __init__(self, watch: Watch, path: Path | None = None) -> None:
        self._watch = watch
        self._path = path
        self._known: dict[str, list[Record]] = {}
        self._told: set[str] = set()  # whose work the watch has heard of, asked for twice or not
        self._ahead = 0.0  # work of the present trial that the watch has heard of
        if path is not None and path.exists():
            self._known = _read(path)
            self._rewrite(path)
        self.resumed = len(self._known)

    def once(self, what: str, work: float, measure: Callable[[], Iterable[Record]]) -> list[Record]:
        """The records of the trial `what`: those known, or else those that `measure` now yields.

        Args:
            what: names the trial, uniquely in its experiment, in words that a reader understands.
            work: about how much it is, in training steps of the MLP.
            measure: measures it; calls `advance` as it goes, if it likes.

        Raises:
            ValueError: a value is nan or infinite, which no file of records holds.
        """
        if what in self._told:
            return self._known[what]
        self._ahead = 0.0
        if what not in self._known:
            self._watch.begin(what)
            records = list(measure())
            line = _line(what, records)  # refuses nan and infinity, in memory too
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(line)
            self._known[what] = records
        self.advance(work - self._ahead)
        self._told.add(what)
        return self._known[what]

    def advance(self, work: float) -> None:
        """So much of the present trial is done."""
        self._ahead += work
        self._watch.advance(work)

    def _rewrite(self, path: Path) -> None:
        """Drop a line that was cut off, so that the next one begins where a line begins."""
        whole = path.with_name(path.name + ".part")  # being cut off here, too, loses nothing
        whole.write_text("".join(_line(*trial) for trial in self._known.items()), encoding="utf-8")
        whole.replace(path)


def _line(what: str, records: Iterable[Record]) -> str:
    return json.dumps({"trial": what, "records": [asdict(r) for r in records]}, allow_nan=False) + "\n"


def _read(path: Path) -> dict[str, list[Record]]:
    known = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            trial = json.loads(line)
        except json.JSONDecodeError:
            break  # the line that was being written when the run ended
        known[trial["trial"]] = [Record(**record) for record in trial["records"]]
    return known
