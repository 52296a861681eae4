"""What an experiment is: a plan in three sizes, and how to measure it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from torch import nn

from normwright.lab.data import Source, Splits
from normwright.lab.networks import Network
from normwright.lab.notebook import Notebook
from normwright.lab.train import Budget, Run, train
from normwright.report.records import Record

Size = Literal["tiny", "demo", "full"]
Plan = TypeVar("Plan")


class Desk:
    """Where an experiment works: its data, its first seed, its notebook."""

    def __init__(self, source: Source, seed: int, notebook: Notebook) -> None:
        self.source = source
        self.seed = seed
        self.notebook = notebook
        self._splits: dict[tuple[int, int, int], Splits] = {}

    def seeds(self, count: int) -> range:
        """The seeds of `count` repetitions."""
        return range(self.seed, self.seed + count)

    def data(self, network: Network) -> Splits:
        """The data set as `network` takes it; split by the first seed, the same for all repetitions."""
        key = (self.seed, network.size, network.channels)
        if key not in self._splits:
            self._splits[key] = self.source.splits(self.seed, size=network.size, channels=network.channels)
        return self._splits[key]

    def once(self, what: str, work: float, measure: Callable[[], Iterable[Record]]) -> list[Record]:
        """See `Notebook.once`."""
        return self.notebook.once(what, work, measure)

    def train(
        self,
        network: Network,
        model: nn.Sequential,
        *,
        rate: float,
        seed: int,
        budget: Budget,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> Run:
        """Train `model`, a `network` built in some style, and let the watch hear of every step."""

        def step_done(step: int) -> None:
            self.notebook.advance(network.cost)
            on_step(step)

        return train(model, self.data(network), rate=rate, seed=seed, budget=budget, on_step=step_done)


@dataclass(frozen=True)
class Experiment(Generic[Plan]):
    """One experiment of the laboratory.

    Attributes:
        name: what the command line calls it.
        about: what it asks, in a few words, for the list of experiments.
        rows: the rows of docs/sources.md that it measures.
        plans: what is chosen before anything is measured: ``"full"``, ``"demo"`` (seconds), ``"tiny"`` (tests).
        work: about how much a plan is, in training steps of the MLP.
        measure: yields the records; whatever takes time goes through `Desk.once`.
    """

    name: str
    about: str
    rows: tuple[int, ...]
    plans: Mapping[Size, Plan]
    work: Callable[[Plan], float]
    measure: Callable[[Desk, Plan], Iterator[Record]]


AnyExperiment = Experiment[Any]
