"""The verdicts on the relatives, on records made up so that each claim holds, holds partly, and does not."""

import pytest

from normwright.report.cards import relatives
from normwright.report.records import Record
from tiny_lab import EN, ZH, made_up


def _result(what, values, **where):
    """Records of one quantity: a list of seeds for each variant; the goal beside them."""
    records = [
        Record(what, value, "steps", {"variant": variant, "seed": seed, **where})
        for variant, seeds in values.items()
        for seed, value in enumerate(seeds)
    ]
    accuracies = [Record("test accuracy", 0.5, "fraction", {"variant": variant}) for variant in values]
    goal = Record("goal", 0.9, "fraction")
    return made_up("relatives", [*records, *(accuracies if what != "test accuracy" else []), goal])


def _judge(verdict, result, outcome):
    for say in (EN, ZH):
        assert verdict(result, say).outcome == outcome
    return verdict(result, EN).sentence


@pytest.mark.parametrize(
    ("none", "own", "outcome"),
    [
        pytest.param([60, 80, 100], [10, 20, 30], "holds", id="sooner for every seed"),
        pytest.param([60, 80, None], [10, 20, 30], "holds", id="without, one never got there"),
        pytest.param([60, 80, 100], [10, 20, 100], "holds partly", id="as late for one seed"),
        pytest.param([60, 80, 100], [10, 20, None], "holds partly", id="never for one seed"),
        pytest.param([60, 80, 100], [60, 80, 100], "does not hold here", id="as late for every seed"),
        pytest.param([60, 80, 100], [70, 90, 110], "does not hold here", id="later"),
        pytest.param([60, None, None], [10, None, None], "does not hold here", id="most never got there"),
    ],
)
def test_faster_is_what_the_steps_say(none, own, outcome):
    result = _result("steps to the goal", {"none": none, "BN": own, "layer norm": [40, 40, 40]})
    sentence = _judge(relatives.faster, result, outcome)
    assert "at 90.0 %" in sentence


def test_the_fastest_is_named_first():
    result = _result("steps to the goal", {"none": [None, None], "BN": [30, 30], "layer norm": [20, 20]})
    sentence = relatives.faster(result, EN).sentence
    assert "fastest first: layer norm 20; BN 30; none never" in sentence
    assert "for 2 of 2 seeds" in sentence


@pytest.mark.parametrize(
    ("layer", "weight", "outcome"),
    [
        pytest.param([20, 20, 90], [70, 70, 70], "holds", id="both sooner in the median"),
        pytest.param([20, 20, 20], [80, 80, 80], "holds partly", id="one of them as late"),
        pytest.param([90, 90, 20], [None, None, 20], "does not hold here", id="none of them sooner"),
    ],
)
def test_alternatives_are_relatives_that_are_sooner_too(layer, weight, outcome):
    values = {"none": [80, 80, 80], "BN": [10, 10, 10], "layer norm": layer, "weight norm": weight}
    _judge(relatives.alternatives, _result("steps to the goal", values), outcome)


def test_who_helps_and_who_does_not_is_named():
    values = {"none": [80], "BN": [10], "layer norm": [20], "weight norm": [90], "group norm": [None]}
    sentence = relatives.alternatives(_result("steps to the goal", values), EN).sentence
    assert "in the median: layer norm; not sooner: weight norm and group norm." in sentence


@pytest.mark.parametrize(
    ("others", "outcome"),
    [
        pytest.param(0.95, "holds", id="lower"),
        pytest.param(0.97, "holds", id="equal is at least as accurate"),
        pytest.param(0.975, "holds partly", id="higher, within the error of an accuracy"),
        pytest.param(0.99, "does not hold here", id="higher by more than that"),
    ],
)
def test_accuracy_is_judged_against_the_best_relative(others, outcome):
    values = {
        "none": [0.999, 0.999, 0.999],  # no relative: counts for nothing
        "BN": [0.90, 0.97, 0.98],
        "layer norm": [0.1, 0.2, 0.3],
        "group norm": [0.1, others, 0.999],
    }
    sentence = _judge(relatives.accuracy, _result("test accuracy", values), outcome)
    assert "none 99.9 %" in sentence
    assert "BN 97.0 % (90.0–98.0)" in sentence


def _costs(small, large):
    layers = [
        Record("cost of a layer", ratio, "ratio", {"variant": "whitening", "channels": channels, "round": n})
        for channels, ratios in ((16, small), (64, large))
        for n, ratio in enumerate(ratios)
    ]
    steps = [
        Record("cost of a step", ratio, "ratio", {"variant": variant, "round": n})
        for variant, ratios in (("BN", [1.2, 1.0, 1.25]), ("whitening", [2.4, 3.0, 2.5]))
        for n, ratio in enumerate(ratios)
    ]
    return made_up("relatives", [*layers, *steps])


@pytest.mark.parametrize(
    ("small", "large", "outcome"),
    [
        pytest.param([2.0, 3.0, 1.0], [20.0, 30.0, 40.0], "holds", id="at least twice everywhere"),
        pytest.param([1.9, 1.9, 9.0], [20.0, 30.0, 40.0], "holds partly", id="at the larger number alone"),
        pytest.param([1.5, 1.0, 1.0], [1.1, 1.2, 9.0], "does not hold here", id="nowhere"),
    ],
)
def test_whitening_costs_what_the_clock_says(small, large, outcome):
    sentence = _judge(relatives.whitening_cost, _costs(small, large), outcome)
    assert "takes 2.00x as long as with BN" in sentence  # the median of 2, 3 and 2


def test_the_ratio_is_stated_for_each_number_of_channels():
    sentence = relatives.whitening_cost(_costs([3.14, 3.14, 3.14], [31.4, 31.4, 31.4]), EN).sentence
    assert "by channels: 16: 3.14x, 64: 31x." in sentence
