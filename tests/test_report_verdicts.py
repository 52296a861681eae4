"""Verdicts: claims that hold, hold partly, and do not hold, on records made up for each."""

import pytest

from normwright.report import demo, verdicts
from normwright.report.records import Record
from normwright.report.summary import Spread, spread


def _ratios(*ratios: float | None, network: str = "MLP") -> list[Record]:
    return [
        Record("ratio of steps", r, "ratio", {"network": network, "seed": i}) for i, r in enumerate(ratios)
    ]


def _accuracies(without: list[float], with_norm: list[float]) -> list[Record]:
    return [
        Record("test accuracy", value, "fraction", {"network": "MLP", "batch_norm": norm, "seed": seed})
        for norm, values in ((False, without), (True, with_norm))
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("ratios", "outcome"),
    [
        pytest.param((0.2, 0.3, 0.9), "holds", id="sooner for every seed"),
        pytest.param((0.2, 0.3, 1.2), "holds partly", id="sooner in the median alone"),
        pytest.param((0.2, 0.3, None), "holds partly", id="one seed never got there"),
        pytest.param((0.2, 1.0, 1.0), "does not hold here", id="as many steps are not fewer"),
        pytest.param((1.5, 2.0, 1.2), "does not hold here", id="later for every seed"),
        pytest.param((0.1, None, None), "does not hold here", id="most seeds never got there"),
    ],
)
def test_fewer_steps_is_what_the_ratios_say(ratios, outcome):
    verdict = verdicts.speed(_ratios(*ratios), "MLP")
    assert verdict.outcome == outcome
    sooner = sum(r is not None and r < 1 for r in ratios)
    assert f"for {sooner} of 3 seeds" in verdict.sentence


def test_a_ratio_of_another_network_does_not_count():
    records = _ratios(0.5) + _ratios(2.0, network="CNN")
    assert verdicts.speed(records, "MLP").outcome == "holds"
    assert verdicts.speed(records, "CNN").outcome == "does not hold here"


@pytest.mark.parametrize(
    ("without", "with_norm", "outcome"),
    [
        pytest.param(
            [0.90, 0.91, 0.92], [0.95, 0.96, 0.97], "holds", id="the worst with is above the best without"
        ),
        pytest.param([0.90, 0.91, 0.96], [0.95, 0.96, 0.97], "holds partly", id="the ranges meet"),
        pytest.param([0.95, 0.96, 0.97], [0.95, 0.96, 0.97], "does not hold here", id="equal is not higher"),
        pytest.param([0.95, 0.96, 0.97], [0.90, 0.91, 0.92], "does not hold here", id="lower"),
    ],
)
def test_higher_accuracy_is_what_the_accuracies_say(without, with_norm, outcome):
    assert verdicts.accuracy(_accuracies(without, with_norm), "MLP").outcome == outcome


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        pytest.param(0, "holds", id="the same predictions"),
        pytest.param(4, "holds partly", id="within the error of an accuracy"),
        pytest.param(5, "does not hold here", id="more than that"),
    ],
)
def test_the_moving_average_is_judged_by_the_predictions_it_changes(changed, outcome):
    records = [Record("changed predictions", n, "images", {"of": 200}) for n in (changed, 0)]
    verdict = verdicts.statistics(records)
    assert verdict.outcome == outcome
    assert f"on {changed} of 400 predictions" in verdict.sentence


@pytest.mark.parametrize(
    ("difference", "outcome"),
    [
        pytest.param(0.0, "holds", id="exactly the same"),
        pytest.param(3e-7, "holds partly", id="rounding"),
        pytest.param(0.02, "does not hold here", id="another result"),
    ],
)
def test_alone_is_judged_by_the_layer_and_not_by_its_neighbours(difference, outcome):
    values = {"layer": difference, "network with BN": 3e-6, "network without BN": 2e-6}
    records = [
        Record("difference alone to in a batch", v, "absolute", {"of": of}) for of, v in values.items()
    ]
    assert verdicts.alone(records).outcome == outcome


def test_the_headline_says_it_whichever_way_it_went():
    records = _ratios(0.2, 0.3, 0.4) + _ratios(1.2, None, None, network="CNN") + _ratios(1.5, network="NET")
    assert demo.headline(records, ["MLP", "CNN", "NET"]) == (
        "Batch normalization took 30 % (MLP) and more than all (CNN) and 150 % (NET) of the training steps "
        "to match the best accuracy reached without it."
    )


def test_what_was_never_reached_is_above_every_number():
    assert spread([None, 30, 10]) == Spread(10, 30, None)
    assert spread([None, 30, None, 10]) == Spread(10, None, None)


def test_a_spread_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one measurement, got none"):
        spread([])
