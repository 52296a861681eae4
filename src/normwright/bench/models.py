"""Which batch norms the models of the package transformers have, and what follows each: counted once, read here.

`python -m normwright.bench.models --into FILE` counts again, which takes transformers and two minutes; reading what
was counted takes neither. `--page docs/models.md` writes the page's tables from the file.
"""

import argparse
import io
import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from normwright.core.activation import KINDS
from normwright.report import terminal

if TYPE_CHECKING:
    from normwright.bench.architectures import Architecture

FILE = Path(__file__).with_name("models.json")
COMMAND = "python -m normwright.bench.models"
NEEDS = "pip install transformers timm torchvision scipy"
VERSIONS = ("transformers", "torch", "timm")
MOST_BYTES = 110_000_000  # of one tensor of a grid, in float32
STEP = " > "  # between the operations that follow a batch norm
SUM = "add"

CARRIED = ("relu6", *KINDS[1:])  # by our kernels; relu6 is their hardtanh(0, 6)
OTHERS = ("quick_gelu", "mish", "hardsigmoid", "selu", "celu", "softplus", "prelu", "rrelu", "relu_squared")
ACTIVATIONS = (*CARRIED, *OTHERS)
SUM_ALONE, OTHERS_RESIDUAL, NONE = "a residual, no activation", "it is another's residual", "none of these"


class Shape(NamedTuple):
    """A shape of batch norms' inputs in vision models.

    Attributes:
        shape: (N, C, ...), N the batch of 8, or a multiple where a model makes several inputs of one.
        occurs: how many batch norms have it, over all architectures.
        models: how many architectures have one that has.
        followed_by: what follows them, as in `Followed.then`, and how often.
    """

    shape: tuple[int, ...]
    occurs: int
    models: int
    followed_by: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """Size of the tensor in float32."""
        return 4 * math.prod(self.shape)


class Followed(NamedTuple):
    """What follows batch norms.

    Attributes:
        then: operations, joined by " > ": "relu", "add > relu", "conv2d". "a & b": several read the output.
        layers: how many batch norms it follows.
        frozen: how many frozen ones.
        architectures: how many have one of either kind.
    """

    then: str
    layers: int
    frozen: int
    architectures: int

    @property
    def kind(self) -> str:
        """The activation, with or without a residual before it; or what there is in its place.

        >>> [Followed(then, 1, 0, 1).kind for then in ("relu", "add > relu", "add > conv2d", "conv2d")]
        ['relu', 'relu', 'a residual, no activation', 'none of these']
        """
        steps = self.then.split(STEP)
        if steps[-1] in ACTIVATIONS and steps[:-1] in ([], [SUM]):
            return steps[-1]
        if steps[-1].startswith("hardtanh("):
            return "hardtanh"
        if steps[0] == SUM:
            return SUM_ALONE
        return OTHERS_RESIDUAL if self.then == "another's residual" else NONE

    @property
    def after_a_residual(self) -> bool:
        """Whether a sum with a residual stands between the batch norm and what its kind says."""
        return self.then.startswith(SUM + STEP)


# --- reading ----------------------------------------------------------------


@cache
def counted() -> dict[str, Any]:
    """The file, as it was written by the tool."""
    document: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return document


def shapes() -> list[Shape]:
    """Every shape of a batch norm's input in the vision models of transformers, the most frequent first.

    Default configurations, at their default image size, batch 8; frozen batch norms are not counted.
    """
    return [
        Shape(tuple(each["shape"]), each["occurs"], each["models"], each["followed_by"])
        for each in counted()["shapes"]
    ]


def following() -> list[Followed]:
    """What follows batch norms in all models of transformers that have one, the most frequent first."""
    layers, frozen, architectures = Counter[str](), Counter[str](), Counter[str]()
    for model in counted()["models"]:
        layers.update(model["then"])
        frozen.update(model["frozen_then"])
        architectures.update({*model["then"], *model["frozen_then"]})
    order = sorted(architectures, key=lambda then: (-layers[then], -frozen[then], then))
    return [Followed(then, layers[then], frozen[then], architectures[then]) for then in order]


def settings() -> dict[str, dict[str, int]]:
    """How often default configurations name an activation: by its name, then by that of the attribute."""
    values: dict[str, dict[str, int]] = counted()["settings"]["values"]
    return values


def grid(k: int) -> list[Shape]:
    """k shapes (N, C, H, W) that stand for all up to 110 MB in float32; the smallest first.

    All batch norms, sorted by the size of their input, are cut into k parts of as many each; of every part the most
    frequent shape is taken. Where a shape fills more than one part, the most frequent of the rest stand in.

    Example:
        >>> [len(shape.shape) for shape in grid(3)]
        [4, 4, 4]
    """
    by_size = sorted(
        (each for each in shapes() if len(each.shape) == 4 and each.bytes <= MOST_BYTES),
        key=lambda each: (each.bytes, each.shape),
    )
    total, before = sum(each.occurs for each in by_size), 0
    chosen: dict[int, Shape] = {}
    for each in by_size:
        part = int((before + each.occurs / 2) * k / total)
        before += each.occurs
        chosen[part] = max(chosen.get(part, each), each, key=lambda one: one.occurs)
    taken = {each.shape for each in chosen.values()}
    rest = sorted(
        (each for each in by_size if each.shape not in taken), key=lambda each: (-each.occurs, each.shape)
    )
    return sorted([*chosen.values(), *rest[: k - len(chosen)]], key=lambda each: (each.bytes, each.shape))


# --- counting ---------------------------------------------------------------


def count(console: Console) -> dict[str, Any]:
    """Build every model, run each once without values, and count. About a minute, on one thread."""
    import torch

    from normwright.bench import architectures

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), terminal.Bars(console) as bars:
            warnings.simplefilter("ignore")
            folders = architectures.folders()
            bars.add("models", work=len(folders))
            bars.add("configurations", work=1)
            seen = []
            for folder in folders:
                bars.begin("models", folder.name)
                seen.append(architectures.see(folder))
                bars.advance("models", 1)
            bars.begin("configurations", "activations")
            document = summary([each for each in seen if each is not None], architectures.settings())
            bars.advance("configurations", 1)
    finally:
        torch.set_num_threads(threads)
    return document


def summary(seen: Sequence["Architecture"], named: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """What was seen, as the file has it."""
    values: dict[str, dict[str, int]] = {}
    for (attribute, value), times in sorted(named.items()):
        values.setdefault(value, {})[attribute] = times
    models = [
        {
            "name": each.name,
            "class": each.model,
            "image": each.image,
            "norms": each.norms,
            "frozen": each.frozen,
            "then": _counts(STEP.join(call.then) for call in each.calls if not call.frozen),
            "frozen_then": _counts(STEP.join(call.then) for call in each.calls if call.frozen),
        }
        for each in seen
        if each.calls
    ]
    return {
        "made_with": {name: metadata.version(name).partition("+")[0] for name in VERSIONS},
        "settings": {"values": values},
        "left_out": {each.name: each.left_out for each in seen if each.left_out},
        "models": models,
        "shapes": _shapes(seen),
    }


def _shapes(seen: Iterable["Architecture"]) -> list[dict[str, Any]]:
    """The shapes of vision models, the most frequent first."""
    models: dict[tuple[int, ...], set[str]] = {}
    then: dict[tuple[int, ...], Counter[str]] = {}
    for each in seen:
        for call in each.calls:
            if each.image is not None and not call.frozen:
                models.setdefault(call.shape, set()).add(each.name)
                then.setdefault(call.shape, Counter())[STEP.join(call.then)] += 1
    order = sorted(then, key=lambda shape: (-then[shape].total(), shape))
    return [
        {
            "shape": list(shape),
            "occurs": then[shape].total(),
            "models": len(models[shape]),
            "followed_by": dict(then[shape].most_common()),
        }
        for shape in order
    ]


def _counts(of: Iterable[str]) -> dict[str, int]:
    return dict(Counter(of).most_common())


def dumps(document: Mapping[str, Any]) -> str:
    """JSON with a model, a shape, a setting a line, so that a change of one is a change of one line."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list):
            lines = ",\n".join(f"  {json.dumps(each)}" for each in value)
            parts.append(f" {json.dumps(key)}: [\n{lines}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value, indent=1)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


# --- the command ------------------------------------------------------------


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
            asked.into.write_text(dumps(count(console)), encoding="utf-8")
            console.print(f"Counted into {asked.into}", soft_wrap=True)
            return
        from normwright.bench import models_page

        if asked.page is not None:
            models_page.write(asked.page)
        for table in (models_page.following_table(), models_page.settings_table()):
            console.print(terminal.rich_table(table))
    except (ImportError, OSError, ValueError) as error:
        parser.exit(1, f"{COMMAND}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{COMMAND}: stopped; nothing was written.\n")


if __name__ == "__main__":
    main()
