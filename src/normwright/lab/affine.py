"""Gamma and beta: what normalization costs without them, how they are learned, and where the layer stands.

Capacity is measured where it is needed: labels drawn at random have to be learned by heart (Zhang et al. 2017), as
a linear map cannot. On the digits' own labels a nearly linear network does well too.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import torch
from torch import nn

from normwright.lab.affine_measures import (
    Trace,
    bias_left,
    linear_map,
    moved_by_bias,
    outcome_of,
    probes,
    recovered,
    spread_of,
    straightness,
)
from normwright.lab.data import Split, Splits
from normwright.lab.experiment import Desk, Experiment, Size
from normwright.lab.networks import BN, CNN, MLP, PLAIN, SIGMOID, Network, Style, batch_norm, build
from normwright.lab.train import Budget, Run, batches, train
from normwright.report.records import Record, Scalar

WITHOUT, NO_AFFINE, WITH = "without BN", "no gamma, beta", "BN"
ONE_PAIR, NO_BIAS, AFTER = "one gamma, beta", "BN, no bias", "BN after"


class OnePair(nn.Module):
    """Batch normalization with one gamma and one beta for the whole layer: the control.

    Both are divided by the square root of the number of channels. So one step of gradient descent moves them by
    the mean of what it would move each channel's own, and they do not need a rate of their own.
    """

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.norm = no_affine(channels, dims)
        self.pace = channels**-0.5
        self.moved_gamma = nn.Parameter(torch.zeros(()))
        self.moved_beta = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, C)`` or ``(N, C, H, W)`` to the same shape."""
        gamma = 1 + self.pace * self.moved_gamma
        y: torch.Tensor = gamma * self.norm(x) + self.pace * self.moved_beta
        return y


def no_affine(channels: int, dims: int) -> nn.Module:
    """Batch normalization without gamma and beta."""
    return batch_norm(channels, dims, affine=False)


STYLES: Mapping[str, Style] = {
    WITHOUT: PLAIN,
    NO_AFFINE: Style(norm=no_affine),
    WITH: BN,
    ONE_PAIR: Style(norm=OnePair),
    NO_BIAS: replace(BN, bias=False),
    AFTER: replace(BN, after=True),
}


@dataclass(frozen=True)
class Entry:
    """A network, in which conditions it is trained, with which rates (rising), for how long.

    Attributes:
        labels: ``"true"``, or ``"random"``: drawn anew for each seed, and only learning them by heart counts.
        images: training images by which a trained network is judged; the random labels are theirs.
        look: the network with BN is looked into: the bias before BN, and what BN leaves of the features.
    """

    network: Network
    conditions: tuple[str, ...]
    rates: tuple[float, ...]
    budget: Budget
    labels: str = "true"
    seeds: int = 5
    images: int = 900
    look: bool = False

    @property
    def name(self) -> str:
        """In trials and records, which network learns what."""
        return self.network.name if self.labels == "true" else f"{self.network.name}, random labels"


@dataclass(frozen=True)
class Plan:
    """What is trained."""

    entries: tuple[Entry, ...]


# The rates are half a decade apart and reach past the best of each condition.
FOUR = (WITHOUT, NO_AFFINE, WITH, ONE_PAIR)
RANDOM = Entry(SIGMOID, FOUR, (0.03, 0.1, 0.3, 1.0, 3.0), Budget(1500, 60, 60), labels="random")
SIGMOID_TRUE = Entry(SIGMOID, FOUR, (0.1, 0.3, 1.0, 3.0, 10.0), Budget(1000, 60, 40))
MLP_TRUE = Entry(
    MLP, (*FOUR, NO_BIAS, AFTER), (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), Budget(500, 60, 20), look=True
)
CNN_TRUE = Entry(CNN, (WITH, AFTER), (0.003, 0.01, 0.03, 0.1, 0.3), Budget(180, 60, 12))

# The demo has no time to choose: each condition has the best of these rates, found on validation images beforehand.
_QUICK = replace(RANDOM, budget=Budget(600, 60, 50), seeds=2, images=450)
_SHORT = replace(MLP_TRUE, budget=Budget(80, 60, 4), seeds=3, images=450)
PLANS: dict[Size, Plan] = {
    "full": Plan((RANDOM, SIGMOID_TRUE, MLP_TRUE, CNN_TRUE)),
    "demo": Plan(
        (
            replace(_QUICK, conditions=(NO_AFFINE,), rates=(0.3,)),
            replace(_QUICK, conditions=(WITH,), rates=(1.0,)),
            replace(_SHORT, conditions=(WITHOUT,), rates=(0.3,)),
            replace(_SHORT, conditions=(NO_AFFINE, WITH, NO_BIAS), rates=(1.0,)),
            replace(_SHORT, conditions=(AFTER,), rates=(0.03,)),
        )
    ),
    "tiny": Plan(
        (
            replace(RANDOM, rates=(1.0,), budget=Budget(4, 60, 2), seeds=2, images=120),
            replace(
                SIGMOID_TRUE,
                conditions=(NO_AFFINE, WITH),
                rates=(1.0,),
                budget=Budget(2, 60, 1),
                seeds=2,
                images=120,
            ),
            replace(MLP_TRUE, rates=(0.3, 1.0), budget=Budget(4, 60, 2), seeds=2, images=120),
        )
    ),
}


def work(plan: Plan) -> float:
    """All trainings, in steps of the MLP."""
    total = 0.0
    for entry in plan.entries:
        tried = len(entry.rates) if len(entry.rates) > 1 else 0
        total += len(entry.conditions) * (tried + entry.seeds) * entry.budget.steps * entry.network.cost
    return total


def measure(desk: Desk, plan: Plan) -> Iterator[Record]:
    """Every entry, condition by condition."""
    for entry in plan.entries:
        for condition in entry.conditions:
            yield from _Trial(desk, entry, condition).measure()


EXPERIMENT = Experiment(
    "affine", "what gamma and beta are for, and where BN stands", (9, 21, 28), PLANS, work, measure
)


class _Trial:
    """One network in one condition."""

    def __init__(self, desk: Desk, entry: Entry, condition: str) -> None:
        self.desk = desk
        self.entry = entry
        self.condition = condition
        self.where: dict[str, Scalar] = {
            "network": entry.network.name,
            "labels": entry.labels,
            "condition": condition,
        }

    def measure(self) -> Iterator[Record]:
        """The choice of a rate, then a training with each seed."""
        rates, seeds = self.entry.rates, self.desk.seeds(self.entry.seeds)
        scores = {rate: self._try(rate, seeds[0]) for rate in rates} if len(rates) > 1 else {rates[0]: 0.0}
        chosen = max(rates, key=lambda rate: scores[rate])
        edge = {rates[0]: "lowest", rates[-1]: "highest"}.get(chosen) if len(rates) > 1 else "fixed"
        if len(rates) > 1:
            for rate, value in scores.items():
                yield Record("score of a rate", value, "fraction", {**self.where, "rate": rate}, 21)
        yield Record("chosen rate", chosen, "rate", {**self.where, "edge": edge}, 21)
        for seed in seeds:
            learn = partial(self._learn, chosen, seed, seed == seeds[0])
            found = self._once(f"rate {chosen:g}, seed {seed}", learn)
            yield from (replace(r, where={**self.where, "seed": seed, **r.where}) for r in found)

    def _once(self, what: str, measured: Callable[[], Iterator[Record]]) -> list[Record]:
        cost = self.entry.budget.steps * self.entry.network.cost
        return self.desk.once(f"{self.entry.name} {self.condition}, {what}", cost, measured)

    def _try(self, rate: float, seed: int) -> float:
        """Mean validation accuracy over the last quarter of a training; that of learning by heart on its own."""

        def measured() -> Iterator[Record]:
            model = build(self.entry.network, seed, STYLES[self.condition])
            curve = self._train(model, rate, seed).accuracy
            yield Record("late accuracy", fmean(curve[-max(1, len(curve) // 4) :]), "fraction", {}, 21)

        return self._once(f"trying rate {rate:g}", measured)[0].value or 0.0

    def _train(self, model: nn.Sequential, rate: float, seed: int, trace: Trace | None = None) -> Run:
        data = data_of(self.desk, self.entry, seed)

        def on_step(step: int) -> None:
            self.desk.notebook.advance(self.entry.network.cost)
            if trace is not None and step % self.entry.budget.every == 0:
                trace.note(step)

        return train(model, data, rate=rate, seed=seed, budget=self.entry.budget, on_step=on_step)

    def _learn(self, rate: float, seed: int, first: bool) -> Iterator[Record]:
        """Everything that is measured on one training."""
        model = build(self.entry.network, seed, STYLES[self.condition])
        data = data_of(self.desk, self.entry, seed)
        looked = self.entry.look and self.condition in (WITHOUT, WITH)
        drawn = next(batches(len(data.train), self.entry.budget, seed))
        batch = Split(data.train.images[drawn], data.train.labels[drawn])
        if looked:
            yield Record("bias gradient left", bias_left(model, batch), "ratio", {"when": "before"}, 9)
        trace = Trace(model) if first and self.condition == WITH and self.entry.labels == "true" else None
        run = self._train(model, rate, seed, trace)
        if self.entry.labels == "random":
            for step, height in zip(run.steps, run.accuracy, strict=True):
                yield Record("accuracy", height, "fraction", {"step": step}, 21)
        seen = Split(data.train.images[: self.entry.images], data.train.labels[: self.entry.images])
        yield from outcome_of(model, seen, data.test if self.entry.labels == "true" else None)
        yield from straightness(model, seen.images)
        if self.condition == WITH:
            yield from spread_of(model)
        if trace is not None:
            yield from trace.records
        if looked:
            yield Record("bias gradient left", bias_left(model, batch), "ratio", {"when": "after"}, 9)
        if looked and self.condition == WITH and run.failed is None:
            yield Record("logits moved by a bias", moved_by_bias(model, batch.images, seed), "ratio", {}, 9)
            yield from recovered(model, batch.images)
            yield from probes(model, seen, data.test)
        if self.entry.labels == "random" and self.condition == WITH and first:
            yield Record("accuracy of a linear map", linear_map(data.train), "fraction", {}, 21)


def data_of(desk: Desk, entry: Entry, seed: int) -> Splits:
    """What an entry learns, and on what it is judged; random labels are judged by those learned by heart."""
    data = desk.data(entry.network)
    if entry.labels == "true":
        return data
    generator = torch.Generator().manual_seed(seed)
    own = data.train.labels[: entry.images]
    drawn = Split(data.train.images[: entry.images], own[torch.randperm(len(own), generator=generator)])
    return Splits(drawn, drawn, drawn)
