"""One case in a process of its own, which was started with the allocator as it is to be measured.

`python -m normwright.bench.worker JOB` with a JOB as `Job.dumps` writes it; answers in lines of JSON.
"""

import json
import sys
from dataclasses import asdict, dataclass

from normwright.bench.cases import Case
from normwright.bench.timer import Budget, WrongValues

REFUSED = 3  # exit status


@dataclass(frozen=True)
class Job:
    """What a worker is to measure. The allocator's state is set by its environment; here it has its name."""

    case: Case
    budget: Budget
    allocator: str
    threads: int | None

    def dumps(self) -> str:
        """As one line."""
        return json.dumps({**asdict(self), "budget": list(self.budget)})

    @classmethod
    def loads(cls, line: str) -> "Job":
        """From that line."""
        told = json.loads(line)
        case = Case(**{**told["case"], "shape": tuple(told["case"]["shape"])})
        return cls(case, Budget(*told["budget"]), told["allocator"], told["threads"])


def _say(**message: object) -> None:
    sys.stdout.write(json.dumps(message, allow_nan=False) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Measure; the last line holds the records, each before it how much is over."""
    from normwright.bench.measure import measure

    job = Job.loads(sys.argv[1])
    told = 0.0

    def tell(share: float) -> None:
        nonlocal told
        if share >= told + 0.02:
            told = share
            _say(over=share)

    try:
        _say(over=0.0)
        records = measure(job.case, job.budget, allocator=job.allocator, threads=job.threads, tell=tell)
    except WrongValues as refusal:
        _say(refused=str(refusal))
        return REFUSED
    _say(records=[asdict(record) for record in records])
    return 0


if __name__ == "__main__":
    sys.exit(main())
