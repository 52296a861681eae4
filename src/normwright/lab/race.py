"""The race: how many steps each network takes to the accuracy it has without batch normalization.

The rules are the same for both sides: one grid of learning rates, one budget, one way to choose, on the
validation images. The paper's section 4.2.1 is the model: the learning rate of the network without batch
normalization, five and thirty times it, and a sigmoid in place of ReLU.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from normwright.lab.experiment import Desk, Experiment, Size
from normwright.lab.networks import BN, CNN, DEEP_CNN, MLP, PLAIN, SIGMOID, Network, Style, build
from normwright.lab.rates import FINALISTS, SCORE, choose, score
from normwright.lab.train import Budget, Run, accuracy, steps_to
from normwright.report.records import Record, Scalar

FACTORS = (1, 5, 30)  # the paper's: of the learning rate without batch normalization

CURVE = "validation accuracy"


@dataclass(frozen=True)
class Side:
    """One side of a comparison, which chooses its own rate; `sigmoid` takes the place of ReLU."""

    condition: str
    batch_norm: bool
    sigmoid: bool = False

    @property
    def style(self) -> Style:
        """How its network is built."""
        return replace(BN if self.batch_norm else PLAIN, activation=nn.Sigmoid if self.sigmoid else None)


WITHOUT, WITH = Side("without BN", False), Side("BN", True)
WITH_SIGMOID = (Side("sigmoid without BN", False, True), Side("BN with sigmoid", True, True))


@dataclass(frozen=True)
class Entry:
    """A network in the race: with which rates (rising), for how long, and whether with sigmoids too."""

    network: Network
    rates: tuple[float, ...]
    budget: Budget
    sigmoid: bool = False

    @property
    def sides(self) -> tuple[Side, ...]:
        """Those that choose a rate, the one without batch normalization first."""
        return (WITHOUT, WITH, *(WITH_SIGMOID if self.sigmoid else ()))


@dataclass(frozen=True)
class Plan:
    """Who runs, and with how many seeds."""

    entries: tuple[Entry, ...]
    seeds: int


# The rates are half a decade apart and reach, for each network, past the best of both sides.
MLP_ENTRY = Entry(
    MLP, (0.1, 0.3, 1.0, 3.0, 10.0, 30.0), Budget(steps=500, batch_size=60, every=10), sigmoid=True
)
SIGMOID_ENTRY = Entry(SIGMOID, (0.3, 1.0, 3.0, 10.0, 30.0), Budget(steps=3000, batch_size=60, every=50))
CNN_ENTRY = Entry(CNN, (0.003, 0.01, 0.03, 0.1, 0.3), Budget(steps=180, batch_size=60, every=10))
DEEP_CNN_ENTRY = Entry(DEEP_CNN, (0.01, 0.03, 0.1, 0.3, 1.0), Budget(steps=400, batch_size=60, every=10))


def _tiny(entry: Entry) -> Entry:
    return replace(entry, rates=entry.rates[2:4], budget=Budget(steps=4, batch_size=60, every=2))


PLANS: dict[Size, Plan] = {
    "full": Plan(
        (MLP_ENTRY, SIGMOID_ENTRY, replace(CNN_ENTRY, sigmoid=True), replace(DEEP_CNN_ENTRY, sigmoid=True)),
        seeds=5,
    ),
    "demo": Plan((replace(MLP_ENTRY, sigmoid=False), CNN_ENTRY), seeds=3),
    "tiny": Plan((_tiny(MLP_ENTRY), _tiny(SIGMOID_ENTRY)), seeds=2),
}


def work(plan: Plan) -> float:
    """All trials, in steps of the MLP."""
    total = 0.0
    for entry in plan.entries:
        tuned = len(entry.sides) * (len(entry.rates) + min(FINALISTS, len(entry.rates)) * (plan.seeds - 1))
        total += (tuned + len(FACTORS) * plan.seeds) * entry.budget.steps * entry.network.cost
    return total


def measure(desk: Desk, plan: Plan) -> Iterator[Record]:
    """Every network's race, one after the other."""
    for entry in plan.entries:
        yield from _Race(desk, entry, desk.seeds(plan.seeds)).measure()


EXPERIMENT = Experiment(
    "race", "how many training steps it takes, with BN and without", (10, 13, 16), PLANS, work, measure
)


class _Race:
    """The race of one network."""

    def __init__(self, desk: Desk, entry: Entry, seeds: Sequence[int]) -> None:
        self.desk = desk
        self.entry = entry
        self.seeds = seeds

    def measure(self) -> Iterator[Record]:
        runs: dict[str, tuple[Side, float]] = {}
        for side in self.entry.sides:
            where: dict[str, Scalar] = {"network": self.entry.network.name, "condition": side.condition}
            rate, records = choose(self.entry.rates, self.seeds, partial(self._trial, side), where, 13)
            yield from records
            runs[side.condition] = (side, rate)
        base = runs[WITHOUT.condition][1]
        runs.update({f"BN, rate x{factor}": (WITH, base * factor) for factor in FACTORS})
        for seed in self.seeds:
            goal: tuple[float, int] | None = None
            for condition, (side, rate) in runs.items():
                records = self._trial(side, rate, seed)
                where = {
                    "network": self.entry.network.name,
                    "condition": condition,
                    "seed": seed,
                }
                yield from (replace(r, where={**r.where, **where}) for r in records)
                curve = {int(r.where["step"] or 0): r.value or 0.0 for r in records if r.what == CURVE}
                goal = goal or _goal(curve)
                yield from _compare(where, curve, goal)

    def _trial(self, side: Side, rate: float, seed: int) -> list[Record]:
        """One training, measured once however many conditions it belongs to."""
        network, budget = self.entry.network, self.entry.budget

        def measure() -> Iterator[Record]:
            model = build(network, seed, side.style)
            run = self.desk.train(network, model, rate=rate, seed=seed, budget=budget)
            where: dict[str, Scalar] = {"rate": rate}
            yield from _curve(run, where)
            test = accuracy(run.network, self.desk.data(network).test)
            yield Record("test accuracy", test, "fraction", where, 13)
            yield Record("best validation accuracy", max(run.accuracy), "fraction", where, 13)
            yield Record("failed at", run.failed, "steps", where, 16)

        name = f"{network.name} {side.condition}, rate {rate:g}, seed {seed}"
        return self.desk.once(name, budget.steps * network.cost, measure)


def _curve(run: Run, where: Mapping[str, Scalar]) -> Iterator[Record]:
    for step, height in zip(run.steps, run.accuracy, strict=True):
        yield Record(CURVE, height, "fraction", {**where, "step": step}, 13)
    yield Record(SCORE, score(run.accuracy), "fraction", where, 13)


def _goal(curve: Mapping[int, float]) -> tuple[float, int]:
    """The best accuracy of the network without batch normalization, and the step that first had it."""
    best = max(curve.values())
    reached = steps_to(best, tuple(curve), tuple(curve.values()))
    assert reached is not None
    return best, reached


def _compare(
    where: Mapping[str, Scalar], curve: Mapping[int, float], goal: tuple[float, int]
) -> Iterator[Record]:
    """Steps to the goal and their share of those without; None where it was never reached."""
    best, base = goal
    reached = steps_to(best, tuple(curve), tuple(curve.values()))
    yield Record("goal", best, "fraction", where, 13)
    yield Record("steps to the goal", reached, "steps", where, 13)
    yield Record("ratio of steps", None if reached is None else reached / base, "ratio", where, 13)
