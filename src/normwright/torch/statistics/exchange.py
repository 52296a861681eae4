"""Statistics that travel: a batch norm's arrays from another framework into a layer, and back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normwright.core import conventions
from normwright.core.checks import DtypeError, ShapeError, message
from normwright.core.conventions import Convention, convention_of
from normwright.torch.statistics import foreign
from normwright.torch.statistics.foreign import Float64, PerLayer
from normwright.torch.statistics.tracked import convention_of_layer, named

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class _Settings:
    """What was said of the framework's layers, beside their arrays."""

    eps: float | None
    momentum: float | None
    count: PerLayer
    updates: PerLayer
    debiased: bool


@dataclass(frozen=True, slots=True)
class _Average:
    """How a running variance came about, as far as that is known.

    Attributes:
        rate: weight of the new batch; None for the plain mean. Of no meaning where not `known`.
        updates: batches so far; None where not known.
        said: the caller said so. A counter does not: population statistics have one too, of the batches they were
            measured on, and hold nothing of a start.
        debiased: nothing is left of the start, whatever the others say.
    """

    known: bool
    rate: float | None
    updates: int | None
    said: bool
    debiased: bool

    def share_of_start(self, call: str, source: Convention) -> float:
        """What is left of the start. Raise ShapeError where that cannot be known."""
        plain_mean = self.known and self.rate is None
        if self.debiased or (plain_mean and not self.said):
            return 0.0
        remedy = (
            f"The average starts at {source.starts_at:g}, and what is left of that carries no m/(m-1); "
            "debiased=True says that nothing is, as after recalibrate."
        )
        if not self.said or self.updates is None or self.updates < 1:
            counter = "" if self.updates is None else f" but a counter of {self.updates}"
            got = str(self.updates) if self.said else f"none{counter}"
            raise ShapeError(message(call, "updates >= 1 with a count", got, remedy=remedy))
        if not self.known:
            expected, got = f"{source.momentum_name} with a count", f"none; the default is {source.momentum}"
            raise ShapeError(message(call, expected, got, remedy=remedy))
        return conventions.share_of_start(self.rate, self.updates)


@dataclass(frozen=True, slots=True)
class _Change:
    """All that one layer will be given, checked."""

    layer: _BatchNorm
    tensors: list[tuple[Tensor, Tensor]]
    eps: float
    settings: dict[str, Any]


def load_statistics(
    layer_or_model: Model,
    arrays: Any,
    convention: str = "keras",
    *,
    names: Mapping[str, Any] | None = None,
    eps: float | None = None,
    momentum: float | None = None,
    count: PerLayer = None,
    updates: PerLayer = None,
    debiased: bool = False,
) -> Model:
    """Give a batch norm layer, or all of a model's, what another framework's layers hold: the same inference.

    layer.eval()(x) = (x - mean) / sqrt(var + eps) * gamma + beta, by the framework's mean, var, eps, gamma, beta

    In place. Everything is checked first: after an error nothing has changed.

    Args:
        layer_or_model: torch's batch norms or ours (SyncBatchNorm, subclasses too), with running statistics.
        arrays: of a layer, {name: (C,) array} by the framework's names, or a list in the order gamma, beta, mean,
            var as Keras' `get_weights()` has it (of two: mean, var). Of a model, {prefix + name: array}, nested or
            flat; Flax' variables as they are. NumPy arrays, tensors, or what NumPy reads. A gamma or beta of None
            is one that the framework's layer does not have (scale=False, center=False): 1 or 0. Beside them may
            stand the layer's eps and momentum, by the framework's names.
        convention: a name in `core.conventions.CONVENTIONS`. Default "keras" (Keras 3).
        names: of a model, {our layer's name: prefix in arrays, or the arrays themselves}; None in place of a prefix
            leaves that layer as it is. Prefix and name are joined by "/", "." or "_". Default: our own names.
        eps: the framework's layers'. Default: what stands among the arrays, else the framework's own default.
        momentum: the framework's layers', in its words. Default: what stands among the arrays, else unknown.
        count: m, values per channel in each training batch, one number or {our layer's name: m}. Default None: the
            variance stays as it is, biased or unbiased. With a count it becomes what the layer here would have
            recorded of the same batches, if all had m values: no longer the same inference, but by (m-1)/m.
        updates: how many training batches were recorded, a number or {our layer's name: number}. Default: the
            counter among the arrays, else unknown; for a conversion by `count` it must be said, as the counter of
            population statistics looks the same.
        debiased: nothing is left of what the average started at: population statistics, a plain mean of batches, a
            debiased moving average. A conversion by `count` then needs neither updates nor momentum. Default False.

    Returns:
        `layer_or_model`. Each layer has the source's eps; its momentum too, where that is known; and its counter is
        `updates`, where that is known, else stays.

    Raises:
        DtypeError: layer_or_model is no module or holds no such layer; an array is none, or not of real numbers.
        ShapeError: a name is missing, or there twice, or unknown; a shape is not (C,); an entry is not finite, or a
            variance negative, or less than the eps inside it; gamma is there and the layer has no weight, unless it
            is 1 (beta: bias, 0); MXNet's gamma is not 1 and nobody says whether fix_gamma was on; a count is given,
            and updates or momentum, which the conversion needs, are not known; the layer's next update needs
            updates (momentum=None, debias=True) and they are not known; a value is infinite in the layer's type; a
            weight is parametrized, sharded or on the meta device.

    Numerics:
        Float64, rounded once to the type of the parameter or buffer.

    Source:
        docs/conventions.md has every framework's convention and how it is known.

    Example:
        >>> keras = {"gamma": [2.0], "beta": [0.0], "moving_mean": [10.0], "moving_variance": [0.999]}
        >>> layer = load_statistics(nn.BatchNorm1d(1), keras).eval()  # eps is Keras' 0.001 now
        >>> layer(torch.tensor([[11.0]])).detach()
        tensor([[2.]])
        >>> layer = load_statistics(layer, keras, count=32, updates=500, momentum=0.99)
        >>> layer.running_var, layer.momentum, int(layer.num_batches_tracked)
        (tensor([1.0310]), 0.01, 500)
    """
    call = "normwright.torch.load_statistics"
    which = convention_of(call, convention)
    said = _Settings(eps, momentum, count, updates, debiased)
    alone = isinstance(layer_or_model, _BatchNorm) and names is None
    flat = None if alone else foreign.flattened(call, arrays, which)
    changes = []
    for path, layer, prefix in named(call, layer_or_model, names):
        where = f"{call} at {path!r}" if path else call
        if flat is None or not isinstance(prefix, str):
            found = foreign.of_one(where, arrays if flat is None else prefix, which)
        else:
            found = foreign.of_prefix(where, flat, prefix, which)
        changes.append(_change(where, path, layer, found, which, said))
    with torch.no_grad():
        for change in changes:
            for tensor, new in change.tensors:
                tensor.copy_(new)
            change.layer.eps = change.eps
            for name, value in change.settings.items():
                setattr(change.layer, name, value)
    return layer_or_model


def export_statistics(
    layer_or_model: nn.Module,
    convention: str = "keras",
    *,
    names: Mapping[str, str | None] | None = None,
    count: PerLayer = None,
    updates: PerLayer = None,
    debiased: bool = False,
) -> dict[str, Any]:
    """What a batch norm layer, or all of a model's, hold, in another framework's words.

    The inverse of `load_statistics`.

    Args:
        layer_or_model, convention, count, updates, debiased: as for `load_statistics`. The layer's momentum is
            known; a layer with debias=True is debiased, and one with momentum=None a plain mean. Any other needs,
            with a count, updates (after training: layer.num_batches_tracked) or debiased=True (after
            `recalibrate`). Without updates, the counter that is exported is the layer's.
        names: of a model, {our layer's name: its name there}; None there leaves that layer out. Default: our own.

    Returns:
        Of a layer {name: (C,) array} in the order gamma, beta, mean, var, without those that the layer has not; of
        a model {name there: such a dictionary}. Arrays are float32, float64 for a float64 layer. Beside them stand,
        by the framework's names: torch's counter (int64); eps and momentum as numbers, which the layer there has to
        have for the same inference and the same training (no momentum where the layer's is None and the framework
        has no such thing); MXNet's fix_gamma, which has to be False.

    Raises:
        DtypeError, ShapeError: as `load_statistics`.

    Numerics:
        Float64, rounded once.

    Example:
        >>> layer = nn.BatchNorm1d(1, eps=1e-3)
        >>> export_statistics(layer.double(), "flax")
        {'scale': array([1.]), 'bias': array([0.]), 'mean': array([0.]), 'var': array([1.]),
         'epsilon': 0.001, 'momentum': 0.9}
    """
    call = "normwright.torch.export_statistics"
    which = convention_of(call, convention)
    exported: dict[str, Any] = {}
    for path, layer, name in named(call, layer_or_model, names):
        where = f"{call} at {path!r}" if path else call
        if not isinstance(name, str):
            raise DtypeError(message(where, "a name, or None", repr(name)))
        if name in exported:
            raise ShapeError(message(where, "each name once", f"{name!r} twice"))
        exported[name] = _export(where, path, layer, which, _Settings(None, None, count, updates, debiased))
    alone = isinstance(layer_or_model, _BatchNorm) and names is None
    return exported[""] if alone else exported


# ---- one layer -------------------------------------------------------------------------------------------------


def _change(
    call: str, path: str, layer: _BatchNorm, found: dict[str, Any], which: Convention, said: _Settings
) -> _Change:
    """What loading will do to one layer; raises whatever is to be raised."""
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None
    assert var is not None
    channels = mean.numel()
    for name in (which.mean, which.var):
        if found.get(name) is None:
            raise ShapeError(message(call, f"an array {name}", "none"))
    eps = foreign.setting(call, which.eps_name, found, said.eps)
    eps = which.eps if eps is None else eps
    if not 0 <= eps < float("inf"):
        raise ShapeError(message(call, f"{which.eps_name} >= 0, and finite", repr(eps)))
    average = _average(call, path, found, which, said)
    settings = {"momentum": average.rate} if average.known else {}
    count, here = foreign.whole(call, "count", path, said.count), convention_of_layer(layer)
    theirs = {name: foreign.vector(call, name, found[name], channels) for name in (which.mean, which.var)}
    new = _converted(call, theirs[which.var], which, here, eps, count, average)
    tensors = [
        (mean, _staged(call, which.mean, theirs[which.mean], mean)),
        (var, _staged(call, which.var, new, var)),
        *_affine(call, layer, found, which, channels),
    ]
    if layer.num_batches_tracked is not None:
        if average.updates is not None:
            tensors.append((layer.num_batches_tracked, torch.tensor(average.updates)))
        elif settings.get("momentum", layer.momentum) is None or getattr(layer, "debias", False):
            remedy = "With momentum=None and debias=True the counter decides what the next batch weighs."
            raise ShapeError(message(call, "updates, the batches so far", "none", remedy=remedy))
    return _Change(layer, tensors, eps, settings)


def _average(call: str, path: str, found: dict[str, Any], which: Convention, said: _Settings) -> _Average:
    """What is known of the framework's average, among the arrays and beside them."""
    momentum = foreign.setting(call, which.momentum_name, found, said.momentum)
    known = momentum is not None or which.momentum_name in found
    updates = foreign.whole(call, "updates", path, said.updates)
    named, counter = updates is not None, which.counter
    if updates is None and counter is not None and found.get(counter) is not None:
        updates = foreign.whole(call, counter, path, foreign.scalar(call, found, counter))
    rate = conventions.rate_of(momentum, which.name) if known else None
    return _Average(known, rate, updates, named, said.debiased)


def _converted(
    call: str,
    recorded: Float64,
    source: Convention,
    target: Convention,
    eps: float,
    count: int | None,
    average: _Average,
) -> Float64:
    """The variance in the target's convention; asks for what is left of the start where that is needed alone."""
    asked = count is not None and source.recorded != target.recorded
    share = average.share_of_start(call, source) if asked else 0.0
    t = average.updates or 0
    return conventions.variance(call, recorded, source, target, eps=eps, count=count, share=share, updates=t)


def _affine(
    call: str, layer: _BatchNorm, found: dict[str, Any], which: Convention, channels: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """weight and bias beside what they are to be."""
    found = dict(found)
    if which.fix_gamma is not None and found.get(which.gamma) is not None:
        gamma = foreign.vector(call, which.gamma, found[which.gamma], channels)
        fixed = found.get(which.fix_gamma)
        if fixed is None and (gamma != 1).any():
            expected = f"{which.fix_gamma} among the arrays, gamma not being 1"
            remedy = f"With {which.fix_gamma}=True, its default, {which.name} computes with 1 all the same."
            raise ShapeError(message(call, expected, "none", remedy=remedy))
        if fixed:
            found[which.gamma] = None
    own: tuple[tuple[str, float, Tensor | None], ...] = (
        (which.gamma, 1.0, layer.weight),
        (which.beta, 0.0, layer.bias),
    )
    for name, plain, t in own:
        if name not in found and t is not None:
            remedy = f"{name}: None says that the layer there has none."
            raise ShapeError(message(call, f"an array {name}", "none", remedy=remedy))
        given = found.get(name)
        values = np.full(channels, plain) if given is None else foreign.vector(call, name, given, channels)
        if t is not None:
            yield t, _staged(call, name, values, t)
        elif (values != plain).any():
            expected = f"no {name} but {plain:g}, as the layer has no {'weight' if plain else 'bias'}"
            raise ShapeError(message(call, expected, f"{values[values != plain][0]:.6g}"))


def _export(call: str, path: str, layer: _BatchNorm, which: Convention, said: _Settings) -> dict[str, Any]:
    here = convention_of_layer(layer)
    count = foreign.whole(call, "count", path, said.count)
    updates = foreign.whole(call, "updates", path, said.updates)
    named = updates is not None
    if updates is None and layer.num_batches_tracked is not None:
        updates = int(layer.num_batches_tracked)
    debiased = said.debiased or bool(getattr(layer, "debias", False))
    average = _Average(True, layer.momentum, updates, named, debiased)
    held = dict(
        zip(here.arrays, (layer.weight, layer.bias, layer.running_mean, layer.running_var), strict=True)
    )
    values = {name: foreign.vector(call, name, t, None) for name, t in held.items() if t is not None}
    values[here.var] = _converted(call, values[here.var], here, which, layer.eps, count, average)
    exported: dict[str, Any] = {}
    for ours, theirs in zip(here.arrays, which.arrays, strict=True):
        t = held[ours]
        if t is not None:
            dtype = np.float64 if t.dtype == torch.float64 else np.float32
            exported[theirs] = values[ours].astype(dtype)
    if which.counter is not None and updates is not None:
        exported[which.counter] = np.asarray(updates, np.int64)
    exported[which.eps_name] = layer.eps
    if layer.momentum is not None or which.name == here.name:
        exported[which.momentum_name] = conventions.momentum_of(layer.momentum, which.name)
    if which.fix_gamma is not None:
        exported[which.fix_gamma] = False
    return exported


def _staged(call: str, name: str, values: Float64, like: Tensor) -> Tensor:
    """`values` in the type of the tensor that they are for, and where it is."""
    if like.is_inference() and not torch.is_inference_mode_enabled():
        remedy = "Make the layer outside torch.inference_mode()."
        raise ShapeError(message(call, "a layer that can be written", "an inference tensor", remedy=remedy))
    staged = torch.from_numpy(values).to(like.dtype)
    if not staged.isfinite().all():
        largest = np.abs(values).max()
        raise ShapeError(message(call, f"{name} that {like.dtype} can hold", f"{largest:.6g}"))
    return staged.to(like.device)
