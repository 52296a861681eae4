"""`verify_sync`: whether these processes, on these machines, equal one process on all their batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from normwright import __version__
from normwright.core.checks import DtypeError, ShapeError, message
from normwright.core.moments import FloatArray
from normwright.kernels import NATIVE
from normwright.torch.arguments import check_flag
from normwright.torch.distributed.joined import (
    EPS,
    MOMENTUM,
    Case,
    Farthest,
    Joined,
    Line,
    counts,
    farthest,
    joined,
    lines,
    plan,
    widened,
)
from normwright.torch.distributed.ranks import Facts, Group, Ranks
from normwright.torch.distributed.sync_report import Distance, SyncCase, SyncReport
from normwright.torch.modules import BatchNorm1d, BatchNorm2d
from normwright.torch.progress import Tell, Told

_CALL = "normwright.torch.verify_sync"


def verify_sync(
    group: Group = "world",
    *,
    device: torch.device | str | None = None,
    compiled: bool = False,
    progress: bool | Tell | None = None,
) -> SyncReport:
    """Whether layers with sync on these ranks equal one process on the joined batch; takes seconds.

    y, dx                                  of each rank: its rows of what one process has
    sum over ranks of dweight, and dbias   what one process has
    running_mean, running_var, counter     what one process has, and the same bits on all ranks

    Every rank makes the whole batch, from one seed, keeps its share, and takes one training step of a layer with
    sync. What one process has, each computes for itself by the definition, in float64, without any message. The
    cases: four layouts; as many samples on each rank, uneven ones, one each, none on some, all on one; float64,
    float32, bfloat16, float16; ReLU, and an addition before it; means of 1e3 and 1e6 deviations.

    Args:
        group: "world", a ProcessGroup, or None, this process alone. Default "world". Every process of it must call.
        device: where the layers run. Default None: the present device of the accelerator whose backend the group
            has (CUDA for NCCL), else the CPU.
        compiled: torch.compile the layers, without a graph break, in four cases: a minute. Default False.
        progress: of rank 0. True for a bar, False for none, None for one where stderr is a terminal and it takes
            longer than 2 seconds; or a function of (cases done, cases in all). Default None.

    Returns:
        SyncReport, the same on every rank: `.ok`, `.cases`; `print` shows a table.

    Raises:
        ShapeError, DtypeError: an argument is not what it must be, nothing is initialized, or the ranks differ in
            arguments, in the version of this package, or in whether it has kernels.
        SyncError: a process did not take part. RuntimeError: an argument was wrong in another process.

    Numerics:
        What is allowed, element by element. float64: 1e-12 of the terms that are added, and of an x_hat near 0
        1e-12, at any mean: ranks tell their means to more digits than one double has. (docs/numerics.md promises
        less for float64 at large means than layers keep; this asks for what they keep.) float32 on a CPU: the lines
        of docs/numerics.md, 8 * 2^-24 of the terms. Compiled, on another device, or without kernels, operations add
        as float32: 8 + 2 sqrt(m) in place of 8, with m values per channel, and an x_hat near 0 has the error of its
        mean. Half types: as float32, and rounded once.

    Example:
        >>> report = verify_sync(group=None)  # "world" in a job of several processes
        >>> report.ok, report.ranks
        (True, 1)
    """
    ranks = Ranks(_CALL, group)
    within = dist.group.WORLD if isinstance(group, str) else group
    asked: list[Any] = []

    def look() -> Facts:
        check_flag(_CALL, "compiled", compiled)
        place = _place(within, device)
        asked.extend((place, Told(_CALL, progress if ranks.rank == 0 else False)))
        if ranks.rank:
            Told(_CALL, progress)  # an error everywhere, or nowhere
        return {"device": place.type, "compiled": compiled, "version": __version__, "kernels": NATIVE}

    ranks.agree(look, torch.device("cpu"))
    place, told = asked
    strict = NATIVE and place.type == "cpu" and not compiled
    cases = plan(ranks.size, few=compiled)
    mine, sums = [], []
    with told, _by_default(place):
        told.expect(len(cases), "cases")
        for case in cases:
            whole = joined(case, ranks.size)
            truth = lines(case, whole, strict)
            mine.append(_found(case, whole, truth, ranks, group, place, compiled))
            sums.append({name: truth[name] for name in ("dweight", "dbias")})
            told.step()
        everybody = ranks.gather(lambda: mine)
    found = tuple(_judged(*each) for each in zip(cases, sums, zip(*everybody, strict=True), strict=True))
    backend = "" if within is None else _backends(within).get(place.type, "")
    return SyncReport(ranks.size, place.type, backend, compiled, found)


def _backends(group: Any) -> dict[str, str]:
    """The backend of each kind of device of a group."""
    pairs = (pair.partition(":") for pair in dist.get_backend_config(group).split(","))
    return {kind: backend for kind, _, backend in pairs}


def _place(group: Any, device: Any) -> torch.device:
    """Where the layers run."""
    if device is not None:
        if not isinstance(device, torch.device | str):
            raise DtypeError(message(_CALL, "device to be a torch.device or its name", repr(device)))
        try:
            place = torch.device(device)
        except RuntimeError as error:
            raise ShapeError(message(_CALL, "device to be one of torch's", repr(device))) from error
        if group is not None and place.type not in _backends(group):
            expected = f"device to be one of the group's, {' or '.join(_backends(group))}"
            raise ShapeError(message(_CALL, expected, repr(str(device))))
        return place
    kinds = {} if group is None else _backends(group)
    for kind, backend in kinds.items():
        # gloo carries what is on a GPU by way of the CPU: such a group is one of CPUs
        if kind != "cpu" and backend not in ("gloo", "mpi") and torch.get_device_module(kind).is_available():
            return torch.device(kind, torch.get_device_module(kind).current_device())
    return torch.device("cpu")


@contextmanager
def _by_default(place: torch.device) -> Iterator[None]:
    """Whatever the caller has switched on around this is off."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(place.type, enabled=False):
        yield


class _Found(NamedTuple):
    """What a rank tells the others of a case.

    Attributes:
        farthest: by quantity, of what it can compare alone.
        dweight, dbias: its parts of the sums.
        statistics: a digest of their bits.
    """

    farthest: dict[str, Farthest]
    dweight: FloatArray
    dbias: FloatArray
    statistics: bytes


def _found(
    case: Case, whole: Joined, truth: dict[str, Line], ranks: Ranks, sync: Group, place: torch.device,
    compiled: bool,
) -> _Found:  # fmt: skip
    """One training step of this rank's share, beside one process's."""
    ends = [0, *accumulate(counts(case.samples, ranks.size))]
    rows = slice(ends[ranks.rank], ends[ranks.rank + 1])
    layer, got = _step(case, whole, rows, sync, place, compiled)
    statistics = [layer.running_mean, layer.running_var, layer.num_batches_tracked]
    held = [widened(t) for t in statistics if t is not None]
    worst = {name: farthest(widened(t), truth[name], rows) for name, t in got.items() if t is not None}
    for name, array in zip(("running_mean", "running_var"), held, strict=False):
        worst[name] = farthest(array, truth[name])
    worst["num_batches_tracked"] = Farthest(abs(float(held[2]) - 1), 0.0)
    bits = sha256(b"".join(t.cpu().numpy().tobytes() for t in statistics if t is not None)).digest()
    return _Found(worst, widened(layer.weight.grad), widened(layer.bias.grad), bits[:8])


def _step(
    case: Case, whole: Joined, rows: slice, sync: Group, place: torch.device, compiled: bool
) -> tuple[Any, dict[str, Tensor | None]]:
    """The layer after the step, and what is like x."""
    kind = BatchNorm2d if len(whole.x.shape) == 4 else BatchNorm1d
    options: dict[str, Any] = {"eps": EPS, "momentum": MOMENTUM, "device": place, "dtype": case.held}
    layer = kind(whole.x.shape[1], **options, activation=case.activation, sync=sync)
    with torch.no_grad():
        layer.weight.copy_(whole.weight)
        layer.bias.copy_(whole.bias)
    x, dy = (t[rows].to(place) for t in (whole.x, whole.dy))
    x.requires_grad_()
    residual = None if whole.residual is None else whole.residual[rows].to(place).requires_grad_()
    called = torch.compile(layer, fullgraph=True) if compiled else layer
    y = called(x, residual)
    y.backward(dy)
    return layer, {"y": y, "dx": x.grad, "dresidual": None if residual is None else residual.grad}


def _judged(case: Case, sums: dict[str, Line], everybody: Sequence[_Found]) -> SyncCase:
    """What all ranks have found, in one."""
    distances = []
    for quantity in ("y", "dx", "dresidual", "running_mean", "running_var", "num_batches_tracked"):
        each = [found.farthest[quantity] for found in everybody if quantity in found.farthest]
        if each:
            rank = int(np.argmax([one.share for one in each]))
            distances.append(Distance(quantity, rank, *each[rank]))
    for quantity, line in sums.items():
        total = np.sum([getattr(found, quantity) for found in everybody], axis=0)
        distances.append(Distance(quantity, None, *farthest(total, line)))
    first = everybody[0].statistics
    differing = tuple(rank for rank, found in enumerate(everybody) if found.statistics != first)
    return SyncCase(case, tuple(distances), differing)
