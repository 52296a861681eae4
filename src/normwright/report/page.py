"""A report as one HTML file that needs nothing else: no network, no script, its pictures inside."""

import re
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from normwright.report import figures, style
from normwright.report.document import Document, Picture, outcome_words
from normwright.report.words import Say

TEMPLATE = Path(__file__).with_name("page.html.jinja")


def render(document: Document, say: Say) -> str:
    """The page as HTML."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    # Ours, not a reader's: nothing in the style sheet comes from a record.
    look = Markup(f"{style.css()}\n:root {{ --type: {style.FONT}; }}")
    return template.render(
        document=document, say=say, look=look, svg=_svg, unbroken=_unbroken, outcome=outcome_words
    )


def write(path: Path, document: Document, say: Say) -> None:
    """The page as a file."""
    path.write_text(render(document, say), encoding="utf-8")


def _svg(picture: Picture) -> Markup:
    # Ours, not a reader's: matplotlib escaped the words in it.
    return Markup(figures.svg(picture.draw(), picture.name))


def _unbroken(words: str) -> str:
    """Words in which no number is torn from its unit, and no range in two."""
    return re.sub(r" (%|ms|s|KB|MB)\b|(?<=\d) %", lambda unit: f"\u00a0{unit[0][1:]}", words).replace(
        "\u2013", "\u2060\u2013\u2060"
    )
