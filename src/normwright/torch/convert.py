"""Every torch batch norm of a model becomes ours, and back."""

from typing import TypeVar

from torch import nn

from normwright.core.checks import DtypeError, message
from normwright.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d

Model = TypeVar("Model", bound=nn.Module)

_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()}


def convert(model: Model) -> Model:
    """Turn every `torch.nn.BatchNorm1d/2d/3d` in `model` into normwright's, in place.

    The layers stay the same objects: weights, buffers, mode, hooks, names and optimizer references are kept,
    because only their class changes. Layers of other classes (subclasses with a forward of their own,
    SyncBatchNorm, lazy and parametrized ones) are left as they are.

    Args:
        model: any module, a batch norm itself included.

    Returns:
        `model`.

    Example:
        >>> convert(nn.BatchNorm2d(8))
        BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    return _swap("normwright.torch.convert", model, _OURS)


def revert(model: Model) -> Model:
    """Turn every batch norm of normwright's in `model` back into torch's, in place: the inverse of `convert`.

    Args:
        model: any module.

    Returns:
        `model`.

    Example:
        >>> type(revert(convert(nn.BatchNorm2d(8)))) is nn.BatchNorm2d
        True
    """
    return _swap("normwright.torch.revert", model, _TORCHS)


def _swap(call: str, model: Model, classes: dict[type[nn.Module], type[nn.Module]]) -> Model:
    if not isinstance(model, nn.Module):
        raise DtypeError(message(call, "a torch.nn.Module", repr(model)))
    for module in model.modules():
        new = classes.get(type(module))
        if new is not None:
            module.__class__ = new
    return model
