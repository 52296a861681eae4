"""Batch norms with running statistics, torch's and ours: which a model has, and in which convention they record."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from normwright.core.checks import DtypeError, ShapeError, message
from normwright.core.conventions import CONVENTIONS, Convention, Recorded


def tracked(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every batch norm layer that keeps running statistics, by its name, each once."""
    every = ((path, m) for path, m in model.named_modules() if isinstance(m, _BatchNorm))
    return {path: m for path, m in every if m.running_mean is not None or m.track_running_stats}


def named(call: str, model: object, names: Mapping[str, Any] | None) -> Iterator[tuple[str, _BatchNorm, Any]]:
    """Each layer that is meant: its name, itself, and what `names` says of it."""
    if not isinstance(model, nn.Module):
        raise DtypeError(message(call, "a torch.nn.Module", repr(model)))
    known = tracked(model)
    if not known:
        expected = "a batch norm with running statistics"
        raise DtypeError(message(call, expected, f"none in {type(model).__name__}"))
    if names is not None and not isinstance(names, Mapping):
        raise DtypeError(message(call, "names to be {our layer's name: theirs}", repr(names)))
    meant = {path: path for path in known} if names is None else names
    unknown, left = [p for p in meant if p not in known], [p for p in known if p not in meant]
    if unknown:
        expected = f"names of batch norms with running statistics, such as {next(iter(known))!r}"
        raise ShapeError(message(call, expected, ", ".join(map(repr, unknown))))
    if left:
        remedy = "None in place of a prefix leaves a layer as it is."
        got = f"none for {', '.join(map(repr, left))}"
        raise ShapeError(message(call, "names of every batch norm of the model", got, remedy=remedy))
    for path, theirs in meant.items():
        if theirs is not None:
            _check(f"{call} at {path!r}" if path else call, known[path])
            yield path, known[path], theirs


def _check(call: str, layer: _BatchNorm) -> None:
    held = {name: getattr(layer, name) for name in ("running_mean", "running_var", "weight", "bias")}
    if held["running_mean"] is None or held["running_var"] is None:
        raise ShapeError(message(call, "a layer with running statistics", "one without"))
    if any(is_lazy(t) for t in held.values()):
        remedy = "Show the model a batch first."
        raise ShapeError(message(call, "a layer that knows its channels", "a lazy one", remedy=remedy))
    if is_parametrized(layer):
        remedy = "Remove the parametrization first."
        raise ShapeError(message(call, "a plain weight and bias", "a parametrized one", remedy=remedy))
    for name, t in held.items():
        if t is not None and (t.is_meta or is_traceable_wrapper_subclass(t)):
            got = "one on the meta device" if t.is_meta else f"a {type(t).__name__}"
            raise ShapeError(message(call, f"{name} to be a whole tensor with values", got))


def convention_of_layer(layer: _BatchNorm) -> Convention:
    """torch's convention, with the variance that this layer records: `recorded_var`, which torch's do not have."""
    recorded: Recorded = getattr(layer, "recorded_var", "unbiased")
    return replace(CONVENTIONS["pytorch"], recorded=recorded)
