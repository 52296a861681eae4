"""The verdicts of generalization, on records made up so that each claim holds, holds partly, and does not."""

import pytest

from normwright.report.cards import generalization
from normwright.report.records import Record
from tiny_lab import EN, ZH, made_up

WITHOUT, WITH = generalization.WITHOUT, generalization.WITH


def _records(what, without, with_norm, *, images=100, other=WITHOUT, new=WITH, **where):
    """Pairs of seeds on one number of images."""
    return [
        Record(
            what,
            value,
            "fraction",
            {"network": "MLP", "images": images, "condition": condition, "seed": seed, **where},
        )
        for condition, values in ((other, without), (new, with_norm))
        for seed, value in enumerate(values)
    ]


def _result(*parts):
    return made_up("generalization", [record for part in parts for record in part])


CLEAR = [0.80, 0.85, 0.90], [0.81, 0.86, 0.91]
HIGHER = [
    pytest.param([CLEAR, CLEAR], "holds", id="higher for every seed"),
    pytest.param([CLEAR, ([0.80, 0.85, 0.90], [0.81, 0.86, 0.90])], "holds partly", id="equal for one seed"),
    pytest.param([CLEAR, ([0.80, 0.85, 0.90], [0.90, 0.86, 0.80])], "holds partly", id="lower for one seed"),
    pytest.param([CLEAR, CLEAR, CLEAR[::-1]], "holds partly", id="lower in one comparison of three"),
    pytest.param([CLEAR, CLEAR[::-1]], "does not hold here", id="lower in one comparison of two"),
    pytest.param([CLEAR, (CLEAR[0], CLEAR[0])], "does not hold here", id="equal in one comparison of two"),
    pytest.param([([0.8, 0.9], [0.9, 0.9])] * 3, "does not hold here", id="for every seed in none"),
    pytest.param([(CLEAR[0], CLEAR[0])], "does not hold here", id="equal"),
    pytest.param([CLEAR[::-1]], "does not hold here", id="lower"),
]


def _compared(what, pairs):
    return _result(*(_records(what, *pair, images=number) for number, pair in enumerate(pairs)))


@pytest.mark.parametrize(("pairs", "outcome"), HIGHER)
def test_accuracy_is_judged_seed_by_seed(pairs, outcome):
    result = _compared("test accuracy", pairs)
    for say in (EN, ZH):
        assert generalization.higher_accuracy(result, say).outcome == outcome


def test_the_sentence_states_the_differences():
    result = _result(
        _records("test accuracy", [0.80, 0.85, 0.90], [0.81, 0.87, 0.95]),
        _records("test accuracy", [0.80, 0.85, 0.90], [0.81, 0.84, 0.85], images=300),
    )
    sentence = generalization.higher_accuracy(result, EN).sentence
    assert "for every seed in 1 of 2 comparisons, in the median in 1" in sentence
    assert "in points" in sentence
    assert "MLP 100 +2.0 (+1.0 to +5.0)" in sentence
    assert "MLP 300 −1.0 (−5.0 to +1.0)" in sentence


@pytest.mark.parametrize("what", ["gap in accuracy", "gap in loss"])
@pytest.mark.parametrize(("pairs", "outcome"), HIGHER)
def test_a_gap_is_better_where_it_is_smaller(what, pairs, outcome):
    judge = {
        "gap in accuracy": generalization.smaller_gap,
        "gap in loss": generalization.smaller_loss_gap,
    }[what]
    assert judge(_compared(what, [pair[::-1] for pair in pairs]), EN).outcome == outcome


def test_a_loss_that_is_no_number_is_worse_than_any_other():
    def judged(without, with_norm):
        pairs = [(without, with_norm), ([0.5] * 3, [0.4] * 3)]
        return generalization.smaller_loss_gap(_compared("gap in loss", pairs), EN).outcome

    assert judged([None, 0.5, 0.5], [0.4, 0.4, 0.4]) == "holds"
    assert judged([0.5, 0.5, 0.5], [None, 0.4, 0.4]) == "holds partly"
    assert judged([0.5, 0.5, 0.5], [None, None, 0.4]) == "does not hold here"
    assert judged([None, None, None], [None, None, None]) == "does not hold here"


def _levels(without, with_norm, images=100):
    """Test losses by training loss: for each level the values of two seeds."""
    return [
        record
        for level in without
        for record in _records(
            generalization.AT_LEVEL, without[level], with_norm[level], images=images, level=level
        )
    ]


def test_losses_are_compared_at_the_lowest_level_that_all_reached():
    result = _result(
        _levels(
            {1.0: [1.0, 1.0], 0.1: [0.5, 0.5], 0.01: [0.1, None]},
            {1.0: [2.0, 2.0], 0.1: [0.4, 0.4], 0.01: [0.9, 0.9]},
        )
    )
    assert generalization.common_level(result, "MLP", 100) == 0.1
    verdict = generalization.at_equal_loss(result, EN)
    assert verdict.outcome == "holds"
    assert "MLP 100 (at 0.1) −0.1 (−0.1 to −0.1)" in verdict.sentence


@pytest.mark.parametrize(
    ("with_norm", "outcome"),
    [
        pytest.param([0.4, 0.4], "holds", id="lower for both"),
        pytest.param([0.1, 0.6], "holds partly", id="lower in the median"),
        pytest.param([0.6, 0.6], "does not hold here", id="higher"),
        pytest.param([0.5, 0.5], "does not hold here", id="equal"),
    ],
)
def test_equal_training_loss_is_judged_by_the_test_loss(with_norm, outcome):
    few = _levels({0.1: [0.5, 0.5]}, {0.1: [0.4, 0.4]})
    many = _levels({0.1: [0.5, 0.5]}, {0.1: with_norm}, images=300)
    assert generalization.at_equal_loss(_result(few, many), EN).outcome == outcome


def test_where_no_level_was_reached_nothing_is_claimed():
    result = _result(_levels({0.1: [0.5, None]}, {0.1: [0.4, 0.4]}))
    verdict = generalization.at_equal_loss(result, EN)
    assert verdict.outcome == "does not hold here"
    assert "none compared" in verdict.sentence


@pytest.mark.parametrize(
    ("noisy", "outcome"),
    [
        pytest.param([0.05, 0.05], "holds", id="smaller with the noise"),
        pytest.param([0.01, 0.11], "holds partly", id="smaller in the median"),
        pytest.param([0.15, 0.15], "does not hold here", id="larger with the noise"),
    ],
)
def test_the_noise_is_judged_by_the_fewest_images_beside_the_whole_batch(noisy, outcome):
    gap = "gap in accuracy"
    result = _result(
        _records("test accuracy", [0.9], [0.9], new="BN, statistics of 5"),
        _records("test accuracy", [0.9], [0.9], other=WITH, new="BN, statistics of 10"),
        _records(gap, [0.9, 0.9], [0.1, 0.1]),
        _records(gap, [], [0.3, 0.3], new="BN, statistics of 10"),
        _records(gap, [], noisy, new="BN, statistics of 5"),
        _records(gap, [0.1, 0.1], [0.05, 0.05], images=300, other=WITH, new="BN, statistics of 5"),
    )
    verdict = generalization.noise(result, EN)
    assert verdict.outcome == outcome
    assert "of 5 images" in verdict.sentence
