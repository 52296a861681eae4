"""The doctor's checks: each finds what it is for, with the number, and nothing where nothing is wrong."""

import numpy as np
import pytest

from healthy import HEALTHY, C, at, layer, named, only, told
from normwright.doctor.checks import examine
from normwright.doctor.layer import Settings


def test_where_nothing_is_wrong_nothing_is_found():
    findings = examine([layer("a"), layer("b")])
    assert (len(findings), findings.layers, findings.not_checked) == (0, 2, ())
    assert findings.headline == "2 batch norm layers: nothing found"


# --- statistics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("var", "updates"),
    [
        pytest.param(1.0, 0, id="as torch begins"),
        pytest.param(1.0, None, id="without a counter"),
        pytest.param(1 - 1e-5, None, id="as a FrozenBatchNorm begins"),
        pytest.param(0.0, 0, id="as frameworks begin that start at 0"),
    ],
)
def test_statistics_of_no_data_are_never_trained(var, updates):
    finding = next(iter(examine([layer(mean=np.zeros(C), var=np.full(C, var), updates=updates)])))
    assert told(finding) == ("error", "never trained", "bn", updates, ())
    assert "no batch has moved them" in finding.cause
    assert "nw.recalibrate(model, batches)" in finding.remedy


def test_statistics_that_stayed_although_batches_were_counted_have_another_cause():
    finding = only(layer(mean=np.zeros(C), var=np.ones(C), updates=500))
    assert told(finding) == ("error", "never trained", "bn", 500, ())
    assert "the momentum was 0" in finding.cause


@pytest.mark.parametrize("changed", [{"c0": 1e-7}, {"c7": -0.1}])
def test_one_mean_that_moved_is_training(changed):
    # float32's own rounding of a mean of 0 is 0: any other number comes from data
    assert not examine([layer(mean=at(np.zeros(C), **changed), var=np.ones(C))])


def test_channels_that_are_not_finite_are_counted_and_named():
    finding = only(layer(mean=at(HEALTHY.mean, c2=np.nan), var=at(HEALTHY.var, c5=np.inf)))
    assert told(finding) == ("error", "not finite", "bn", 2, (2, 5))
    assert (finding.of, finding.unit) == (C, "channels")


def test_a_negative_variance_is_an_error_and_its_number_is_told():
    finding = only(
        layer(var=at(HEALTHY.var, c1=-0.25, c3=-1e-9, c4=np.nan)), checks=[named("negative_variance")]
    )
    assert told(finding) == ("error", "negative variance", "bn", -0.25, (1, 3))


def test_a_channel_that_never_changes_is_told_and_one_that_eps_scales_is_noted():
    # eps is 1e-5: a hundredth of it and more is a note, itself and more is nothing
    var = at(HEALTHY.var, c0=0.0, c1=1e-7, c2=1.1e-7, c3=0.99e-5, c4=1e-5)
    constant, scaled = examine([layer(var=var)])
    assert told(constant) == ("warning", "constant channels", "bn", 0.0, (0, 1))
    assert told(scaled) == ("note", "eps outweighs variance", "bn", 1.1e-7, (2, 3))


def test_what_is_small_goes_by_the_layers_own_eps():
    var = at(HEALTHY.var, c0=1e-5)
    assert told(only(layer(var=var, settings=Settings(1e-3, 0.1))))[:2] == ("warning", "constant channels")
    assert not examine([layer(var=var, settings=Settings(1e-9, 0.1))])


@pytest.mark.parametrize(("dtype", "rounding"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_statistics_of_a_half_type_are_told_with_its_rounding(dtype, rounding):
    finding = only(layer(dtype=dtype))
    assert told(finding) == ("warning", "half statistics", "bn", rounding, ())
    assert (finding.quantity, finding.unit) == (f"rounding of {dtype}", "ratio")


def test_wide_statistics_beside_half_weights_are_as_they_should_be():
    assert not examine([layer(dtype="float32", weight_dtype="bfloat16"), layer(dtype="float64")])


# --- precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "deviations", "severity"),
    [
        # rounding is 2^-24, 2^-11, 2^-8; a warning from 0.05 of a deviation on, an error from 0.5
        ("float32", 400, None),
        ("float32", 420, "note"),  # 420^2 2^-24 is 0.0105 of the variance
        ("float32", 8.3e5, "note"),
        ("float32", 8.5e5, "warning"),
        ("float32", 8.5e6, "error"),
        ("float16", 102, None),
        ("float16", 103, "warning"),
        ("float16", 1025, "error"),
        ("bfloat16", 12.7, None),
        ("bfloat16", 12.9, "warning"),
        ("bfloat16", 129, "error"),
    ],
)
def test_a_mean_far_from_zero_is_told_by_what_the_type_loses(dtype, deviations, severity):
    spread = np.sqrt(HEALTHY.var[6] + 1e-5)
    findings = examine([layer(mean=at(HEALTHY.mean, c6=-deviations * spread), weight_dtype=dtype)])
    if severity is None:
        assert not findings
        return
    (finding,) = findings
    assert told(finding)[:3] == (severity, "precision", "bn")
    assert finding.value == pytest.approx(deviations, rel=1e-14)  # one square, one root, one division
    assert finding.channels == (6,)


def test_a_constant_channel_is_not_also_called_imprecise():
    # 0 beside a mean of 0.5: eps spreads it, and 0.5 / sqrt(1e-5) is 158 deviations
    finding = only(layer(mean=at(HEALTHY.mean, c0=0.5), var=at(HEALTHY.var, c0=0.0)))
    assert finding.check == "constant channels"


def test_what_float16_cannot_hold_is_an_overflow():
    mean, var = at(HEALTHY.mean, c0=50_000.0), at(HEALTHY.var, c0=4000.0**2)
    finding = only(layer(mean=mean, var=var, weight_dtype="float16"))
    assert told(finding) == ("error", "overflow", "bn", 66_000.0, (0,))
    assert not examine([layer(mean=mean, var=var, weight_dtype="bfloat16")])


# --- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_a_weight_or_bias_that_is_not_finite_is_an_error(which):
    finding = only(layer(**{which: at(getattr(HEALTHY, which), c4=np.nan)}))
    assert told(finding) == ("error", "weights not finite", "bn", 1, (4,))


def test_a_weight_below_a_thousandth_of_the_median_is_dead():
    weight = at(np.ones(C), c1=-0.9e-3, c2=1.1e-3, c6=0.0)
    assert told(only(layer(weight=weight))) == ("warning", "dead weights", "bn", 0.0, (1, 6))


def test_a_layer_whose_weights_are_mostly_zero_has_these_dead():
    weight = at(np.zeros(C), c0=1.0)
    assert told(only(layer(weight=weight)))[1:] == ("dead weights", "bn", 0.0, tuple(range(1, C)))


def test_a_layer_of_zeros_is_how_a_residual_branch_begins():
    finding = only(layer(weight=np.zeros(C)))
    assert told(finding) == ("note", "dead weights", "bn", 0.0, ())
    assert "zero_init_residual" in finding.cause


def test_a_layer_without_weights_has_none_to_look_at():
    assert not examine([layer(weight=None, bias=None, weight_dtype=None)])


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("momentum", "severity", "words"),
    [
        (-0.1, "error", "no average"),
        (1.1, "error", "no average"),
        (0.0, "warning", "never move"),
        (1.0, "warning", "the last batch alone"),
        (0.9, "warning", "nearly those of the last batch"),
        (0.99, "warning", "weight of the old value"),
        (0.6, "note", "outweighs all others"),
    ],
)
def test_a_momentum_that_means_something_else_is_told(momentum, severity, words):
    finding = only(layer(settings=Settings(1e-5, momentum)))
    assert told(finding) == (severity, "momentum", "bn", momentum, ())
    assert words in finding.cause


@pytest.mark.parametrize("momentum", [0.5, 0.1, 0.01, 3e-4, None])
def test_a_momentum_that_is_usual_is_not_told(momentum):
    assert not examine([layer(settings=Settings(1e-5, momentum))])


def test_the_momentum_of_frozen_statistics_does_not_matter():
    assert not examine([layer(settings=Settings(1e-5, 0.0, frozen=True))])


def test_an_eps_that_most_layers_do_not_have_is_told_with_theirs():
    layers = [layer(f"bn{k}") for k in range(3)] + [layer("ported", settings=Settings(1e-3, 0.1))]
    finding = only(*layers)
    assert told(finding) == ("warning", "eps", "ported", 1e-3, ())
    assert "Most layers have eps=1e-05" in finding.cause


def test_without_a_majority_no_eps_is_out_of_line():
    assert not examine([layer("a"), layer("b", settings=Settings(1e-3, 0.1))])


@pytest.mark.parametrize(("eps", "severity"), [(0.0, "warning"), (-1e-5, "error")])
def test_an_eps_that_cannot_be_is_told(eps, severity):
    assert told(only(layer(settings=Settings(eps, 0.1)))) == (severity, "eps", "bn", eps, ())


def test_what_only_a_model_knows_is_said_not_to_be_checked():
    findings = examine([layer(settings=None)])
    assert not findings
    assert findings.not_checked == (
        "Not checked: momentum and eps, which only a model knows (nw.inspect(model)); eps is taken to be 1e-5.",
    )
    assert findings.not_checked[0] in str(findings).replace("\n", " ").replace("  ", " ")


# --- counters ---------------------------------------------------------------------------------------------------


def test_a_layer_that_counted_twice_as_often_runs_twice_a_step():
    finding = only(layer("a"), layer("b"), layer("twice", updates=2000))
    assert told(finding) == ("warning", "counters", "twice", 2.0, ())
    assert "activation checkpointing" in finding.cause.replace("\n", " ")


def test_of_two_layers_the_one_that_counted_more_is_told():
    assert told(only(layer("twice", updates=2000), layer("once")))[1:4] == ("counters", "twice", 2.0)


def test_a_layer_that_counted_half_as_often_is_noted():
    finding = only(layer("a"), layer("b"), layer("seldom", updates=500))
    assert told(finding) == ("note", "counters", "seldom", 0.5, ())


@pytest.mark.parametrize("updates", [501, 999, 1001, 1499])
def test_a_few_batches_more_or_fewer_are_nothing(updates):
    assert not examine([layer("a"), layer("b"), layer("c", updates=updates)])


def test_counters_are_compared_within_one_network_of_a_file():
    layers = [layer("a", part="model"), layer("b", part="model"), layer("c", part="ema", updates=2)]
    assert not examine(layers)


def test_a_layer_at_its_start_among_trained_ones_was_never_reached():
    fresh = layer("c", mean=np.zeros(C), var=np.ones(C), updates=0)
    found = [(f.severity, f.check, f.layer) for f in examine([layer("a"), layer("b"), fresh])]
    assert found == [("warning", "never reached", "c")]  # a head that is not used is no error
    alone = layer("c", mean=np.zeros(C), var=np.ones(C), updates=0, part="ema")
    found = [(f.severity, f.check, f.layer) for f in examine([layer("a"), layer("b"), alone])]
    assert found == [("error", "never trained", "c")]  # nothing else in its network has counted either


def test_statistics_beside_a_counter_of_zero_matter_where_the_counter_decides():
    cumulative = layer(updates=0, settings=Settings(1e-5, None))
    assert told(only(cumulative))[:2] == ("warning", "not counted")
    assert told(only(layer(updates=0, settings=None)))[:2] == ("note", "not counted")
    assert not examine([layer(updates=0)])  # momentum is 0.1: the counter is not read


def test_a_missing_counter_is_noted():
    assert told(only(layer(updates=None))) == ("note", "no counter", "bn", None, ())
