"""The commands for recorded statistics: `inspect` looks at them, `recalibrate` measures them anew."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from normwright.cli.leaving import need, stop
from normwright.cli.named import NotFoundError, batches, called
from normwright.cli.options import SVG, Json
from normwright.cli.places import check_apart, check_file, check_new, check_whole
from normwright.cli.users import Batches, UsersError

Weights = Annotated[
    Path, typer.Option(metavar="FILE", help="The model's weights: .pt or .safetensors. Never written to.")
]
Build = Annotated[
    str,
    typer.Argument(metavar="BUILD", help="package.module:build, the model or a function that returns it."),
]
Data = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="package.module:batches, an iterable of batches or a function returning one. The model gets a "
        "tensor; of a tuple or list the first; a dict is keywords.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        readable=False,
        help="Another file: a copy of --weights with new statistics. Its suffix says its format: .safetensors, "
        "or a torch file (.pt, .pth, .bin, .ckpt, .tar, or the suffix of --weights).",
    ),
]
Entry = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Which network of the file, where it holds several: model_ema."),
]
Method = Annotated[
    Literal["pooled", "algorithm2", "moving"],
    typer.Option(help="All values together, the paper's Algorithm 2, or the layers' moving average."),
]
Order = Annotated[
    Literal["joint", "sequential"],
    typer.Option(help="All layers in one pass, or each behind final statistics."),
]


def inspect(
    weights: Annotated[
        Path, typer.Argument(metavar="FILE", help="A state dict or checkpoint: a .pt or .safetensors file.")
    ],
    json: Json = None,
    fail_on: Annotated[
        Literal["error", "warning", "never"], typer.Option(help="What ends with exit status 1.")
    ] = "error",
) -> None:
    """Look for what is wrong with the batch norm layers of a file of weights, worst first.

    No code is needed and none is run: layers are found by their keys. Exit status: 0, or 1 for findings as bad as
    --fail-on, or 2 for a file that cannot be read or holds no batch norm layers.
    """
    _need_reader(weights)
    from rich.console import Console

    import normwright.torch as nw
    from normwright.report import terminal
    from normwright.torch.statistics import checkpoint

    try:
        check_apart(weights, json)
        check_file(json)
        findings = nw.inspect(checkpoint.read(weights).content)
    except OSError as error:
        stop(f"normwright inspect: {error.filename or weights}: {error.strerror or error}", code=2)
    except nw.ShapeError as error:
        stop(f"normwright inspect: {error}", code=2)
    terminal.show_notices(findings.headline, findings.about, findings.notices(), Console())
    if json is not None:
        try:
            findings.save(json)
        except OSError as error:
            stop(f"normwright inspect: cannot write to {json}: {error.strerror or error}", code=2)
    if not findings.layers:  # whatever --fail-on says: to have looked at nothing is no good news
        raise typer.Exit(2)
    if findings.fails(fail_on):
        raise typer.Exit(1)


def recalibrate(
    build: Build,
    weights: Weights,
    data: Data,
    out: Out,
    method: Method = "pooled",
    order: Order = "joint",
    prior: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The old statistics count as so many samples.")
    ] = None,
    entry: Entry = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --out where it exists.")] = False,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", readable=False, help="File for the drift, layer by layer."),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", readable=False, help="SVG file for a picture of the drift."),
    ] = None,
) -> None:
    """Measure the running statistics of a model anew, on data, and write its weights with them.

    Modules are imported from the current folder too. --out is the file that was read, with new statistics in
    place of the old ones, in the types that they had there, and all else as it was; it appears whole or not at all.
    """
    _need_reader(weights, out)
    if figure is not None:
        need("report", {"matplotlib": "matplotlib"})
    import normwright.torch as nw
    from normwright.torch.statistics import checkpoint

    call, left = "normwright recalibrate", "nothing was written"
    try:
        check_apart(weights, out, json, figure)
        check_new(out, force)
        check_whole(out, [*checkpoint.SUFFIXES, *{weights.suffix.lower()} - {"", *checkpoint.SUFFIXES}])
        check_file(json)
        check_file(figure, SVG)
        read = checkpoint.read(weights)
        model = called(build, checkpoint.is_model)
        place = checkpoint.load(build, model, read, entry)
        given = Batches(data, batches(data), again=order == "sequential")
        drift = nw.recalibrate(
            model,
            given,
            forward=given,
            method=method,
            order=order,
            prior=prior,
            progress=sys.stderr.isatty(),
        )
        checkpoint.write(out, checkpoint.with_statistics_of(model, read, place, drift))
        left = f"{out} is written"
        typer.echo(f"{drift}\n\nThe weights: {out}")
        if json is not None:
            drift.save(json)
        if figure is not None:
            drift.figure(figure)
    except (NotFoundError, UsersError, nw.ShapeError, nw.DtypeError, nw.NonfiniteError) as error:
        stop(f"{call}: {error}", code=2)
    except OSError as error:
        stop(f"{call}: {error.filename or out}: {error.strerror or error}", code=2)
    except KeyboardInterrupt:
        stop(f"{call}: stopped; {left}.", code=130)


def _need_reader(*files: Path) -> None:
    """Leave with one line where what reads and writes these files is missing."""
    need("torch", {"torch": "torch"})
    if any(file.suffix.lower() == ".safetensors" for file in files):
        need("safetensors", {"safetensors": "safetensors"})
