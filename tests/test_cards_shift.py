"""The shift's verdicts, on records made up for each."""

import pytest

import tiny_lab
from normwright.report.cards import shift
from normwright.report.cards.shift_numbers import LOOKS, NOISY, SAME_RATE, START, STEP, WITH, WITHOUT
from normwright.report.records import Record

EN = tiny_lab.EN


def _layers(what, span, condition, values, network="MLP", seed=0):
    where = {"network": network, "condition": condition, "seed": seed, **({"span": span} if span else {})}
    return [
        Record(what, value, "deviations", {**where, "layer": layer}, 25)
        for layer, value in enumerate(values, start=1)
    ]


def _told(*records):
    return tiny_lab.made_up("shift", [record for some in records for record in some])


def _moments(condition, looks, start, **more):
    return [
        record
        for what in ("mean shift", "variance shift")
        for span, values in ((LOOKS, looks), (START, start))
        for record in _layers(what, span, condition, values, **more)
    ]


@pytest.mark.parametrize(
    ("with_bn", "start", "outcome", "count"),
    [
        pytest.param([0.1, 0.1], [1.0, 1.0], "holds", 8, id="every shift is smaller"),
        pytest.param([0.1, 0.1], [1.0, 9.0], "holds partly", 6, id="one layer moves more from the start"),
        pytest.param([0.1, 9.0], [1.0, 9.0], "does not hold here", 4, id="half of them is not most"),
        pytest.param([3.0, 4.0], [5.0, 6.0], "does not hold here", 0, id="as large is not smaller"),
        pytest.param([None, None], [None, None], "does not hold here", 0, id="BN left the finite numbers"),
    ],
)
def test_smaller_is_what_every_layer_says(with_bn, start, outcome, count):
    result = _told(_moments(WITHOUT, [3.0, 4.0], [5.0, 6.0]), _moments(WITH, with_bn, start))
    verdict = shift.smaller(result, EN)
    assert verdict.outcome == outcome
    assert f"{count} of 8 shifts" in verdict.sentence


def test_one_network_that_moves_more_with_bn_is_enough_against_it():
    good = _moments(WITHOUT, [3.0, 4.0], [5.0, 6.0]) + _moments(WITH, [1.0, 1.0], [1.0, 1.0])
    bad = [
        *_moments(WITHOUT, [1.0, 1.0], [1.0, 1.0], network="CNN"),
        *_moments(WITH, [2.0, 2.0], [2.0, 2.0], network="CNN"),
    ]
    assert shift.smaller(_told(good), EN).outcome == "holds"
    assert shift.smaller(_told(good, bad), EN).outcome == "does not hold here"


@pytest.mark.parametrize(
    ("looks", "start", "outcome"),
    [
        pytest.param([0.1, 0.2, 0.4, 0.8], [1.0, 2.0, 3.0, 4.0], "holds", id="deeper is more"),
        pytest.param(
            [0.1, 0.2, 0.8, 0.4], [1.0, 2.0, 3.0, 4.0], "holds", id="one pair of neighbours changed"
        ),
        pytest.param([0.1, 0.2, 0.4, 0.8], [4.0, 1.0, 2.0, 3.0], "holds partly", id="between looks alone"),
        pytest.param(
            [0.8, 0.1, 0.2, 0.4], [1.0, 2.0, 3.0, 4.0], "does not hold here", id="from the start alone"
        ),
        pytest.param([0.8, 0.4, 0.2, 0.1], [4.0, 3.0, 2.0, 1.0], "does not hold here", id="deeper is less"),
    ],
)
def test_depth_is_judged_by_the_order_of_the_layers(looks, start, outcome):
    verdict = shift.depth(_told(_moments(WITHOUT, looks, start)), EN)
    assert verdict.outcome == outcome
    assert f"by {looks[0]:g} deviations in the first layer, {looks[-1]:g} in the last" in verdict.sentence


def test_layers_are_judged_by_the_median_of_the_seeds():
    seeds = [
        record
        for seed, values in enumerate([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
        for record in _moments(WITHOUT, values, values, seed=seed)
    ]
    assert shift.depth(_told(seeds), EN).outcome == "holds"


@pytest.mark.parametrize(
    ("distance", "outcome"),
    [
        pytest.param(3e-7, "holds", id="rounding"),
        pytest.param(0.01, "does not hold here", id="another mean"),
        pytest.param(None, "does not hold here", id="not finite"),
    ],
)
def test_the_law_of_beta_is_judged_by_the_furthest_channel(distance, outcome):
    records = [
        Record("mean minus beta", value, "absolute", {"condition": condition, "seed": 0}, 19)
        for value, condition in ((1e-8, WITH), (distance, SAME_RATE))
    ]
    assert shift.law(_told(records), EN).outcome == outcome


@pytest.mark.parametrize(
    ("moved", "outcome"),
    [
        pytest.param([0.3, 0.2], "holds", id="every layer"),
        pytest.param([0.3, 0.1], "holds partly", id="one layer"),
        pytest.param([0.14, 0.1], "does not hold here", id="no more than other images"),
        pytest.param([None, None], "does not hold here", id="no number is no evidence"),
    ],
)
def test_shapes_are_judged_beside_a_draw_of_images(moved, outcome):
    # What moved without BN is of no account.
    result = _told(
        _layers("shape shift", START, WITH, moved),
        _layers("shape of other images", None, WITH, [0.1, 0.1]),
        _layers("shape shift", START, WITHOUT, [9.0, 9.0]),
        _layers("mean shift", LOOKS, WITH, [1.0, 1.0]),  # says which layers there are
    )
    assert shift.shape(result, EN).outcome == outcome


def _control(noisy, without, raw_noisy, raw_without, steps):
    records = [
        *_layers("mean shift", STEP, NOISY, noisy),
        *_layers("mean shift", STEP, WITHOUT, without),
        *_layers("mean shift", STEP, WITH, [0.001] * len(noisy)),
        *_layers("raw mean shift", STEP, NOISY, raw_noisy),
        *_layers("raw mean shift", STEP, WITHOUT, raw_without),
    ]
    for condition, count in zip((NOISY, WITH, WITHOUT), steps, strict=True):
        where = {"network": "MLP", "condition": condition, "seed": 0}
        records.append(Record("steps to the goal", count, "steps", where, 25))
    return _told(records)


NOISE = [0.3, 0.3, 0.3]
MORE, MOST, FEW = (NOISE, [0.1, 0.2, 0.2]), (NOISE, [0.1, 0.2, 0.4]), (NOISE, [0.1, 0.4, 0.4])


@pytest.mark.parametrize(
    ("shifts", "raw", "steps", "outcome"),
    [
        pytest.param(MORE, MORE, (60, 40, 200), "holds", id="more shift and as fast"),
        pytest.param(MORE, MORE, (40, 40, None), "holds", id="without BN never"),
        pytest.param(MORE, MORE, (61, 40, 200), "holds partly", id="slower than BN, faster than without"),
        pytest.param(FEW, MORE, (40, 40, 200), "holds partly", id="more shift in its own unit alone"),
        pytest.param(MOST, FEW, (40, 40, 200), "holds partly", id="more shift in most layers"),
        pytest.param(MORE, MORE, (200, 40, 200), "does not hold here", id="no faster than without BN"),
        pytest.param(MORE, MORE, (None, 40, None), "does not hold here", id="noise prevents learning"),
        pytest.param(MORE, MORE, (None, None, None), "does not hold here", id="nobody learns"),
        pytest.param(FEW, FEW, (40, 40, 200), "does not hold here", id="not more shift: no control"),
    ],
)
def test_the_control_needs_more_shift_and_the_same_speed(shifts, raw, steps, outcome):
    verdict = shift.control(_control(*shifts, *raw, steps), "MLP", EN)
    assert verdict.outcome == outcome
    layers = [sum(without < 0.3 for without in pair[1]) for pair in (shifts, raw)]
    assert f"in {layers[0]} of 3 layers, in the input's own unit in {layers[1]}" in verdict.sentence
    assert f"{'never' if steps[0] is None else steps[0]} with BN and noise" in verdict.sentence
