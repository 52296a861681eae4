"""The native kernels write their output to the last byte and not beyond, through the caches or past them."""

from functools import lru_cache

import numpy as np
import pytest

import close
from close import across
from every_kernel import DTYPES, EPS, F32, F64, forced
from normwright.core.layout import layout_of
from normwright.kernels import NATIVE

if not NATIVE:
    pytest.skip("this package was built without native kernels", allow_module_level=True)

from normwright import _native

CACHE = _native.last_level_cache_bytes()
SENTINEL = 77.0
SHAPES = {  # with "streamed" in the name, as many samples as make the output pass by the caches
    "nchw": (3, 5, 7, 9),
    "short runs": (3, 5, 3, 1),
    "rows": (19, 21),
    "narrow rows": (19, 3),
    "nchw, streamed": (11, 13, 61, 67),
    "short runs, streamed": (301, 257, 3, 3),
    "rows, streamed": (1009, 64),
    "rows with a tail, streamed": (1009, 67),
    "wide rows, streamed": (307, 1024),
    "narrow rows, streamed": (30_007, 3),
}


KERNELS = ("forward_train", "backward_train", "forward_fixed", "backward_fixed")


class Problem:
    """One input with its parameters, calls that write to any address, and what they must write."""

    def __init__(self, shape, dtype):
        rng = np.random.default_rng(9)
        self.shape, self.dtype, channels = shape, dtype, shape[1]
        self.x = rng.standard_normal(shape, dtype=F32).astype(dtype, copy=False)
        self.dy = self.x[::-1].copy()
        self.gamma, self.beta, self.mean = rng.uniform(0.5, 2, channels), *rng.standard_normal((2, channels))
        self.var = rng.uniform(0.5, 2, channels)
        self.rows, self.sums = bytearray(4 * 8 * channels), np.zeros((2, channels))
        self.saved = np.frombuffer(self.rows).reshape(4, channels)
        self.want = {}
        for kernel in KERNELS:
            self.want[kernel] = np.empty_like(self.x)
            self.call(kernel, self.want[kernel])
            self.check(kernel)

    def call(self, kernel, out):
        at = layout_of(self.x.shape, [s // self.x.itemsize for s in self.x.strides], 1)
        x = (self.dtype is F64, *self._addresses("x"), *at)
        sums = [row.ctypes.data for row in self.sums]
        if kernel == "forward_train":
            _native.forward_train(*x, out.ctypes.data, *self._addresses("gamma", "beta"), EPS, self.rows)
        elif kernel == "backward_train":
            dy, gamma = self._addresses("dy", "gamma")
            _native.backward_train(*x, dy, out.ctypes.data, gamma, self.rows, *sums)
        elif kernel == "forward_fixed":
            numbers = self._addresses("gamma", "beta", "mean", "var")
            _native.forward_fixed(*x, out.ctypes.data, *numbers, EPS)
        else:
            dy, gamma, *fixed = self._addresses("dy", "gamma", "mean", "var")
            _native.backward_fixed(*x, dy, out.ctypes.data, gamma, *fixed, EPS, *sums)

    def check(self, kernel):
        """The output against whole-array operations in x's type, from the per-channel numbers.

        Each term is rounded at most four times on either side: eight units of the terms' sizes.
        """
        mean, tail, _, rstd = self.saved
        if kernel.endswith("fixed"):
            mean, tail, rstd = self.mean, 0.0, 1 / np.sqrt(self.var + EPS)
        scale = self._narrow(self.gamma * rstd)
        centred = self.x - self._narrow(mean)
        missing = (mean - mean.astype(self.dtype)) + tail
        if kernel == "backward_fixed":
            terms = [scale * self.dy]
        elif kernel == "backward_train":
            x_hat = centred * self._narrow(rstd) - self._narrow(missing * rstd)
            of_x_hat, of_dy = (self._narrow(s * self.x.shape[1] / self.x.size) for s in self.sums)
            terms = [scale * self.dy, -scale * of_dy, -scale * x_hat * of_x_hat]
        else:
            terms = [centred * scale, self._narrow(self.beta - missing * scale.ravel())]
        bound = 8 * close.UNIT[np.dtype(self.dtype)] * sum(np.abs(t) for t in terms)
        close.within(kernel, self.want[kernel], sum(terms), bound)

    def _addresses(self, *names):
        return [getattr(self, name).ctypes.data for name in names]

    def _narrow(self, values):
        return across(values, self.x, 1).astype(self.dtype)


@lru_cache(1)  # the tests of one problem follow one another
def problem(name, dtype):
    shape = SHAPES[name]
    if "streamed" in name:
        if CACHE > 256 << 20:
            pytest.skip("the last-level cache is too large to be left in a test")
        sample = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        shape = (
            int(0.3 * CACHE / sample) | 1,
            *shape[1:],
        )  # input and output are 0.6 of the cache; from 0.5 on
    return Problem(shape, dtype)


def guarded(shape, dtype, offset):
    """An array `offset` elements behind a multiple of 64 bytes; the buffer around it, full of sentinels."""
    size = int(np.prod(shape))
    room = np.full(size + 512, SENTINEL, dtype)
    first = (-room.ctypes.data % 64) // room.itemsize + 128 + offset
    return room[first : first + size].reshape(shape), room[:first], room[first + size :]


@pytest.mark.parametrize(
    "offset", [0, 1]
)  # aligned to a vector, as streaming stores must be; one element off
@pytest.mark.parametrize("isa", _native.isas())
@DTYPES
@pytest.mark.parametrize("name", SHAPES)
def test_outputs_are_written_to_the_last_byte_and_not_beyond(name, dtype, isa, offset):
    this = problem(name, dtype)
    out, before, behind = guarded(this.shape, dtype, offset)
    for kernel in KERNELS:
        out[...] = np.nan
        with forced(isa):
            this.call(kernel, out)
        assert np.array_equal(out, this.want[kernel]), kernel  # NaN is not equal to itself
        assert np.all(before == SENTINEL), f"{kernel} wrote before its output"
        assert np.all(behind == SENTINEL), f"{kernel} wrote behind its output"
