"""The race: one network without and with batch normalization, from the same weights, on the same batches.

The rules are the same for both sides: one grid of learning rates, one budget, one way to choose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from torch import nn

from normwright.lab.data import Splits
from normwright.lab.networks import Maker, build
from normwright.lab.train import Budget, Run, accuracy, steps_to, train
from normwright.report.records import Record, Scalar

FINALISTS = 2  # rates that are tried with every seed, after every rate was tried with the first


@dataclass(frozen=True)
class Entry:
    """A network in the race: how it is built, on what images, with which rates (rising), for how long."""

    name: str
    layers: str
    make: Maker
    size: int
    channels: int
    rates: tuple[float, ...]
    budget: Budget

    def runs(self, seeds: int) -> int:
        """How many trainings its race takes, both sides together."""
        return 2 * (len(self.rates) + min(FINALISTS, len(self.rates)) * (seeds - 1))


@dataclass(frozen=True)
class Finish:
    """What a race leaves: its records, and the trained networks by ``(batch_norm, seed)``."""

    records: list[Record]
    networks: dict[tuple[bool, int], nn.Sequential]


class Watch(Protocol):
    """Whoever looks on while networks train."""

    def run(self, network: str, what: str) -> None:
        """A training begins, in the race of `network`."""

    def step(self) -> None:
        """One step of it is done."""


def score(run: Run) -> float:
    """Mean validation accuracy over the last quarter of the run, by which a rate is chosen.

    How well a run ends, and not its single best moment, which among a few hundred images is partly luck.
    """
    return fmean(run.accuracy[-max(1, len(run.accuracy) // 4) :])


def race(entry: Entry, data: Splits, seeds: Sequence[int], watch: Watch) -> Finish:
    """Train both sides, each at the rate chosen for it, and compare them seed by seed."""
    records: list[Record] = []
    sides = {norm: _side(entry, data, seeds, watch, records, batch_norm=norm) for norm in (False, True)}
    for seed in seeds:
        records.extend(_compare(entry.name, seed, sides[False][seed], sides[True][seed]))
    networks = {(norm, seed): run.network for norm, runs in sides.items() for seed, run in runs.items()}
    return Finish(records, networks)


def _side(
    entry: Entry,
    data: Splits,
    seeds: Sequence[int],
    watch: Watch,
    records: list[Record],
    *,
    batch_norm: bool,
) -> dict[int, Run]:
    """The runs of one side at its chosen rate, by seed; what was measured goes to `records`.

    Every rate is tried with the first seed, the best few with the other seeds too; the best mean score is
    chosen.
    """
    where: dict[str, Scalar] = {"network": entry.name, "batch_norm": batch_norm}

    def once(rate: float, seed: int) -> Run:
        watch.run(
            entry.name, f"{entry.name} {'with' if batch_norm else 'without'} BN, rate {rate:g}, seed {seed}"
        )
        network = build(entry.make, seed, batch_norm=batch_norm)
        run = train(network, data, rate=rate, seed=seed, budget=entry.budget, on_step=watch.step)
        records.extend(_curve(run, {**where, "rate": rate, "seed": seed}))
        return run

    first, *others = seeds
    tried = {rate: once(rate, first) for rate in entry.rates}
    finalists = sorted(entry.rates, key=lambda rate: -score(tried[rate]))[:FINALISTS]
    runs = {rate: {first: tried[rate], **{seed: once(rate, seed) for seed in others}} for rate in finalists}
    rate = max(finalists, key=lambda rate: fmean(score(run) for run in runs[rate].values()))
    records.append(Record("chosen rate", rate, "rate", {**where, "edge": _edge(rate, entry.rates)}))
    for seed, run in runs[rate].items():
        told = {**where, "rate": rate, "seed": seed}
        records.append(Record("test accuracy", accuracy(run.network, data.test), "fraction", told))
        records.append(Record("best validation accuracy", max(run.accuracy), "fraction", told))
        records.append(Record("seconds per step", run.seconds / entry.budget.steps, "seconds", told))
    return runs[rate]


def _curve(run: Run, where: Mapping[str, Scalar]) -> list[Record]:
    points = [
        Record("validation accuracy", height, "fraction", {**where, "step": step})
        for step, height in zip(run.steps, run.accuracy, strict=True)
    ]
    return [*points, Record("late validation accuracy", score(run), "fraction", where)]


def _edge(rate: float, rates: Sequence[float]) -> str | None:
    """Where the grid ended too soon: a better rate may lie beyond it."""
    return {rates[0]: "lowest", rates[-1]: "highest"}.get(rate)


def _compare(network: str, seed: int, without: Run, with_norm: Run) -> list[Record]:
    """Steps of both sides to the best accuracy of the network without; None where it was never reached."""
    where: dict[str, Scalar] = {"network": network, "seed": seed}
    target = max(without.accuracy)
    base = steps_to(target, without.steps, without.accuracy)
    reached = steps_to(target, with_norm.steps, with_norm.accuracy)
    ratio = None if base is None or reached is None else reached / base
    return [
        Record("best accuracy without BN", target, "fraction", where),
        Record("steps to it", base, "steps", {**where, "batch_norm": False}),
        Record("steps to it", reached, "steps", {**where, "batch_norm": True}),
        Record("ratio of steps", ratio, "ratio", where),
    ]
