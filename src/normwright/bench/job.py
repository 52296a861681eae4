"""What one process is to measure, as it is handed over."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from normwright.bench.cases import Case, Op
from normwright.bench.timer import Budget


@dataclass(frozen=True)
class Job:
    """One input, and what is to be found out about it.

    Attributes:
        case: the input.
        ops: what is done with it.
        names: the contenders.
        budget: for each of `ops`.
        allocator: the state it is in; recorded, not arranged.
        threads: how many; None is as many as torch uses.
    """

    case: Case
    ops: tuple[Op, ...]
    names: tuple[str, ...]
    budget: Budget
    allocator: str
    threads: int | None = None

    def told(self) -> dict[str, Any]:
        """As JSON knows it."""
        return {**asdict(self), "budget": list(self.budget)}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Job":
        """From what `told` says."""
        case = Case(**{**told["case"], "shape": tuple(told["case"]["shape"])})
        ops, names = tuple(told["ops"]), tuple(told["names"])
        return cls(case, ops, names, Budget(*told["budget"]), told["allocator"], told["threads"])
