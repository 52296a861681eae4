"""Whether a file can be written, seen before the work whose result it takes; nothing there is changed."""

import errno
import os
import tempfile
from pathlib import Path


def check_writable(path: Path) -> None:
    """Raise unless a file can be written there: one that is there is asked itself, else its folder.

    Raises:
        OSError: it is a folder, or may not be written to; or its folder does not exist, or takes no files.
    """
    _check_no_folder(path)
    if path.exists():
        # not opened: the reader of a pipe would take the end of this look for the end of the file
        if not os.access(path, os.W_OK):
            raise _of(errno.EACCES, path)
        return
    # what a link leads to is made where that is
    check_folder(Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent)


def check_replaceable(path: Path) -> None:
    """Raise unless a file can be put there whole, in the place of one that may be there: its folder alone is asked.

    Raises:
        OSError: it is a folder; or its folder does not exist, or takes no files.
    """
    _check_no_folder(path)
    check_folder(path.parent)


def check_folder(path: Path) -> None:
    """Raise unless new files can be made in a folder.

    Raises:
        OSError: it does not exist, or takes no files.
    """
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:  # of a name that nobody asked for
        raise OSError(error.errno, error.strerror, str(path)) from error


def _check_no_folder(path: Path) -> None:
    if path.is_dir():
        raise _of(errno.EISDIR, path)


def _of(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
