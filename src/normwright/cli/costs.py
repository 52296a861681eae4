"""The commands about what synchronizing costs: `synchronized` measures here, `scaling` reckons for many ranks."""

from pathlib import Path
from typing import Annotated

import typer

from normwright.cli.leaving import need, stop, tables
from normwright.cli.options import SVG, Tables
from normwright.cli.places import need_file


def synchronized(
    into: Tables = None,
) -> None:
    """Measure training steps and layers on 1, 2 and 4 processes, synchronized and not, values checked first."""
    need("torch", {"torch": "torch"})
    from normwright.bench.distributed import synchronized as processes
    from normwright.bench.processes import CannotMeasure
    from normwright.bench.timer import WrongValues

    with tables("synchronized", into, (WrongValues,)):
        try:
            processes.run(into=into)
        except CannotMeasure as reason:
            stop(f"normwright synchronized: {reason}", code=2)


def scaling(
    into: Tables = None,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", readable=False, help="SVG file for a picture of the costs."),
    ] = None,
) -> None:
    """Reckon what synchronizing costs on 1 to 4096 ranks, from latencies and bandwidths; nothing is measured."""
    if figure is not None:
        need("report", {"matplotlib": "matplotlib"})
        need_file("normwright scaling", figure, SVG)
    from normwright.bench.distributed import scaling as reckoned

    with tables("scaling", into):
        reckoned.run(into=into, figure=figure)
