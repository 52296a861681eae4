"""Prediction with a trained network: from which statistics, at what cost, and whether company matters.

Both networks have one normalization layer, and what enters it does not depend on it: the images through the
layers before it are a fixed set of numbers, whose statistics every estimator here is after.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from normwright.lab.data import Split
from normwright.lab.estimators import (
    Float64,
    MovingAverage,
    Statistics,
    algorithm_2,
    before_norm,
    bytes_kept,
    distance,
    entering,
    of_batch,
    of_population,
    pooled,
    recalibrated,
    two_passes,
)
from normwright.lab.experiment import Desk, Experiment, Size
from normwright.lab.networks import BN, CNN, MLP, Network, build, parts
from normwright.lab.train import Budget, chunks, predictions
from normwright.numpy import Population, batchnorm_predict
from normwright.report.records import Record, Scalar

DECAYS = (0.9, 0.99, 0.999)  # the sources': weight of the old value
REST_STEPS = 2000  # batches drawn with the weights at rest; twice the memory of the slowest average
COMPANY = 60  # images in the batch that an image is taken out of: as many as in training
EPS = 1e-5  # of the channels made for row 30
VARIANCES = (1e-6, 1e-5, 1e-4, 1e-2, 1.0)
PASS = 8.0  # one pass over the training images up to the layer, in steps of the network that passes


@dataclass(frozen=True)
class Entry:
    """A network, how it is trained (a rate at which it learns well), and at how many steps it is looked at."""

    network: Network
    rate: float
    budget: Budget
    points: int

    @property
    def steps_seen(self) -> list[int]:
        """At equal ratios from the first step to the last: what is quick and what is slow, both seen."""
        steps = np.geomspace(1, self.budget.steps, self.points)
        return [int(step) for step in np.unique(steps.round())]


@dataclass(frozen=True)
class Plan:
    """Which networks, and with how many seeds."""

    entries: tuple[Entry, ...]
    seeds: int


def _plan(steps: tuple[int, int], points: tuple[int, int], seeds: int) -> Plan:
    sides = zip((MLP, CNN), (1.0, 0.03), steps, points, strict=True)
    return Plan(tuple(Entry(n, rate, Budget(s, 60, s), seen) for n, rate, s, seen in sides), seeds)


PLANS: dict[Size, Plan] = {
    "full": _plan((3000, 1500), (30, 30), seeds=5),
    "demo": _plan((300, 60), (20, 8), seeds=3),
    "tiny": Plan((Entry(MLP, 1.0, Budget(30, 60, 30), 4),), seeds=2),
}


def work(plan: Plan) -> float:
    """All trials, in steps of the MLP."""
    return 1.0 + plan.seeds * sum(_work(entry) for entry in plan.entries)


def _work(entry: Entry) -> float:
    """Training, a pass at each point that is looked at, and about as much as eight more after it."""
    return entry.network.cost * (entry.budget.steps + PASS * (len(entry.steps_seen) + 8))


def measure(desk: Desk, plan: Plan) -> Iterator[Record]:
    """Each network with each seed, and channels with eps in their variance."""
    for entry in plan.entries:
        for seed in desk.seeds(plan.seeds):
            yield from desk.once(
                f"{entry.network.name}, seed {seed}", _work(entry), _Trial(desk, entry, seed).measure
            )
    yield from desk.once("eps in the recorded variance", 1.0, lambda: eps_twice_by_variance(desk.seed))


EXPERIMENT = Experiment(
    "inference",
    "predicting by moving averages or exact statistics; one image alone",
    (6, 7, 8, 23, 24, 30),
    PLANS,
    work,
    measure,
)


# --- one training, and all that is measured with it -------------------


@dataclass
class _Trial:
    """One network trained once."""

    desk: Desk
    entry: Entry
    seed: int
    batches: list[Statistics] = field(default_factory=list)  # of the last epoch, gathered in training

    def measure(self) -> Iterator[Record]:
        where: dict[str, Scalar] = {"network": self.entry.network.name, "seed": self.seed}
        model = build(self.entry.network, self.seed, BN)
        averages, distances = self._train(model)
        data = self.desk.data(self.entry.network)
        layer: Any = parts(model, "norm")[0]
        before = before_norm(model)
        exact = two_passes(before, data.train.images)
        found: dict[str, Statistics] = {f"average {a:g}": average.now for a, average in averages.items()}
        found["last epoch"] = algorithm_2(self.batches)
        records = list(distances)
        for a, average in averages.items():
            records += cost(f"average {a:g}", average.seconds, {self.entry.budget.steps: average.now}, 23)
        for name, statistics, told in self._after(model, before, data.train, exact):
            found[name] = statistics
            records += told
        for name, statistics in found.items():
            records += errors(name, statistics, exact, layer.eps)
        records += predicted(model, {**found, "exact": exact}, data.test)
        records += noise_at_rest(
            before, data.train.images, exact, layer.eps, self.entry.budget.batch_size, self.seed
        )
        records += alone(model, data.test.images[:COMPANY])
        records += eps_twice(before, data.test.images[:COMPANY], exact, layer.eps)
        images = {"images": len(data.train)}
        yield from (Record(r.what, r.value, r.unit, {**where, **images, **r.where}, r.row) for r in records)

    def _train(self, model: nn.Sequential) -> tuple[dict[float, MovingAverage], list[Record]]:
        """Train; the averages that training leaves, and how far each was from the truth on the way."""
        layer: Any = parts(model, "norm")[0]
        before = before_norm(model)
        images = self.desk.data(self.entry.network).train.images
        start = Statistics(np.zeros(layer.num_features), np.ones(layer.num_features))
        averages = {a: MovingAverage(a, start) for a in DECAYS}
        epoch = len(images) // self.entry.budget.batch_size
        seen = set(self.entry.steps_seen)
        records: list[Record] = []
        turn = deque(averages.values())

        def gather(module: nn.Module, args: tuple[torch.Tensor]) -> None:
            if module.training:
                batch = of_batch(args[0].detach())
                self.batches = [*self.batches, batch][-epoch:]
                for average in turn:
                    average.update(batch)
                turn.rotate()  # the first after a training step finds a cold cache: each of them, in its turn

        def on_step(step: int) -> None:
            if step in seen:
                truth = of_population(pooled(entering(before, images)))
                for a, average in averages.items():
                    off = distance(average.now.mean, truth, layer.eps)
                    where: dict[str, Scalar] = {"a": a, "step": step}
                    records.append(Record("distance of the average", off, "standard deviations", where, 23))
                self.desk.notebook.advance(PASS * self.entry.network.cost)

        hook = layer.register_forward_pre_hook(gather)
        self.desk.train(
            self.entry.network,
            model,
            rate=self.entry.rate,
            seed=self.seed,
            budget=self.entry.budget,
            on_step=on_step,
        )
        hook.remove()
        return averages, records

    def _after(
        self, model: nn.Sequential, before: nn.Module, train: Split, exact: Statistics
    ) -> Iterator[tuple[str, Statistics, list[Record]]]:
        """What is gathered with the final weights: name, statistics, and records of the cost."""
        size = self.entry.budget.batch_size
        full = len(train) - len(train) % size  # Algorithm 2 knows full batches only
        orders = {
            "Algorithm 2": np.random.default_rng(self.seed).permutation(len(train))[:full],
            "Algorithm 2 by class": np.argsort(train.labels.numpy(), kind="stable")[:full],
        }
        for name, order in orders.items():
            images = train.images[torch.from_numpy(order)]
            began = time.process_time()
            batches = [of_batch(x) for x in entering(before, images, size)]
            statistics = algorithm_2(batches)
            seconds = time.process_time() - began
            between = float((np.var([b.mean for b in batches], axis=0) / exact.var).max())
            told = cost(name, seconds, {1: batches[:1], len(batches): batches}, 7)
            told.append(Record("variance between batches", between, "fraction", {"estimator": name}, 7))
            yield name, statistics, told
        began = time.process_time()
        total = pooled(entering(before, train.images, size))
        statistics = of_population(total)
        seconds = time.process_time() - began
        kept = {1: pooled(entering(before, train.images[:size])), -(-len(train) // size): total}
        yield "pooled", statistics, cost("pooled", seconds, kept, 7)
        statistics, seconds = recalibrated(model, train.images, size)
        where: dict[str, Scalar] = {"estimator": "recalibrate"}
        yield "recalibrate", statistics, [Record("seconds of gathering", seconds, "seconds", where, 7)]


def cost(estimator: str, seconds: float, after: Mapping[int, object], row: int) -> list[Record]:
    """Its seconds, and the bytes that it keeps after so many batches."""
    kept = [
        Record("bytes kept", bytes_kept(held), "bytes", {"estimator": estimator, "batches": count}, row)
        for count, held in after.items()
    ]
    return [Record("seconds of gathering", seconds, "seconds", {"estimator": estimator}, row), *kept]


def errors(name: str, found: Statistics, exact: Statistics, eps: float) -> list[Record]:
    """How far the worst channel is off, in the unit in which the layer's output feels it.

    The mean in standard deviations, ``|mean - exact| / sqrt(var + eps)``; the deviation as a share of itself,
    ``|sqrt((var_found + eps) / (var + eps)) - 1|``.
    """
    row = 24 if name == "last epoch" else 6 if name.startswith("average") else 7
    mean = float((np.abs(found.mean - exact.mean) / np.sqrt(exact.var + eps)).max())
    deviation = float(np.abs(np.sqrt((found.var + eps) / (exact.var + eps)) - 1).max())
    return [
        Record("error of the mean", mean, "standard deviations", {"estimator": name}, row),
        Record("error of the deviation", deviation, "fraction", {"estimator": name}, row),
    ]


def predicted(model: nn.Sequential, found: Mapping[str, Statistics], test: Split) -> Iterator[Record]:
    """Test accuracy with each of the statistics, and how many predictions differ from those with the exact."""
    classes = {name: predictions(_with(model, statistics), test.images) for name, statistics in found.items()}
    for name, chosen in classes.items():
        where: dict[str, Scalar] = {"estimator": name}
        right = float((chosen == test.labels).double().mean())
        yield Record("test accuracy", right, "fraction", where, 23)
        changed = int((chosen != classes["exact"]).sum())
        yield Record("changed predictions", changed, "images", {**where, "of": len(test)}, 23)


def _with(model: nn.Sequential, statistics: Statistics) -> nn.Sequential:
    """A copy of `model` that predicts by `statistics`."""
    copy = deepcopy(model)
    layer: Any = parts(copy, "norm")[0]
    with torch.no_grad():
        layer.running_mean.copy_(torch.from_numpy(statistics.mean))
        layer.running_var.copy_(torch.from_numpy(statistics.var))
    return copy


def noise_at_rest(
    before: nn.Module, images: torch.Tensor, exact: Statistics, eps: float, size: int, seed: int
) -> Iterator[Record]:
    """How far each average strays from the truth while the weights rest: what it owes to single batches.

    Each starts at the truth and takes in `REST_STEPS` batches of `size` images, epoch by epoch; the root mean
    square over the second half of them and over the channels.
    """
    per_image = np.concatenate(
        [x.double().reshape(*x.shape[:2], -1).mean(2).numpy() for x in entering(before, images)]
    )
    z = (per_image - exact.mean) / np.sqrt(exact.var + eps)
    rng = np.random.default_rng(seed)
    epoch = len(z) // size
    now = np.zeros((len(DECAYS), z.shape[1]))
    a = np.array(DECAYS)[:, None]
    strayed = []
    for step in range(REST_STEPS):
        if step % epoch == 0:
            order = rng.permutation(len(z))[: epoch * size].reshape(epoch, size)
        now = a * now + (1 - a) * z[order[step % epoch]].mean(axis=0)
        if step >= REST_STEPS // 2:
            strayed.append((now**2).mean(axis=1))
    for decay, noise in zip(DECAYS, np.sqrt(np.mean(strayed, axis=0)), strict=True):
        yield Record("noise at rest", float(noise), "standard deviations", {"a": decay}, 23)


# --- one image alone --------------------------------------------------


def alone(model: nn.Sequential, images: torch.Tensor) -> Iterator[Record]:
    """The largest difference that the company of other images makes to an image's output, when predicting.

    For the normalization layer alone, for the whole network, and for the network with that layer taken out:
    what the last shows is the doing of the convolution and the matrix product, which torch may sum in another
    order for another number of images. Beside them the layer in training mode, where company does count: the
    same images in a batch and in half of it.
    """
    model = deepcopy(model).eval()
    layer = parts(model, "norm")[0]
    rest = nn.Sequential(*(child for child in model if child is not layer))
    half = len(images) // 2
    with torch.inference_mode():
        seen = before_norm(model)(images)
        measured = {
            "layer": company(layer, seen),
            "network with BN": company(model, images),
            "network without BN": company(rest, images),
        }
        layer.train()
        measured["layer in training mode"] = float((layer(seen)[:half] - layer(seen[:half])).abs().max())
    for of, value in measured.items():
        yield Record("difference alone to in a batch", value, "absolute", {"of": of}, 8)


def company(module: nn.Module, images: torch.Tensor) -> float:
    """Largest absolute difference between a batch's outputs and those of its images one by one."""
    one_by_one = torch.cat([module(image) for image in chunks(images, 1)])
    return float((module(images) - one_by_one).abs().max())


# --- eps in the recorded variance -------------------------------------


def eps_twice_by_variance(seed: int) -> list[Record]:
    """Channels whose variance is known: what a second eps does to them, and that taking it off undoes it."""
    z = np.random.default_rng(seed).normal(size=(1000, len(VARIANCES)))
    x = (z - z.mean(axis=0)) / z.std(axis=0) * np.sqrt(VARIANCES)
    total = Population().add(x)
    once, twice, converted = _predicted_with_eps(x, total.mean, total.var(), EPS)
    records = []
    for channel, var in enumerate(VARIANCES):
        left = float(np.abs(converted - once)[:, channel].max())
        scale = _scale(once[:, channel], twice[:, channel])
        records.append(Record("scale of y with eps twice", scale, "ratio", {"var": var, "eps": EPS}, 30))
        records.append(Record("difference after conversion", left, "absolute", {"var": var, "eps": EPS}, 30))
    return records


def eps_twice(before: nn.Module, images: torch.Tensor, exact: Statistics, eps: float) -> list[Record]:
    """The same in the channel of a trained network whose variance is smallest."""
    (x,) = entering(before, images, len(images))
    once, twice, _ = _predicted_with_eps(x.numpy(), exact.mean, exact.var, eps)
    channel = int(exact.var.argmin())
    scale = _scale(once[:, channel], twice[:, channel])
    smallest: dict[str, Scalar] = {"smallest variance": float(exact.var[channel]), "eps": eps}
    return [Record("scale of y in a trained network", scale, "ratio", smallest, 30)]


def _predicted_with_eps(
    x: NDArray[Any], mean: Float64, var: Float64, eps: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """y by a recorded variance without eps, by one with it, and by that one with eps taken off again."""
    recorded = var + eps
    shared = {"running_mean": mean, "eps": eps}
    once, twice, converted = (
        batchnorm_predict(x, None, None, {**shared, "running_var": v})
        for v in (var, recorded, recorded - eps)
    )
    return once, twice, converted


def _scale(once: NDArray[Any], twice: NDArray[Any]) -> float:
    """By how much `twice` is `once`, by least squares."""
    y, z = once.astype(np.float64), twice.astype(np.float64)
    return float((y * z).sum() / (y * y).sum())
