"""Processes that torchrun has started with one command line: whether this is one of them, and which one tells."""

import os
import time

import typer

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MOMENT = 3.0  # seconds in which rank 0 tells: torchrun ends all processes as soon as one has left


def is_launched() -> bool:
    """Whether torchrun, or something that says as much, has started this process."""
    return all(name in os.environ for name in _NEEDED)


def leave_to_rank_0(code: int) -> None:
    """Leave without a word on another rank than 0 of processes with one command line; else go on, and tell.

    Torchrun's variables alone say so. A command that such a rank starts for itself has them too: it also ends after
    3 seconds without a word, with its exit status. Without RANK in its environment it says what is wrong.
    """
    if os.environ.get("RANK", "0") == "0":
        return
    if not is_launched():  # schedulers set RANK too, for processes that stand alone
        return
    time.sleep(_MOMENT)
    raise typer.Exit(code)
