"""The command line: parses, calls, prints."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from normwright import __version__

app = typer.Typer(
    name="normwright",
    help="Batch normalization that is fast, exact, and easy to trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
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


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Few shapes, few rounds: under a minute.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: as many as torch uses.")] = None,
    json: Annotated[Path | None, typer.Option(help="File for the records.")] = None,
    save: Annotated[
        Path | None, typer.Option(help="Folder for the records, in a file named after the machine.")
    ] = None,
) -> None:
    """Measure forward and backward beside torch and the memory floor, values checked first."""
    _need("torch", {"torch": "torch"})
    from normwright.bench import run as benchmark
    from normwright.bench.timer import WrongValues

    if json is not None and save is not None:
        _stop("normwright bench: expected --json or --save, got both.", code=2)
    into = json if save is None else save / benchmark.file_name()
    try:
        benchmark.run(quick=quick, threads=threads, into=into)
    except benchmark.CannotMeasure as reason:
        _stop(f"normwright bench: {reason}", code=2)
    except WrongValues as refusal:
        _stop(f"normwright bench: {refusal}", code=1)
    except OSError as error:
        _stop(f"normwright bench: cannot write to {into}: {error.strerror or error}", code=1)
    except KeyboardInterrupt:
        _stop("normwright bench: stopped; nothing was written.", code=130)


@app.command()
def table(
    results: Annotated[Path, typer.Argument(help="Records that `demo` or `bench` wrote.")],
    into: Annotated[Path | None, typer.Option(help="Put it between this file's markers.")] = None,
) -> None:
    """Print a results file as Markdown, or put it into a README."""
    from normwright.bench import table as speed
    from normwright.report import demo as main_job
    from normwright.report import markdown, records

    tellers = {"bench": speed.markdown, "demo": lambda *told: markdown.render(main_job.document(*told))}
    try:
        measured, about = records.read(results)
        experiment = str(about.get("experiment"))
        if experiment not in tellers:
            raise ValueError(f"{results}: expected records of {' or '.join(tellers)}, got {experiment}.")
        block = tellers[experiment](measured, about)
        if into is None:
            typer.echo(block, nl=False)
        else:
            text = into.read_text(encoding="utf-8")
            into.write_text(markdown.put_into(text, experiment, block), encoding="utf-8")
    except OSError as error:
        _stop(f"normwright table: {error.filename}: {error.strerror}", code=1)
    except (ValueError, KeyError) as error:
        _stop(
            f"normwright table: {results} into {into}: {error}"
            if into
            else f"normwright table: {results}: {error}",
            1,
        )


@app.command()
def info() -> None:
    """Show what runs here: kernels, instruction set, threads, versions."""
    try:
        from normwright.bench import machine

        facts = machine.info()
    except (ImportError, ValueError) as error:  # kernels that do not load, an instruction set that cannot be
        _stop(str(error), code=1)
    for name, fact in facts.items():
        typer.echo(f"{name:<16} {fact}")


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
