"""The statistics of a whole data set, and input features standardized by them."""

from typing import Any, Self

import numpy as np

from normwright import kernels
from normwright.core.checks import DtypeError, ShapeError, check_axis, message
from normwright.core.moments import Moments
from normwright.numpy import arguments
from normwright.numpy.arguments import Array, Float64


class Population:
    """Exact mean and variance of a whole data set, batch by batch: one pass, constant memory.

    Whatever the batches' sizes and order, the result is that of all their values at once, up to rounding. It
    standardizes input features as well: see `standardize`.

    Args:
        axis: the channel axis of the batches.

    Numerics:
        Batches are merged by their count, mean and sum of squared deviations: nothing cancels at any mean.
        NaN or infinity in a channel stays in that channel's statistics.

    Source:
        Chan, Golub & LeVeque 1979. In place of Ioffe & Szegedy 2015, Algorithm 2, line 10, which leaves out
        the variance between batches.

    Example:
        >>> people = Population()  # age, price
        >>> for batch in (np.array([[20.0, 1e5], [40.0, 3e5]]), np.array([[60.0, 2e5]])):
        ...     people = people.add(batch)
        >>> people.count, people.mean, people.var(ddof=1)
        (3, array([4.e+01, 2.e+05]), array([4.e+02, 1.e+10]))
        >>> people.standardize(np.array([[40.0, 2e5]]))
        array([[0., 0.]])
    """

    def __init__(self, axis: int = 1) -> None:
        self.axis = axis
        self._moments: Moments | None = None

    def add(self, batch: Array) -> Self:
        """Take in a batch of any size, of any type that `batchnorm_train` takes.

        Returns:
            Itself, for chaining.

        Raises:
            DtypeError, ShapeError: as for `batchnorm_train`; other channels than before.
        """
        call = "normwright.numpy.Population.add"
        batch, axis = self._checked(call, "batch", batch)
        return self._take(call, kernels.best.moments(batch, axis))

    def merge(self, other: "Population") -> Self:
        """Take in all that `other` has seen, which stays as it is: for parts gathered by several workers.

        Returns:
            Itself, for chaining.

        Raises:
            DtypeError: `other` is no Population.
            ShapeError: it has other channels.
        """
        call = "normwright.numpy.Population.merge"
        if not isinstance(other, Population):
            raise DtypeError(message(call, "other to be a Population", type(other).__name__))
        return self if other._moments is None else self._take(call, other._moments)

    @property
    def count(self) -> int:
        """Values per channel so far."""
        return 0 if self._moments is None else int(self._moments.count)

    @property
    def mean(self) -> Float64:
        """(C,) float64. Raises ShapeError before the first value."""
        return np.array(self._known("normwright.numpy.Population.mean").mean, np.float64)

    def var(self, ddof: int = 0) -> Float64:
        """(C,) float64: biased, or the unbiased estimate with ddof=1. Raises ShapeError if count <= ddof."""
        return np.array(self._known("normwright.numpy.Population.var").var(ddof), np.float64)

    def std(self, ddof: int = 0) -> Float64:
        """(C,) float64, the square root of `var(ddof)`."""
        return np.sqrt(np.array(self._known("normwright.numpy.Population.std").var(ddof), np.float64))

    def standardize(self, x: Array) -> Array:
        """x with this population's mean taken off and divided by its deviation, channel by channel.

        (x - mean) / sqrt(var)     the population itself comes out with mean 0 and variance 1

        Args:
            x: of the types of `batchnorm_train`, with the population's channels.

        Returns:
            An array of x's shape and dtype. A channel that is constant in the population is centred and not
            divided: its value comes out as 0, up to the rounding of the mean, any other as its distance.

        Raises:
            DtypeError, ShapeError: as for `add`; before the first value.

        Numerics:
            Constant is a deviation of at most 8 roundings of the mean, which summing equal values can leave.
        """
        call = "normwright.numpy.Population.standardize"
        known = self._known(call)
        x, axis = self._checked(call, "x", x)
        var = known.var()
        constant = np.sqrt(var) <= 8 * 2.0**-53 * np.abs(known.mean)
        y: Array = kernels.best.forward_fixed(
            x, None, None, known.mean, np.where(constant, 1, var), 0.0, axis
        )
        return y

    def __repr__(self) -> str:
        channels = 0 if self._moments is None else self._moments.mean.size
        return f"<Population of {self.count} values in {channels} channels on axis {self.axis}>"

    def _checked(self, call: str, name: str, x: Any) -> tuple[Array, int]:
        x = arguments.array(call, name, x)
        axis = check_axis(call, x.shape, self.axis)
        if self._moments is not None:
            arguments.check_channels(call, name, self._moments.mean.size, x.shape, axis)
        return x, axis

    def _take(self, call: str, more: Moments) -> Self:
        if self._moments is None:
            self._moments = more
            return self
        if self._moments.mean.size != more.mean.size:
            expected = f"a population of {self._moments.mean.size} channels"
            raise ShapeError(message(call, expected, f"one of {more.mean.size}"))
        self._moments = self._moments.merge(more)
        return self

    def _known(self, call: str) -> Moments:
        if self._moments is None or self._moments.count == 0:
            raise ShapeError(
                message(call, "at least one value per channel", "none", remedy="Call add first.")
            )
        return self._moments
