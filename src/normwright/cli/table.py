"""The command `table`: records as Markdown or as a picture."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from normwright.cli.leaving import need, stop
from normwright.cli.options import SVG, Figure, Lang
from normwright.cli.places import need_file

LAB_PARTS, BENCH_PARTS = ("summary", "report", "questions"), ("summary", "cells")


def table(
    results: Annotated[
        Path, typer.Argument(metavar="RECORDS", help="Records that `demo`, `lab` or `bench` wrote.")
    ],
    part: Annotated[
        Literal["summary", "report", "questions", "cells"],
        typer.Option(
            metavar="PART",
            help="Of the laboratory: summary (its verdicts), report (everything) or questions (the readers'). Of "
            "the benchmark: summary (its means) or cells (every one).",
        ),
    ] = "summary",
    into: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put it between this file's markers.")
    ] = None,
    figure: Figure = None,
    lang: Lang = "en",
) -> None:
    """Print a results file as Markdown, or put it into a file of the documentation, or draw it."""
    need_file("normwright table", figure, SVG)
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
        stop(f"normwright table: {error.filename}: {error.strerror}", code=1)
    except (ValueError, KeyError) as error:
        where = f"{results} into {into}" if into else str(results)
        stop(f"normwright table: {where}: {error}", code=1)


def _draw(results: Path, figure: Path, lang: Literal["en", "zh"]) -> None:
    """The picture of a benchmark."""
    need("report", {"matplotlib": "matplotlib"})
    from normwright.bench.telling import figure as picture
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
    experiment = about.get("experiment")
    if experiment not in ("demo", "lab", "bench"):
        raise ValueError(f"expected records of demo, lab or bench, got {experiment}.")
    parts = BENCH_PARTS if experiment == "bench" else LAB_PARTS
    if part not in parts:
        known = ", ".join(parts)
        raise ValueError(f"expected a --part that records of {experiment} have ({known}), got {part}.")
    if experiment == "bench":
        from normwright.bench.telling import table as speed

        if part == "cells":
            return "cells", speed.per_cell(measured, about, say)
        return "bench", speed.summary(measured, about, say)
    need("report", {"matplotlib": "matplotlib"})
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
