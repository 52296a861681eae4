"""Gradients through depth, and what the scale of the first weights does: with batch normalization and without.

Three kinds of fully connected networks, all on images of 8 x 8 pixels:

- the chain, 64 wide: every weight matrix is orthogonal times one factor, by which each layer then multiplies the
  backward signal;
- the deep network: ReLU, no skip connections, at initialization (Yang et al. 2019, "A Mean Field Theory of Batch
  Normalization": batch normalization itself makes its gradients explode);
- the stack, 64-100-100-100-10: its hidden layers begin at multiples of torch's own first weights, all at the same
  or each at its own.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean

import torch
from torch import nn

from normwright.lab.data import Split
from normwright.lab.experiment import Desk, Experiment, Size
from normwright.lab.networks import BN, PLAIN, Network, Style, build, dense, parts
from normwright.lab.train import Budget
from normwright.report.records import Record, Scalar

PIXELS = 8  # of the images' height and width: the chain is as wide as its input, 64
HIDDEN, WIDTH = 3, 100  # of the stack
ACCURACY = "late validation accuracy"
WITHOUT, WITH = "without BN", "BN"
STYLES = {WITHOUT: PLAIN, WITH: BN}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "ReLU": nn.ReLU,
}
# The derivative at output y as a share of its maximum, and the share below which a unit counts as saturated. For
# tanh that is an input beyond 1.82 on either side, for sigmoid beyond 3.64.
SLOPE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": lambda y: 1 - y * y,
    "sigmoid": lambda y: 4 * y * (1 - y),
}
SATURATED = 0.1
POINTS = 10  # of a curve over depth, about
PROBE_COST = 0.01  # of one layer's unit in a forward and backward pass, in steps of the MLP

Start = Callable[[nn.Module], None]
Where = Mapping[str, Scalar]


# --- what is chosen beforehand ------------------------------------------


@dataclass(frozen=True)
class Chain:
    """A chain: by what each layer multiplies, how many there are, what stands between them."""

    factor: float
    depth: int
    activation: str = "linear"
    curve: bool = False  # the gradient at many depths is recorded, and not at the far end alone


@dataclass(frozen=True)
class Trained:
    """A stack that is trained: its activation, and the rates (rising) that both sides choose from."""

    activation: str
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """What is measured, and with how many seeds.

    Attributes:
        seeds: of everything.
        images: of the batch on which gradients and activations are measured.
        chains: the chains.
        depths, width: of the deep network, rising.
        scales: of the stack's hidden layers, times torch's first weights and biases; 1 is among them.
        mixed: scales of the first, second and third hidden layer, where they differ.
        activations: of the stacks measured before training.
        trained: the stacks that are trained.
        tuning: the rate is chosen by the mean over so many of the seeds, at scale 1.
        budget: of each training.
    """

    seeds: int
    images: int
    chains: tuple[Chain, ...]
    depths: tuple[int, ...]
    width: int
    scales: tuple[float, ...]
    mixed: tuple[tuple[float, float, float], ...]
    activations: tuple[str, ...]
    trained: tuple[Trained, ...]
    tuning: int
    budget: Budget


CHAINS = (Chain(0.9, 30), Chain(0.9, 100, curve=True), Chain(1.1, 30), Chain(1.1, 100, curve=True))
TANH_CHAINS = tuple(replace(chain, activation="tanh", curve=False) for chain in CHAINS)
MIXED = ((0.1, 1.0, 10.0), (10.0, 1.0, 0.1))
# Half a decade apart, and past the best of both sides at both ends.
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
SIGMOID_RATES = (0.3, 1.0, 3.0, 10.0, 30.0)

PLANS: dict[Size, Plan] = {
    "full": Plan(
        seeds=5,
        images=300,
        chains=CHAINS + TANH_CHAINS,
        depths=(10, 20, 40, 60),
        width=256,
        scales=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
        mixed=MIXED,
        activations=("sigmoid", "tanh", "ReLU"),
        trained=(Trained("tanh", RATES), Trained("ReLU", RATES), Trained("sigmoid", SIGMOID_RATES)),
        tuning=5,
        budget=Budget(steps=400, batch_size=60, every=20),
    ),
    "demo": Plan(
        seeds=3,
        images=200,
        chains=CHAINS,
        depths=(10, 60),
        width=100,
        scales=(0.1, 0.3, 1.0, 3.0, 10.0),
        mixed=MIXED[:1],
        activations=("sigmoid", "tanh"),
        trained=(Trained("tanh", (0.1, 0.3, 1.0)),),
        tuning=1,
        budget=Budget(steps=100, batch_size=60, every=10),
    ),
    "tiny": Plan(
        seeds=2,
        images=100,
        chains=(Chain(0.9, 8, curve=True), Chain(1.1, 12, curve=True), Chain(0.9, 8, "tanh")),
        depths=(4, 8),
        width=50,
        scales=(0.3, 1.0, 3.0),
        mixed=MIXED[:1],
        activations=("sigmoid", "tanh", "ReLU"),
        trained=(Trained("tanh", (0.1, 0.3)),),
        tuning=1,
        budget=Budget(steps=4, batch_size=60, every=2),
    ),
}


# --- the networks ---------------------------------------------------------


def stack(depth: int, width: int, activation: str, start: Start | None = None) -> Network:
    """Hidden layers of one width between the pixels and ten classes; `start` sets their first weights."""

    def make(style: Style) -> nn.Sequential:
        model = dense(style, (PIXELS**2, *[width] * depth, 10), ACTIVATIONS[activation])
        for layer in parts(model, "map"):
            if start is not None:
                start(layer)
        return model

    layers = f"{PIXELS**2}-({depth} x {width})-10"
    return Network(f"{activation} stack", layers, make, PIXELS, 1, 1.0)


def orthogonal(factor: float) -> Start:
    """First weights that multiply the length of every vector, forward and backward, by `factor`."""

    def start(layer: nn.Module) -> None:
        assert isinstance(layer, nn.Linear)
        nn.init.orthogonal_(layer.weight, gain=factor)
        nn.init.zeros_(layer.bias)

    return start


def he(layer: nn.Module) -> None:
    """He et al. 2015: the first weights that keep the size of the signal through ReLU on average."""
    assert isinstance(layer, nn.Linear)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)


def scaled(model: nn.Sequential, scales: Sequence[float]) -> nn.Sequential:
    """`model` with the weights and biases of each hidden layer multiplied; the last layer is left as it is."""
    with torch.no_grad():
        for layer, scale in zip(parts(model, "map"), scales, strict=True):
            for parameter in layer.parameters():
                parameter.mul_(scale)
    return model


# The deep network's three beginnings: He's with batch normalization and without, and torch's own without.
DEEP: dict[str, tuple[Style, Start | None]] = {WITH: (BN, he), "He": (PLAIN, he), "default": (PLAIN, None)}


# --- what is looked at ------------------------------------------------------


def signals(model: nn.Sequential, batch: Split) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The images and the output of each hidden layer, from one pass in training mode; and the loss."""
    model.train()
    x = batch.images.flatten(1).requires_grad_()
    seen = [x]
    for name, layer in model.named_children():
        x = layer(x)
        if name.startswith("act"):
            seen.append(x)
    return seen, nn.functional.cross_entropy(x, batch.labels)


def by_depth(model: nn.Sequential, batch: Split) -> tuple[list[float], list[float]]:
    """Of the images and of each hidden layer's output: standard deviation over the images, gradient norm.

    In double precision: a signal of 1e-23 is a number in single precision, its square is not.
    """
    seen, loss = signals(model, batch)
    gradients = torch.autograd.grad(loss, seen)
    scales = [float(each.detach().double().var(0).mean().sqrt()) for each in seen]
    return scales, [float(each.double().norm()) for each in gradients]


def within(model: nn.Sequential, batch: Split, activation: str, when: Where) -> Iterator[Record]:
    """What a stack is like: the share of saturated activations, and the step of each hidden layer's weights.

    The step is its norm over the norm of the weights, at rate 1; at another rate it is so many times that.
    """
    seen, loss = signals(model, batch)
    if activation in SLOPE:
        outputs = torch.stack(seen[1:]).detach().double()
        finite = bool(outputs.isfinite().all())
        share = float((SLOPE[activation](outputs) < SATURATED).double().mean()) if finite else None
        yield Record("saturated activations", share, "fraction", when, 16)
    weights = [layer.get_parameter("weight") for layer in parts(model, "map")]
    for number, (weight, gradient) in enumerate(
        zip(weights, torch.autograd.grad(loss, weights), strict=True)
    ):
        step = float(gradient.double().norm() / weight.detach().double().norm())
        value = step if math.isfinite(step) else None
        yield Record("step over weights", value, "ratio", {**when, "layer": number + 1}, 26)


# --- the measurements -------------------------------------------------------


def work(plan: Plan) -> float:
    """All trials, in steps of the MLP; scale 1 at the chosen rate is among those that chose it."""
    sides, beginnings = len(STYLES), len(plan.scales) + len(plan.mixed)
    probes = sides * sum(_probe_work(chain.depth, PIXELS**2) for chain in plan.chains)
    probes += len(DEEP) * sum(_probe_work(depth, plan.width) for depth in plan.depths)
    probes += sides * len(plan.activations) * beginnings * _probe_work(HIDDEN, WIDTH)
    trained = sum((len(entry.rates) - 1) * plan.tuning + beginnings * plan.seeds for entry in plan.trained)
    return plan.seeds * probes + sides * trained * plan.budget.steps


def measure(desk: Desk, plan: Plan) -> Iterator[Record]:
    """Chains, deep networks, stacks before training, stacks after it."""
    bench, seeds = _Bench(desk, plan), desk.seeds(plan.seeds)
    beginnings = [*((scale,) * HIDDEN for scale in plan.scales), *plan.mixed]
    for chain, condition, seed in product(plan.chains, STYLES, seeds):
        yield from bench.chain(chain, condition, seed)
    for depth, condition, seed in product(plan.depths, DEEP, seeds):
        yield from bench.deep(depth, condition, seed)
    for activation, condition, scales, seed in product(plan.activations, STYLES, beginnings, seeds):
        yield from bench.begun(activation, condition, scales, seed)
    for entry, condition in product(plan.trained, STYLES):
        rate, records = bench.tune(entry, condition)
        yield from records
        for scales, seed in product(beginnings, seeds):
            yield from bench.trained(entry.activation, condition, scales, rate, seed)


EXPERIMENT = Experiment(
    "gradients",
    "gradients through depth, saturation, and the scale of the first weights",
    (15, 16, 26),
    PLANS,
    work,
    measure,
)


class _Bench:
    """Where the networks of one plan are probed and trained; each method is one trial, or chooses among some."""

    def __init__(self, desk: Desk, plan: Plan) -> None:
        self.desk = desk
        self.plan = plan
        self.stacks = {name: stack(HIDDEN, WIDTH, name) for name in ACTIVATIONS}
        train = desk.data(self.stacks["tanh"]).train
        self.batch = Split(train.images[: plan.images], train.labels[: plan.images])
        # For the networks that are judged by depth alone: centred, and of size 1, so that the first layer's
        # gradient does not depend on how bright the images are.
        centred = self.batch.images - self.batch.images.mean(0)
        self.standard = replace(self.batch, images=centred / centred.square().mean().sqrt())

    def chain(self, chain: Chain, condition: str, seed: int) -> list[Record]:
        """The gradient at each layer's output over that at the last one's; the images are the farthest back."""
        kind, factor, depth = chain.activation, chain.factor, chain.depth
        where: dict[str, Scalar] = {"activation": kind, "factor": factor, "depth": depth}

        def probe() -> Iterator[Record]:
            network = stack(depth, PIXELS**2, kind, orthogonal(factor))
            _, norms = by_depth(build(network, seed, STYLES[condition]), self.standard)
            for back in _points(depth) if chain.curve else [depth]:
                told = {**where, "condition": condition, "seed": seed, "back": back}
                row = 15 if factor < 1 else 26
                yield Record("gradient in the chain", norms[-1 - back] / norms[-1], "ratio", told, row)

        name = f"{kind} chain of {depth} x {factor:g}, {condition}, seed {seed}"
        return self.desk.once(name, _probe_work(depth, PIXELS**2), probe)

    def deep(self, depth: int, condition: str, seed: int) -> list[Record]:
        """Gradients and activations by depth; their whole curves for the deepest network alone."""
        style, start = DEEP[condition]
        where: dict[str, Scalar] = {"depth": depth, "condition": condition, "seed": seed}

        def probe() -> Iterator[Record]:
            network = stack(depth, self.plan.width, "ReLU", start)
            scales, norms = by_depth(build(network, seed, style), self.standard)
            growth = (norms[1] / norms[-1]) ** (1 / (depth - 1))  # from the last hidden layer to the first
            yield Record("growth per layer", growth, "ratio", where, 26)
            for back in _points(depth - 1) if depth == max(self.plan.depths) else []:
                of = {**where, "back": back, "layer": depth - back}
                yield Record("gradient in the deep network", norms[-1 - back] / norms[-1], "ratio", of, 26)
                yield Record("scale of activations", scales[-1 - back], "standard deviation", of, 26)

        name = f"{depth} ReLU layers, {condition}, seed {seed}"
        return self.desk.once(name, _probe_work(depth, self.plan.width), probe)

    def begun(self, activation: str, condition: str, scales: Sequence[float], seed: int) -> list[Record]:
        """A stack before training."""
        where = _where(activation, condition, scales, seed, "before training")

        def probe() -> Iterator[Record]:
            yield from within(self._build(activation, condition, scales, seed), self.batch, activation, where)

        name = f"{activation} {condition}, scale {_told(scales)}, before training, seed {seed}"
        return self.desk.once(name, _probe_work(HIDDEN, WIDTH), probe)

    def trained(
        self, activation: str, condition: str, scales: Sequence[float], rate: float, seed: int
    ) -> list[Record]:
        """A stack after training."""
        where = {**_where(activation, condition, scales, seed, "after training"), "rate": rate}

        def train() -> Iterator[Record]:
            model = self._build(activation, condition, scales, seed)
            network, budget = self.stacks[activation], self.plan.budget
            run = self.desk.train(network, model, rate=rate, seed=seed, budget=budget)
            late = fmean(run.accuracy[-max(1, len(run.accuracy) // 4) :])  # less luck than in one moment
            yield Record(ACCURACY, late, "fraction", {**where, "failed": run.failed}, 16)
            yield from within(run.network, self.batch, activation, where)

        name = f"{activation} {condition}, scale {_told(scales)}, rate {rate:g}, seed {seed}"
        return self.desk.once(name, self.plan.budget.steps, train)

    def tune(self, entry: Trained, condition: str) -> tuple[float, list[Record]]:
        """The rate that ends best at scale 1, and the records of the choice."""
        side: dict[str, Scalar] = {"activation": entry.activation, "condition": condition}

        def score(rate: float, seed: int) -> float:
            records = self.trained(entry.activation, condition, (1.0,) * HIDDEN, rate, seed)
            return next(r.value or 0.0 for r in records if r.what == ACCURACY)

        seeds = self.desk.seeds(self.plan.tuning)
        scores = {rate: fmean(score(rate, seed) for seed in seeds) for rate in entry.rates}
        chosen = max(entry.rates, key=lambda rate: scores[rate])
        records = [
            Record("score of a rate", value, "fraction", {**side, "rate": rate}, 16)
            for rate, value in scores.items()
        ]
        return chosen, [*records, Record("chosen rate", chosen, "rate", side, 16)]

    def _build(self, activation: str, condition: str, scales: Sequence[float], seed: int) -> nn.Sequential:
        return scaled(build(self.stacks[activation], seed, STYLES[condition]), scales)


def _where(activation: str, condition: str, scales: Sequence[float], seed: int, when: str) -> Where:
    """The conditions of a stack; one `scale`, or `scales` where the hidden layers differ."""
    told: dict[str, Scalar] = {"scale": scales[0]} if len(set(scales)) == 1 else {"scales": _told(scales)}
    return {"activation": activation, "condition": condition, "seed": seed, **told, "when": when}


def _told(scales: Sequence[float]) -> str:
    return ", ".join(f"{scale:g}" for scale in (scales[:1] if len(set(scales)) == 1 else scales))


def _points(last: int) -> list[int]:
    """From 0 to `last` in about `POINTS` equal strides, both among them."""
    return [*range(0, last, max(1, round(last / POINTS))), last]


def _probe_work(depth: int, width: int) -> float:
    return depth * width * PROBE_COST
