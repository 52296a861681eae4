"""What is measured: a tensor, what is done with it, and which pass."""

from dataclasses import dataclass
from math import prod
from typing import Literal

Layout = Literal["NCHW", "channels-last", "NCHW slice", "(N, C)"]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
Op = Literal["bn", "bn+relu", "bn+add+relu"]
Pass = Literal["forward", "forward+backward", "inference"]

#: NCHW and channels-last of any rank: channels on axis 1, which lies second or last in memory. A slice is half of
#: the channels of a larger NCHW tensor.
LAYOUTS: tuple[Layout, ...] = ("NCHW", "channels-last", "NCHW slice", "(N, C)")
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16", "float64")
OPS: tuple[Op, ...] = ("bn", "bn+relu", "bn+add+relu")
FORWARD: Pass = "forward"
BOTH: Pass = "forward+backward"
INFERENCE: Pass = "inference"
PASSES: tuple[Pass, ...] = (FORWARD, BOTH, INFERENCE)
WIDTH: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}

TORCH, COMPILED, JAX, OURS, MEMORY = "torch", "torch.compile", "jax", "normwright", "memory"
RIVALS = (TORCH, COMPILED, JAX)
PEAK = "peak"  # of memory, during a training step
#: The states of the allocator: freed memory is kept; what users get; every block is handed back, to be counted.
WARM, DEFAULT, COUNTING = "warm", "default", "counting"


@dataclass(frozen=True)
class Case:
    """One input: (N, C, ...), how it lies in memory, and its type."""

    shape: tuple[int, ...]
    layout: Layout
    dtype: Dtype = "float32"

    @property
    def values(self) -> int:
        """How many numbers."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of the tensor."""
        return WIDTH[self.dtype] * self.values

    @property
    def size(self) -> str:
        """The shape as it is printed.

        >>> Case((32, 8), "(N, C)").size
        '32x8'
        """
        return "x".join(map(str, self.shape))

    def named(self, op: str) -> str:
        """The name of a cell: this input and what is done with it.

        >>> Case((32, 8), "(N, C)").named("bn+relu")
        '32x8 (N, C) float32 bn+relu'
        """
        return f"{self.size} {self.layout} {self.dtype} {op}"


def bytes_moved(case: Case, op: Op, what: Pass) -> float:
    """What must be read or written at the least, in bytes.

    Forward and inference read x and write y; backward reads x and dy and writes dx. A residual is read too; in
    training one bit of each value is written for it and read again, and its gradient is written.

    >>> [bytes_moved(Case((8, 1), "(N, C)"), op, "forward+backward") / 32 for op in OPS]
    [5.0, 5.0, 7.0625]
    """
    bits = case.values / 8
    if op != "bn+add+relu":
        return (5 if what == BOTH else 2) * case.bytes
    if what == INFERENCE:
        return 3 * case.bytes
    return 3 * case.bytes + bits + (4 * case.bytes + bits if what == BOTH else 0)
