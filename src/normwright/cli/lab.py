"""The commands of the laboratory: `demo`, `lab` and `averages`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from normwright.cli.leaving import need, stop, tables
from normwright.cli.options import Lang, Tables

OUT = Path("normwright-report")
LAB_NEEDS = {"torch": "torch", "sklearn": "scikit-learn", "matplotlib": "matplotlib", "jinja2": "jinja2"}
Out = Annotated[
    Path,
    typer.Option(metavar="FOLDER", help="Folder of the page, its records and its pictures; it is made."),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="The first of the repetitions' seeds.")]
Data = Annotated[
    str,
    typer.Option(metavar="DATA", help="digits, mnist=DIR (IDX files) or cifar10=DIR (the binary version)."),
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Experiments side by side; changes no result. Default: the cores."),
]


def demo(seed: Seed = 0, out: Out = OUT, data: Data = "digits", jobs: Jobs = None, lang: Lang = "en") -> None:
    """Show what batch normalization does: every experiment of the laboratory, small, on real data."""
    need("lab", LAB_NEEDS)
    from normwright.lab.registry import EXPERIMENTS
    from normwright.lab.run import Order

    _run_lab("demo", Order(list(EXPERIMENTS), "demo", data, seed), out=out, jobs=jobs, language=lang)


def lab(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Experiments, or: all. Without one: the list."),
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
    need("lab", LAB_NEEDS)
    from normwright.lab.registry import EXPERIMENTS
    from normwright.lab.run import Order

    if not names:
        for experiment in EXPERIMENTS.values():
            typer.echo(f"{experiment.name:<16} {experiment.about}")
        return
    unknown = [name for name in names if name != "all" and name not in EXPERIMENTS]
    if unknown:
        known = ", ".join(["all", *EXPERIMENTS])
        stop(
            f"normwright lab: expected names of experiments, got {', '.join(unknown)}. Known: {known}.",
            code=2,
        )
    beside = [name for name in names if name != "all"]
    if beside and "all" in names:
        got = f"all with {', '.join(dict.fromkeys(beside))}"
        stop(f"normwright lab: expected all alone, or names, got {got}. Leave one of them out.", code=2)
    chosen = [name for name in EXPERIMENTS if name in names or not beside]
    order = Order(chosen, "full", data, seed)
    _run_lab("lab", order, out=out, jobs=jobs, language=lang, resume=True, again=again)


def averages(
    into: Tables = None,
) -> None:
    """Train, average the weights (SWA, EMA), and show how the average predicts from which statistics."""
    need("lab", LAB_NEEDS)
    from normwright.lab import averaged

    with tables("averages", into):
        averaged.run(into=into)


def _run_lab(command: str, order: Any, *, out: Path, **options: Any) -> None:
    """Run experiments; what can go wrong outside them ends in one line."""
    from normwright.lab import run as laboratory

    try:
        laboratory.run(order, out=out, **options)
    except FileNotFoundError as error:
        stop(f"normwright {command}: {error}", code=1)
    except OSError as error:
        folder = os.path.expanduser(order.data.partition("=")[2])
        if folder and str(error.filename).startswith(folder):
            stop(f"normwright {command}: cannot read {error.filename}: {error.strerror}", code=1)
        stop(f"normwright {command}: cannot write to {out}: {error.strerror or error}", code=1)
    except ValueError as error:
        if order.data == "digits":
            raise  # not the reader's doing: no file of theirs was read
        stop(f"normwright {command}: {error}", code=1)
    except KeyboardInterrupt:
        kept = (
            "nothing was written" if command == "demo" else "what was measured is kept; run it again to go on"
        )
        stop(f"normwright {command}: stopped; {kept}.", code=130)
