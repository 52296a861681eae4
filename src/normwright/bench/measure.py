"""One case, measured in this process: records."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from normwright import _native
from normwright.bench.cases import Case
from normwright.bench.contenders import BOTH, FORWARD, LAYERS, PASSES, STORES, floor, layers, problem
from normwright.bench.timer import Budget, Timing, race
from normwright.report.records import Record

# Tensors that must be read or written at the least: x, y; and in backward x, dy, dx.
LEAST_MOVED = {FORWARD: 2, BOTH: 5}


def measure(
    case: Case,
    budget: Budget,
    *,
    allocator: str,
    threads: int | None = None,
    tell: Callable[[float], None] = lambda share: None,
) -> list[Record]:
    """The records of one case: what each layer takes, and the floor beneath it.

    Args:
        case: what.
        budget: for how long.
        allocator: in which state this process has it; recorded, not arranged.
        threads: how many; None is as many as torch uses.
        tell: called with the share that is over.

    Raises:
        WrongValues: a contender does not compute what it should.
    """
    use(threads)
    settle_allocator()
    given = problem(case)
    timings = race([*layers(case, given), *floor(given)], budget, tell=tell)
    shared = {
        "shape": case.size,
        "layout": case.layout,
        "dtype": "float32",
        "bytes": case.bytes,
        "allocator": allocator,
        "threads": torch.get_num_threads(),
    }
    records = []
    for what in PASSES:
        moved = {**shared, "bytes_moved": LEAST_MOVED[what] * case.bytes}
        for library in LAYERS:
            timing = timings[f"{library} {what}"]
            where = {**moved, "contender": library, "page_faults": timing.page_faults}
            records.append(_record(what, timing, where))
        best, stores = _floor(timings, what)
        records.append(_record(f"floor {what}", best, {**moved, "contender": "memory", "stores": stores}))
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


def _floor(timings: Mapping[str, Timing], what: str) -> tuple[Timing, str]:
    """The sweeps that `what` cannot do without, each with the better kind of stores, which are named."""
    sweeps = {FORWARD: ("copy",), BOTH: ("copy", "triad")}[what]
    total, chosen = None, []
    for sweep in sweeps:
        stores = min(STORES, key=lambda kind, sweep=sweep: timings[f"{sweep} {kind}"].median)  # type: ignore[misc]
        best = timings[f"{sweep} {stores}"]
        total = best if total is None else total.then(best)
        chosen.append(stores)
    assert total is not None
    return total, ", ".join(chosen)


def _record(what: str, timing: Timing, where: Mapping[str, Any]) -> Record:
    low, middle, high = timing.quartiles
    spread = {"q25": low, "q75": high, "rounds": len(timing.samples)}
    return Record(what, middle, "seconds", {**where, **spread})
