"""How a learning rate is chosen: on the validation images, from one grid, in the same way for every side."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from normwright.report.records import Record, Scalar

FINALISTS = 2  # rates that are tried with every seed, after every rate was tried with the first
SCORE = "late validation accuracy"

Trial = Callable[[float, int], list[Record]]


def score(curve: Sequence[float]) -> float:
    """Mean validation accuracy over the last quarter of the run, by which a rate is chosen.

    How well a run ends, and not its single best moment, which among a few hundred images is partly luck.
    """
    return fmean(curve[-max(1, len(curve) // 4) :])


def choose(
    rates: Sequence[float], seeds: Sequence[int], trial: Trial, where: Mapping[str, Scalar], row: int
) -> tuple[float, list[Record]]:
    """The rate with the best mean score, and the records of the choice.

    Every rate is tried with the first seed, the best few with the other seeds too.

    Args:
        rates: the grid, rising.
        seeds: the first of them sees every rate.
        trial: the records of one run at a rate with a seed, among them its `SCORE`.
        where, row: the conditions and the row of the sources of the records that are returned.
    """

    def mean(rate: float, seeds: Sequence[int]) -> float:
        return fmean(r.value or 0.0 for seed in seeds for r in trial(rate, seed) if r.what == SCORE)

    first = {rate: mean(rate, seeds[:1]) for rate in rates}
    finalists = sorted(rates, key=lambda rate: -first[rate])[:FINALISTS]
    whole = {rate: mean(rate, seeds) for rate in finalists}
    chosen = max(finalists, key=lambda rate: whole[rate])
    records = [
        Record("score of a rate", whole.get(rate, first[rate]), "fraction", told, row)
        for rate in rates
        for told in [{**where, "rate": rate, "seeds": len(seeds) if rate in whole else 1}]
    ]
    edge = {rates[0]: "lowest", rates[-1]: "highest"}.get(chosen)
    return chosen, [*records, Record("chosen rate", chosen, "rate", {**where, "edge": edge}, row)]
