"""Batch normalization as plain functions: the form with `bn_param` in which many people first met it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from normwright import kernels
from normwright.core.activation import Activation, parse
from normwright.core.checks import DtypeError, ShapeError, check_more_than_one_value, message
from normwright.core.moments import Gradients, Saved
from normwright.core.running import update
from normwright.numpy import arguments
from normwright.numpy.arguments import Array, Float64


@dataclass(frozen=True, slots=True, eq=False)
class Cache:
    """What `batchnorm_backward` needs of a forward pass. It holds x itself: leave x as it is until then.

    Of a residual it holds one bit per value where the activation's derivative is told by that (relu, leaky_relu,
    hardtanh), nothing where no activation follows; and else the array itself: leave that as it is, too.
    """

    x: Array
    gamma: Float64 | None
    beta: Float64 | None
    saved: Saved
    axis: int
    activation: Activation | None = None
    residual: Array | None = None
    had_residual: bool = False


def batchnorm_train(
    x: Array,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    bn_param: Mapping[str, Any],
    *,
    axis: int = 1,
    activation: str | Activation | None = None,
    residual: Array | None = None,
) -> tuple[Array, dict[str, Any]]:
    """Normalize each channel by its mean and variance over the batch, and move the running statistics.

    y = activation(gamma * (x - mean) / sqrt(var + eps) + beta + residual)
    running <- momentum * running + (1 - momentum) * batch

    Args:
        x: float32, float64, float16, or bfloat16 of the package ml_dtypes; C channels on `axis`.
        gamma, beta: (C,) of any real dtype, or None for 1 and 0.
        bn_param: a dictionary, which is not modified, of
            eps: added to the variance, above 0; default 1e-5.
            momentum: weight of the OLD running value, from 0 to 1; default 0.9.
            running_mean, running_var: (C,), both or neither; default zeros and ones, as in Keras and PyTorch:
            with them an untrained layer predicts x itself. (A variance of zeros would predict 316 times x.)
        axis: the channel axis.
        activation: what follows, done in the same pass: "relu", "leaky_relu", "relu6", "hardtanh",
            "hardswish", "silu" (or "swish"), "gelu", "gelu_tanh", "sigmoid", "tanh", "elu"; an `Activation` for
            other numbers than the usual (`Activation("leaky_relu", 0.2)`); None for none.
        residual: of x's shape and dtype, in any memory layout; added before the activation. None for none.

    Returns:
        y of x's shape and dtype, and a new bn_param: all given keys, the four above filled in, the running
        statistics moved (var is biased). A batch of no values leaves them where they were.

    Raises:
        DtypeError (a TypeError): x is no array of these types, a parameter holds no real numbers, the residual has
            another dtype than x.
        ShapeError (a ValueError): shapes do not fit; one value per channel; eps or momentum out of range; an
            unknown activation.

    Numerics:
        y is right to a few units in the last place at any mean. Half types are computed in float32 and rounded
        once, at the end. NaN or infinity in a channel makes that channel's y NaN, and its running statistics for
        good.

    Source:
        Ioffe & Szegedy 2015, Algorithm 1; the residual before the activation: He et al., CVPR 2016.

    Example:
        >>> x = np.array([[1.0, 5.0], [3.0, 5.0]])
        >>> y, bn_param = batchnorm_train(x, gamma=[1, 1], beta=[0, 7], bn_param={"eps": 1e-12})
        >>> y.round(6)
        array([[-1.,  7.], [ 1.,  7.]])
        >>> bn_param["running_mean"].round(6)
        array([0.2, 0.5])
        >>> y, _ = batchnorm_train(x, None, None, {"eps": 1e-12}, activation="relu", residual=x)
        >>> y.round(6)
        array([[0., 5.], [4., 5.]])
    """
    call = "normwright.numpy.batchnorm_train"
    y, moved, _ = train(call, x, gamma, beta, bn_param, axis, activation, residual)
    return y, moved


def batchnorm_train_cached(
    x: Array,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    bn_param: Mapping[str, Any],
    *,
    axis: int = 1,
    activation: str | Activation | None = None,
    residual: Array | None = None,
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
    call = "normwright.numpy.batchnorm_train_cached"
    return train(call, x, gamma, beta, bn_param, axis, activation, residual)


def batchnorm_predict(
    x: Array,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    bn_param: Mapping[str, Any],
    *,
    axis: int = 1,
    activation: str | Activation | None = None,
    residual: Array | None = None,
    out: Array | None = None,
) -> Array:
    """Normalize by the running statistics: a sample's result does not depend on the batch it comes in.

    y = activation(gamma * (x - running_mean) / sqrt(running_var + eps) + beta + residual)

    Args:
        x, gamma, beta, axis, activation, residual: as for `batchnorm_train`; a batch of one is as good as any.
        bn_param: as `batchnorm_train` returned it, or with statistics from elsewhere (`Population`).
        out: an array of x's shape and dtype that the result is written to and that is returned; x itself and the
            residual will do. None for a new one.

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
        >>> x = np.array([[7.0], [-7.0]])
        >>> batchnorm_predict(x, [2.0], None, bn_param, activation="relu", out=x) is x, x.ravel()
        (True, array([6., 0.]))
    """
    call = "normwright.numpy.batchnorm_predict"
    return predict(call, x, gamma, beta, bn_param, axis, activation, residual, out)


def batchnorm_backward(dy: Array, cache: Cache) -> tuple[Array, Float64, Float64]:
    """Gradients of a loss with respect to x, gamma and beta, given the gradient with respect to y.

    dz    = dy * activation'(z)
    dbeta = sum dz,  dgamma = sum dz * x_hat
    dx    = gamma / sqrt(var + eps) * (dz - dbeta/m - x_hat * dgamma/m)

    Args:
        dy: of the shape and dtype of x.
        cache: from `batchnorm_train_cached`; it may be used more than once.

    Returns:
        dx of x's shape and dtype; dgamma, dbeta (C,) float64. The gradient to a residual: see
        `batchnorm_backward_residual`.

    Raises:
        DtypeError, ShapeError: dy is not like x.

    Source:
        Ioffe & Szegedy 2015, section 3.

    Example:
        See `batchnorm_train_cached`.
    """
    dx, dgamma, dbeta, _ = backward("normwright.numpy.batchnorm_backward", dy, cache)
    return dx, dgamma, dbeta


def batchnorm_backward_residual(dy: Array, cache: Cache) -> Gradients:
    """`batchnorm_backward`, and the gradient with respect to the residual, in one pass.

    dresidual = dz = dy * activation'(z)

    Args:
        dy, cache: as for `batchnorm_backward`; the forward pass had a residual.

    Returns:
        Gradients(dx, dgamma, dbeta, dresidual); dresidual of x's shape and dtype. Without an activation it is dy.

    Raises:
        DtypeError, ShapeError: dy is not like x; there was no residual.

    Example:
        >>> x, residual = np.array([[1.0], [3.0]]), np.array([[0.0], [2.0]])
        >>> *_, cache = batchnorm_train_cached(x, None, None, {}, activation="relu", residual=residual)
        >>> batchnorm_backward_residual(np.array([[5.0], [4.0]]), cache).dresidual.ravel()
        array([0., 4.])
    """
    call = "normwright.numpy.batchnorm_backward_residual"
    gradients = backward(call, dy, cache)
    if gradients.dresidual is None:
        raise ShapeError(message(call, "cache of a forward pass with a residual", "one without"))
    return gradients


def train(
    call: str,
    x: Array,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    bn_param: Mapping[str, Any],
    axis: int,
    activation: str | Activation | None,
    residual: Array | None,
) -> tuple[Array, dict[str, Any], Cache]:
    """`batchnorm_train_cached` on behalf of `call`, whose name stands in the errors."""
    x, axis, gamma, beta = arguments.inputs(call, x, axis, gamma, beta)
    eps, momentum, running_mean, running_var = arguments.settings(call, bn_param, x.shape, axis)
    activation, residual = parse(call, activation), arguments.residual(call, residual, x)
    remedy = "Use a larger batch, or predict by running statistics."
    check_more_than_one_value(call, x.shape, axis, remedy)
    if running_mean is None or running_var is None:
        running_mean, running_var = np.zeros(x.shape[axis]), np.ones(x.shape[axis])
    y, saved = kernels.best.forward_train(x, gamma, beta, eps, axis, activation, residual)
    if saved.count > 0:
        mean, var = (np.asarray(v, np.float64) for v in (saved.mean, saved.m2 / saved.count))
        running_mean = update(running_mean, mean, rate=1 - momentum)
        running_var = update(running_var, var, rate=1 - momentum)
    moved = {"eps": eps, "momentum": momentum, "running_mean": running_mean, "running_var": running_var}
    again = residual if activation is not None and saved.bits is None else None
    cache = Cache(x, gamma, beta, saved, axis, activation, again, residual is not None)
    return y, {**bn_param, **moved}, cache


def predict(
    call: str,
    x: Array,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    bn_param: Mapping[str, Any],
    axis: int,
    activation: str | Activation | None,
    residual: Array | None,
    out: Array | None,
) -> Array:
    """`batchnorm_predict` on behalf of `call`."""
    x, axis, gamma, beta = arguments.inputs(call, x, axis, gamma, beta)
    eps, _, running_mean, running_var = arguments.settings(call, bn_param, x.shape, axis)
    activation, residual = parse(call, activation), arguments.residual(call, residual, x)
    out = arguments.out(call, out, x)
    if running_mean is None or running_var is None:
        expected, got = "bn_param with running_mean and running_var", f"the keys {list(bn_param)}"
        remedy = "They are in the bn_param that batchnorm_train returns."
        raise ShapeError(message(call, expected, got, remedy=remedy))
    fixed = (running_mean, running_var, eps, axis)
    y: Array = kernels.best.forward_fixed(x, gamma, beta, *fixed, activation, residual, out)
    return y


def backward(call: str, dy: Any, cache: Any) -> Gradients:
    """All gradients on behalf of `call`; dresidual is None where there was no residual."""
    if not isinstance(cache, Cache):
        raise DtypeError(message(call, "cache from batchnorm_train_cached", type(cache).__name__))
    dy = arguments.like_x(call, "dy", dy, cache.x)
    given = (cache.gamma, cache.beta, cache.saved, cache.axis, cache.activation, cache.residual)
    gradients = kernels.best.backward_train(dy, cache.x, *given)
    if cache.had_residual and cache.activation is None:
        gradients = gradients._replace(dresidual=dy)
    return gradients
