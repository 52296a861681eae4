"""Freezing: statistics that stay, and weights that do not learn, whatever `.train()` says."""

from typing import TypeVar

from torch import nn

from normwright.core.checks import ShapeError, message
from normwright.torch.decay import own_parameters
from normwright.torch.modules import layers_of

Model = TypeVar("Model", bound=nn.Module)


def freeze(model: Model, statistics: bool = True, affine: bool = False) -> Model:
    """Freeze every batch norm of `model`: it survives `.train()`, deepcopy and pickle, and shows in `repr`.

    Loading a state_dict, ours or torch's, changes the values and not what is frozen. Frozen statistics are not
    reset either (torch's `swa_utils.update_bn` begins with that). `unfreeze` undoes it.

    Args:
        model: any module whose batch norms are ours (see `convert`).
        statistics: normalize by the running statistics in training too, and leave them alone. Default True.
        affine: weight and bias want no gradient. Default False.

    Returns:
        `model`.

    Raises:
        DtypeError: a batch norm of torch's is in the model; nothing was frozen then.
        ShapeError: a layer has no running statistics to freeze; nothing was frozen then.

    Example:
        >>> from normwright.torch import BatchNorm1d
        >>> freeze(BatchNorm1d(4)).train()
        BatchNorm1d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True, frozen=statistics)
    """
    call = "normwright.torch.freeze"
    layers = layers_of(call, model)
    for name, layer in layers.items():
        if statistics and layer.running_mean is None:
            expected = "layers with running statistics"
            raise ShapeError(message(call, expected, f"track_running_stats=False at {name!r}"))
    for layer in layers.values():
        if statistics:
            layer.statistics_frozen = True
        if affine:
            own = own_parameters(layer)
            learning = {name for name, p in own.items() if p.requires_grad} | set(layer.affine_frozen[1:])
            layer.affine_frozen = ("affine", *sorted(learning))
            for p in own.values():
                p.requires_grad = False  # not the method, which a lazy parameter lacks
    return model


def unfreeze(model: Model) -> Model:
    """Undo `freeze`: statistics move in training again, and the weights that learned before learn again.

    Args:
        model: any module whose batch norms are ours.

    Returns:
        `model`.

    Raises:
        DtypeError: a batch norm of torch's is in the model.

    Example:
        >>> from normwright.torch import BatchNorm1d
        >>> unfreeze(freeze(BatchNorm1d(4), affine=True)).weight.requires_grad
        True
    """
    for layer in layers_of("normwright.torch.unfreeze", model).values():
        layer.__dict__.pop("statistics_frozen", None)
        learning = layer.__dict__.pop("affine_frozen", ())
        for name, p in own_parameters(layer).items():
            if name in learning[1:]:
                p.requires_grad = True
    return model
