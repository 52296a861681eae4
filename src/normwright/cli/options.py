"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

# A file that is only written need not be readable; that it can be written, `places` asks.
SVG = [".svg"]  # in what a picture's name ends

Lang = Annotated[Literal["en", "zh"], typer.Option(help="Language of the page and the tables.")]
Tables = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Put the tables between this file's markers.")
]
Json = Annotated[Path | None, typer.Option(metavar="FILE", readable=False, help="File for the records.")]
Figure = Annotated[
    Path | None,
    typer.Option(metavar="FILE", readable=False, help="SVG file for a picture of every time over the floor."),
]
