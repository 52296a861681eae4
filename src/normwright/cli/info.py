"""The command `info`."""

import typer

from normwright.cli.leaving import stop


def info() -> None:
    """Show what runs here: kernels, instruction set, threads, versions."""
    try:
        from normwright.bench import machine

        facts = machine.info()
    except (ImportError, ValueError) as error:  # kernels that do not load, an instruction set that cannot be
        stop(str(error), code=1)
    for name, fact in facts.items():
        typer.echo(f"{name:<16} {fact}")
