"""How far an activation's value and derivative may be off, given how far z may be, in which they are taken.

Two parts. `spread`: z moves within its bound, and the activation with it: both ends of the interval are tried, so
that at a corner either side's derivative is allowed, and nowhere else. `own`: the activation's rounding, in units
of each value, argued at UNITS.
"""

from collections.abc import Callable

import numpy as np

from normwright.core.activation import Activation
from normwright.kernels.activations import activated, slope

# Roundings of u = 2^-24 or 2^-53 between z and the result, each relative to the value:
UNITS = {
    "identity": 0,
    "relu": 0,  # a choice
    "leaky_relu": 3,  # the slope in the type of z, the product, and the square of both
    "hardtanh": 1,  # the bounds in the type of z
    "hardswish": 4,  # z + 3 (exact to its own digits near -3), product, quotient; the derivative has no more
    # e^z is off by two units, 1 + e^-z, the quotient and the product by one each, s(-z) = e^-z s(z) by one more:
    # six, and the derivatives multiply two such factors.
    "silu": 6,
    "gelu": 6,
    "gelu_tanh": 6,
    "sigmoid": 6,
    "tanh": 6,
    "elu": 6,
}
# The argument of erfc, or of e in the sigmoid of gelu_tanh, is rounded, too: a square, or a cube and its products.
# That is as if z itself had moved by so many units.
ARGUMENT = {"gelu": 3, "gelu_tanh": 6}
# Far out e^z is below the normal numbers and known to the smallest of all; it is multiplied by z (104 at most:
# there e^z is 0 in float32; gelu_tanh: z t' up to 300), in float64 by 745 (and 2000).
SMALLEST = 4096
SMOOTH = ("silu", "gelu", "gelu_tanh", "sigmoid", "tanh", "elu")


def of_value(
    z: np.ndarray, bound: np.ndarray, activation: Activation | None, u: float, least: float
) -> np.ndarray:
    """How far activation(z) may be off where z is by `bound`; u: the unit, least: the type's smallest number."""
    if activation is None:
        return bound
    value = np.abs(activated(z, activation))
    return _spread(activated, z, bound, activation, u) + _own(value, activation, u, least)


def of_gradient(
    dy: np.ndarray, z: np.ndarray, bound: np.ndarray, activation: Activation | None, u: float, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """How far dz = dy * activation'(z) may be off: because z is, and by its own rounding."""
    if activation is None:
        return np.zeros_like(dy), np.zeros_like(dy)
    each = np.abs(slope(z, activation))
    own = _own(_terms(z, each, activation), activation, u, least)
    if activation.kind not in ("relu", "hardtanh"):  # there dy is taken or left
        own = own + u * (each + own)  # the product with dy
    own = np.where(own == 0, 0, np.abs(dy) * own + least)
    return np.abs(dy) * _spread(slope, z, bound, activation, u), own


def either_side(
    got: np.ndarray, dy: np.ndarray, z: np.ndarray, bound: np.ndarray, activation: Activation | None
) -> np.ndarray:
    """dz with the derivative at z, or at either end of its bound, whichever is nearest to `got`.

    For activations whose derivative has two values, and nothing between them is right.
    """
    bound = np.where(np.isfinite(z), bound, 0)
    high = z + bound
    if activation is not None and activation.kind == "leaky_relu":
        high = np.where(np.isnan(z), np.inf, high)  # a NaN may be taken for either side
    sides = [dy * slope(at, activation) for at in (z, z - bound, high)]
    distances = [np.nan_to_num(np.abs(got.astype(dy.dtype) - side), nan=np.inf) for side in sides]
    return np.choose(np.argmin(distances, axis=0), sides)


def _own(size: np.ndarray, activation: Activation, u: float, least: float) -> np.ndarray:
    units = UNITS[activation.kind]
    far_out = SMALLEST * least if activation.kind in SMOOTH else least * (units > 1)
    size = np.where(np.isfinite(size), size, 0)
    return u * units * size + far_out


def _terms(z: np.ndarray, each: np.ndarray, activation: Activation) -> np.ndarray:
    """The size of what is added up to a derivative: near its zero it is only known in proportion to that."""
    if activation.kind == "hardswish":
        return np.where(np.abs(z) < 3, np.abs(z) / 3 + 0.5, 0)
    if activation.kind in ("silu", "gelu", "gelu_tanh"):  # y = z f(z), y' = f(z) + z f'(z)
        f = activated(z, activation) / np.where(z == 0, 1, z) + 0.5 * (z == 0)
        return np.abs(f) + np.abs(slope(z, activation) - f)
    return each


def _spread(
    f: Callable[[np.ndarray, Activation], np.ndarray],
    z: np.ndarray,
    bound: np.ndarray,
    activation: Activation,
    u: float,
) -> np.ndarray:
    """How far f may move where z does by `bound`: the larger of both ends.

    Between them a smooth f may turn, by less than bound^2 (no |f''| is above 2), and only where |z| < 3.
    """
    bound = bound + ARGUMENT.get(activation.kind, 0) * u * np.abs(z)
    middle = f(z, activation)
    far = np.maximum(np.abs(f(z - bound, activation) - middle), np.abs(f(z + bound, activation) - middle))
    if activation.kind in (*SMOOTH, "hardswish"):
        far = far + np.where(np.abs(z) < 3 + bound, bound**2, 0)
    far = np.where(np.isfinite(z), far, 0)
    if activation.kind == "leaky_relu" and f is slope:
        far = np.where(np.isnan(z), (1 + 64 * u) * abs(1 - activation.a), far)  # as above, and rounded
    return far
