"""How tensors lie in memory, and how the kernels need them to lie."""

import torch
from torch import Tensor

from normwright.core.layout import Layout, layout_of

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def laid_out(x: Tensor) -> tuple[Tensor, Layout | None]:
    """x, which is not contiguous, and its layout; a dense copy where it has none, or y would not lie as torch's."""
    at = layout_of(x.shape, x.stride(), 1)
    if at is None or not _lies_as_torchs(x, at):
        return x.detach().contiguous(), None
    return x, at


def room_like(dense: Tensor, at: Layout | None) -> Tensor:
    """Room for a tensor that lies as `at` says, gaps included; its axes are in the order of `dense`."""
    if at is None:
        return torch.empty_like(dense)
    slice_size = at.channels * at.inner
    strides = [s if s < slice_size else s // slice_size * at.stride for s in dense.stride()]
    return dense.new_empty(at.outer * at.stride).as_strided(dense.shape, strides)


def _lies_as_torchs(x: Tensor, at: Layout) -> bool:
    """True where x's axes are in the order that torch gives y: contiguous or, in 4-D and 5-D, channels-last."""
    strides = [s for n, s in zip(x.shape, x.stride(), strict=True) if n != 1]
    in_order = strides == sorted(strides, reverse=True)
    if at.inner > 1 or x.dim() not in (4, 5):
        return in_order
    spatial = [x.stride(d) for d in (0, *range(2, x.dim())) if x.shape[d] != 1]
    return spatial == sorted(spatial, reverse=True)


def lined_up(x: Tensor, t: Tensor, like: Tensor | None = None) -> Tensor:
    """t as the kernels need it: dense, its axes in memory in x's order, as those of `like` are."""
    if like is not None and t.stride() == like.stride():
        return t
    dense = torch.empty_like(x)
    return t if t.stride() == dense.stride() else dense.copy_(t)


def may_be_written(out: Tensor, *read: Tensor | None) -> bool:
    """True where a kernel that reads these may write to `out`: dense, each the same memory or apart."""
    if not (
        out.is_contiguous() or (out.dim() in _LAST and out.is_contiguous(memory_format=_LAST[out.dim()]))
    ):
        return False
    for t in read:
        if t is not None:
            distance = abs(out.data_ptr() - t.data_ptr())
            if t.stride() != out.stride() or 0 < distance < out.nbytes:
                return False
    return True
