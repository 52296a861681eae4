"""The result of one experiment: its records and what was chosen beforehand, as its card reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normwright.report import summary
from normwright.report.records import Record, Scalar
from normwright.report.summary import Spread


@dataclass(frozen=True)
class Result:
    """One experiment of a results file.

    Attributes:
        name: the experiment's.
        records: its records alone.
        settings: its plan, as JSON.
        command: measures it again.
    """

    name: str
    records: Sequence[Record]
    settings: Mapping[str, Any]
    command: str

    def pick(self, what: str, **where: Scalar) -> list[Record]:
        """See `summary.pick`."""
        return summary.pick(self.records, what, **where)

    def values(self, what: str, **where: Scalar) -> list[float | None]:
        """See `summary.values`."""
        return summary.values(self.records, what, **where)

    def numbers(self, what: str, **where: Scalar) -> list[float]:
        """See `summary.numbers`: all of them numbers, and at least one."""
        return summary.numbers(self.records, what, **where)

    def number(self, what: str, **where: Scalar) -> float:
        """The one number of these conditions."""
        (value,) = self.numbers(what, **where)
        return value

    def spread(self, what: str, **where: Scalar) -> Spread:
        """Median and range of the values; a None counts as larger than every number."""
        return summary.spread(self.values(what, **where))

    def each(self, what: str, name: str, **where: Scalar) -> list[Any]:
        """The different values of the condition `name` among these records, in order of appearance."""
        return list(dict.fromkeys(record.where.get(name) for record in self.pick(what, **where)))

    def curves(
        self, what: str, along: str, per: str = "seed", **where: Scalar
    ) -> tuple[list[float], list[list[float | None]]]:
        """Values along one condition, a row for each value of another: ``(points,)`` and ``(rows, points)``.

        A point that a row lacks is None.
        """
        found = {(r.where.get(per), r.where.get(along)): r.value for r in self.pick(what, **where)}
        points = sorted({float(point) for _, point in found if point is not None})
        rows = list(dict.fromkeys(row for row, _ in found))
        return points, [[found.get((row, point)) for point in points] for row in rows]
