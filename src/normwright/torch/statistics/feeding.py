"""What a batch may be, and how it gets into a model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor, nn

from normwright.core.checks import DtypeError, ShapeError, message

Forward = Callable[[Any, Any], object]
_REMEDY = "Pass forward=lambda model, batch: ... for batches of another kind."
_SHOWN = 4  # of what a batch holds


class Feed:
    """Runs a model on batches.

    Args:
        call: whose name errors carry.
        model: the module to run.
        forward: `forward(model, batch)` in place of the rules of `arguments`; it gets every batch as it comes.
        remedy: what to do about batches of another kind.
    """

    def __init__(self, call: str, model: nn.Module, forward: Forward | None, remedy: str = _REMEDY) -> None:
        self._call, self._model, self._forward, self._remedy = call, model, forward, remedy
        held = [*model.parameters(), *model.buffers()]
        self._device = held[0].device if held else torch.device("cpu")

    def __call__(self, batch: Any) -> None:
        """One forward pass."""
        if self._forward is not None:
            self._forward(self._model, batch)
            return
        inputs, keywords = self.arguments(batch)
        self._model(*inputs, **keywords)

    def arguments(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model is called with: a tensor, a tuple's or list's first element, a mapping as keywords."""
        given = batch
        if isinstance(batch, tuple | list) and batch:
            batch = batch[0]  # as a DataLoader gives them: the rest is the target
        if isinstance(batch, Mapping):
            return (), {name: self._moved(value) for name, value in batch.items()}
        if isinstance(batch, Tensor):
            return (self._moved(batch),), {}
        expected = (
            "each batch to be a tensor, a tuple or list that begins with the input, or a dict of keywords"
        )
        raise DtypeError(message(self._call, expected, _kind(given), remedy=self._remedy))

    def _moved(self, value: Any) -> Any:
        """Tensors inside of whatever lists, tuples and dicts, on the model's device."""
        if isinstance(value, Tensor):
            # towards the CPU nothing would wait for such a copy before it is read
            return value.to(self._device, non_blocking=self._device.type != "cpu")
        if isinstance(value, dict):
            return {name: self._moved(each) for name, each in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._moved(each) for each in value)
        return value


def _kind(batch: object) -> str:
    inside = f" of {type(batch[0]).__name__}" if isinstance(batch, tuple | list) and batch else ""
    return f"{type(batch).__module__}.{type(batch).__name__}{inside}"


def way(batch: Any) -> str:
    """How a batch is given to the model, by the rules of `Feed.arguments`."""
    first = "batch"
    if isinstance(batch, tuple | list) and batch:
        batch, first = batch[0], "batch[0]"
    return f"model(**{first})" if isinstance(batch, Mapping) else f"model({first})"


def described(batch: Any) -> str:
    """A batch's kind, with the shapes in it: ``tuple (Tensor (4, 3), str)``."""
    kind = type(batch).__name__
    if isinstance(batch, Tensor):
        return f"{kind} {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        held = [f"{name}: {described(each)}" for name, each in batch.items()]
    elif isinstance(batch, tuple | list):
        held = [described(each) for each in batch[:_SHOWN]] + [""] * len(batch[_SHOWN:])
    else:
        return kind
    more = f", and {len(held) - _SHOWN} more" if len(held) > _SHOWN else ""
    return f"{kind} ({', '.join(held[:_SHOWN])}{more})"


def check_batches(call: str, batches: Any, again: bool) -> None:
    """Raise unless `batches` is an iterable of batches, and where it is to be read `again`, one that can be."""
    read = hasattr(type(batches), "__iter__") or hasattr(type(batches), "__getitem__")
    if isinstance(batches, Tensor | Mapping | str) or not read:
        single = isinstance(batches, Tensor | Mapping)
        remedy = "For one batch, pass [batch]." if single else "A list or a DataLoader, for example."
        got = f"{type(batches).__module__}.{type(batches).__name__}"
        raise DtypeError(message(call, "batches to be an iterable of batches", got, remedy=remedy))
    if again and isinstance(batches, Iterator):
        remedy = "Pass a list, a DataLoader, or any object whose __iter__ begins again; or order='joint'."
        expected = "batches that can be read several times with order='sequential'"
        raise DtypeError(message(call, expected, f"a one-shot {type(batches).__name__}", remedy=remedy))


def number_of(batches: Iterable[Any]) -> int | None:
    """How many batches there are; None where nobody knows before they were read."""
    if not isinstance(batches, Sized):
        return None
    try:
        return len(batches)
    except (TypeError, NotImplementedError):  # a DataLoader has a length, and asks a data set that has none
        return None


def check_same_number(call: str, first: int, later: int) -> None:
    """Raise unless every pass saw as many batches as the first."""
    if first != later:
        expected = f"batches to give {first} batches in every pass"
        remedy = (
            "An object whose __iter__ returns the same iterator again is one-shot: order='joint' reads once."
        )
        raise ShapeError(message(call, expected, str(later), remedy=remedy))
