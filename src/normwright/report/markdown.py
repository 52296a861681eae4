"""A report as Markdown: what stands between a file's markers was written by a tool."""

from pathlib import Path

from normwright.report.document import Card, Document, Outcome, Table, outcome_words
from normwright.report.words import Say


def summary(document: Document, say: Say) -> str:
    """The headline, and for each experiment which claims held, for a README."""
    outcomes: tuple[Outcome, ...] = ("holds", "holds partly", "does not hold here")

    def claims(card: Card, outcome: Outcome) -> str:
        return say("; ", "；").join(v.claim for v in card.verdicts if v.outcome == outcome)

    shown = Table(
        "",
        (say("experiment", "实验"), *(outcome_words(outcome, say) for outcome in outcomes)),
        tuple((card.title, *(claims(card, outcome) for outcome in outcomes)) for card in document.cards),
    )
    parts = (
        f"**{document.headline}**",
        document.about,
        table(shown, numbers=False),
        _again(document, say),
    )
    return "\n\n".join(parts) + "\n"


def render(document: Document, say: Say, pictures: str) -> str:
    """The whole report, card by card; `pictures` is the path to their folder."""
    parts = [f"**{document.headline}**", document.about]
    for card in document.cards:
        parts += [f'<a id="{card.name}"></a>\n\n## {card.title}', card.claim, card.done]
        parts += [f"- {v.claim}: **{outcome_words(v.outcome, say)}**. {v.sentence}" for v in card.verdicts]
        parts += [f"![{picture.alt}]({pictures}/{picture.name}.svg)" for picture in card.pictures]
        parts.append(card.see)
        parts += [f"**{each.title}**\n\n{table(each)}" for each in card.tables]
        parts.append(f"`{card.command}`" if card.command else "")
    parts.append(_again(document, say))
    return "\n\n".join(part for part in parts if part) + "\n"


def questions(document: Document, pictures: str) -> str:
    """The questions, each with its answer and its picture."""
    alts = {picture.name: picture.alt for picture in document.pictures}
    parts = []
    for answer in document.answers:
        parts += [f"## {answer.question}", answer.answer]
        if answer.picture:
            parts.append(f"![{alts[answer.picture]}]({pictures}/{answer.picture}.svg)")
    return "\n\n".join(parts) + "\n"


def table(of: Table, *, numbers: bool = True) -> str:
    """A table; numbers stand to the right."""
    heads = (":---", *("---:" if numbers else ":---" for _ in of.columns[1:]))
    rows = ([cell.replace("|", r"\|") for cell in row] for row in (of.columns, heads, *of.rows))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + (f"\n\n{of.note}" if of.note else "")


def _again(document: Document, say: Say) -> str:
    return say(f"Measured by `{document.command}`.", f"由 `{document.command}` 测得。")


def write_into(path: Path, name: str, block: str) -> None:
    """Replace what stands between the markers of `name` in a file.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: as `put_into`; the file stays as it was.
    """
    path.write_text(put_into(path.read_text(encoding="utf-8"), name, block), encoding="utf-8")


def put_into(text: str, name: str, block: str) -> str:
    """`text` with what stands between the two markers of `name` replaced by `block`.

    Example:
        >>> put_into("a <!-- x:begin --> old <!-- x:end --> z", "x", "new")
        'a <!-- x:begin -->\\nnew\\n<!-- x:end --> z'

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or any(mark in before + after for mark in (begin, end)):
        raise ValueError(f"expected one line {begin} and, after it, one line {end}")
    return f"{before}{begin}\n{block.strip()}\n{end}{after}"
