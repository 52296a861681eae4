"""How any input is seen: three axes (outer, channels, inner), and the distance between outer slices.

NCHW is (N, C, H*W); channels-last is (N*H*W, C, 1); (N, C) is (N, C, 1). The kernels know no other shapes.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple


class Layout(NamedTuple):
    """A view of an array as (outer, channels, inner), the last two axes dense.

    Attributes:
        outer: positions before the channel axis.
        channels: C.
        inner: positions after the channel axis, contiguous in memory.
        stride: elements from one outer slice to the next; channels * inner where the array is dense, more
            where it is a slice of a larger one.
    """

    outer: int
    channels: int
    inner: int
    stride: int

    @property
    def values(self) -> int:
        """Values per channel."""
        return self.outer * self.inner


def layout_of(shape: Sequence[int], strides: Sequence[int], axis: int) -> Layout | None:
    """The layout of an array as it lies in memory, or None where it cannot be seen so without a copy.

    Args:
        shape: sizes of all axes.
        strides: elements (not bytes) between neighbours on each axis.
        axis: the channel axis, from 0.

    Example:
        >>> layout_of((8, 64, 14, 14), (12544, 196, 14, 1), axis=1)
        Layout(outer=8, channels=64, inner=196, stride=12544)
        >>> layout_of((8, 64, 14, 14), (12544, 1, 896, 64), axis=1)  # channels-last memory
        Layout(outer=1568, channels=64, inner=1, stride=64)
    """
    channels = shape[axis]
    # Axes of size 1 have strides without meaning. The others, from the outermost in memory to the innermost:
    axes = sorted((d for d, n in enumerate(shape) if n != 1 and d != axis), key=lambda d: -strides[d])
    inner_axes = [d for d in axes if channels == 1 or strides[d] < strides[axis]]
    outer_axes = [d for d in axes if d not in inner_axes]
    inner = _dense(inner_axes, shape, strides, 1)
    if inner is None or (channels != 1 and strides[axis] != inner):
        return None
    stride = strides[outer_axes[-1]] if outer_axes else channels * inner
    if stride < channels * inner or _dense(outer_axes, shape, strides, stride) is None:
        return None
    return Layout(prod(shape[d] for d in outer_axes), channels, inner, stride)


def _dense(axes: list[int], shape: Sequence[int], strides: Sequence[int], step: int) -> int | None:
    """Elements that `axes` (outermost first) span when they follow one another `step` apart, or None."""
    span = 1
    for d in reversed(axes):
        if strides[d] != step * span:
            return None
        span *= shape[d]
    return span
