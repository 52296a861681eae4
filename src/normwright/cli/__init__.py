"""The command line: parses, calls, prints."""

from typing import Annotated

import typer

from normwright import __version__
from normwright.cli import bench, costs, info, lab, statistics, table, verify
from normwright.cli.usage import Command, Group

app = typer.Typer(
    name="normwright",
    cls=Group,
    help="Batch normalization that is fast, exact, and easy to trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # paragraphs of the help flow
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"normwright {__version__}")
        raise typer.Exit


@app.callback()
def commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Batch normalization that is fast, exact, and easy to trust."""


for command in (
    lab.demo,
    lab.lab,
    lab.averages,
    statistics.inspect,
    statistics.recalibrate,
    bench.behaviour,
    bench.populations,
    bench.latency,
    costs.synchronized,
    costs.scaling,
    verify.verify_sync,
    table.table,
    info.info,
):
    app.command(cls=Command)(command)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Entry point of the `normwright` command."""
    app()
