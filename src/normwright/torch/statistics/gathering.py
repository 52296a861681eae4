"""Passes in which batch norm layers are measured, and nothing of the model changes.

The whole model is in evaluation, its batch norm layers too: Dropout is off, no counter moves, no process waits for
another. While a layer is not yet final it normalizes by its batch all the same: in its forward it has no
running statistics, or, where its class may not do without, the batch's own in their place. Whoever looks at them
before or after sees the old ones.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from normwright.core import checks
from normwright.core.moments import Moments
from normwright.core.population import Population
from normwright.torch.statistics.dependencies import Followed
from normwright.torch.statistics.measured import COUNTER, STATISTICS, Layer, room_of
from normwright.torch.statistics.moments import moments
from normwright.torch.statistics.writing import KeptBuffers, rounded
from normwright.torch.watched import being_transformed


@dataclass(eq=False)
class Part:
    """What one layer has shown of itself.

    Attributes:
        population: of its method.
        seen: all values so far.
        samples: entries of the batch axis.
        uses: batches of at least one value.
    """

    population: Population
    seen: Moments
    samples: int = 0
    uses: int = 0

    def merge(self, other: "Part") -> None:
        """Take in what another process has seen."""
        self.population.merge(other.population)
        self.seen = self.seen.merge(other.seen)
        self.samples, self.uses = self.samples + other.samples, self.uses + other.uses


class Shown(NamedTuple):
    """What one batch shows of the layers: which are behind which, and how often each was used (see `Followed`)."""

    upstream: dict[str, set[str]]
    uses: dict[str, int]


class Found(NamedTuple):
    """What a pass found.

    Attributes:
        parts: of the layers that were to be measured and were reached, by name.
        uses: of all layers that were reached, in order of execution, the most in one batch.
        batches: how many there were.
        followed: what was seen of the batches that showed more than was known.
    """

    parts: dict[str, Part]
    uses: dict[str, int]
    batches: int
    followed: list[Shown]


class _Enough(BaseException):
    """The layers of this pass have been measured: the rest of the network need not run."""


@dataclass(eq=False)
class _Pass:
    """What the hooks need to know of the pass under way."""

    wanted: frozenset[str] = frozenset()
    stops: bool = False
    followed: Followed | None = None
    number: int = 0  # of the batch, from 1
    missing: set[str] = field(default_factory=set)
    stopped: bool = False
    parts: dict[str, Part] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)  # in this batch
    most: dict[str, int] = field(default_factory=dict)  # in any batch

    def begin_batch(self) -> None:
        self.number, self.stopped, self.missing, self.uses = self.number + 1, False, set(self.wanted), {}

    def end_batch(self) -> None:
        for name, uses in self.uses.items():
            self.most[name] = max(uses, self.most.get(name, 0))


class Gathering:
    """Measures the layers of one model.

    Args:
        call: whose name errors carry.
        model: the module that runs.
        layers: what `find` found in it.
        start: the empty population of a layer.
    """

    def __init__(
        self, call: str, model: nn.Module, layers: list[Layer], start: Callable[[Layer], Population]
    ) -> None:
        self._call, self._model, self._layers, self._start = call, model, layers, start
        self._now = _Pass()
        self._old: dict[str, tuple[Tensor, Tensor]] = {}  # what is shown of layers that are not settled

    @contextmanager
    def open(self) -> Iterator[None]:
        """Inside, the model may be run by the methods below; afterwards all of it is as it was."""
        modes = [(module, module.training) for module in self._model.modules()]
        names = (*STATISTICS, COUNTER)
        ours: set[tuple[nn.Module, str]] = {(layer.module, name) for layer in self._layers for name in names}
        others = KeptBuffers(self._model, ours)
        kept = [(room_of(module, name), name, getattr(module, name, None)) for module, name in ours]
        with ExitStack() as stack:
            try:
                for module, _ in modes:
                    module.training = False
                for room, name, t in kept:
                    # a class of its own might count in evaluation too, or move what it is lent
                    room[name] = t if t is None else t.detach().clone()
                for layer in self._layers:
                    if not layer.frozen:
                        self._hang_on(layer, stack)
                stack.enter_context(torch.no_grad())
                if "torch._dynamo" in sys.modules:  # compiled programs know nothing of hooks made later
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
                yield
            finally:
                for room, name, t in kept:
                    room[name] = t
                for module, training in modes:
                    module.training = training
                others.restore()

    def _hang_on(self, layer: Layer, stack: ExitStack) -> None:
        mean, var = (room_of(layer.module, name)[name] for name in STATISTICS)
        self._old[layer.name] = mean, var
        before, after = partial(self._before, layer), partial(self._after, layer)
        stack.callback(layer.module.register_forward_pre_hook(before, with_kwargs=True).remove)
        # before the user's own hooks; after a failed forward too, as the model may catch that and go on
        hook = layer.module.register_forward_hook(after, prepend=True, always_call=True)
        stack.callback(hook.remove)

    def forget(self) -> None:
        """All layers are to be measured anew."""
        for layer in self._layers:
            layer.settled = layer.frozen
        self._show_old()

    def _show_old(self) -> None:
        for layer in self._layers:
            if not layer.settled:
                layer.show(*self._old[layer.name])

    def follow(self, run: Callable[[Any], None], batch: Any) -> Shown:
        """Run one batch and see which layers are behind which."""
        followed, before, compiles = Followed(), self._now, "torch._dynamo" in sys.modules
        self._now = _Pass(followed=followed, number=before.number)
        try:
            with followed.following():
                run(batch)
        finally:
            self._now = before
            self._show_old()
            if not compiles and "torch._dynamo" in sys.modules:
                torch._dynamo.reset()  # torch.cond compiled its branches as those of a followed pass
        return Shown(followed.upstream, followed.uses)

    def run(
        self,
        run: Callable[[Any], None],
        batches: Iterable[Any],
        wanted: Iterable[str],
        stops: bool,
        step: Callable[[], None],
        known: Mapping[str, int] | None = None,
    ) -> Found:
        """Run all batches and measure the layers `wanted`; `stops` as soon as each was reached, batch by batch.

        A batch that uses a layer more often than is `known` is followed as well; None follows none.
        """
        now = self._now = _Pass(frozenset(wanted), stops)
        known, shown = None if known is None else dict(known), []
        for batch in batches:
            now.begin_batch()
            with suppress(_Enough):
                run(batch)
            now.end_batch()
            self._show_old()
            if known is not None and any(uses > known.get(name, 0) for name, uses in now.uses.items()):
                shown.append(self.follow(run, batch))
                known |= now.most
            step()
        return Found(now.parts, now.most, now.number, shown)

    # ---- hooks --------------------------------------------------------------------------------------------------

    def _before(self, layer: Layer, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A layer begins: take its input's moments, and see to what it will normalize by."""
        now = self._now
        x = args[0] if args else next((kwargs[name] for name in ("input", "x") if name in kwargs), None)
        if now.stopped or not isinstance(x, Tensor) or not x.dtype.is_floating_point:
            return  # what is no input, the layer refuses by itself
        if being_transformed():
            raise checks.TransformError(
                checks.message(self._call, f"no function transform around {layer}", "one")
            )
        now.uses[layer.name] = now.uses.get(layer.name, 0) + 1
        if now.followed is None:
            self._measure(layer, x)
        else:
            now.followed.enter(layer.name, (args, kwargs))
            with now.followed.pause():
                self._measure(layer, x)

    def _after(self, layer: Layer, module: nn.Module, args: Any, output: Any) -> None:
        """A layer is done: it shows its old statistics again."""
        if not layer.settled:
            layer.show(*self._old[layer.name])
        if self._now.followed is not None:
            self._now.followed.leave(layer.name, output)

    def _measure(self, layer: Layer, x: Tensor) -> None:
        if layer.settled:
            return
        now, axis = self._now, checks.check_axis(f"{self._call}: {layer}", x.shape, layer.axis, "channel_dim")
        channels = (layer.mean.numel(),)
        checks.check_per_channel(f"{self._call}: {layer}", "running_mean", channels, x.shape, axis)
        wanted, count = layer.name in now.wanted, x.numel() // x.shape[axis] if x.shape[axis] else 0
        if count == 0:
            return
        if not wanted and layer.can_do_without and count > 1:
            layer.show(None, None)
            return
        batch = moments(x, axis)
        seen = batch
        if wanted:
            part = self._take(layer, batch)
            part.samples += x.shape[0 if axis else 1]
            seen = part.seen
        now.missing.discard(layer.name)
        if wanted and now.stops and not now.missing:
            now.stopped = True
            raise _Enough
        if count > 1 and layer.can_do_without:
            layer.show(None, None)
        else:  # a single value has no variance of its own: it is normalized by all values so far
            by = batch if count > 1 else seen
            layer.show(rounded(by.mean, layer.mean), rounded(by.var(), layer.var))

    def _take(self, layer: Layer, batch: Moments) -> Part:
        now = self._now
        if not (np.isfinite(batch.mean).all() and np.isfinite(batch.m2).all()):
            bad = np.flatnonzero(~(np.isfinite(batch.mean) & np.isfinite(batch.m2)))
            which = (
                f"channel {bad[0]}" if len(bad) == 1 else f"{len(bad)} channels, the first of them {bad[0]}"
            )
            expected = f"a finite mean and variance of every channel in the input of {layer}"
            remedy = "The model is as it was. Look for the cause in that batch, or leave it out."
            got = f"NaN or infinity in {which}, in batch {now.number}"
            raise checks.NonfiniteError(checks.message(self._call, expected, got, remedy=remedy))
        part = now.parts.get(layer.name)
        if part is None:
            part = Part(self._start(layer), Moments.empty(batch.mean.size))
        try:
            part.population.add(batch)
        except checks.ShapeError as error:
            expected = f"more than {layer.ddof} value per channel in every batch of {layer}"
            remedy = "Leave that batch out (DataLoader(drop_last=True)), or use method='pooled'."
            got = f"{batch.count} in batch {now.number}"
            raise checks.ShapeError(checks.message(self._call, expected, got, remedy=remedy)) from error
        part.seen, part.uses = part.seen.merge(batch), part.uses + 1
        now.parts[layer.name] = part
        return part
