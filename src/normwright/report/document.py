"""What a report is made of, whatever it reports: cards with a claim, a picture, a verdict and tables.

The terminal and the page both print a `Document`; building one from records is the business of each
experiment.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Outcome = Literal["holds", "holds partly", "does not hold here"]


@dataclass(frozen=True)
class Verdict:
    """Whether a claim held, and in which numbers."""

    claim: str
    outcome: Outcome
    sentence: str


@dataclass(frozen=True)
class Table:
    """Cells as they are printed; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure, drawn only where it is shown, and what it shows for those who cannot see it."""

    name: str
    draw: Callable[[], "Figure"]
    alt: str


@dataclass(frozen=True)
class Card:
    """One question and its measured answer."""

    title: str
    done: str
    tables: tuple[Table, ...]
    verdicts: tuple[Verdict, ...]
    picture: Picture | None = None
    see: str = ""
    details: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Document:
    """A headline, its cards, and how to have them measured again."""

    title: str
    headline: str
    about: str
    cards: tuple[Card, ...]
    command: str
    stamp: tuple[tuple[str, str], ...]
