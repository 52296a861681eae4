"""What memory allows: sweeps over as many bytes as a pass must read and write, on the very tensors of the case."""

from collections.abc import Mapping

import torch
from torch import Tensor

from normwright import _native
from normwright.bench.cases import BOTH, FORWARD, INFERENCE, Op, Pass
from normwright.bench.problem import Problem
from normwright.bench.timer import Contender, Timing, WrongValues

STORES = ("ordinary", "streaming")
# What a pass cannot do without. copy: read one, write one; triad: read two, write one; quad: read two, write two.
SWEEPS: dict[bool, dict[Pass, tuple[str, ...]]] = {
    False: {FORWARD: ("copy",), BOTH: ("copy", "triad"), INFERENCE: ("copy",)},
    True: {FORWARD: ("triad",), BOTH: ("triad", "quad"), INFERENCE: ("triad",)},
}


def sweeps(op: Op) -> dict[Pass, tuple[str, ...]]:
    """The sweeps of each pass."""
    return SWEEPS[op == "bn+add+relu"]


def contenders(given: Problem, op: Op) -> list[Contender]:
    """Each sweep by two kinds of stores. Half types are swept as floats too, two values in each."""
    x, dy = _flat(given.x), _flat(given.dy)
    out = torch.zeros_like(x)
    also = torch.zeros_like(x) if op == "bn+add+relu" else None
    arrays = {"copy": (x, None, out, None), "triad": (x, dy, out, None), "quad": (x, dy, out, also)}
    names = dict.fromkeys(name for of in sweeps(op).values() for name in of)
    return [_contender(f"{name} {stores}", *arrays[name], stores) for name in names for stores in STORES]


def best(timings: Mapping[str, Timing], op: Op, what: Pass) -> tuple[Timing, str]:
    """The sweeps of a pass one after the other, each with the better kind of stores, which are named."""
    total, chosen = None, []
    for sweep in sweeps(op)[what]:
        stores = min(STORES, key=lambda kind, sweep=sweep: timings[f"{sweep} {kind}"].median)  # type: ignore[misc]
        timing = timings[f"{sweep} {stores}"]
        total = timing if total is None else total.then(timing)
        chosen.append(stores)
    assert total is not None
    return total, ", ".join(chosen)


def _flat(t: Tensor) -> Tensor:
    """A tensor's memory as floats, an odd half at its end left out; a dense copy's where it has gaps."""
    t = t.detach()
    dense = t if t.numel() == t.untyped_storage().nbytes() // t.element_size() else t.contiguous()
    values = dense.as_strided((dense.numel(),), (1,))
    spare = values.numel() * values.element_size() % 4
    return values[: values.numel() - (spare > 0)].view(torch.float32)


def _contender(name: str, a: Tensor, b: Tensor | None, c: Tensor, d: Tensor | None, stores: str) -> Contender:
    from_a, from_b, to_c, to_d = (0 if t is None else t.data_ptr() for t in (a, b, c, d))
    n, streaming = a.numel(), stores == "streaming"

    def run() -> None:
        _native.memory_floor(from_a, from_b, to_c, to_d, n, streaming)

    def check() -> None:
        for written in (c, d):
            if written is not None:
                written.fill_(float("nan"))
        run()
        # Bits, for halves in pairs may be any float.
        right = _same_bits(c, a if b is None else a + b)
        if not right or (b is not None and d is not None and not _same_bits(d, a - b)):
            raise WrongValues(f"{name}: not the sum of what was read; it was not timed.")

    return Contender(name, run, check)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))
