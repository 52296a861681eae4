"""The NumPy door: batch normalization as functions, as an object, and the statistics of a whole data set.

Two words differ between frameworks, so this door says them once: `momentum` weighs the OLD running value
(PyTorch's weighs the new one; its 0.1 is 0.9 here), and the recorded variance is the biased one, by which
training normalizes.

x is an array of float32, float64, float16 or bfloat16 (of the package ml_dtypes), of rank 2 or more, its channels
on any axis, in any memory layout. It is never modified, unless it is given as `out`, too. What is returned for x
(y, dx, dresidual) has its dtype; what belongs to a channel (statistics, dgamma, dbeta) is float64. Half types are
computed in float32 and rounded once.

The addition of a residual and an activation can follow in the same pass over memory.
"""

from normwright.core.activation import Activation
from normwright.core.moments import Gradients
from normwright.numpy.functional import (
    Cache,
    batchnorm_backward,
    batchnorm_backward_residual,
    batchnorm_predict,
    batchnorm_train,
    batchnorm_train_cached,
)
from normwright.numpy.layer import BatchNorm
from normwright.numpy.population import Population

__all__ = [
    "Activation",
    "BatchNorm",
    "Cache",
    "Gradients",
    "Population",
    "batchnorm_backward",
    "batchnorm_backward_residual",
    "batchnorm_predict",
    "batchnorm_train",
    "batchnorm_train_cached",
]
