"""The checks every door makes on what a user hands in, and the words they say it in.

A message reads ``<call>: expected <argument> <what>, got <what>[; <compared with>].[ <remedy>]``. The checks
work on shapes and plain numbers, so that one check serves NumPy arrays and tensors alike.
"""

from collections.abc import Sequence
from operator import index
from typing import Any, SupportsIndex


class ShapeError(ValueError, RuntimeError, IndexError):
    """A shape or value is wrong. Also a RuntimeError and an IndexError: torch raises now one, now another."""


class DtypeError(TypeError, NotImplementedError):
    """A dtype is wrong. Both a TypeError and a NotImplementedError (so a RuntimeError), as torch's own is."""


class NonfiniteError(ValueError, FloatingPointError):
    """A mean or variance is NaN or infinite where finite ones were asked for."""


class SyncError(RuntimeError):
    """What was to come from other processes did not come, or was something else: a RuntimeError, as torch's is."""


class TransformError(RuntimeError):
    """A function transform cannot see through what is asked: a RuntimeError, as torch's own is."""


def message(call: str, expected: str, got: str, compared_with: str = "", remedy: str = "") -> str:
    """The one form of every error message.

    >>> message("f", "eps > 0", "-1.0", remedy="Use 1e-5.")
    'f: expected eps > 0, got -1.0. Use 1e-5.'
    """
    compared = f"; {compared_with}" if compared_with else ""
    return f"{call}: expected {expected}, got {got}{compared}.{' ' + remedy if remedy else ''}"


def where_channels_are(shape: Sequence[int], axis: int) -> str:
    """``x is (8, 64, 14, 14) with channels on axis 1``: the second half of many messages."""
    return f"x is {tuple(shape)} with channels on axis {axis}"


def check_rank(call: str, shape: Sequence[int], allowed: Sequence[int], remedy: str = "") -> None:
    """Raise ShapeError unless ``len(shape)`` is one of `allowed`."""
    if len(shape) not in allowed:
        ranks = " or ".join(f"{n}-D" for n in allowed)
        raise ShapeError(
            message(call, f"x to be {ranks}", f"{len(shape)}-D x of shape {tuple(shape)}", remedy=remedy)
        )


def check_axis(call: str, shape: Sequence[int], axis: int, argument: str = "axis") -> int:
    """The channel axis counted from 0. Raise ShapeError unless x has it, and at least one axis beside it."""
    if not isinstance(axis, SupportsIndex):
        raise DtypeError(message(call, f"{argument} to be an integer", repr(axis)))
    axis = index(axis)
    if len(shape) < 2:
        expected = "x to have a batch axis and a channel axis"
        raise ShapeError(message(call, expected, f"{len(shape)}-D x of shape {tuple(shape)}"))
    if not -len(shape) <= axis < len(shape):
        expected = f"{argument} from {-len(shape)} to {len(shape) - 1}"
        raise ShapeError(message(call, expected, str(axis), f"x is {tuple(shape)}"))
    return axis % len(shape)


def check_per_channel(
    call: str, argument: str, got: Sequence[int], shape: Sequence[int], axis: int, remedy: str = ""
) -> None:
    """Raise ShapeError unless `got` is ``(C,)``, with C the channels of `shape` on `axis`."""
    if tuple(got) != (shape[axis],):
        expected = f"{argument} of shape ({shape[axis]},)"
        raise ShapeError(message(call, expected, str(tuple(got)), where_channels_are(shape, axis), remedy))


def check_more_than_one_value(call: str, shape: Sequence[int], axis: int, remedy: str) -> None:
    """Raise ShapeError when a channel has exactly one value: its variance is 0 whatever the value is."""
    count = 1
    for dim, size in enumerate(shape):
        if dim != axis % len(shape):
            count *= size
    if count == 1:
        expected = "more than one value per channel in training"
        raise ShapeError(message(call, expected, f"1; {where_channels_are(shape, axis)}", remedy=remedy))


def check_eps(call: str, eps: float) -> None:
    """Raise ShapeError unless `eps` is a positive number."""
    if not eps > 0:
        raise ShapeError(message(call, "eps > 0", repr(eps), remedy="The usual value is 1e-5."))


def check_both_or_neither(call: str, running_mean: Any, running_var: Any) -> None:
    """Raise ShapeError when one running statistic is given and the other is None."""
    if (running_mean is None) != (running_var is None):
        given, missing = (
            ("running_mean", "running_var") if running_var is None else ("running_var", "running_mean")
        )
        raise ShapeError(
            message(call, "running_mean and running_var, or neither", f"{given} without {missing}")
        )
