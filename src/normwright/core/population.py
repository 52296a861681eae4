"""What the batches of a whole data set say together: three ways to put their moments together, batch by batch.

Each keeps a few numbers a channel, however many batches there are.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, Self

from normwright.core.moments import FloatArray, Moments
from normwright.core.running import update


class Statistics(NamedTuple):
    """What a layer normalizes by.

    Attributes:
        mean, var: (C,) float64.
    """

    mean: FloatArray
    var: FloatArray


class Population(Protocol):
    """Takes in the moments of batches and knows the statistics of all of them."""

    def add(self, batch: Moments) -> None:
        """Take in one batch of at least one value (where each batch counts alone: of more than ddof)."""

    def merge(self, other: Self) -> None:
        """Take in what another process has seen."""

    def statistics(self) -> Statistics:
        """Mean and variance of what was taken in."""


class Pooled:
    """All values of all batches count alike: the mean and variance of the data set itself.

    mean, m2 = the merged moments of all batches;  var = m2 / (count - ddof)

    Args:
        channels: C.
        ddof: 1 for the unbiased variance, 0 for the biased one.

    Source:
        Chan, Golub & LeVeque 1979 (see `Moments.merge`).

    Example:
        >>> import numpy as np
        >>> data = Pooled(channels=1, ddof=0)
        >>> data.add(Moments(2, np.array([1.0]), np.array([2.0])))  # 0, 2
        >>> data.add(Moments(1, np.array([4.0]), np.array([0.0])))  # 4
        >>> data.statistics().mean
        array([2.])
    """

    def __init__(self, channels: int, ddof: int) -> None:
        self.moments, self.ddof = Moments.empty(channels), ddof

    def add(self, batch: Moments) -> None:
        """Merge a batch."""
        self.moments = self.moments.merge(batch)

    def merge(self, other: Self) -> None:
        """Merge all of another's batches."""
        self.moments = self.moments.merge(other.moments)

    def statistics(self) -> Statistics:
        """Raises ShapeError where there are not more than ddof values."""
        return Statistics(self.moments.mean, self.moments.var(self.ddof))


class BatchMeans:
    """The mean of the batches' own statistics, as the paper has it.

    mean = mean of mean_B;  var = mean of m_B / (m_B - 1) * var_B   (of var_B alone with ddof 0)

    Batches count alike, whatever their size, and the variance between their means is left out.

    Args:
        channels: C.
        ddof: 1 for the paper's unbiased variance, 0 for the biased one.

    Source:
        Ioffe & Szegedy 2015, Algorithm 2, line 10.
    """

    def __init__(self, channels: int, ddof: int) -> None:
        none = Moments.empty(channels)
        self.batches, self.ddof = 0, ddof
        self._mean, self._var = none.mean, none.m2  # sums over the batches

    def add(self, batch: Moments) -> None:
        """Raises ShapeError where the batch has not more than ddof values."""
        self._mean, self._var = self._mean + batch.mean, self._var + batch.var(self.ddof)
        self.batches += 1

    def merge(self, other: Self) -> None:
        """Take in all of another's batches."""
        self._mean, self._var = self._mean + other._mean, self._var + other._var
        self.batches += other.batches

    def statistics(self) -> Statistics:
        """Of at least one batch."""
        return Statistics(self._mean / self.batches, self._var / self.batches)


class Moving:
    """The moving average of training, over the given batches in their order.

    running <- (1 - rate) * running + rate * batch

    Args:
        start: the statistics before the first batch.
        rate: weight of the k-th batch, k from 1.
        ddof: 1 for the unbiased variance of each batch, 0 for the biased one.

    Source:
        Ioffe & Szegedy 2015, section 3.1; see `core.running.update`.
    """

    def __init__(self, start: Statistics, rate: Callable[[int], float], ddof: int) -> None:
        self._now, self._rate, self.batches, self.ddof = start, rate, 0, ddof

    def add(self, batch: Moments) -> None:
        """Move by one batch. Raises ShapeError where it has not more than ddof values."""
        self.batches += 1
        rate, var = self._rate(self.batches), batch.var(self.ddof)
        mean = update(self._now.mean, batch.mean, rate)
        self._now = Statistics(mean, update(self._now.var, var, rate))

    def merge(self, other: Self) -> None:
        """Nothing, where the other has no batches: an average in order of the batches has no other order."""
        assert not other.batches

    def statistics(self) -> Statistics:
        """Where the average stands."""
        return self._now


def with_prior(old: Statistics, prior: float, new: Statistics, samples: int) -> Statistics:
    """New statistics of n `samples`, in which the old ones count as N = `prior` samples.

    mean = N/(N+n) * old mean + n/(N+n) * new mean;  var alike

    Args:
        old, new: of the same channels, their variances of the same kind.
        prior: N >= 0; 0 leaves the new ones.
        samples: n > 0.

    Returns:
        Statistics. The distance between the two means does not enter the variance: they are two estimates of
        one domain, and not two parts of one data set.

    Source:
        Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift adaptation",
        section 3; with N = 0 it is AdaBN (Li et al. 2016).

    Example:
        >>> import numpy as np
        >>> old = Statistics(np.array([0.0]), np.array([1.0]))
        >>> with_prior(old, 16, Statistics(np.array([4.0]), np.array([3.0])), samples=16)
        Statistics(mean=array([2.]), var=array([2.]))
    """
    rate = samples / (prior + samples)
    return Statistics(update(old.mean, new.mean, rate), update(old.var, new.var, rate))
