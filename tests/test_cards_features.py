"""The verdicts about features in different units, on records made up for each."""

import pytest

import tiny_lab
from normwright.report.cards import features
from normwright.report.cards.features import RAW, SIDES, STANDARDIZED, WITH
from normwright.report.records import Record

EN = tiny_lab.EN
SETTINGS = {"budget": {"steps": 100, "batch_size": 32}, "seeds": 2}
LOGISTIC, LINEAR = "logistic regression", "linear regression"


def _seeds(what, values, problem=LOGISTIC, **where):
    return [
        Record(what, value, "", {"problem": problem, **where, "seed": seed})
        for seed, value in enumerate(values)
    ]


def _told(*groups, problems=(LOGISTIC,)):
    known = [record for name in problems for record in _seeds("solver's train loss", [0.1, 0.1], name)]
    return tiny_lab.made_up("features", [*known, *(r for group in groups for r in group)], SETTINGS)


def _steps(side, values, problem=LOGISTIC, share=0.9):
    return _seeds("steps to a share of the way", values, problem, side=side, share=share)


@pytest.mark.parametrize(
    ("raw", "other", "outcome", "count"),
    [
        pytest.param([None, 90], [5, 6], "holds", 2, id="fewer, or never"),
        pytest.param([90, 90, 4], [5, 6, 7], "holds partly", 2, id="fewer in the median"),
        pytest.param([50, 50], [50, 50], "does not hold here", 0, id="as many are not fewer"),
        pytest.param([5, 6], [50, None], "does not hold here", 0, id="more"),
        pytest.param([None, None], [None, None], "does not hold here", 0, id="neither ever"),
    ],
)
@pytest.mark.parametrize("side", [STANDARDIZED, WITH])
def test_sooner_is_fewer_steps_for_every_seed(side, raw, other, outcome, count):
    halfway = _steps(side, [1, 1], share=0.5) + _steps(RAW, [99, 99], share=0.5)  # is another question
    verdict = features.sooner(_told(_steps(RAW, raw), _steps(side, other), halfway), side, EN)
    assert verdict.outcome == outcome
    assert f"Fewer than raw in {count} of {len(raw)} runs" in verdict.sentence


def test_one_problem_that_says_no_is_enough_against_all():
    groups = [
        _steps(RAW, [90, 90]),
        _steps(WITH, [5, 5]),
        _steps(RAW, [5, 5], LINEAR),
        _steps(WITH, [9, 9], LINEAR),
    ]
    verdict = features.sooner(_told(*groups, problems=(LOGISTIC, LINEAR)), WITH, EN)
    assert verdict.outcome == "holds partly"
    assert "logistic regression 5, raw 90; linear regression 9, raw 5 (of 100)" in verdict.sentence


@pytest.mark.parametrize(
    ("largest", "outcome"),
    [
        pytest.param((1e-5, 0.1, 1.0), "holds", id="larger"),
        pytest.param((None, 0.1, 1.0), "holds", id="raw descends at none"),
        pytest.param((1e-5, 0.1, 1e-5), "holds partly", id="BN first no larger"),
        pytest.param((0.1, 0.1, 0.1), "does not hold here", id="equal is not larger"),
        pytest.param((0.1, None, None), "does not hold here", id="none descends but raw"),
    ],
)
def test_larger_rates_are_larger_for_both(largest, outcome):
    rates = [_seeds("largest rate that descends", [v], side=s) for s, v in zip(SIDES, largest, strict=True)]
    numbers = [_seeds("condition number", [1e9], side=s) for s in (RAW, STANDARDIZED)]
    assert features.rates(_told(*rates, *numbers), EN).outcome == outcome


@pytest.mark.parametrize(
    ("scores", "outcome", "away"),
    [
        pytest.param(
            ([0.97, 0.95], [0.97, 0.95], [0.96, 0.95]), "holds", "none", id="the same but for noise"
        ),
        pytest.param(
            ([0.90, 0.90], [0.97, 0.95], [0.96, 0.95]), "holds partly", "raw", id="raw is not there"
        ),
        pytest.param(
            ([0.97, 0.95], [0.97, 0.95], [0.90, 0.90]), "does not hold here", "BN first", id="BN is not"
        ),
        pytest.param(
            ([None, None], [0.9, 0.9], [0.9, 0.9]),
            "does not hold here",
            "raw, standardized and BN first",
            id="none is there, and one broke",
        ),
    ],
)
def test_the_same_end_is_the_solvers_score(scores, outcome, away):
    groups = [_seeds("test score", values, side=side) for side, values in zip(SIDES, scores, strict=True)]
    verdict = features.same_end(_told(*groups, _seeds("solver's test score", [0.97, 0.95])), EN)
    assert verdict.outcome == outcome
    assert f"not there yet: {away}." in verdict.sentence


def test_gaps_are_those_of_equal_seeds():
    # The median over all seeds is the same on both sides, and no seed's score is its solver's.
    groups = [_seeds("test score", [0.9, 0.5], side=side) for side in SIDES]
    verdict = features.same_end(_told(*groups, _seeds("solver's test score", [0.5, 0.9])), EN)
    assert verdict.outcome == "does not hold here"
