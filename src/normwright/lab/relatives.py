"""The relatives of batch normalization: whitening, local response, layer, group and weight normalization.

One network, one budget, one grid of learning rates, each relative where batch normalization stands. And what each
costs: a training step of the whole network, and the layers of whitening and batch normalization by themselves.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from normwright.lab.experiment import Desk, Experiment, Size
from normwright.lab.networks import BN, DEEP_CNN, PLAIN, Network, Style, batch_norm, build, convolutional
from normwright.lab.race import CURVE
from normwright.lab.rates import FINALISTS, SCORE, Trial, choose, score
from normwright.lab.train import Budget, accuracy, steps_to
from normwright.lab.whitening import ZCA
from normwright.report.records import Record, Scalar

ROW = 17
NONE, WITH = "none", "BN"
GROUP = 4  # channels that group normalization normalizes together
LAYER_PIXELS = 8  # height and width of the images on which a layer is timed by itself
WARM_UP = 2  # steps before the clock runs
# Of the processor, and not of the wall, wherever it ticks finely enough: other programs then count for little.
FINE = time.get_clock_info("process_time").resolution < 1e-5
CLOCK = time.process_time if FINE else time.perf_counter


class LocalResponse(nn.Module):
    """Local response normalization (Krizhevsky et al. 2012), ``x / (1 + mean square of 5 neighbours)^0.75``.

    The neighbours are channels; those beyond the edge count as zero. torch's `LocalResponseNorm` computes the
    same but is far slower on channels-last memory: here the sum over neighbours is one small matrix product. Their
    weight is 1 and not torch's 1e-4, with which values of about 1, as here, would pass unchanged.
    """

    SPAN, ALPHA, BETA = 5, 1.0, 0.75

    def __init__(self, channels: int) -> None:
        super().__init__()
        near = (torch.arange(channels)[:, None] - torch.arange(channels)).abs() <= self.SPAN // 2
        self.band: torch.Tensor
        self.register_buffer("band", near.float() * (self.ALPHA / self.SPAN), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each value divided by what its neighbours come to."""
        last = x.movedim(1, -1)
        return (last * (1 + last.square() @ self.band).pow(-self.BETA)).movedim(-1, 1)


STYLES = {
    NONE: PLAIN,
    WITH: BN,
    "whitening": Style(norm=lambda channels, dims: ZCA(channels)),
    "layer norm": Style(norm=lambda channels, dims: nn.GroupNorm(1, channels)),
    "group norm": Style(norm=lambda channels, dims: nn.GroupNorm(max(1, channels // GROUP), channels)),
    "weight norm": Style(wrap=weight_norm),
    "local response": Style(norm=lambda channels, dims: LocalResponse(channels)),
}

SHORT_CNN = Network(
    "short CNN",
    "conv 3-8, pool, conv 8-16, pool, linear 256-10",
    lambda style: convolutional(style, 3, 16, [(8,), (16,)]),
    16,
    3,
    2.0,
)


@dataclass(frozen=True)
class Plan:
    """Who is compared, on what, and how long the clocks run.

    Attributes:
        network: the same for all.
        variants: of `STYLES`, the network without normalization first.
        rates: tried by each, rising.
        budget: of each training.
        seeds: how many.
        rounds, steps: a round times so many steps of each variant, in turn, and takes each one's median.
        channels: of the layers that are timed by themselves.
    """

    network: Network
    variants: tuple[str, ...]
    rates: tuple[float, ...]
    budget: Budget
    seeds: int
    rounds: int
    steps: int
    channels: tuple[int, ...]


PLANS: dict[Size, Plan] = {
    "full": Plan(
        DEEP_CNN,
        tuple(STYLES),
        (0.01, 0.03, 0.1, 0.3, 1.0),
        Budget(steps=200, batch_size=60, every=10),
        seeds=5,
        rounds=5,
        steps=15,
        channels=(16, 64, 256),
    ),
    "demo": Plan(
        SHORT_CNN,
        tuple(STYLES)[:4],
        (0.1, 0.3),
        Budget(steps=60, batch_size=30, every=6),
        seeds=3,
        rounds=3,
        steps=7,
        channels=(16, 64),
    ),
    "tiny": Plan(
        SHORT_CNN,
        tuple(STYLES),
        (0.1, 0.3),
        Budget(steps=4, batch_size=20, every=2),
        seeds=2,
        rounds=2,
        steps=1,
        channels=(4, 8),
    ),
}


def work(plan: Plan) -> float:
    """All trainings and all clocks, in steps of the MLP."""
    trainings = len(plan.rates) + min(FINALISTS, len(plan.rates)) * (plan.seeds - 1)
    return len(plan.variants) * trainings * plan.budget.steps * plan.network.cost + _clock_work(plan)


def _clock_work(plan: Plan) -> float:
    steps = plan.rounds * (plan.steps + WARM_UP)
    return steps * (2 * len(plan.variants) * plan.network.cost + sum(plan.channels) / 2)


def measure(desk: Desk, plan: Plan) -> Iterator[Record]:
    """Each variant at its best rate, how soon it is as good as the network without; then the clocks."""
    seeds = desk.seeds(plan.seeds)
    goal = 0.0
    for variant in plan.variants:
        where: dict[str, Scalar] = {"variant": variant}
        trial = _trial(desk, plan, variant)
        rate, chosen = choose(plan.rates, seeds, trial, where, ROW)
        yield from chosen
        found = {seed: trial(rate, seed) for seed in seeds}
        if variant == NONE:
            goal = median(max(_curve(records).values()) for records in found.values())
            yield Record("goal", goal, "fraction", {}, ROW)
        for seed, records in found.items():
            told = {**where, "rate": rate, "seed": seed}
            yield from (replace(record, where={**told, **record.where}) for record in records)
            curve = _curve(records)
            reached = steps_to(goal, tuple(curve), tuple(curve.values()))
            yield Record("steps to the goal", reached, "steps", told, ROW)
    clocks = desk.once("the cost of a step and of a layer", _clock_work(plan), lambda: _clocks(desk, plan))
    yield from clocks


EXPERIMENT = Experiment(
    "relatives", "whitening, layer, group, weight and response normalization", (ROW,), PLANS, work, measure
)


def _curve(records: Sequence[Record]) -> dict[int, float]:
    return {int(r.where["step"] or 0): r.value or 0.0 for r in records if r.what == CURVE}


def _trial(desk: Desk, plan: Plan, variant: str) -> Trial:
    """Trains a variant at a rate with a seed: once."""
    network, budget = plan.network, plan.budget

    def measure(rate: float, seed: int) -> Iterator[Record]:
        model = build(network, seed, STYLES[variant])
        run = desk.train(network, model, rate=rate, seed=seed, budget=budget)
        for step, height in zip(run.steps, run.accuracy, strict=True):
            yield Record(CURVE, height, "fraction", {"step": step}, ROW)
        yield Record(SCORE, score(run.accuracy), "fraction", {}, ROW)
        yield Record("test accuracy", accuracy(run.network, desk.data(network).test), "fraction", {}, ROW)
        yield Record("failed at", run.failed, "steps", {}, ROW)

    def once(rate: float, seed: int) -> list[Record]:
        name = f"{network.name} {variant}, rate {rate:g}, seed {seed}"
        return desk.once(name, budget.steps * network.cost, lambda: measure(rate, seed))

    return once


# --- clocks -----------------------------------------------------------


def _clocks(desk: Desk, plan: Plan) -> Iterator[Record]:
    steps = {variant: _step(desk, plan, variant) for variant in plan.variants}
    yield from _ratios("cost of a step", steps, NONE, plan)
    for channels in plan.channels:
        layers = {
            WITH: _layer(batch_norm(channels, 2), channels, plan),
            "whitening": _layer(ZCA(channels), channels, plan),
        }
        for record in _ratios("cost of a layer", layers, WITH, plan):
            yield replace(record, where={**record.where, "channels": channels})


def _ratios(what: str, steps: Mapping[str, Callable[[], None]], base: str, plan: Plan) -> Iterator[Record]:
    """The time of each step and its ratio to the one of `base`, a median for each round.

    The steps take turns, so that whatever else the machine does meets all of them alike.
    """
    for number in range(plan.rounds):
        seconds: dict[str, list[float]] = {variant: [] for variant in steps}
        for turn in range(WARM_UP + plan.steps):
            for variant, step in steps.items():
                began = CLOCK()
                step()
                if turn >= WARM_UP:
                    seconds[variant].append(CLOCK() - began)
        middle = {variant: median(each) for variant, each in seconds.items()}
        for variant, value in middle.items():
            where: dict[str, Scalar] = {"variant": variant, "round": number}
            yield Record(f"{what}, seconds", value, "seconds", where, ROW)
            yield Record(what, value / middle[base], "ratio", where, ROW)


def _step(desk: Desk, plan: Plan, variant: str) -> Callable[[], None]:
    """One training step on the first batch, without the update, which is the same for all."""
    data = desk.data(plan.network).train
    images, labels = data.images[: plan.budget.batch_size], data.labels[: plan.budget.batch_size]
    model = build(plan.network, desk.seed, STYLES[variant])
    parameters = list(model.parameters())

    def step() -> None:
        torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), parameters)

    return step


def _layer(layer: nn.Module, channels: int, plan: Plan) -> Callable[[], None]:
    """Forward and backward of a layer alone, on normal numbers in channels-last memory."""
    generator = torch.Generator().manual_seed(channels)
    shape = (plan.budget.batch_size, channels, LAYER_PIXELS, LAYER_PIXELS)
    x, grad = (
        torch.randn(shape, generator=generator).to(memory_format=torch.channels_last) for _ in range(2)
    )
    inputs = [x.requires_grad_(), *layer.parameters()]

    def step() -> None:
        torch.autograd.grad(layer(x), inputs, grad)

    return step
