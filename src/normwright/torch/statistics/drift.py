"""What recalibration changed, or pooling: the old statistics against the new, layer by layer."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from normwright.core.moments import FloatArray

if TYPE_CHECKING:
    from normwright.report.document import Table
    from normwright.report.records import Record, Scalar

# Below a hundredth of eps it is eps that a channel was divided by: its deviation measures nothing.
_CONSTANT = 0.01
_LEAST = 1e-6  # what a picture with a logarithmic axis shows in place of no change


class Change:
    """One layer's statistics before and after, channel by channel: how far they moved.

    Attributes:
        name: of the layer in the model; empty for the model itself.
        old_mean, old_var: (C,) float64, or several of them in rows.
        new_mean, new_var: (C,) float64.
        eps: of the layer.
    """

    name: str
    old_mean: FloatArray
    old_var: FloatArray
    new_mean: FloatArray
    new_var: FloatArray
    eps: float

    @property
    def mean_shift(self) -> FloatArray:
        """|new mean - old mean| / sqrt(old var), (C,); 0 where nothing moved, infinite from a variance of 0."""
        distance = np.abs(self.new_mean - self.old_mean)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(distance == 0, 0.0, distance / np.sqrt(self.old_var))

    @property
    def var_ratio(self) -> FloatArray:
        """new var / old var, (C,); 1 where nothing moved, infinite from a variance of 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.new_var == self.old_var, 1.0, self.new_var / self.old_var)

    @property
    def measures(self) -> NDArray[np.bool_]:
        """(C,), or rows of it: which of the old statistics are to be compared at all; all of them."""
        return np.ones(self.old_mean.shape, dtype=bool)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Of these, where the old ones are finite and the old variance above eps / 100: what is summarised."""
        with np.errstate(invalid="ignore"):
            spread = self.old_var > _CONSTANT * self.eps
        return self.measures & spread & np.isfinite(self.old_mean) & np.isfinite(self.old_var)

    @property
    def left_out(self) -> str:
        """How many channels are not usable, and why, in words; empty where all are."""
        finite = np.isfinite(self.old_mean) & np.isfinite(self.old_var)
        measures = self.measures
        negative = measures & finite & (self.old_var < 0)
        small = measures & finite & ~negative & ~self.usable
        reasons = (
            (small, "an old variance of 0 or near it"),
            (negative, "a negative old variance"),
            (measures & ~finite, "old statistics that are not finite"),
        )
        return ", ".join(f"{mask.sum()} with {why}" for mask, why in reasons if mask.any())

    def summary(self) -> dict[str, float | None]:
        """Median and largest shift of the mean, smallest, median and largest variance ratio, of usable channels."""
        names = "shift, median", "shift, largest", "ratio, smallest", "ratio, median", "ratio, largest"
        if not self.usable.any():
            return dict.fromkeys(names)
        shift, ratio = self.mean_shift[self.usable], self.var_ratio[self.usable]
        numbers = np.median(shift), shift.max(), ratio.min(), np.median(ratio), ratio.max()
        return dict(zip(names, map(float, numbers), strict=True))

    @property
    def title(self) -> str:
        """The name, in words."""
        return self.name or "the model itself"

    def cells(self) -> tuple[str, ...]:
        """The summary as it is printed."""
        return tuple("-" if number is None else f"{number:.3g}" for number in self.summary().values())

    def records(self, **where: "Scalar") -> "list[Record]":
        """The summary as records, each with `where`; None, and the reason, where no channel is usable."""
        from normwright.report.records import Record

        found = []
        left = {"left out": self.left_out} if self.left_out else {}
        for name, value in self.summary().items():
            kind, _, channel = name.partition(", ")
            what, unit = {"shift": ("shift of the mean", "deviations"), "ratio": ("variance", "ratio")}[kind]
            found.append(Record(what, value, unit, {**where, "channel": channel, **left}))
        return found


@dataclass(frozen=True, eq=False)
class LayerDrift(Change):
    """One layer's statistics before and after.

    Attributes:
        name: of the layer in the model; empty for the model itself.
        count: values per channel that were measured.
        old_mean, old_var: (C,) float64, what was recorded before.
        new_mean, new_var: (C,) float64, what was found, before it was rounded to the buffers' type.
        eps: of the layer.

    Example:
        >>> layer = LayerDrift("bn", 8, *(np.array([v]) for v in (0.0, 4.0, 3.0, 2.0)))
        >>> layer.mean_shift, layer.var_ratio
        (array([1.5]), array([0.5]))
    """

    name: str
    count: int
    old_mean: FloatArray
    old_var: FloatArray
    new_mean: FloatArray
    new_var: FloatArray
    eps: float = 1e-5


@dataclass(frozen=True, eq=False)
class Drift:
    """What `recalibrate` returns; `print` shows it as a table.

    Attributes:
        layers: that have new statistics, in order of execution.
        unreached: names of layers that no batch reached, whose statistics stayed.
        frozen: names of layers that were frozen, whose statistics stayed.
        passes: over the batches.
        batches: in one pass, of all processes together.

    Example:
        >>> layer = LayerDrift("bn", 8, *(np.array([v]) for v in (0.0, 4.0, 3.0, 2.0)))
        >>> drift = Drift((layer,), (), (), passes=1, batches=2)
        >>> [(record.what, record.where["channel"], record.value) for record in drift.records()][:2]
        [('shift of the mean', 'median', 1.5), ('shift of the mean', 'largest', 1.5)]
    """

    layers: tuple[LayerDrift, ...]
    unreached: tuple[str, ...]
    frozen: tuple[str, ...]
    passes: int
    batches: int

    def table(self) -> "Table":
        """The drift as a table of a report: a row for each layer."""
        from normwright.report.document import Table

        columns = (
            "layer",
            "values",
            "mean shift, median",
            "mean shift, largest",
            "var ratio, smallest",
            "var ratio, median",
            "var ratio, largest",
        )
        rows = tuple((layer.title, str(layer.count), *layer.cells()) for layer in self.layers)
        return Table(self._title(), columns, rows, self._note())

    def _title(self) -> str:
        layers = "1 layer" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        batches = "1 batch" if self.batches == 1 else f"{self.batches} batches"
        passes = "1 pass" if self.passes == 1 else f"{self.passes} passes"
        return f"Running statistics of {layers} from {batches}, {passes}"

    def _note(self) -> str:
        first = "Shift of the mean in old deviations; variance new / old; over the channels of each layer."
        stayed = {"reached by no batch": self.unreached, "frozen": self.frozen}
        return " ".join((first, *left_as_they_were(self.layers, stayed)))

    def __str__(self) -> str:
        from normwright.report.terminal import table_as_text

        return table_as_text(self.table())

    def records(self) -> "list[Record]":
        """The drift as records: per layer the median and the largest shift, and the range of the variance ratio.

        Channels without an old deviation to measure by (see `LayerDrift.usable`) are left out, and
        where["left out"] says how many and why; where none is left, the value is None.
        """
        return [
            record
            for at, layer in enumerate(self.layers)
            for record in layer.records(layer=layer.name, position=at, values=layer.count)
        ]

    def save(self, path: str | Path) -> None:
        """Write the records as JSON, with the stamp of this machine (see `report.records.read`)."""
        from normwright.report.records import write

        about = {"passes": self.passes, "batches": self.batches,
                 "unreached": list(self.unreached), "frozen": list(self.frozen)}  # fmt: skip
        write(Path(path), self.records(), experiment="recalibrate", **about)

    def figure(self, path: str | Path) -> None:
        """Draw the largest and the median change of each layer, in order of execution, as an SVG file.

        Raises:
            ImportError: matplotlib is missing (`pip install 'normwright[report]'`).
        """
        try:
            from normwright.report import figures, style
        except ImportError as error:
            raise ImportError(
                "normwright.torch.Drift.figure needs matplotlib. Install it with: pip install 'normwright[report]'"
            ) from error
        at = [float(k) for k in range(1, len(self.layers) + 1)]
        told = [layer.summary() for layer in self.layers]
        shift = figures.Line(
            "mean", at, _rows(told, "shift, median", "shift, median", "shift, largest"), style.WITH
        )
        ratios = _rows(told, "ratio, smallest", "ratio, median", "ratio, largest")
        ratio = figures.Line("variance", at, ratios, style.WITHOUT)
        x = figures.Axis("batch norm layer, in order of execution")
        y = figures.Axis("mean: old deviations; variance: new / old", log=True)
        figures.save(figures.lines([shift, ratio], x, y, level=1.0), Path(path))


def left_as_they_were(layers: Iterable[Change], stayed: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """In words: channels that are not summarised, and the names of layers that stayed, by the reason why."""
    without = "; ".join(f"{layer.title}: {layer.left_out}" for layer in layers if layer.left_out)
    if without:
        yield f"Channels left out, as there is no old deviation to measure by: {without}."
    for why, names in stayed.items():
        if told := ", ".join(name or "the model itself" for name in names):
            yield f"Left as they were, {why}: {told}."


def _rows(told: list[dict[str, float | None]], *names: str) -> list[list[float | None]]:
    """A row for each of these, of all layers; gaps where there is none."""
    return [
        [None if (value := each[name]) is None else max(value, _LEAST) for each in told] for name in names
    ]
