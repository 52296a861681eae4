"""The command line: parses, calls, prints."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

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


OUT = Path("normwright-report")
LAB_NEEDS = {"torch": "torch", "sklearn": "scikit-learn", "matplotlib": "matplotlib", "jinja2": "jinja2"}
Out = Annotated[Path, typer.Option(help="Folder of the page, its records and its pictures.")]
Seed = Annotated[int, typer.Option(min=0, help="The first of the repetitions' seeds.")]
Data = Annotated[str, typer.Option(help="digits, mnist=DIR (IDX files) or cifar10=DIR (the binary version).")]
Jobs = Annotated[
    int | None, typer.Option(min=1, help="Experiments side by side; changes no result. Default: the cores.")
]
Lang = Annotated[Literal["en", "zh"], typer.Option(help="Language of the page and the tables.")]


@app.command()
def demo(seed: Seed = 0, out: Out = OUT, data: Data = "digits", jobs: Jobs = None, lang: Lang = "en") -> None:
    """Show what batch normalization does: every experiment of the laboratory, small, on real data."""
    _need("lab", LAB_NEEDS)
    from normwright.lab.registry import EXPERIMENTS
    from normwright.lab.run import Order

    _run_lab("demo", Order(list(EXPERIMENTS), "demo", data, seed), out=out, jobs=jobs, language=lang)


@app.command()
def lab(
    names: Annotated[
        list[str] | None, typer.Argument(help="Experiments, or: all. Without one: the list.")
    ] = None,
    seed: Seed = 0,
    out: Out = OUT,
    data: Data = "digits",
    jobs: Jobs = None,
    lang: Lang = "en",
    again: Annotated[
        bool, typer.Option("--again", help="Measure anew what an earlier run has kept.")
    ] = False,
) -> None:
    """Run experiments at full size. What was measured is kept: a run that was cut off goes on where it was."""
    _need("lab", LAB_NEEDS)
    from normwright.lab.registry import EXPERIMENTS
    from normwright.lab.run import Order

    if not names:
        for experiment in EXPERIMENTS.values():
            typer.echo(f"{experiment.name:<16} {experiment.about}")
        return
    unknown = [name for name in names if name != "all" and name not in EXPERIMENTS]
    if unknown:
        known = ", ".join(["all", *EXPERIMENTS])
        _stop(
            f"normwright lab: expected names of experiments, got {', '.join(unknown)}. Known: {known}.",
            code=2,
        )
    chosen = [name for name in EXPERIMENTS if name in names or "all" in names]
    order = Order(chosen, "full", data, seed)
    _run_lab("lab", order, out=out, jobs=jobs, language=lang, resume=True, again=again)


def _run_lab(command: str, order: Any, *, out: Path, **options: Any) -> None:
    """Run experiments; what can go wrong outside them ends in one line."""
    from normwright.lab import run as laboratory

    try:
        laboratory.run(order, out=out, **options)
    except FileNotFoundError as error:
        _stop(f"normwright {command}: {error}", code=1)
    except OSError as error:
        folder = os.path.expanduser(order.data.partition("=")[2])
        if folder and str(error.filename).startswith(folder):
            _stop(f"normwright {command}: cannot read {error.filename}: {error.strerror}", code=1)
        _stop(f"normwright {command}: cannot write to {out}: {error.strerror or error}", code=1)
    except ValueError as error:
        if order.data == "digits":
            raise  # not the reader's doing: no file of theirs was read
        _stop(f"normwright {command}: {error}", code=1)
    except KeyboardInterrupt:
        kept = (
            "nothing was written" if command == "demo" else "what was measured is kept; run it again to go on"
        )
        _stop(f"normwright {command}: stopped; {kept}.", code=130)


bench = typer.Typer(
    help="Measure beside torch, torch.compile, JAX and the memory floor, values checked first."
)
app.add_typer(bench, name="bench")
Figure = Annotated[Path | None, typer.Option(help="SVG file for a picture of every time over the floor.")]


@bench.callback(invoke_without_command=True)
def measure(
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="Few shapes, few rounds: under a minute.")] = False,
    threads: Annotated[
        list[str] | None, typer.Option(help="Numbers of threads, or all: 1,2,all. Default: as torch has it.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="A regular expression found in cells' names: '56x56 NCHW float32 bn$'.")
    ] = None,
    contenders: Annotated[
        str | None, typer.Option(help="Beside ours: some of torch,torch.compile,jax. Default: all there are.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the records.")] = None,
    save: Annotated[
        Path | None, typer.Option(help="Folder for the records, in a file named after the machine.")
    ] = None,
    figure: Figure = None,
) -> None:
    """Measure beside torch, torch.compile, JAX and the memory floor, values checked first.

    torch.compile and JAX, and the allocator as users have it, on a part of the shapes; with --only on all of them.
    """
    if context.invoked_subcommand is not None:
        return
    _need("torch", {"torch": "torch"})
    if figure is not None:
        _need("report", {"matplotlib": "matplotlib"})
    from normwright.bench import run as benchmark
    from normwright.bench.timer import WrongValues

    if json is not None and save is not None:
        _stop("normwright bench: expected --json or --save, got both.", code=2)
    into = json if save is None else save / benchmark.file_name()
    try:
        order = benchmark.Order.of(quick=quick, threads=threads, only=only, contenders=contenders)
        right = benchmark.run(order, into=into, figure=figure)
    except benchmark.CannotMeasure as reason:
        _stop(f"normwright bench: {reason}", code=2)
    except WrongValues as refusal:
        _stop(f"normwright bench: {refusal}", code=1)
    except OSError as error:
        _stop(
            f"normwright bench: cannot write to {error.filename or into}: {error.strerror or error}", code=1
        )
    except KeyboardInterrupt:
        _stop("normwright bench: stopped; nothing was written.", code=130)
    if not right:
        _stop("normwright bench: some contenders computed something else, and were not timed there.", code=1)


@bench.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Records of one run, the earlier one.")],
    b: Annotated[Path, typer.Argument(help="Records of another.")],
) -> None:
    """Compare two runs: our times, as measured, over the floor and over torch of the same run."""
    from rich.console import Console

    from normwright.bench import compare as side_by_side
    from normwright.report import records, terminal
    from normwright.report.words import Say

    read = []
    for file in (a, b):
        try:
            read.append(records.read(file))
        except OSError as error:
            _stop(f"normwright bench compare: {error.filename}: {error.strerror}", code=1)
        except (ValueError, KeyError) as error:
            _stop(f"normwright bench compare: {file}: {error}", code=1)
    try:
        terminal.show(side_by_side.document(read[0], read[1]), Console(), Say())
    except (ValueError, KeyError) as error:
        _stop(f"normwright bench compare: {a} and {b}: {error}", code=1)


@app.command()
def behaviour(
    into: Annotated[Path | None, typer.Option(help="Put the table between this file's markers.")] = None,
) -> None:
    """Bring situations about in torch's layers and in normwright's, and show side by side what they do."""
    _need("torch", {"torch": "torch"})
    from normwright.bench import behaviour as side_by_side

    try:
        side_by_side.run(into=into)
    except OSError as error:
        _stop(f"normwright behaviour: {error.filename}: {error.strerror}", code=1)
    except ValueError as error:
        _stop(f"normwright behaviour: into {into}: {error}", code=1)
    except KeyboardInterrupt:
        _stop("normwright behaviour: stopped; nothing was written.", code=130)


@app.command()
def latency(
    into: Annotated[Path | None, typer.Option(help="Put the table between this file's markers.")] = None,
) -> None:
    """Measure a tiny layer's step and gradients of gradients, beside torch and composed operations."""
    _need("torch", {"torch": "torch"})
    from normwright.bench import latency as small
    from normwright.bench.timer import WrongValues

    try:
        small.run(into=into)
    except WrongValues as refusal:
        _stop(f"normwright latency: {refusal}", code=1)
    except OSError as error:
        _stop(f"normwright latency: {error.filename}: {error.strerror}", code=1)
    except ValueError as error:
        _stop(f"normwright latency: into {into}: {error}", code=1)
    except KeyboardInterrupt:
        _stop("normwright latency: stopped; nothing was written.", code=130)


@app.command()
def table(
    results: Annotated[Path, typer.Argument(help="Records that `demo`, `lab` or `bench` wrote.")],
    part: Annotated[
        Literal["summary", "report", "questions", "cells"],
        typer.Option(
            help="Of the laboratory: its verdicts, everything, or the readers' questions. Of the benchmark: its "
            "means, or every cell."
        ),
    ] = "summary",
    into: Annotated[Path | None, typer.Option(help="Put it between this file's markers.")] = None,
    figure: Figure = None,
    lang: Lang = "en",
) -> None:
    """Print a results file as Markdown, or put it into a file of the documentation, or draw it."""
    try:
        if figure is not None:
            _draw(results, figure, lang)
        if figure is None or into is not None:
            name, block = _markdown(results, part, lang, into)
            if into is None:
                typer.echo(block, nl=False)
            else:
                from normwright.report import markdown

                markdown.write_into(into, name, block)
    except OSError as error:
        _stop(f"normwright table: {error.filename}: {error.strerror}", code=1)
    except (ValueError, KeyError) as error:
        where = f"{results} into {into}" if into else str(results)
        _stop(f"normwright table: {where}: {error}", code=1)


def _draw(results: Path, figure: Path, lang: Literal["en", "zh"]) -> None:
    """The picture of a benchmark."""
    _need("report", {"matplotlib": "matplotlib"})
    from normwright.bench import figure as picture
    from normwright.report import records
    from normwright.report.words import Say

    measured, about = records.read(results)
    if about.get("experiment") != "bench":
        raise ValueError(f"expected records of bench for --figure, got {about.get('experiment')}.")
    picture.save(measured, figure, Say(lang))


def _markdown(results: Path, part: str, lang: Literal["en", "zh"], into: Path | None) -> tuple[str, str]:
    """The name of the markers and what goes between them."""
    from normwright.report import records
    from normwright.report.words import Say

    measured, about = records.read(results)
    say = Say(lang)
    bench_parts, experiment = ("summary", "cells"), about.get("experiment")
    if experiment not in ("demo", "lab", "bench"):
        raise ValueError(f"expected records of demo, lab or bench, got {experiment}.")
    if (part not in bench_parts) if experiment == "bench" else (part == "cells"):
        raise ValueError(f"expected a --part that records of {experiment} have, got {part}.")
    if experiment == "bench":
        from normwright.bench import table as speed

        if part == "cells":
            return "cells", speed.per_cell(measured, about, say)
        return "bench", speed.summary(measured, about, say)
    _need("report", {"matplotlib": "matplotlib"})
    from normwright.report import laboratory, markdown

    document = laboratory.document(measured, about, say)
    # Relative to the file that shows them: the pictures lie beside the records.
    pictures = Path(os.path.relpath(results.parent / "pictures", into.parent if into else Path())).as_posix()
    blocks = {
        "summary": lambda: markdown.summary(document, say),
        "report": lambda: markdown.render(document, say, pictures),
        "questions": lambda: markdown.questions(document, pictures),
    }
    return part, blocks[part]()


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
