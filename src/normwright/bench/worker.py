"""A process that measures, started with the allocator as it is to be measured; each input in a copy of it.

`python -m normwright.bench.worker` reads jobs, a line of JSON each (`Job.told`), and answers in lines of JSON: how
much of a job is over, then its records. Frameworks are loaded once; each job runs in a fork, made before anything
has run, so that every input meets the same process, and its memory is gone afterwards. Where forks are not safe
(not on Linux), jobs run here one after the other.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module

from normwright.bench.job import Job
from normwright.bench.timer import WrongValues
from normwright.report.records import Record

FORKS = sys.platform == "linux"


def main() -> int:
    """Answer every job; the names of contenders that take long to load stand in the command line."""
    from normwright.bench.measure import measure

    # What would else be loaded in every fork: by the first backward pass, and by the compiler.
    import_module("torch.fx.experimental.symbolic_shapes")
    if "torch.compile" in sys.argv:
        import_module("torch._inductor.compile_fx")
    for line in sys.stdin:
        job = Job.of(json.loads(line))
        if FORKS:
            _say(ended=_in_a_fork(lambda job=job: _answer(job, measure)))  # type: ignore[misc]
        else:
            _answer(job, measure)
            _say(ended=0)
    return 0


def _in_a_fork(work: Callable[[], None]) -> int:
    """Run `work` in a copy of this process; its exit status, or minus the signal that ended it."""
    from normwright import _native

    child = os.fork()
    if child:
        _, how = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(how)
    status = 1
    try:
        _native.trust_fork()  # nothing has run on threads here: without this, our side would use one
        work()
        status = 0
    except BrokenPipeError:
        pass  # whoever asked is gone
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(status)


def _answer(job: Job, measure: Callable[[Job, Callable[[float], None]], list[Record]]) -> None:
    told = 0.0

    def tell(share: float) -> None:
        nonlocal told
        if share >= told + 0.02:
            told = share
            _say(over=share)

    try:
        _say(over=0.0)
        records = measure(job, tell)
    except WrongValues as refusal:
        _say(refused=str(refusal))
    else:
        _say(records=[asdict(record) for record in records])


def _say(**message: object) -> None:
    sys.stdout.write(json.dumps(message, allow_nan=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
