"""The passes of a recalibration: which layers are measured in which, and what becomes of what they show."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from typing import Any, Literal

import torch
from torch import nn

from normwright.core import checks
from normwright.core.population import BatchMeans, Moving, Pooled, Population, Statistics, with_prior
from normwright.core.running import debiased
from normwright.torch.distributed.ranks import Ranks, check_alike
from normwright.torch.progress import Told
from normwright.torch.statistics.dependencies import levels
from normwright.torch.statistics.drift import Drift, LayerDrift
from normwright.torch.statistics.feeding import Feed, Forward, check_same_number
from normwright.torch.statistics.gathering import Found, Gathering, Part, Shown
from normwright.torch.statistics.measured import Layer, find
from normwright.torch.statistics.wrapped import is_sharded, to_run
from normwright.torch.statistics.writing import Writes, copy, restored_on_failure, rounded

Method = Literal["pooled", "algorithm2", "moving"]
Order = Literal["joint", "sequential"]
CALL = "normwright.torch.recalibrate"


class Measuring:
    """One recalibration: its layers, and the statistics found so far.

    Args:
        ranks: the processes that take part.
        model, method, order, prior, forward: as `recalibrate` takes them, a prior of 0 being none.
        prepare: checks the arguments, in every process before any goes on; whom to tell of progress, and the
            number of batches, where that is known.
    """

    def __init__(
        self,
        ranks: Ranks,
        model: nn.Module,
        method: Method,
        order: Order,
        prior: float,
        forward: Forward | None,
        prepare: Callable[[], tuple[Told, int | None]],
    ) -> None:
        self._ranks, self._method, self._prior = ranks, method, prior
        self._passes = self._batches = 0
        self._parts: dict[str, Part] = {}
        self._new: dict[str, Statistics] = {}
        self._order: dict[str, None] = {}  # of execution
        self._upstream: dict[str, set[str]] = {}
        self._uses: dict[str, int] = {}  # the most that any batch has shown
        self._cut: set[str] = set()  # measured in a pass that ended after the first use
        self._count: int | None = None  # of this process's batches
        self._when: dict[str, int] = {}  # the pass in which each was measured
        self._expected = 0  # passes

        def find_all() -> tuple[dict[str, Any], dict[str, Statistics]]:
            self._told, self._number = prepare()
            within = to_run(model)
            self._layers = {layer.name: layer for layer in find(CALL, within)}
            self._feed, self._may_stop = Feed(CALL, within, forward), not is_sharded(within)
            self._gathering = Gathering(CALL, within, list(self._layers.values()), self._start)
            self._old = {name: layer.old for name, layer in self._layers.items()}
            said = {"method": method, "order": order, "prior": prior, "sharding": not self._may_stop}
            return said | {"layers": [layer.facts for layer in self._layers.values()]}, self._old

        everybody = ranks.gather(find_all)  # what is wrong in one process alone, all of them learn
        check_alike(CALL, [facts for facts, _ in everybody])
        self._before = everybody[0][1]
        if prior or method == "moving":
            self._check_old()

    def _check_old(self) -> None:
        """Raise unless there are numbers to go on from."""
        for name, old in self._before.items():
            if not self._layers[name].frozen and not all(map(_is_finite, old)):
                expected = f"finite statistics to go on from in {self._layers[name]}"
                remedy = "Use method='pooled' without a prior, which needs none."
                raise checks.NonfiniteError(checks.message(CALL, expected, "NaN or infinity", remedy=remedy))

    def _start(self, layer: Layer) -> Population:
        channels = layer.mean.numel()
        if self._method == "pooled":
            return Pooled(channels, layer.ddof)
        if self._method == "algorithm2":
            return BatchMeans(channels, layer.ddof)
        return Moving(self._before[layer.name], _rate(layer), layer.ddof)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Inside, the layers can be measured; afterwards the model is as it was."""
        with ExitStack() as stack:

            def enter() -> None:
                stack.enter_context(self._gathering.open())
                stack.enter_context(self._told)

            self._ranks.gather(enter)
            yield

    # ---- passes -------------------------------------------------------------------------------------------------

    def jointly(self, batches: Iterable[Any]) -> None:
        """All layers in one pass."""
        self._pass(batches, self._open_layers(), total=1)

    def in_sequence(self, batches: Iterable[Any]) -> None:
        """Layer behind layer."""
        first: list[Any] = []
        rest: Iterator[Any] = iter(())

        def look() -> Shown | None:
            nonlocal rest
            rest = iter(batches)
            first.extend(islice(rest, 1))
            return self._gathering.follow(self._feed, first[0]) if first else None

        self._learn(self._ranks.gather(look))
        self._through(levels(self._upstream) or [[]], batches, self._may_stop, chain(first, rest))
        tried: set[str] = set()  # a layer may be reached no more once others have their statistics
        anew = len(self._layers)  # how often that can be of use: each time something more was seen
        while (outdated := anew > 0 and self._is_outdated()) or (late := self._late() - tried):
            groups = levels(self._upstream)
            if outdated:
                anew -= 1
                self._forget()
            else:
                tried |= late
                groups = [kept for group in groups if (kept := [name for name in group if name in late])]
            self._through(groups, batches, stops=False)

    def _late(self) -> set[str]:
        """Layers that some batch reaches, and that were not measured."""
        return {name for name in self._open_layers() if name in self._upstream}

    def _is_outdated(self) -> bool:
        """Whether batches have shown that a layer was measured in too few of its uses, or too early."""
        if any(self._uses[name] > 1 for name in self._cut):
            return True
        depth = {name: k for k, group in enumerate(levels(self._upstream)) for name in group}
        return any(
            depth[other] < depth[name] and self._when.get(other, math.inf) >= when
            for name, when in self._when.items()
            for other in self._upstream[name] & depth.keys()
        )

    def _open_layers(self) -> list[str]:
        return [name for name, layer in self._layers.items() if not layer.settled]

    def _through(
        self, groups: list[list[str]], batches: Iterable[Any], stops: bool, first: Iterable[Any] | None = None
    ) -> None:
        """A pass for each group of layers; all but the last may stop, where they saw each layer used once."""
        total = self._passes + len(groups)
        for k, group in enumerate(groups):
            # The last one looks whether other batches show more than those that were followed.
            ends = stops and k + 1 < len(groups) and all(self._uses[name] == 1 for name in group)
            if ends:
                self._cut |= set(group)
            now = batches if first is None or k else first
            self._learn(self._pass(now, group, total, stops=ends, known=self._uses))

    def _learn(self, shown: Iterable[Shown | None]) -> None:
        """Which layers are behind which, in the order of the ranks: the same in each of them."""
        for each in shown:
            if each is not None:
                for name, behind in each.upstream.items():
                    self._upstream.setdefault(name, set()).update(behind)
                    self._uses[name] = max(self._uses.get(name, 0), each.uses[name])

    def _forget(self) -> None:
        """Begin anew, with what is known of the layers."""
        self._gathering.forget()
        self._parts, self._new, self._when, self._cut = {}, {}, {}, set()

    def _pass(
        self,
        batches: Iterable[Any],
        wanted: Iterable[str],
        total: int,
        stops: bool = False,
        known: dict[str, int] | None = None,
    ) -> list[Shown]:
        """Measure these layers and give them their statistics; what it showed of others, in any process."""

        def run() -> Found:
            if total != self._expected:
                self._expected = total
                batches_in_all = None if self._number is None else self._number * total
                self._told.expect(batches_in_all, "1 pass" if total == 1 else f"{total} passes")
            found = self._gathering.run(self._feed, batches, wanted, stops, self._told.step, known)
            if self._count is not None:
                check_same_number(CALL, self._count, found.batches)
            self._count = found.batches
            return found

        found = self._ranks.gather(run)
        self._passes += 1
        if self._passes == 1:
            self._batches = sum(each.batches for each in found)
            if not self._batches:
                raise checks.ShapeError(checks.message(CALL, "at least one batch", "none"))
        for each in found:
            for name, uses in each.uses.items():
                self._order[name] = None
                self._upstream.setdefault(name, set())
                self._uses[name] = max(uses, self._uses.get(name, 0))
            for name, part in each.parts.items():
                if name in self._parts:
                    self._parts[name].merge(part)
                else:
                    self._parts[name] = part
        self._ranks.gather(lambda: self._settle_all(wanted))
        return [shown for each in found for shown in each.followed]

    def _settle_all(self, wanted: Iterable[str]) -> None:
        """Give these layers their statistics, for the rest of the passes, where they were reached."""
        for name in wanted:
            if name in self._parts:
                self._settle(self._layers[name], self._parts[name])
                self._when[name] = self._passes

    def _settle(self, layer: Layer, part: Part) -> None:
        if part.seen.count <= layer.ddof:
            expected = f"more than {layer.ddof} value per channel in all batches for {layer}"
            raise checks.ShapeError(checks.message(CALL, expected, str(part.seen.count)))
        new = part.population.statistics()
        if self._prior:
            new = with_prior(self._before[layer.name], self._prior, new, part.samples)
        mean, var = layer.held(CALL, new)
        self._new[layer.name] = new
        layer.show(mean, var)
        layer.settled = True

    # ---- the end ------------------------------------------------------------------------------------------------

    def write(self) -> Drift:
        """Write all that was found into the model's own tensors, or nothing, in every process alike."""
        writes: Writes = []
        with ExitStack() as stack:

            def prepare() -> None:
                writes.extend(self._writes())
                stack.enter_context(restored_on_failure(into for into, _ in writes))

            self._ranks.gather(prepare)
            self._ranks.gather(lambda: copy(writes))
        order = {name: k for k, name in enumerate(self._order)}
        layers = [
            LayerDrift(
                name,
                int(self._parts[name].seen.count),
                *self._old[name],
                *self._new[name],
                eps=float(self._layers[name].module.eps),
            )
            for name in sorted(self._new, key=lambda name: order[name])
        ]
        frozen = tuple(name for name, layer in self._layers.items() if layer.frozen)
        unreached = (n for n in self._layers if n not in self._new and n not in frozen)
        return Drift(tuple(layers), tuple(unreached), frozen, self._passes, self._batches)

    def _writes(self) -> Writes:
        writes: Writes = []
        for name, new in self._new.items():
            layer, uses = self._layers[name], self._parts[name].uses
            writes.append((layer.mean, rounded(new.mean, layer.mean)))
            writes.append((layer.var, rounded(new.var, layer.var)))
            if layer.counter is not None:
                goes_on = self._prior or self._method == "moving"
                before = layer.counter.detach().clone() if goes_on else torch.zeros_like(layer.counter)
                writes.append((layer.counter, before + uses))
        return writes


def _is_finite(values: Any) -> bool:
    return bool(abs(values).max(initial=0) < math.inf)


def _rate(layer: Layer) -> Callable[[int], float]:
    """The weight of the k-th batch from now, by the layer's rule."""
    momentum: Any = layer.module.momentum
    if momentum is not None and getattr(layer.module, "debias", False):
        rate, counted = float(momentum), int(layer.counter or 0)
        return lambda k: float(debiased(rate, counted + k))
    if momentum is not None:
        rate = float(momentum)
        return lambda k: rate
    if layer.counter is None:
        return lambda k: 0.0  # as torch's
    before = int(layer.counter)
    return lambda k: 1 / (before + k)
