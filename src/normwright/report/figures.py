"""Pictures of numbers, in the report's style: lines and dots, each with its name beside it.

What is drawn, and in which words, is the business of each card; how it looks is decided here.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from normwright.report import style

LABELS_APART = 0.075  # of the height of the axes: two lines of type
PANEL = 3.0, 1.9  # inches
HEXAGRAMS = range(0x4DC0, 0x4E00)


@dataclass(frozen=True)
class Line:
    """One line: at each x the median of `y`, whose range is a band around it.

    Attributes:
        label: its name, written at its right end; empty for a line that needs none.
        x: ``(points,)``.
        y: ``(repetitions, points)`` or ``(points,)``; None or nan is a gap.
        colour: one of those of `style`.
        dashed: a line that was not measured, or a control.
        marks: points with words beside them, ``(x, y, words)``.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None] | Sequence[Sequence[float | None]]
    colour: str
    dashed: bool = False
    marks: tuple[tuple[float, float, str], ...] = ()

    @property
    def heights(self) -> np.ndarray:
        """``(repetitions, points)``, gaps as nan."""
        return np.atleast_2d(np.array(self.y, dtype=float))

    @property
    def middle(self) -> np.ndarray:
        """Median over the repetitions; nan where any is missing."""
        return np.asarray(np.median(self.heights, axis=0))


@dataclass(frozen=True)
class Axis:
    """What an axis measures: its name with the unit, and how it is divided.

    `log` divides it by powers of ten; `percent` prints fractions as percent; `low` and `high` cut it.
    """

    label: str
    log: bool = False
    percent: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Dots:
    """One row of a dot plot: its name, its measurements (a dot each, the median marked), its colour."""

    label: str
    values: Sequence[float]
    colour: str


@dataclass(frozen=True)
class Cloud:
    """Points of one name, told apart by their colour and their sign alike."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    sign: str


@dataclass(frozen=True)
class Panel:
    """One of many small pictures over the same axes."""

    title: str
    clouds: Sequence[Cloud]


def lines(drawn: Sequence[Line], x: Axis, y: Axis, *, level: float | None = None) -> Figure:
    """Lines over one x, named at their right ends; `level` is a dashed horizontal line behind them."""
    with matplotlib.rc_context(style.MATPLOTLIB):
        figure, axes = _axes(style.HEIGHT)
        if level is not None:
            axes.axhline(level, color=style.FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for line in drawn:
            _line(axes, line)
        _scale(axes, x, y)
        axes.set_xmargin(0)
        axes.autoscale_view()
        _cut(axes, x, y)
        _marks(axes, drawn)
        _name_ends(axes, drawn)
    return figure


def dots(rows: Sequence[Dots], axis: Axis, *, level: float | None = None) -> Figure:
    """One row of dots for each name, the first on top; `level` is a dashed vertical line behind them."""
    with matplotlib.rc_context(style.MATPLOTLIB):
        figure, axes = _axes(0.9 + 0.34 * len(rows))
        if level is not None:
            axes.axvline(level, color=style.FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for height, row in enumerate(rows):
            axes.plot(row.values, [height] * len(row.values), "o", color=row.colour, alpha=0.45, markersize=5)
            middle = float(np.median(row.values))
            axes.plot([middle], [height], "|", color=row.colour, markersize=15, markeredgewidth=2.5)
        axes.set_yticks(range(len(rows)))
        axes.yaxis.set_major_formatter(FixedFormatter([row.label for row in rows]))
        for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_color(row.colour)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _divide(axes, "x", axis)
        axes.set_xlim(axis.low, axis.high)
    return figure


def panels(rows: Sequence[Sequence[Panel]], x: Axis, y: Axis, *, level: float | None = None) -> Figure:
    """Small pictures in rows, all over the same axes; the names of their clouds stand once, on top."""
    with matplotlib.rc_context(style.MATPLOTLIB):
        columns = max(len(row) for row in rows)
        size = (PANEL[0] * columns, 0.6 + PANEL[1] * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(rows), columns, sharex=True, sharey=True, squeeze=False)
        names: dict[str, Any] = {}
        for row, of in zip(grid, rows, strict=True):
            for axes, panel in zip(row, of, strict=True):
                _panel(axes, panel, level, names)
                _scale(axes, x, y)
                axes.label_outer()
        _cut(grid[0][0], x, y)
        told = figure.legend(names.values(), names, loc="outside upper left", ncols=len(names), frameon=False)
        for text, mark in zip(told.get_texts(), names.values(), strict=True):
            text.set_color(mark.get_color())
    return figure


def _panel(axes: Axes, panel: Panel, level: float | None, names: dict[str, Any]) -> None:
    axes.set_title(panel.title, loc="left", fontsize=8)
    if level is not None:
        axes.axhline(level, color=style.FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for cloud in panel.clouds:
        (mark,) = axes.plot(cloud.x, cloud.y, cloud.sign, color=cloud.colour, alpha=0.7, markersize=3.5)
        names.setdefault(cloud.label, mark)


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(style.WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _line(axes: Axes, line: Line) -> None:
    dash = (0, (5, 2.5)) if line.dashed else "solid"
    if len(line.heights) > 1:
        low, high = line.heights.min(axis=0), line.heights.max(axis=0)
        axes.fill_between(line.x, low, high, color=line.colour, alpha=0.18, linewidth=0)
    axes.plot(line.x, line.middle, color=line.colour, linewidth=1.8, linestyle=dash)


def _scale(axes: Axes, x: Axis, y: Axis) -> None:
    for which, axis in (("x", x), ("y", y)):
        _divide(axes, which, axis)


def _divide(axes: Axes, which: str, axis: Axis) -> None:
    """Logarithmic or not, its ticks and its name."""
    ticks = axes.xaxis if which == "x" else axes.yaxis
    ticks.set_label_text(axis.label)
    if axis.log:
        axes.set(**{f"{which}scale": "log"})
        ticks.set_major_locator(LogLocator(10, numticks=7))
        ticks.set_minor_formatter(NullFormatter())
    else:
        ticks.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, axis)))


def _tick(value: float, axis: Axis) -> str:
    if axis.percent:
        return f"{100 * value:.6g} %"
    if axis.log and value > 0 and not 1e-3 <= value <= 1e4:
        return f"1e{math.log10(value):.0f}"
    return f"{value:.6g}".replace("-", "\u2212")


def _cut(axes: Axes, x: Axis, y: Axis) -> None:
    axes.set_xlim(x.low, x.high)
    axes.set_ylim(y.low, y.high)


def _marks(axes: Axes, drawn: Sequence[Line]) -> None:
    for line in drawn:
        for across, up, words in line.marks:
            axes.plot([across], [up], "o", color=line.colour, markersize=7, zorder=4, clip_on=False)
            axes.annotate(
                words,
                (across, axes.get_ylim()[0]),
                xytext=(3, 4),
                textcoords="offset points",
                color=line.colour,
                fontsize=9,
            )
            axes.vlines(across, axes.get_ylim()[0], up, color=line.colour, linewidth=1, linestyle=":")


def _name_ends(axes: Axes, drawn: Sequence[Line]) -> None:
    """Write each line's name at its right end, far enough from the others to be read."""
    ends = sorted(
        ((_end(axes, line), line) for line in drawn if line.label), key=lambda end: end[0], reverse=True
    )
    heights = _apart([height for height, _ in ends])
    for height, (_, line) in zip(heights, ends, strict=True):
        axes.annotate(
            line.label,
            (1.0, height),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=line.colour,
            fontweight="bold",
            annotation_clip=False,
        )


def _end(axes: Axes, line: Line) -> float:
    """Where the line's last point is, as a fraction of the height of the axes."""
    seen = line.middle[np.isfinite(line.middle)]
    if not len(seen):
        return 0.0
    low, high = axes.get_ylim()
    end = float(seen[-1])
    if axes.get_yscale() == "log":
        low, high, end = math.log10(low), math.log10(high), math.log10(max(end, low))
    return min(1.0, max(0.0, (end - low) / (high - low)))


def _apart(heights: Sequence[float]) -> list[float]:
    """Falling heights, moved as little as keeps neighbours readable and all of them within the axes.

    >>> _apart([0.5, 0.5])
    [0.5, 0.425]
    """
    placed: list[float] = []
    for height in heights:
        placed.append(min(height, placed[-1] - LABELS_APART) if placed else height)
    floor = 0.0
    for index in reversed(range(len(placed))):  # what was pushed below the axes pushes the others up again
        placed[index] = max(placed[index], floor)
        floor = placed[index] + LABELS_APART
    return placed


# --- files ------------------------------------------------------------


def svg(figure: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element: its ids begin with `name`, its colours are the page's variables."""
    back = _measurable(figure)
    buffer = io.StringIO()
    with matplotlib.rc_context(style.MATPLOTLIB):
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].translate(back)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", text)
    text = re.sub(r"font-family:[^;\"]*;?", "", text)
    text = re.sub(r"font: ([^\"';]*?)('[^\"]*)?(?=[;\"])", r"font: \1 inherit", text)
    for tone in style.DRAWN:
        text = text.replace(style.LIGHT[tone], f"var(--{tone})")
    return text


def save(figure: Figure, path: Path) -> None:
    """The figure as a file that stands alone, for light and for dark paper."""
    element = svg(figure, path.stem)
    font = style.FONT.replace('"', "'")
    look = f"<style>{style.css()} text {{ font-family: {font} !important; }}</style>"
    path.write_text(
        re.sub(r"(<svg[^>]*>)", lambda start: start[1] + look, element, count=1), encoding="utf-8"
    )


def _measurable(figure: Figure) -> dict[int, str]:
    """Put a sign that matplotlib's own font has in place of each Chinese one; returns the way back.

    Only widths matter here, since the reader's browser sets the type: hexagrams are nearly as wide as Chinese
    characters, and there are 64 of them, more than a picture has different ones.
    """
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    # Names of ticks are set anew at every drawing, from here.
    formatters = [axes.yaxis.get_major_formatter() for axes in figure.axes]
    names: list[Any] = [each for each in formatters if isinstance(each, FixedFormatter)]
    words = [text.get_text() for text in texts] + [word for name in names for word in name.seq]
    foreign = sorted({sign for word in words for sign in word if ord(sign) > 0x2E7F})
    if len(foreign) > len(HEXAGRAMS):
        raise ValueError(
            f"svg: expected at most {len(HEXAGRAMS)} Chinese signs in a picture, got {len(foreign)}."
        )
    there = {ord(sign): chr(stand_in) for sign, stand_in in zip(foreign, HEXAGRAMS, strict=False)}
    for text in texts:
        text.set_text(text.get_text().translate(there))
    for name in names:
        name.seq = [word.translate(there) for word in name.seq]
    return {ord(stand_in): chr(sign) for sign, stand_in in there.items()}
