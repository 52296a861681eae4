"""What a report is made of, whatever it reports: cards with a claim, pictures, verdicts and tables.

The terminal, the page and Markdown all print a `Document`; making one from records is the business of each card.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from normwright.report.words import Say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Outcome = Literal["holds", "holds partly", "does not hold here"]
Tone = Literal["error", "warning", "note"]


def outcome(holds: bool, partly: bool) -> Outcome:
    """The outcome of a claim that holds, that holds partly, or neither."""
    return "holds" if holds else "holds partly" if partly else "does not hold here"


def outcome_words(of: Outcome, say: Say) -> str:
    """An outcome in the reader's language."""
    return {
        "holds": say("holds", "成立"),
        "holds partly": say("holds partly", "部分成立"),
        "does not hold here": say("does not hold here", "在这里不成立"),
    }[of]


@dataclass(frozen=True)
class Verdict:
    """Whether a claim held, and in which numbers."""

    claim: str
    outcome: Outcome
    sentence: str


@dataclass(frozen=True)
class Table:
    """Cells as they are printed; the first column names the row, or the first few together (`names`)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    names: int = 1


@dataclass(frozen=True)
class Notice:
    """Something that was noticed: what it comes from, where it was seen, and what to do.

    Attributes:
        title: a few words.
        tone: how bad it is, which is how it is coloured.
        before: what it comes from, in a sentence or two.
        table: where it was seen.
        after: what to do.
    """

    title: str
    tone: Tone
    before: str
    table: Table
    after: str


@dataclass(frozen=True)
class Picture:
    """A figure, drawn only where it is shown, and what it shows for those who cannot see it.

    Attributes:
        name: of its file and in its ids: letters, digits and hyphens, unique in a document.
        draw: makes the figure.
        alt: what it shows, in a sentence.
        title: what tells it from the other pictures of its card; empty where it is the only one.
    """

    name: str
    draw: Callable[[], "Figure"]
    alt: str
    title: str = ""


@dataclass(frozen=True)
class Card:
    """One experiment and its answer.

    Attributes:
        name: the experiment's.
        title: a few words.
        claim: what the sources say, in one sentence.
        done: what was done to find out, in one or two sentences.
        verdicts: whether the claim held, in numbers.
        pictures: what was measured; the most telling one first.
        see: what to see in the pictures, in one or two sentences.
        tables: the numbers.
        details: more of them, folded away.
        command: measures this card again.
    """

    name: str
    title: str
    claim: str
    done: str
    verdicts: tuple[Verdict, ...]
    pictures: tuple[Picture, ...] = ()
    see: str = ""
    tables: tuple[Table, ...] = ()
    details: tuple[Table, ...] = ()
    command: str = ""


@dataclass(frozen=True)
class Answer:
    """A reader's question, its answer, and the picture that shows it (a name of one of the cards' pictures)."""

    question: str
    answer: str
    picture: str = ""


@dataclass(frozen=True)
class Document:
    """A headline, its cards, questions with answers, and how to have it all measured again."""

    title: str
    headline: str
    about: str
    cards: tuple[Card, ...]
    command: str
    stamp: tuple[tuple[str, str], ...]
    answers: tuple[Answer, ...] = ()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Those of all cards, in order."""
        return tuple(picture for card in self.cards for picture in card.pictures)
