"""How running statistics move: the one place of the rule. Every door turns its own words into `rate`."""

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar


class _Linear(Protocol):
    """What has + and *: an array, a tensor, a number."""

    def __add__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...


T = TypeVar("T", bound=_Linear)


def update(running: T, batch: T, rate: float) -> T:
    """The running statistic after one more batch.

    running <- (1 - rate) * running + rate * batch

    Args:
        running: the statistic so far, any shape.
        batch: the same statistic of the new batch.
        rate: weight of the NEW batch, from 0 to 1; 1/k at the k-th batch gives the plain mean of all k.

    Returns:
        A new value; neither argument is modified.

    Source:
        Ioffe & Szegedy 2015, section 3.1 ("using moving averages instead").

    Example:
        >>> update(1.0, 5.0, rate=0.25)
        2.0
    """
    moved: T = (1 - rate) * running + rate * batch
    return moved


def debiased(rate: float, k: Any, expm1: Callable[[Any], Any] = math.expm1) -> Any:
    """The rate of the k-th batch by which a moving average holds its batches alone, nothing of where it began.

    rate_k = rate / (1 - (1 - rate)^k) = 1 / (1 + (1 - rate) + ... + (1 - rate)^(k - 1))

    After t batches the statistic is sum_k rate (1 - rate)^(t - k) batch_k / (1 - (1 - rate)^t): the mean of the
    batches, weighted as the moving average weighs them. The first rate is 1; they fall towards `rate`.

    Args:
        rate: weight of the NEW batch in the moving average, from 0 to 1. At 0 nothing moves, and the result is 0.
        k: which batch it is, counted from 1: a number, or whatever has -, * and / and is a floating point one.
        expm1: e^x - 1 of what k is. Default that of numbers.

    Returns:
        What k is, from `rate` to 1, and exactly 1 at k = 1; `rate` itself where that is 0 or 1.

    Numerics:
        Nothing cancels: a few roundings of k's type, for any rate.

    Source:
        Kingma & Ba 2015, section 3 (the same correction for Adam's moments).

    Example:
        >>> running = 0.0
        >>> for k, batch in enumerate([10.0, 10.0, 30.0], start=1):
        ...     running = update(running, batch, debiased(0.5, k))
        >>> round(running, 6), round((0.125 * 10 + 0.25 * 10 + 0.5 * 30) / (1 - 0.5**3), 6)
        (21.428571, 21.428571)
    """
    if rate == 0 or rate == 1:
        return rate
    return 1 / (1 - (1 - rate) / rate * expm1((k - 1) * math.log1p(-rate)))
