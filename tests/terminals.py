"""What a terminal of so many columns shows of a table."""

import io
from collections import Counter
from dataclasses import replace

from rich.console import Console

from normwright.report import terminal


def shown(table, width, **options):
    """The lines of the table alone, as they are printed."""
    printed = io.StringIO()
    bare = replace(table, title="", note="")
    terminal.put(bare, Console(file=printed, width=width, color_system=None), **options)
    return printed.getvalue().splitlines()


def assert_every_word_is_whole(table, width, **options):
    """No line is too long, and every word of every head and cell is there, at least as often as in the table."""
    lines = shown(table, width, **options)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    words = Counter(word for row in (table.columns, *table.rows) for cell in row for word in cell.split())
    assert words, "a table without words shows nothing"
    missing = words - Counter(word for line in lines for word in line.split())
    assert not missing, "\n".join([f"cut or gone: {dict(missing)}", *lines])


def assert_rows_have_names(table):
    """Where a table goes on below itself, its first columns alone say which row is which."""
    names = [row[: table.names] for row in table.rows]
    assert len(set(names)) == len(names), [name for name, n in Counter(names).items() if n > 1]
