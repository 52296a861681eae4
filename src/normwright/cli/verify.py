"""The command `verify-sync`: whether the processes that torchrun starts equal one process."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from normwright.cli.leaving import need, stop
from normwright.cli.options import Json
from normwright.cli.places import check_file
from normwright.cli.torchrun import is_launched, leave_to_rank_0

_CALL = "normwright verify-sync"


def verify_sync(
    backend: Annotated[
        Literal["gloo", "nccl"] | None,
        typer.Option(help="Default: nccl where every rank has a CUDA device of its own, else gloo."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Layers under torch.compile: a minute.")
    ] = False,
    json: Json = None,
) -> None:
    """Prove that N ranks with synchronized batch norm equal one process, on this cluster, in seconds.

    Type: torchrun --nproc-per-node 2 -m normwright verify-sync. Rank 0 prints a table, and writes the records.
    Exit status, on every rank: 0, or 1 where a case fails or a rank does not come, or 2 for what cannot be tried.
    """
    need("torch", {"torch": "torch"})
    if not is_launched():
        command = f"torchrun --nproc-per-node 2 -m {_CALL}"
        stop(f"{_CALL}: expected to be started by torchrun, got no ranks. Type: {command}", code=2)
    import normwright.torch as nw
    from normwright.torch.distributed import launched, ranks

    try:
        with launched.everyone(backend) as rank:
            first = rank == 0
            if any(ranks.Ranks(_CALL, "world").gather(lambda: first and _cannot_write(json))):
                raise typer.Exit(2)
            report = nw.verify_sync(compiled=compiled, progress=first and sys.stderr.isatty())
            if first:
                typer.echo(f"{report}")
                if json is not None:
                    report.save(json)
    except nw.SyncError as error:
        stop(f"{_CALL}: {error}", code=1)
    except nw.ShapeError as error:
        leave_to_rank_0(2)  # all ranks have the same one
        stop(f"{_CALL}: {error}", code=2)
    except OSError as error:
        stop(f"{_CALL}: {error.filename or json}: {error.strerror or error}", code=2)
    except KeyboardInterrupt:
        stop(f"{_CALL}: stopped.", code=130)
    if not report.ok:
        raise typer.Exit(1)


def _cannot_write(json: Path | None) -> bool:
    """Whether no file can be written there, which is told; asked where it will be written, by rank 0."""
    try:
        check_file(json)
    except OSError as error:
        typer.echo(f"{_CALL}: {error.filename}: {error.strerror}", err=True)
        return True
    return False
