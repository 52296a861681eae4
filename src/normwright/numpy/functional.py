"""Batch normalization as plain functions: the form with `bn_param` in which many people first met it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from normwright import kernels
from normwright.core.checks import DtypeError, ShapeError, check_more_than_one_value, message
from normwright.core.moments import Saved
from normwright.core.running import update
from normwright.numpy import arguments
from normwright.numpy.arguments import Array, Float64


@dataclass(frozen=True, slots=True, eq=False)
class Cache:
    """What `batchnorm_backward` needs of a forward pass. It holds x itself: leave x as it is until then."""

    x: Array
    gamma: Float64 | None
    saved: Saved
    axis: int


def batchnorm_train(
    x: Array, gamma: ArrayLike | None, beta: ArrayLike | None, bn_param: Mapping[str, Any], *, axis: int = 1
) -> tuple[Array, dict[str, Any]]:
    """Normalize each channel by its mean and variance over the batch, and move the running statistics.

    y = gamma * (x - mean) / sqrt(var + eps) + beta
    running <- momentum * running + (1 - momentum) * batch

    Args:
        x: float32 or float64, C channels on `axis`.
        gamma, beta: (C,) of any real dtype, or None for 1 and 0.
        bn_param: a dictionary, which is not modified, of
            eps: added to the variance, above 0; default 1e-5.
            momentum: weight of the OLD running value, from 0 to 1; default 0.9.
            running_mean, running_var: (C,), both or neither; default zeros and ones, as in Keras and PyTorch:
            with them an untrained layer predicts x itself. (A variance of zeros would predict 316 times x.)
        axis: the channel axis.

    Returns:
        y of x's shape and dtype, and a new bn_param: all given keys, the four above filled in, the running
        statistics moved (var is biased). A batch of no values leaves them where they were.

    Raises:
        DtypeError (a TypeError): x is not a float32 or float64 array, or a parameter holds no real numbers.
        ShapeError (a ValueError): shapes do not fit; one value per channel; eps or momentum out of range.

    Numerics:
        y is right to a few units in the last place at any mean. NaN or infinity in a channel makes that
        channel's y NaN, and its running statistics for good.

    Source:
        Ioffe & Szegedy 2015, Algorithm 1.

    Example:
        >>> x = np.array([[1.0, 5.0], [3.0, 5.0]])
        >>> y, bn_param = batchnorm_train(x, gamma=[1, 1], beta=[0, 7], bn_param={"eps": 1e-12})
        >>> y.round(6)
        array([[-1.,  7.], [ 1.,  7.]])
        >>> bn_param["running_mean"].round(6)
        array([0.2, 0.5])
    """
    y, moved, _ = train("normwright.numpy.batchnorm_train", x, gamma, beta, bn_param, axis)
    return y, moved


def batchnorm_train_cached(
    x: Array, gamma: ArrayLike | None, beta: ArrayLike | None, bn_param: Mapping[str, Any], *, axis: int = 1
) -> tuple[Array, dict[str, Any], Cache]:
    """`batchnorm_train`, and what `batchnorm_backward` needs.

    Args, Raises: as for `batchnorm_train`.

    Returns:
        y, the new bn_param, and the cache.

    Example:
        >>> y, bn_param, cache = batchnorm_train_cached(np.array([[1.0], [3.0]]), None, None, {"eps": 3.0})
        >>> dx, dgamma, dbeta = batchnorm_backward(np.array([[0.0], [4.0]]), cache)
        >>> dx.ravel(), dgamma, dbeta
        (array([-0.75,  0.75]), array([2.]), array([4.]))
    """
    return train("normwright.numpy.batchnorm_train_cached", x, gamma, beta, bn_param, axis)


def batchnorm_predict(
    x: Array, gamma: ArrayLike | None, beta: ArrayLike | None, bn_param: Mapping[str, Any], *, axis: int = 1
) -> Array:
    """Normalize by the running statistics: a sample's result does not depend on the batch it comes in.

    y = gamma * (x - running_mean) / sqrt(running_var + eps) + beta

    Args:
        x, gamma, beta, axis: as for `batchnorm_train`; a batch of one is as good as any.
        bn_param: as `batchnorm_train` returned it, or with statistics from elsewhere (`Population`).

    Returns:
        y of x's shape and dtype.

    Raises:
        DtypeError, ShapeError: as `batchnorm_train`; without running statistics, or with a negative variance.

    Source:
        Ioffe & Szegedy 2015, section 3.1.

    Example:
        >>> bn_param = {"running_mean": [1.0], "running_var": [3.0], "eps": 1.0}
        >>> batchnorm_predict(np.array([[7.0]]), [2.0], [10.0], bn_param)
        array([[16.]])
    """
    return predict("normwright.numpy.batchnorm_predict", x, gamma, beta, bn_param, axis)


def batchnorm_backward(dy: Array, cache: Cache) -> tuple[Array, Float64, Float64]:
    """Gradients of a loss with respect to x, gamma and beta, given the gradient with respect to y.

    dbeta = sum dy,  dgamma = sum dy * x_hat
    dx    = gamma / sqrt(var + eps) * (dy - dbeta/m - x_hat * dgamma/m)

    Args:
        dy: of the shape and dtype of x.
        cache: from `batchnorm_train_cached`; it may be used more than once.

    Returns:
        dx of x's shape and dtype; dgamma, dbeta (C,) float64.

    Raises:
        DtypeError, ShapeError: dy is not like x.

    Source:
        Ioffe & Szegedy 2015, section 3.

    Example:
        See `batchnorm_train_cached`.
    """
    return backward("normwright.numpy.batchnorm_backward", dy, cache)


def train(
    call: str,
    x: Array,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    bn_param: Mapping[str, Any],
    axis: int,
) -> tuple[Array, dict[str, Any], Cache]:
    """`batchnorm_train_cached` on behalf of `call`, whose name stands in the errors."""
    x, axis, gamma, beta = arguments.inputs(call, x, axis, gamma, beta)
    eps, momentum, running_mean, running_var = arguments.settings(call, bn_param, x.shape, axis)
    remedy = "Use a larger batch, or predict by running statistics."
    check_more_than_one_value(call, x.shape, axis, remedy)
    if running_mean is None or running_var is None:
        running_mean, running_var = np.zeros(x.shape[axis]), np.ones(x.shape[axis])
    y, saved = kernels.best.forward_train(x, gamma, beta, eps, axis)
    if saved.count > 0:
        mean, var = (np.asarray(v, np.float64) for v in (saved.mean, saved.m2 / saved.count))
        running_mean = update(running_mean, mean, rate=1 - momentum)
        running_var = update(running_var, var, rate=1 - momentum)
    moved = {"eps": eps, "momentum": momentum, "running_mean": running_mean, "running_var": running_var}
    return y, {**bn_param, **moved}, Cache(x, gamma, saved, axis)


def predict(
    call: str,
    x: Array,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    bn_param: Mapping[str, Any],
    axis: int,
) -> Array:
    """`batchnorm_predict` on behalf of `call`."""
    x, axis, gamma, beta = arguments.inputs(call, x, axis, gamma, beta)
    eps, _, running_mean, running_var = arguments.settings(call, bn_param, x.shape, axis)
    if running_mean is None or running_var is None:
        expected, got = "bn_param with running_mean and running_var", f"the keys {list(bn_param)}"
        remedy = "They are in the bn_param that batchnorm_train returns."
        raise ShapeError(message(call, expected, got, remedy=remedy))
    y: Array = kernels.best.forward_fixed(x, gamma, beta, running_mean, running_var, eps, axis)
    return y


def backward(call: str, dy: Any, cache: Any) -> tuple[Array, Float64, Float64]:
    """`batchnorm_backward` on behalf of `call`."""
    if not isinstance(cache, Cache):
        raise DtypeError(message(call, "cache from batchnorm_train_cached", type(cache).__name__))
    dy = arguments.array(call, "dy", dy)
    if dy.shape != cache.x.shape:
        raise ShapeError(message(call, f"dy of shape {cache.x.shape}, as x", str(dy.shape)))
    if dy.dtype != cache.x.dtype:
        remedy = f"Use dy.astype(np.{cache.x.dtype})."
        raise DtypeError(message(call, f"dy of dtype {cache.x.dtype}, as x", str(dy.dtype), remedy=remedy))
    return kernels.best.backward_train(dy, cache.x, cache.gamma, cache.saved, cache.axis)
