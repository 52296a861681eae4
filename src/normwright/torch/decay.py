"""Weight decay pulls weights to zero; the weight of a normalization layer belongs at one."""

from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from normwright.core.checks import DtypeError, ShapeError, message

NORMALIZATIONS = (
    nn.modules.batchnorm._NormBase,  # batch and instance norm, ours and torch's
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def own_parameters(norm: nn.Module) -> dict[str, nn.Parameter]:
    """weight and bias of a layer, parametrized or not; nothing else that a subclass holds (an embedding, say)."""
    own = dict(norm.named_parameters(recurse=False))
    if is_parametrized(norm):
        own |= {f"parametrizations.{name}": p for name, p in norm.parametrizations.named_parameters()}  # type: ignore[union-attr]
    return own


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: `weight_decay` for all but weight and bias of normalization layers.

    Args:
        model: any module. Batch, instance, group, layer and RMS norm are exempt, subclasses too.
        weight_decay: what the other parameters get; not negative.

    Returns:
        Two groups, ``{"params": ..., "weight_decay": ...}``, parameters in the order of `model.parameters()`,
        each once. A group without parameters is left out.

    Raises:
        DtypeError: model is not a module.
        ShapeError: weight_decay is negative or NaN.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        >>> optimizer = torch.optim.SGD(param_groups(model, 1e-4), lr=0.1)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(2, 0.0001), (2, 0.0)]
    """
    call = "normwright.torch.param_groups"
    if not isinstance(model, nn.Module):
        raise DtypeError(message(call, "a torch.nn.Module", repr(model)))
    if not weight_decay >= 0:
        raise ShapeError(message(call, "weight_decay >= 0", repr(weight_decay)))
    norms = (module for module in model.modules() if isinstance(module, NORMALIZATIONS))
    exempt = {id(p) for norm in norms for p in own_parameters(norm).values()}
    decayed = [p for p in model.parameters() if id(p) not in exempt]
    kept = [p for p in model.parameters() if id(p) in exempt]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
