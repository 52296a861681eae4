"""What a user names as package.module:name: found, or one line that says what is missing."""

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from normwright.cli.users import whose

_SHOWN = 10  # names of a module


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
    if module.endswith(".py"):
        dotted = os.path.normpath(module.removesuffix(".py")).replace(os.sep, ".")
        raise NotFoundError(
            f"expected package.module:name, got {name}; give the module: {dotted}:{attribute}."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with whose(name):
            found: Any = importlib.import_module(module)
    except ImportError as error:
        raise NotFoundError(f"cannot import {module}: {error}.") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise NotFoundError(f"{module} has no {attribute}; it has {_names(found, module, part)}.")
        found = getattr(found, part)
    return found


def _names(found: Any, module: str, wanted: str) -> str:
    """Public names that were made there, those like the wanted one first."""
    public = [
        name
        for name, value in getattr(found, "__dict__", {}).items()
        if not (name.startswith("_") or _is_imported(value, module))
    ]
    near = difflib.get_close_matches(wanted, public, n=_SHOWN)
    listed = [*near, *(name for name in public if name not in near)]
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return (", ".join(listed[:_SHOWN]) + more) or "nothing"


def _is_imported(value: Any, module: str) -> bool:
    made = inspect.isroutine(value) or inspect.isclass(value)
    return isinstance(value, ModuleType) or (made and getattr(value, "__module__", module) != module)


def called(name: str, is_ready: Callable[[Any], bool]) -> Any:
    """What the function named so returns; or what is named itself, where it `is_ready`.

    Raises:
        NotFoundError: there is none, or it is no function, or takes arguments.
        UsersError: it raised an OSError.
    """
    function = find(name)
    if is_ready(function):
        return function
    if not callable(function):
        raise NotFoundError(f"expected {name} to be a model or a function, got {type(function).__name__}.")
    return _returned(name, function)


def _returned(name: str, function: Callable[[], Any]) -> Any:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of what is not written in Python it may be unknown
        parameters = {}.values()
    optional = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in optional]
    if needed:
        listed = ", ".join(needed)
        raise NotFoundError(f"{name} takes arguments ({listed}); give a function without any.")
    with whose(name):
        return function()


def batches(name: str) -> Iterable[Any]:
    """The batches named so: an iterable as it is, or what a function returns, called again at every reading.

    Raises:
        NotFoundError: there are none, or the function takes arguments.
        UsersError: it raised an OSError.
    """
    found = find(name)
    if callable(found) and not isinstance(found, Iterable):
        first = _returned(name, found)
        return _Again(found, first) if isinstance(first, Iterator) else first
    return found  # type: ignore[no-any-return]  # whether it is an iterable is seen where it is read


class _Again:
    """What a generator function yields, from the beginning each time."""

    def __init__(self, function: Callable[[], Iterator[Any]], first: Iterator[Any]) -> None:
        self._function, self._first = function, [first]

    def __iter__(self) -> Iterator[Any]:
        return self._first.pop() if self._first else self._function()
