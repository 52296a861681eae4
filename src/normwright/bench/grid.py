"""Which inputs are measured: a list with a reason each, the layers of a ResNet-50, those of vision models."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from normwright.bench.cases import DTYPES, OPS, Case, Dtype, Layout, Op
from normwright.bench.models import counted

Place = tuple[tuple[int, ...], Layout]


@dataclass(frozen=True)
class Entry:
    """One shape in one layout.

    Attributes:
        shape, layout: of the tensor.
        reason: what it stands for.
        quick: part of the small selection.
        subset: of those on which everything is measured: rivals that take long, and the allocator as users get it.
        types: in float16 and float64 too.
    """

    shape: tuple[int, ...]
    layout: Layout
    reason: str
    quick: bool = False
    subset: bool = False
    types: bool = False

    @property
    def place(self) -> Place:
        """Shape and layout."""
        return self.shape, self.layout


LISTED = (
    Entry((32, 1, 64, 64), "NCHW", "one channel: nothing to share between threads but rows"),
    Entry((32, 2, 64, 64), "channels-last", "rows of 2"),
    Entry((32, 3, 64, 64), "NCHW", "few channels, small images"),
    Entry((32, 3, 64, 64), "channels-last", "the same by rows of 3"),
    Entry((32, 8, 64, 64), "NCHW", "fewer channels than a vector has lanes"),
    Entry((32, 8, 64, 64), "channels-last", "the same by rows of 8"),
    Entry((16, 3, 224, 224), "NCHW", "images", subset=True, types=True),
    Entry((16, 3, 224, 224), "channels-last", "images by rows of 3: less than any vector"),
    Entry((64, 256, 1, 1), "NCHW", "maps of one value: behind a global pooling"),
    Entry((32, 512, 7, 7), "NCHW", "a ResNet's last stage: runs of 49, no multiple of a vector"),
    Entry((32, 512, 7, 7), "channels-last", "the same by rows of 512, few of them"),
    Entry((32, 256, 14, 14), "NCHW", "its third: short runs of 196 values", subset=True),
    Entry((32, 256, 14, 14), "channels-last", "the same by rows of 256", subset=True),
    Entry((32, 128, 28, 28), "NCHW", "its second: runs of 784"),
    Entry((32, 128, 28, 28), "channels-last", "the same by rows of 128"),
    Entry((32, 64, 56, 56), "NCHW", "its first: runs of 3136", quick=True, subset=True, types=True),
    Entry((32, 64, 56, 56), "channels-last", "the same by rows of 64", quick=True, subset=True, types=True),
    Entry((32, 64, 56, 56), "NCHW slice", "half of the channels of a larger tensor", types=True),
    Entry((32, 64, 112, 112), "NCHW", "the first BN of a ResNet at 224: over any cache", subset=True),
    Entry((32, 64, 112, 112), "channels-last", "the same by rows of 64", subset=True),
    Entry((1, 64, 512, 512), "NCHW", "one large map: no batch to split over"),
    Entry((1, 64, 512, 512), "channels-last", "the same by rows of 64"),
    Entry((2, 16, 64, 64, 64), "NCHW", "two volumes: 5-D"),
    Entry((2, 16, 64, 64, 64), "channels-last", "the same by rows of 16"),
    Entry((16, 128, 2048), "NCHW", "sequences: 3-D"),
    Entry((32, 17, 56, 56), "NCHW", "17 channels: no multiple of a vector"),
    Entry((32, 17, 56, 56), "channels-last", "rows of 17"),
    Entry((32, 63, 28, 28), "NCHW", "63 channels"),
    Entry((32, 63, 28, 28), "channels-last", "rows of 63"),
    Entry((16, 129, 28, 28), "NCHW", "129 channels"),
    Entry((16, 129, 28, 28), "channels-last", "rows of 129"),
    Entry((8192, 256), "(N, C)", "a dense layer of a large batch", quick=True, subset=True, types=True),
    Entry((64, 8192), "(N, C)", "very wide: few rows, many channels"),
    Entry((1_000_000, 32), "(N, C)", "a table: very long, narrow"),
    Entry((4096, 17), "(N, C)", "a small table of 17 columns"),
    Entry((32, 8), "(N, C)", "tiny: nothing but overhead", quick=True, subset=True, types=True),
)

#: The (channels, height) of the batch norms of a ResNet-50 on images of 224, and how many layers each stands for.
RESNET_50 = {
    (64, 112): 1,
    (64, 56): 6,
    (256, 56): 4,
    (128, 56): 1,
    (128, 28): 7,
    (512, 28): 5,
    (256, 28): 1,
    (256, 14): 11,
    (1024, 14): 7,
    (512, 14): 1,
    (512, 7): 5,
    (2048, 7): 4,
}
BATCH = 8
MODELS = 16  # shapes of vision models
LISTED_GRID, RESNET_GRID, MODELS_GRID = "listed", "ResNet-50", "vision models"
BOTH_LAYOUTS: tuple[Layout, ...] = ("NCHW", "channels-last")


@dataclass(frozen=True)
class Grid:
    """The inputs of a run.

    Attributes:
        entries: each place once.
        weights: for each grid's name, how often each of its places occurs there.
    """

    entries: tuple[Entry, ...]
    weights: Mapping[str, Mapping[Place, float]]

    def cases(self, dtypes: Sequence[Dtype]) -> list[tuple[Entry, Case]]:
        """Every input: the first two types everywhere, others where an entry says so."""
        return [
            (entry, Case(entry.shape, entry.layout, dtype))
            for entry in self.entries
            for dtype in dtypes
            if entry.types or dtype in DTYPES[:2]
        ]


def full() -> Grid:
    """All three lists; a place that stands in several of them is measured once."""
    resnet: dict[Place, float] = {
        ((BATCH, c, h, h), layout): n for (c, h), n in RESNET_50.items() for layout in BOTH_LAYOUTS
    }
    return _together({LISTED_GRID: LISTED}, {RESNET_GRID: resnet, MODELS_GRID: _models()})


def quick() -> Grid:
    """A few of the list."""
    return _together({LISTED_GRID: [entry for entry in LISTED if entry.quick]}, {})


def _models() -> dict[Place, float]:
    """Those that stand for all batch norms of vision models, with how many of these each is."""
    return {
        (each.shape, layout): float(each.occurs) for each in counted.grid(MODELS) for layout in BOTH_LAYOUTS
    }


def _together(listed: Mapping[str, Iterable[Entry]], counted: Mapping[str, Mapping[Place, float]]) -> Grid:
    entries = {entry.place: entry for of in listed.values() for entry in of}
    weights = {name: {entry.place: 1.0 for entry in of} for name, of in listed.items()}
    for name, places in counted.items():
        for shape, layout in places:
            reason = f"of {name}"
            entries.setdefault((shape, layout), Entry(shape, layout, reason))
        weights[name] = dict(places)
    return Grid(tuple(entries.values()), weights)


def chosen(case: Case, only: re.Pattern[str] | None) -> tuple[Op, ...]:
    """What is done with an input: all, or what `only` finds in the cells' names."""
    return tuple(op for op in OPS if only is None or only.search(case.named(op)))
