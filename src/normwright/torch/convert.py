"""Every torch batch norm of a model becomes ours, and back, by its class alone."""

import warnings
from typing import Any, TypeVar, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from normwright.core.checks import DtypeError, ShapeError, message
from normwright.torch import lazy, modules
from normwright.torch.modules import _Layer
from normwright.torch.running import HALF
from normwright.torch.scopes import ordinary_class

Model = TypeVar("Model", bound=nn.Module)
_Class = type[nn.Module]

_OURS: dict[_Class, type[_Layer]] = {
    nn.BatchNorm1d: modules.BatchNorm1d,
    nn.BatchNorm2d: modules.BatchNorm2d,
    nn.BatchNorm3d: modules.BatchNorm3d,
    nn.LazyBatchNorm1d: lazy.LazyBatchNorm1d,
    nn.LazyBatchNorm2d: lazy.LazyBatchNorm2d,
    nn.LazyBatchNorm3d: lazy.LazyBatchNorm3d,
}
# What a layer of ours has beside torch's state.
_OPTIONS = (
    "activation", "channel_dim", "strict_torch", "statistics_frozen", "affine_frozen", "on_degenerate",
    "on_nonfinite", "recorded_var", "debias", "_activation", "_on_degenerate", "_on_nonfinite", "_recorded_var",
    "_debias", "_guard", "_half", "_name", "_ranks",
)  # fmt: skip
_MADE: dict[tuple[Any, Any], Any] = {}
_TORCHS: dict[_Class, _Class] = {ours: torchs for torchs, ours in _OURS.items()}


def convert(model: Model, *, strict_torch: bool = False) -> Model:
    """Turn every `torch.nn.BatchNorm1d/2d/3d` in `model` into normwright's, in place.

    The layers stay the same objects: weights, buffers, mode, hooks, parametrizations, names and optimizer
    references are kept, because only their class changes. Lazy layers become our lazy ones. A subclass that adds
    no forward of its own becomes a subclass of ours as well. One that has its own forward (and SyncBatchNorm) is
    left as it is, and a warning names it.

    Args:
        model: any module, a batch norm itself included.
        strict_torch: keep what torch does by default, in layers that are ours already too: statistics take in
            what is not finite, a pass repeated by activation checkpointing counts again, and half modules keep half
            statistics (but for layers that had float32 ones by then). Default False.

    Returns:
        `model`.

    Raises:
        DtypeError: model is not a module.

    Example:
        >>> convert(nn.BatchNorm2d(8))
        BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    left = []
    for name, module in _modules("normwright.torch.convert", model):
        if isinstance(module, _Layer):
            if strict_torch:
                _be_strict(module)
        elif isinstance(module, _BatchNorm):
            ours = _ours(module)
            if ours is None:
                cls = type(module)
                left.append(f"{name or 'the model itself'} ({cls.__module__}.{cls.__qualname__})")
                continue
            module.__class__ = ours
            layer = cast(_Layer, module)
            if strict_torch:
                _be_strict(layer)
            layer.settle(name)
    if left:
        warnings.warn(
            f"normwright.torch.convert: left as they are, for what they do of their own: {', '.join(left)}.",
            stacklevel=2,
        )
    return model


def revert(model: Model) -> Model:
    """Turn every batch norm of normwright's in `model` back into torch's, in place: the inverse of `convert`.

    The statistics of half layers, which were float32, are cast to the weight's type, and a warning says so. A
    subclass of ours has no counterpart in torch: it is left as it is, and a warning names it.

    Args:
        model: any module.

    Returns:
        `model`.

    Raises:
        DtypeError: model is not a module.
        ShapeError: a layer is frozen, has an activation, channel_dim other than 1, running_var="biased" or
            debias=True, which torch's cannot be; nothing has changed then.

    Example:
        >>> type(revert(convert(nn.BatchNorm2d(8)))) is nn.BatchNorm2d
        True
    """
    call = "normwright.torch.revert"
    layers = [(name, m) for name, m in _modules(call, model) if isinstance(m, _Layer) and _torchs(type(m))]
    for name, layer in layers:
        where = f"at {name!r}" if name else "at the model itself"
        if layer.channel_dim != 1:
            expected = "layers with channel_dim=1, as torch's"
            raise ShapeError(message(call, expected, f"channel_dim={layer.channel_dim} {where}"))
        if layer.activation is not None:
            expected, remedy = "layers without an activation, as torch's", "Put it behind the layer first."
            raise ShapeError(message(call, expected, f"{layer.activation} {where}", remedy=remedy))
        for option, torchs in (("recorded_var", "unbiased"), ("debias", False)):
            if (value := getattr(layer, option)) != torchs:
                expected, got = f"layers with {option}={torchs!r}, as torch's", f"{option}={value!r} {where}"
                remedy = f"Set {option} = {torchs!r} first: the statistics stay, and move on as torch's."
                raise ShapeError(message(call, expected, got, remedy=remedy))
        if layer.statistics_frozen or layer.affine_frozen:
            remedy = "Call normwright.torch.unfreeze(model) first."
            raise ShapeError(message(call, "no frozen layer", f"one {where}", remedy=remedy))
    cast = []
    for name, layer in layers:
        if _give_weights_type(layer):
            cast.append(name or "the model itself")
        for option in _OPTIONS:
            layer.__dict__.pop(option, None)
        layer.__class__ = _torchs(type(layer))  # type: ignore[assignment]
    left = [name or "the model itself" for name, m in _modules(call, model) if isinstance(m, _Layer)]
    if left:
        warnings.warn(
            f"{call}: left as they are, without a class of torch's: {', '.join(left)}.", stacklevel=2
        )
    if cast:
        warnings.warn(
            f"normwright.torch.revert: cast float32 statistics to the weight's type: {', '.join(cast)}.",
            stacklevel=2,
        )
    return model


def _be_strict(layer: _Layer) -> None:
    layer.strict_torch, layer.on_nonfinite = True, "propagate"


def _modules(call: str, model: Any) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise DtypeError(message(call, "a torch.nn.Module", repr(model)))
    return list(model.named_modules())


def _give_weights_type(layer: _Layer) -> bool:
    """Cast statistics to the type of a half weight, as torch's layer has them. False where they had it."""
    dtype, cast = layer._half if layer.weight is None else layer.weight.dtype, False
    for t in (layer.running_mean, layer.running_var):
        if t is not None and dtype in HALF:
            cast = cast or t.dtype != dtype
            t.data = t.to(dtype)
    return cast


# ---- classes ---------------------------------------------------------------------------------------------------


def _ours(module: nn.Module) -> type[_Layer] | None:
    """The class that makes this layer of torch's ours, None where its forward would be lost."""
    cls: Any = ordinary_class(module)
    if any(hasattr(module, name) for name in _OPTIONS):  # a user's, who means something else by it
        return None
    if is_parametrized(module):  # a class of its own for each module, over the one that it was
        base = _ours_of(cls.__bases__[0])
        return None if base is None else _over(cls, base)
    return _ours_of(cls)


def _ours_of(cls: Any) -> type[_Layer] | None:
    if cls in _OURS:
        return _OURS[cls]
    pickled = cls.__reduce_ex__ is object.__reduce_ex__ and cls.__reduce__ is object.__reduce__
    if cls.forward is not _BatchNorm.forward or not pickled or issubclass(cls, LazyModuleMixin):
        return None
    return next((_both(cls, ours) for torchs, ours in _OURS.items() if issubclass(cls, torchs)), None)


def _torchs(cls: Any) -> _Class | None:
    """The class that a layer of ours had, or would have, in torch; None for a subclass of ours."""
    if cls in _TORCHS:
        return _TORCHS[cls]
    was: _Class | None = cls.__dict__.get("_was")
    if cls.__name__.startswith("Parametrized") and len(cls.__bases__) == 1:
        if was is not None and _members(was) == _members(cls):  # none came or went since
            return was
        base = _torchs(cls.__bases__[0])
        return None if base is None else _over(cls, base)
    return was


def _over(cls: _Class, base: _Class) -> Any:
    """The class that torch's parametrization made, over another base; parametrizations are removed by that base."""
    return type(cls.__name__, (base,), _members(cls) | {"_was": cls})


_PYTHONS = ("__dict__", "__weakref__", "__doc__", "__slotnames__", "_was")


def _members(cls: _Class) -> dict[str, Any]:
    return {name: member for name, member in cls.__dict__.items() if name not in _PYTHONS}


def _both(cls: Any, ours: Any) -> Any:
    """A subclass of a user's class and ours: what the user's adds comes first, forward is ours."""

    def reduce(self: nn.Module, protocol: Any) -> Any:  # pickled by the classes that can be found by name
        _, _, *state = super(both, self).__reduce_ex__(protocol)
        return _rebuild, (cls, ours), *state

    if (cls, ours) in _MADE:
        return _MADE[cls, ours]
    both: Any = type(
        cls.__name__, (cls, ours), {"_was": cls, "__reduce_ex__": reduce, "__module__": cls.__module__}
    )
    _MADE[cls, ours] = both
    return both


def _rebuild(cls: _Class, ours: type[_Layer]) -> nn.Module:
    both = _both(cls, ours)
    layer: nn.Module = both.__new__(both)
    return layer
