"""The race told: claims that hold, hold partly, and do not hold, on records made up for each."""

import pytest

from normwright.report.cards import race
from normwright.report.document import outcome_words
from normwright.report.records import Record
from tiny_lab import EN, ZH, made_up

SAYS = [pytest.param(EN, id="en"), pytest.param(ZH, id="zh")]
HOLDS, PARTLY, FALSE = "holds", "holds partly", "does not hold here"


def ratios(*values: float | None, network: str = "MLP", condition: str = "BN") -> list[Record]:
    return [
        Record(
            "ratio of steps", value, "ratio", {"network": network, "condition": condition, "seed": seed}, 13
        )
        for seed, value in enumerate(values)
    ]


def accuracies(
    *sides: tuple[str, list[float]], network: str = "MLP", what: str = "test accuracy"
) -> list[Record]:
    return [
        Record(what, value, "fraction", {"network": network, "condition": condition, "seed": seed}, 13)
        for condition, values in sides
        for seed, value in enumerate(values)
    ]


def scores(condition: str, by_rate: dict[float, float | None], network: str = "MLP") -> list[Record]:
    return [
        Record(
            "score of a rate",
            score,
            "fraction",
            {"network": network, "condition": condition, "rate": rate},
            13,
        )
        for rate, score in by_rate.items()
    ]


def race_of(*records: list[Record]):
    return made_up("race", [record for part in records for record in part])


# --- fewer steps ------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        pytest.param((0.2, 0.3, 0.9), HOLDS, id="sooner for every seed"),
        pytest.param((0.2, 0.3, 1.2), PARTLY, id="sooner in the median alone"),
        pytest.param((0.2, 0.3, None), PARTLY, id="one seed never got there"),
        pytest.param((0.2, 1.0, 1.0), FALSE, id="as many steps are not fewer"),
        pytest.param((1.5, 2.0, 1.2), FALSE, id="later for every seed"),
        pytest.param((0.1, None, None), FALSE, id="most seeds never got there"),
        pytest.param((None, None, None), FALSE, id="none ever got there"),
    ],
)
def test_fewer_steps_is_what_the_ratios_say(values, outcome):
    verdict = race.speed(race_of(ratios(*values)), "MLP", EN)
    assert verdict.outcome == outcome
    sooner = sum(value is not None and value < 1 for value in values)
    assert f"for {sooner} of 3 seeds" in verdict.sentence


def test_the_share_is_told_with_its_range_and_a_seed_that_never_got_there():
    told = race.speed(race_of(ratios(0.25, 0.5, None)), "MLP", EN).sentence
    assert "50 % (25–never)" in told
    assert "never" in race.speed(race_of(ratios(None, None, None)), "MLP", EN).sentence
    assert "从未达到" in race.speed(race_of(ratios(None, None, None)), "MLP", ZH).sentence


def test_a_ratio_of_another_network_or_condition_does_not_count():
    result = race_of(
        ratios(0.5),
        ratios(2.0, network="CNN"),
        ratios(1.0, condition="without BN"),
        ratios(9.0, condition="BN, rate x1"),
    )
    assert race.speed(result, "MLP", EN).outcome == HOLDS
    assert race.speed(result, "CNN", EN).outcome == FALSE


# --- higher accuracy --------------------------------------------------


def ended(without: list[float], with_norm: list[float], network: str = "MLP") -> list[Record]:
    sides = accuracies(("without BN", without), ("BN", with_norm), network=network)
    return [*ratios(1.0, network=network), *sides]


@pytest.mark.parametrize(
    ("without", "with_norm", "outcome"),
    [
        pytest.param(
            [0.90, 0.91, 0.92], [0.95, 0.96, 0.97], HOLDS, id="the worst with is above the best without"
        ),
        pytest.param([0.90, 0.91, 0.96], [0.95, 0.96, 0.97], PARTLY, id="the ranges meet"),
        pytest.param([0.95, 0.96, 0.97], [0.95, 0.96, 0.97], FALSE, id="equal is not higher"),
        pytest.param([0.95, 0.96, 0.97], [0.90, 0.91, 0.92], FALSE, id="lower"),
    ],
)
def test_higher_accuracy_is_what_the_accuracies_say(without, with_norm, outcome):
    verdict = race.accuracy(race_of(ended(without, with_norm)), EN)
    assert verdict.outcome == outcome
    assert f"MLP {100 * sorted(with_norm)[1]:.1f} %" in verdict.sentence


def test_one_network_of_two_is_a_part():
    better, worse = ended([0.8], [0.9]), ended([0.9], [0.8], network="CNN")
    assert race.accuracy(race_of(better, worse), EN).outcome == PARTLY
    assert race.accuracy(race_of(better, ended([0.8], [0.9], network="CNN")), EN).outcome == HOLDS


# --- larger rates -----------------------------------------------------


@pytest.mark.parametrize(
    ("without", "with_norm", "outcome", "told"),
    [
        pytest.param(
            {0.1: 0.9, 1.0: 0.5}, {0.1: 0.9, 1.0: 0.9}, HOLDS, "0.1 → 1 (≥)", id="larger, and maybe more"
        ),
        pytest.param(
            {0.1: 0.9, 1.0: 0.5, 9.0: 0.1}, {0.1: 0.9, 1.0: 0.9, 9.0: 0.1}, HOLDS, "0.1 → 1.", id="larger"
        ),
        pytest.param(
            {0.1: 0.9, 1.0: 0.5}, {0.1: 0.9, 1.0: 0.895}, HOLDS, "0.1 → 1", id="as well within a point"
        ),
        pytest.param({0.1: 0.9, 1.0: 0.5}, {0.1: 0.9, 1.0: 0.88}, FALSE, "0.1 → 0.1", id="the same"),
        pytest.param({0.1: 0.9, 1.0: 0.9}, {0.1: 0.9, 1.0: 0.1}, FALSE, "1 → 0.1", id="smaller"),
        pytest.param({0.1: 0.9, 1.0: 0.8}, {0.1: 0.1, 1.0: 0.1}, FALSE, "0.1 → none", id="none works"),
        pytest.param(
            {0.1: 0.9, 1.0: None}, {0.1: 0.9, 1.0: 0.9}, HOLDS, "0.1 → 1", id="a rate without a score"
        ),
    ],
)
def test_larger_rates_are_those_that_still_learn_as_well(without, with_norm, outcome, told):
    verdict = race.rates(race_of(ratios(1.0), scores("without BN", without), scores("BN", with_norm)), EN)
    assert verdict.outcome == outcome
    assert f"MLP {told}" in verdict.sentence


def test_larger_rates_for_one_network_of_two_are_a_part():
    def network(name: str, score: float) -> list[Record]:
        grid = {0.1: 0.9, 1.0: score}
        return [
            *ratios(1.0, network=name),
            *scores("without BN", {0.1: 0.9, 1.0: 0.5}, name),
            *scores("BN", grid, name),
        ]

    assert race.rates(race_of(network("MLP", 0.9), network("CNN", 0.5)), EN).outcome == PARTLY


# --- thirty times the rate --------------------------------------------


@pytest.mark.parametrize(
    ("x30", "outcome", "told"),
    [
        pytest.param([0.90, 0.89, 0.95], HOLDS, "3 of 3 runs", id="all within a point"),
        pytest.param([0.90, 0.60, 0.31], PARTLY, "1 of 3 runs", id="all learn, and not all as well"),
        pytest.param([0.90, 0.90, 0.10], FALSE, "1 fail", id="one fails"),
        pytest.param([0.10, 0.10, 0.10], FALSE, "3 fail", id="all fail"),
    ],
)
def test_thirty_times_the_rate_is_judged_run_by_run(x30, outcome, told):
    sides = accuracies(("without BN", [0.88, 0.90, 0.92]), ("BN, rate x30", x30))
    verdict = race.large_rates(race_of(ratios(1.0), sides), EN)
    assert verdict.outcome == outcome
    assert told in verdict.sentence


# --- sigmoid ----------------------------------------------------------


@pytest.mark.parametrize(
    ("without", "with_norm", "outcome"),
    [
        pytest.param([0.1, 0.5, 0.9], [0.2, 0.6, 0.91], HOLDS, id="higher in every pair"),
        pytest.param([0.1, 0.5, 0.9], [0.2, 0.6, 0.8], PARTLY, id="higher in the median"),
        pytest.param([0.1, 0.5, 0.9], [0.1, 0.5, 0.9], FALSE, id="the same"),
        pytest.param([0.5, 0.6, 0.7], [0.1, 0.2, 0.3], FALSE, id="lower"),
    ],
)
def test_with_sigmoid_it_is_judged_pair_by_pair(without, with_norm, outcome):
    sides = accuracies(("sigmoid without BN", without), ("BN with sigmoid", with_norm))
    verdict = race.sigmoid(race_of(ratios(1.0, condition="BN with sigmoid"), sides), EN)
    assert verdict.outcome == outcome


def test_a_network_that_ran_without_sigmoid_is_not_asked_about_it():
    sides = accuracies(("sigmoid without BN", [0.1]), ("BN with sigmoid", [0.9]))
    result = race_of(ratios(1.0, network="CNN"), ratios(1.0, condition="BN with sigmoid"), sides)
    assert race.sigmoid(result, EN).sentence == "MLP 90.0 % with, 10.0 % without."


# --- words ------------------------------------------------------------


def test_the_headline_says_it_whichever_way_it_went():
    result = race_of(
        ratios(0.2, 0.3, 0.4), ratios(1.2, None, None, network="CNN"), ratios(1.5, network="NET")
    )
    assert race.headline(result, EN) == (
        "Batch normalization took 30 % (MLP), more than all (CNN) and 150 % (NET) of the training steps "
        "to match the best accuracy reached without it."
    )
    told = race.headline(result, ZH)
    assert "30 % (MLP)、全部以上 (CNN) 和 150 % (NET)" in told
    assert "只" not in told  # "only" would be wrong of two of the three


@pytest.mark.parametrize("say", SAYS)
def test_every_verdict_names_its_numbers_in_either_language(say):
    both = accuracies(
        ("without BN", [0.8]),
        ("BN", [0.9]),
        ("BN, rate x30", [0.7]),
        ("sigmoid without BN", [0.5]),
        ("BN with sigmoid", [0.6]),
    )
    result = race_of(
        ratios(0.25),
        ratios(1.0, condition="BN with sigmoid"),
        both,
        scores("without BN", {0.1: 0.8}),
        scores("BN", {0.1: 0.8}),
    )
    for verdict, number in (
        (race.speed(result, "MLP", say), "25 %"),
        (race.accuracy(result, say), "90.0 %"),
        (race.rates(result, say), "0.1 → 0.1"),
        (race.large_rates(result, say), "30 %"),
        (race.sigmoid(result, say), "60.0 %"),
    ):
        assert number in verdict.sentence
        assert outcome_words(verdict.outcome, say)


@pytest.mark.parametrize("condition", ["without BN", "BN", "BN, rate x1", "BN, rate x5", "BN, rate x30"])
def test_every_condition_has_a_name_of_its_own_in_either_language(condition):
    assert race.condition_name(condition, EN) != race.condition_name(condition, ZH)
