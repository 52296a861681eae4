"""Every torch batch norm of a model becomes ours, and back, by its class alone."""

import warnings
from typing import Any, TypeVar, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from normwright.core.checks import DtypeError, ShapeError, message
from normwright.torch import lazy, modules
from normwright.torch.distributed.sync import Sync, SyncLike, parse
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
    nn.SyncBatchNorm: modules.SyncBatchNorm,
}
# What a layer of ours has beside torch's state.
_OPTIONS = (
    "activation", "channel_dim", "strict_torch", "statistics_frozen", "affine_frozen", "on_degenerate",
    "on_nonfinite", "recorded_var", "debias", "_activation", "_on_degenerate", "_on_nonfinite", "_recorded_var",
    "_debias", "_guard", "_half", "_name", "_ranks", "sync", "_sync", "_path",
)  # fmt: skip
_MADE: dict[tuple[Any, Any], Any] = {}
_TORCHS: dict[_Class, _Class] = {ours: torchs for torchs, ours in _OURS.items()}


def convert(model: Model, *, sync: SyncLike = None, strict_torch: bool = False) -> Model:
    """Turn every `torch.nn.BatchNorm1d/2d/3d` and `SyncBatchNorm` in `model` into normwright's, in place.

    The layers stay the same objects: weights, buffers, mode, hooks, parametrizations, names and optimizer
    references are kept, because only their class changes. Lazy layers become our lazy ones, and a SyncBatchNorm
    keeps its processes. A subclass that adds no forward of its own becomes a subclass of ours as well. One that has
    its own forward is left as it is, and a warning names it. What is a subclass of torch's SyncBatchNorm stays one,
    which DistributedDataParallel refuses on a CPU.

    Args:
        model: any module, a batch norm itself included.
        sync: "world" or a torch.distributed.ProcessGroup, with which all layers share their batches in training
            from now on, those that are ours already too (see `BatchNorm1d`). Default None: with those that they
            share them with.
        strict_torch: keep what torch does by default, in layers that are ours already too: statistics take in
            what is not finite, a pass repeated by activation checkpointing counts again, and half modules keep half
            statistics (but for layers that had float32 ones by then). Default False.

    Returns:
        `model`.

    Raises:
        DtypeError: model is not a module, or sync is none of these.
        ShapeError: this process is not in the group, or not in that of a SyncBatchNorm.
        After an error nothing has changed.

    Example:
        >>> convert(nn.BatchNorm2d(8))
        BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    call, left = "normwright.torch.convert", []
    with_whom = parse(call, sync)
    of = _modules(call, model)
    plan = {m: _ours(m) for _, m in of if isinstance(m, _BatchNorm) and not isinstance(m, _Layer)}
    theirs: dict[nn.Module, Sync | None] = {}
    theirs |= {m: _sync_of(call, m) for m, ours in plan.items() if ours and isinstance(m, nn.SyncBatchNorm)}
    for name, module in of:
        if isinstance(module, _Layer):
            layer = module
        elif isinstance(module, _BatchNorm):
            ours = plan[module]
            if ours is None:
                cls = type(module)
                left.append(f"{name or 'the model itself'} ({cls.__module__}.{cls.__qualname__})")
                continue
            layer = _become(module, ours, theirs.get(module), strict_torch)
        else:
            continue
        layer.be_called(name)
        if strict_torch:
            _be_strict(layer)
        if with_whom is not None:
            layer._sync = with_whom
    if left:
        warnings.warn(
            f"normwright.torch.convert: left as they are, for what they do of their own: {', '.join(left)}.",
            stacklevel=2,
        )
    return model


def revert(model: Model) -> Model:
    """Turn every batch norm of normwright's in `model` back into torch's, in place: the inverse of `convert`.

    The statistics of half layers, which were float32, are cast to the weight's type, and a warning says so. A
    subclass of ours has no counterpart in torch: it is left as it is, and a warning names it. A SyncBatchNorm gets
    its process group back; of torch's other layers none knows `sync`, and a warning names those that lose it.

    Args:
        model: any module.

    Returns:
        `model`.

    Raises:
        DtypeError: model is not a module.
        ShapeError: a layer is frozen, has an activation, channel_dim other than 1, running_var="biased",
            debias=True, or is a SyncBatchNorm with sync=None, which torch's cannot be; nothing has changed then.

    Example:
        >>> type(revert(convert(nn.BatchNorm2d(8)))) is nn.BatchNorm2d
        True
    """
    call = "normwright.torch.revert"
    layers = [(name, m) for name, m in _modules(call, model) if isinstance(m, _Layer) and _torchs(type(m))]
    for name, layer in layers:
        where = f"at {name!r}" if name else "at the model itself"
        layer.check_can_be_torchs(call, where)
        if layer._synchronizes and layer.sync is None:
            expected = "a SyncBatchNorm with processes, as torch's"
            remedy = "Set its sync to 'world' or to a process group first."
            raise ShapeError(message(call, expected, f"sync=None {where}", remedy=remedy))
    told: dict[str, list[str]] = {
        "left as they are, without a class of torch's": [],
        "cast float32 statistics to the weight's type": [],
        "without their processes from now on, as torch's BatchNorm (not SyncBatchNorm)": [],
    }
    left, cast, alone = told.values()
    for name, layer in layers:
        if _give_weights_type(layer):
            cast.append(name or "the model itself")
        group = layer.sync
        for option in _OPTIONS:
            layer.__dict__.pop(option, None)
        layer.__class__ = _torchs(type(layer))  # type: ignore[assignment]
        if isinstance(layer, nn.SyncBatchNorm):
            layer.process_group = None if group == "world" else group
        elif group is not None:
            alone.append(name or "the model itself")
    left += [name or "the model itself" for name, m in _modules(call, model) if isinstance(m, _Layer)]
    for what, names in told.items():
        if names:
            warnings.warn(f"{call}: {what}: {', '.join(names)}.", stacklevel=2)
    return model


def _sync_of(call: str, module: nn.SyncBatchNorm) -> Sync | None:
    """Its processes. None of torch's is all of them."""
    return parse(call, "world" if module.process_group is None else module.process_group)


def _become(module: _BatchNorm, ours: type[_Layer], sync: Sync | None, strict: bool) -> _Layer:
    module.__class__ = ours
    layer = cast(_Layer, module)
    if sync is not None:
        del layer.process_group
        layer._sync = sync
    if strict:  # half statistics stay half
        _be_strict(layer)
    layer.settle()
    return layer


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
    if not pickled or issubclass(cls, LazyModuleMixin):
        return None
    known = (pair for pair in _OURS.items() if issubclass(cls, pair[0]) and cls.forward is pair[0].forward)
    return next((_both(cls, ours) for _, ours in known), None)


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
    members = {"_was": cls, "__reduce_ex__": reduce, "__module__": cls.__module__}
    torchs: Any = _TORCHS[ours]
    if not issubclass(ours, torchs):  # what torch's has would come first
        kept = (
            name for name in ("forward", "_check_input_dim") if getattr(cls, name) is getattr(torchs, name)
        )
        members |= {name: getattr(ours, name) for name in kept}
    both: Any = type(cls.__name__, (cls, ours), members)
    _MADE[cls, ours] = both
    return both


def _rebuild(cls: _Class, ours: type[_Layer]) -> nn.Module:
    both = _both(cls, ours)
    layer: nn.Module = both.__new__(both)
    return layer
