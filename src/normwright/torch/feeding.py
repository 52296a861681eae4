"""What a batch may be, and how it gets into a model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor, nn

from normwright.core.checks import DtypeError, ShapeError, message

Forward = Callable[[Any, Any], object]


class Feed:
    """Runs a model on batches.

    Args:
        call: whose name errors carry.
        model: the module to run.
        forward: `forward(model, batch)` in place of the rules of `__call__`; it gets every batch as it comes.
    """

    def __init__(self, call: str, model: nn.Module, forward: Forward | None) -> None:
        self._call, self._model, self._forward = call, model, forward
        held = [*model.parameters(), *model.buffers()]
        self._device = held[0].device if held else torch.device("cpu")

    def __call__(self, batch: Any) -> None:
        """One forward pass: of a tensor, of a tuple's or list's first element, of a mapping as keywords."""
        if self._forward is not None:
            self._forward(self._model, batch)
            return
        given = batch
        if isinstance(batch, tuple | list) and batch:
            batch = batch[0]  # as a DataLoader gives them: the rest is the target
        if isinstance(batch, Mapping):
            self._model(**{name: self._moved(value) for name, value in batch.items()})
        elif isinstance(batch, Tensor):
            self._model(self._moved(batch))
        else:
            expected = (
                "each batch to be a tensor, a tuple or list that begins with the input, or a dict of keywords"
            )
            remedy = "Pass forward=lambda model, batch: ... for batches of another kind."
            raise DtypeError(message(self._call, expected, _kind(given), remedy=remedy))

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
