"""What is said when other processes do not come: errors of a process group name neither who waited nor for what."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from normwright.core.checks import SyncError, message


@contextmanager
def named(call: str, expected: str, remedy: str = "", where: str = "") -> Iterator[None]:
    """An error inside becomes a SyncError.

    Args:
        call: who waits.
        expected: for what.
        remedy: what to do.
        where: on which rank.
    """
    try:
        yield
    except (torch.OutOfMemoryError, SyncError):
        raise
    except (RuntimeError, OSError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")
        raise SyncError(message(call, expected, where + words, remedy=remedy)) from error
