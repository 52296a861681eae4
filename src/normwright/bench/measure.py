"""One input, measured in this process: records."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from normwright import _native
from normwright.bench import floor, memory, peers
from normwright.bench.cases import BOTH, COMPILED, COUNTING, JAX, MEMORY, PASSES, PEAK, Op, bytes_moved
from normwright.bench.contenders import FEW, racers, tolerance, torch_step
from normwright.bench.job import Job
from normwright.bench.problem import Problem, problem
from normwright.bench.timer import Contender, Timing, WrongValues, race
from normwright.report.records import Record, Scalar

LETTING_GO = 0.05  # seconds: JAX frees what nobody holds any more on a thread of its own


def measure(job: Job, tell: Callable[[float], None] = lambda share: None) -> list[Record]:
    """The records of one input: what each contender takes and needs, and the floor beneath.

    Args:
        job: what.
        tell: called with the share that is over.

    Raises:
        WrongValues: a sweep of the floor does not do what it should. What a contender gets wrong is recorded.
    """
    use(job.threads)
    settle_allocator()
    given = problem(job.case)
    records: list[Record] = []
    for number, op in enumerate(job.ops):
        done = number / len(job.ops)
        if job.allocator == COUNTING:
            records += _counted(job, given, op)
            tell(done)
            continue
        records += _timed(
            job,
            given,
            op,
            lambda share, done=done: tell(done + share / len(job.ops)),  # type: ignore[misc]
        )
    return records


def _timed(job: Job, given: Problem, op: Op, tell: Callable[[float], None]) -> list[Record]:
    contenders, floors = _contenders(given, op, job.names), floor.contenders(given, op)
    refused: dict[str, str] = {}
    timings = race([*contenders, *floors], job.budget, tell=tell, refused=refused)
    for each in floors:
        if each.name in refused:
            raise WrongValues(refused[each.name])
    return _records(job, op, timings, refused)


def _counted(job: Job, given: Problem, op: Op) -> list[Record]:
    """The memory that a training step needs, where that can be counted; values are checked where it is timed."""
    records = []
    for contender in _contenders(given, op, job.names):
        name, _, what = contender.name.rpartition(" ")
        if what != BOTH:
            continue
        try:
            contender.run()
        except Exception:  # what does not compile has been told where it was timed
            continue
        if name == JAX:
            time.sleep(LETTING_GO)
        where = {**_conditions(job, op), "contender": name}
        records.append(Record(PEAK, memory.peak(contender.run), "bytes", where))
    return records


def use(threads: int | None) -> None:
    """Let torch and the native kernels use so many threads; None is as many as torch uses."""
    if threads is not None:
        torch.set_num_threads(threads)
    # One OpenMP library serves both wherever we have seen it; where it does not, both still get the same number.
    _native.set_threads(torch.get_num_threads())


def settle_allocator() -> None:
    """Bring glibc's moving threshold to where it ends up in any training: it keeps what is below 32 MB.

    The first release of a large block teaches glibc to keep blocks of that size, up to 32 MB; larger ones mostly go
    back to the system. Without this, the cost of a 16 MB output would depend on what measuring it has freed.
    """
    block = torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)
    del block


def _contenders(given: Problem, op: Op, names: Sequence[str]) -> list[Contender]:
    truth, found = cache(lambda: given.truth(op)), []
    for name in names:
        jax = name == JAX
        step = peers.jax_step(given, op, torch.get_num_threads()) if jax else torch_step(name, given, op)
        rounds = FEW if name in (COMPILED, JAX) else None
        found += racers(name, step, truth, tolerance(name, given), rounds)
    return found


def _conditions(job: Job, op: Op) -> dict[str, Scalar]:
    return {
        "shape": job.case.size,
        "layout": job.case.layout,
        "dtype": job.case.dtype,
        "op": op,
        "allocator": job.allocator,
        "threads": torch.get_num_threads(),
        "bytes": job.case.bytes,
    }


def _records(job: Job, op: Op, timings: Mapping[str, Timing], refused: Mapping[str, str]) -> list[Record]:
    records = []
    for what in PASSES:
        moved = {**_conditions(job, op), "bytes_moved": round(bytes_moved(job.case, op, what))}
        for name in job.names:
            who, where = f"{name} {what}", {**moved, "contender": name}
            if who in refused:
                records.append(Record(what, None, "seconds", {**where, "refused": refused[who]}))
                continue
            faults = {"page_faults": timings[who].page_faults}
            records.append(_record(what, timings[who], {**where, **faults}))
        best, stores = floor.best(timings, op, what)
        records.append(_record(f"floor {what}", best, {**moved, "contender": MEMORY, "stores": stores}))
    return records


def _record(what: str, timing: Timing, where: Mapping[str, Any]) -> Record:
    low, middle, high = (float(f"{seconds:.4g}") for seconds in timing.quartiles)
    spread = {"q25": low, "q75": high, "rounds": len(timing.samples)}
    return Record(what, middle, "seconds", {**where, **spread})
