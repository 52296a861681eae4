"""A picture of a benchmark: every cell's time over the floor, ours and the rivals', by the size of the tensor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normwright.bench.cases import COMPILED, DTYPES, JAX, OPS, OURS, PASSES, TORCH
from normwright.bench.telling.cells import Cell, cells
from normwright.bench.telling.notes import OP_NAMES, SHOWN, step
from normwright.report import figures, style
from normwright.report.figures import Axis, Cloud, Panel
from normwright.report.records import Record
from normwright.report.words import Say

# Drawn in this order: ours last, on top.
DRAWN = {
    JAX: (style.FOURTH, "v"),
    COMPILED: (style.THIRD, "s"),
    TORCH: (style.WITHOUT, "^"),
    OURS: (style.WITH, "o"),
}


def save(records: Sequence[Record], path: Path, say: Say) -> None:
    """Draw the records into an SVG file.

    Raises:
        OSError: it cannot be written.
        ValueError: nothing was measured that could be drawn.
    """
    figures.save(draw(records, say), path)


def draw(records: Sequence[Record], say: Say) -> Any:
    """A row of panels for each type and pass, a column for each operation; warm memory, the most threads.

    Returns: matplotlib's Figure.
    """
    of = cells(records)
    if not of:
        raise ValueError("expected records of a benchmark, got none.")
    most = max(cell.threads for cell in of)
    state = next(allocator for _, allocator, _ in of[0].records)
    some = [cell for cell in of if cell.threads == most]
    dtypes = [dtype for dtype in DTYPES[:2] if any(cell.dtype == dtype for cell in some)]
    ops = [op for op in OPS if any(cell.op == op for cell in some)]
    rows = [
        [
            Panel(
                f"{dtype}, {OP_NAMES[op]}, {step(what, say)}",
                _clouds([c for c in some if (c.dtype, c.op) == (dtype, op)], what, state, say),
            )
            for op in ops
        ]
        for dtype in dtypes or DTYPES
        for what in PASSES
    ]
    x = Axis(say("size of the tensor in MB", "张量大小（MB）"), log=True)
    y = Axis(say("time over the floor", "耗时 / 下限"), log=True)
    return figures.panels(rows, x, y, level=1.0)


def _clouds(of: Sequence[Cell], what: str, state: str, say: Say) -> list[Cloud]:
    found = []
    for who, (colour, sign) in DRAWN.items():
        points = [
            (cell.bytes / 1e6, over) for cell in of if (over := cell.over_floor(what, state, who)) is not None
        ]
        if points:
            x, y = zip(*points, strict=True)
            found.append(Cloud(SHOWN.get(who, who), x, y, colour, sign))
    return found
