"""Work that several processes do together: each knows how the others fared, so that none waits for ever."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from normwright.core.checks import DtypeError, ShapeError, SyncError, message
from normwright.torch.distributed.missing import named
from normwright.torch.distributed.sync import check_member, check_there, world

T = TypeVar("T")
Facts = dict[str, Any]
Group = Literal["world"] | Any  # None, or a ProcessGroup, whose class a torch without distribution lacks


class Ranks:
    """The processes of a group; None is this one alone, and then nothing is sent.

    Args:
        call: whose name errors carry.
        group: "world" for all processes, a ProcessGroup, or None.

    Raises:
        DtypeError: `group` is none of these.
        ShapeError: nothing is initialized, the group was destroyed, or this process is not in it.
    """

    def __init__(self, call: str, group: Group) -> None:
        self._call, self.alone, self.rank, self.size = call, group is None, 0, 1
        self._group: dist.ProcessGroup | None = None
        if group is None:
            return
        everyone = world(call, "Call torch.distributed.init_process_group first, or pass group=None.")
        within = everyone if isinstance(group, str) and group == "world" else group
        check_member(call, "group", within)
        if not isinstance(within, dist.ProcessGroup):
            expected = "group to be None, 'world' or a torch.distributed.ProcessGroup"
            raise DtypeError(message(call, expected, repr(group)))
        check_there(call, "group", within)
        self._group, self.rank, self.size = within, dist.get_rank(within), dist.get_world_size(within)

    def gather(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns in every process, in the order of their ranks.

        Raises:
            What `work` raises here; RuntimeError in the other processes, which names rank and error. SyncError: a
            process did not come.
        """
        if self.alone:
            return [work()]
        error: BaseException | None = None
        result = None
        try:
            result = work()
        except BaseException as caught:  # an interruption too: the others would wait
            error = caught
        words = None if error is None else f"{type(error).__name__}: {error}".removesuffix(": ")
        found: list[Any] = [None] * self.size
        with self._together(error):
            dist.all_gather_object(found, (words, result), group=self._group)
        if error is not None:
            raise error
        for rank, (failed, _) in enumerate(found):
            if failed is not None:
                expected = "every process of the group to get through"
                raise RuntimeError(
                    message(self._call, expected, f"on rank {rank} {failed.removesuffix('.')}")
                )
        return [result for _, result in found]

    def agree(self, work: Callable[[], Facts], near: torch.device) -> None:
        """Run `work` in every process, and go on where it returned the same in each: one all-gather of 8 bytes.

        What is gathered next can then have the same length everywhere. It must: where a message is longer than the
        one that is waited for, gloo ends the process; where it is shorter, the rest is anything.

        Args:
            work: its facts have the same `repr` wherever they are the same.
            near: the device to talk from, where the group can.

        Raises:
            ShapeError: the facts differ. What `work` raises here; RuntimeError in the other processes.
        """
        error: BaseException | None = None
        facts: Facts = {}
        try:
            facts = work()
        except BaseException as caught:  # an interruption too: the others would wait
            error = caught

        def again() -> Facts:
            if error is not None:
                raise error
            return facts

        failed = 0
        number = (
            failed if error is not None else int.from_bytes(sha256(repr(facts).encode()).digest()[:7]) or 1
        )
        mine = torch.tensor([number], dtype=torch.int64, device=self.place(near))
        numbers = self._gather_rows(mine, error).flatten().tolist()
        if failed in numbers or len(set(numbers)) > 1:
            check_alike(self._call, self.gather(again))

    def gather_rows(self, row: Tensor) -> Tensor:
        """The rows of all processes, (size, len(row)), on the CPU: one all-gather. They must be of one length.

        Raises:
            SyncError: a process did not send its row.
        """
        return self._gather_rows(row, None)

    def _gather_rows(self, row: Tensor, error: BaseException | None) -> Tensor:
        if self.size == 1:
            return row[None].cpu()
        rows = row.new_empty(self.size, len(row))
        with self._together(error):
            dist.all_gather(list(rows), row, group=self._group)
            return rows.cpu()

    def place(self, near: torch.device) -> torch.device:
        """From where the group can send: the CPU if it can; else `near`, or the device of this process."""
        if self.size == 1:
            return torch.device("cpu")
        kinds = [pair.partition(":")[0] for pair in dist.get_backend_config(self._group).split(",")]
        if "cpu" in kinds:
            return torch.device("cpu")
        return near if near.type in kinds else torch.device(kinds[0])

    @contextmanager
    def _together(self, error: BaseException | None) -> Iterator[None]:
        """Raise SyncError where the others do not come; where there is an error of this process's own, that."""
        expected = f"each of the {self.size} processes of the group to make this call"
        remedy = "A process has ended, is late, or does not make it; the group cannot be used any more."
        try:
            with named(self._call, expected, remedy, f"on rank {self.rank}: "):
                yield
        except SyncError as late:
            if error is not None:
                raise error from late
            raise


def check_alike(call: str, everybody: list[Facts]) -> None:
    """Raise ShapeError, in every process, unless the facts of all of them are the same.

    Args:
        call: whose name errors carry.
        everybody: of each process, in the order of their ranks; "layers" is a list of tuples, the name first.
    """
    for rank, facts in enumerate(everybody):
        for name, fact in facts.items():
            first = everybody[0][name]
            if fact == first:
                continue
            if name != "layers":
                got = f"{fact!r} on rank {rank} and {first!r} on rank 0"
                raise ShapeError(message(call, f"the same {name} in every process", got))
            theirs, ours = dict.fromkeys(fact), dict.fromkeys(first)
            differing = [each for each in (*theirs, *ours) if (each in theirs) != (each in ours)]
            which = f" ({', '.join(dict.fromkeys(repr(each[0]) for each in differing))})" if differing else ""
            expected = "the same batch norm layers in every process"
            got = f"others on rank {rank} than on rank 0{which}"
            raise ShapeError(message(call, expected, got))
