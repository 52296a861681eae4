"""What batch norm layers have recorded, made ready for the doctor: from a model, or from tensors by their keys."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from normwright.core.checks import DtypeError, ShapeError, message
from normwright.doctor.checks import examine
from normwright.doctor.findings import Findings
from normwright.doctor.layer import COUNTER, MEAN, VAR, FloatArray, LayerState, Settings, prefixes

CALL = "normwright.torch.inspect"
DEEPEST = 3  # {"state_dict": ...} is one, {"ema": {"model": ...}} two


def inspect(model_or_state_dict: nn.Module | Mapping[str, Any]) -> Findings:
    """Find what is wrong with the batch norm layers of a model or of a state dict, without running anything.

    A layer is whatever has running_mean and running_var, of one shape (C,): batch norm of torch's and ours, frozen
    ones of other libraries, and instance norm that tracks statistics, which cannot be told apart in a state dict.
    The checks: statistics never trained (0 and 1), not finite, or of negative variance; channels that are constant
    or have a weight near 0; momentum of 0, of 1, or of the other convention; eps out of line with the other
    layers; statistics in a half type; means so many deviations from 0 that the type loses the data; counters that
    differ. A state dict knows neither momentum nor eps: the findings say that they were not checked. What autocast
    makes of activations is known to neither: their type is taken to be that of the weights.

    Args:
        model_or_state_dict: a module; or a mapping from names to tensors, as `state_dict()` gives it, on any
            device. A checkpoint that holds such mappings among other things is searched three levels deep; where
            several hold layers (a model and its EMA), all are taken.

    Returns:
        Findings, worst first: each a `normwright.doctor.findings.Finding`. `print` shows tables;
        `.records()`, `.save(path)` and `.fails("error")` are for programs.

    Raises:
        DtypeError: it is neither a module nor a mapping.
        ShapeError: statistics are on the meta device, where there are no numbers.

    Numerics:
        Numbers are taken as recorded, in float64. Nothing in the model changes.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.99))
        >>> [(finding.severity, finding.check, finding.layer) for finding in inspect(model)]
        [('error', 'never trained', '1'), ('warning', 'momentum', '1')]
        >>> [finding.check for finding in inspect(model.state_dict())]
        ['never trained']
    """
    if isinstance(model_or_state_dict, nn.Module):
        left: list[str] = []
        layers = list(_of_model(model_or_state_dict, left))
        return examine(layers, not_checked=left)
    given: object = model_or_state_dict
    if not isinstance(given, Mapping):
        got = f"{type(given).__module__}.{type(given).__name__}"
        remedy = "A path is read by: normwright inspect PATH."
        raise DtypeError(message(CALL, "a module or a state dict", got, remedy=remedy))
    return _of_mapping(given)


def _of_model(model: nn.Module, left: list[str]) -> Iterator[LayerState]:
    """A layer for each module with running statistics; what cannot be one is `left`, in words."""
    lazy = []
    for name, module in model.named_modules():
        mean, var = (getattr(module, key, None) for key in (MEAN, VAR))
        if not (isinstance(mean, Tensor) and isinstance(var, Tensor)):
            continue
        if is_lazy(mean):
            lazy.append(name or "the model itself")
        elif _is_pair(mean, var):
            tensors = {key: getattr(module, key, None) for key in (MEAN, VAR, "weight", "bias", COUNTER)}
            yield _layer(name, tensors, settings=_settings(module))
    if lazy:
        left.append(f"Not checked, for they have seen no batch yet: {', '.join(lazy)}.")


def _settings(module: nn.Module) -> Settings | None:
    """What a norm of torch's or ours was made with; nothing is known of modules of others."""
    if not isinstance(module, _NormBase):
        return None
    frozen = bool(getattr(module, "statistics_frozen", False)) or not module.track_running_stats
    return Settings(float(module.eps), module.momentum, frozen)


def _of_mapping(tensors: Mapping[Any, Any]) -> Findings:
    parts = dict(parts_with_layers(tensors))
    if list(parts) == [()] or not parts:
        taken = ""
    elif len(parts) == 1:
        taken = f"Taken from {_path(next(iter(parts)))}."
    else:
        taken = f"Taken from {', '.join(map(_path, parts))}; names begin with that."
    layers = []
    for path, part in parts.items():
        part_name = ".".join(path) if len(parts) > 1 else ""
        layers += [
            _layer(prefix.removesuffix("."), _named(part, prefix), part=part_name)
            for prefix in layers_in(part)
        ]
    return examine(layers, taken=taken)


def parts_with_layers(
    tensors: Mapping[Any, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Of a checkpoint, the mappings that hold layers by their keys, with the way to each."""
    if layers_in(tensors):
        yield path, tensors
    elif len(path) < DEEPEST:
        for key, value in tensors.items():
            if isinstance(value, nn.Module):
                value = value.state_dict()
            if isinstance(value, Mapping):
                yield from parts_with_layers(value, (*path, str(key)))


def layers_in(tensors: Mapping[Any, Any]) -> list[str]:
    """What stands before running_mean in the keys of each layer."""
    keys = (key for key in tensors if isinstance(key, str))
    return [p for p in prefixes(keys) if _is_pair(tensors[p + MEAN], tensors[p + VAR])]


def _is_pair(mean: object, var: object) -> bool:
    if not (isinstance(mean, Tensor) and isinstance(var, Tensor)):
        return False
    return mean.is_floating_point() and mean.ndim == 1 and mean.shape == var.shape


def _named(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key: tensors.get(prefix + key) for key in (MEAN, VAR, "weight", "bias", COUNTER)}


def _path(path: tuple[str, ...]) -> str:
    return repr(".".join(path)) if path else "the top"


def _layer(
    name: str, tensors: Mapping[str, Any], *, settings: Settings | None = None, part: str = ""
) -> LayerState:
    mean, var, counter = tensors[MEAN], tensors[VAR], tensors[COUNTER]
    if mean.is_meta or var.is_meta:
        remedy = "Load the weights first."
        got = f"tensors on the meta device at {name!r}" if name else "tensors on the meta device"
        raise ShapeError(message(CALL, "statistics with values", got, remedy=remedy))
    weights: dict[str, Any] = {}
    for key in ("weight", "bias"):
        given = tensors[key]
        fits = isinstance(given, Tensor) and given.shape == mean.shape and not given.is_meta
        weights[key] = given if fits else None
    typed = next((given for given in weights.values() if given is not None), None)
    return LayerState(
        name=f"{part}: {name}" if part else name,
        mean=_array(mean),
        var=_array(var),
        dtype=_type(mean),
        weight=None if weights["weight"] is None else _array(weights["weight"]),
        bias=None if weights["bias"] is None else _array(weights["bias"]),
        weight_dtype=None if typed is None else _type(typed),
        updates=int(counter) if isinstance(counter, Tensor) and counter.numel() == 1 else None,
        settings=settings,
        part=part,
    )


def _array(t: Tensor) -> FloatArray:
    # To the CPU first: not every device has float64. Copied: findings are of now.
    return t.detach().cpu().to(torch.float64, copy=True).numpy()


def _type(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")
