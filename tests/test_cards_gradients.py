"""The verdicts on gradients, saturation and first weights: records for which a claim holds, partly, or not."""

import math

import pytest

from normwright.report.cards import gradients
from normwright.report.cards.gradients_shown import spreads
from normwright.report.records import Record
from tiny_lab import EN, ZH, made_up

WITHOUT, WITH = "without BN", "BN"
BEFORE, AFTER = "before training", "after training"
HOLDS, PARTLY, FALSE = "holds", "holds partly", "does not hold here"


def told(records):
    return made_up("gradients", records)


# --- the chains -----------------------------------------------------------


def chain(factor, depth, without, with_norm, activation="linear"):
    return [
        Record(
            "gradient in the chain",
            value,
            "ratio",
            {
                "activation": activation,
                "factor": factor,
                "depth": depth,
                "back": depth,
                "condition": condition,
                "seed": seed,
            },
        )
        for condition, values in ((WITHOUT, without), (WITH, with_norm))
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("without", "with_norm", "outcome"),
    [
        pytest.param((0.0424, 0.0424), (1.6, 0.7), HOLDS, id="the law without, kept with"),
        pytest.param((0.0424, 0.0424), (1.6, 10.1), PARTLY, id="one seed is not kept"),
        pytest.param((0.0424, 0.0465), (1.6, 1.6), PARTLY, id="a layer too few for the law"),
        pytest.param((0.0424, 0.0424), (0.06, 0.06), PARTLY, id="nearer to 1 and still gone"),
        pytest.param((0.0424, 0.0424), (0.01, 0.01), FALSE, id="vanishes faster with BN"),
        pytest.param((0.0424, 0.0424), (300.0, 200.0), FALSE, id="explodes more than it vanished"),
    ],
)
def test_a_gradient_is_kept_as_the_chains_say(without, with_norm, outcome):
    verdict = gradients.kept(told(chain(0.9, 30, without, with_norm)), 0.9, 30, EN)
    assert verdict.outcome == outcome
    assert "0.9^30 = 0.0424" in verdict.sentence
    assert "vanish" in verdict.claim


def test_an_explosion_is_called_one_and_whole_numbers_are_printed_whole():
    result = told(chain(1.1, 100, (13781.0, 13780.0), (2.5, 2.9)))
    verdict = gradients.kept(result, 1.1, 100, EN)
    assert verdict.outcome == HOLDS
    assert "explode" in verdict.claim
    assert "by 13780 (13780–13781) without BN" in verdict.sentence
    assert "by 2.7 (2.5–2.9) with it" in verdict.sentence
    assert "爆炸" in gradients.kept(result, 1.1, 100, ZH).claim


def test_the_claimed_depth_is_judged_and_else_the_deepest():
    records = chain(0.9, 30, [1.0], [1.0]) + chain(0.9, 100, [1.0], [1.0]) + chain(1.1, 12, [1.0], [1.0])
    records += chain(1.2, 5, [1.0], [1.0], activation="tanh")
    assert gradients.judged(told(records)) == [(0.9, 30), (1.1, 12)]


# --- activations ------------------------------------------------------------


def scales(left):
    return [
        Record("scale of activations", value, "standard deviation", {"condition": condition, "layer": layer})
        for condition, share in left.items()
        for layer, value in ((60, 0.5 * share), (1, 0.5))
    ]


@pytest.mark.parametrize(
    ("default", "with_norm", "outcome"),
    [
        pytest.param(1e-9, 1.05, HOLDS, id="gone without, steady with"),
        pytest.param(1e-9, 0.4, PARTLY, id="less shrunk with BN"),
        pytest.param(0.2, 1.0, PARTLY, id="not much shrunk without"),
        pytest.param(1.0, 1.0, FALSE, id="steady on both sides"),
        pytest.param(1e-3, 1e-5, FALSE, id="shrinks more with BN"),
    ],
)
def test_activations_are_judged_from_the_first_layer_to_the_last(default, with_norm, outcome):
    verdict = gradients.activations(told(scales({WITH: with_norm, "default": default, "He": 0.2})), EN)
    assert verdict.outcome == outcome
    assert "layer 60 over layer 1" in verdict.sentence
    assert "0.2 from He's" in verdict.sentence


# --- saturation ---------------------------------------------------------------


def saturated(when, without, with_norm, activation="tanh"):
    """Shares by scale: 0.1, 1, 10."""
    return [
        Record(
            "saturated activations",
            value,
            "fraction",
            {"activation": activation, "condition": condition, "when": when, "scale": scale, "seed": seed},
        )
        for condition, values in ((WITHOUT, without), (WITH, with_norm))
        for scale, value in zip((0.1, 1.0, 10.0), values, strict=True)
        for seed in range(3)
    ]


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        pytest.param(((0, 0, 0.6), (0.06, 0.07, 0.07)), ((0, 0.1, 0.6), (0.05, 0.05, 0.1)), HOLDS, id="out"),
        pytest.param(
            ((0, 0, 0.6), (0.06, 0.07, 0.07)), ((0, 0.1, 0.6), (0.3, 0.1, 0.1)), PARTLY, id="learned"
        ),
        pytest.param(((0, 0, 0.6), (0.06, 0.07, 0.07)), ((0, 0, 0.6), (0, 0, None)), PARTLY, id="broken"),
        pytest.param(((0, 0, 0.6), (0.06, 0.07, 0.2)), ((0, 0, 0.6), (0, 0, 0)), FALSE, id="from the start"),
        pytest.param(((0, 0, 0.1), (0.06, 0.07, 0.07)), ((0, 0, 0), (0, 0, 0)), FALSE, id="on neither side"),
    ],
)
def test_saturation_is_judged_at_the_worst_scale(before, after, outcome):
    verdict = gradients.saturation(told(saturated(BEFORE, *before) + saturated(AFTER, *after)), EN)
    assert verdict.outcome == outcome
    assert (
        f"without; after it: tanh up to {100 * max(v if v is not None else 1 for v in after[1]):.0f} %"
        in (verdict.sentence)
    )


def test_one_saturated_activation_is_enough_to_spoil_it():
    good = saturated(BEFORE, (0, 0, 0.6), (0, 0, 0))
    records = good + saturated(BEFORE, (0, 0, 0.6), (0, 0, 0.5), activation="sigmoid")
    assert gradients.saturation(told(good), EN).outcome == HOLDS
    assert gradients.saturation(told(records), EN).outcome == FALSE


# --- steps ----------------------------------------------------------------------


def steps(when, without, with_norm, activation="tanh", by="scale", key=1.0):
    """Steps of the three layers, the same for both seeds."""
    return [
        Record(
            "step over weights",
            value,
            "ratio",
            {
                "activation": activation,
                "condition": condition,
                "when": when,
                by: key,
                "layer": layer,
                "seed": seed,
            },
        )
        for condition, values in ((WITHOUT, without), (WITH, with_norm))
        for layer, value in enumerate(values, start=1)
        for seed in range(2)
    ]


EVEN, UNEVEN = (0.1, 0.2, 0.1), (0.1, 0.1, 50.0)


@pytest.mark.parametrize(
    ("tanh", "relu", "outcome"),
    [
        pytest.param((UNEVEN, EVEN), (UNEVEN, EVEN), HOLDS, id="smaller for both"),
        pytest.param((UNEVEN, EVEN), (EVEN, UNEVEN), PARTLY, id="smaller for one"),
        pytest.param((EVEN, EVEN), (EVEN, UNEVEN), FALSE, id="as large is not smaller"),
    ],
)
def test_the_spread_of_steps_is_compared_for_every_activation(tanh, relu, outcome):
    records = (
        steps(BEFORE, *tanh) + steps(BEFORE, EVEN, EVEN, key=3.0) + steps(BEFORE, *relu, activation="ReLU")
    )
    verdict = gradients.even_steps(told(records), EN)
    assert verdict.outcome == outcome
    assert f"tanh {max(tanh[1]) / 0.1:g} with BN, {max(tanh[0]) / 0.1:g} without" in verdict.sentence


def accuracies(by_scale, activation="tanh", by="scale"):
    """Accuracy by scale: without, with."""
    return [
        Record(
            "late validation accuracy",
            value,
            "fraction",
            {"activation": activation, "condition": condition, by: scale, "when": AFTER, "seed": seed},
        )
        for scale, pair in by_scale.items()
        for condition, value in zip((WITHOUT, WITH), pair, strict=True)
        for seed in range(3)
    ]


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        pytest.param((UNEVEN, EVEN), (UNEVEN, EVEN), HOLDS, id="both orders"),
        pytest.param((UNEVEN, EVEN), (EVEN, UNEVEN), PARTLY, id="one order"),
        pytest.param((EVEN, UNEVEN), (EVEN, EVEN), FALSE, id="neither"),
        pytest.param(
            (EVEN, (0.1, 0.0, 0.1)), (EVEN, (0.1, None, 0.1)), FALSE, id="a layer that stands still"
        ),
    ],
)
def test_differently_scaled_layers_are_judged_after_training(first, second, outcome):
    records = accuracies({1.0: (0.9, 0.9)})
    for key, pair in (("0.1, 1, 10", first), ("10, 1, 0.1", second)):
        # Before training it is the other way round, which is told and does not decide.
        records += steps(BEFORE, *pair[::-1], by="scales", key=key)
        records += steps(AFTER, *pair, by="scales", key=key)
    assert gradients.mixed_steps(told(records), EN).outcome == outcome


def test_a_layer_without_a_step_makes_the_spread_infinite():
    for broken in (0.0, None):
        result = told(steps(BEFORE, (1.0, broken, 1.0), EVEN))
        assert spreads(result, "tanh", WITHOUT, BEFORE, "scale") == {1.0: math.inf}
        assert spreads(result, "tanh", WITH, BEFORE, "scale") == {1.0: pytest.approx(2.0)}
        assert "∞ without" in gradients.even_steps(result, EN).sentence


# --- first weights ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("tanh", "relu", "outcome"),
    [
        pytest.param(
            {0.1: (0.1, 0.9), 1: (0.9, 0.9)}, {0.1: (0.1, 0.9), 1: (0.9, 0.9)}, HOLDS, id="more for both"
        ),
        pytest.param(
            {0.1: (0.1, 0.9), 1: (0.9, 0.9)}, {0.1: (0.9, 0.9), 1: (0.9, 0.9)}, PARTLY, id="for one"
        ),
        pytest.param({0.1: (0.9, 0.9), 1: (0.9, 0.9)}, {0.1: (0.1, 0.1), 1: (0.9, 0.9)}, FALSE, id="as many"),
        pytest.param({0.1: (0.9, 0.1), 1: (0.9, 0.9)}, {0.1: (0.9, 0.8), 1: (0.9, 0.9)}, FALSE, id="fewer"),
    ],
)
def test_less_care_is_more_scales_that_train(tanh, relu, outcome):
    verdict = gradients.less_care(told(accuracies(tanh) + accuracies(relu, "ReLU")), EN)
    assert verdict.outcome == outcome
    assert "of 2 with" in verdict.sentence


def test_a_scale_trains_beside_the_best_of_either_side():
    """A side that never learns anything does not train everywhere by its own measure."""
    result = told(accuracies({0.1: (0.2, 0.96), 1: (0.2, 0.87), 10: (0.2, 0.86)}))
    assert gradients.scales_that_train(result, "tanh", WITHOUT) == []
    assert gradients.scales_that_train(result, "tanh", WITH) == [0.1, 1]  # 0.9 * 0.96 = 0.864
    assert "tanh 2 (0.1–1) of 3 with, 0 without" in gradients.less_care(result, EN).sentence


def test_mixed_scales_are_no_scale_to_count():
    records = accuracies({1.0: (0.9, 0.9)}) + accuracies({"0.1, 1, 10": (0.1, 0.9)}, by="scales")
    verdict = gradients.less_care(told(records), EN)
    assert verdict.outcome == FALSE
    assert "of 1 with" in verdict.sentence


# --- explosion --------------------------------------------------------------------


def growth(by_depth):
    """By depth, growth per layer with BN and with He's first weights, a value a seed."""
    return [
        Record("growth per layer", value, "ratio", {"depth": depth, "condition": condition, "seed": seed})
        for depth, pair in by_depth.items()
        for condition, values in zip((WITH, "He"), pair, strict=True)
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("by_depth", "outcome"),
    [
        pytest.param({10: ((1.2, 1.22), (1.0, 1.01)), 60: ((1.2, 1.2), (1.0, 1.0))}, HOLDS, id="everywhere"),
        pytest.param(
            {10: ((1.2, 1.04), (1.0, 1.01)), 60: ((1.2, 1.2), (1.0, 1.0))}, PARTLY, id="not every seed"
        ),
        pytest.param({60: ((1.2, 1.2), (1.0, 1.3))}, PARTLY, id="without BN just as well"),
        pytest.param({10: ((1.0, 1.01), (1.0, 1.0)), 60: ((0.9, 1.04), (1.0, 1.0))}, FALSE, id="kept"),
        pytest.param({60: ((0.8, 0.8), (1.0, 1.0))}, FALSE, id="vanishes"),
    ],
)
def test_an_explosion_is_a_growth_in_every_layer(by_depth, outcome):
    verdict = gradients.explosion(told(growth(by_depth)), EN)
    assert verdict.outcome == outcome
    assert "In 60 ReLU layers" in verdict.sentence
    assert "theory: 1.21, in all 81130" in verdict.sentence
    assert "tanh" not in verdict.sentence


def test_the_tanh_chain_is_told_where_it_was_measured():
    records = growth({60: ((1.2, 1.2), (1.0, 1.0))}) + chain(1.1, 100, [0.6], [3288.0], activation="tanh")
    assert "multiplied by 3288 with BN" in gradients.explosion(told(records), EN).sentence
    assert "3288 倍" in gradients.explosion(told(records), ZH).sentence
