"""What a batch says about each channel: how many values, their mean, their spread. Merging is exact."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normwright.core.checks import ShapeError, message

FloatArray = NDArray[np.floating[Any]]


class Saved(NamedTuple):
    """What a forward pass in training keeps for the backward pass, beside x itself.

    Attributes:
        mean: (C,) float64.
        mean_tail: (C,) float64; mean + mean_tail is the mean to more digits than one double holds.
        m2: (C,) float64, sum of squared deviations; m2 / count is the biased variance.
        rstd: (C,) float64, 1 / sqrt(m2 / count + eps).
        count: values per channel.
        bits: one bit per value, written by kernels that tell an activation's derivative by it after a residual;
            the backward pass then does without the residual. None elsewhere.
    """

    mean: FloatArray
    mean_tail: FloatArray
    m2: FloatArray
    rstd: FloatArray
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks of this
    bits: bytearray | None = None


class Gradients(NamedTuple):
    """What a backward pass returns.

    Attributes:
        dx: of x's shape.
        dgamma, dbeta: (C,) float64.
        dresidual: of x's shape; None where the forward pass had no residual.
    """

    dx: NDArray[Any]
    dgamma: NDArray[Any]
    dbeta: NDArray[Any]
    dresidual: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of each channel.

    Attributes:
        count: values per channel (one number for all channels); a float where values carry weights.
        mean: (C,) float64.
        m2: (C,) float64, sum (x - mean)^2. Not divided: whether the variance is biased is decided by `var`.

    Example:
        >>> a = Moments(2, np.array([1.0]), np.array([2.0]))  # of the values 0, 2
        >>> b = Moments(1, np.array([4.0]), np.array([0.0]))  # of the value 4
        >>> a.merge(b)
        Moments(count=3, mean=array([2.]), m2=array([8.]))
    """

    count: int | float
    mean: FloatArray
    m2: FloatArray

    @classmethod
    def empty(cls, channels: int) -> "Moments":
        """The moments of no values: count 0 and zeros of shape (channels,); merging them changes nothing."""
        return cls(0, np.zeros(channels), np.zeros(channels))

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of values together.

        n = n_a + n_b,  d = mean_b - mean_a
        mean = mean_a + d * n_b / n
        m2   = m2_a + m2_b + d^2 * n_a * n_b / n

        Args:
            other: moments of the same channels.

        Returns:
            Moments; an empty side leaves the other side unchanged, to the bit.

        Raises:
            ShapeError: the two sides have different numbers of channels.

        Numerics:
            Every term of m2 is positive: nothing cancels, whatever the means. The order of merging changes
            the result by rounding alone; fix it where the same bits are wanted.

        Source:
            Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
            variances", Stanford STAN-CS-79-773, 1979.
        """
        if self.mean.shape != other.mean.shape:
            expected = f"moments of {self.mean.size} channels"
            raise ShapeError(message("Moments.merge", expected, f"moments of {other.mean.size}"))
        if other.count == 0:
            return self
        if self.count == 0:
            return other
        count = self.count + other.count
        d = other.mean - self.mean
        shift = d * other.count / count
        return Moments(count, self.mean + shift, self.m2 + other.m2 + d * shift * self.count)

    def var(self, ddof: int | float = 0) -> FloatArray:
        """The variance of each channel.

        var = m2 / (count - ddof)

        Args:
            ddof: 0 for the biased variance, by which BN normalizes; 1 for the unbiased estimate.

        Returns:
            (C,) float64.

        Raises:
            ShapeError: count <= ddof, so there is nothing to divide by.

        Example:
            >>> Moments(3, np.array([2.0]), np.array([8.0])).var(ddof=1)
            array([4.])
        """
        if self.count - ddof <= 0:
            expected = f"more than {ddof} values per channel with ddof={ddof}"
            raise ShapeError(message("Moments.var", expected, str(self.count)))
        return self.m2 / (self.count - ddof)
