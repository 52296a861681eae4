"""A report as one HTML file that needs nothing else: no network, no script, its pictures inside."""

from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from normwright.report import figures
from normwright.report.document import Document, Picture

TEMPLATE = Path(__file__).with_name("page.html.jinja")


def render(document: Document) -> str:
    """The page as HTML."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(document=document, svg=_svg, unbroken=_unbroken)


def write(path: Path, document: Document) -> None:
    """The page as a file."""
    path.write_text(render(document), encoding="utf-8")


def _svg(picture: Picture) -> Markup:
    # Ours, not a reader's: matplotlib escaped the words in it.
    return Markup(figures.svg(picture.draw(), picture.name))


def _unbroken(cell: str) -> str:
    """A cell that breaks, where it must, only between a median and its range."""
    return cell.replace(" ", "\u00a0").replace("\u00a0(", " (")
