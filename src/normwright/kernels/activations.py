"""The definition of each activation and of its derivative, in float64; long double stays long double.

    kind        activation(z)                             activation'(z)
    relu        0 where z <= 0, else z                    0 where z <= 0, else 1
    leaky_relu  z where z > 0, else a z                   1 where z > 0, else a
    hardtanh    min(max(z, a), b)                         0 where z <= a or z >= b, else 1
    hardswish   z min(max(z + 3, 0), 6) / 6               0 where z <= -3, 1 where z >= 3, else z/3 + 1/2
    silu        z s(z),  s(z) = 1/(1 + e^-z)              s(z) (1 + z s(-z))
    gelu        z P(z),  P(z) = erfc(-z/sqrt 2)/2         P(z) + z e^(-z^2/2)/sqrt(2 pi)
    gelu_tanh   z s(2t), t = sqrt(2/pi) (z + c z^3)       s(2t) (1 + z s(-2t) 2t'),  c = 0.044715
    sigmoid     s(z)                                      s(z) s(-z)
    tanh        tanh(z)                                   4 e^(-2|z|)/(1 + e^(-2|z|))^2
    elu         z where z > 0, else a (e^z - 1)           1 where z > 0, else a e^z

Every expression is one that keeps its digits far from 0: 1 - s(z) would not, s(-z) does. At corners, and for NaN
and infinite z, all is as in torch.

Source:
    relu: Nair & Hinton 2010.  leaky_relu: Maas, Hannun & Ng 2013.  hardswish: Howard et al. 2019.
    silu: Hendrycks & Gimpel 2016; Ramachandran, Zoph & Le 2017 ("swish").  gelu, gelu_tanh: Hendrycks & Gimpel
    2016, the second with 1 + tanh(t) = 2 s(2t).  elu: Clevert, Unterthiner & Hochreiter 2016.
"""

from collections.abc import Callable
from math import erfc
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normwright.core.activation import Activation
from normwright.core.moments import FloatArray


def activated(z: FloatArray, activation: Activation | None) -> FloatArray:
    """activation(z), of z's type; z itself without one.

    Example:
        >>> activated(np.array([-2.0, 0.0, 3.0]), Activation("leaky_relu", 0.5))
        array([-1.,  0.,  3.])
    """
    return z if activation is None else _DEFINED[activation.kind].value(z, activation.a, activation.b)


def slope(z: FloatArray, activation: Activation | None) -> FloatArray:
    """activation'(z), of z's type; 1 without one.

    Example:
        >>> slope(np.array([-2.0, 0.0, 3.0]), Activation("leaky_relu", 0.5))
        array([0.5, 0.5, 1. ])
    """
    return (
        np.ones_like(z)
        if activation is None
        else _DEFINED[activation.kind].slope(z, activation.a, activation.b)
    )


def gradient(dy: FloatArray, z: FloatArray, activation: Activation | None) -> FloatArray:
    """dy * activation'(z); 0 beyond a corner whatever dy is, NaN and infinity too: there nothing of it arrives.

    Example:
        >>> gradient(np.array([np.inf, 5.0]), np.array([-2.0, 3.0]), Activation("relu"))
        array([0., 5.])
    """
    if activation is None:
        return dy
    if activation.kind not in ("relu", "hardtanh", "hardswish"):
        return dy * slope(z, activation)
    each = slope(z, activation)
    return _chosen(each == 0, 0, np.where(each == 0, 1, dy) * each, dy)


class _Definition(NamedTuple):
    """A value and a derivative; both take z, a and b."""

    value: Callable[[FloatArray, float, float], FloatArray]
    slope: Callable[[FloatArray, float, float], FloatArray]


def _hardswish_slope(z: FloatArray, a: float, b: float) -> FloatArray:
    return _chosen(z <= -3, 0, np.where(z >= 3, 1, z / 3 + z.dtype.type(0.5)), z)


def _silu_slope(z: FloatArray, a: float, b: float) -> FloatArray:
    return _sigmoid(z) * (1 + z * _sigmoid(-z))


def _gelu_slope(z: FloatArray, a: float, b: float) -> FloatArray:
    with np.errstate(over="ignore"):  # z^2: the density is 0 all the same
        result: FloatArray = _normal(z) + z * np.exp(-z * z / 2) / np.sqrt(2 * _pi(z))
        return result


def _gelu_tanh_slope(z: FloatArray, a: float, b: float) -> FloatArray:
    t = np.clip(z, -100, 100)  # beyond them the derivative is 0 or 1 to the last bit, and no 0 * inf arises
    twice = _twice_inner(t)
    inner = 2 * np.sqrt(2 / _pi(z)) * (1 + _CUBIC * (3 * t * t))
    result: FloatArray = _sigmoid(twice) * (1 + t * _sigmoid(-twice) * inner)
    return result


def _tanh_slope(z: FloatArray, a: float, b: float) -> FloatArray:
    e = np.exp(-2 * np.abs(z))
    result: FloatArray = 4 * e / ((1 + e) * (1 + e))
    return result


def _chosen(
    where: NDArray[np.bool_], one: FloatArray | float, other: FloatArray | float, z: FloatArray
) -> FloatArray:
    """np.where, in z's type."""
    return np.where(where, one, other).astype(z.dtype, copy=False)


def _sigmoid(z: FloatArray) -> FloatArray:
    """s(z) = 1/(1 + e^-z), to its own last digits on either side."""
    e = np.exp(-np.abs(z))
    result: FloatArray = np.where(z < 0, e, 1) / (1 + e)
    return result


def _normal(z: FloatArray) -> FloatArray:
    """P(z), the distribution function of the standard normal."""
    return _erfc(-z / np.sqrt(z.dtype.type(2))) / 2


_CUBIC = 0.044715


def _twice_inner(z: FloatArray) -> FloatArray:
    """2t of gelu_tanh."""
    with np.errstate(over="ignore"):  # z^3: an infinity is as good as any large number here
        result: FloatArray = 2 * np.sqrt(2 / _pi(z)) * (z + _CUBIC * (z * z * z))
        return result


def _pi(z: FloatArray) -> np.floating[Any]:
    """pi in z's type."""
    result: np.floating[Any] = 4 * np.arctan(z.dtype.type(1))
    return result


def _erfc(x: FloatArray) -> FloatArray:
    """The complementary error function: of the C library for float64, a series or a fraction for long double."""
    if x.dtype == np.float64:
        result: FloatArray = np.vectorize(erfc, otypes=[np.float64])(x)
        return result
    small = np.abs(x) < 1
    result = np.empty_like(x)
    result[small] = 1 - _erf_series(x[small])
    far = x[~small]
    beyond = _erfc_fraction(np.abs(far))
    result[~small] = np.where(far < 0, 2 - beyond, beyond)
    return result


def _erf_series(x: FloatArray) -> FloatArray:
    """erf(x) = 2/sqrt(pi) e^(-x^2) sum_n (2 x^2)^n x / (1 * 3 * .. * (2n + 1)), all terms of one sign, |x| <= 1.

    30 terms: at |x| = 1 the last is below 1e-30 of the sum. (Abramowitz & Stegun 7.1.6)
    """
    term = total = x
    for n in range(1, 30):
        term = term * (2 * x * x) / (2 * n + 1)
        total = total + term
    result: FloatArray = 2 / np.sqrt(_pi(x)) * np.exp(-x * x) * total
    return result


def _erfc_fraction(x: FloatArray) -> FloatArray:
    """erfc(x) = e^(-x^2)/sqrt(pi) / (x + (1/2)/(x + (2/2)/(x + (3/2)/(x + ..)))) for x >= 1.

    300 levels: at x = 1 the rest is below 1e-20. (Abramowitz & Stegun 7.1.14)
    """
    below = x
    for n in range(300, 0, -1):
        below = x + (n / 2) / below
    result: FloatArray = np.exp(-x * x) / np.sqrt(_pi(x)) / below
    return result


_DEFINED = {
    "identity": _Definition(lambda z, a, b: z, lambda z, a, b: np.ones_like(z)),
    "relu": _Definition(lambda z, a, b: np.maximum(z, 0), lambda z, a, b: _chosen(z <= 0, 0, 1, z)),
    "leaky_relu": _Definition(
        lambda z, a, b: _chosen(z > 0, z, a * z, z),
        lambda z, a, b: _chosen(z > 0, 1, a, z),
    ),
    "hardtanh": _Definition(
        lambda z, a, b: np.clip(z, a, b),
        lambda z, a, b: _chosen((z <= a) | (z >= b), 0, 1, z),
    ),
    "hardswish": _Definition(lambda z, a, b: z * np.clip(z + 3, 0, 6) / 6, _hardswish_slope),
    "silu": _Definition(lambda z, a, b: z * _sigmoid(z), _silu_slope),
    "gelu": _Definition(lambda z, a, b: z * _normal(z), _gelu_slope),
    "gelu_tanh": _Definition(lambda z, a, b: z * _sigmoid(_twice_inner(z)), _gelu_tanh_slope),
    "sigmoid": _Definition(lambda z, a, b: _sigmoid(z), lambda z, a, b: _sigmoid(z) * _sigmoid(-z)),
    "tanh": _Definition(lambda z, a, b: np.tanh(z), _tanh_slope),
    "elu": _Definition(
        lambda z, a, b: _chosen(z > 0, z, a * np.expm1(np.minimum(z, 0)), z),
        lambda z, a, b: _chosen(z > 0, 1, a * np.exp(np.minimum(z, 0)), z),
    ),
}
