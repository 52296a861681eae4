"""The native kernels write their output to the last byte and not beyond, through the caches or past them."""

from functools import lru_cache

import numpy as np
import pytest

import close
from close import across
from every_kernel import BF16, EPS, F32, F64, forced, isas_of_floats
from normwright.core.activation import NAMES
from normwright.core.layout import layout_of
from normwright.kernels import NATIVE

if not NATIVE:
    pytest.skip("this package was built without native kernels", allow_module_level=True)

from normwright import _native
from normwright.kernels.cpu import CODES

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
VARIANTS = {  # type, and whether relu after a residual follows: forward then writes bits, backward dresidual
    "float32": (F32, False),
    "float64": (F64, False),
    "float32, residual": (F32, True),
    "bfloat16, residual": (BF16, True),
}


class Problem:
    """One input with its parameters, calls that write to any address, and what they must write."""

    def __init__(self, shape, dtype, after):
        rng = np.random.default_rng(9)
        self.shape, self.dtype, self.after, channels = shape, dtype, after, shape[1]
        self.x = rng.standard_normal(shape, dtype=F32).astype(dtype, copy=False)
        self.dy, self.residual = self.x[::-1].copy(), self.x[:, ::-1].copy()
        self.gamma, self.beta, self.mean = rng.uniform(0.5, 2, channels), *rng.standard_normal((2, channels))
        self.var = rng.uniform(0.5, 2, channels)
        self.rows, self.sums = bytearray(4 * 8 * channels), np.zeros((2, channels))
        self.saved = np.frombuffer(self.rows).reshape(4, channels)
        self.at = layout_of(self.x.shape, [s // self.x.itemsize for s in self.x.strides], 1)
        self.code = CODES[self.x.dtype.name]
        self.bits_bytes = _native.bits_bytes(self.code, *self.at)
        self.want, self.beside = {}, {}
        for kernel in KERNELS:
            self.want[kernel], self.beside[kernel] = np.empty_like(self.x), self.room_beside(kernel)
            self.call(kernel, self.want[kernel], self.beside[kernel])
            self.check(kernel)

    def room_beside(self, kernel):
        """Room for the second output: bits or dresidual; nothing without a residual."""
        if not self.after:
            return None
        return np.empty_like(self.x) if kernel.startswith("backward") else np.empty(self.bits_bytes, np.uint8)

    def call(self, kernel, out, beside):
        x = (self.code, *self._addresses("x"), *self.at)
        sums = [row.ctypes.data for row in self.sums]
        after = (0, 0, 0)
        if self.after and kernel.startswith("forward"):
            after = (self.residual.ctypes.data, beside.ctypes.data, NAMES["relu"].number)
        elif self.after:
            bits = self.beside[kernel.replace("backward", "forward")]
            after = (0, bits.ctypes.data, beside.ctypes.data, NAMES["relu"].number)
        elif kernel.startswith("backward"):
            after = (0, 0, 0, 0)
        numbers, fixed = self._addresses("gamma", "beta"), self._addresses("mean", "var")
        if kernel == "forward_train":
            _native.forward_train(*x, out.ctypes.data, *numbers, EPS, self.rows, *after)
        elif kernel == "backward_train":
            _native.backward_train(
                *x, *self._addresses("dy"), out.ctypes.data, *numbers, self.rows, *sums, *after
            )
        elif kernel == "forward_fixed":
            _native.forward_fixed(*x, out.ctypes.data, *numbers, *fixed, EPS, *after)
        else:
            dy = self._addresses("dy")
            _native.backward_fixed(*x, *dy, out.ctypes.data, *numbers, *fixed, EPS, *sums, *after)

    def check(self, kernel):
        """The output against whole-array operations in the type that is computed in, from the per-channel numbers.

        Each term is rounded at most four times on either side: eight units of the terms' sizes. dz is dy where y,
        in the forward pass of the same values, is above 0.
        """
        x, dy, residual = (close.computed(t) for t in (self.x, self.dy, self.residual))
        if self.after:
            dy = np.where(self.want[kernel.replace("backward", "forward")] > 0, dy, 0)
        mean, tail, _, rstd = self.saved
        if kernel.endswith("fixed"):
            mean, tail, rstd = self.mean, 0.0, 1 / np.sqrt(self.var + EPS)
        scale = self._narrow(self.gamma * rstd)
        centred = x - self._narrow(mean)
        missing = (mean - mean.astype(x.dtype)) + tail
        if kernel == "backward_fixed":
            terms = [scale * dy]
        elif kernel == "backward_train":
            x_hat = centred * self._narrow(rstd) - self._narrow(missing * rstd)
            of_x_hat, of_dy = (self._narrow(s * x.shape[1] / x.size) for s in self.sums)
            terms = [scale * dy, -scale * of_dy, -scale * x_hat * of_x_hat]
        else:
            terms = [centred * scale, self._narrow(self.beta - missing * scale.ravel())]
            terms += [residual] if self.after else []
        want, bound = sum(terms), 8 * close.UNIT[x.dtype] * sum(np.abs(t) for t in terms)
        if self.after and kernel.startswith("forward"):
            want = np.maximum(want, 0)
        close.rounded_once(kernel, self.want[kernel], want.astype(F64), bound, self.x.dtype)
        if self.after and kernel.startswith("backward"):
            assert np.array_equal(self.beside[kernel], dy.astype(self.dtype)), "dresidual"

    def _addresses(self, *names):
        return [getattr(self, name).ctypes.data for name in names]

    def _narrow(self, values):
        return across(values, self.x, 1).astype(close.computed(self.x[:0]).dtype)


@lru_cache(1)  # the tests of one problem follow one another
def problem(name, variant):
    shape, (dtype, after) = SHAPES[name], VARIANTS[variant]
    if "streamed" in name:
        if CACHE > 256 << 20:
            pytest.skip("the last-level cache is too large to be left in a test")
        sample = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        # input and output are 0.6 of the cache; from 0.5 on
        shape = (int(0.3 * CACHE / sample) | 1, *shape[1:])
    return Problem(shape, dtype, after)


def guarded(shape, dtype, offset):
    """An array `offset` elements behind a multiple of 64 bytes; the buffer around it, full of sentinels."""
    size = int(np.prod(shape))
    room = np.full(size + 512, SENTINEL, dtype)
    first = (-room.ctypes.data % 64) // room.itemsize + 128 + offset
    return room[first : first + size].reshape(shape), room[:first], room[first + size :]


@pytest.mark.parametrize(
    "offset", [0, 1]
)  # aligned to a vector, as streaming stores must be; one element off
@pytest.mark.parametrize(
    ("variant", "isa"),
    [
        (v, isa)
        for v, (t, _) in VARIANTS.items()
        for isa in (_native.isas() if t is BF16 else isas_of_floats())
    ],
)
@pytest.mark.parametrize("name", SHAPES)
def test_outputs_are_written_to_the_last_byte_and_not_beyond(name, variant, isa, offset):
    this = problem(name, variant)
    out, *around = guarded(this.shape, this.dtype, offset)
    for kernel in KERNELS:
        out[...] = np.nan
        beside, more = this.room_beside(kernel), []
        if beside is not None:
            beside, *more = guarded(beside.shape, beside.dtype, offset if beside.dtype != np.uint8 else 0)
            beside[...] = SENTINEL
        with forced(isa):
            this.call(kernel, out, beside)
        assert np.array_equal(out, this.want[kernel]), kernel  # NaN is not equal to itself
        if beside is not None and beside.dtype != np.uint8:  # bits of the last words have no meaning
            assert np.array_equal(beside, this.beside[kernel]), f"{kernel}, dresidual"
        for side, array in zip(("before", "behind", "before", "behind"), (*around, *more), strict=False):
            assert np.all(array == array.dtype.type(SENTINEL)), f"{kernel} wrote {side} its output"
