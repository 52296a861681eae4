"""One batch that several processes share: what one process makes of it, and how far off is wrong.

The truth is the reference of the kernels, in float64 or, for float64, in the widest type that the machine has. It
shares no line with what is verified.
"""

import math
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normwright.core.activation import Activation
from normwright.core.moments import FloatArray, Saved
from normwright.kernels import reference
from normwright.torch.running import HALF

EPS, MOMENTUM = 1e-5, 0.1
SHAPES = {"NC": (17,), "NCL": (7, 9), "NCHW": (5, 6, 7), "NHWC": (6, 5, 4)}  # C, and what is behind it
SAMPLES = ("even", "uneven", "one each", "first none", "last none", "all on one")
AFTER = ("", "relu", "add, relu")
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# float64 to 1e-12 of its terms: 9000 roundings, of which the sums over 4096 ranks may use half. float32 by the line
# of docs/numerics.md. Where operations add as float32, and not kernels as float64, nobody promises in which order;
# one after the other, m values collect sqrt(m) roundings, give or take as many.
_DOUBLE, _SINGLE, _LINE, _OF_DOUBLE = 2.0**-53, 2.0**-24, 8.0, 1e-12


class Case(NamedTuple):
    """One way in which processes may share a batch.

    Attributes:
        layout: of SHAPES; NHWC is the shape of NCHW in the memory format channels-last.
        samples: of SAMPLES, how many each rank has.
        dtype: of x. Weights and statistics are float32 beside half types.
        after: of AFTER, what follows batch norm.
        mean: of every channel, in its deviations.
    """

    layout: str
    samples: str
    dtype: torch.dtype
    after: str = ""
    mean: float = 0.0

    @property
    def held(self) -> torch.dtype:
        """The type of weights and statistics."""
        return torch.float32 if self.dtype in HALF else self.dtype

    @property
    def activation(self) -> Activation | None:
        return Activation("relu") if "relu" in self.after else None


def plan(ranks: int, *, few: bool = False) -> list[Case]:
    """Every type with every way to share, and every other pair of choices at least once; then means far from 0.

    Where a case takes long, `few`: every type, layout and activation, and four of the ways to share.
    """
    shared = SAMPLES if ranks > 1 else SAMPLES[:1]
    layouts = list(SHAPES)
    if few:
        ways = ("even", "uneven", "first none", "all on one") if ranks > 1 else SAMPLES[:1] * 4
        return [Case(layouts[i], ways[i], dtype, AFTER[i % 3]) for i, dtype in enumerate(TYPES)]
    cases = [
        Case(layouts[(i + j) % 4], samples, dtype, AFTER[(i + 2 * j) % 3])
        for i, dtype in enumerate(TYPES)
        for j, samples in enumerate(shared)
    ]
    # not half types: a value has not enough digits to be told from such a mean
    far = enumerate(product(TYPES[:2], (1e3, 1e6)))
    return cases + [Case(layouts[k], shared[:2][-1], dtype, mean=mean) for k, (dtype, mean) in far]


def counts(samples: str, ranks: int) -> list[int]:
    """How many samples each rank has."""
    uneven = [2 + 3 * rank % 4 for rank in range(ranks)]
    return {
        "even": [4] * ranks,
        "uneven": uneven,
        "one each": [1] * ranks,
        "first none": [0, *uneven[1:]],
        "last none": [*uneven[:-1], 0],
        "all on one": [*([0] * (ranks - 1)), 6],
    }[samples]


class Joined(NamedTuple):
    """The batch of all ranks together, on the CPU.

    Attributes:
        x, dy: (N, C, ...).
        residual: as x; None where nothing is added.
        weight, bias: (C,).
    """

    x: Tensor
    dy: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor


def joined(case: Case, ranks: int) -> Joined:
    """The same bits in every process: random fractions of 53 bits, and single operations on them.

    Samples drift, so that ranks have other means than the whole: a merge that forgets what lies between them shows.
    """
    shape = sum(counts(case.samples, ranks)), *SHAPES[case.layout]
    along = (-1, *[1] * (len(shape) - 2))
    random = np.random.default_rng([*map(ord, case.layout + case.samples), ranks])
    drift = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) * (2 / shape[0])
    spread = np.linspace(0.5, 2.0, shape[1]).reshape(along)
    x, dy, residual = (2 * random.random(shape) - 1 for _ in range(3))
    x = (x + drift + 0.8 * case.mean) * spread  # 0.8: the deviation of what came before
    memory = torch.channels_last if case.layout == "NHWC" else torch.contiguous_format
    like = [torch.from_numpy(t).to(case.dtype).contiguous(memory_format=memory) for t in (x, dy, residual)]
    added = like[2] if "add" in case.after else None
    numbers = (np.linspace(*ends, shape[1]) for ends in ((-1.5, 2.0), (1.0, -1.0)))
    weight, bias = (torch.from_numpy(each).to(case.held) for each in numbers)
    return Joined(like[0], like[1], added, weight, bias)


class Line(NamedTuple):
    """What one process has, and how far off another result may be; where that is 0 it must be exact.

    Attributes:
        want, allowed: arrays of one shape.
        rounded: the half type to which results are rounded once, beside what is allowed; else None.
    """

    want: FloatArray
    allowed: FloatArray
    rounded: torch.dtype | None = None


class Farthest(NamedTuple):
    """The element that used the largest share of what is allowed.

    Attributes:
        off: its distance from what one process has, without the one rounding of a half type; may be NaN.
        allowed: at most, there.
    """

    off: float
    allowed: float

    @property
    def share(self) -> float:
        """off / allowed; infinite for NaN."""
        if self.off == 0:
            return 0.0
        return self.off / self.allowed if self.allowed > 0 and self.off < math.inf else math.inf


def farthest(got: NDArray[Any], line: Line, rows: slice = slice(None)) -> Farthest:
    """Of `got`, which is these rows of the line."""
    want, allowed = line.want[rows], np.broadcast_to(line.allowed, line.want.shape)[rows]
    if got.shape != want.shape:
        return Farthest(math.nan, 0.0)
    if got.size == 0:
        return Farthest(0.0, 0.0)
    with np.errstate(all="ignore"):
        off = np.abs(got - want)
        if line.rounded is not None:
            off = np.maximum(off - _half_a_place(np.minimum(np.abs(got), np.abs(want)), line.rounded), 0)
        share = np.where(off == 0, 0, off / allowed)
    at = np.unravel_index(np.argmax(np.where(np.isnan(share), np.inf, share)), share.shape)
    return Farthest(float(off[at]), float(allowed[at]))


def _half_a_place(size: FloatArray, dtype: torch.dtype) -> FloatArray:
    """Half a unit in the last place of numbers of this size."""
    info = torch.finfo(dtype)
    half: FloatArray = np.maximum(np.exp2(np.frexp(size)[1] - 1.0), info.smallest_normal) * (info.eps / 2)
    return half


def widened(t: Tensor) -> FloatArray:
    """As the truth is computed: float64, or wider for float64."""
    wide = t.detach().cpu().double().numpy()
    return wide.astype(np.longdouble) if t.dtype == torch.float64 else wide


def lines(case: Case, whole: Joined, strict: bool) -> dict[str, Line]:
    """y, the gradients and the running statistics of one process, by name.

    allowed, for z before the activation: r (|weight x_hat| + |bias| + |residual|) + |weight| s
    dbias r D,  dweight r S + (s + e) D,  dx |weight| rstd (r |dz| + r D/m + |x_hat| (r S + s D)/m + s S/m)

    with D = sum|dz|, S = sum|dz x_hat|, m values per channel; r what is allowed of a term; s by how much all x_hat
    of a channel may be off together because their mean is, and e the rest that float32 has in sums. Where z may be
    on either side of relu's corner, dz may too.

    Args:
        case, whole: what was shared.
        strict: by the line of the native kernels, which know the mean to more digits than float32 has.
    """
    x, dy, weight, bias = (widened(t) for t in (whole.x, whole.dy, whole.weight, whole.bias))
    added = None if whole.residual is None else widened(whole.residual)
    _, saved = reference.forward_train(x, weight, bias, EPS, 1)
    z = reference.apply(x, weight, bias, saved, 1, None, added)
    gradients = reference.backward_train(dy, x, weight, bias, saved, 1, case.activation, added)

    along, rest = (-1, *[1] * (x.ndim - 2)), (0, *range(2, x.ndim))
    mean, rstd = (t.reshape(along) for t in (saved.mean, saved.rstd))
    x_hat = np.abs((x - mean - saved.mean_tail.reshape(along)) * rstd)
    scale = np.abs(weight).reshape(along)
    m, double = saved.count, case.dtype == torch.float64
    r = _OF_DOUBLE if double else (_LINE + (0 if strict else 2 * math.sqrt(m))) * _SINGLE
    # whatever the mean: a layer knows it, and ranks tell it, to more digits than one double has
    s = 0 if strict and not double else r
    # float32 keeps the mean as two floats: a rest of the second
    e = 0 if double else _LINE * _SINGLE**2 * np.abs(mean) * rstd

    of_z = (
        r * (scale * x_hat + np.abs(bias).reshape(along) + (0 if added is None else np.abs(added)))
        + scale * s
    )
    corner = (np.abs(z) <= of_z) & (case.activation is not None)
    dz = np.abs(dy) * ((z > 0) | (case.activation is None))
    either = np.where(corner, np.abs(dy), 0)

    def total(t: FloatArray) -> FloatArray:
        whole: FloatArray = t.sum(axis=rest, keepdims=True)
        return whole

    D, S, off_D = total(dz), total(dz * x_hat), total(either)
    off_S = total(either * x_hat)
    of_dx = r * dz + either + (r * D + off_D) / m + x_hat * (r * S + s * D + off_S) / m + s * S / m
    like_x = case.dtype if case.dtype in HALF else None
    y = z if case.activation is None else np.maximum(z, 0)
    found = {
        "y": Line(y, of_z, like_x),
        "dx": Line(gradients.dx, scale * rstd * of_dx, like_x),
        "dweight": Line(gradients.dgamma, (r * S + (s + e) * D + off_S).ravel()),
        "dbias": Line(gradients.dbeta, (r * D + off_D).ravel()),
        **_moved(x, saved, r, _DOUBLE if double else _SINGLE),
    }
    if gradients.dresidual is not None:
        found["dresidual"] = Line(gradients.dresidual, either)
    return found


def _moved(x: FloatArray, saved: Saved, r: float, unit: float) -> dict[str, Line]:
    """The running statistics after this batch, which began as 0 and 1, rounded to buffers of this unit.

    mean  r E|x - mean| + 8 * 2^-53 |mean|;  var  2 r var, since rstd sees half of a relative error
    """
    mean, var = saved.mean + saved.mean_tail, saved.m2 / (saved.count - 1)
    along, rest = (-1, *[1] * (x.ndim - 2)), (0, *range(2, x.ndim))
    deviation = np.abs(x - mean.reshape(along)).mean(axis=rest)
    moved = MOMENTUM * mean, (1 - MOMENTUM) + MOMENTUM * var
    off = r * deviation + _LINE * _DOUBLE * np.abs(mean), 2 * r * var
    # two roundings of the buffers' type
    allowed = [MOMENTUM * each + 2 * unit * np.abs(new) for each, new in zip(off, moved, strict=True)]
    return {"running_mean": Line(moved[0], allowed[0]), "running_var": Line(moved[1], allowed[1])}
