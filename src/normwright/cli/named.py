"""What a user names as package.module:name: found, or one line that says what is missing."""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class NotFoundError(Exception):
    """A name that leads nowhere, in a line."""


def find(name: str) -> Any:
    """What `package.module:name` names; modules of the current folder are found too.

    Raises:
        NotFoundError: there is no such module, it does not import, or has no such name.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise NotFoundError(f"expected package.module:name, got {name}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise NotFoundError(f"cannot import {module}: {error}.") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [n for n in vars(found) if not n.startswith("_")][:10]
            raise NotFoundError(f"{module} has no {attribute}; it has {', '.join(public) or 'nothing'}.")
        found = getattr(found, part)
    return found


def called(name: str) -> Any:
    """What the function named so returns.

    Raises:
        NotFoundError: there is none, or it is no function.
    """
    function = find(name)
    if not callable(function):
        raise NotFoundError(f"expected {name} to be a function, got {type(function).__name__}.")
    return function()


def batches(name: str) -> Iterable[Any]:
    """The batches named so: an iterable as it is, or what a function returns, called again at every reading.

    Raises:
        NotFoundError: there are none.
    """
    found = find(name)
    if callable(found) and not isinstance(found, Iterable):
        first = found()
        return _Again(found, first) if isinstance(first, Iterator) else first
    return found  # type: ignore[no-any-return]  # whether it is an iterable is seen where it is read


class _Again:
    """What a generator function yields, from the beginning each time."""

    def __init__(self, function: Callable[[], Iterator[Any]], first: Iterator[Any]) -> None:
        self._function, self._first = function, [first]

    def __iter__(self) -> Iterator[Any]:
        return self._first.pop() if self._first else self._function()
