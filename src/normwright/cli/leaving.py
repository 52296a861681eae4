"""How a command ends when something is missing or wrong: one line, and a code."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import typer


def need(extra: str, packages: Mapping[str, str]) -> None:
    """Leave with one line where a package of `extra` is missing; `packages` maps modules to their names."""
    missing = [name for module, name in packages.items() if find_spec(module) is None]
    if missing:
        install = f"pip install 'normwright[{extra}]'"
        stop(f"normwright: not installed: {', '.join(missing)}. Install with: {install}", code=2)


@contextmanager
def tables(command: str, into: Path | None, refusals: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """While a command makes its tables: what can go wrong ends it in one line.

    Args:
        command: its name.
        into: the page that takes the tables, whose markers a ValueError misses.
        refusals: errors that say by themselves what is wrong.
    """
    try:
        yield
    except refusals as refusal:
        stop(f"normwright {command}: {refusal}", code=1)
    except OSError as error:
        stop(f"normwright {command}: {error.filename}: {error.strerror}", code=1)
    except ValueError as error:
        if into is None:
            raise  # not the reader's doing: no file of theirs was read
        stop(f"normwright {command}: into {into}: {error}", code=1)
    except KeyboardInterrupt:
        stop(f"normwright {command}: stopped; nothing was written.", code=130)


def stop(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
