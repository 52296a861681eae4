"""What was counted in the models of the package transformers, read from `models.json`: takes no framework."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from normwright.core.activation import KINDS

FILE = Path(__file__).with_name("models.json")
VERSIONS = ("transformers", "torch", "timm")  # of those it was counted with
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


@cache
def document() -> dict[str, Any]:
    """The file, as `counting` wrote it."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def shapes() -> list[Shape]:
    """Every shape of a batch norm's input in the vision models of transformers, the most frequent first.

    Default configurations, at their default image size, batch 8; frozen batch norms are not counted.
    """
    return [
        Shape(tuple(each["shape"]), each["occurs"], each["models"], each["followed_by"])
        for each in document()["shapes"]
    ]


def following() -> list[Followed]:
    """What follows batch norms in all models of transformers that have one, the most frequent first."""
    layers, frozen, architectures = Counter[str](), Counter[str](), Counter[str]()
    for model in document()["models"]:
        layers.update(model["then"])
        frozen.update(model["frozen_then"])
        architectures.update({*model["then"], *model["frozen_then"]})
    order = sorted(architectures, key=lambda then: (-layers[then], -frozen[then], then))
    return [Followed(then, layers[then], frozen[then], architectures[then]) for then in order]


def settings() -> dict[str, dict[str, int]]:
    """How often default configurations name an activation: by its name, then by that of the attribute."""
    values: dict[str, dict[str, int]] = document()["settings"]["values"]
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
