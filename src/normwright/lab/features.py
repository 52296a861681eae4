"""Features in different units: raw, standardized, and with BN as the first layer, under plain gradient descent.

Logistic and linear regression on tables whose columns are in units of their own. `normwright.numpy.Population`
standardizes, by the numbers of the training part alone. Weights of 0, the same batches and one constant rate each:
the model is linear in all three, so they have the same best solution, and only the way there differs.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from statistics import fmean

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import nn

import normwright.torch as nw
from normwright.lab.experiment import Desk, Experiment, Size
from normwright.lab.train import Budget, batches
from normwright.numpy import Population
from normwright.report.records import Record, Scalar

RAW, STANDARDIZED, WITH = "raw", "standardized", "BN first"
SIDES = (RAW, STANDARDIZED, WITH)
SHARES = (0.5, 0.9)  # of the way from the first loss to the solver's: steps are counted until there
TRAIN, VALIDATION = 0.6, 0.2  # of the rows; the rest is the test set
LOOKS = 40  # at the loss in one run, ever further apart
STEP = 0.2  # what a step of these small models costs, in steps of the MLP


@dataclass(frozen=True)
class Problem:
    """A regression of one column on the others.

    Attributes:
        name: as tables and pictures call it.
        logistic: the target is one of two classes; else a number, which is standardized.
        load: the table ``(rows, features)``, the target ``(rows,)`` and the names of the features.
        pair: two features, whose ranges show that the units differ.
    """

    name: str
    logistic: bool
    load: Callable[[], tuple[np.ndarray, np.ndarray, list[str]]]
    pair: tuple[str, str]


@cache
def breast_cancer() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Sizes and shapes of cell nuclei, and whether a tumour is benign: 569 rows, 30 features."""
    package = load_breast_cancer()
    return package.data, package.target.astype(np.float64), [str(name) for name in package.feature_names]


@cache
def diabetes() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Age, sex, blood values and the progression of diabetes a year later: 442 rows, 10 features, as measured."""
    package = load_diabetes(scaled=False)
    return package.data, package.target.astype(np.float64), [str(name) for name in package.feature_names]


LOGISTIC = Problem("logistic regression", True, breast_cancer, ("mean area", "mean smoothness"))
LINEAR = Problem("linear regression", False, diabetes, ("s1", "s5"))


@dataclass(frozen=True)
class Entry:
    """A problem by its name, and the rates that every side chooses from (rising)."""

    problem: str
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """What runs, how long, with how many seeds, and how many of them choose the rate.

    A seed draws the three parts of the table and the order of the batches.
    """

    entries: tuple[Entry, ...]
    budget: Budget
    seeds: int
    choosing: int


PROBLEMS = {problem.name: problem for problem in (LOGISTIC, LINEAR)}
# One grid for all sides, from far below the rate that raw features bear to above that of standardized ones.
HALVES = tuple(float(f"{digit}e{power}") for power in range(-8, 2) for digit in (1, 3))
DECADES = tuple(float(f"1e{power}") for power in range(-7, 2))
FULL = Plan(tuple(Entry(name, HALVES) for name in PROBLEMS), Budget(2000, 32, 2000), seeds=5, choosing=2)

PLANS: dict[Size, Plan] = {
    "full": FULL,
    "demo": Plan(tuple(Entry(name, DECADES) for name in PROBLEMS), Budget(300, 32, 300), seeds=3, choosing=1),
    "tiny": replace(
        FULL,
        entries=tuple(Entry(name, (1e-6, 1e-1)) for name in PROBLEMS),
        budget=Budget(20, 32, 20),
        seeds=2,
        choosing=1,
    ),
}


def work(plan: Plan) -> float:
    """All runs, in steps of the MLP; with the chosen rate only the seeds that did not choose run anew."""
    runs = sum(
        len(SIDES) * (len(entry.rates) * plan.choosing + plan.seeds - plan.choosing) for entry in plan.entries
    )
    return runs * plan.budget.steps * STEP + len(plan.entries) * plan.seeds


def measure(desk: Desk, plan: Plan) -> Iterator[Record]:
    """Every problem: the table, then each side."""
    for entry in plan.entries:
        problem, seeds = PROBLEMS[entry.problem], desk.seeds(plan.seeds)
        goals: dict[int, float] = {}
        for seed in seeds:
            solve = partial(solved, problem, seed, seed == seeds[0])
            found = desk.once(f"{problem.name}, solver, seed {seed}", 1.0, solve)
            yield from (replace(r, where={**r.where, "problem": problem.name, "seed": seed}) for r in found)
            goals[seed] = next(r.value or 0.0 for r in found if r.what == "solver's train loss")
        for side in SIDES:
            yield from _Side(desk, plan, entry, side, goals).measure()


EXPERIMENT = Experiment(
    "features", "input features: raw, standardized, or BN as the first layer", (20,), PLANS, work, measure
)


# --- the table --------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A problem's rows in three parts, each ``(features, target)``: learned from, chosen on, judged on."""

    problem: Problem
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, problem: Problem, seed: int) -> "Table":
        """The rows as measured, in parts drawn by `seed`; a numeric target in deviations from its mean."""
        features, target, _ = problem.load()
        order = np.random.default_rng(seed).permutation(len(target))
        cuts = [int(TRAIN * len(target)), int((TRAIN + VALIDATION) * len(target))]
        known = np.split(order, cuts)[0]
        if not problem.logistic:
            target = Population().add(target[known][:, None]).standardize(target[:, None])[:, 0]
        parts = [(features[part], target[part]) for part in np.split(order, cuts)]
        return cls(problem, *parts)

    def standardized(self) -> "Table":
        """Every feature in deviations from its mean, both of the training part."""
        people = Population().add(self.train[0])
        parts = [(people.standardize(x), y) for x, y in (self.train, self.validation, self.test)]
        return Table(self.problem, *parts)


def solved(problem: Problem, seed: int, first: bool) -> Iterator[Record]:
    """What a solver reaches, the condition numbers, and (for the first seed) the ranges of two features."""
    table = Table.of(problem, seed)
    other = table.standardized()
    if problem.logistic:
        model = LogisticRegression(max_iter=1000).fit(*other.train)
        right = model.predict_proba(other.train[0])[
            np.arange(len(other.train[1])), other.train[1].astype(int)
        ]
        loss = float(-np.log(right).mean())
    else:
        model = LinearRegression().fit(*other.train)
        loss = float(((model.predict(other.train[0]) - other.train[1]) ** 2).mean())
    yield Record("solver's train loss", loss, "loss", {}, 20)
    yield Record("solver's test score", float(model.score(*other.test)), "fraction", {}, 20)
    for side, part in ((RAW, table), (STANDARDIZED, other)):
        condition = float(np.linalg.cond(np.cov(part.train[0].T, bias=True)))
        yield Record("condition number", condition, "ratio", {"side": side}, 20)
    if first:
        names = problem.load()[2]
        for name in problem.pair:
            column = table.train[0][:, names.index(name)]
            for end, value in (
                ("lowest", column.min()),
                ("highest", column.max()),
                ("deviation", column.std()),
            ):
                yield Record("feature", float(value), "its own", {"feature": name, "of": end}, 20)


# --- descending -------------------------------------------------------


class _Side:
    """One problem with its features in one form."""

    def __init__(self, desk: Desk, plan: Plan, entry: Entry, side: str, goals: Mapping[int, float]) -> None:
        self.desk = desk
        self.plan = plan
        self.entry = entry
        self.problem = PROBLEMS[entry.problem]
        self.side = side
        self.goals = goals
        self.runs: dict[tuple[float, int], list[Record]] = {}
        self.where: dict[str, Scalar] = {"problem": entry.problem, "side": side}

    def measure(self) -> Iterator[Record]:
        """The choice of a rate, then its run with every seed."""
        seeds = self.desk.seeds(self.plan.seeds)
        scores = {
            rate: self._late(rate, "validation", seeds[: self.plan.choosing]) for rate in self.entry.rates
        }
        for rate, loss in scores.items():
            told = None if math.isinf(loss) else loss
            yield Record("score of a rate", told, "loss", {**self.where, "rate": rate}, 20)
        chosen = min(self.entry.rates, key=lambda rate: scores[rate])
        edge = {self.entry.rates[0]: "lowest", self.entry.rates[-1]: "highest"}.get(chosen)
        yield Record("chosen rate", chosen, "rate", {**self.where, "edge": edge}, 20)
        yield Record("largest rate that descends", self._largest(seeds[0]), "rate", self.where, 20)
        for seed in seeds:
            found = [
                replace(r, where={**self.where, "seed": seed, **r.where}) for r in self._run(chosen, seed)
            ]
            yield from (record for record in found if not record.what.startswith("late"))
            yield from self._reached(found, seed)

    def _late(self, rate: float, part: str, seeds: range) -> float:
        """Mean loss over the last looks of the runs of a rate; infinite where one left the finite numbers."""
        what = f"late {part} loss"
        values = [r.value for seed in seeds for r in self._run(rate, seed) if r.what == what]
        return fmean(math.inf if value is None else value for value in values)

    def _largest(self, seed: int) -> float | None:
        """The largest rate of the grid at which the loss ended below where it began; None where none did."""
        descends = []
        for rate in self.entry.rates:
            start = next(r.value for r in self._run(rate, seed) if r.what == "train loss")
            if start is not None and self._late(rate, "train", range(seed, seed + 1)) < start:
                descends.append(rate)
        return max(descends, default=None)

    def _reached(self, found: list[Record], seed: int) -> Iterator[Record]:
        """The first look at which each share of the way to the solver's loss was done; None where at none."""
        curve = {int(r.where["step"] or 0): r.value for r in found if r.what == "train loss"}
        start = curve[0] or 0.0
        for share in SHARES:
            height = start - share * (start - self.goals[seed])
            step = next((s for s, loss in curve.items() if loss is not None and loss <= height), None)
            where: dict[str, Scalar] = {**self.where, "seed": seed, "share": share}
            yield Record("steps to a share of the way", step, "steps", where, 20)

    def _run(self, rate: float, seed: int) -> list[Record]:
        """One descent, measured once however often it is asked for."""
        budget = self.plan.budget

        def measured() -> Iterator[Record]:
            table = Table.of(self.problem, seed)
            descent = Descent(table.standardized() if self.side == STANDARDIZED else table, self.side == WITH)
            yield from descend(descent, rate, budget, seed, lambda: self.desk.notebook.advance(STEP))

        if (rate, seed) not in self.runs:
            what = f"{self.problem.name} {self.side}, rate {rate:g}, seed {seed}"
            self.runs[rate, seed] = self.desk.once(what, budget.steps * STEP, measured)
        return self.runs[rate, seed]


class Descent:
    """A linear model, its data in float32, its loss: the mean squared error, or the logistic loss."""

    def __init__(self, table: Table, batch_norm: bool) -> None:
        self.logistic = table.problem.logistic
        self.parts = {
            name: (torch.from_numpy(x).float(), torch.from_numpy(y).float())
            for name, (x, y) in (
                ("train", table.train),
                ("validation", table.validation),
                ("test", table.test),
            )
        }
        features = table.train[0].shape[1]
        linear = nn.Linear(features, 1)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        # momentum=None averages all batches alike: features do not move, so no batch is older than another.
        first = [nw.BatchNorm1d(features, momentum=None, on_nonfinite="propagate")] if batch_norm else []
        self.model = nn.Sequential(*first, linear)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The mean over ``(N, features)`` and ``(N,)``, in whatever mode the model is."""
        told = self.model(x)[:, 0]
        if self.logistic:
            return nn.functional.binary_cross_entropy_with_logits(told, y)
        return nn.functional.mse_loss(told, y)

    def look(self, part: str) -> float | None:
        """The loss of a part as a user would predict it; None where it is no finite number."""
        self.model.eval()
        with torch.inference_mode():
            value = float(self.loss(*self.parts[part]))
        self.model.train()
        return value if math.isfinite(value) else None

    def score(self) -> float | None:
        """On the test part: the share of right classes, or R^2."""
        x, y = self.parts["test"]
        self.model.eval()
        with torch.inference_mode():
            told = self.model(x)[:, 0].double()
        if self.logistic:
            return float(((told > 0) == (y > 0.5)).double().mean())
        value = float(1 - ((told - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())
        return value if math.isfinite(value) else None


def descend(
    descent: Descent, rate: float, budget: Budget, seed: int, on_step: Callable[[], None]
) -> Iterator[Record]:
    """Plain SGD at a constant rate: the losses on the way, how it ends, and the score on the test part."""
    x, y = descent.parts["train"]
    parameters = list(descent.model.parameters())
    looks = set(np.unique(np.geomspace(1, budget.steps, LOOKS).round().astype(int)).tolist())
    curve: dict[int, tuple[float | None, float | None]] = {
        0: (descent.look("train"), descent.look("validation"))
    }
    broken = False
    for step, batch in enumerate(batches(len(y), budget, seed), start=1):
        if not broken:
            gradients = torch.autograd.grad(descent.loss(x[batch], y[batch]), parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=rate)
        if step in looks:
            curve[step] = (None, None) if broken else (descent.look("train"), descent.look("validation"))
            broken = curve[step][0] is None
        on_step()
    late = [pair for step, pair in curve.items() if step > 0.75 * budget.steps]
    for step, (loss, _) in curve.items():
        yield Record("train loss", loss, "loss", {"step": step}, 20)
    for index, part in enumerate(("train", "validation")):
        values = [pair[index] for pair in late]
        known = [value for value in values if value is not None]
        yield Record(f"late {part} loss", fmean(known) if len(known) == len(values) else None, "loss", {}, 20)
    yield Record("test score", None if broken else descent.score(), "fraction", {}, 20)
