"""The one timer: warm-up, contenders interleaved round by round, medians and quartiles."""

import gc
import random
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import numpy as np

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Clock = Callable[[], float]

# The first call of a contender finds its threads asleep, its code out of cache and the allocator without memory
# of this size; the second and third find glibc's threshold for handing memory back still moving.
WARM_UP_ROUNDS = 3


class WrongValues(Exception):  # noqa: N818  # a finding, and the words a user reads
    """A contender computed something else, so its time would mean nothing."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Contender:
    """One of those that are timed against each other.

    Attributes:
        name: unique in its race.
        run: what is timed. What it returns is let go only when the clock has stopped, so that giving memory back is
            nobody's time.
        check: raises WrongValues; called once, before anything is timed.
        reset: undoes a run, untimed.
        rounds: it sits out after so many; None is as many as there are.
    """

    name: str
    run: Callable[[], object]
    check: Callable[[], None]
    reset: Callable[[], None] = _nothing
    rounds: int | None = None


class Budget(NamedTuple):
    """How long a race goes on: about `seconds`, but at least `least` rounds and at most `most`."""

    seconds: float
    least: int
    most: int

    def share(self, rounds: int, seconds: float) -> float:
        """How much of the race is over after so many rounds and seconds; 1 is its end.

        >>> [Budget(10, least=5, most=100).share(n, n) for n in (1, 10)], Budget(10, 5, 100).share(4, 60)
        ([0.1, 1.0], 0.8)
        """
        return min(1.0, max(rounds / self.most, min(rounds / self.least, seconds / (self.seconds or 1e-9))))


@dataclass(frozen=True)
class Timing:
    """What one contender took, one number a round.

    Attributes:
        samples: seconds.
        faults: pages that the system had to hand out meanwhile; None where it does not tell. They show the
            allocator's state: none when warm, one for each 4 KB (or huge page) of fresh output else.
    """

    samples: tuple[float, ...]
    faults: tuple[int, ...] | None = None

    @property
    def median(self) -> float:
        """The middle of the samples."""
        return self.quartiles[1]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """A quarter, half and three quarters of the samples lie below these."""
        low, middle, high = np.percentile(self.samples, [25, 50, 75]).tolist()
        return low, middle, high

    @property
    def page_faults(self) -> int | None:
        """The median of the faults."""
        return None if self.faults is None else int(np.median(self.faults))

    def then(self, other: "Timing") -> "Timing":
        """The seconds of one after the other, round by round."""
        return Timing(tuple(a + b for a, b in zip(self.samples, other.samples, strict=True)))


def race(
    contenders: Sequence[Contender],
    budget: Budget,
    *,
    clock: Clock = perf_counter,
    tell: Callable[[float], None] = lambda share: None,
    refused: MutableMapping[str, str] | None = None,
) -> dict[str, Timing]:
    """Check every contender, warm all up, then time each once a round.

    Args:
        contenders: with different names.
        budget: for the timed rounds.
        clock: seconds.
        tell: called between rounds with the share of the race that is over.
        refused: where the words of those are put who compute something else; the race goes on without them.

    Raises:
        WrongValues: from a contender's check, where there is no `refused`; nothing has been timed then.
    """
    contenders = [each for each in contenders if _is_right(each, refused)]
    samples: dict[str, list[tuple[float, int | None]]] = {contender.name: [] for contender in contenders}
    # A new order each round (the same in every run), so that nobody always runs on the cache that one other left.
    shuffle = random.Random(0).shuffle
    order = list(contenders)
    with _no_garbage_collection():
        for _ in range(WARM_UP_ROUNDS):
            for contender in contenders:
                _time(contender, clock)
        began, over, rounds = clock(), 0.0, 0
        while over < 1:
            shuffle(order)
            for contender in order:
                if contender.rounds is None or rounds < contender.rounds:
                    samples[contender.name].append(_time(contender, clock))
            rounds += 1
            over = budget.share(rounds, clock() - began)
            tell(over)
    return {name: _timing(both) for name, both in samples.items()}


def _is_right(contender: Contender, refused: MutableMapping[str, str] | None) -> bool:
    try:
        contender.check()
    except WrongValues as words:
        if refused is None:
            raise
        refused[contender.name] = str(words)
        return False
    finally:
        contender.reset()
    return True


def _time(contender: Contender, clock: Clock) -> tuple[float, int | None]:
    faults = _page_faults()
    began = clock()
    result = contender.run()
    seconds = clock() - began
    more = _page_faults()
    del result
    contender.reset()
    return seconds, None if faults is None or more is None else more - faults


def _timing(samples: Sequence[tuple[float, int | None]]) -> Timing:
    faults = tuple(count for _, count in samples if count is not None)
    return Timing(tuple(seconds for seconds, _ in samples), faults or None)


def _page_faults() -> int | None:
    return None if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
