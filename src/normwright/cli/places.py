"""Where files will be written: seen before the work begins.

A file's folder must be there; only an option that names a folder makes it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from normwright.cli.leaving import stop
from normwright.core.checks import ShapeError, message
from normwright.report.writable import check_replaceable, check_writable


def check_file(path: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Raise unless a file can be written there; None is none that is asked for.

    Raises:
        ShapeError: its name ends in none of `suffixes`, where there are some.
        OSError: it is a folder, or may not be written to; or its folder does not exist, or takes no files.
    """
    if path is not None:
        check_writable(path)
        _check_suffix(path, suffixes)


def check_whole(path: Path, suffixes: Sequence[str]) -> None:
    """Raise unless a file can appear there whole: made beside it and renamed, whatever file was there.

    Raises:
        ShapeError: its name ends in none of `suffixes`.
        OSError: it is a folder; or its folder does not exist, or takes no files.
    """
    check_replaceable(path)
    _check_suffix(path, suffixes)


def need_file(call: str, path: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Leave with one line where `check_file` raises; `call` is whose it is."""
    try:
        check_file(path, suffixes)
    except ShapeError as error:
        stop(f"{call}: {error}", code=2)
    except OSError as error:
        stop(f"{call}: {error.filename}: {error.strerror}", code=2)


def need_folder(call: str, path: Path) -> None:
    """Make a folder where there is none; leave with one line where that cannot be. `call` is whose it is."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        stop(f"{call}: {error.filename}: {error.strerror}", code=2)


def check_new(path: Path, force: bool) -> None:
    """Raise ShapeError where there is a file already, and no `force`."""
    if path.exists() and not path.is_dir() and not force:
        raise ShapeError(message(str(path), "a new file", "one that exists", remedy="--force replaces it."))


def check_apart(given: Path, *written: Path | None) -> None:
    """Raise unless all files that will be `written` are others than the `given` one, and than one another.

    Raises:
        ShapeError: two are one file, by whatever names.
    """
    files: list[Path] = [given]
    for path in written:
        if path is None:
            continue
        for other in files:
            if _is_one_file(path, other):
                one, got = ("the one that was read", f"{other} itself"), ("any other", f"{other} twice")
                which, told = one if other is given else got
                expected, remedy = f"another file than {which}", "Choose another name."
                raise ShapeError(message(str(path), expected, told, remedy=remedy))
        files.append(path)


def _check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    if suffixes and path.suffix.lower() not in suffixes:
        *others, last = suffixes
        listed = f"{', '.join(others)} or {last}" if others else last
        got = path.suffix or "none of that kind"
        raise ShapeError(message(str(path), f"a name that ends in {listed}", got))


def _is_one_file(a: Path, b: Path) -> bool:
    if a.exists() and b.exists():
        return a.samefile(b)
    # of case alone: some systems have one file for both
    return os.path.realpath(a).casefold() == os.path.realpath(b).casefold()
