"""The shift: how far each layer's input distribution moves while the network learns, and whether that matters.

What is watched is the input of each nonlinearity: what BN puts out, or what the affine map puts out without BN. The
same training images go through copies of the network in training mode, in batches as large as the training's. The
control after Santurkar et al. 2018 (section 2.2): noise after BN moves the distributions at every step, on purpose.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from statistics import fmean

import numpy as np
import torch
from torch import nn

from normwright.lab.data import Split
from normwright.lab.distributions import Distribution, mean_shift, raw_mean_shift, shape_shift, variance_shift
from normwright.lab.experiment import Desk, Experiment, Size
from normwright.lab.networks import BN, DEEP_CNN, PLAIN, SIGMOID, Network, Style, batch_norm, build, parts
from normwright.lab.train import Budget, accuracy, chunks, steps_to
from normwright.report.records import Record, Scalar

PERCENTILES = (15, 50, 85)  # the paper's, figure 1
CURVE = "validation accuracy as trained"
UNIT_INPUT = "input of a unit"
LINES = (CURVE, UNIT_INPUT)  # many records for one line each: not kept where nothing draws them
UNIT = 0  # whose percentiles are kept: the last hidden layer's first, fixed before anything was looked at
GOAL = 0.95  # of the best accuracy with BN: near the end of learning, and on any data set within reach
PROBING = 1.5  # a watched training costs about this much more than one that is not

# The noise of the control, in deviations of what BN puts out before its gamma and beta are learned.
STRETCH = 1.25  # each channel's scale is multiplied by 1 to this, by another amount in each step
JITTER = 0.1  # each activation's own deviation from its channel's shift and stretch

WITHOUT, WITH, NOISY = "without BN", "BN", "noisy BN"
SAME_RATE = "BN, the rate without"  # BN at the rate that was chosen without it
SIDES = (WITHOUT, WITH, NOISY)  # they choose a rate each


class Noise(nn.Module):
    """Moves and stretches the distribution of each channel, differently in each step of training.

    Every activation becomes ``stretch * x + shift``, drawn around a shift (up to `shift`, either way) and a stretch
    of its channel, which themselves are drawn anew in each step. In evaluation it does nothing.
    """

    def __init__(self, channels: int, seed: int, shift: float) -> None:
        super().__init__()
        self.channels = channels
        self.shift = shift
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, C, ...)`` to the same shape."""
        if not self.training:
            return x

        def uniform(shape: Sequence[int], low: float, high: float) -> torch.Tensor:
            return low + (high - low) * torch.rand(shape, generator=self.generator)

        channel = (1, self.channels, *(1 for _ in x.shape[2:]))
        shift = uniform(channel, -self.shift, self.shift) + uniform(x.shape, -JITTER, JITTER)
        stretch = uniform(channel, 1.0, STRETCH) + JITTER * torch.randn(x.shape, generator=self.generator)
        return stretch * x + shift


def noisy(seed: int, shift: float) -> Style:
    """Batch normalization with noise after it, up to `shift`; each layer's noise its own and fixed by `seed`."""
    layers = count()

    def norm(channels: int, dims: int) -> nn.Module:
        # A million apart: no layer of one seed has the noise of a layer of another.
        return nn.Sequential(
            batch_norm(channels, dims), Noise(channels, seed + 1_000_000 * next(layers), shift)
        )

    return Style(norm=norm)


def style(side: str, seed: int, noise: float) -> Style:
    """How the network of one side is built."""
    return noisy(seed, noise) if side == NOISY else BN if side == WITH else PLAIN


# --- looking ----------------------------------------------------------

Measures = Mapping[str, Callable[[Distribution, Distribution], float | None]]
MEANS: Measures = {"mean shift": mean_shift, "raw mean shift": raw_mean_shift}
MOMENTS: Measures = {"mean shift": mean_shift, "variance shift": variance_shift}
ALL: Measures = {**MOMENTS, "shape shift": shape_shift}
UNITS = {
    "mean shift": "deviations",
    "raw mean shift": "input",
    "variance shift": "log ratio",
    "shape shift": "deviations",
}


def look(network: nn.Sequential, batches: Sequence[torch.Tensor]) -> list[Distribution]:
    """The input distribution of each nonlinearity of `network`, in order of depth.

    A copy in training mode takes the batches, one by one as in training: neither weights, running statistics nor
    the noise's next draw change, and every batch meets the noise that the next step would.
    """
    copy = deepcopy(network).train()
    generators = [layer.generator for layer in copy.modules() if isinstance(layer, Noise)]
    states = [generator.get_state() for generator in generators]
    layers = parts(copy, "act")
    seen: list[list[torch.Tensor]] = [[] for _ in layers]
    for layer, values in zip(layers, seen, strict=True):
        layer.register_forward_pre_hook(lambda _, inputs, values=values: values.append(inputs[0].clone()))
    with torch.no_grad():
        for batch in batches:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            copy(batch)
    return [Distribution(values) for values in seen]


def accuracy_as_trained(network: nn.Sequential, split: Split, batch_size: int) -> float:
    """Share of the images that the network names rightly in training mode: batch statistics, noise and all.

    How far training is. Running statistics would judge something else too: they average over noise that is
    absent when the network predicts, and over weights that have since moved.
    """
    copy = deepcopy(network).train()
    batches = _full_batches(split.images, batch_size)
    with torch.no_grad():
        classes = torch.cat([copy(batch).argmax(1) for batch in batches])
    return float((classes == split.labels[: len(classes)]).double().mean())


def _full_batches(images: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """All but a last one that is smaller, and whose statistics would be poorer: training leaves it out too."""
    return [batch for batch in chunks(images, batch_size) if len(batch) == batch_size]


class Observer:
    """Looks at a network every few steps while it learns, and keeps how far its distributions moved.

    Over three spans: from each look to the step after it, to the next look, and from the first look to the last.
    """

    def __init__(self, network: nn.Sequential, every: int, batches: Sequence[torch.Tensor]) -> None:
        self.network = network
        self.every = every
        self.batches = batches
        self.first = self.last = look(network, batches)
        self.percentiles = {0: self.last[-1].percentiles(UNIT, PERCENTILES)}
        self._moved: dict[tuple[str, str, int], list[float | None]] = {}

    def on_step(self, step: int) -> None:
        """What is to be done after a step of training."""
        if step % self.every == 0:
            now = look(self.network, self.batches)
            self._compare("between looks", self.last, now, MOMENTS)
            self.last = now
            self.percentiles[step] = now[-1].percentiles(UNIT, PERCENTILES)
        elif step % self.every == 1:
            now = look(self.network, self.batches)
            self._compare("one step", self.last, now, MEANS)

    def records(self, where: Mapping[str, Scalar]) -> Iterator[Record]:
        """How far each layer's distribution moved, by each measure and over each span."""
        self._compare("from the start", self.first, self.last, ALL)
        for (what, span, layer), values in self._moved.items():
            known = [value for value in values if value is not None]
            value = fmean(known) if len(known) == len(values) else None
            yield Record(what, value, UNITS[what], {**where, "span": span, "layer": layer}, 25)

    def _compare(
        self, span: str, before: list[Distribution], after: list[Distribution], measures: Measures
    ) -> None:
        for layer, (old, new) in enumerate(zip(before, after, strict=True), start=1):
            for what, measure in measures.items():
                self._moved.setdefault((what, span, layer), []).append(measure(old, new))


# --- the experiment ---------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A network, the rates (rising) that each side chooses from, and how long it trains.

    It is looked at when its accuracy is taken, with `probe` batches; `noise` is the largest shift of the control's;
    `percentiles`: those of one unit are kept.
    """

    network: Network
    rates: tuple[float, ...]
    budget: Budget
    probe: int
    noise: float
    percentiles: bool = False


@dataclass(frozen=True)
class Plan:
    """The networks, the seeds, and how many of them choose the rate."""

    entries: tuple[Entry, ...]
    seeds: int
    choosing: int


# A dense layer gives one value an image, a convolution many: its probe needs fewer images. Without BN the sigmoid
# MLP's distributions move by more in a step than the deep CNN's, so its control has to move them by more.
SIGMOID_ENTRY = Entry(
    SIGMOID, (0.1, 0.3, 1.0, 3.0, 10.0), Budget(1200, 60, 40), probe=7, noise=2.0, percentiles=True
)
DEEP_CNN_ENTRY = Entry(DEEP_CNN, (0.01, 0.03, 0.1, 0.3), Budget(240, 60, 12), probe=2, noise=0.5)

PLANS: dict[Size, Plan] = {
    "full": Plan((SIGMOID_ENTRY, DEEP_CNN_ENTRY), seeds=5, choosing=1),
    "demo": Plan(
        (replace(SIGMOID_ENTRY, rates=(0.3, 1.0, 3.0), budget=Budget(120, 60, 12), probe=4),),
        seeds=3,
        choosing=1,
    ),
    "tiny": Plan(
        (
            replace(SIGMOID_ENTRY, rates=(0.3, 1.0), budget=Budget(6, 60, 3), probe=2),
            replace(DEEP_CNN_ENTRY, rates=(0.1,), budget=Budget(2, 60, 2), probe=1),
        ),
        seeds=1,
        choosing=1,
    ),
}


def work(plan: Plan) -> float:
    """All trials, in steps of the MLP."""
    total = 0.0
    for entry in plan.entries:
        trainings = len(SIDES) * len(entry.rates) * plan.choosing + PROBING * (len(SIDES) + 1) * plan.seeds
        total += trainings * entry.budget.steps * entry.network.cost
    return total


def measure(desk: Desk, plan: Plan) -> Iterator[Record]:
    """Every network, one after the other."""
    for entry in plan.entries:
        yield from _Shift(desk, entry, plan).measure()


EXPERIMENT = Experiment(
    "shift",
    "how far the layers' input distributions move, and whether it matters",
    (14, 19, 25, 28),
    PLANS,
    work,
    measure,
)


class _Shift:
    """The experiment on one network."""

    def __init__(self, desk: Desk, entry: Entry, plan: Plan) -> None:
        self.desk = desk
        self.entry = entry
        self.plan = plan
        self.seeds = desk.seeds(plan.seeds)
        self._watching = PROBING * entry.budget.steps * entry.network.cost
        self.data = desk.data(entry.network)
        # The first images of the training set, and as many others: the split is random, so are they.
        batches = _full_batches(self.data.train.images, entry.budget.batch_size)
        half = min(entry.probe, len(batches) // 2)
        self.probe, self.others = batches[:half], batches[half : 2 * half]

    def measure(self) -> Iterator[Record]:
        network = self.entry.network.name
        rates = {}
        for side in SIDES:
            scores = {rate: self._score(side, rate) for rate in self.entry.rates}
            rates[side] = max(scores, key=lambda rate: scores[rate])
            where: dict[str, Scalar] = {"network": network, "condition": side}
            for rate, score in scores.items():
                yield Record("score of a rate", score, "fraction", {**where, "rate": rate}, 25)
            edge = {self.entry.rates[0]: "lowest", self.entry.rates[-1]: "highest"}.get(rates[side])
            yield Record("chosen rate", rates[side], "rate", {**where, "edge": edge}, 25)
        for seed in self.seeds:
            curves = {}
            for condition in (*SIDES, SAME_RATE):
                side, rate = (
                    (WITH, rates[WITHOUT]) if condition == SAME_RATE else (condition, rates[condition])
                )
                records = self._watched(side, rate, seed)
                if condition == SAME_RATE and rate == rates[WITH]:
                    self.desk.notebook.advance(self._watching)  # that of BN, and told of then
                curves[condition] = {
                    int(r.where["step"] or 0): r.value or 0.0 for r in records if r.what == CURVE
                }
                where = {"network": network, "condition": condition, "seed": seed}
                told = [r for r in records if condition != SAME_RATE or r.what not in LINES]
                yield from (replace(r, where={**where, **r.where}) for r in told)
            yield from self._steps(curves, seed)

    def _score(self, side: str, rate: float) -> float:
        """Mean accuracy over all of the training, by which a rate is chosen: speed counts here."""

        def measure(seed: int) -> Iterator[Record]:
            model = build(self.entry.network, seed, style(side, seed, self.entry.noise))
            curve = self._train(model, rate, seed)
            yield Record("score", fmean(curve.values()), "fraction")

        name = f"{self.entry.network.name} {side}, rate {rate:g}"
        cost = self.entry.budget.steps * self.entry.network.cost
        trials = [
            self.desk.once(f"{name}, seed {seed}", cost, partial(measure, seed))
            for seed in self.seeds[: self.plan.choosing]
        ]
        return fmean(record.value or 0.0 for trial in trials for record in trial)

    def _train(
        self,
        model: nn.Sequential,
        rate: float,
        seed: int,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> dict[int, float]:
        """Train `model`: its accuracy on the validation images, as trained, by step."""
        budget = self.entry.budget
        curve = {}

        def step_done(step: int) -> None:
            on_step(step)
            if step % budget.every == 0:
                curve[step] = accuracy_as_trained(model, self.data.validation, budget.batch_size)

        # The accuracy by running statistics, which `train` would take at every look, is not wanted.
        once = replace(budget, every=budget.steps)
        self.desk.train(self.entry.network, model, rate=rate, seed=seed, budget=once, on_step=step_done)
        return curve

    def _watched(self, side: str, rate: float, seed: int) -> list[Record]:
        """One training at the chosen rate, its distributions looked at as it goes."""
        network, budget = self.entry.network, self.entry.budget

        def measure() -> Iterator[Record]:
            where: dict[str, Scalar] = {"rate": rate}
            model = build(network, seed, style(side, seed, self.entry.noise))
            observer = Observer(model, budget.every, self.probe)
            curve = self._train(model, rate, seed, observer.on_step)
            yield from observer.records(where)
            yield from self._noise_of_sampling(model, observer.last, where)
            for step, height in curve.items():
                yield Record(CURVE, height, "fraction", {**where, "step": step}, 25)
            as_trained = accuracy_as_trained(model, self.data.test, budget.batch_size)
            yield Record("test accuracy as trained", as_trained, "fraction", where, 25)
            yield Record("test accuracy", accuracy(model, self.data.test), "fraction", where, 25)
            if side == WITH:
                yield Record("mean minus beta", _from_beta(model, observer.last), "absolute", where, 19)
            if self.entry.percentiles and side != NOISY and seed == self.seeds[0]:
                yield from _percentiles(observer, where)

        name = f"{network.name} {side}, rate {rate:g}, seed {seed}, watched"
        return self.desk.once(name, self._watching, measure)

    def _noise_of_sampling(
        self, model: nn.Sequential, last: list[Distribution], where: Mapping[str, Scalar]
    ) -> Iterator[Record]:
        """The distance in shape that other images make in the same network: one that nothing moved."""
        for layer, (one, other) in enumerate(zip(last, look(model, self.others), strict=True), start=1):
            told = {**where, "layer": layer}
            yield Record("shape of other images", shape_shift(one, other), "deviations", told, 25)

    def _steps(self, curves: Mapping[str, Mapping[int, float]], seed: int) -> Iterator[Record]:
        """Steps to the goal, None where it was never reached."""
        goal = GOAL * max(curves[WITH].values())
        for condition, curve in curves.items():
            where: dict[str, Scalar] = {
                "network": self.entry.network.name,
                "condition": condition,
                "seed": seed,
            }
            yield Record("goal", goal, "fraction", where, 25)
            steps = steps_to(goal, tuple(curve), tuple(curve.values()))
            yield Record("steps to the goal", steps, "steps", where, 25)


def _from_beta(model: nn.Sequential, last: Sequence[Distribution]) -> float | None:
    """The largest distance of a channel's mean from the beta of its batch normalization."""
    distances = [
        np.abs(now.mean - layer.get_parameter("bias").detach().double().numpy()).max()
        for now, layer in zip(last, parts(model, "norm"), strict=True)
    ]
    largest = float(max(distances))
    return largest if np.isfinite(largest) else None


def _percentiles(observer: Observer, where: Mapping[str, Scalar]) -> Iterator[Record]:
    for step, values in observer.percentiles.items():
        for percent, value in zip(PERCENTILES, values, strict=True):
            told = {**where, "step": step, "percentile": percent}
            yield Record(UNIT_INPUT, value if np.isfinite(value) else None, "input", told, 14)
