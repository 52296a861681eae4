"""What is measured: shapes and layouts, a reason each."""

from dataclasses import dataclass
from math import prod
from typing import Literal

Layout = Literal["NCHW", "channels-last", "(N, C)"]
LAYOUTS: tuple[Layout, ...] = ("NCHW", "channels-last", "(N, C)")
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Case:
    """One float32 input.

    Attributes:
        shape: (N, C, ...).
        layout: how it lies in memory.
        reason: what it stands for.
        quick: part of the small selection too.
    """

    shape: tuple[int, ...]
    layout: Layout
    reason: str
    quick: bool = False

    @property
    def values(self) -> int:
        """How many numbers."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of the tensor."""
        return FLOAT32_BYTES * self.values

    @property
    def size(self) -> str:
        """The shape as it is printed.

        >>> Case((32, 8), "(N, C)", "").size
        '32x8'
        """
        return "x".join(map(str, self.shape))


CASES = (
    Case(
        (32, 64, 112, 112), "NCHW", "the first BN of a ResNet at 224: three times the last-level cache here"
    ),
    Case((32, 64, 56, 56), "NCHW", "a ResNet's first stage", quick=True),
    Case((32, 128, 28, 28), "NCHW", "its second: half the data, twice the channels"),
    Case((32, 256, 14, 14), "NCHW", "its third: short runs of 196 values"),
    Case((32, 512, 7, 7), "NCHW", "its last: runs of 49, no multiple of a vector"),
    Case((16, 3, 224, 224), "NCHW", "images: fewer channels than threads may want"),
    Case((1, 64, 512, 512), "NCHW", "one large map: no batch to split over"),
    Case((32, 64, 112, 112), "channels-last", "the same by rows of 64"),
    Case((32, 64, 56, 56), "channels-last", "the same by rows of 64", quick=True),
    Case((32, 128, 28, 28), "channels-last", "rows of 128"),
    Case((32, 256, 14, 14), "channels-last", "rows of 256"),
    Case((32, 512, 7, 7), "channels-last", "rows of 512, few of them"),
    Case((16, 3, 224, 224), "channels-last", "rows of 3: less than any vector"),
    Case((1, 64, 512, 512), "channels-last", "one large map by rows of 64"),
    Case((8192, 256), "(N, C)", "a dense layer of a large batch", quick=True),
    Case((100000, 32), "(N, C)", "a table: very long, narrow"),
    Case((64, 8192), "(N, C)", "very wide: few rows, many channels"),
    Case((32, 8), "(N, C)", "tiny: nothing but overhead", quick=True),
)
QUICK = tuple(case for case in CASES if case.quick)
