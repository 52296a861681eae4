"""The NumPy door: batch normalization as functions, as an object, and the statistics of a whole data set.

Two words differ between frameworks, so this door says them once: `momentum` weighs the OLD running value
(PyTorch's weighs the new one; its 0.1 is 0.9 here), and the recorded variance is the biased one, by which
training normalizes.

x is a float32 or float64 array of rank 2 or more, its channels on any axis, in any memory layout. It is
never modified. What is returned for x (y, dx) has its dtype; what belongs to a channel (statistics, dgamma,
dbeta) is float64.
"""

from normwright.numpy.functional import (
    Cache,
    batchnorm_backward,
    batchnorm_predict,
    batchnorm_train,
    batchnorm_train_cached,
)
from normwright.numpy.layer import BatchNorm
from normwright.numpy.population import Population

__all__ = [
    "BatchNorm",
    "Cache",
    "Population",
    "batchnorm_backward",
    "batchnorm_predict",
    "batchnorm_train",
    "batchnorm_train_cached",
]
