"""The commands that measure: `bench`, `bench compare`, `behaviour`, `populations`, `latency`."""

from pathlib import Path
from typing import Annotated

import typer

from normwright.cli.leaving import need, stop, tables
from normwright.cli.options import SVG, Figure, Json, Tables
from normwright.cli.places import need_file, need_folder
from normwright.cli.usage import Command, Group

app = typer.Typer(
    cls=Group,
    subcommand_metavar="[compare OLD NEW]",
    help="Measure beside torch, torch.compile, JAX and the memory floor, values checked first.",
)


@app.callback(invoke_without_command=True)
def measure(
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="Few shapes, few rounds: under a minute.")] = False,
    threads: Annotated[
        list[str] | None,
        typer.Option(metavar="N,...", help="Numbers of threads, or all: 1,2,all. Default: as torch has it."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="A regular expression found in cells' names: '56x56 NCHW float32 bn$'.",
        ),
    ] = None,
    contenders: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="Beside ours: some of torch,torch.compile,jax. Default: all there are."
        ),
    ] = None,
    json: Json = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for the records, in a file named after the machine. It is made where there is none.",
        ),
    ] = None,
    figure: Figure = None,
) -> None:
    """Measure beside torch, torch.compile, JAX and the memory floor, values checked first.

    torch.compile and JAX, and the allocator as users have it, on a part of the shapes; with --only on all of them.
    """
    if context.invoked_subcommand is not None:
        return
    need("torch", {"torch": "torch"})
    if figure is not None:
        need("report", {"matplotlib": "matplotlib"})
    from normwright.bench import run as benchmark
    from normwright.bench.timer import WrongValues

    if json is not None and save is not None:
        stop("normwright bench: expected --json or --save, got both.", code=2)
    into = json if save is None else save / benchmark.file_name()
    try:
        order = benchmark.Order.of(quick=quick, threads=threads, only=only, contenders=contenders)
    except benchmark.CannotMeasure as reason:
        stop(f"normwright bench: {reason}", code=2)
    _need_places(into, save, figure)
    try:
        right = benchmark.run(order, into=into, figure=figure)
    except benchmark.CannotMeasure as reason:
        stop(f"normwright bench: {reason}", code=2)
    except WrongValues as refusal:
        stop(f"normwright bench: {refusal}", code=1)
    except OSError as error:
        stop(f"normwright bench: cannot write to {error.filename or into}: {error.strerror or error}", code=1)
    except KeyboardInterrupt:
        stop("normwright bench: stopped; nothing was written.", code=130)
    if not right:
        stop("normwright bench: some contenders computed something else, and were not timed there.", code=1)


def _need_places(into: Path | None, save: Path | None, figure: Path | None) -> None:
    """Leave with one line where the records `into`, or the picture, cannot be written; `save` is made."""
    need_file("normwright bench", figure, SVG)
    if save is not None:
        need_folder("normwright bench", save)
    need_file("normwright bench", into)


@app.command(cls=Command)
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Records of the earlier run.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Records of the later run.")],
) -> None:
    """Compare two runs: our times, as measured, over the floor and over torch of the same run."""
    from rich.console import Console

    from normwright.bench.telling import compare as side_by_side
    from normwright.report import records, terminal
    from normwright.report.words import Say

    read = []
    for file in (old, new):
        try:
            read.append(records.read(file))
        except OSError as error:
            stop(f"normwright bench compare: {error.filename}: {error.strerror}", code=1)
        except (ValueError, KeyError) as error:
            stop(f"normwright bench compare: {file}: {error}", code=1)
    try:
        terminal.show(side_by_side.document(read[0], read[1]), Console(), Say())
    except (ValueError, KeyError) as error:
        stop(f"normwright bench compare: {old} and {new}: {error}", code=1)


def behaviour(
    into: Tables = None,
) -> None:
    """Bring situations about in torch's layers and in normwright's, and show side by side what they do."""
    need("torch", {"torch": "torch"})
    from normwright.bench.side_by_side import behaviour as side_by_side

    with tables("behaviour", into):
        side_by_side.run(into=into)


def populations(
    into: Tables = None,
) -> None:
    """Measure population statistics by torch's tool, fvcore's and ours, beside NumPy on the whole data set."""
    need("peers", {"torch": "torch", "fvcore": "fvcore"})
    from normwright.bench.side_by_side import populations as side_by_side

    with tables("populations", into):
        side_by_side.run(into=into)


def latency(
    into: Tables = None,
) -> None:
    """Measure a tiny layer's step and gradients of gradients, beside torch and composed operations."""
    need("torch", {"torch": "torch"})
    from normwright.bench.side_by_side import latency as small
    from normwright.bench.timer import WrongValues

    with tables("latency", into, (WrongValues,)):
        small.run(into=into)
