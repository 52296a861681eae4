"""The main job: two networks without and with batch normalization on real data, measured, told, drawn."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from normwright.lab import inference
from normwright.lab.data import SOURCE_PIXELS, digits
from normwright.lab.networks import build, cnn, mlp
from normwright.lab.race import Entry, race
from normwright.lab.train import Budget, one_thread, train
from normwright.report import demo as story
from normwright.report import figures, page, records, terminal
from normwright.report.records import Record

# The rates are half a decade apart and reach, for each network, past the best of both sides. The CNN's are
# lower: its last layer sums 4096 inputs instead of 256, and batch normalization, which stands before it,
# leaves that be.
MLP = Entry(
    "MLP", "784-256-10", mlp, 28, 1, (0.1, 0.3, 1.0, 3.0, 10.0), Budget(steps=500, batch_size=60, every=10)
)
CNN = Entry(
    "CNN",
    "3x3 convolution 3 to 16, 2x2 max pool, linear 4096 to 10",
    cnn,
    32,
    3,
    (0.003, 0.01, 0.03, 0.1, 0.3),
    Budget(steps=180, batch_size=60, every=10),
)
ENTRIES = (MLP, CNN)
SEEDS = 3
WARM_UP_STEPS = 10


@dataclass(frozen=True)
class Written:
    """The files that a run leaves."""

    results: Path
    page: Path
    curves: Path


def run(
    *,
    seed: int = 0,
    out: Path = Path("normwright-report"),
    entries: Sequence[Entry] = ENTRIES,
    console: Console | None = None,
) -> Written:
    """Measure, then print the tables and write the page, the records and the picture into `out`.

    Raises:
        OSError: `out` cannot be written; raised before the training begins.
    """
    console = console or Console()
    written = _claim(out)
    measured, images = _measure(entries, range(seed, seed + SEEDS), console)
    about = {
        "experiment": "demo",
        "command": f"normwright demo --seed {seed}",
        "settings": _settings(entries, seed, images),
    }
    records.write(written.results, measured, **about)
    # Told from what the file says, so that nothing on the page can be missing in it.
    told = records.read(written.results)
    document = story.document(*told)
    terminal.show(document, console)
    page.write(written.page, document)
    figures.png(story.picture(*told), written.curves)
    console.print(f"The page: {written.page}\nThe records: {written.results}", soft_wrap=True)
    return written


def _claim(out: Path) -> Written:
    """Make the folder and see that it can be written, before a minute is spent."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass
    return Written(out / "results.json", out / "index.html", out / "curves.png")


def _measure(
    entries: Sequence[Entry], seeds: Sequence[int], console: Console
) -> tuple[list[Record], dict[str, int]]:
    """All records, and how many images each part of the data holds."""
    measured: list[Record] = []
    images: dict[str, int] = {}
    with one_thread(), terminal.Training(console) as bars:
        data = {entry.name: digits(seeds[0], size=entry.size, channels=entry.channels) for entry in entries}
        for entry in entries:
            # Networks differ in the cost of a step: a few steps ahead tell how long the whole will take.
            trial = build(entry.make, seeds[0], batch_norm=True)
            ahead = Budget(WARM_UP_STEPS, entry.budget.batch_size, every=WARM_UP_STEPS)
            seconds = (
                train(trial, data[entry.name], rate=0.0, seed=seeds[0], budget=ahead).seconds / WARM_UP_STEPS
            )
            bars.add(entry.name, steps=entry.runs(len(seeds)) * entry.budget.steps, seconds_per_step=seconds)
        for entry in entries:
            splits = data[entry.name]
            images = {
                "train": len(splits.train),
                "validation": len(splits.validation),
                "test": len(splits.test),
            }
            finish = race(entry, splits, seeds, bars)
            measured.extend(finish.records)
            for seed in seeds:
                sides = {norm: finish.networks[norm, seed] for norm in (False, True)}
                measured.extend(inference.compare_statistics(entry.name, seed, sides[True], splits))
                measured.extend(inference.compare_alone(entry.name, seed, sides, splits.test))
    return measured, images


def _settings(entries: Sequence[Entry], seed: int, images: dict[str, int]) -> dict[str, object]:
    """What was chosen before anything was measured."""
    networks = {
        entry.name: {
            "layers": entry.layers,
            "input": f"{entry.channels}x{entry.size}x{entry.size}",
            "steps": entry.budget.steps,
            "batch_size": entry.budget.batch_size,
            "every": entry.budget.every,
            "rates": list(entry.rates),
        }
        for entry in entries
    }
    return {
        "seeds": list(range(seed, seed + SEEDS)),
        "source": f"scikit-learn's handwritten digits, {SOURCE_PIXELS}x{SOURCE_PIXELS} pixels",
        "images": images,
        "networks": networks,
    }
