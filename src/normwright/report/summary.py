"""From many records to one line: which records, their median and range, and the words for it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from normwright.report.records import Record, Scalar
from normwright.report.words import Say


def pick(records: Iterable[Record], what: str, **where: Scalar) -> list[Record]:
    """The records of `what` whose conditions are those of `where`, in their order."""
    return [r for r in records if r.what == what and all(r.where.get(k) == v for k, v in where.items())]


def values(records: Iterable[Record], what: str, **where: Scalar) -> list[float | None]:
    """The values of the records that `pick` picks."""
    return [r.value for r in pick(records, what, **where)]


def numbers(records: Iterable[Record], what: str, **where: Scalar) -> list[float]:
    """The values of the records that `pick` picks, all of which must have one.

    Raises:
        ValueError: nothing was picked, or a value is None.
    """
    found = [value for value in values(records, what, **where) if value is not None]
    if not found or len(found) != len(values(records, what, **where)):
        raise ValueError(
            f"numbers: expected a value in each record of {what!r} where {where}, got {len(found)}."
        )
    return found


@dataclass(frozen=True)
class Spread:
    """Lowest, middle and highest of a few measurements; None was never reached, and is above every number."""

    low: float | None
    middle: float | None
    high: float | None


def spread(measured: Sequence[float | None]) -> Spread:
    """Median and range, a None counted as larger than every number.

    >>> spread([40, None, 60])
    Spread(low=40, middle=60, high=None)

    Raises:
        ValueError: nothing was measured.
    """
    if not measured:
        raise ValueError("spread: expected at least one measurement, got none.")
    ordered = sorted(math.inf if value is None else value for value in measured)
    low, middle, high = (None if math.isinf(v) else v for v in (ordered[0], median(ordered), ordered[-1]))
    return Spread(low, middle, high)


@dataclass(frozen=True)
class Unit:
    """How a quantity is printed: times `scale`, in `form`, followed by `suffix`."""

    scale: float = 1.0
    form: str = "g"
    suffix: str = ""

    def number(self, value: float) -> str:
        """The number alone."""
        return format(self.scale * value, self.form)

    def __call__(self, value: float) -> str:
        """The number with its unit."""
        return self.number(value) + self.suffix


PERCENT = Unit(100, ".1f", " %")
WHOLE_PERCENT = Unit(100, ".0f", " %")
PLAIN = Unit()
SHORT = Unit(form=".3g")
TIMES = Unit(form=".2f", suffix="x")
MILLISECONDS = Unit(1000, ".2f", " ms")
SECONDS = Unit(form=".3g", suffix=" s")


def told(of: Spread, unit: Unit, say: Say) -> str:
    """Median and range in words; the range is left out where it has no width.

    >>> told(Spread(0.96, 0.97, 0.98), PERCENT, Say())
    '97.0 % (96.0–98.0)'
    >>> told(Spread(40, 60, None), PLAIN, Say())
    '60 (40–never)'
    """
    never = say("never", "从未达到")
    if of.middle is None:
        return never if of.low is None else f"{never} ({unit.number(of.low)}–{never})"
    low, high = (never if v is None else unit.number(v) for v in (of.low, of.high))
    return unit(of.middle) if low == high else f"{unit(of.middle)} ({low}–{high})"


def difference(value: float, say: Say) -> str:
    """The size of a difference that ought to be nothing.

    >>> difference(0.0, Say()), difference(3.8e-06, Say())
    ('exactly 0', '3.8e-06')
    """
    return say("exactly 0", "恰好为 0") if value == 0 else f"{value:.2g}" if value > 0.001 else f"{value:.1e}"
