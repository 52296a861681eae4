"""How a command ends when something is missing or wrong: one line, and a code."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import NoReturn

import typer


def need(extra: str, packages: Mapping[str, str]) -> None:
    """Leave with one line where a package of `extra` is missing; `packages` maps modules to their names."""
    missing = [name for module, name in packages.items() if find_spec(module) is None]
    if missing:
        install = f"pip install 'normwright[{extra}]'"
        stop(f"normwright: not installed: {', '.join(missing)}. Install with: {install}", code=2)


def stop(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
