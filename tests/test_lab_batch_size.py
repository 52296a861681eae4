"""The batch size measured at tiny size: errors that statistics predict, modes that agree where they must."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import tiny_lab
from normwright.lab import batch_size
from normwright.lab.batch_size import ONE, WITH, WITHOUT
from normwright.lab.data import Split
from normwright.lab.networks import BN, CNN, MLP, PLAIN, build
from normwright.report.cards.batch_size import card

TINY = batch_size.PLANS["tiny"]


@pytest.fixture(scope="module")
def measured():
    return tiny_lab.measure(batch_size.EXPERIMENT)


@pytest.fixture(scope="module")
def result(measured):
    return measured[0]


@pytest.fixture(scope="module")
def digits():
    return tiny_lab._digits().splits(0, size=28, channels=1)


# --- the error of statistics ------------------------------------------


def test_the_error_of_the_mean_is_one_over_the_root_of_the_batch(result):
    for size in TINY.statistics.sizes:
        for error in result.numbers("error of the mean", network="MLP", size=size):
            # 100 batches: a root mean square of one normal number each has a relative standard error of
            # 1/sqrt(200) = 7 %, and channels only lessen it; three of them.
            assert error == pytest.approx(1 / math.sqrt(size), rel=0.22)


def test_the_error_of_normal_numbers_is_what_their_distributions_say():
    values = torch.randn(5000, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values = (values - values.mean(0)) / values.std(0, correction=0)
    mean, deviation = batch_size.errors(values, values.square(), 2, 4000, 0)
    # 32000 draws: 1/sqrt(64000) = 0.4 %; five of them. Two normal numbers have a biased deviation of |z|/sqrt(2),
    # so (s - 1)^2 is 1/2 - 2/sqrt(pi) + 1 on average.
    assert mean == pytest.approx(math.sqrt(1 / 2), rel=0.02)
    assert deviation == pytest.approx(math.sqrt(1.5 - 2 / math.sqrt(math.pi)), rel=0.02)


def test_batches_are_summed_up_as_they_were_drawn():
    values = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = (values - values.mean(0)) / values.std(0, correction=0)
    mean, deviation = batch_size.errors(values, values.square(), 3, 5, seed=11)
    drawn = torch.randint(7, (5, 3), generator=torch.Generator().manual_seed(11))
    batches = values.numpy()[drawn.numpy()]  # (batches, images, channels)
    # The same numbers summed in another order.
    assert mean == pytest.approx(float(np.sqrt((batches.mean(1) ** 2).mean())), rel=1e-12)
    assert deviation == pytest.approx(float(np.sqrt(((batches.std(1) - 1) ** 2).mean())), rel=1e-12)


def test_what_enters_the_normalization_is_what_the_layer_really_gets(digits):
    network = build(MLP, 0, BN)
    got = []
    network.norm1.register_forward_pre_hook(lambda module, inputs: got.append(inputs[0].detach().double()))
    network(digits.train.images[:50])
    first, second, values = batch_size.entering(network, digits.train.images[:50])
    x = (got[0] - got[0].mean(0)) / got[0].std(0, correction=0)
    assert values == 1
    # float32 products summed in chunks of another shape: a few roundings of values of some deviations.
    torch.testing.assert_close(first, x, rtol=0, atol=1e-4)
    torch.testing.assert_close(second, first.square())


def test_an_image_of_a_convolution_has_a_value_for_each_place():
    images = tiny_lab._digits().splits(0, size=32, channels=3).train.images[:20]
    network = build(CNN, 0, BN)
    first, second, values = batch_size.entering(network, images)
    x = network.map1(images).detach().double()
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.var((0, 2, 3), correction=0, keepdim=True).sqrt()
    assert values == 32 * 32
    torch.testing.assert_close(first, x.mean((2, 3)), rtol=0, atol=1e-4)
    torch.testing.assert_close(second, x.square().mean((2, 3)), rtol=1e-3, atol=1e-4)


def test_values_of_one_image_are_alike_and_worth_less_than_their_number(result):
    assert result.numbers("values that an image is worth", network="MLP") == pytest.approx([1, 1])
    for worth in result.numbers("values that an image is worth", network="CNN"):
        assert 1 < worth < 1024
    for seed in (0, 1):
        worth = result.number("values that an image is worth", network="CNN", seed=seed)
        for size in TINY.statistics.sizes:
            # The definition turned round; 100 batches of correlated channels as above.
            error = result.number("error of the mean", network="CNN", size=size, seed=seed)
            assert error == pytest.approx(1 / math.sqrt(size * worth), rel=0.22)


# --- the two modes ----------------------------------------------------


def _modes(network, images, size):
    return {r.what: r.value for r in batch_size.modes(network, images, size, 0)}


def test_without_a_normalization_the_modes_are_the_same(digits, result):
    found = _modes(build(MLP, 0, PLAIN), Split(digits.train.images[:60], digits.train.labels[:60]), 7)
    assert found["predictions that differ"] == 0
    # The same products in other chunks.
    assert found["loss in training mode"] == pytest.approx(found["loss in evaluation mode"], rel=1e-5)
    assert set(result.numbers("predictions that differ", condition=WITHOUT)) == {0}


def test_a_batch_of_all_images_with_their_statistics_is_evaluation(digits):
    images = Split(digits.train.images[:60], digits.train.labels[:60])
    network = build(MLP, 0, BN)
    with torch.no_grad():
        x = network.map1(images.images.flatten(1))
        network.norm1.running_mean.copy_(x.mean(0))
        network.norm1.running_var.copy_(x.var(0, correction=0))
    found = _modes(network, images, 60)
    assert found["predictions that differ"] == 0
    assert found["loss in training mode"] == pytest.approx(found["loss in evaluation mode"], rel=1e-5)


def test_the_modes_differ_as_they_do_by_hand(digits):
    images = Split(digits.train.images[:60], digits.train.labels[:60])
    network = build(MLP, 0, BN)
    with torch.no_grad():
        network.out.weight.mul_(20)  # so that predictions are not all the same
    before = copy.deepcopy(network.state_dict())
    found = _modes(network, images, 60)
    with torch.no_grad():
        fixed = copy.deepcopy(network).eval()(images.images)
        batch = copy.deepcopy(network).train()(images.images)
    changed = float((fixed.argmax(1) != batch.argmax(1)).double().mean())
    assert 0 < changed == found["predictions that differ"]
    for mode, logits in (("training", batch), ("evaluation", fixed)):
        law = float(nn.functional.cross_entropy(logits, images.labels))
        assert found[f"loss in {mode} mode"] == pytest.approx(law, rel=1e-5)
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loss_that_is_no_number_is_a_record_without_value(digits):
    network = build(MLP, 0, BN)
    with torch.no_grad():
        network.out.weight.fill_(math.inf)
    found = _modes(network, Split(digits.train.images[:8], digits.train.labels[:8]), 4)
    assert found["loss in training mode"] is None
    assert found["loss in evaluation mode"] is None


def test_exact_statistics_are_those_of_all_images(digits):
    network = build(MLP, 0, BN)
    exact = batch_size.with_exact_statistics(network, digits.train.images)
    x = network.map1(digits.train.images.flatten(1)).detach().double()
    torch.testing.assert_close(exact.norm1.running_mean.double(), x.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(exact.norm1.running_var.double(), x.var(0), rtol=1e-5, atol=1e-6)
    assert float(network.norm1.running_mean.abs().max()) == 0


# --- the whole --------------------------------------------------------


def test_every_batch_size_sees_the_same_number_of_images():
    plan = batch_size.PLANS["full"]
    seen = [
        budget.steps * budget.batch_size for budget in (batch_size.budget_of(plan, m) for m in plan.sizes)
    ]
    # A last batch that would not be full is left out.
    assert all(plan.images - m < s <= plan.images for m, s in zip(plan.sizes, seen, strict=True))


def test_the_rate_is_chosen_on_validation_images_by_the_best_mean():
    """With every rate a finalist, the chosen one is the one whose runs, each alone, are best on average."""
    statistics = replace(TINY.statistics, entries=())
    plan = replace(TINY, statistics=statistics, sizes=(60,), images=300, rates=(0.001, 0.3), finalists=2)
    result, _ = tiny_lab.measure(batch_size.EXPERIMENT, plan)
    for condition in (WITH, WITHOUT):
        late = {}
        for rate in plan.rates:
            alone, _ = tiny_lab.measure(batch_size.EXPERIMENT, replace(plan, rates=(rate,), finalists=1))
            late[rate] = alone.numbers("late validation accuracy", condition=condition)
        chosen = result.number("chosen rate", condition=condition)
        assert sum(late[chosen]) == max(sum(values) for values in late.values())
        assert len({sum(values) for values in late.values()}) == 2
        assert result.numbers("late validation accuracy", condition=condition) == late[chosen]


def test_every_condition_has_its_records(result):
    for condition in (WITH, WITHOUT):
        for size in TINY.sizes:
            for what in ("test accuracy", "late validation accuracy", "predictions that differ"):
                found = result.numbers(what, condition=condition, size=size)
                assert len(found) == TINY.seeds
                assert all(0 <= value <= 1 for value in found)
    assert len(result.pick("predictions that differ", condition=ONE)) == len(TINY.sizes) * TINY.seeds
    assert len(result.pick("test accuracy with exact statistics")) == len(TINY.sizes) * TINY.seeds
    assert {record.row for record in result.records} == {27}


def test_two_images_are_too_few(result):
    """What no seed can change: two values standardized are -1 and 1, whatever they were."""
    assert min(result.numbers("predictions that differ", condition=ONE, size=2)) > 0.1


def test_the_work_announced_is_the_work_done(measured):
    _, watch = measured
    assert watch.work == pytest.approx(batch_size.work(TINY))
    assert len(set(watch.trials)) == len(watch.trials)


def test_the_same_seed_measures_the_same_numbers(result):
    again, _ = tiny_lab.measure(batch_size.EXPERIMENT)
    assert again.records == result.records


@pytest.mark.parametrize("say", [tiny_lab.EN, tiny_lab.ZH], ids=["en", "zh"])
def test_the_card_is_whole(say, result):
    tiny_lab.assert_told(card(result, say))
