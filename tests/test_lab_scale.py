"""The laws of scale measured at tiny size: laws hold as laws, curves are where independent formulas put them."""

from dataclasses import replace

import numpy as np
import pytest

import tiny_lab
from normwright.lab import scale
from normwright.lab.networks import MLP, build
from normwright.lab.train import Budget
from normwright.report.cards.scale import card

TINY = scale.PLANS["tiny"]
# One sum of 784 products of the size of the deviation, each rounded once: far more than any of these laws is off.
ROUNDED = {"float64": 784 * 10 * 2.0**-53, "float32": 784 * 10 * 2.0**-24}


@pytest.fixture(scope="module")
def measured():
    return tiny_lab.measure(scale.EXPERIMENT)


@pytest.fixture(scope="module")
def result(measured):
    return measured[0]


@pytest.fixture(scope="module")
def pixels():
    """The first images that the MLP is trained on, with the first seed."""
    splits = tiny_lab._digits().splits(0, size=28, channels=1)
    return splits.train.images[: TINY.images].flatten(1).double().numpy()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("output off", {"eps": scale.SCALED}),
        ("gradient to u off", {}),
        ("a times the gradient to aW off", {}),
        ("output deviation off", {}),
        ("identity off", {"gamma": scale.EXACT}),
    ],
)
def test_the_laws_hold_to_rounding_for_every_network_and_a(what, where, dtype, result):
    found = result.numbers(what, dtype=dtype, **where)
    assert len(found) == 2 * (1 if what == "output deviation off" else len(TINY.factors))
    assert 0 < max(found) <= ROUNDED[dtype]


def test_where_a_is_a_power_of_two_nothing_is_rounded_and_the_laws_hold_to_the_bit():
    plan = replace(TINY, factors=(2.0**-10, 1.0, 2.0**10), draws=1, budget=Budget(1, 60, 1))
    result, _ = tiny_lab.measure(scale.EXPERIMENT, plan)
    for what in ("gradient to u off", "a times the gradient to aW off"):
        assert result.numbers(what) == [0.0] * 12
    assert result.numbers("output off", eps=scale.SCALED) == [0.0] * 12


def test_the_curves_with_a_fixed_eps_are_those_of_numpy(result, pixels):
    weight = build(MLP, 0).map1.weight.detach().double().numpy()
    for a in TINY.factors:
        var = (a * (pixels @ weight.T)).var(0)
        for eps in TINY.epsilons:
            where = {"network": "MLP", "dtype": "float64", "factor": a, "eps": eps}
            law = np.sqrt((var / (var + eps)).mean())
            # Sums in another order: some thousand roundings at most.
            assert result.number("output deviation", **where) == pytest.approx(law, rel=1e-12)
            assert result.number("output deviation by the formula", **where) == pytest.approx(law, rel=1e-12)


def test_the_identity_as_it_is_told_is_off_by_what_eps_takes(result, pixels):
    weight = build(MLP, 0).map1.weight.detach().double().numpy()
    for a in TINY.factors:
        x = a * (pixels @ weight.T)
        shrunk = np.sqrt(x.var(0) / (x.var(0) + scale.EPS)) - 1
        law = np.abs(shrunk * (x - x.mean(0))).max() / np.abs(x).max()
        where = {"network": "MLP", "dtype": "float64", "factor": a, "gamma": scale.TOLD}
        # At a = 1e4 the law itself is 1e-12, and a rounding of x 1e-16 of it.
        assert result.number("identity off", **where) == pytest.approx(law, rel=1e-3, abs=1e-15)


def test_gradients_with_a_fixed_eps_break_the_law_where_the_weights_are_small(result):
    for network in ("MLP", "CNN"):
        small = {"network": network, "factor": 1e-4}
        assert result.number("gradient to aW", **small) < 100  # not 10000
        assert result.number("gradient to u", **small) < 0.1
        large = {"network": network, "factor": 1e4}
        # At large a what is left is eps at a = 1: eps/var of the least varying channel, a few percent.
        assert result.number("gradient to aW", **large) == pytest.approx(1e-4, rel=0.1)
        assert result.number("gradient to u", **large) == pytest.approx(1, rel=0.1)


def test_mean_and_variance_are_the_laws_whatever_comes_before(result):
    for what in ("mean off beta", "variance off the formula"):
        for dtype, rounding in (("float64", 2.0**-53), ("float32", 2.0**-24)):
            # 16 roundings of an offset of up to a thousand deviations: see the card's own limit.
            drawn = result.numbers(what, dtype=dtype, upstream="drawn")
            assert len(drawn) == 2
            assert 0 < max(drawn) <= 2e4 * rounding
        learning = result.numbers(what, upstream="learning")
        assert len(learning) == 3
        # Offsets are a few deviations here: 16 roundings of each of them.
        assert 0 < max(learning) <= 16 * 10 * 2.0**-24


def test_the_input_moved_while_the_mean_stayed(result):
    moved = result.numbers("input mean moved")
    assert moved[0] == 0
    assert max(moved) > 0.01


def test_how_often_one_looks_does_not_change_what_is_learned(result):
    seldom = replace(TINY, budget=replace(TINY.budget, every=4))
    rare, _ = tiny_lab.measure(scale.EXPERIMENT, seldom)
    often = result.numbers("input mean moved")
    assert rare.numbers("input mean moved") == [often[0], often[2]]


def test_constant_channels_are_the_constant_pixels_and_the_added_one(result, pixels):
    constant = int((pixels.std(0) == 0).sum()) + 1
    assert constant > 1
    assert set(result.numbers("constant channels", network="MLP")) == {constant}
    for of in ("output", "gradient"):
        assert set(result.numbers("channels not finite", of=of, eps=scale.EPS)) == {0}
        without = {"network": "MLP", "of": of, "eps": 0.0}
        assert set(result.numbers("channels not finite", **without)) == {constant}
    assert set(result.numbers("eps 0 refused")) == {1}


def test_the_work_announced_is_the_work_done(measured):
    _, watch = measured
    assert watch.work == pytest.approx(scale.work(TINY))
    assert len(set(watch.trials)) == len(watch.trials) == 2 * 2 * 3 + 1


def test_the_same_seed_measures_the_same_numbers(result):
    again, _ = tiny_lab.measure(scale.EXPERIMENT)
    assert again.records == result.records
    other, _ = tiny_lab.measure(scale.EXPERIMENT, seed=1)
    assert [r.value for r in other.records] != [r.value for r in result.records]


def test_each_seed_has_other_weights():
    result, watch = tiny_lab.measure(scale.EXPERIMENT, replace(TINY, seeds=2, budget=Budget(1, 60, 1)))
    where = {"network": "MLP", "dtype": "float64", "factor": 1e-2}
    first, second = result.numbers("gradient to u", **where)
    assert first != second
    assert watch.work == pytest.approx(scale.work(replace(TINY, seeds=2, budget=Budget(1, 60, 1))))


def test_every_record_is_of_a_row_that_the_experiment_announces(result):
    assert {record.row for record in result.records} == set(scale.EXPERIMENT.rows)


@pytest.mark.parametrize("say", [tiny_lab.EN, tiny_lab.ZH], ids=["en", "zh"])
def test_the_card_is_whole(say, result):
    told = card(result, say)
    tiny_lab.assert_told(told)
    assert [verdict.outcome for verdict in told.verdicts] == ["holds"] * 6
