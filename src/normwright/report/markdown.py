"""A report as Markdown, for a README: what stands between its markers was written by a tool."""

from normwright.report.document import Document, Table


def render(document: Document) -> str:
    """The headline, then every card: its title, its tables, its verdicts."""
    parts = [f"**{document.headline}**", document.about]
    for card in document.cards:
        parts.append(f"**{card.title}**. {card.done}".strip())
        parts += [table(each) for each in card.tables]
        parts += [f"- {v.claim}: *{v.outcome}*. {v.sentence}" for v in card.verdicts]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(of: Table) -> str:
    """A table; numbers stand to the right."""
    heads = (":---", *("---:" for _ in of.columns[1:]))
    lines = ["| " + " | ".join(row) + " |" for row in (of.columns, heads, *of.rows)]
    return "\n".join(lines) + (f"\n\n{of.note}" if of.note else "")


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
