"""Is this forward pass a repetition, made by `torch.utils.checkpoint` during backward?"""

import sys
from types import FrameType

import torch
from torch.autograd import graph
from torch.utils import checkpoint

# By name: the functions are nested in others.
_REPEATS = {"backward", "recompute_fn"}
_current_node = torch._C._current_autograd_node
_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_ENGINE = graph._engine_run_backward.__code__


def is_recompute() -> bool:
    """True inside a pass that activation checkpointing repeats, in both of its modes.

    Such a pass runs within a backward pass, or with hooks on saved tensors. Where either is so, the callers are
    asked: it is a repetition if checkpointing's function is among them, nearer than any start of a backward pass
    (a forward pass in a user's hook of the backward pass inside a repetition is no repetition).
    """
    # What is compiled repeats operations, not buffers. Only a compiled layer inside a checkpoint that is not
    # compiled runs its program twice, and cannot ask: it counts twice, as torch's.
    if torch.compiler.is_compiling():
        return False
    if _current_node() is None and _top_hooks(True) is None:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is _ENGINE:
            return False
        if code.co_filename == checkpoint.__file__ and code.co_name in _REPEATS:
            return True
        frame = frame.f_back
    return False
