"""Work that several processes do together: each knows how the others fared, so that none waits for ever."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch.distributed as dist

from normwright.core.checks import DtypeError, ShapeError, message

T = TypeVar("T")
Group = Literal["world"] | Any  # None, or a ProcessGroup, whose class a torch without distribution lacks


class Ranks:
    """The processes of a group; None is this one alone, and then nothing is sent.

    Args:
        call: whose name errors carry.
        group: "world" for all processes, a ProcessGroup, or None.

    Raises:
        DtypeError: `group` is none of these.
        ShapeError: nothing is initialized, or this process is not in the group.
    """

    def __init__(self, call: str, group: Group) -> None:
        self._call, self.alone, self.rank = call, group is None, 0
        self._group: dist.ProcessGroup | None = None
        if group is None:
            return
        if not dist.is_available() or not dist.is_initialized():
            remedy = "Call torch.distributed.init_process_group first, or pass group=None."
            raise ShapeError(message(call, "an initialized process group", "none", remedy=remedy))
        within = dist.group.WORLD if isinstance(group, str) and group == "world" else group
        if within is dist.GroupMember.NON_GROUP_MEMBER:
            expected, remedy = "this process to be in group", "Call it in the group's processes alone."
            raise ShapeError(message(call, expected, "a group without it", remedy=remedy))
        if not isinstance(within, dist.ProcessGroup):
            expected = "group to be None, 'world' or a torch.distributed.ProcessGroup"
            raise DtypeError(message(call, expected, repr(group)))
        self._group, self.rank = within, dist.get_rank(within)

    def gather(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns in every process, in the order of their ranks.

        Raises:
            What `work` raises here; RuntimeError in the other processes, which names rank and error.
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
        found: list[Any] = [None] * dist.get_world_size(self._group)
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
