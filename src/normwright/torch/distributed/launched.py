"""A process that torchrun has started: its process group, and its device."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from normwright.core.checks import ShapeError, message
from normwright.torch.distributed.missing import named

Backend = Literal["gloo", "nccl"]
_CALL = "torchrun"  # whose name errors carry
_LATE = timedelta(minutes=2)  # for a rank to come; what is launched here takes seconds


@contextmanager
def everyone(backend: Backend | None = None) -> Iterator[int]:
    """The default process group of all that were launched, while this lasts; yields this process's rank.

    Args:
        backend: None takes nccl where every process has a CUDA device of its own, else gloo.

    Raises:
        ShapeError: nccl where some process has no device; a torch without distribution.
        SyncError: not all have started within two minutes.
    """
    if not dist.is_available():
        raise ShapeError(message(_CALL, "a torch that was built with torch.distributed", "one without"))
    from torch.distributed.rendezvous import rendezvous

    local = int(os.environ["LOCAL_RANK"])
    able = dist.is_nccl_available() and torch.cuda.device_count() > local
    with _together():
        store, rank, size = next(rendezvous("env://", timeout=_LATE))
        # all must take the same, so all tell all: one machine may lack what others have
        store.set(f"normwright cuda {rank}", str(int(able)))
        without = [each for each in range(size) if store.get(f"normwright cuda {each}") == b"0"]
    if backend == "nccl" and without:
        expected = "a CUDA device for every rank with --backend nccl"
        raise ShapeError(message(_CALL, expected, f"none on rank {', '.join(map(str, without))}"))
    chosen = backend or ("gloo" if without else "nccl")
    if chosen == "nccl":
        torch.cuda.set_device(local)
    with _together():
        dist.init_process_group(chosen, store=store, rank=rank, world_size=size, timeout=_LATE)
    try:
        yield rank
    finally:
        dist.destroy_process_group()


def _together() -> AbstractContextManager[None]:
    expected = f"all {os.environ['WORLD_SIZE']} ranks to start within {_LATE.total_seconds():.0f} seconds"
    return named(_CALL, expected, where=f"on rank {os.environ['RANK']}: ")
