"""The command line: parses, calls, prints."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="normwright",
    help="Batch normalization that is fast, exact, and easy to trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Where the three runs' seeds begin.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the page and its records.")] = Path("normwright-report"),
) -> None:
    """Train networks with and without batch normalization on real data, and show what it did."""
    from normwright.lab import demo as main_job

    main_job.run(seed=seed, out=out)


def main() -> None:
    """Entry point of the `normwright` command."""
    app()
