"""How results are compared with the reference, so that NaN cannot pass and no tolerance is out of the air.

Every comparison is componentwise, against `normwright.kernels.reference` on inputs widened to the next
precision (float32 to float64, float64 to long double), in units of the rounding of x's type, u = 2^-24 or
2^-53. LIMIT units are allowed. Each function returns the worst element in units, and raises AssertionError,
naming that element, when it is above the limit.

Why the brackets below and not a relative error of each element: a sum of values of both signs can be near
zero and is then known only in proportion to the values that were added. A plain tolerance (1e-5, say) would
hide errors of small channels behind large ones; these brackets shrink with each element's own terms.
"""

from typing import Any

import numpy as np

from normwright.core.moments import Moments, Saved
from normwright.kernels import reference

LIMIT = 8.0
INFINITIES = np.errstate(
    invalid="ignore"
)  # inf - inf is meant where a case holds one; the comparison sees it
DOUBLE = 2.0**-53
UNIT = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): DOUBLE}


def widen(x: np.ndarray) -> np.ndarray:
    """x in the next precision. Where long double is no wider than double, the reference errs by units too."""
    return x.astype({np.dtype(np.float32): np.float64, np.dtype(np.float64): np.longdouble}[x.dtype])


def within(
    what: str, got: Any, want: Any, bound: Any, *, match_nan: bool = False, match_any: bool = False
) -> float:
    """|got - want| <= bound for every element; the largest share of its bound that an element uses.

    Args:
        what: names the array in the message.
        got, want: of the same shape.
        bound: broadcast to that shape; where it is 0 the element must be exact.
        match_nan: accept NaN exactly where `want` is NaN, and the same infinity where it is infinite; without
            it no element passes that is not finite.
        match_any: accept NaN or either infinity, exactly where `want` is not finite: for sums over a channel,
            where the order of adding decides between them.
    """
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    if got.size == 0:
        return 0.0
    wide = got.astype(np.result_type(got, want, np.float64))
    with np.errstate(all="ignore"):
        error = np.abs(wide - want)
        share = np.where(error == 0, 0, error / bound)
    if match_nan:
        share = np.where((np.isnan(wide) & np.isnan(want)) | (wide == want), 0, share)
    if match_any:
        share = np.where(~np.isfinite(wide) & ~np.isfinite(want), 0, share)
    share = np.where(np.isnan(share), np.inf, share)
    worst = np.unravel_index(np.argmax(share), got.shape)
    at = tuple(int(i) for i in worst)
    assert share[worst] <= 1, (
        f"{what}{list(at)}: got {got[worst]!r}, expected {want[worst]!r}: {share[worst]:.3g} times the "
        f"bound; {np.count_nonzero(~(share <= 1))} of {got.size} elements are beyond theirs"
    )
    return float(share[worst])


def same_bits(what: str, got: np.ndarray, want: np.ndarray) -> None:
    """Equal type, shape and every bit (of NaN too)."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape), f"{what}: {got.dtype}{got.shape}"
    assert got.tobytes() == want.tobytes(), f"{what}: {np.count_nonzero(got != want)} elements differ"


@INFINITIES
def forward_train(
    y: np.ndarray, x: np.ndarray, gamma: Any, beta: Any, eps: float, axis: int, *, match_nan: bool = False
) -> float:
    """y of training: u * (|gamma * x_hat| + |beta|), for float64 u * (... + |gamma * rstd * mean|)."""
    want, saved = reference.forward_train(widen(x), gamma, beta, eps, axis)
    unit = _y_unit(x, gamma, beta, saved.mean, saved.rstd, _x_hat(x, saved, axis), axis)
    return _y(y, x, want, unit, match_nan)


@INFINITIES
def forward_fixed(
    y: np.ndarray,
    x: np.ndarray,
    gamma: Any,
    beta: Any,
    mean: Any,
    var: Any,
    eps: float,
    axis: int,
    *,
    match_nan: bool = False,
) -> float:
    """y of inference: the bound of `forward_train` with the given statistics."""
    want = reference.forward_fixed(widen(x), gamma, beta, mean, var, eps, axis)
    saved = _fixed(x, mean, var, eps)
    unit = _y_unit(x, gamma, beta, saved.mean, saved.rstd, _x_hat(x, saved, axis), axis)
    return _y(y, x, want, unit, match_nan)


@INFINITIES
def backward_train(
    got: tuple[Any, Any, Any],
    dy: np.ndarray,
    x: np.ndarray,
    gamma: Any,
    eps: float,
    axis: int,
    *,
    match_nan: bool = False,
) -> dict[str, float]:
    """dx, dgamma, dbeta of training, in units. With D = sum|dy|, S = sum|dy * x_hat|, m values per channel:

    dbeta   u * D
    dgamma  u * (S + e * D)
    dx      u * |gamma| * rstd * (|dy| + D/m + |x_hat| * S/m), and for float64 also e * (S + |x_hat| * D)/m

    e is by how many units every x_hat of a channel may be off because its mean was rounded. For float64 the
    mean is a double: e = |mean| * rstd. For float32 it is a pair of floats, and a kernel may sum dy*(x - hi)
    and correct by lo afterwards, |lo| <= u * |mean|: e = u * |mean| * rstd.

    A `dx` of None is not looked at (it was not asked for).
    """
    wide, wide_dy = widen(x), widen(dy)
    _, saved = reference.forward_train(wide, gamma, None, eps, axis)
    want = reference.backward_train(wide_dy, wide, gamma, saved, axis)
    return _gradients(got, want, wide_dy, x, gamma, saved, axis, match_nan, fixed=False)


@INFINITIES
def backward_fixed(
    got: tuple[Any, Any, Any],
    dy: np.ndarray,
    x: np.ndarray,
    gamma: Any,
    mean: Any,
    var: Any,
    eps: float,
    axis: int,
    *,
    match_nan: bool = False,
) -> dict[str, float]:
    """Gradients with fixed statistics: dgamma, dbeta as in `backward_train`; dx u * |gamma| * rstd * |dy|."""
    wide_dy = widen(dy)
    want = reference.backward_fixed(wide_dy, widen(x), gamma, mean, var, eps, axis)
    saved = _fixed(x, mean, var, eps)
    return _gradients(got, want, wide_dy, x, gamma, saved, axis, match_nan, fixed=True)


@INFINITIES
def moments(got: Moments, x: np.ndarray, axis: int, *, match_nan: bool = False) -> float:
    """Count exactly; mean and m2 in units.

    mean  u * E|x - mean| + 2^-53 * |mean|     blocks are summed in x's type about a pivot, merged in double
    m2    2 * u * m2 + m * (2^-53 * |mean|)^2  twice, since rstd = m2^(-1/2) sees half of a relative error; a
                                               channel that is constant has the square of the mean's rounding
    """
    wide = widen(x)
    want = reference.moments(wide, axis)
    assert got.count == want.count, f"count {got.count}, expected {want.count}"
    if want.count == 0:
        return max(within(name, getattr(got, name), np.zeros_like(want.mean), 0) for name in ("mean", "m2"))
    deviation = np.abs(wide - across(want.mean, x, axis)).mean(axis=others(x, axis))
    of_mean = UNIT[x.dtype] * deviation + DOUBLE * np.abs(want.mean)
    of_m2 = 2 * UNIT[x.dtype] * want.m2 + LIMIT * want.count * (DOUBLE * want.mean) ** 2
    return LIMIT * max(
        within("mean", got.mean, want.mean, LIMIT * of_mean, match_any=match_nan),
        within("m2", got.m2, want.m2, LIMIT * of_m2, match_any=match_nan),
    )


@INFINITIES
def saved(got: Saved, x: np.ndarray, eps: float, axis: int, *, match_nan: bool = False) -> float:
    """What a forward pass kept: its moments, and rstd within LIMIT units of x's type."""
    whole = np.asarray(got.mean) + np.asarray(got.mean_tail)
    units = moments(Moments(got.count, whole, got.m2), x, axis, match_nan=match_nan)
    if got.count == 0:
        return units  # nothing was normalized: rstd has no meaning
    _, want = reference.forward_train(widen(x), None, None, eps, axis)
    bound = LIMIT * UNIT[x.dtype] * want.rstd
    return max(units, LIMIT * within("rstd", got.rstd, want.rstd, bound, match_any=match_nan))


def _y(y: np.ndarray, x: np.ndarray, want: np.ndarray, unit: np.ndarray, match_nan: bool) -> float:
    assert y.dtype == x.dtype, f"y: {y.dtype}, expected {x.dtype}"
    return LIMIT * within("y", y, want, LIMIT * unit, match_nan=match_nan)


def _y_unit(
    x: np.ndarray, gamma: Any, beta: Any, mean: np.ndarray, rstd: np.ndarray, x_hat: np.ndarray, axis: int
) -> np.ndarray:
    gamma, beta = _absolute(gamma, 1, x, axis), _absolute(beta, 0, x, axis)
    bracket = gamma * np.abs(x_hat) + beta
    if x.dtype == np.float64:
        bracket = bracket + gamma * across(rstd * np.abs(mean), x, axis)
    return (
        UNIT[x.dtype] * bracket + np.finfo(x.dtype).smallest_subnormal
    )  # the last rounding of a tiny result


def _gradients(
    got: tuple[Any, Any, Any],
    want: tuple[np.ndarray, np.ndarray, np.ndarray],
    dy: np.ndarray,
    x: np.ndarray,
    gamma: Any,
    saved: Saved,
    axis: int,
    match_nan: bool,
    *,
    fixed: bool,
) -> dict[str, float]:
    u, rest, m = UNIT[x.dtype], others(x, axis), max(saved.count, 1)
    x_hat = np.abs(_x_hat(x, saved, axis))
    D = np.abs(dy).sum(axis=rest)
    S = (np.abs(dy) * x_hat).sum(axis=rest)
    e = np.abs(saved.mean) * saved.rstd * (1 if x.dtype == np.float64 else u)
    bracket = np.abs(dy)
    if not fixed:
        bracket = bracket + across(D / m, x, axis) + x_hat * across(S / m, x, axis)
        if x.dtype == np.float64:
            bracket = bracket + (across(e * S / m, x, axis) + x_hat * across(e * D / m, x, axis))
    unit = u * _absolute(gamma, 1, x, axis) * across(saved.rstd, x, axis) * bracket
    unit = unit + np.finfo(x.dtype).smallest_subnormal
    units = {
        "dgamma": within("dgamma", got[1], want[1], LIMIT * u * (S + e * D), match_any=match_nan),
        "dbeta": within("dbeta", got[2], want[2], LIMIT * u * D, match_any=match_nan),
    }
    if got[0] is not None:
        assert got[0].dtype == x.dtype, f"dx: {got[0].dtype}, expected {x.dtype}"
        units["dx"] = within("dx", got[0], want[0], LIMIT * unit, match_nan=match_nan)
    return {name: LIMIT * share for name, share in units.items()}


def _fixed(x: np.ndarray, mean: Any, var: Any, eps: float) -> Saved:
    """Fixed statistics in the form in which a forward pass leaves its own."""
    wide = widen(x[:0]).dtype
    mean, var = np.asarray(mean, wide), np.asarray(var, wide)
    return Saved(mean, np.zeros_like(mean), var, 1 / np.sqrt(var + eps), 1)


def _x_hat(x: np.ndarray, saved: Saved, axis: int) -> np.ndarray:
    centred = widen(x) - across(saved.mean, x, axis) - across(saved.mean_tail, x, axis)
    return centred * across(saved.rstd, x, axis)


def _absolute(values: Any, default: float, x: np.ndarray, axis: int) -> np.ndarray:
    whole = np.full(x.shape[axis], default) if values is None else np.asarray(values)
    return np.abs(across(whole.astype(widen(x[:0]).dtype), x, axis))


def across(values: np.ndarray, x: np.ndarray, axis: int) -> np.ndarray:
    """(C,) shaped so that it broadcasts along x's channel axis."""
    return np.asarray(values).reshape([-1 if d == axis % x.ndim else 1 for d in range(x.ndim)])


def others(x: np.ndarray, axis: int) -> tuple[int, ...]:
    """All axes but the channel axis."""
    return tuple(d for d in range(x.ndim) if d != axis % x.ndim)
