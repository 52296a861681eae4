"""With whom a layer shares its batch: what `sync` may be, and which processes that is."""

import pickle
import threading
import weakref
import zlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import torch.distributed as dist

from normwright.core.checks import DtypeError, ShapeError, message
from normwright.torch.distributed.peers import Peers, is_there, waited
from normwright.torch.watched import being_traced

SyncLike = Literal["world"] | Any  # None, or a ProcessGroup, whose class a torch without distribution lacks


class Sync:
    """A group of processes that normalize by all their batches together.

    Copies share it. Pickled it is "world" alone: what the processes of a group are elsewhere, nobody can say.

    Attributes:
        group: a ProcessGroup; None is all processes, whenever there are any.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self._alone = group is not None and group.size() == 1

    def is_alone(self) -> bool:
        """Whether it is known to be this process alone; False also where no group is there."""
        global _lone
        if self.group is not None:
            return self._alone and is_there(self.group)
        everyone = dist.group.WORLD if _AVAILABLE else None
        if everyone is None:
            return False
        if everyone is _lone():  # each layer asks in each pass, and a group takes long to say its size
            return True
        if everyone.size() == 1:
            _lone = weakref.ref(everyone)
            return True
        return False

    @property
    def told(self) -> SyncLike:
        """As the user says it."""
        return "world" if self.group is None else self.group

    def __deepcopy__(self, memo: object) -> "Sync":
        return self

    def __reduce__(self) -> tuple[type["Sync"], tuple[()]]:
        if self.group is None:
            return Sync, ()
        expected = "sync to be 'world' or None in a layer that is pickled"
        remedy = "Save model.state_dict(), or set layer.sync = 'world' first."
        raise pickle.PicklingError(message("normwright.torch", expected, "a ProcessGroup", remedy=remedy))


_AVAILABLE = dist.is_available()
_WORLD = Sync()


def parse(call: str, given: object) -> Sync | None:
    """What `sync` means.

    Raises:
        DtypeError: `given` is not None, "world" or a ProcessGroup.
        ShapeError: this process is not in the group.
    """
    if given is None or isinstance(given, Sync):
        return given
    if isinstance(given, str) and given == "world":
        return _WORLD
    if dist.is_available():
        check_member(call, "sync", given)
        if isinstance(given, dist.ProcessGroup):
            return Sync(given)
    expected = "sync to be None, 'world' or a torch.distributed.ProcessGroup"
    raise DtypeError(message(call, expected, repr(given)))


def check_member(call: str, argument: str, group: object) -> None:
    """Raise ShapeError where `group` is what torch gives to those who are not in a group."""
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        expected, remedy = f"this process to be in {argument}", "Use it in the group's processes alone."
        raise ShapeError(message(call, expected, "a group without it", remedy=remedy))


def check_there(call: str, argument: str, group: Any) -> None:
    """Raise ShapeError where `group` was destroyed: in another world its name may be that of another group."""
    if not is_there(group):
        expected, remedy = (
            f"{argument} to be a group that is there",
            "Make another by new_group, and give that.",
        )
        raise ShapeError(message(call, expected, "one that was destroyed", remedy=remedy))


def world(call: str, remedy: str) -> Any:
    """The group of all processes. Raise ShapeError where there is none."""
    if not dist.is_available() or not dist.is_initialized():
        raise ShapeError(message(call, "an initialized process group", "none", remedy=remedy))
    return dist.group.WORLD


def peers_of(sync: Sync, call: str, label: str, lone: str) -> Peers | None:
    """Who shares this batch; None where that is this process alone.

    Args:
        sync: of the layer.
        call: whose name errors carry.
        label: names the layer in errors about the others; ranks check that they are at the same one by it, where
            it is a path in a model.
        lone: what a single value per channel in all processes together does, as `on_degenerate`.
    """
    if being_traced() and dist.is_available() and dist.is_initialized():
        dist.group.WORLD  # noqa: B018  # a compiler that saw it compiles again in another world
    if being_traced():
        (name, size), group = _resolved(sync, call, label), None
    else:
        there = _group_of(sync, call, label)
        name, size, group = there.group_name, there.size(), weakref.ref(there)
    return None if size == 1 else Peers(name, size, label, _tag(label), lone, group)


def _group_of(sync: Sync, call: str, label: str) -> Any:
    group = sync.group
    if group is None:
        group = world(call, "Call torch.distributed.init_process_group first, or set layer.sync = None.")
    else:
        check_there(label, "sync", group)
    if group is dist.group.WORLD:
        group = _worlds_own(group, label)
    return group


def _resolved(sync: Sync, call: str, label: str) -> tuple[str, int]:
    group = _group_of(sync, call, label)
    return group.group_name, group.size()


# Names and sizes are constants to a compiler; and a group cannot be made in a graph. As
# torch.compiler.assume_constant_result has it, which would load the whole compiler now.
_resolved._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _tag(label: str) -> int:
    """A number for a path; 0 where there is none, or it is compiled, which would not know the path."""
    return zlib.crc32(label.encode()) if label.endswith("'") and not being_traced() else 0


def _nothing() -> None:
    return None


# The last world of one process. Weak, so that no other world at its address is taken for it.
_lone: Callable[[], Any] = _nothing
# The world, and the group in which its layers talk; torch keeps both alive, until they are destroyed.
_own: tuple[Callable[[], Any], Callable[[], Any]] = _nothing, _nothing
_making = threading.Lock()


def _worlds_own(everyone: Any, label: str) -> Any:
    """A group of all processes for layers alone.

    In the default group others communicate as well, in an order that may differ from rank to rank:
    DistributedDataParallel sends a bucket of gradients as soon as it is complete, and parameters that a rank does
    not use are complete at once. A message of a layer would then meet a bucket.
    """
    global _own  # one for each world, made when the first layer asks
    if everyone.size() == 1:
        return everyone
    with _making:
        group = _own[1]()
        if _own[0]() is not everyone or group is None:
            with waited(label, everyone.size(), "to come to its first forward pass in training"):
                group = dist.new_group(timeout=_timeout(everyone), group_desc="normwright")
            _own = weakref.ref(everyone), weakref.ref(group)
        return group


def _timeout(group: Any) -> timedelta | None:
    """How long a group waits, so that another may wait as long; torch has no other way to ask."""
    options = group._get_backend(group._device_types[0]).options if group._device_types else None
    return getattr(options, "_timeout", None)
