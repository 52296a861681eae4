"""Who follows tensor operations now, and which tensors are plain memory: what to know before writing to it."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

PLAIN = (Tensor, torch.nn.Parameter)
# A layer of a few hundred values costs what these questions cost, so they are asked by their nearest names.
_tracing_state = torch._C._get_tracing_state
_dispatch_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.peek_interpreter_stack


def being_traced() -> bool:
    """True while torch.compile, torch.export or torch.jit.trace records what is called."""
    return torch.compiler.is_compiling() or _tracing_state() is not None


def being_transformed() -> bool:
    """True inside a function transform: vmap, grad, jacrev."""
    return _transforms() is not None


def being_watched() -> bool:
    """True while something follows tensor operations that would not see a kernel's work."""
    return _dispatch_modes() > 0 or _transforms() is not None or forward_ad._current_level >= 0


def is_plain(x: Tensor) -> bool:
    """True where x is on the CPU, and its memory is what x says it is."""
    return (
        type(x) in PLAIN
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_neg()
        and not x._is_zerotensor()
    )
