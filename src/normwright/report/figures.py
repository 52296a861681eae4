"""Pictures from records, in the report's colours: on light and dark paper, without colour vision too."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from normwright.report.records import Record, Scalar
from normwright.report.summary import numbers, pick, spread, values

INK, FAINT, WITHOUT, WITH = (
    "#1b1f24",
    "#8a9099",
    "#d55e00",
    "#0072b2",
)  # the two sides: Okabe and Ito's safe pair
# On a page the colours are the style sheet's, which knows whether the paper is dark.
VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", WITHOUT: "var(--without)", WITH: "var(--with)"}
WIDTH, HEIGHT = 4.7, 3.3  # inches; so small that its type stays readable on a phone
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "normwright",
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Curve:
    """One side's learning: accuracy ``(seeds, steps)``, its goal, and the step that first reached it."""

    network: str
    batch_norm: bool
    steps: np.ndarray
    accuracy: np.ndarray
    goal: float
    reached: float | None

    @property
    def middle(self) -> np.ndarray:
        """Median over the seeds at each step."""
        return np.asarray(np.median(self.accuracy, axis=0))


def curve(records: Sequence[Record], network: str, *, batch_norm: bool) -> Curve:
    """The learning curves of one side at its chosen rate."""
    where: dict[str, Scalar] = {"network": network, "batch_norm": batch_norm}
    rate = values(records, "chosen rate", **where)[0]
    points = pick(records, "validation accuracy", rate=rate, **where)
    steps = sorted({int(r.where["step"] or 0) for r in points})
    seeds = sorted({int(r.where["seed"] or 0) for r in points})
    at = {(r.where["seed"], r.where["step"]): r.value for r in points}
    heights = np.array([[at[seed, step] for step in steps] for seed in seeds], dtype=float)
    goal = median(numbers(records, "best accuracy without BN", network=network))
    reached = spread(values(records, "steps to it", **where)).middle
    return Curve(network, batch_norm, np.array(steps), heights, goal, reached)


def panels(networks: Sequence[Sequence[Curve]]) -> Figure:
    """One picture beside the other, one for each network; titled where there are several."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * len(networks), HEIGHT), layout="constrained")
        for axes, curves in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
            _draw(axes, curves)
            if len(networks) > 1:
                axes.set_title(curves[0].network, loc="left", fontweight="bold")
    return figure


def _draw(axes: Axes, curves: Sequence[Curve]) -> None:
    last = max(curve.steps[-1] for curve in curves)
    floor = _floor(curves)
    goal = curves[0].goal
    axes.axhline(goal, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for curve in curves:
        colour = WITH if curve.batch_norm else WITHOUT
        axes.fill_between(
            curve.steps,
            curve.accuracy.min(axis=0),
            curve.accuracy.max(axis=0),
            color=colour,
            alpha=0.18,
            linewidth=0,
        )
        axes.plot(curve.steps, curve.middle, color=colour, linewidth=1.8)
        if curve.reached is not None:
            axes.plot(curve.reached, goal, marker="o", color=colour, markersize=7, zorder=4, clip_on=False)
            axes.annotate(
                f"{curve.reached:g}",
                (curve.reached, floor),
                xytext=(3, 4),
                textcoords="offset points",
                color=colour,
                fontweight="bold",
            )
            axes.plot(
                [curve.reached, curve.reached],
                [floor, goal],
                color=colour,
                linewidth=1,
                linestyle=":",
                zorder=1,
            )
    _name(axes, curves, last, floor)
    axes.set_ylim(floor, 1.0)
    axes.set_xlim(0, last)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 1):g} %")
    axes.set_xlabel("training step")
    axes.set_ylabel("validation accuracy")


def _floor(curves: Sequence[Curve]) -> float:
    """The lowest accuracy shown: a little below what the slower side has after a tenth of the run.

    So the first climb, which starts at chance, does not press all the rest against the top.
    """
    early = min(float(np.interp(curve.steps[-1] / 10, curve.steps, curve.middle)) for curve in curves)
    return max(0.0, min(0.9, float(np.floor(early * 20)) / 20 - 0.05))


def _name(axes: Axes, curves: Sequence[Curve], last: float, floor: float) -> None:
    """Write each curve's name at its right end, far enough apart to be read."""
    apart = 0.07 * (1 - floor)
    ends = sorted(((float(curve.middle[-1]), curve.batch_norm) for curve in curves), reverse=True)
    height = 1.0
    for end, batch_norm in ends:
        height = max(floor + apart, min(end, height))
        axes.annotate(
            "with BN" if batch_norm else "without BN",
            (last, height),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=WITH if batch_norm else WITHOUT,
            fontweight="bold",
            annotation_clip=False,
        )
        height -= apart


def svg(figure: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element: its ids begin with `name`, its colours are the page's."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", text)
    text = re.sub(r"font-family:[^;\"]*;?", "", text)
    text = re.sub(r"font: ([^\"';]*?)('[^\"]*)?(?=[;\"])", r"font: \1 inherit", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def png(figure: Figure, path: Path) -> None:
    """The figure as a picture file on white paper."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, format="png", dpi=150, facecolor="white", metadata={"Software": None})
