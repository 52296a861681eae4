"""How results are compared with the reference, so that NaN cannot pass and no tolerance is out of the air.

Every comparison is componentwise, against `normwright.kernels.reference` on inputs widened to the next
precision (float32 to float64, float64 to long double), in units of the rounding of x's type, u = 2^-24 or
2^-53. LIMIT units are allowed. Half types are computed in float32 and have its bounds; what is like x is then
rounded once to x's type. Each function returns the worst element in units, and raises AssertionError, naming
that element, when it is above the limit.

Why the brackets below and not a relative error of each element: a sum of values of both signs can be near
zero and is then known only in proportion to the values that were added. A plain tolerance (1e-5, say) would
hide errors of small channels behind large ones; these brackets shrink with each element's own terms.

What an activation adds is in `close_activations`.
"""

from typing import Any, NamedTuple

import numpy as np

import close_activations
from normwright.core.activation import Activation
from normwright.core.moments import Gradients, Moments, Saved
from normwright.kernels import reference
from normwright.kernels.activations import activated, gradient

LIMIT = 8.0
INFINITIES = np.errstate(
    invalid="ignore", over="ignore"
)  # inf - inf is meant where a case holds one; the comparison sees it
DOUBLE = 2.0**-53
UNIT = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): DOUBLE}


def computed(x: np.ndarray) -> np.ndarray:
    """x in the type that it is computed in: float32 for half types, which it holds exactly."""
    return x if x.dtype in UNIT else x.astype(np.float32)


def widen(x: np.ndarray) -> np.ndarray:
    """x in the next precision. Where long double is no wider than double, the reference errs by units too."""
    return x.astype(np.longdouble if x.dtype == np.float64 else np.float64)


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
    return _largest(what, share, got, want)


def rounded_once(
    what: str, got: np.ndarray, want: np.ndarray, bound: Any, dtype: np.dtype, *, match_nan: bool = False
) -> float:
    """`within`, for results of x's `dtype`: of a half type, a value within the bound, rounded to it once.

    want - bound and want + bound are rounded to the half type; between those two lies what may come of it, at
    subnormal halves, and beyond the largest, too, from where on it is an infinity.
    """
    assert got.dtype == dtype, f"{what}: {got.dtype}, expected {dtype}"
    if dtype in UNIT:
        return within(what, got, want, bound, match_nan=match_nan)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    if got.size == 0:
        return 0.0
    wide = got.astype(want.dtype)
    with np.errstate(all="ignore"):
        low, high = ((want + side * bound).astype(dtype).astype(want.dtype) for side in (-1, 1))
        reach = np.maximum(high - want, want - low)
        share = np.where((low <= wide) & (wide <= high), np.abs(wide - want) / reach, np.inf)
    share = np.where((wide == want) & np.isfinite(want), 0, share)
    share = np.where(np.isinf(wide) & np.isnan(share), 1, share)  # an infinity between low and high
    if match_nan:
        share = np.where((np.isnan(wide) & np.isnan(want)) | (wide == want), 0, share)
    return _largest(what, share, got, want)


def _largest(what: str, share: np.ndarray, got: np.ndarray, want: np.ndarray) -> float:
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
    y: np.ndarray,
    x: np.ndarray,
    gamma: Any,
    beta: Any,
    eps: float,
    axis: int,
    *,
    activation: Activation | None = None,
    residual: np.ndarray | None = None,
    match_nan: bool = False,
) -> float:
    """y of training.

    z  u * (|gamma * x_hat| + |beta| + |residual|), for float64 u * (... + |gamma * rstd * mean|)
    y  as far as the activation moves where z does by that, and its own rounding
    """
    _, saved = reference.forward_train(widen(x), None, None, eps, axis)
    z = _before_training(x, gamma, beta, saved, axis, residual)
    return _y(y, x, z, activation, match_nan)


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
    activation: Activation | None = None,
    residual: np.ndarray | None = None,
    match_nan: bool = False,
) -> float:
    """y of inference: the bound of `forward_train` with the given statistics."""
    z = _before_fixed(x, gamma, beta, mean, var, eps, axis, residual)
    return _y(y, x, z, activation, match_nan)


@INFINITIES
def backward_train(
    got: tuple[Any, ...],
    dy: np.ndarray,
    x: np.ndarray,
    gamma: Any,
    eps: float,
    axis: int,
    *,
    beta: Any = None,
    activation: Activation | None = None,
    residual: np.ndarray | None = None,
    match_nan: bool = False,
) -> dict[str, float]:
    """dx, dgamma, dbeta, dresidual of training, in units. D = sum|dz|, S = sum|dz * x_hat|, m values per channel:

    dbeta   u * D
    dgamma  u * (S + e * D)
    dx      u * |gamma| * rstd * (|dz| + D/m + |x_hat| * S/m), and for float64 also e * (S + |x_hat| * D)/m

    e is by how many units every x_hat of a channel may be off because its mean was rounded. For float64 the
    mean is a double: e = |mean| * rstd. For float32 it is a pair of floats, and a kernel may sum dy*(x - hi)
    and correct by lo afterwards, |lo| <= u * |mean|: e = u * |mean| * rstd.

    With an activation each dz may be off by itself, because z is and by rounding; these errors add up as dz does.

    A `dx` or `dresidual` of None, or missing, is not looked at (it was not asked for).
    """
    wide = widen(x)
    _, saved = reference.forward_train(wide, None, None, eps, axis)
    want = reference.backward_train(widen(dy), wide, gamma, beta, saved, axis, activation, residual)
    z = _before_training(x, gamma, beta, saved, axis, residual)
    dz = _of_dz(dy, x, z, activation)
    return _gradients(got, want, dz, x, gamma, saved, axis, match_nan, fixed=False)


@INFINITIES
def backward_fixed(
    got: tuple[Any, ...],
    dy: np.ndarray,
    x: np.ndarray,
    gamma: Any,
    mean: Any,
    var: Any,
    eps: float,
    axis: int,
    *,
    beta: Any = None,
    activation: Activation | None = None,
    residual: np.ndarray | None = None,
    match_nan: bool = False,
) -> dict[str, float]:
    """Gradients with fixed statistics: dgamma, dbeta as in `backward_train`; dx u * |gamma| * rstd * |dz|."""
    given = (gamma, beta, mean, var, eps, axis, activation, residual)
    want = reference.backward_fixed(widen(dy), widen(x), *given)
    z = _before_fixed(x, gamma, beta, mean, var, eps, axis, residual)
    dz = _of_dz(dy, x, z, activation)
    return _gradients(got, want, dz, x, gamma, _fixed(x, mean, var, eps), axis, match_nan, fixed=True)


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
    of_mean = _unit(x) * deviation + DOUBLE * np.abs(want.mean)
    of_m2 = 2 * _unit(x) * want.m2 + LIMIT * want.count * (DOUBLE * want.mean) ** 2
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
    bound = LIMIT * _unit(x) * want.rstd
    return max(units, LIMIT * within("rstd", got.rstd, want.rstd, bound, match_any=match_nan))


class _Before(NamedTuple):
    """What goes into the activation, and how far off it may be."""

    z: np.ndarray
    bound: np.ndarray


class _Dz(NamedTuple):
    """The gradient behind the activation; how far off it may be because z is (`moved`), and by its own rounding."""

    dy: np.ndarray
    before: _Before
    activation: Activation | None
    dz: np.ndarray
    moved: np.ndarray
    own: np.ndarray


def _before_training(
    x: np.ndarray, gamma: Any, beta: Any, saved: Saved, axis: int, residual: np.ndarray | None
) -> _Before:
    z = reference.apply(widen(x), gamma, beta, saved, axis, None, residual)
    return _Before(z, _of_z(x, gamma, beta, saved, axis, residual))


def _before_fixed(
    x: np.ndarray,
    gamma: Any,
    beta: Any,
    mean: Any,
    var: Any,
    eps: float,
    axis: int,
    residual: np.ndarray | None,
) -> _Before:
    z = reference.forward_fixed(widen(x), gamma, beta, mean, var, eps, axis, None, residual)
    return _Before(z, _of_z(x, gamma, beta, _fixed(x, mean, var, eps), axis, residual))


def _of_z(
    x: np.ndarray, gamma: Any, beta: Any, saved: Saved, axis: int, residual: np.ndarray | None
) -> np.ndarray:
    """How far z may be off: LIMIT units of its terms."""
    gamma, beta = _absolute(gamma, 1, x, axis), _absolute(beta, 0, x, axis)
    bracket = gamma * np.abs(_x_hat(x, saved, axis)) + beta
    if x.dtype == np.float64:
        bracket = bracket + gamma * across(saved.rstd * np.abs(saved.mean), x, axis)
    if residual is not None:
        bracket = bracket + np.abs(widen(residual))
    bound = LIMIT * (_unit(x) * bracket + _least(x))  # the last rounding of a tiny result
    return np.where(bracket == 0, 0, bound)  # nothing but zeros: no rounding


def _of_dz(dy: np.ndarray, x: np.ndarray, before: _Before, activation: Activation | None) -> _Dz:
    wide = widen(dy)
    dz = gradient(wide, before.z, activation)
    off = close_activations.of_gradient(wide, *before, activation, _unit(x), _least(x))
    return _Dz(wide, before, activation, dz, *off)


def _unit(x: np.ndarray) -> float:
    return UNIT[computed(x[:0]).dtype]


def _least(x: np.ndarray) -> float:
    """The smallest number of the type that x is computed in."""
    return float(np.finfo(computed(x[:0]).dtype).smallest_subnormal)


def _y(
    y: np.ndarray, x: np.ndarray, before: _Before, activation: Activation | None, match_nan: bool
) -> float:
    want = activated(before.z, activation)
    bound = close_activations.of_value(*before, activation, _unit(x), _least(x))
    return LIMIT * rounded_once("y", y, want, bound, x.dtype, match_nan=match_nan)


def _gradients(
    got: tuple[Any, ...],
    want: Gradients,
    of: _Dz,
    x: np.ndarray,
    gamma: Any,
    saved: Saved,
    axis: int,
    match_nan: bool,
    *,
    fixed: bool,
) -> dict[str, float]:
    u, rest, m = _unit(x), others(x, axis), max(saved.count, 1)
    x_hat, dz, off = np.abs(_x_hat(x, saved, axis)), np.abs(of.dz), of.moved + of.own
    D, S = dz.sum(axis=rest), (dz * x_hat).sum(axis=rest)
    off_D, off_S = off.sum(axis=rest), (off * x_hat).sum(axis=rest)
    e = np.abs(saved.mean) * saved.rstd * (1 if x.dtype == np.float64 else u)
    bracket = LIMIT * u * dz + off
    if not fixed:
        bracket = bracket + across((LIMIT * u * D + off_D) / m, x, axis)
        bracket = bracket + x_hat * across((LIMIT * u * S + off_S) / m, x, axis)
        if x.dtype == np.float64:
            more = across(e * S / m, x, axis) + x_hat * across(e * D / m, x, axis)
            bracket = bracket + LIMIT * u * more
    bound = _absolute(gamma, 1, x, axis) * across(saved.rstd, x, axis) * bracket + LIMIT * _least(x)
    shares = {
        "dgamma": within("dgamma", got[1], want[1], LIMIT * u * (S + e * D) + off_S, match_any=match_nan),
        "dbeta": within("dbeta", got[2], want[2], LIMIT * u * D + off_D, match_any=match_nan),
    }
    if got[0] is not None:
        shares["dx"] = rounded_once("dx", got[0], want.dx, bound, x.dtype, match_nan=match_nan)
    if len(got) > 3 and got[3] is not None:
        shares["dresidual"] = _dresidual(got[3], want, of, x, match_nan)
    return {name: LIMIT * share for name, share in shares.items()}


def _dresidual(got: np.ndarray, want: Gradients, of: _Dz, x: np.ndarray, match_nan: bool) -> float:
    assert want.dresidual is not None, "dresidual: there was no residual"
    dz, bound = of.dz, of.moved + of.own
    if of.activation is None or of.activation.is_told_by_a_bit:
        dz = close_activations.either_side(got, of.dy, *of.before, of.activation)
        bound = of.own
    return rounded_once("dresidual", got, dz, bound, x.dtype, match_nan=match_nan)


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
