"""What a user's own code raises, in one line: whose it is, where it was, and on which batch."""

import os
import sysconfig
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PACKAGE = str(Path(__file__).parent.parent)
_LONGEST = 600  # letters of an error that are shown
_REMEDY = "Let --data yield the inputs alone, or wrap the model in build."


class UsersError(Exception):
    """What the user's code raised, in a line."""


@contextmanager
def whose(name: str) -> Iterator[None]:
    """An OSError inside is of the code that is named so, and not of the command's own files.

    Raises:
        UsersError: there was one.
    """
    try:
        yield
    except OSError as error:
        at = place(error)
        raise UsersError(
            f"{name} raised {type(error).__name__}{at and f' at {at}'}: {_line(error)}."
        ) from error


def place(error: BaseException) -> str:
    """The last line of the user's code that led to an error, as file:line; empty where there is none."""
    paths = sysconfig.get_paths()
    libraries = (_PACKAGE, *(paths[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")))
    own = [
        (os.path.abspath(frame.filename), frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and not any(Path(frame.filename).is_relative_to(library) for library in libraries)
    ]
    if not own:
        return ""
    file, line = own[-1]
    inside = Path(file).is_relative_to(Path.cwd())
    return f"{os.path.relpath(file) if inside else file}:{line}"


class Batches:
    """Batches that are counted as they are read; called with model and batch, it runs the one on the other.

    Args:
        name: of the data, for errors.
        found: what is to be read.
        again: whether it is to be read several times.

    Raises:
        DtypeError: it cannot be read (so often), or a batch is of no known kind.
        UsersError: the model raised on a batch, or reading raised an OSError.
    """

    def __init__(self, name: str, found: Any, again: bool) -> None:
        from normwright.torch.statistics import feeding

        feeding.check_batches(name, found, again)
        self._name, self._found, self._number = name, found, 0

    def __iter__(self) -> Iterator[Any]:
        with whose(self._name):
            for self._number, batch in enumerate(self._found, 1):  # noqa: B020  # read while it is used
                yield batch

    def __len__(self) -> int:
        return len(self._found)  # a TypeError where there is none: nobody knows, then

    def __call__(self, model: Any, batch: Any) -> None:
        """In the place of `forward`, by the same rules as without one."""
        from normwright.torch.statistics import feeding

        inputs, keywords = feeding.Feed(self._name, model, None, _REMEDY).arguments(batch)
        try:
            model(*inputs, **keywords)
        except Exception as error:
            at = place(error)
            raise UsersError(
                f"the model raised on batch {self._number} of {self._name}, {feeding.described(batch)}, "
                f"given as {feeding.way(batch)}: {type(error).__name__}: {_line(error)}{at and f'; at {at}'}."
            ) from error


def _line(error: BaseException) -> str:
    return textwrap.shorten(str(error), _LONGEST, placeholder=" ...").rstrip(".") or "no words"
