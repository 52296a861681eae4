"""The one list of nasty inputs, a reason each. Every kernel and every door meets all of them.

    for case in CASES:
        x, dy = case.make(np.float32), case.make_dy(np.float32)
        gamma, beta = case.parameters(np.float32)
        activation, residual = case.after(np.float32)

Everything is drawn from a generator seeded by the case's name: the same values in every run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from normwright.core.activation import NAMES, Activation

Draw = Callable[[np.random.Generator, type], np.ndarray]


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        name: unique, and short enough for a test id.
        reason: what breaks here where a kernel is wrong.
        axis: the channel axis of what `make` returns.
        draw: builds the array.
        finite: False where x holds NaN or infinity.
        bad_channel: the channel that holds them.
    """

    name: str
    reason: str
    axis: int
    draw: Draw
    finite: bool = True
    bad_channel: int | None = None

    def make(self, dtype: type) -> np.ndarray:
        """The input, in `dtype` and in the memory layout that is the point of the case."""
        with np.errstate(over="ignore"):  # a half type that does not hold the case: `fits` tells
            x = self.draw(self._rng("x"), dtype)
        assert x.dtype == dtype, self.name
        return x

    def make_dy(self, dtype: type) -> np.ndarray:
        """A gradient in the same layout: noise about 0.5, so that its sum over a channel is not near 0."""
        dy = like(self.make(dtype))
        dy[...] = self._rng("dy").standard_normal(dy.shape) + 0.5
        return dy

    def parameters(self, dtype: type) -> tuple[np.ndarray, np.ndarray]:
        """gamma and beta, (C,): either sign, and from three channels on one gamma of 0 and one beta of 0."""
        rng = self._rng("parameters")
        channels = self.make(dtype).shape[self.axis]
        gamma, beta = rng.uniform(0.5, 2, channels), rng.standard_normal(channels)
        gamma[1::2] *= -1
        if channels >= 3:
            gamma[2], beta[1] = 0, 0
        return gamma.astype(dtype), beta.astype(dtype)

    def after(self, dtype: type) -> tuple[Activation | None, np.ndarray | None]:
        """What comes after normalization: one of AFTER, another one in every case; half have a residual.

        The residual is noise, in x's order of axes in memory or in C order.
        """
        which = crc32(f"{self.name}/after".encode()) % (2 * len(AFTER))
        return AFTER[which // 2], self.residual(dtype) if which % 2 else None

    def residual(self, dtype: type) -> np.ndarray:
        """Noise of x's shape, in x's order of axes in memory, or by the case's name in C order."""
        residual = like(self.make(dtype))
        residual[...] = self._rng("residual").standard_normal(residual.shape)
        return np.ascontiguousarray(residual) if crc32(self.name.encode()) % 2 else residual

    def fits(self, dtype: type) -> bool:
        """Whether `dtype` holds the values: float16 ends at 65504."""
        return bool(np.isfinite(self.make(dtype)).all()) == self.finite

    @property
    def shape(self) -> tuple[int, ...]:
        return self.make(np.float32).shape

    @property
    def count(self) -> int:
        """Values per channel; a door refuses to train on one."""
        shape = self.shape
        return int(np.prod(shape[: self.axis] + shape[self.axis + 1 :]))

    def _rng(self, what: str) -> np.random.Generator:
        return np.random.default_rng(crc32(f"{self.name}/{what}".encode()))


AFTER: list[Activation | None] = [
    None,
    *(
        NAMES[name]
        for name in ("relu", "leaky_relu", "hardtanh", "relu6", "hardswish", "silu", "gelu", "gelu_tanh")
    ),
    *(NAMES[name] for name in ("sigmoid", "tanh", "elu")),
    Activation("leaky_relu", 0.3),  # another slope than the usual one
    Activation("hardtanh", -0.3, 1.1),  # bounds that binary fractions do not reach
    Activation("elu", 1.7),  # a derivative that jumps
]


def like(x: np.ndarray) -> np.ndarray:
    """A writable array of zeros whose axes lie in memory in x's order, dense; overlaps of x are undone."""
    order = sorted(range(x.ndim), key=lambda d: -abs(x.strides[d]))
    dense = np.zeros([x.shape[d] for d in order], x.dtype)
    return dense.transpose(np.argsort(order))


def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> Draw:
    """Normal values in ordinary C order."""

    def draw(rng: np.random.Generator, dtype: type) -> np.ndarray:
        return (rng.standard_normal(shape) * std + mean).astype(dtype)

    return draw


def zeros(*shape: int) -> Draw:
    """Nothing but 0, to be changed."""
    return lambda rng, dtype: np.zeros(shape, dtype)


def keep_one_in(n: int) -> Callable[[np.ndarray], None]:
    """A change that leaves every n-th value of the array and sets the others to 0."""

    def change(x: np.ndarray) -> None:
        x.reshape(-1)[np.arange(x.size) % n != 0] = 0

    return change


def then(draw: Draw, change: Callable[[np.ndarray], np.ndarray | None]) -> Draw:
    """`draw`, then `change` applied: in place where it returns None."""

    def changed(rng: np.random.Generator, dtype: type) -> np.ndarray:
        x = draw(rng, dtype)
        other = change(x)
        return x if other is None else other

    return changed


def put(value: float, *index: int) -> Callable[[np.ndarray], None]:
    """A change that sets one element."""

    def change(x: np.ndarray) -> None:
        x[index] = value

    return change


def channels_last(x: np.ndarray) -> np.ndarray:
    """The same NC* array with its channels innermost in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def different_channels(x: np.ndarray) -> None:
    """Give every channel on axis 1 an offset and a scale of its own, so that a mix-up shows."""
    c = np.arange(x.shape[1]).reshape([-1] + [1] * (x.ndim - 2))
    x *= (1 + c % 5).astype(x.dtype)
    x += (c % 7 - 3).astype(x.dtype)


def constant(x: np.ndarray) -> None:
    """Channel 1 holds one value throughout, one that binary fractions do not reach."""
    x[:, 1] = 1000.1


def trend(x: np.ndarray) -> None:
    """Add a slope from 0 to 1000 along the batch."""
    x += np.linspace(0, 1e3, len(x)).astype(x.dtype)[:, None]


def byte_off(x: np.ndarray) -> np.ndarray:
    """The same values one byte past an aligned address."""
    room = np.zeros(x.nbytes + 1, np.uint8)
    there = room[1:].view(x.dtype).reshape(x.shape)
    there[...] = x
    return there


def field_of_records(x: np.ndarray) -> np.ndarray:
    """The same values as a field of packed records, whose stride is no multiple of the element's size."""
    records = np.zeros(x.shape, np.dtype([("tag", np.uint8), ("value", x.dtype)]))
    records["value"] = x
    return records["value"]


def read_only(x: np.ndarray) -> np.ndarray:
    """The same array, locked."""
    x.flags.writeable = False
    return x


_ORDINARY = [
    Case("nchw", "the ordinary convolution", 1, then(normal(4, 6, 8, 8), different_channels)),
    Case("n-c", "the ordinary dense layer", 1, then(normal(32, 10), different_channels)),
    Case("ncl", "a 1-d convolution", 1, then(normal(5, 7, 12), different_channels)),
    Case("ncdhw", "a 3-d convolution", 1, then(normal(2, 5, 3, 4, 6), different_channels)),
    Case(
        "channels-last", "NC* with channels innermost in memory", 1, then(normal(3, 20, 5, 6), channels_last)
    ),
    Case("nhwc", "channels on the last axis", 3, normal(3, 5, 6, 20)),
    Case("nhwc-3d", "channels-last of rank 5", 4, normal(2, 3, 4, 3, 11)),
    Case("channels-first", "channels on axis 0: no outer axis at all", 0, normal(9, 70)),
]

_VALUES = [
    Case("offset-1e3", "mean 1e3 deviations", 1, normal(8, 5, 9, 9, mean=1e3)),
    Case("offset-1e6", "mean 1e6 deviations", 1, normal(8, 5, 9, 9, mean=1e6)),
    Case("offset-1e3-last", "the same by rows", 3, normal(8, 9, 9, 5, mean=1e3)),
    Case("offset-1e6-last", "the same by rows", 3, normal(8, 9, 9, 5, mean=-1e6)),
    Case("offset-1e3-ncl", "the same in runs shorter than a vector", 1, normal(8, 5, 7, mean=1e3)),
    Case("offset-1e6-ncl", "the same in runs shorter than a vector", 1, normal(12, 5, 3, 3, mean=1e6)),
    Case("offset-1e6-n-c", "the same for a dense layer", 1, normal(300, 5, mean=1e6)),
    Case("constant", "variance 0 at a mean that has no exact sum", 1, then(normal(6, 3, 5, 5), constant)),
    Case("constant-last", "the same by rows", 1, then(normal(500, 3), constant)),
    # Many small terms on top of a large one are all rounded the same way: a chain of additions shows.
    Case("one-among-zeros-ncl", "short runs, one value each", 1, then(zeros(40, 2, 25), put(1.7, 0, 0, 7))),
    Case("one-among-zeros-n-c", "one value in a long column", 1, then(zeros(300, 17), put(1.7, 0, 3))),
    Case("sparse", "hardly a value is not 0", 1, then(normal(300, 17), keep_one_in(100))),
    Case("outlier", "one value of 1e6", 1, then(normal(4, 3, 16, 16), put(1e6, 2, 1, 7, 7))),
    Case("outlier-first", "the first value, a likely pivot, is 1e6", 1, then(normal(600, 4), put(1e6, 0, 2))),
    Case("outlier-first-ncl", "the same along a channel", 1, then(normal(4, 3, 121), put(-1e6, 0, 1, 0))),
    Case("variance-1e-10", "variance far below eps", 1, normal(4, 6, 7, 7, std=1e-5)),
    Case("variance-1e-10-offset", "and a mean 1e5 deviations away", 1, normal(4, 6, 7, 7, mean=1, std=1e-5)),
    Case("tiny", "values whose squares underflow float32", 1, normal(4, 3, 6, 6, std=1e-20)),
    Case("huge", "values whose squares overflow float32", 1, normal(4, 3, 6, 6, std=1e20)),
    Case("huge-last", "the same by rows", 1, normal(130, 9, std=1e20)),
    Case("trend", "the mean moves along the batch: merged blocks differ", 1,
         then(normal(3000, 3), trend)),
]  # fmt: skip

_NOT_FINITE = [
    Case("nan", "a NaN stays in its channel", 1, then(normal(4, 5, 7, 7), put(np.nan, 1, 2, 3, 3)), False, 2),
    Case(
        "inf",
        "an infinity stays in its channel",
        1,
        then(normal(4, 5, 7, 7), put(np.inf, 0, 2, 0, 0)),
        False,
        2,
    ),
    Case("nan-last", "a NaN beside good lanes", 1, then(normal(40, 21), put(np.nan, 39, 17)), False, 17),
    Case("inf-last", "an infinity beside good lanes", 1, then(normal(40, 21), put(-np.inf, 0, 3)), False, 3),
]

_SIZES = [
    Case("7x7", "inner size no multiple of a vector", 1, normal(4, 5, 7, 7)),
    Case("3x5", "inner size below a vector", 1, normal(4, 5, 3, 5)),
    Case("1x1", "inner size 1", 1, normal(9, 5, 1, 1)),
    Case("n-1", "one sample", 1, normal(1, 5, 6, 6)),
    Case("two-values", "the smallest batch that has a variance", 1, normal(2, 5)),
    Case("one-value", "a single sample at prediction; variance 0", 1, normal(1, 5)),
    Case("block", "rows of 3 are folded to 48: one block of those", 1, normal(21824, 3)),
    Case("block+1", "and a row that is not folded", 1, normal(21825, 3)),
    Case("blocks+1", "one row more than a block of 1024", 1, normal(1025, 64)),
    # a block along a channel is 8192 values computed in float32, 4096 in float64
    Case("inner-block+1", "one value more than a block along a channel", 1, normal(1, 2, 8193)),
    Case("inner-block+8", "less than a pack more than a block", 1, normal(2, 3, 82, 100)),
    Case("inner-block+15", "one value less than a pack", 1, normal(1, 2, 8207)),
    Case("inner-block+1-double", "the same for float64", 1, normal(1, 2, 4097)),
    Case("inner-block+7-double", "the same for float64", 1, normal(1, 2, 4103)),
    Case("inner-blocks", "several blocks along a channel, and some", 1, normal(2, 3, 131, 133)),
    Case("strip+1", "one column more than a strip of 2048", 1, normal(20, 2049)),
    Case("strips", "three strips, the last one shorter", 1, normal(9, 4100)),
    Case("wide-2x2", "small maps as columns: more than a strip", 1, normal(5, 700, 2, 2)),
    Case("outer-blocks", "many short slices of a channel", 1, normal(700, 3, 3, 3)),
    *(Case(f"c-{c}", "a count of channels at the edge of a vector or block", 1, normal(33, c))
      for c in (1, 2, 3, 8, 15, 16, 17, 31, 32, 63, 64, 65, 127, 128, 129, 600)),
    *(Case(f"c-{c}-nchw", "the same with channels in the middle", 1, normal(3, c, 3, 5))
      for c in (1, 2, 3, 17, 63, 64, 129, 600)),
    *(Case(f"c-{c}-nhwc", "the same, channels last", 3, normal(3, 3, 5, c)) for c in (1, 2, 3, 17, 129)),
]  # fmt: skip

_EMPTY = [
    Case("no-samples", "a batch of none", 1, normal(0, 5, 4, 4)),
    Case("no-samples-n-c", "a batch of none", 1, normal(0, 5)),
    Case("no-positions", "images without pixels", 1, normal(3, 5, 0, 4)),
    Case("no-positions-last", "the same, channels last", 3, normal(3, 0, 4, 5)),
]

_MEMORY = [
    Case("every-other-channel", "strided along channels", 1, then(normal(6, 10, 4, 4), lambda x: x[:, ::2])),
    Case("every-other-feature", "strided along channels", 1, then(normal(40, 12), lambda x: x[:, 1::2])),
    Case("some-channels", "a slice of channels: outer slices are apart", 1,
         then(normal(6, 10, 4, 4), lambda x: x[:, 3:8])),
    Case("some-features", "a slice of features: rows are apart", 1,
         then(normal(40, 30), lambda x: x[:, 5:22])),
    Case("some-channels-last", "the same in channels-last memory", 1,
         then(normal(3, 30, 4, 5), lambda x: channels_last(x)[:, 4:21])),
    Case("cropped", "a window of each image", 1, then(normal(3, 4, 10, 12), lambda x: x[:, :, 2:9, 3:10])),
    Case("every-other-sample", "strided along the batch", 1, then(normal(10, 4, 5, 5), lambda x: x[::2])),
    Case("transposed", "(C, N) seen as (N, C)", 1, then(normal(12, 50), lambda x: x.T)),
    Case("fortran", "all axes reversed in memory", 1, then(normal(4, 5, 6, 7), np.asfortranarray)),
    Case("hw-swapped", "inner axes transposed", 1, then(normal(4, 5, 6, 7), lambda x: x.swapaxes(2, 3))),
    Case("c-between", "one inner axis outside the channels in memory", 1,
         then(normal(4, 6, 5, 7), lambda x: x.transpose(0, 2, 1, 3))),
    Case("backwards", "negative strides", 1, then(normal(4, 5, 6, 7), lambda x: x[::-1, ::-1, :, ::-1])),
    Case("broadcast", "strides of 0, read-only", 1,
         then(normal(1, 5, 6, 1), lambda x: np.broadcast_to(x, (4, 5, 6, 7)))),
    Case("windows", "rows that share memory", 1,
         then(normal(40), lambda x: np.lib.stride_tricks.sliding_window_view(x, 9))),
    Case("read-only", "memory that must not be written", 1, then(normal(4, 5, 6, 7), read_only)),
    Case("byte-off", "an address that is not aligned", 1, then(normal(20, 9), byte_off)),
    Case("field-of-records", "strides that are no multiple of an element", 1,
         then(normal(20, 9), field_of_records)),
]  # fmt: skip

CASES = [*_ORDINARY, *_VALUES, *_NOT_FINITE, *_SIZES, *_EMPTY, *_MEMORY]
"""All of them; `FINITE` and `TRAINABLE` are the parts that most tests want."""
FINITE = [case for case in CASES if case.finite]
TRAINABLE = [case for case in FINITE if case.count != 1]
