"""The race: fair to both sides, each training once, and its ratios are those of the curves."""

import copy
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

import tiny_lab
from normwright.lab import race, rates, train
from normwright.lab.data import Split, load
from normwright.lab.experiment import Desk
from normwright.lab.networks import MLP, build, parts
from normwright.lab.notebook import Notebook
from normwright.lab.race import CURVE, EXPERIMENT, FACTORS, PLANS, Plan
from normwright.lab.train import Budget, one_thread
from normwright.report.cards.race import card
from tiny_lab import EN, ZH

TINY = PLANS["tiny"]
TIMED = {"seconds per step"}
# One network and three rates, of which two are finalists.
SMALL = Plan((race.Entry(MLP, (0.1, 0.3, 1.0), Budget(steps=6, batch_size=60, every=2)),), seeds=2)


@pytest.fixture(scope="module")
def measured():
    return tiny_lab.measure(EXPERIMENT)


@pytest.fixture(scope="module")
def small():
    return tiny_lab.measure(EXPERIMENT, SMALL, seed=7)


def untimed(result):
    return [record for record in result.records if record.what not in TIMED]


# --- work -------------------------------------------------------------


def test_each_training_is_done_once_and_its_work_told_once(measured):
    _, watch = measured
    assert len(watch.trials) == len(set(watch.trials))
    assert watch.work == sum(
        4 * 1.0 for _ in watch.trials
    )  # four steps each, of networks that cost as the MLP


def test_the_work_announced_is_at_least_the_work_done_and_little_more(measured):
    # More where a multiple of the rate without BN is a rate that BN has been tried with: nobody knows beforehand.
    _, watch = measured
    shared = len(TINY.entries) * len(FACTORS) * TINY.seeds * 4.0
    assert watch.work <= EXPERIMENT.work(TINY) <= watch.work + shared


def test_a_rate_is_trained_with_once_though_several_conditions_name_it(small):
    result, watch = small
    (base,) = result.values("chosen rate", condition="without BN")
    # The rate best without BN is one that BN was tried with too, for the first seed at least.
    assert watch.trials.count(f"MLP BN, rate {base:g}, seed 7") == 1
    same = {"rate": base, "seed": 7, "network": "MLP"}
    x1 = result.pick("test accuracy", condition="BN, rate x1", **same)
    assert len(x1) == 1
    for record in result.pick("test accuracy", condition="BN", **same):
        assert record.value == x1[0].value


def test_every_rate_is_tried_once_and_the_finalists_with_every_seed(small):
    _, watch = small
    tried = {
        seed: [t for t in watch.trials if "without BN" in t and t.endswith(f"seed {seed}")] for seed in (7, 8)
    }
    assert [len(trials) for trials in tried.values()] == [3, 2]


# --- the choice -------------------------------------------------------


class Swapped(Desk):
    """A desk whose test images have other labels."""

    def data(self, network):
        splits = super().data(network)
        return replace(splits, test=Split(splits.test.images, 9 - splits.test.labels))


def test_rates_are_chosen_without_a_look_at_the_test_images(small):
    honest, _ = small
    with one_thread():
        desk = Swapped(load(), 7, Notebook(tiny_lab.Counted()))
        swapped = tiny_lab.made_up("race", list(EXPERIMENT.measure(desk, SMALL)))
    touched = {"test accuracy", *TIMED}

    def others(result):
        return [r for r in result.records if r.what not in touched]

    assert others(swapped) == others(honest)
    # Right on every second image or so before; a label that is 9 minus the right one is rarely named.
    assert swapped.numbers("test accuracy") != honest.numbers("test accuracy")


def test_the_chosen_rate_is_the_best_of_those_tried_with_every_seed(measured):
    result, _ = measured
    chosen = result.pick("chosen rate")
    assert [(r.where["network"], r.where["condition"]) for r in chosen] == [
        ("MLP", "without BN"),
        ("MLP", "BN"),
        ("MLP", "sigmoid without BN"),
        ("MLP", "BN with sigmoid"),
        ("sigmoid MLP", "without BN"),
        ("sigmoid MLP", "BN"),
    ]
    for record in chosen:
        where = {"network": record.where["network"], "condition": record.where["condition"]}
        scores = {r.where["rate"]: r.value for r in result.pick("score of a rate", seeds=TINY.seeds, **where)}
        assert len(scores) == rates.FINALISTS
        assert scores[record.value] == max(scores.values())


def test_the_score_of_a_rate_is_the_mean_of_the_last_quarter_of_its_curves(measured):
    result, _ = measured
    for condition in ("without BN", "BN"):
        (rate,) = result.values("chosen rate", network="MLP", condition=condition)
        _, curves = result.curves(CURVE, "step", network="MLP", condition=condition)
        (score,) = result.numbers("score of a rate", network="MLP", condition=condition, rate=rate)
        assert len(curves) == TINY.seeds
        assert score == pytest.approx(sum(curve[-1] for curve in curves) / len(curves))  # of two points, one


# --- fairness ---------------------------------------------------------


class Attentive(Desk):
    """A desk that remembers how each training began."""

    began: ClassVar = []

    def train(self, network, model, *, rate, seed, budget, **more):
        self.began.append((network, seed, model, copy.deepcopy(dict(model.named_parameters()))))
        return super().train(network, model, rate=rate, seed=seed, budget=budget, **more)


def test_every_side_begins_with_the_weights_of_its_seed_and_sees_the_same_batches(monkeypatch):
    began, ordered = [], []
    monkeypatch.setattr(Attentive, "began", began)
    drawn = train.batches

    def batches(count, budget, seed):
        for batch in drawn(count, budget, seed):
            ordered.append((seed, tuple(batch.tolist())))
            yield batch

    monkeypatch.setattr(train, "batches", batches)
    with one_thread():
        list(EXPERIMENT.measure(Attentive(load(), 7, Notebook(tiny_lab.Counted())), SMALL))
    assert {seed for _, seed, _, _ in began} == {7, 8}
    assert {len(parts(model, "norm")) for _, _, model, _ in began} == {0, 1}
    for network, seed, _, weights in began:
        first = dict(build(network, seed).named_parameters())
        assert all(torch.equal(weights[name], value) for name, value in first.items())
    # Six batches of each seed, in however many trainings.
    assert {seed: len({batch for s, batch in ordered if s == seed}) for seed in (7, 8)} == {7: 6, 8: 6}


# --- what the records say ---------------------------------------------


def test_every_condition_has_its_curve_for_every_seed(measured):
    result, _ = measured
    conditions = result.each(CURVE, "condition", network="MLP")
    assert conditions == [
        "without BN",
        "BN",
        "sigmoid without BN",
        "BN with sigmoid",
        *(f"BN, rate x{factor}" for factor in FACTORS),
    ]
    for condition in conditions:
        steps, curves = result.curves(CURVE, "step", network="MLP", condition=condition)
        assert steps == [2, 4]
        assert len(curves) == TINY.seeds
        assert all(0 <= height <= 1 for curve in curves for height in curve)


def test_the_multiples_are_multiples_of_the_rate_chosen_without_batch_normalization(measured):
    result, _ = measured
    for network in ("MLP", "sigmoid MLP"):
        (base,) = result.values("chosen rate", network=network, condition="without BN")
        for factor in FACTORS:
            told = result.each("test accuracy", "rate", network=network, condition=f"BN, rate x{factor}")
            assert told == [pytest.approx(factor * base)]


def test_steps_and_ratios_are_those_of_the_recorded_curves(measured):
    result, _ = measured
    checked = 0
    for ratio in result.pick("ratio of steps"):
        network, seed = ratio.where["network"], ratio.where["seed"]

        def curve(condition, network=network, seed=seed):
            steps, (heights,) = result.curves(CURVE, "step", network=network, condition=condition, seed=seed)
            return dict(zip(steps, heights, strict=True))

        goal = max(curve("without BN").values())
        slow = min(step for step, height in curve("without BN").items() if height == goal)
        reached = [step for step, height in curve(ratio.where["condition"]).items() if height >= goal]
        assert ratio.value == (min(reached) / slow if reached else None)
        (steps,) = result.values("steps to the goal", **ratio.where)
        assert steps == (min(reached) if reached else None)
        assert result.values("goal", **ratio.where) == [goal]
        checked += 1
    assert checked == (7 + 5) * TINY.seeds


def test_the_network_without_batch_normalization_takes_all_of_its_own_steps(measured):
    assert set(measured[0].values("ratio of steps", condition="without BN")) == {1.0}


def test_the_same_seed_measures_the_same_numbers(small):
    again, _ = tiny_lab.measure(EXPERIMENT, SMALL, seed=7)
    assert untimed(again) == untimed(small[0])


def test_another_seed_measures_others(small):
    other, _ = tiny_lab.measure(EXPERIMENT, SMALL, seed=8)
    assert untimed(other) != untimed(small[0])
    assert {record.where["seed"] for record in other.pick(CURVE)} == {8, 9}


def test_every_record_belongs_to_a_row_of_the_experiment(measured):
    assert {record.row for record in measured[0].records} <= set(EXPERIMENT.rows)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_rates_of_a_plan_rise_and_no_network_runs_twice(plan):
    assert len({entry.network.name for entry in plan.entries}) == len(plan.entries)
    for entry in plan.entries:
        assert list(entry.rates) == sorted(set(entry.rates))


@pytest.mark.parametrize("say", [EN, ZH], ids=["en", "zh"])
def test_the_card_tells_what_was_measured(measured, say):
    tiny_lab.assert_told(card(measured[0], say))
