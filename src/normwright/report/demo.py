"""The demo's records, told: which cards, tables and words. Every number in them is read from a record."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from normwright.report import figures, verdicts
from normwright.report.document import Card, Document, Picture, Table
from normwright.report.records import Record, Scalar
from normwright.report.summary import (
    DEVIATIONS,
    MILLISECONDS,
    PERCENT,
    STEPS,
    WHOLE_PERCENT,
    Unit,
    difference,
    numbers,
    pick,
    spread,
    told,
    values,
)

SIDES = (False, True)
STAMPED = ("processor", "cores", "python", "normwright", "numpy", "torch", "scikit-learn")


def document(records: Sequence[Record], about: Mapping[str, Any]) -> Document:
    """The whole report of `normwright demo`, from what stands in its results file."""
    settings = about["settings"]
    images, seeds = settings["images"], len(settings["seeds"])
    return Document(
        title="What batch normalization did here",
        headline=headline(records, list(settings["networks"])),
        about=(
            f"Measured on {settings['source']}, enlarged bilinearly to what the networks take (which adds no "
            f"detail): {images['train']} images to train on, {images['validation']} to choose on and "
            f"{images['test']} to test on. Each network was trained without and with batch normalization "
            f"(BN) from the same weights and on the same batches, by plain SGD, with {seeds} seeds. "
            "Numbers are medians, ranges in brackets."
        ),
        cards=(
            *(_race_card(records, name, network, settings) for name, network in settings["networks"].items()),
            _statistics_card(records, settings),
            _alone_card(records, settings),
        ),
        command=about["command"],
        stamp=tuple(
            (key, str(about["stamp"][key])) for key in STAMPED if about["stamp"].get(key) is not None
        ),
    )


def picture(records: Sequence[Record], about: Mapping[str, Any]) -> Figure:
    """All learning curves side by side."""
    return figures.panels([_curves(records, name) for name in about["settings"]["networks"]])


def _curves(records: Sequence[Record], network: str) -> list[figures.Curve]:
    return [figures.curve(records, network, batch_norm=side) for side in SIDES]


def headline(records: Sequence[Record], networks: Sequence[str]) -> str:
    """The measured ratio of steps of each network in one sentence, whichever way it went."""
    shares = []
    for name in networks:
        share = spread(values(records, "ratio of steps", network=name)).middle
        shares.append(f"{'more than all' if share is None else WHOLE_PERCENT(share)} ({name})")
    goal = "to match the best accuracy reached without it"
    return f"Batch normalization took {' and '.join(shares)} of the training steps {goal}."


def _race_card(
    records: Sequence[Record], name: str, network: Mapping[str, Any], settings: Mapping[str, Any]
) -> Card:
    return Card(
        title=f"{name}: {network['layers']}",
        done=(
            f"Input {network['input']}; {network['steps']} steps of {network['batch_size']} images, without BN "
            f"and with it (before ReLU), each side at the best of the same {len(network['rates'])} "
            "learning rates, chosen on the validation images."
        ),
        picture=Picture(
            name=name,
            draw=lambda: figures.panels([_curves(records, name)]),
            alt=f"Validation accuracy of the {name} against training step, with BN and without.",
        ),
        see=(
            "Lines are medians over the seeds, bands their range. The dashed line is the best accuracy "
            "without BN, the dots are where each side first got there: medians of what each seed did."
        ),
        verdicts=(verdicts.speed(records, name), verdicts.accuracy(records, name)),
        tables=(_race_table(records, name, network, len(settings["seeds"])),),
        details=(_rates_table(records, name, settings),),
    )


def _race_table(records: Sequence[Record], name: str, network: Mapping[str, Any], seeds: int) -> Table:
    def row(label: str, what: str, unit: Unit) -> tuple[str, ...]:
        return (
            label,
            *(told(spread(values(records, what, network=name, batch_norm=s)), unit) for s in SIDES),
        )

    target = told(spread(values(records, "best accuracy without BN", network=name)), PERCENT)
    share = told(spread(values(records, "ratio of steps", network=name)), WHOLE_PERCENT)
    chosen = [pick(records, "chosen rate", network=name, batch_norm=side)[0] for side in SIDES]
    edges = [r for r in chosen if r.where["edge"]]
    return Table(
        title=f"Median of {seeds} seeds (range)",
        columns=("", "without BN", "with BN"),
        rows=(
            (
                "learning rate, chosen",
                *(f"{r.value:g}" + (" (edge of the grid)" if r.where["edge"] else "") for r in chosen),
            ),
            row("test accuracy", "test accuracy", PERCENT),
            row("best validation accuracy", "best validation accuracy", PERCENT),
            row("steps to best without BN", "steps to it", STEPS),
            ("share of the steps, median", "100 %", share),
            row("time of a step", "seconds per step", MILLISECONDS),
        ),
        note=(
            f"Best without BN in {network['steps']} steps: {target}, seed by seed, "
            f"looked at every {network['every']} steps. Times are those of one thread."
            + (" A rate at the edge of its grid: a better one may lie beyond." if edges else "")
        ),
    )


def _rates_table(records: Sequence[Record], name: str, settings: Mapping[str, Any]) -> Table:
    def cell(rate: float, side: bool) -> str:
        scores = values(records, "late validation accuracy", network=name, batch_norm=side, rate=rate)
        is_chosen = values(records, "chosen rate", network=name, batch_norm=side) == [rate]
        return told(spread(scores), PERCENT) + (" chosen" if is_chosen else "")

    return Table(
        title="Learning rates tried",
        columns=("rate", "without BN", "with BN"),
        rows=tuple(
            (f"{rate:g}", *(cell(rate, side) for side in SIDES))
            for rate in settings["networks"][name]["rates"]
        ),
        note=(
            "Validation accuracy, mean over the last quarter of a run: every rate with the first seed, "
            "each side's best with all seeds."
        ),
    )


def _statistics_card(records: Sequence[Record], settings: Mapping[str, Any]) -> Card:
    networks = tuple(settings["networks"])

    def row(label: str, what: str, unit: Unit, **where: Scalar) -> tuple[str, ...]:
        cells = (told(spread(values(records, what, network=name, **where)), unit) for name in networks)
        return (label, *cells)

    by = "test accuracy by statistics"
    return Card(
        title="Predicting: moving average or exact statistics",
        done=(
            "The moving average that training left in the layer, beside the exact mean and unbiased variance "
            "of the whole training set, taken in one pass after training."
        ),
        see=(
            "The average lags behind weights that still move. How far it is off is told for the worst "
            "channel: its mean in standard deviations (std), its standard deviation in percent."
        ),
        verdicts=(verdicts.statistics(records),),
        tables=(
            Table(
                title="Test accuracy with either, and how far they differ: median (range)",
                columns=("", *networks),
                rows=(
                    row("moving average", by, PERCENT, statistics="moving average"),
                    row("exact statistics", by, PERCENT, statistics="population"),
                    row("mean off by", "drift of the mean", DEVIATIONS),
                    row("deviation off by", "drift of the deviation", PERCENT),
                ),
            ),
        ),
    )


def _alone_card(records: Sequence[Record], settings: Mapping[str, Any]) -> Card:
    networks = tuple(settings["networks"])

    def row(label: str, of: str) -> tuple[str, ...]:
        what = "difference alone to in a batch"
        return (label, *(difference(max(numbers(records, what, network=name, of=of))) for name in networks))

    return Card(
        title="Predicting: one image alone",
        done="The same test images one by one and in one batch: the largest difference of any output.",
        see="In training mode company counts, as it must: there, the same images in a batch and in its half.",
        verdicts=(verdicts.alone(records),),
        tables=(
            Table(
                title="Largest difference of an output",
                columns=("", *networks),
                rows=(
                    row("BN layer, predicting", "layer"),
                    row("network with BN, predicting", "network with BN"),
                    row("network without BN, predicting", "network without BN"),
                    row("BN layer in training mode", "layer in training mode"),
                ),
            ),
        ),
    )
