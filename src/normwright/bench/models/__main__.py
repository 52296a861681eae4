"""The command: tells which batch norms the models of the package transformers have, and what follows each.

`python -m normwright.bench.models --into FILE` counts again, which takes transformers and two minutes; telling what
was counted takes neither. `--page docs/models.md` writes the page's tables.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from normwright.bench.models import page
from normwright.bench.models.counted import VERSIONS
from normwright.bench.models.page import COMMAND
from normwright.report import terminal

NEEDS = "pip install transformers timm torchvision scipy"


def main(arguments: Sequence[str] | None = None) -> None:
    """Count again, or tell what was counted."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Batch norms in the models of transformers.")
    parser.add_argument("--into", type=Path, help="count again, into this file (JSON)")
    parser.add_argument("--page", type=Path, help="put the tables between the markers of this page")
    asked = parser.parse_args(arguments)
    console = Console(file=sys.stdout)
    try:
        if asked.into is not None:
            missing = [name for name in VERSIONS if find_spec(name) is None]
            if missing:
                parser.exit(2, f"{COMMAND}: not installed: {', '.join(missing)}. Install with: {NEEDS}\n")
            if not asked.into.parent.is_dir():
                parser.exit(1, f"{COMMAND}: {asked.into.parent}: No such folder\n")
            from normwright.bench.models import counting  # takes torch

            asked.into.write_text(counting.dumps(counting.count(console)), encoding="utf-8")
            console.print(f"Counted into {asked.into}", soft_wrap=True)
            return
        if asked.page is not None:
            page.write(asked.page)
        for table in (page.following_table(), page.settings_table()):
            terminal.put(table, console)
    except (ImportError, OSError, ValueError) as error:
        parser.exit(1, f"{COMMAND}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{COMMAND}: stopped; nothing was written.\n")


if __name__ == "__main__":
    main()
