"""The definition of batch normalization, in NumPy: what every kernel of this library must equal.

The notation is that of Ioffe & Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
Internal Covariate Shift", ICML 2015. One channel's values over the mini-batch are B = {x_1..m}; here they are
one row of an array (C, m), so that the formulas read as in the paper, for all channels at once. A convolution
has m = batch * height * width (section 3.2).

All is computed in float64; long double stays long double, so that the same lines are the extended-precision
reference of float64 kernels. Results are NOT rounded to the type of x: the caller rounds. The merge of two
batches is `normwright.core.moments.Moments.merge`, the moving average `normwright.core.running.update`.
"""

from collections.abc import Iterable
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normwright.core.activation import Activation
from normwright.core.moments import FloatArray, Gradients, Moments, Saved
from normwright.kernels.activations import activated, gradient

Array = NDArray[Any]


def moments(x: Array, axis: int) -> Moments:
    """Count, mean and sum of squared deviations of each channel.

    mean = 1/m sum x_i
    m2   = sum (x_i - mean)^2

    Args:
        x: any shape of rank >= 2, any real dtype.
        axis: the channel axis.

    Returns: Moments of C channels; zeros where x has no values.

    Numerics: Two sweeps, centred: E[x^2] - E[x]^2 would lose every digit at |mean| = 1e8 deviations.

    Source: Algorithm 1, lines 1 and 2.

    Example:
        >>> moments(np.array([[0.0, 1.0], [2.0, 1.0]]), axis=1)
        Moments(count=2, mean=array([1., 1.]), m2=array([2., 0.]))
    """
    X = _rows(x, axis)
    mean, mean_tail, m2 = _two_sweeps(X)
    return Moments(X.shape[1], mean + mean_tail, m2)


def forward_train(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    axis: int,
    activation: Activation | None = None,
    residual: Array | None = None,
) -> tuple[FloatArray, Saved]:
    """Algorithm 1: normalize each channel by its mini-batch, scale, shift; keep what `backward_train` needs.

    x_hat = (x - mean) * rstd,  rstd = 1/sqrt(m2/m + eps)
    z     = gamma * x_hat + beta (+ residual)
    y     = activation(z)

    Args:
        x, axis: as for `moments`.
        gamma, beta: (C,), or None for 1 and 0.
        eps: added to the variance.
        activation: what follows (see `normwright.kernels.activations`), or None for y = z.
        residual: of x's shape, added before the activation; None for 0.

    Returns: y of x's shape, and Saved.

    Numerics: The mean is kept in two parts: its own rounding would else show in every small x_hat.

    Source: The residual before the activation: He et al., "Deep Residual Learning", CVPR 2016, figure 2.

    Example:
        >>> x, relu = np.array([[1.0], [3.0]]), Activation("relu")
        >>> y, saved = forward_train(x, np.array([2.0]), None, eps=3.0, axis=1)
        >>> y.ravel(), saved.rstd
        (array([-1.,  1.]), array([0.5]))
        >>> forward_train(x, None, None, 3.0, 1, relu, residual=np.array([[0.0], [4.0]]))[0].ravel()
        array([0. , 4.5])
    """
    X = _rows(x, axis)
    mean, mean_tail, m2 = _two_sweeps(X)
    rstd = 1 / np.sqrt(m2 / max(X.shape[1], 1) + eps)
    saved = Saved(mean, mean_tail, m2, rstd, X.shape[1])
    return apply(x, gamma, beta, saved, axis, activation, residual), saved


def apply(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    saved: Saved,
    axis: int,
    activation: Activation | None = None,
    residual: Array | None = None,
) -> FloatArray:
    """y of `forward_train` from the moments that it saved.

    Example:
        >>> _, saved = forward_train(np.array([[1.0], [3.0]]), None, None, eps=3.0, axis=1)
        >>> apply(np.array([[7.0]]), None, None, saved, axis=1)
        array([[2.5]])
    """
    X = _rows(x, axis)
    z = _z(_x_hat(X, saved), X, gamma, beta, residual, axis)
    return _restored(activated(z, activation), x, axis)


def backward_train(
    dy: Array,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    saved: Saved,
    axis: int,
    activation: Activation | None = None,
    residual: Array | None = None,
) -> Gradients:
    """Gradients of a loss through `forward_train`, given the gradient dy with respect to y.

    dz        = dy * activation'(z)        z again by the expression of `forward_train`, so that no sign differs
    dbeta     = sum dz_i
    dgamma    = sum dz_i * x_hat_i
    dx_i      = gamma * rstd * (dz_i - dbeta/m - x_hat_i * dgamma/m)
    dresidual = dz

    Args:
        dy: of x's shape.
        x, gamma, beta, saved, axis, activation, residual: as given to and returned by `forward_train`.

    Returns: dx of x's shape, dgamma (C,), dbeta (C,), and with a residual dresidual of x's shape.

    Source: Section 3, the six lines of the chain rule, terms collected, with sum (x_i - mean) = 0.

    Example:
        >>> x, dy = np.array([[1.0], [3.0]]), np.array([[0.0], [4.0]])
        >>> _, saved = forward_train(x, None, None, eps=3.0, axis=1)
        >>> dx, dgamma, dbeta, _ = backward_train(dy, x, None, None, saved, axis=1)
        >>> dx.ravel(), dgamma, dbeta
        (array([-0.75,  0.75]), array([2.]), array([4.]))
    """
    X, dY = _rows(x, axis), _rows(dy, axis)
    x_hat = _x_hat(X, saved)
    dZ = gradient(dY, _z(x_hat, X, gamma, beta, residual, axis), activation)
    dbeta = dZ.sum(axis=1)
    dgamma = (dZ * x_hat).sum(axis=1)
    mean_of_both = (dbeta[:, None] + x_hat * dgamma[:, None]) / max(saved.count, 1)
    dX = _column(gamma, 1, X) * saved.rstd[:, None] * (dZ - mean_of_both)
    dresidual = None if residual is None else _restored(dZ, x, axis)
    return Gradients(_restored(dX, x, axis), dgamma, dbeta, dresidual)


def forward_fixed(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    mean: Array,
    var: Array,
    eps: float,
    axis: int,
    activation: Activation | None = None,
    residual: Array | None = None,
) -> FloatArray:
    """Normalize by statistics that do not depend on x: inference, and training of a frozen layer.

    y = activation(gamma * (x - mean) / sqrt(var + eps) + beta (+ residual))

    Args:
        x, gamma, beta, eps, axis, activation, residual: as for `forward_train`.
        mean, var: (C,).

    Returns: y of x's shape.

    Source: Algorithm 2, line 11, before its terms are collected.

    Example:
        >>> forward_fixed(np.array([[7.0]]), None, None, np.array([1.0]), np.array([3.0]), eps=1.0, axis=1)
        array([[3.]])
    """
    X = _rows(x, axis)
    rstd = 1 / np.sqrt(_column(var, 1, X) + eps)
    x_hat = (X - _column(mean, 0, X)) * rstd
    return _restored(activated(_z(x_hat, X, gamma, beta, residual, axis), activation), x, axis)


def backward_fixed(
    dy: Array,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    mean: Array,
    var: Array,
    eps: float,
    axis: int,
    activation: Activation | None = None,
    residual: Array | None = None,
) -> Gradients:
    """Gradients of a loss through `forward_fixed`: mean and var are constants.

    dz = dy * activation'(z),  dbeta = sum dz_i,  dgamma = sum dz_i * x_hat_i
    dx_i = gamma * dz_i / sqrt(var + eps),  dresidual = dz

    Args:
        dy: of x's shape.
        x, gamma, beta, mean, var, eps, axis, activation, residual: as given to `forward_fixed`.

    Returns: as `backward_train`.

    Example:
        >>> one = np.array([1.0])
        >>> backward_fixed(np.array([[2.0]]), np.array([[7.0]]), None, None, one, 3 * one, eps=1.0, axis=1)
        Gradients(dx=array([[1.]]), dgamma=array([6.]), dbeta=array([2.]), dresidual=None)
    """
    X, dY = _rows(x, axis), _rows(dy, axis)
    rstd = 1 / np.sqrt(_column(var, 1, X) + eps)
    x_hat = (X - _column(mean, 0, X)) * rstd
    dZ = gradient(dY, _z(x_hat, X, gamma, beta, residual, axis), activation)
    dx = _restored(_column(gamma, 1, X) * rstd * dZ, x, axis)
    dresidual = None if residual is None else _restored(dZ, x, axis)
    return Gradients(dx, (dZ * x_hat).sum(axis=1), dZ.sum(axis=1), dresidual)


def algorithm_1(x: Array, gamma: Array, beta: Array, eps: float, axis: int) -> FloatArray:
    """Algorithm 1, "Batch Normalizing Transform", as it is printed, to be compared with `forward_train`.

    Example:
        >>> algorithm_1(np.array([[1.0], [3.0]]), np.array([2.0]), np.array([5.0]), eps=3.0, axis=1).ravel()
        array([4., 6.])
    """
    X = _rows(x, axis)
    mu_B = X.mean(axis=1, keepdims=True)  # mini-batch mean
    var_B = ((X - mu_B) ** 2).mean(axis=1, keepdims=True)  # mini-batch variance
    x_hat = (X - mu_B) / np.sqrt(var_B + eps)  # normalize
    y = _column(gamma, 1, X) * x_hat + _column(beta, 0, X)  # scale and shift
    return _restored(y, x, axis)


class Inference(NamedTuple):
    """What Algorithm 2 hands to inference, (C,) each: y = scale * x + shift."""

    mean: FloatArray
    var: FloatArray
    scale: FloatArray
    shift: FloatArray


def algorithm_2(
    batches: Iterable[Array], gamma: Array | None, beta: Array | None, eps: float, axis: int
) -> Inference:
    """Algorithm 2, "Training a Batch-Normalized Network", lines 8 to 12, for one layer.

    E[x]   = E_B[mu_B]
    Var[x] = E_B[m/(m-1) var_B]
    y      = gamma/sqrt(Var[x] + eps) * x + (beta - gamma E[x]/sqrt(Var[x] + eps))

    Args:
        batches: mini-batches of the layer's input, at least one.
        gamma, beta, eps, axis: as for `forward_train`.

    Raises: ShapeError: a batch has one value per channel, so that m - 1 = 0.

    Numerics:
        Batches count alike, whatever their size, and the variance BETWEEN their means is left out:
        merging their moments (`Moments.merge`) has neither flaw.

    Example:
        >>> batches = [np.array([[0.0], [2.0]]), np.array([[4.0], [8.0]])]
        >>> algorithm_2(batches, np.array([3.0]), None, eps=4.0, axis=1)
        Inference(mean=array([3.5]), var=array([5.]), scale=array([1.]), shift=array([-3.5]))
    """
    each = [moments(x, axis) for x in batches]
    mean = np.mean([B.mean for B in each], axis=0)
    var = np.mean([B.var(ddof=1) for B in each], axis=0)
    scale = (1 if gamma is None else np.asarray(gamma)) / np.sqrt(var + eps)
    shift = (0 if beta is None else np.asarray(beta)) - scale * mean
    return Inference(mean, var, scale, shift)


def _rows(x: Array, axis: int) -> FloatArray:
    """x as (C, m), a row for each channel; contiguous, so that NumPy sums it pairwise."""
    wide = np.asarray(x, dtype=np.result_type(x, np.float64))
    first = np.moveaxis(wide, axis, 0)
    return np.ascontiguousarray(first.reshape(first.shape[0], prod(first.shape[1:])))


def _restored(rows: FloatArray, x: Array, axis: int) -> FloatArray:
    """(C, m) back in the shape of x."""
    first = np.moveaxis(np.empty(x.shape, np.uint8), axis, 0)
    return np.ascontiguousarray(np.moveaxis(rows.reshape(first.shape), 0, axis))


def _column(values: Array | None, default: float, X: FloatArray) -> FloatArray:
    """(C,) as (C, 1), in X's type; None means `default` for every channel."""
    if values is None:
        return np.full((X.shape[0], 1), default, X.dtype)
    return np.asarray(values, dtype=X.dtype)[:, None]


def _two_sweeps(X: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """mean, mean_tail and m2 of each row: the first sweep finds the mean, the second corrects and squares."""
    m = max(X.shape[1], 1)
    mean = X.sum(axis=1) / m
    centred = X - mean[:, None]
    mean_tail = centred.sum(axis=1) / m
    return mean, mean_tail, ((centred - mean_tail[:, None]) ** 2).sum(axis=1)


def _x_hat(X: FloatArray, saved: Saved) -> FloatArray:
    """The normalized activations, (C, m)."""
    return ((X - saved.mean[:, None]) - saved.mean_tail[:, None]) * saved.rstd[:, None]


def _z(
    x_hat: FloatArray,
    X: FloatArray,
    gamma: Array | None,
    beta: Array | None,
    residual: Array | None,
    axis: int,
) -> FloatArray:
    """What goes into the activation, (C, m): the one expression of it, forward and backward."""
    z = _column(gamma, 1, X) * x_hat + _column(beta, 0, X)
    return z if residual is None else z + _rows(residual, axis)
