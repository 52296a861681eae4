"""`no_stat_update`: passes in training mode that must leave no trace in the running statistics."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from normwright.core.checks import DtypeError, message


class _Quiet(threading.local):
    """The layers whose statistics this thread must not move, each with the number of scopes around."""

    def __init__(self) -> None:
        self.layers: dict[nn.Module, int] = {}  # changed in place: a scope may be left in another thread


_quiet = _Quiet()


def is_quiet(layer: nn.Module) -> bool:
    """True inside `no_stat_update` of a model that contains `layer`, in this thread."""
    return layer in _quiet.layers


@contextmanager
def no_stat_update(model: nn.Module) -> Iterator[None]:
    """Let training passes of `model` normalize by their batch and leave every running statistic alone.

    For passes that must not count: the second pass of SAM, the passes of a GAN's other half, a teacher's, a probe.
    Nothing else changes: outputs and gradients are those of training. Scopes nest, end with an exception too, and
    hold for the thread that entered them, whatever runs in it. torch's own layers obey as well, and subclasses that
    ask for `track_running_stats` as torch's forward does; not where activation checkpointing repeats their pass
    outside of the scope.

    Args:
        model: any module; its batch norm layers at the time of entering.

    Raises:
        DtypeError: model is not a module.

    Example:
        >>> import torch
        >>> layer = nn.BatchNorm1d(2)
        >>> with no_stat_update(layer):
        ...     y = layer(torch.randn(8, 2))
        >>> layer.num_batches_tracked
        tensor(0)
    """
    if not isinstance(model, nn.Module):
        raise DtypeError(message("normwright.torch.no_stat_update", "a torch.nn.Module", repr(model)))
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    counts, heard = _quiet.layers, []
    try:
        for layer in layers:
            if not getattr(layer, "asks_whether_quiet", False):
                _listen(layer)
                heard.append(layer)
        _count(counts, layers, 1)
        try:
            yield
        finally:
            _count(counts, layers, -1)
    finally:
        for layer in heard:
            _stop_listening(layer)


def _count(counts: dict[nn.Module, int], layers: list[_BatchNorm], step: int) -> None:
    """Enter or leave one scope around these layers. Up and down, for scopes may overlap and not only nest."""
    for layer in layers:
        now = counts.get(layer, 0) + step
        if now:
            counts[layer] = now
        else:
            del counts[layer]


# ---- torch's own layers: while anybody is in a scope, their class asks ----------------------------------------

_lock = threading.Lock()
_listeners: dict[nn.Module, int] = {}  # scopes of all threads around each of torch's layers
_parametrized: dict[Any, int] = {}  # scopes around layers of each class that parametrization made
_ordinary: dict[Any, Any] = {}  # classes that ask, and what they are otherwise


def ordinary_class(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer outside of any scope."""
    cls: Any = type(layer)
    return _ordinary.get(cls, cls)  # type: ignore[no-any-return]


def _listen(layer: nn.Module) -> None:
    with _lock:
        cls: Any = type(layer)
        if is_parametrized(layer):  # a class that parametrization made, for this layer and its copies
            if cls not in _parametrized:
                cls.track_running_stats = property(_get, _put)
            _parametrized[cls] = _parametrized.get(cls, 0) + 1
        elif layer not in _listeners:
            layer.__class__ = _listening(cls)
        _listeners[layer] = _listeners.get(layer, 0) + 1


def _stop_listening(layer: nn.Module) -> None:
    with _lock:
        _listeners[layer] -= 1
        last = _listeners[layer] == 0
        if last:
            del _listeners[layer]
        cls: Any = type(layer)
        if cls in _parametrized:
            _parametrized[cls] -= 1
            if _parametrized[cls] == 0:
                del _parametrized[cls]
                del cls.track_running_stats
        elif last and cls in _ordinary:
            layer.__class__ = _ordinary[cls]
        elif last and any(base in _ordinary for base in cls.__bases__):  # parametrized inside the scope
            cls.__bases__ = tuple(_ordinary.get(base, base) for base in cls.__bases__)


def _get(self: nn.Module) -> bool:
    return not is_quiet(self) and bool(self.__dict__["track_running_stats"])


def _get_of_lazy(self: Any) -> bool:
    """Before its first batch a layer makes its buffers by this flag."""
    return _get(self) or (self.has_uninitialized_params() and bool(self.__dict__["track_running_stats"]))


def _put(self: nn.Module, value: bool) -> None:
    self.__dict__["track_running_stats"] = value


@contextmanager
def _aloud(layer: nn.Module) -> Iterator[None]:
    """As if outside of every scope: for what is done to a layer on purpose."""
    count = _quiet.layers.pop(layer, 0)
    try:
        yield
    finally:
        if count:
            _quiet.layers[layer] = count


def _listening(cls: Any) -> Any:
    """A subclass of `cls` whose `track_running_stats` is False where this thread must not move statistics."""
    for listening, ordinary in _ordinary.items():
        if ordinary is cls:
            return listening

    def reset_running_stats(self: Any) -> None:
        with _aloud(self):
            cls.reset_running_stats(self)

    def reduce(self: Any, protocol: Any) -> Any:  # copies are made of the class that everybody knows
        _, _, *state = cls.__reduce_ex__(self, protocol)
        return _bare, (cls,), *state

    members = {
        "track_running_stats": property(_get, _put),
        "reset_running_stats": reset_running_stats,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    if cls.__reduce_ex__ is object.__reduce_ex__ and cls.__reduce__ is object.__reduce__:
        members["__reduce_ex__"] = reduce
    if getattr(cls, "cls_to_become", None) is not None:
        members["cls_to_become"] = _listening(cls.cls_to_become)
        members["track_running_stats"] = property(_get_of_lazy, _put)
    made: Any = type(cls.__name__, (cls,), members)
    _ordinary[made] = cls
    return made


def _bare(cls: Any) -> Any:
    return cls.__new__(cls)
