"""How running statistics move: the one place of the rule. Every door turns its own words into `rate`."""

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
