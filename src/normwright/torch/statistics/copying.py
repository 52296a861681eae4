"""`copy_statistics`: a trained model's running statistics for a model whose weights were averaged from it."""

from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normwright.core.checks import DtypeError, NonfiniteError, ShapeError, message
from normwright.torch.statistics.tracked import convention_of_layer, named
from normwright.torch.statistics.wrapped import inside
from normwright.torch.statistics.writing import write_all

Model = TypeVar("Model", bound=nn.Module)
_CALL = "normwright.torch.copy_statistics"


def copy_statistics(source: nn.Module, target: Model) -> Model:
    """Give every batch norm layer of `target` the running statistics and the counter of its namesake in `source`.

    For an average of weights (EMA, SWA) that was made of the parameters alone, where no data is at hand: `target`
    keeps the statistics of the moment when it was made until something is done. The copy is the source's
    statistics and not its own. Where there is data, `recalibrate(target, batches)` gives it those.

    Args:
        source: the trained model.
        target: the averaged one, with the same batch norm layers, torch's or ours. Wrappers of either are looked
            through: AveragedModel, DistributedDataParallel, DataParallel, torch.compile's.

    Returns:
        `target`, whose layers changed in place; its weights and everything else stay. Frozen layers (`freeze`)
        are copied into as well, as when a state_dict is loaded.

    Raises:
        DtypeError: a model is none, or has no batch norm layer with running statistics.
        ShapeError: the layers' names or channels differ, or one records the biased variance and its namesake the
            unbiased one; or a layer is lazy, sharded or parametrized.
        NonfiniteError: a statistic that is finite in `source` is not in `target`'s type.
        After an error nothing has changed.

    Numerics:
        The values are rounded once, to the types of `target`.

    Example:
        >>> trained = nn.Sequential(nn.BatchNorm1d(1))
        >>> average = torch.optim.swa_utils.AveragedModel(trained, use_buffers=True)
        >>> y = trained(torch.tensor([[0.0], [20.0]]))
        >>> copy_statistics(trained, average).module[0].running_mean
        tensor([1.])
    """
    theirs, ours = _layers(source), _layers(target)
    if theirs.keys() != ours.keys():
        differing = ", ".join(repr(name) for name in sorted(theirs.keys() ^ ours.keys()))
        expected = "the same batch norm layers in source and target"
        raise ShapeError(message(_CALL, expected, f"{differing} in one of them alone"))
    writes = []
    for name, layer in ours.items():
        one, other = convention_of_layer(theirs[name]).recorded, convention_of_layer(layer).recorded
        if one != other:
            remedy = "Use normwright.torch.export_statistics and load_statistics with a count."
            got = f"{one} in source and {other} in target"
            raise ShapeError(message(_CALL, f"one kind of variance at {name!r}", got, remedy=remedy))
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            value, into = theirs[name]._buffers.get(key), layer._buffers.get(key)
            if value is None or into is None:
                continue  # an old layer without a counter
            if value.shape != into.shape:
                got = f"{tuple(value.shape)} in source"
                raise ShapeError(message(_CALL, f"{name}.{key} of shape {tuple(into.shape)}", got))
            cast = value.detach().to(into)
            if (torch.isfinite(value) & ~torch.isfinite(cast).to(value.device)).any():
                expected = f"{name}.{key} that {into.dtype} holds"
                raise NonfiniteError(message(_CALL, expected, f"up to {value.abs().max().item():.3g}"))
            writes.append((into, cast))
    write_all(writes)
    return target


def _layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """By name, inside of all wrappers."""
    if not isinstance(model, nn.Module):
        raise DtypeError(message(_CALL, "a torch.nn.Module", repr(model)))
    return {name: layer for name, layer, _ in named(_CALL, inside(model), None)}
