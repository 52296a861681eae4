"""The command line: parses, calls, prints."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer(
    name="normwright",
    help="Batch normalization that is fast, exact, and easy to trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def commands() -> None:
    """Batch normalization that is fast, exact, and easy to trust."""


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="The first of the three runs' seeds.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the page and its records.")] = Path(
        "normwright-report"
    ),
) -> None:
    """Train networks with and without batch normalization on real data, and show what it did."""
    _need(
        "lab", {"torch": "torch", "sklearn": "scikit-learn", "matplotlib": "matplotlib", "jinja2": "jinja2"}
    )
    from normwright.lab import demo as main_job

    try:
        main_job.run(seed=seed, out=out)
    except OSError as error:
        _stop(f"normwright demo: cannot write to {out}: {error.strerror or error}", code=1)
    except KeyboardInterrupt:
        _stop("normwright demo: stopped; nothing was written.", code=130)


def _need(extra: str, packages: Mapping[str, str]) -> None:
    """Leave with one line where a package of `extra` is missing; `packages` maps modules to their names."""
    missing = [name for module, name in packages.items() if find_spec(module) is None]
    if missing:
        install = f"pip install 'normwright[{extra}]'"
        _stop(f"normwright: not installed: {', '.join(missing)}. Install with: {install}", code=2)


def _stop(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the `normwright` command."""
    app()
