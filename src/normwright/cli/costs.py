"""The commands about what synchronizing costs: `synchronized` measures here, `scaling` reckons for many ranks."""

from pathlib import Path
from typing import Annotated

import typer

from normwright.cli.leaving import need, stop


def synchronized(
    into: Annotated[Path | None, typer.Option(help="Put the tables between this file's markers.")] = None,
) -> None:
    """Measure training steps and layers on 1, 2 and 4 processes, synchronized and not, values checked first."""
    need("torch", {"torch": "torch"})
    from normwright.bench import synchronized as processes
    from normwright.bench.processes import CannotMeasure
    from normwright.bench.timer import WrongValues

    try:
        processes.run(into=into)
    except CannotMeasure as reason:
        stop(f"normwright synchronized: {reason}", code=2)
    except WrongValues as refusal:
        stop(f"normwright synchronized: {refusal}", code=1)
    except OSError as error:
        stop(f"normwright synchronized: {error.filename}: {error.strerror}", code=1)
    except ValueError as error:
        stop(f"normwright synchronized: into {into}: {error}", code=1)
    except KeyboardInterrupt:
        stop("normwright synchronized: stopped; nothing was written.", code=130)


def scaling(
    into: Annotated[Path | None, typer.Option(help="Put the tables between this file's markers.")] = None,
    figure: Annotated[Path | None, typer.Option(help="SVG file for a picture of the costs.")] = None,
) -> None:
    """Reckon what synchronizing costs on 1 to 4096 ranks, from latencies and bandwidths; nothing is measured."""
    if figure is not None:
        need("report", {"matplotlib": "matplotlib"})
    from normwright.bench import scaling_table

    try:
        scaling_table.run(into=into, figure=figure)
    except OSError as error:
        stop(f"normwright scaling: {error.filename}: {error.strerror}", code=1)
    except ValueError as error:
        stop(f"normwright scaling: into {into}: {error}", code=1)
