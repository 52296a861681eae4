"""Generalization: how far the training set is ahead of the test set, with batch normalization and without.

Every network is trained until it names its training images rightly, and then on; with few images and with many.
Since batch normalization trains faster, the two sides are also compared at the same training loss. A last question
is asked of batch normalization alone: whether the noise of its statistics is what helps.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from normwright.lab.data import Split, Splits
from normwright.lab.experiment import Desk, Experiment, Size
from normwright.lab.networks import BN, CNN, MLP, PLAIN, Network, Style, batch_norm, build
from normwright.lab.rates import FINALISTS, SCORE, Trial, choose, score
from normwright.lab.train import Budget, chunks, train
from normwright.report.records import Record, Scalar

ROW = 22
CHUNK = 100  # images in one forward pass of an evaluation
LEVELS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # of the training loss, at which both sides are compared
LOOKS_APART = 1.5  # each look comes at so many times the step of the one before: the loss falls by powers too
WITHOUT, WITH = "without BN", "BN"


@dataclass(frozen=True)
class Entry:
    """A network of the comparison.

    Attributes:
        network: which one.
        rates: tried under every condition, rising.
        budget: how long each of them trains: until almost every training image is named rightly, and on.
        images: how many it is trained on, one comparison for each.
        pieces: images that share their statistics, each a control of its own, where the batch is larger.
    """

    network: Network
    rates: tuple[float, ...]
    budget: Budget
    images: tuple[int, ...]
    pieces: tuple[int, ...] = ()

    @property
    def conditions(self) -> tuple[str, ...]:
        """Both sides, and the controls."""
        return (WITHOUT, WITH, *(in_pieces(size) for size in self.pieces))


@dataclass(frozen=True)
class Plan:
    """Which networks, with how many seeds."""

    entries: tuple[Entry, ...]
    seeds: int


# Rates are half a decade apart, as in the race. A batch divides every number of images: none is passed over. The
# CNN without batch normalization would take minutes for each training to fit 900 images, and is left out there.
MLP_ENTRY = Entry(
    MLP,
    (0.03, 0.1, 0.3, 1.0, 3.0),
    Budget(steps=700, batch_size=50, every=35),
    images=(100, 300, 900),
    pieces=(5,),
)
CNN_ENTRY = Entry(
    CNN, (0.003, 0.01, 0.03, 0.1), Budget(steps=1000, batch_size=25, every=50), images=(100, 300)
)
SHORT_ENTRY = replace(
    MLP_ENTRY, rates=(0.1, 0.3), budget=Budget(150, 50, 15), images=MLP_ENTRY.images[:2], pieces=()
)
TINY_ENTRY = replace(SHORT_ENTRY, budget=Budget(12, 50, 4), images=(50, 100), pieces=(10,))

PLANS: dict[Size, Plan] = {
    "full": Plan((MLP_ENTRY, CNN_ENTRY), seeds=5),
    "demo": Plan((SHORT_ENTRY,), seeds=3),
    "tiny": Plan((TINY_ENTRY,), seeds=2),
}


def work(plan: Plan) -> float:
    """All trainings, in steps of the MLP."""
    total = 0.0
    for entry in plan.entries:
        tuned = len(entry.rates) + min(FINALISTS, len(entry.rates)) * (plan.seeds - 1)
        runs = len(entry.images) * len(entry.conditions) * tuned
        total += runs * entry.budget.steps * entry.network.cost
    return total


def measure(desk: Desk, plan: Plan) -> Iterator[Record]:
    """Each network on each number of images: both sides and the controls, each with a rate of its own choice."""
    seeds = desk.seeds(plan.seeds)
    for entry in plan.entries:
        for images in entry.images:
            here = _Comparison(desk, entry, images)
            for condition in entry.conditions:
                rate, records = choose(entry.rates, seeds, here.trial(condition), here.where(condition), ROW)
                yield from records
                yield from here.finals(condition, rate, seeds)


EXPERIMENT = Experiment(
    "generalization",
    "how far training and test images are apart, with BN and without",
    (ROW,),
    PLANS,
    work,
    measure,
)


def in_pieces(size: int) -> str:
    """The condition under which only so many images share their statistics."""
    return f"BN, statistics of {size}"


class Pieces(nn.Module):
    """Batch normalization in which only `size` images of a batch share their statistics while it trains.

    The gradient is still that of the whole batch: what changes is the noise of the statistics, and nothing else.
    """

    def __init__(self, norm: nn.Module, size: int) -> None:
        super().__init__()
        self.norm = norm
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each piece by itself in training; all by the running statistics in evaluation."""
        if not self.training:
            return torch.as_tensor(self.norm(x))
        return torch.cat([self.norm(piece) for piece in torch.split(x, self.size)])


def _style(condition: str) -> Style:
    if condition in (WITHOUT, WITH):
        return BN if condition == WITH else PLAIN
    size = int(condition.rpartition(" ")[2])
    return Style(norm=lambda channels, dims: Pieces(batch_norm(channels, dims), size))


def truncated(splits: Splits, images: int, seed: int) -> Splits:
    """The same validation and test images, and so many of the training images, drawn by `seed`."""
    if images > len(splits.train):
        raise ValueError(f"truncated: expected at most {len(splits.train)} images, got {images}.")
    drawn = torch.from_numpy(np.random.default_rng(seed).permutation(len(splits.train))[:images])
    return replace(splits, train=Split(splits.train.images[drawn], splits.train.labels[drawn]))


class _Comparison:
    """One network on one number of training images."""

    def __init__(self, desk: Desk, entry: Entry, images: int) -> None:
        self.desk = desk
        self.entry = entry
        self.images = images

    def where(self, condition: str) -> dict[str, Scalar]:
        return {"network": self.entry.network.name, "images": self.images, "condition": condition}

    def finals(self, condition: str, rate: float, seeds: Sequence[int]) -> Iterator[Record]:
        """What the trainings at the chosen rate came to, a seed after the other."""
        for seed in seeds:
            for record in self.trial(condition)(rate, seed):
                told = {**self.where(condition), "rate": rate, "seed": seed, **record.where}
                yield replace(record, where=told)

    def trial(self, condition: str) -> Trial:
        """Trains under a condition, at a rate, with a seed: once."""
        network, budget = self.entry.network, self.entry.budget

        def once(rate: float, seed: int) -> list[Record]:
            name = f"{network.name} {condition}, {self.images} images, rate {rate:g}, seed {seed}"
            work = budget.steps * network.cost
            return self.desk.once(name, work, lambda: self._measure(condition, rate, seed))

        return once

    def _measure(self, condition: str, rate: float, seed: int) -> Iterator[Record]:
        network, budget = self.entry.network, self.entry.budget
        splits = truncated(self.desk.data(network), self.images, seed)
        model = build(network, seed, _style(condition))
        due = set(look_steps(budget.steps))
        looks = [look(model, splits)]

        def on_step(step: int) -> None:
            self.desk.notebook.advance(network.cost)
            if step in due:
                looks.append(look(model, splits))

        run = train(model, splits, rate=rate, seed=seed, budget=budget, on_step=on_step)
        yield Record(SCORE, score(run.accuracy), "fraction", {}, ROW)
        yield Record("failed at", run.failed, "steps", {}, ROW)
        yield from _ends(looks[-1])
        for level in LEVELS:
            at = crossing(looks, level)
            yield Record("test loss at a training loss", at, "nats", {"level": level}, ROW)


@dataclass(frozen=True)
class Look:
    """Accuracy and mean loss (cross-entropy) on training and test images, as in prediction."""

    train_accuracy: float
    train_loss: float
    test_accuracy: float
    test_loss: float


def look(network: nn.Module, splits: Splits) -> Look:
    """Evaluate on the training and the test images; the network is left in the mode it was in."""
    was_training = network.training
    network.eval()
    found: list[float] = []
    with torch.inference_mode():
        for split in (splits.train, splits.test):
            logits = torch.cat([network(chunk) for chunk in chunks(split.images, CHUNK)]).double()
            found.append(float((logits.argmax(1) == split.labels).double().mean()))
            found.append(float(nn.functional.cross_entropy(logits, split.labels)))
    network.train(was_training)
    return Look(*found)


def look_steps(steps: int) -> list[int]:
    """The last step and, before it, ever earlier ones.

    >>> look_steps(100)
    [3, 4, 6, 9, 13, 20, 30, 44, 67, 100]
    """
    found = [float(steps)]
    while found[-1] / LOOKS_APART >= 2:
        found.append(found[-1] / LOOKS_APART)
    return sorted({round(step) for step in found})


def crossing(looks: Sequence[Look], level: float) -> float | None:
    """The test loss when the training loss first came down to `level`; None where it never did.

    Between two looks it is taken to be linear in the logarithm of the training loss.
    """
    for before, after in pairwise(looks):
        if not math.isfinite(after.train_loss):
            return None
        if after.train_loss <= level < before.train_loss:
            share = math.log(before.train_loss / level) / math.log(before.train_loss / after.train_loss)
            return before.test_loss + share * (after.test_loss - before.test_loss)
    return None


def _ends(last: Look) -> Iterator[Record]:
    """How the training ended; a loss that is no number, after a training that failed, has no value."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    for what, value, unit in (
        ("training accuracy", last.train_accuracy, "fraction"),
        ("test accuracy", last.test_accuracy, "fraction"),
        ("gap in accuracy", last.train_accuracy - last.test_accuracy, "fraction"),
        ("training loss", last.train_loss, "nats"),
        ("test loss", last.test_loss, "nats"),
        ("gap in loss", last.test_loss - last.train_loss, "nats"),
    ):
        yield Record(what, finite(value), unit, {}, ROW)
