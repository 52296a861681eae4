"""The moments of a tensor's channels, in float64, wherever the tensor is."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from normwright.core.layout import layout_of
from normwright.core.moments import Moments
from normwright.kernels import NATIVE
from normwright.torch.watched import being_watched, is_plain

if NATIVE:
    from normwright import _native
    from normwright.kernels.cpu import CODES

_AT_ONCE = {"cpu": 2**20}  # values that are widened to float64 at a time: what a cache holds
_ELSEWHERE = 2**24  # and what keeps a device busy


def moments(x: Tensor, axis: int) -> Moments:
    """Count, mean and m2 of every channel.

    Args:
        x: any rank >= 2, floating point, on any device.
        axis: the channel axis, from 0.

    Returns:
        Moments; NaN or infinity where a channel holds them.

    Numerics:
        float64 throughout: the kernels for float32 sum in float32 first, some 2^-26 of m2, which would show in
        statistics that are rounded once. x is widened part by part, and the parts are merged. Devices without
        float64 (mps) centre each channel by one of its values and sum in float32: m2 is then exact to some
        2^-22, whatever the mean.
    """
    x = x.detach()
    whole = Moments.empty(x.shape[axis])
    if not x.numel():
        return whole
    for part in _parts(x, axis):
        if x.device.type == "mps":
            whole = whole.merge(composed(part, axis, torch.float32))
        elif NATIVE and is_plain(x) and not being_watched():
            whole = whole.merge(_natively(part.to(torch.float64), axis))
        else:
            whole = whole.merge(composed(part, axis, torch.float64))
    return whole


def _parts(x: Tensor, axis: int) -> Iterator[Tensor]:
    """x, cut where it is to be widened and is large: along its batch, and where a sample is large, within that."""
    at_once = _AT_ONCE.get(x.device.type, _ELSEWHERE)
    along = next((k for k in range(x.dim()) if k != axis and x.shape[k] > 1), None)
    if x.dtype == torch.float64 or x.numel() <= at_once or along is None:
        yield x
    else:
        for part in torch.split(x, max(1, at_once * x.shape[along] // x.numel()), along):
            yield from _parts(part, axis)


def _natively(x: Tensor, axis: int) -> Moments:
    at = layout_of(x.shape, x.stride(), axis)
    if at is None:
        x = x.contiguous()
        at = layout_of(x.shape, x.stride(), axis)
        assert at is not None  # a contiguous tensor always has a layout
    room = bytearray(4 * 8 * at.channels)
    _native.moments(CODES["float64"], x.data_ptr(), *at, room)
    mean, _, m2, _ = np.frombuffer(room, np.float64).reshape(4, -1)
    return Moments(at.values, mean.copy(), m2.copy())


def composed(x: Tensor, axis: int, dtype: torch.dtype) -> Moments:
    """The same as torch operations in `dtype`."""
    channels_last = x.movedim(axis, -1)
    pivot = channels_last[(0,) * (x.dim() - 1)].to(dtype)
    centred = channels_last.to(dtype) - pivot
    dims = tuple(range(x.dim() - 1))
    var, mean = torch.var_mean(centred, dims, correction=0)
    count = x.numel() // x.shape[axis]
    near, away, spread = (t.cpu().double().numpy() for t in (pivot, mean, var))
    return Moments(count, near + away, spread * count)
