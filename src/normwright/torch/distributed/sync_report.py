"""What `verify_sync` found: in each case how far each quantity was from one process's, on which rank."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from normwright.torch.distributed.joined import Case, Farthest

if TYPE_CHECKING:
    from normwright.report.document import Table
    from normwright.report.records import Record

_COLUMNS = {  # num_batches_tracked is told where it is wrong
    "y": "y",
    "dx": "dx",
    "dresidual": "dresidual",
    "dweight": "dweight",
    "dbias": "dbias",
    "running_mean": "mean",
    "running_var": "var",
}


@dataclass(frozen=True)
class Distance:
    """How far a quantity was from what one process has, where it used the largest share of what is allowed.

    Attributes:
        quantity: "y", "dx", "dresidual", "dweight", "dbias", "running_mean", "running_var", "num_batches_tracked".
        rank: where that was; None for a sum over all ranks.
        off: the distance; for half types without the one rounding that they have; NaN where a result was.
        allowed: at most, for this element.
    """

    quantity: str
    rank: int | None
    off: float
    allowed: float

    @property
    def share(self) -> float:
        """off / allowed; infinite for NaN, and where a result that must be exact is not."""
        return Farthest(self.off, self.allowed).share

    @property
    def ok(self) -> bool:
        return self.share <= 1


@dataclass(frozen=True)
class SyncCase:
    """One way to share a batch, and what came of it.

    Attributes:
        case: layout, samples of each rank, type, what follows, and how far the mean is from 0.
        distances: one for each quantity.
        differing: ranks whose running statistics are not, bit by bit, those of rank 0.

    Example:
        >>> import torch
        >>> from normwright.torch.distributed.joined import Case
        >>> case = Case("NCHW", "uneven", torch.float32, "relu")
        >>> SyncCase(case, (Distance("y", 1, 2e-7, 1e-6), Distance("dbias", None, 0.5, 1e-6)), ()).failures
        ('dbias of all ranks together is off by 0.5, 5e+05 times what is allowed',)
    """

    case: Case
    distances: tuple[Distance, ...]
    differing: tuple[int, ...]

    @property
    def ok(self) -> bool:
        return not self.differing and all(each.ok for each in self.distances)

    @property
    def title(self) -> str:
        """The case in words."""
        return ", ".join(word for word in self.words if word != "-")

    @property
    def words(self) -> tuple[str, str, str, str]:
        """Type, layout, samples and what else there is, as they are printed."""
        case = self.case
        mean = f"mean {case.mean:.0e}".replace("e+0", "e") if case.mean else ""
        return str(case.dtype).removeprefix("torch."), case.layout, case.samples, case.after or mean or "-"

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong, in words: which quantity, where, how far off."""
        found = []
        for each in self.distances:
            if not each.ok:
                where = "of all ranks together" if each.rank is None else f"on rank {each.rank}"
                times = f"{each.share:.3g} times what is allowed" if each.allowed > 0 else "and must be exact"
                found.append(f"{each.quantity} {where} is off by {each.off:.3g}, {times}")
        if self.differing:
            ranks = "rank " if len(self.differing) == 1 else "ranks "
            which = ranks + ", ".join(map(str, self.differing))
            found.append(f"running statistics of {which} are not the bits of rank 0's")
        return tuple(found)


@dataclass(frozen=True)
class SyncReport:
    """What `verify_sync` returns, the same on every rank; `print` shows it as tables.

    Attributes:
        ranks: how many processes shared the batches; with 1 nothing was synchronized.
        device: of each rank, as "cpu" or "cuda".
        backend: that carried the messages; empty without a group.
        compiled: whether the layers were compiled.
        cases: what was tried.
    """

    ranks: int
    device: str
    backend: str
    compiled: bool
    cases: tuple[SyncCase, ...]

    @property
    def ok(self) -> bool:
        """Whether every case holds."""
        return bool(self.cases) and all(case.ok for case in self.cases)

    @property
    def failing(self) -> tuple[SyncCase, ...]:
        """The cases that do not hold."""
        return tuple(case for case in self.cases if not case.ok)

    @property
    def headline(self) -> str:
        """The result in a sentence."""
        how = ", ".join(word for word in (self.device, self.backend, "compiled" * self.compiled) if word)
        held = f"{len(self.cases) - len(self.failing)} of {len(self.cases)} cases hold"
        if self.ranks == 1:
            first = f"1 rank ({how}): nothing was synchronized. It"
            return f"{first} {'has' if self.ok else 'does NOT have'} the results of the definition: {held}."
        equal = "equal" if self.ok else "do NOT equal"
        return f"{self.ranks} ranks ({how}) {equal} one process on the joined batch: {held}."

    def table(self) -> "Table":
        """A row for each case: the largest share of what is allowed that each quantity used, over all ranks."""
        from normwright.report.document import Table

        columns = ("type", "batch", "samples", "with", *_COLUMNS.values(), "same bits")
        rows = []
        for case in self.cases:
            shares = {each.quantity: _share(each) for each in case.distances}
            cells = (shares.get(quantity, "-") for quantity in _COLUMNS)
            rows.append((*case.words, *cells, "NO" if case.differing else "yes"))
        return Table(
            "Distance from one process, as a share of what is allowed", columns, tuple(rows), _NOTE, names=4
        )

    def __str__(self) -> str:
        from normwright.report.terminal import table_as_text

        words = f"{self.headline}\n\n{table_as_text(self.table())}"
        fails = [f"FAILS: {case.title}: {what}." for case in self.failing for what in case.failures]
        return "\n".join((words, "", *fails)) if fails else words

    def records(self) -> "list[Record]":
        """A record for each quantity of each case; None, and why, where the share has no number."""
        return [record for case in self.cases for record in self._records(case)]

    def _records(self, case: SyncCase) -> "Iterator[Record]":
        from normwright.report.records import Record

        words = dict(zip(("type", "layout", "samples", "with"), case.words, strict=True))
        for each in case.distances:
            value = each.share if math.isfinite(each.share) else None
            why = {"off": each.off} if math.isfinite(each.off) else {"why": "not finite"}
            where = {**words, "rank": each.rank, "allowed": each.allowed, **why}
            yield Record(each.quantity, value, "share of what is allowed", where)
        yield Record("ranks with other statistics", len(case.differing), "ranks", {**words})

    def save(self, path: str | Path) -> None:
        """Write the records as JSON, with the stamp of this machine (see `report.records.read`)."""
        from normwright.report.records import write

        about = {name: getattr(self, name) for name in ("ok", "ranks", "device", "backend", "compiled")}
        write(Path(path), self.records(), experiment="verify-sync", **about)


_NOTE = (
    "The worst of all ranks; above 1 fails. y, dx, dresidual: each rank's rows; dweight, dbias: summed over the "
    "ranks; mean, var: the running ones, which with num_batches_tracked have the 'same bits' on all ranks or not. "
    "What is allowed: help(normwright.torch.verify_sync)."
)


def _share(each: Distance) -> str:
    if each.share == 0:
        return "0"
    if 0.01 <= each.share < 10:
        return f"{each.share:.2f}"
    return f"{each.share:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
