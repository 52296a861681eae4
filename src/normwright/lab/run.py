"""From names of experiments to a folder: the page, the records, the pictures. What was measured is kept."""

import ast
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from normwright import __version__
from normwright.lab import workers
from normwright.lab.data import Source, load
from normwright.lab.experiment import AnyExperiment, Size
from normwright.lab.networks import Network
from normwright.lab.registry import EXPERIMENTS
from normwright.report import figures, laboratory, page, records, terminal
from normwright.report.records import Record
from normwright.report.words import Language, Say
from normwright.report.writable import check_folder


@dataclass(frozen=True)
class Written:
    """The files that a run leaves."""

    results: Path
    page: Path


@dataclass(frozen=True)
class Order:
    """What to measure: which experiments, on what, from which first seed, how large."""

    names: Sequence[str]
    size: Size
    data: str = "digits"
    seed: int = 0

    def command(self, name: str) -> str:
        """The line that measures one experiment of this order again."""
        line = "demo" if self.size == "demo" else f"lab {name}"
        data = "" if self.data == "digits" else f" --data {self.data.partition('=')[0]}=DIR"
        return f"normwright {line}{data}" + (f" --seed {self.seed}" if self.seed else "")


def run(
    order: Order,
    *,
    out: Path = Path("normwright-report"),
    resume: bool = False,
    again: bool = False,
    jobs: int | None = None,
    language: Language = "en",
    console: Console | None = None,
) -> Written:
    """Measure, then print the tables and write the page, the records and the pictures into `out`.

    Args:
        order: what to measure.
        out: the folder; its file of trials lets a run that was cut off go on.
        resume: keep every trial, take up those of an earlier run with the same order, and tell every
            experiment that was ever finished with it. Otherwise everything is measured anew.
        again: with `resume`, forget what was kept of the experiments named.
        jobs: experiments side by side; default: as many as there are cores. Changes no result.
        language: of the page and the tables.
        console: where to print.

    Raises:
        OSError: `out` cannot be written, or the data not read; raised before the training begins.
        ValueError: the data are no data; as above.
    """
    console = console or Console()
    _claim(out)
    source = load(order.data)
    kept = _Kept(out / "journal", order, source) if resume else None
    if kept is not None and again:
        kept.forget()
    todo = [name for name in order.names if kept is None or not kept.finished(name).exists()]
    if len(todo) < len(order.names):
        console.print(
            f"Kept from an earlier run, not measured again (--again does): "
            f"{', '.join(name for name in order.names if name not in todo)}."
        )
    fresh = _measure(order, todo, kept, jobs or workers.cores(), console)
    found = fresh if kept is None else kept.save_and_collect(fresh)
    written = Written(out / "results.json", out / "index.html")
    _write_results(written.results, order, source, found)
    tell(written.results, out, language=language, console=console)
    return written


def tell(results: Path, out: Path, *, language: Language, console: Console) -> None:
    """Print and draw what stands in a results file, so that nothing is told that is missing in it."""
    document = laboratory.document(*records.read(results), Say(language))
    terminal.show(document, console, Say(language))
    page.write(out / "index.html", document, Say(language))
    pictures = out / "pictures"
    pictures.mkdir(exist_ok=True)
    for picture in document.pictures:
        figures.save(picture.draw(), pictures / f"{picture.name}.svg")
    console.print(f"The page: {out / 'index.html'}\nThe records: {results}", soft_wrap=True)


def _claim(out: Path) -> None:
    """Make the folder and see that it can be written, before a minute is spent."""
    out.mkdir(parents=True, exist_ok=True)
    check_folder(out)


def _measure(
    order: Order, names: Sequence[str], kept: "_Kept | None", jobs: int, console: Console
) -> dict[str, tuple[list[Record], float]]:
    if not names:
        return {}
    tasks = [
        workers.Task(name, order.size, order.data, order.seed, kept.trials(name) if kept else None)
        for name in names
    ]
    with terminal.Bars(console) as bars:
        for name in names:
            experiment = EXPERIMENTS[name]
            bars.add(name, work=experiment.work(experiment.plans[order.size]))
        measured = workers.measure(tasks, bars, min(jobs, len(tasks)))
    return {
        name: ([replace(record, experiment=name) for record in found], seconds)
        for name, (found, seconds) in measured.items()
    }


def _write_results(
    path: Path, order: Order, source: Source, found: dict[str, tuple[list[Record], float]]
) -> None:
    told = [name for name in EXPERIMENTS if name in found]
    records.write(
        path,
        (record for name in told for record in found[name][0]),
        experiment="demo" if order.size == "demo" else "lab",
        command=order.command("all" if len(told) == len(EXPERIMENTS) else " ".join(told)),
        data={"name": source.name, "pixels": source.pixels, "channels": source.channels},
        seed=order.seed,
        experiments={
            name: {
                "rows": list(EXPERIMENTS[name].rows),
                "command": order.command(name),
                "seconds": round(found[name][1], 1),
                "settings": plain(EXPERIMENTS[name].plans[order.size]),
            }
            for name in told
        },
    )


def plain(value: Any) -> Any:
    """A plan as JSON holds it; a network as its name, layers and input."""
    if isinstance(value, Network):
        return {
            "name": value.name,
            "layers": value.layers,
            "input": f"{value.channels}x{value.size}x{value.size}",
        }
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list | range):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    return value


class _Kept:
    """The folder that remembers: trials of unfinished experiments, records of finished ones.

    A file's name holds a digest of all that its numbers depend on: the plan, the data, the seed, the
    experiment's code with the laboratory's that it uses, the versions. Change one of them, and nothing old is
    taken for new.
    """

    def __init__(self, folder: Path, order: Order, source: Source) -> None:
        self._folder = folder
        self._order = order
        self._common = (
            order.size,
            order.seed,
            source.name,
            hashlib.sha256(source.images.numpy().tobytes() + source.labels.numpy().tobytes()).hexdigest(),
            __version__,
            torch.__version__,
        )
        # Taken once: a file edited while an experiment runs does not rename what the old code measured.
        self._digests = {name: self._digest(experiment) for name, experiment in EXPERIMENTS.items()}
        folder.mkdir(exist_ok=True)

    def trials(self, name: str) -> Path:
        """The trials of an experiment that is under way, a line each."""
        return self._path(name, ".jsonl")

    def finished(self, name: str) -> Path:
        """The records of an experiment that is done."""
        return self._path(name, ".json")

    def forget(self) -> None:
        """Drop what is kept of the experiments of this order."""
        for name in self._order.names:
            self.trials(name).unlink(missing_ok=True)
            self.finished(name).unlink(missing_ok=True)

    def save_and_collect(
        self, fresh: dict[str, tuple[list[Record], float]]
    ) -> dict[str, tuple[list[Record], float]]:
        """Keep what was just measured; return it with all that was finished before."""
        for name, (found, seconds) in fresh.items():
            partial = self.finished(name).with_suffix(".part")  # a file that is there is whole
            records.write(partial, found, seconds=seconds)
            partial.replace(self.finished(name))
            self.trials(name).unlink(missing_ok=True)
        collected = {}
        for name in EXPERIMENTS:
            if self.finished(name).exists():
                found, about = records.read(self.finished(name))
                collected[name] = (found, float(str(about["seconds"])))
        return collected

    def _path(self, name: str, suffix: str) -> Path:
        return self._folder / f"{name}-{self._digests[name]}{suffix}"

    def _digest(self, experiment: AnyExperiment) -> str:
        plan = plain(experiment.plans[self._order.size])
        text = json.dumps([plan, _code(experiment), *self._common], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _code(experiment: AnyExperiment) -> str:
    """A digest of the experiment's module and of the laboratory's modules that it imports, and they in turn."""
    found: dict[str, str] = {}
    todo = {experiment.measure.__module__.rpartition(".")[2]}
    while todo:
        module = todo.pop()
        text = found[module] = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
        todo |= _imported(text) - set(found)
    return hashlib.sha256("".join(found[module] for module in sorted(found)).encode()).hexdigest()


def _imported(text: str) -> set[str]:
    """The laboratory's modules that a module imports, in whatever way."""
    names = [
        f"{node.module}.{name.name}" if isinstance(node, ast.ImportFrom) else name.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    ]
    return {name.split(".")[2] for name in names if name.startswith("normwright.lab.")}
