"""How large a batch has to be: the error of its statistics, and what that error does to a network.

First the statistics alone: what enters the normalization of a trained layer, batches drawn from it. Then networks
trained with each batch size, and how differently each behaves in training and in evaluation. Every batch size sees
the same number of images and chooses its learning rate from the same grid, with batch normalization and without.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import torch
from torch import nn

from normwright.lab.data import Split
from normwright.lab.experiment import Desk, Experiment, Size
from normwright.lab.networks import BN, CNN, MLP, PLAIN, Network, build, parts
from normwright.lab.train import CHUNK, Budget, accuracy, batches, chunks
from normwright.report.records import Record, Scalar

WITHOUT, WITH, ONE = "without BN", "BN", "BN, one network"
STYLES = {WITHOUT: PLAIN, WITH: BN}


@dataclass(frozen=True)
class Statistics:
    """The error of batch statistics: of the first layer of which networks, after how much training.

    Attributes:
        entries: network, learning rate and budget; the first one's trained network is also the one network
            whose behaviour is compared at every batch size.
        sizes: images in a batch.
        batches: drawn for each size.
        images: the first so many training images, from which they are drawn and whose statistics are the truth.
    """

    entries: tuple[tuple[Network, float, Budget], ...]
    sizes: tuple[int, ...]
    batches: int
    images: int


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        statistics: the first part.
        sizes: the batch sizes that networks are trained with.
        images: how many each training sees, whatever its batch size.
        rates: those that every batch size tries.
        finalists: rates that are tried with every seed, after all were tried with the first.
        evaluations: of a training on the validation images; the last quarter chooses the rate.
        compared: the first so many training images, on which training mode is compared with evaluation mode.
        seeds: of everything.
    """

    statistics: Statistics
    sizes: tuple[int, ...]
    images: int
    rates: tuple[float, ...]
    finalists: int
    evaluations: int
    compared: int
    seeds: int


SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

PLANS: dict[Size, Plan] = {
    "full": Plan(
        Statistics(((MLP, 0.3, Budget(300, 60, 300)), (CNN, 0.03, Budget(60, 60, 60))), SIZES, 400, 900),
        SIZES,
        images=15000,
        rates=RATES,
        finalists=2,
        evaluations=20,
        compared=900,
        seeds=5,
    ),
    "demo": Plan(
        Statistics(((MLP, 0.3, Budget(100, 60, 100)),), SIZES, 400, 900),
        (2, 8, 64),
        images=1800,
        rates=(0.01, 0.1),
        finalists=1,
        evaluations=4,
        compared=300,
        seeds=3,
    ),
    "tiny": Plan(
        Statistics(((MLP, 0.3, Budget(6, 60, 6)), (CNN, 0.03, Budget(2, 60, 2))), (2, 8, 32), 100, 100),
        (2, 60),
        images=120,
        rates=(0.003, 0.1),
        finalists=1,
        evaluations=2,
        compared=100,
        seeds=2,
    ),
}


def budget_of(plan: Plan, size: int) -> Budget:
    """The same number of images for every batch size, looked at equally often."""
    steps = max(1, plan.images // size)
    return Budget(steps, size, max(1, steps // plan.evaluations))


def work(plan: Plan) -> float:
    """All trials, in steps of the MLP."""
    first = sum(network.cost * budget.steps for network, _, budget in plan.statistics.entries) * plan.seeds
    runs = len(plan.rates) + min(plan.finalists, len(plan.rates)) * (plan.seeds - 1)
    return first + len(STYLES) * runs * sum(budget_of(plan, size).steps * MLP.cost for size in plan.sizes)


def measure(desk: Desk, plan: Plan) -> Iterator[Record]:
    """The statistics of one trained network after the other, then networks trained with every batch size."""
    for seed in desk.seeds(plan.seeds):
        for place, (network, rate, budget) in enumerate(plan.statistics.entries):
            sizes = plan.sizes if place == 0 else ()
            trial = partial(_statistics, desk, plan, network, rate, budget, seed, sizes)
            name = f"{network.name}, error of batch statistics, seed {seed}"
            yield from desk.once(name, network.cost * budget.steps, trial)
    for size in plan.sizes:
        for condition in STYLES:
            yield from _Contest(desk, plan, size, condition).measure()


EXPERIMENT = Experiment("batch-size", "how large a batch its statistics need", (18, 27), PLANS, work, measure)


# --- statistics alone -------------------------------------------------


def _statistics(
    desk: Desk,
    plan: Plan,
    network: Network,
    rate: float,
    budget: Budget,
    seed: int,
    sizes: Sequence[int],
) -> Iterator[Record]:
    """Train one network; draw batches from what enters its first normalization; compare its modes."""
    data = desk.data(network)
    run = desk.train(network, build(network, seed, BN), rate=rate, seed=seed, budget=budget)
    first, second, values = entering(run.network, data.train.images[: plan.statistics.images])
    where: dict[str, Scalar] = {"network": network.name, "seed": seed}
    # Each image's own mean, in the channel's deviations, squared: 1 where an image is one value, and less where it
    # is many that differ; its inverse is how many independent values the image is worth.
    worth = 1 / float(first.square().mean())
    yield Record("values of an image", values, "values", where, 27)
    yield Record("values that an image is worth", worth, "values", where, 27)
    for size in plan.statistics.sizes:
        mean, deviation = errors(first, second, size, plan.statistics.batches, seed)
        at: dict[str, Scalar] = {**where, "size": size}
        yield Record("error of the mean", mean, "deviations", at, 27)
        yield Record("error of the deviation", deviation, "fraction", at, 27)
    for size in sizes:
        at = {**where, "condition": ONE, "size": size}
        yield from (
            replace(r, where=at) for r in modes(run.network, _first(data.train, plan.compared), size, seed)
        )


def entering(network: nn.Sequential, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """What enters the first normalization, image by image and channel by channel, standardized.

    Returns:
        Each image's mean and mean square ``(N, C)``, float64, where each channel has mean 0 and deviation 1 over
        all images and places; and how many places (values of a channel) an image has.
    """
    (first, *_) = parts(network, "map")
    before = nn.Sequential(*(layer for name, layer in network.named_children() if name == "flat"), first)
    if isinstance(first, nn.Conv2d):
        before = nn.Sequential(first)
    with torch.inference_mode():
        # (N, C, places); a linear map has one place.
        x = torch.cat([before(chunk).double() for chunk in chunks(images, CHUNK)])
        x = x.reshape(*x.shape[:2], -1)
        x -= x.mean((0, 2), keepdim=True)
        x /= x.square().mean((0, 2), keepdim=True).sqrt()
        return x.mean(2), x.square().mean(2), x.shape[2]


def errors(
    first: torch.Tensor, second: torch.Tensor, size: int, count: int, seed: int
) -> tuple[float, float]:
    """How far the statistics of random batches are from those of all images, root mean square.

    Batches are drawn with replacement, so that their images are independent and the law of large numbers needs
    no correction; a finite set drawn without it would be exact in the end for another reason.

    Args:
        first, second: each image's mean and mean square ``(N, C)``, the channels standardized.
        size: images in a batch.
        count: batches.
        seed: draws them.

    Returns:
        The error of the mean in deviations, and of the (biased) deviation as a fraction of it, over all batches
        and channels.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(first), (count, size), generator=generator)
    # How often each image is in each batch: (batches, images), so that a product sums the batches up.
    often = torch.zeros(count, len(first), dtype=torch.float64)
    often.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    mean = often @ first / size
    var = (often @ second / size - mean.square()).clamp_min(0)  # below it by rounding alone
    return float(mean.square().mean().sqrt()), float((var.sqrt() - 1).square().mean().sqrt())


# --- trained with each batch size --------------------------------------


def modes(network: nn.Sequential, images: Split, size: int, seed: int) -> Iterator[Record]:
    """The same network on the same training images in training mode, in batches of `size`, and in evaluation mode.

    Batches are drawn as for training, about as many images as there are; the network is left as it was.
    """
    training, evaluation = copy.deepcopy(network).train(), copy.deepcopy(network).eval()
    count = len(images)
    steps = max(2, count // size)  # twice, where a batch holds more than half of the images
    losses, changed, seen = [0.0, 0.0], 0, 0
    with torch.inference_mode():
        fixed = torch.cat([evaluation(chunk) for chunk in chunks(images.images, CHUNK)])
        for batch in batches(count, Budget(steps, size, steps), seed):
            logits, labels = training(images.images[batch]), images.labels[batch]
            for mode, found in enumerate((logits, fixed[batch])):
                losses[mode] += float(nn.functional.cross_entropy(found, labels, reduction="sum"))
            changed += int((logits.argmax(1) != fixed[batch].argmax(1)).sum())
            seen += size
    finite = torch.tensor(losses).isfinite().all()
    yield Record("loss in training mode", losses[0] / seen if finite else None, "nats", {}, 27)
    yield Record("loss in evaluation mode", losses[1] / seen if finite else None, "nats", {}, 27)
    yield Record("predictions that differ", changed / seen, "fraction", {}, 27)


def _first(images: Split, count: int) -> Split:
    return Split(images.images[:count], images.labels[:count])


class _Contest:
    """One batch size, with batch normalization or without: choose the rate, then every seed."""

    def __init__(self, desk: Desk, plan: Plan, size: int, condition: str) -> None:
        self.desk = desk
        self.plan = plan
        self.size = size
        self.condition = condition
        self.known: dict[tuple[float, int], list[Record]] = {}

    def measure(self) -> Iterator[Record]:
        where: dict[str, Scalar] = {"condition": self.condition, "size": self.size}
        seeds, rates = self.desk.seeds(self.plan.seeds), self.plan.rates
        first = {rate: _late(self._trial(rate, seeds[0])) for rate in rates}
        finalists = sorted(rates, key=lambda rate: -first[rate])[: self.plan.finalists]
        mean = {rate: fmean(_late(self._trial(rate, seed)) for seed in seeds) for rate in finalists}
        chosen = max(finalists, key=lambda rate: mean[rate])
        edge = {rates[0]: "lowest", rates[-1]: "highest"}.get(chosen)
        yield Record("chosen rate", chosen, "rate", {**where, "edge": edge}, 27)
        for seed in seeds:
            at: Mapping[str, Scalar] = {**where, "network": MLP.name, "seed": seed, "rate": chosen}
            yield from (replace(record, where=at) for record in self._trial(chosen, seed))

    def _trial(self, rate: float, seed: int) -> list[Record]:
        """One training, measured once and announced once."""
        if (rate, seed) not in self.known:
            budget = budget_of(self.plan, self.size)
            name = f"{self.condition}, batches of {self.size}, rate {rate:g}, seed {seed}"
            trial = partial(self._measure, rate, seed, budget)
            self.known[rate, seed] = self.desk.once(name, budget.steps * MLP.cost, trial)
        return self.known[rate, seed]

    def _measure(self, rate: float, seed: int, budget: Budget) -> Iterator[Record]:
        data = self.desk.data(MLP)
        model = build(MLP, seed, STYLES[self.condition])
        run = self.desk.train(MLP, model, rate=rate, seed=seed, budget=budget)
        late = run.accuracy[-max(1, len(run.accuracy) // 4) :]
        yield Record(LATE, fmean(late), "fraction", {}, 27)
        yield Record("test accuracy", accuracy(run.network, data.test), "fraction", {}, 27)
        yield from modes(run.network, _first(data.train, self.plan.compared), self.size, seed)
        if self.condition == WITH:
            exact = accuracy(with_exact_statistics(run.network, data.train.images), data.test)
            yield Record("test accuracy with exact statistics", exact, "fraction", {}, 27)


LATE = "late validation accuracy"


def _late(records: Sequence[Record]) -> float:
    return next(r.value or 0.0 for r in records if r.what == LATE)


def with_exact_statistics(network: nn.Sequential, images: torch.Tensor) -> nn.Sequential:
    """A copy of an MLP that predicts with the mean and variance of all `images` in place of the running average."""
    network = copy.deepcopy(network)
    (affine,), (norm,) = parts(network, "map"), parts(network, "norm")
    assert isinstance(norm, nn.BatchNorm1d)
    with torch.inference_mode():
        x = affine(images.flatten(1)).double()
        for buffer, value in ((norm.running_mean, x.mean(0)), (norm.running_var, x.var(0))):
            assert buffer is not None
            buffer.copy_(value)
    return network
