"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Lang = Annotated[Literal["en", "zh"], typer.Option(help="Language of the page and the tables.")]
Figure = Annotated[Path | None, typer.Option(help="SVG file for a picture of every time over the floor.")]
