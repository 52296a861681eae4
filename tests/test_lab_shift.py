"""The shift: distances that are known, a look that changes nothing, and the whole experiment at tiny size."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import tiny_lab
from normwright.lab import shift
from normwright.lab.data import Split
from normwright.lab.distributions import (
    Distribution,
    mean_shift,
    raw_mean_shift,
    shape_shift,
    variance_shift,
)
from normwright.lab.networks import BN, DEEP_CNN, PLAIN, SIGMOID, build, parts
from normwright.report.cards.shift import card
from normwright.report.records import Record


def _values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- distances --------------------------------------------------------


def test_a_mean_that_moves_is_told_in_deviations_and_nothing_else_moves():
    x = 2.0 * _values(500, 3)
    before, after = Distribution([x]), Distribution([x + 1.0])
    deviation = float(before.variance.mean() ** 0.5)
    # float32 values of about 2: a mean of 500 is right to 1e-6.
    assert mean_shift(before, after) == pytest.approx(1.0 / deviation, rel=0.01)
    assert raw_mean_shift(before, after) == pytest.approx(1.0, abs=1e-5)
    assert variance_shift(before, after) == pytest.approx(0.0, abs=1e-5)
    assert shape_shift(before, after) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("factor", [pytest.param(4.0, id="wider"), pytest.param(0.25, id="narrower")])
def test_a_variance_that_moves_is_told_by_its_ratio_either_way(factor):
    x = _values(500, 3)
    x -= x.mean(0)
    before, after = Distribution([x]), Distribution([factor * x])
    assert variance_shift(before, after) == pytest.approx(math.log(16.0), abs=1e-5)
    assert mean_shift(before, after) == pytest.approx(0.0, abs=1e-5)
    assert shape_shift(before, after) == pytest.approx(0.0, abs=1e-5)


def test_the_distance_of_shapes_is_the_wasserstein_distance_of_the_standardized():
    even = torch.tensor([-1.0, -1.0, 1.0, 1.0])[:, None]
    tailed = torch.tensor([-math.sqrt(2.0), 0.0, 0.0, math.sqrt(2.0)])[:, None]
    # Mean 0 and variance 1 both; sorted and paired they are |1 - sqrt 2|, 1, 1, |1 - sqrt 2| apart.
    expected = (2 * (math.sqrt(2.0) - 1.0) + 2.0) / 4
    before, after = Distribution([even]), Distribution([5.0 * tailed.flip(0) - 3.0])
    assert shape_shift(before, after) == pytest.approx(expected, abs=1e-6)


def test_distances_are_the_same_both_ways():
    before, after = Distribution([_values(200, 4)]), Distribution([_values(200, 4, seed=1) ** 3 + 1.0])
    for measure in (mean_shift, raw_mean_shift, variance_shift, shape_shift):
        there, back = measure(before, after), measure(after, before)
        assert there is not None
        assert there > 0.1
        assert there == pytest.approx(back)


def test_a_channel_that_does_not_vary_is_left_out():
    x = _values(100, 2)
    x[:, 1] = 7.0
    moved = x + torch.tensor([1.0, 5.0])
    assert mean_shift(Distribution([x]), Distribution([moved])) == pytest.approx(1.0, rel=0.2)
    still = Distribution([torch.full((10, 2), 3.0)])
    assert mean_shift(still, still) is variance_shift(still, still) is shape_shift(still, still) is None


def test_values_that_are_not_finite_have_no_distance():
    x = _values(100, 2)
    broken = x.clone()
    broken[3] = torch.tensor([torch.inf, -torch.inf])
    for measure in (mean_shift, raw_mean_shift, variance_shift, shape_shift):
        assert measure(Distribution([x]), Distribution([broken])) is None


def test_channels_of_images_are_taken_over_images_and_positions():
    x = _values(5, 3, 4, 4)
    found = Distribution([x[:2], x[2:]])
    np.testing.assert_allclose(found.mean, x.double().mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found.variance, x.double().var((0, 2, 3), correction=0), rtol=1e-12)
    assert found.shape.shape == (3, 5 * 16)
    assert Distribution([_values(5, 3, 16, 16)]).shape.shape == (3, 5 * 16)  # evenly spaced positions alone
    median = float(x[:, 1].double().median())
    assert found.percentiles(1, (0, 50, 100))[1] == pytest.approx(median, abs=0.1)


# --- looking ----------------------------------------------------------


@pytest.mark.parametrize("side", shift.SIDES)
def test_a_look_changes_nothing_in_the_network(side):
    network = build(DEEP_CNN, 0, shift.style(side, 0, 0.5)).train()
    images = torch.rand(20, 3, 16, 16)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    seen = shift.look(network, [images])
    again = shift.look(network, [images])
    for one, other in zip(seen, again, strict=True):
        np.testing.assert_array_equal(one.mean, other.mean)
        np.testing.assert_array_equal(one.shape, other.shape)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not any(layer._forward_pre_hooks for layer in network.modules())


def test_a_look_sees_what_goes_into_each_nonlinearity():
    network = build(SIGMOID, 3, PLAIN)
    images = torch.rand(30, 1, 28, 28)
    first, second, _ = shift.look(network, [images[:10], images[10:]])
    with torch.no_grad():
        one = network[1](images.flatten(1))
        two = network[3](one.sigmoid())
    np.testing.assert_allclose(first.mean, one.double().mean(0), atol=1e-6)
    np.testing.assert_allclose(second.mean, two.double().mean(0), atol=1e-6)


def test_with_bn_mean_and_variance_are_beta_and_gamma_whatever_the_layers_before_do():
    network = build(SIGMOID, 0, BN)
    with torch.no_grad():
        for layer in parts(network, "map"):
            layer.get_parameter("weight").mul_(3.0)
        for number, layer in enumerate(parts(network, "norm")):
            layer.get_parameter("weight").fill_(0.5 + number)
            layer.get_parameter("bias").fill_(-number)
    for number, seen in enumerate(shift.look(network, list(torch.rand(120, 1, 28, 28).split(60)))):
        # float32, normalized batch by batch: means are right to about 1e-6.
        np.testing.assert_allclose(seen.mean, -number, atol=1e-5)
        # eps takes 1e-5 of a variance of 1; the smallest here is about 0.01, of which it takes 0.001.
        np.testing.assert_allclose(seen.variance, (0.5 + number) ** 2, rtol=5e-3)


# --- the noise --------------------------------------------------------


def test_noise_moves_each_channel_by_another_amount_in_each_step_and_nothing_in_evaluation():
    noise = shift.Noise(50, seed=0, shift=0.5)
    x = _values(400, 50)
    means = torch.stack([noise(x).mean(0) - x.mean(0) for _ in range(40)])
    # Uniform within 0.5: a mean distance between two draws of 1/3. Its error over 2000 draws is below 0.01; the
    # noise of each activation and the stretch of means that are not quite 0 add less than that.
    assert float((means[1:] - means[:-1]).abs().mean()) == pytest.approx(1 / 3, abs=0.02)
    assert float(means.abs().max()) < 0.6
    assert float(means.std(0).min()) > 0.15
    scale = noise(x).std(0) / x.std(0)
    # Stretched by 1 to 1.25, and by independent noise of 0.1 and 0.1/sqrt(3), whose squares add.
    assert 1.0 < float(scale.mean()) < 1.25
    assert torch.equal(noise.eval()(x), x)


def test_noise_is_fixed_by_its_seed_and_another_in_each_layer():
    x = torch.ones(4, 100)
    assert torch.equal(shift.Noise(100, 5, 0.5)(x), shift.Noise(100, 5, 0.5)(x))
    first, second, _ = (layer[1] for layer in parts(build(SIGMOID, 0, shift.noisy(0, 0.5)), "norm"))
    other = parts(build(SIGMOID, 1, shift.noisy(1, 0.5)), "norm")[0][1]
    drawn = [layer(x) for layer in (first, second, other)]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_noisy_network_begins_with_the_weights_of_the_others():
    sides = [build(SIGMOID, 2, shift.style(side, 2, 0.5)) for side in shift.SIDES]
    for layers in zip(*(parts(side, "map") for side in sides), strict=True):
        first, *others = (layer.get_parameter("weight") for layer in layers)
        assert all(torch.equal(first, other) for other in others)


def test_accuracy_as_trained_uses_batch_statistics_and_leaves_a_small_last_batch_out():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2))
    images = torch.tensor([[9.0, 1.0], [5.0, 3.0], [7.0, 1.0], [6.0, 3.0], [100.0, 0.0]])[:, :, None, None]
    # By raw values each image is of class 0; standardized in pairs, one of each pair is.
    split = Split(images, torch.tensor([0, 1, 0, 1, 1]))
    assert shift.accuracy_as_trained(network, split, 2) == 1.0
    assert network[1].num_batches_tracked == 0


# --- the experiment ---------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return tiny_lab.measure(shift.EXPERIMENT)


def test_the_tiny_plan_measures_every_layer_over_every_span(tiny):
    result, watch = tiny
    assert watch.work == pytest.approx(shift.work(shift.PLANS["tiny"]))
    for network, count in (("sigmoid MLP", 3), ("deep CNN", 9)):
        for condition in (*shift.SIDES, shift.SAME_RATE):
            for what, span in (
                ("mean shift", "one step"),
                ("raw mean shift", "one step"),
                ("mean shift", "between looks"),
                ("variance shift", "between looks"),
                ("mean shift", "from the start"),
                ("variance shift", "from the start"),
                ("shape shift", "from the start"),
            ):
                where = {"network": network, "condition": condition}
                found = result.numbers(what, span=span, **where)
                assert len(found) == count
                assert min(found) > 0
            assert len(result.numbers("shape of other images", **where)) == count


def test_moves_are_what_they_must_be(tiny):
    result, _ = tiny
    assert max(result.numbers("mean minus beta")) < 1e-5
    for network, noise in (("sigmoid MLP", 2.0), ("deep CNN", 0.5)):
        noisy = result.numbers("mean shift", network=network, condition=shift.NOISY, span="one step")
        steady = result.numbers("mean shift", network=network, condition=shift.WITH, span="one step")
        # Two thirds of the largest shift, over a scale of about 1.15, by few channels and steps.
        assert 0.3 < min(noisy) / noise < max(noisy) / noise < 1.0
        assert max(steady) < 0.05
    percentiles = [
        result.number("input of a unit", condition=shift.WITHOUT, step=3, percentile=percent)
        for percent in shift.PERCENTILES
    ]
    assert percentiles == sorted(percentiles)
    assert result.numbers("goal", network="sigmoid MLP", condition=shift.WITH) == [
        pytest.approx(0.95 * max(result.numbers(shift.CURVE, network="sigmoid MLP", condition=shift.WITH)))
    ]


def test_the_same_seed_gives_the_same_records(tiny):
    plan = shift.Plan(shift.PLANS["tiny"].entries[:1], seeds=1, choosing=1)
    again, _ = tiny_lab.measure(shift.EXPERIMENT, plan)

    def of_sigmoid(record: Record) -> bool:
        return record.where.get("network") == "sigmoid MLP"

    assert list(again.records) == [record for record in tiny[0].records if of_sigmoid(record)]


def test_watching_does_not_change_training(tiny):
    # The rate's score comes from a training that nobody watched, the curve from one that was watched.
    result, _ = tiny
    for condition in shift.SIDES:
        where = {"network": "deep CNN", "condition": condition}
        curve = result.numbers(shift.CURVE, **where)
        assert result.numbers("score of a rate", **where) == [pytest.approx(sum(curve) / len(curve))]


@pytest.mark.parametrize("say", [tiny_lab.EN, tiny_lab.ZH], ids=["en", "zh"])
def test_its_card_is_whole(tiny, say):
    told = card(tiny[0], say)
    tiny_lab.assert_told(told)
    assert len(told.pictures) == 4
    assert len(told.verdicts) == 6
