"""The batch norm layers of a model that can be measured, and what they normalize by meanwhile."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from normwright.core import checks
from normwright.core.population import Statistics
from normwright.torch.modules import _Layer
from normwright.torch.statistics.tracked import convention_of_layer, tracked
from normwright.torch.statistics.writing import rounded

STATISTICS = ("running_mean", "running_var")
COUNTER = "num_batches_tracked"
# What these do without running statistics is known: they normalize by their batch.
_KNOWN = (_BatchNorm.forward, nn.SyncBatchNorm.forward, _Layer.forward)


@dataclass(eq=False)
class Layer:
    """One batch norm layer with running statistics.

    Attributes:
        name: in the model; empty for the model itself.
        module: the layer.
        mean, var: its running statistics, (C,), the tensors themselves.
        counter: its num_batches_tracked, or None.
        frozen: its statistics are to stay; it is never measured.
        settled: it has the statistics that it is to have; it is not measured any more.
    """

    name: str
    module: _BatchNorm
    mean: Tensor
    var: Tensor
    counter: Tensor | None
    frozen: bool = False
    settled: bool = False

    @property
    def axis(self) -> int:
        return self.module.channel_dim if isinstance(self.module, _Layer) else 1

    @property
    def ddof(self) -> int:
        """1 where the layer records the unbiased variance, as torch's do, and 0 where it records the biased one."""
        return int(convention_of_layer(self.module).recorded == "unbiased")

    @property
    def old(self) -> Statistics:
        """What it recorded, in float64."""
        return Statistics(*(t.detach().cpu().double().numpy().copy() for t in (self.mean, self.var)))

    @property
    def facts(self) -> tuple[Any, ...]:
        """What must be the same in every process."""
        types = str(self.mean.dtype), str(self.var.dtype)
        return self.name, self.mean.numel(), *types, self.ddof, self.settled

    @property
    def can_do_without(self) -> bool:
        """Whether it normalizes by its batch when it has no running statistics."""
        return type(self.module).forward in _KNOWN and "forward" not in self.module.__dict__

    def held(self, call: str, new: Statistics) -> tuple[Tensor, Tensor]:
        """Mean and variance as its tensors hold them, rounded once. Raise NonfiniteError where they cannot."""
        mean, var = rounded(new.mean, self.mean), rounded(new.var, self.var)
        if not (torch.isfinite(mean).all() and torch.isfinite(var).all()):
            expected = f"statistics that {self.mean.dtype} holds for {self}"
            got = f"a mean up to {abs(new.mean).max():.3g} and a variance up to {new.var.max():.3g}"
            raise checks.NonfiniteError(checks.message(call, expected, got))
        return mean, var

    def show(self, mean: Tensor | None, var: Tensor | None) -> None:
        """Let it normalize by these from now on."""
        for name, t in zip(STATISTICS, (mean, var), strict=True):
            room_of(self.module, name)[name] = t

    def __str__(self) -> str:
        kind = type(self.module)
        return f"{self.name or 'the model itself'} ({kind.__module__}.{kind.__qualname__})"


def room_of(module: nn.Module, name: str) -> dict[str, Any]:
    """Where a module holds a tensor: among its buffers, its parameters, or its plain attributes."""
    rooms: tuple[dict[str, Any], ...] = module._buffers, module._parameters, module.__dict__
    return next((room for room in rooms if name in room), {})


def find(call: str, model: nn.Module) -> list[Layer]:
    """Every batch norm layer with running statistics, in the order of their registration.

    Raises:
        ShapeError: there is none; one whose statistics have no values yet (lazy, or on the meta device), or are
            computed from something else; or two that share statistics.
    """
    layers = []
    for name, module in tracked(model).items():
        mean, var = (getattr(module, each) for each in STATISTICS)
        if mean is None or var is None:
            continue  # normalizes by its batch, always
        if not all(room_of(module, each) for each in STATISTICS):
            expected = "layers whose statistics are buffers, parameters or plain attributes"
            got = f"{name!r}, where a property or a parametrization makes them"
            raise checks.ShapeError(checks.message(call, expected, got))
        if is_lazy(mean) or mean.is_meta:
            got = f"{name!r} {'before its first batch' if is_lazy(mean) else 'on the meta device'}"
            remedy = "Run one batch, or load a state_dict, first."
            raise checks.ShapeError(checks.message(call, "layers whose statistics exist", got, remedy=remedy))
        frozen = bool(getattr(module, "statistics_frozen", False))
        layers.append(Layer(name, module, mean, var, getattr(module, COUNTER, None), frozen, frozen))
    if all(layer.frozen for layer in layers):
        got = f"{len(layers)}, all frozen" if layers else "none"
        remedy = "Call normwright.torch.unfreeze(model) first." if layers else ""
        expected = "a model with batch norm layers (torch's, or subclasses) that keep running statistics"
        raise checks.ShapeError(checks.message(call, expected, got, remedy=remedy))
    _check_apart(call, layers)
    return layers


def _check_apart(call: str, layers: list[Layer]) -> None:
    """Raise where two layers are to hold different statistics in one tensor."""
    whose: dict[Any, Layer] = {}
    for layer in layers:
        for place in _places(layer):
            other = whose.setdefault(place, layer)
            if other is not layer:
                remedy = "Use one layer in both places, or give each tensors of its own."
                got = f"one tensor in {other.name!r} and {layer.name!r}"
                expected = "every layer to have running statistics of its own"
                raise checks.ShapeError(checks.message(call, expected, got, remedy=remedy))


def _places(layer: Layer) -> Iterator[Any]:
    for t in (layer.mean, layer.var):
        yield id(t)
        with suppress(RuntimeError):  # of a wrapper without memory of its own
            yield t.device, t.data_ptr() or id(t)  # a view of the same memory; 0 where there is none
