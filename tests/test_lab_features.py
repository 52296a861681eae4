"""Features in different units: the parts are fair, descent is gradient descent, and the experiment at tiny size."""

import math

import numpy as np
import pytest
import torch

import tiny_lab
from normwright.lab import features
from normwright.lab.features import (
    EXPERIMENT,
    LINEAR,
    LOGISTIC,
    PLANS,
    RAW,
    SIDES,
    STANDARDIZED,
    WITH,
    Descent,
    Table,
)
from normwright.lab.train import Budget
from normwright.report.cards.features import card
from tiny_lab import EN, ZH

TINY = PLANS["tiny"]


@pytest.fixture(scope="module")
def measured():
    return tiny_lab.measure(EXPERIMENT)


def _descend(table, batch_norm, rate, steps, batch_size, seed=0):
    descent = Descent(table, batch_norm)
    budget = Budget(steps, batch_size, steps)
    found = list(features.descend(descent, rate, budget, seed, lambda: None))
    return descent, {r.where["step"]: r.value for r in found if r.what == "train loss"}, found


# --- the table --------------------------------------------------------


@pytest.mark.parametrize("problem", [LOGISTIC, LINEAR], ids=lambda problem: problem.name)
def test_the_parts_are_disjoint_and_all_of_the_table(problem):
    table, whole = Table.of(problem, 3), problem.load()[0]
    parts = [table.train[0], table.validation[0], table.test[0]]
    assert [len(part) for part in parts[:2]] == pytest.approx([0.6 * len(whole), 0.2 * len(whole)], abs=1)
    assert np.array_equal(np.sort(np.concatenate(parts), axis=0), np.sort(whole, axis=0))
    other = Table.of(problem, 4)
    assert not np.array_equal(other.train[0], table.train[0])
    assert np.array_equal(Table.of(problem, 3).train[0], table.train[0])


def test_standardizing_uses_the_numbers_of_the_training_part_alone():
    table = Table.of(LOGISTIC, 0)
    done = table.standardized()
    mean, deviation = table.train[0].mean(0), table.train[0].std(0)
    for before, after in (
        (table.train, done.train),
        (table.validation, done.validation),
        (table.test, done.test),
    ):
        # float64; the smallest deviation is 1e-3 of its mean, so that 1e-16 becomes 1e-13.
        np.testing.assert_allclose(after[0], (before[0] - mean) / deviation, rtol=0, atol=1e-11)
        assert np.array_equal(after[1], before[1])
    assert abs(done.test[0].mean(0)).max() > 0.01  # the test part by itself would have come out at 0


def test_a_numeric_target_comes_in_deviations_and_classes_stay():
    known = Table.of(LINEAR, 0).train[1]
    assert (known.mean(), known.std()) == pytest.approx((0.0, 1.0), abs=1e-12)
    assert set(Table.of(LOGISTIC, 0).train[1]) == {0.0, 1.0}


def test_units_differ_and_standardizing_takes_the_condition_number_down():
    for problem in (LOGISTIC, LINEAR):
        found = {r.where.get("side"): r.value for r in features.solved(problem, 0, False) if "cond" in r.what}
        assert found[RAW] > 100 * found[STANDARDIZED] > 100


def test_the_solver_of_the_linear_problem_is_the_closed_form():
    table = Table.of(LINEAR, 0)
    x = np.c_[table.train[0], np.ones(len(table.train[1]))]
    weights, *_ = np.linalg.lstsq(x, table.train[1], rcond=None)
    loss = ((x @ weights - table.train[1]) ** 2).mean()
    found = {r.what: r.value for r in features.solved(LINEAR, 0, False)}
    assert found["solver's train loss"] == pytest.approx(loss, rel=1e-9)


def test_the_ranges_are_those_of_the_training_part():
    found = {
        (r.where["feature"], r.where["of"]): r.value
        for r in features.solved(LOGISTIC, 0, True)
        if "of" in r.where
    }
    column = Table.of(LOGISTIC, 0).train[0][:, LOGISTIC.load()[2].index("mean area")]
    assert found["mean area", "lowest"] == column.min()
    assert found["mean area", "highest"] == column.max()
    assert len(found) == 6


# --- descending -------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [False, True], ids=["linear", "BN first"])
def test_before_the_first_step_the_loss_is_that_of_knowing_nothing(batch_norm):
    for problem, loss in ((LOGISTIC, math.log(2)), (LINEAR, 1.0)):
        _, curve, _ = _descend(Table.of(problem, 0), batch_norm, 1e-9, 1, 32)
        assert curve[0] == pytest.approx(loss, abs=1e-6)  # float32


def test_a_step_is_one_of_gradient_descent():
    table = Table.of(LINEAR, 0).standardized()
    count = len(table.train[1])
    descent, *_ = _descend(table, False, 0.1, 1, count)
    gradient = -2 * table.train[0].T @ table.train[1] / count  # of the mean squared error at weights of 0
    found = descent.model[0].weight.detach().double().numpy()[0]
    np.testing.assert_allclose(found, -0.1 * gradient, atol=1e-6)  # float32 sums of 265 numbers around 1


def test_bn_first_on_raw_features_is_descent_on_standardized_ones():
    table = Table.of(LINEAR, 0)
    count = len(table.train[1])
    _, raw, _ = _descend(table, True, 1e-2, 1, count)
    _, standardized, _ = _descend(table.standardized(), False, 1e-2, 1, count)
    # All rows in one batch, gamma 1 and weights 0: the first step is the same, but for eps (1e-5 of a variance of
    # at least 0.2), float32, and prediction by the unbiased variance: 1/530 of what the loss moved by, 0.06.
    assert raw[1] == pytest.approx(standardized[1], abs=3e-4)
    assert raw[1] < 0.96


def test_standardized_descent_arrives_where_the_solver_is():
    table = Table.of(LINEAR, 0).standardized()
    descent, curve, found = _descend(table, False, 0.1, 400, len(table.train[1]))
    goal = {r.what: r.value for r in features.solved(LINEAR, 0, False)}
    # The slowest direction but one has shrunk by far; the loss there is flat.
    assert curve[400] == pytest.approx(goal["solver's train loss"], abs=2e-3)
    assert descent.score() == pytest.approx(goal["solver's test score"], abs=0.02)
    assert [r.value for r in found if r.what == "test score"] == [descent.score()]


def test_a_descent_that_diverges_is_told_as_none():
    _, curve, found = _descend(Table.of(LINEAR, 0), False, 10.0, 40, 32)
    assert curve[0] == pytest.approx(1.0, abs=1e-6)
    assert curve[40] is None
    late = {r.what: r.value for r in found}
    assert (late["late train loss"], late["late validation loss"], late["test score"]) == (None, None, None)


def test_the_score_is_r_squared_and_the_share_of_right_classes():
    linear = Descent(Table.of(LINEAR, 0), False)
    y = linear.parts["test"][1].double()
    assert linear.score() == pytest.approx(1 - float((y**2).sum() / ((y - y.mean()) ** 2).sum()), abs=1e-6)
    logistic = Descent(Table.of(LOGISTIC, 0), False)
    with torch.no_grad():
        logistic.model[0].bias.fill_(1.0)
    assert logistic.score() == pytest.approx(float(logistic.parts["test"][1].mean()), abs=1e-6)


# --- the experiment ---------------------------------------------------


def test_work_announced_is_work_done(measured):
    _, watch = measured
    assert watch.work == pytest.approx(EXPERIMENT.work(TINY))
    # Each of two problems: two solvers; three sides with two rates of the first seed and the chosen of the second.
    assert len(watch.trials) == len(set(watch.trials)) == 2 * (2 + 3 * 3)


def test_the_rate_with_the_lowest_loss_is_chosen(measured):
    result, _ = measured
    for problem in (LOGISTIC.name, LINEAR.name):
        for side in SIDES:
            tried = {
                r.where["rate"]: r.value for r in result.pick("score of a rate", problem=problem, side=side)
            }
            assert tried.keys() == {1e-6, 1e-1}
            chosen = result.number("chosen rate", problem=problem, side=side)
            assert tried[chosen] == min(value for value in tried.values() if value is not None)
        # Raw features stand 0.1 in neither problem; the others do better with it than with a millionth.
        assert result.number("chosen rate", problem=problem, side=RAW) == 1e-6
        assert result.number("chosen rate", problem=problem, side=STANDARDIZED) == 1e-1


def test_steps_are_counted_on_the_curve(measured):
    result, _ = measured
    for problem in (LOGISTIC.name, LINEAR.name):
        for side in SIDES:
            for seed in (0, 1):
                where = {"problem": problem, "side": side, "seed": seed}
                curve = {r.where["step"]: r.value for r in result.pick("train loss", **where)}
                goal = result.number("solver's train loss", problem=problem, seed=seed)
                for share in features.SHARES:
                    (step,) = result.values("steps to a share of the way", share=share, **where)
                    below = [s for s, loss in curve.items() if loss <= curve[0] - share * (curve[0] - goal)]
                    assert step == (min(below) if below else None)
    # A millionth leaves raw features far from half of the way in 20 steps; 0.1 takes standardized ones there.
    assert result.values("steps to a share of the way", side=RAW, share=0.5) == [None] * 4
    assert max(result.numbers("steps to a share of the way", side=STANDARDIZED, share=0.5)) <= 20


def test_the_largest_rate_is_the_largest_that_descends(measured):
    result, _ = measured
    for problem in (LOGISTIC.name, LINEAR.name):
        assert result.number("largest rate that descends", problem=problem, side=RAW) == 1e-6
        assert result.number("largest rate that descends", problem=problem, side=WITH) == 1e-1


def test_the_same_seed_gives_the_same_records(measured):
    assert tiny_lab.measure(EXPERIMENT)[0].records == measured[0].records


@pytest.mark.parametrize("size", ["full", "demo", "tiny"])
def test_rates_rise(size):
    assert all(list(entry.rates) == sorted(set(entry.rates)) for entry in PLANS[size].entries)
    assert PLANS[size].choosing <= PLANS[size].seeds


def test_the_card_is_whole(measured):
    result, _ = measured
    for say in (EN, ZH):
        tiny_lab.assert_told(card(result, say))
