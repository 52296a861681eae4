"""Batch normalization as an object that remembers."""

from operator import index
from typing import Any

import numpy as np

from normwright.core.activation import Activation, parse
from normwright.core.checks import ShapeError, check_axis, check_eps, message
from normwright.numpy import arguments, functional
from normwright.numpy.arguments import Array, Float64


class BatchNorm:
    """A batch normalization layer: parameters, running statistics and gradients in one object.

    Args:
        num_features: C.
        eps, momentum, axis, activation: as for `batchnorm_train`.

    Attributes:
        gamma, beta: (C,) float64, from 1 and 0; yours to update, in place or by assignment.
        running_mean, running_var: (C,) float64, from 0 and 1; moved by `train`.
        activation: an `Activation`, or None.
        dgamma, dbeta: (C,) float64, set by `backward`; 0 before.
        dresidual: of x's shape and dtype, set by `backward`; None where the last `train` had no residual.

    Example:
        >>> layer = BatchNorm(1, eps=3.0, momentum=0.5)
        >>> layer.train(np.array([[1.0], [3.0]]))
        array([[-0.5], [ 0.5]])
        >>> layer.running_mean, layer.running_var
        (array([1.]), array([1.]))
        >>> layer.backward(np.array([[1.0], [1.0]])), layer.dbeta
        (array([[0.], [0.]]), array([2.]))
        >>> layer = BatchNorm(1, eps=3.0, activation="relu")
        >>> layer.train(np.array([[1.0], [3.0]]), residual=np.array([[0.0], [2.0]]))
        array([[0. ], [2.5]])
        >>> _ = layer.backward(np.array([[1.0], [1.0]]))
        >>> layer.dresidual
        array([[0.], [1.]])
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.9,
        axis: int = 1,
        activation: str | Activation | None = None,
    ) -> None:
        call = "normwright.numpy.BatchNorm"
        if index(num_features) < 1:
            raise ShapeError(message(call, "num_features >= 1", str(num_features)))
        check_eps(call, eps)
        arguments.check_momentum(call, momentum)
        self.num_features = index(num_features)
        self.eps = eps
        self.momentum = momentum
        self.axis = axis
        self.activation = parse(call, activation)
        self.gamma: Float64 = np.ones(num_features)
        self.beta: Float64 = np.zeros(num_features)
        self.running_mean: Float64 = np.zeros(num_features)
        self.running_var: Float64 = np.ones(num_features)
        self.dgamma: Float64 = np.zeros(num_features)
        self.dbeta: Float64 = np.zeros(num_features)
        self.dresidual: Array | None = None
        self._cache: functional.Cache | None = None

    def train(self, x: Array, residual: Array | None = None) -> Array:
        """Normalize by the batch, move the running statistics, keep what `backward` needs.

        Args, Returns, Raises: as for `batchnorm_train`; after an error nothing has moved.
        """
        call = "normwright.numpy.BatchNorm.train"
        x = self._checked(call, x)
        given = (self.gamma, self.beta, self._bn_param(), self.axis, self.activation, residual)
        y, moved, self._cache = functional.train(call, x, *given)
        self.running_mean, self.running_var = moved["running_mean"], moved["running_var"]
        return y

    def predict(self, x: Array, residual: Array | None = None, out: Array | None = None) -> Array:
        """Normalize by the running statistics, which stay as they are: as `batchnorm_predict`."""
        call = "normwright.numpy.BatchNorm.predict"
        x = self._checked(call, x)
        given = (self.gamma, self.beta, self._bn_param(), self.axis, self.activation, residual, out)
        return functional.predict(call, x, *given)

    def backward(self, dy: Array) -> Array:
        """dx for the last `train`; sets `dgamma`, `dbeta` and `dresidual`: as `batchnorm_backward_residual`."""
        call = "normwright.numpy.BatchNorm.backward"
        if self._cache is None:
            raise ShapeError(message(call, "a call of train before it", "none"))
        dx, self.dgamma, self.dbeta, self.dresidual = functional.backward(call, dy, self._cache)
        return dx

    def __repr__(self) -> str:
        options = f"eps={self.eps}, momentum={self.momentum}, axis={self.axis}"
        if self.activation is not None:
            options += f", activation={self.activation}"
        return f"BatchNorm({self.num_features}, {options})"

    def _checked(self, call: str, given: Any) -> Array:
        x = arguments.array(call, "x", given)
        arguments.check_channels(call, "x", self.num_features, x.shape, check_axis(call, x.shape, self.axis))
        return x

    def _bn_param(self) -> dict[str, Any]:
        names = ("eps", "momentum", "running_mean", "running_var")
        return {name: getattr(self, name) for name in names}
