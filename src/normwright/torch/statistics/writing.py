"""Tensors that are written all or not at all, or that are what they were afterwards."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from normwright.core.moments import FloatArray
from normwright.torch.running import HALF

Writes = list[tuple[Tensor, Tensor]]


def write_all(writes: Writes) -> None:
    """Copy each second tensor into the first; into none of them where it fails or is interrupted."""
    with restored_on_failure(into for into, _ in writes):
        copy(writes)


@contextmanager
def restored_on_failure(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Whatever is raised inside, these tensors hold what they held before."""
    before = [(into, into.detach().clone()) for into in tensors]
    try:
        yield
    except BaseException:
        copy(before)
        raise


def copy(writes: Writes) -> None:
    """Copy each second tensor into the first."""
    for into, value in writes:
        with torch.inference_mode(into.is_inference()), torch.no_grad():
            into.copy_(value)


class KeptBuffers:
    """What the buffers of a model hold now, to be given back to them.

    A buffer that a module makes while it runs, or replaces by one of another shape or type (a cache that grows),
    stays as the module left it: what it remembers of it is not in buffers alone.

    Args:
        model: whose.
        but: (module, name) of those to leave out.
    """

    def __init__(self, model: nn.Module, but: set[tuple[nn.Module, str]]) -> None:
        self._kept = [
            (module._buffers, name, t, t.detach().clone(), _version(t))
            for module in model.modules()
            for name, t in module._buffers.items()
            if t is not None and not is_lazy(t) and (module, name) not in but
        ]

    def restore(self) -> None:
        """Each buffer is the tensor that it was, and holds what it held."""
        for buffers, name, t, held, version in self._kept:
            now = buffers.get(name)
            if now is not t:
                if now is None or now.shape != held.shape or now.dtype != held.dtype:
                    continue
                buffers[name] = t
            if _version(t) != version or not _is_same(t, held):
                with torch.inference_mode(t.is_inference()), torch.no_grad():
                    if t.shape != held.shape:
                        t.resize_(held.shape)
                    t.copy_(held)


def _version(t: Tensor) -> int | None:
    return None if t.is_inference() else t._version


def _is_same(t: Tensor, held: Tensor) -> bool:
    """Whether the values are the same, NaN as NaN; fused operations of quantization write and count no version."""
    if t.layout is not torch.strided or t.is_meta:
        return True
    if t.shape != held.shape:
        return False
    # NaN differs from itself
    return torch.equal(t, held) or bool(((t == held) | (t != t) & (held != held)).all())


def rounded(values: FloatArray, like: Tensor) -> Tensor:
    """float64 values as a tensor of another's type and device, rounded once."""
    if like.dtype in HALF:
        # By way of float32, rounded to odd there: torch's own way rounds to nearest twice.
        with np.errstate(over="ignore"):
            near = values.astype(np.float32)
        inexact = np.isfinite(near) & (near != values)
        cut = np.where(inexact & (np.abs(near) > np.abs(values)), np.nextafter(near, np.float32(0)), near)
        bits = cut.astype(np.float32).view(np.uint32)
        values = np.where(inexact, bits | 1, bits).astype(np.uint32).view(np.float32)
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(values)).to(like.dtype).to(like.device)
