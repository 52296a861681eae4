"""Choosing a learning rate: every rate once, the best few with every seed, never by the test images."""

import pytest

from normwright.lab import rates
from normwright.report.records import Record


def test_the_score_is_that_of_the_end_and_not_of_the_best_moment():
    assert rates.score((0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)) == pytest.approx(0.7)
    assert rates.score((0.9, 0.5)) == 0.5


def tuned(first: dict[float, float], later: dict[float, float] | None = None):
    """The rate chosen, the records and the trials asked for, where each rate scores so with each seed."""
    asked = []

    def trial(rate, seed):
        asked.append((rate, seed))
        score = (later or first)[rate] if seed else first[rate]
        return [Record(rates.SCORE, score, "fraction"), Record("test accuracy", 1 - score, "fraction")]

    chosen, records = rates.choose(tuple(first), (0, 1), trial, {"condition": "BN"}, 13)
    assert all(r.row == 13 and r.where["condition"] == "BN" for r in records)
    return chosen, records, asked


def test_the_best_two_rates_of_the_first_seed_are_tried_with_the_others():
    _, _, asked = tuned({0.1: 0.5, 0.3: 0.9, 1.0: 0.7, 3.0: 0.2})
    assert {rate for rate, seed in asked if seed == 0} == {0.1, 0.3, 1.0, 3.0}
    assert {rate for rate, seed in asked if seed == 1} == {0.3, 1.0}


def test_the_best_mean_over_all_seeds_is_chosen_and_not_the_best_first_seed():
    chosen, records, _ = tuned({0.1: 0.5, 0.3: 0.9, 1.0: 0.7}, {0.1: 1.0, 0.3: 0.1, 1.0: 0.7})
    assert chosen == 1.0
    scores = {r.where["rate"]: (r.value, r.where["seeds"]) for r in records if r.what == "score of a rate"}
    assert scores == {0.1: (0.5, 1), 0.3: (pytest.approx(0.5), 2), 1.0: (pytest.approx(0.7), 2)}


@pytest.mark.parametrize(
    ("scores", "edge"),
    [([0.9, 0.5, 0.5], "lowest"), ([0.5, 0.9, 0.5], None), ([0.5, 0.5, 0.9], "highest")],
    ids=["lowest", "in the middle", "highest"],
)
def test_a_rate_chosen_at_the_edge_of_its_grid_says_so(scores, edge):
    _, records, _ = tuned(dict(zip((0.1, 0.3, 1.0), scores, strict=True)))
    assert (records[-1].what, records[-1].where["edge"]) == ("chosen rate", edge)
