"""Prediction: estimators are what the sources write, the truth is the truth, and a lone image is measured."""

from collections import OrderedDict
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import normwright.torch as nw
from normwright.lab import estimators, inference
from normwright.lab.data import Split
from normwright.lab.estimators import MovingAverage, Statistics
from normwright.lab.inference import EXPERIMENT
from normwright.lab.networks import BN, CNN, MLP, build, parts
from normwright.lab.train import CHUNK, Budget, chunks
from normwright.report.cards.inference import card
from normwright.report.result import Result
from tiny_lab import EN, ZH, Counted, assert_told, measure

TINY: inference.Plan = EXPERIMENT.plans["tiny"]
FLOAT32 = 2.0**-24


@cache
def tiny() -> tuple[Result, Counted]:
    return measure(EXPERIMENT)


def images(count: int) -> Split:
    generator = torch.Generator().manual_seed(0)
    made = torch.rand(count, 3, 32, 32, generator=generator).to(memory_format=torch.channels_last)
    return Split(made, torch.arange(count) % 10)


def trained(start: Any = None) -> tuple[nn.Sequential, dict[float, MovingAverage]]:
    """The network that a trial trains, and its averages; `start` changes the network beforehand."""
    found: dict[str, Any] = {}

    def keep(desk: Any, plan: inference.Plan) -> Any:
        model = build(MLP, 0, BN)
        if start is not None:
            start(model)
        averages, _ = inference._Trial(desk, plan.entries[0], 0)._train(model)
        found.update(model=model, averages=averages)
        return iter(())

    measure(replace(EXPERIMENT, measure=keep))
    return found["model"], found["averages"]


# --- estimators -------------------------------------------------------


def test_the_average_of_0_9_is_the_layers_own_with_momentum_0_1():
    model, averages = trained()
    layer: Any = parts(model, "norm")[0]
    assert int(layer.num_batches_tracked) == 30
    # The layer rounds to float32 at each of 30 steps: at most 30 half units of numbers near 1, most of which fade.
    np.testing.assert_allclose(averages[0.9].now.mean, layer.running_mean.numpy(), rtol=0, atol=30 * FLOAT32)
    np.testing.assert_allclose(averages[0.9].now.var, layer.running_var.numpy(), rtol=30 * FLOAT32)


def test_with_the_momentum_of_0_01_the_layers_own_is_the_average_of_0_99():
    def slow(model: nn.Sequential) -> None:
        layer: Any = parts(model, "norm")[0]
        layer.momentum = 0.01

    model, averages = trained(slow)
    layer: Any = parts(model, "norm")[0]
    np.testing.assert_allclose(averages[0.99].now.mean, layer.running_mean.numpy(), rtol=0, atol=30 * FLOAT32)
    assert np.abs(averages[0.9].now.mean - layer.running_mean.numpy()).max() > 0.1


def test_a_moving_average_keeps_a_of_the_old_value():
    average = MovingAverage(0.75, Statistics(np.array([0.0]), np.array([1.0])))
    average.update(Statistics(np.array([4.0]), np.array([5.0])))
    assert (average.now.mean, average.now.var) == (np.array([1.0]), np.array([2.0]))
    average.update(Statistics(np.array([0.0]), np.array([2.0])))
    assert (average.now.mean, average.now.var) == (np.array([0.75]), np.array([2.0]))
    assert average.seconds > 0


def test_algorithm_2_corrects_each_variance_and_leaves_out_the_variance_between_batches():
    first, second = (torch.tensor([[a], [b]], dtype=torch.float64) for a, b in ((0.0, 2.0), (10.0, 14.0)))
    found = estimators.algorithm_2([estimators.of_batch(x) for x in (first, second)])
    assert found.mean == np.array([6.5])
    # m/(m-1) * E[var_B] = 2/1 * (1 + 4)/2; all four values at once have the unbiased variance 131/3
    assert found.var == np.array([5.0])
    pooled = estimators.of_population(estimators.pooled(iter([first, second])))
    np.testing.assert_allclose(pooled.var, [131 / 3], rtol=1e-15)


@pytest.mark.parametrize("network", [MLP, CNN])
def test_the_truth_is_numpys_over_all_values_at_once(network):
    before = estimators.before_norm(build(network, 0, BN))
    some = images(230).images  # three chunks, the last one short
    some = some[:, :1, :28, :28] if network is MLP else some
    seen = torch.cat([before(chunk) for chunk in chunks(some, CHUNK)]).detach().double().numpy()
    axes = (0, *range(2, seen.ndim))
    truth = estimators.two_passes(before, some)
    # Float64 sums of at most 2.4e5 values in another order: some 500 roundings if they all pointed one way.
    np.testing.assert_allclose(truth.mean, seen.mean(axis=axes), rtol=0, atol=1e-13)
    np.testing.assert_allclose(truth.var, seen.var(axis=axes, ddof=1), rtol=1e-13)


def test_the_truth_and_what_is_gathered_leave_the_layer_alone():
    model = build(CNN, 0, BN)
    layer: Any = parts(model, "norm")[0]
    before = estimators.before_norm(model)
    estimators.two_passes(before, images(20).images)
    estimators.pooled(estimators.entering(before, images(20).images))
    assert [name for name, _ in model.named_children()][len(before)] == "norm1"
    assert torch.equal(layer.running_mean, torch.zeros(16))
    assert int(layer.num_batches_tracked) == 0


def test_all_arrays_that_an_object_keeps_are_counted():
    statistics = Statistics(np.zeros(3), np.zeros(3))
    assert estimators.bytes_kept(statistics) == 48
    assert estimators.bytes_kept([statistics, {"deep": Statistics(np.zeros(5), np.zeros(1))}]) == 96


def test_errors_are_told_in_the_units_of_the_layers_output():
    exact = Statistics(np.array([1.0, 2.0]), np.array([0.04, 9.0]))
    eps = 0.0
    found = Statistics(exact.mean + np.array([0.05, 0.3]), np.array([0.01, 9.0]))
    mean, deviation = inference.errors("pooled", found, exact, eps)
    assert mean.value == pytest.approx(
        0.25, rel=1e-12
    )  # 0.05 / 0.2 in the first channel, 0.3 / 3 in the second
    assert deviation.value == pytest.approx(0.5, rel=1e-12)  # 0.1 in place of 0.2
    root = np.sqrt((0.25**2 + 0.1**2) / 2)
    assert estimators.distance(found.mean, exact, eps) == pytest.approx(root, rel=1e-12)


def test_the_noise_at_rest_is_that_of_an_average_of_shuffled_batches():
    before = nn.Sequential(nn.Flatten())
    some = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    exact = estimators.two_passes(before, some)
    found = {r.where["a"]: r.value for r in inference.noise_at_rest(before, some, exact, 0.0, 10, 0)}
    # Independent batches of 10: sqrt((1-a)/(1+a) / 10). Drawing without putting back, 400 batches to the epoch,
    # changes that little for 0.9; 1000 steps of 8 channels, correlated over 10 steps: 800 samples of a square, 5 %,
    # taken three times. A slower average forgets more than it takes in of an epoch: less than the formula.
    assert found[0.9] == pytest.approx((0.1 / 1.9 / 10) ** 0.5, rel=0.15)
    assert 0 < found[0.999] < found[0.99] < found[0.9]


# --- the experiment ---------------------------------------------------


def test_the_pooled_statistics_are_the_truth_and_algorithm_2_has_the_mean():
    result, _ = tiny()
    # Means are float64 sums of 900 values; squares of float32 inputs are rounded to float32 by the kernels, each on
    # its own: well below one rounding of float32, and not smaller than is claimed.
    assert max(result.numbers("error of the mean", estimator="pooled")) < 1e-13
    assert max(result.numbers("error of the deviation", estimator="pooled")) < FLOAT32
    assert max(result.numbers("error of the mean", estimator="Algorithm 2")) < 1e-13
    assert min(result.numbers("error of the deviation", estimator="Algorithm 2")) > 1e-3
    assert max(result.numbers("error of the deviation", estimator="Algorithm 2")) < 0.03
    assert min(result.numbers("error of the deviation", estimator="Algorithm 2 by class")) > 0.1


def test_recalibrate_is_the_truth_and_so_are_its_predictions():
    result, _ = tiny()
    # float64 throughout: sums of 900 values, in another order
    assert max(result.numbers("error of the mean", estimator="recalibrate")) < 1e-13
    assert max(result.numbers("error of the deviation", estimator="recalibrate")) < 1e-13
    assert max(result.numbers("changed predictions", estimator="recalibrate")) == 0
    assert len(result.numbers("test accuracy", estimator="recalibrate")) == 2  # seeds


@pytest.mark.parametrize("method", ["pooled", "algorithm2"])
def test_the_estimators_of_the_sources_are_those_of_recalibrate(method):
    model, some = build(CNN, 0, BN), images(230).images
    before = estimators.before_norm(model)
    if method == "pooled":
        found = estimators.of_population(estimators.pooled(estimators.entering(before, some, 60)))
    else:
        found = estimators.algorithm_2(
            [estimators.of_batch(x) for x in estimators.entering(before, some, 60)]
        )
    (layer,) = nw.recalibrate(model, chunks(some, 60), method=method, progress=False).layers
    np.testing.assert_allclose(found.mean, layer.new_mean, rtol=1e-13)
    np.testing.assert_allclose(found.var, layer.new_var, rtol=2 * FLOAT32)  # squares, rounded to float32


def test_what_recalibrate_measures_leaves_the_network_as_it_was():
    model = build(CNN, 0, BN)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found, seconds = estimators.recalibrated(model, images(130).images, 60)
    assert seconds > 0
    assert found.mean.shape == (16,)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_algorithm_2_misses_is_the_variance_between_batches():
    result, _ = tiny()
    shuffled = result.numbers("variance between batches", estimator="Algorithm 2")
    by_class = result.numbers("variance between batches", estimator="Algorithm 2 by class")
    assert 1 / 60 < min(shuffled) <= max(shuffled) < 0.1  # by chance 1/60, in the worst of 256 channels more
    assert 0.3 < min(by_class) <= max(by_class) < 1  # a share of the variance, most of it between classes


def test_bytes_are_counted_and_grow_for_algorithm_2_alone():
    result, _ = tiny()
    one = 2 * 256 * 8  # mean and variance of 256 channels in float64
    for seed in (0, 1):
        kept = {
            (r.where["estimator"], r.where["batches"]): r.value for r in result.pick("bytes kept", seed=seed)
        }
        assert kept["pooled", 1] == kept["pooled", 15] == one
        assert kept["Algorithm 2", 1] == kept["average 0.9", 30] == kept["average 0.999", 30] == one
        assert kept["Algorithm 2", 15] == kept["Algorithm 2 by class", 15] == 15 * one
    assert min(result.numbers("seconds of gathering")) > 0


def test_the_averages_are_slower_and_steadier_the_larger_a():
    result, _ = tiny()
    for seed in (0, 1):
        last = [result.number("distance of the average", a=a, step=30, seed=seed) for a in inference.DECAYS]
        rest = [result.number("noise at rest", a=a, seed=seed) for a in inference.DECAYS]
        assert last == sorted(last)
        assert rest == sorted(rest, reverse=True)
    assert result.each("distance of the average", "step") == [1, 3, 10, 30]


def test_the_first_distance_is_that_of_the_start_moved_by_one_batch():
    result, _ = tiny()
    # After one step an average of 0.999 still stands at 0, but for a thousandth: off by the means themselves.
    slow, quick = (result.number("distance of the average", a=a, step=1, seed=0) for a in (0.999, 0.9))
    assert 0.5 < quick < slow < 2


def test_accuracies_and_changes_are_those_of_predictions():
    result, _ = tiny()
    assert set(result.values("changed predictions", estimator="exact")) == {0.0}
    assert max(result.numbers("changed predictions", estimator="pooled")) == 0
    assert min(result.numbers("test accuracy", estimator="exact")) > 0.8  # 30 steps are enough for that
    for seed in (0, 1):  # each changed prediction changes the number of right ones by one at most
        right = {
            str(r.where["estimator"]): (r.value or 0.0) * 497 for r in result.pick("test accuracy", seed=seed)
        }
        for estimator, count in right.items():
            changed = result.number("changed predictions", estimator=estimator, seed=seed)
            assert abs(count - right["exact"]) <= changed + 1e-9


def test_predictions_are_made_by_the_statistics_that_are_told():
    model = nn.Sequential(OrderedDict(norm1=nw.BatchNorm1d(2)))
    test = Split(torch.tensor([[3.0, 1.0], [1.0, 2.0], [5.0, 2.0]]), torch.tensor([0, 1, 0]))
    found = {
        "exact": Statistics(np.zeros(2), np.ones(2)),
        "mean": Statistics(np.array([2.5, 0.0]), np.ones(2)),  # 0.5 against 1, -1.5 against 2, 2.5 against 2
        "var": Statistics(np.zeros(2), np.array([1.0, 0.04])),  # the second channel five times as large
    }
    told = {(r.what, r.where["estimator"]): r.value for r in inference.predicted(model, found, test)}
    assert [told["changed predictions", name] for name in found] == [0, 1, 2]
    assert [told["test accuracy", name] for name in found] == pytest.approx([1.0, 2 / 3, 1 / 3], rel=1e-12)
    layer: Any = model[0]
    assert (layer.running_mean.tolist(), layer.running_var.tolist()) == ([0, 0], [1, 1])  # on copies


def test_statistics_gathered_while_weights_move_are_off_by_more_than_those_recomputed():
    result, _ = tiny()
    for what in ("error of the mean", "error of the deviation"):
        moving = result.numbers(what, estimator="last epoch")
        after = result.numbers(what, estimator="Algorithm 2")
        assert all(m > 2 * a for m, a in zip(moving, after, strict=True))


def test_the_last_epochs_mean_is_of_its_fifteen_batches():
    def keep(desk: Any, plan: inference.Plan) -> Any:
        trial = inference._Trial(desk, replace(plan.entries[0], budget=Budget(20, 60, 20)), 0)
        trial._train(build(MLP, 0, BN))
        kept.append(len(trial.batches))
        return iter(())

    kept: list[int] = []
    measure(replace(EXPERIMENT, measure=keep))
    assert kept == [15]


# --- one image alone --------------------------------------------------


def test_the_layer_gives_a_lone_image_exactly_what_it_gives_it_in_a_batch():
    found = {r.where["of"]: r.value for r in inference.alone(build(CNN, 0, BN), images(60).images)}
    assert found["layer"] == 0.0
    # rounding of the sums of the convolution and the linear layer, with outputs of order 1
    assert 0 <= (found["network with BN"] or 0) < 1e-5
    assert 0 <= (found["network without BN"] or 0) < 1e-5
    assert (found["layer in training mode"] or 0) > 0.01


def test_a_layer_that_depends_on_company_is_found_out():
    class MinusBatchMean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(dim=0)

    model = build(CNN, 0, BN)
    model.norm1 = MinusBatchMean()
    found = {r.where["of"]: r.value for r in inference.alone(model, images(60).images)}
    assert (found["layer"] or 0) > 0.1
    assert (found["network with BN"] or 0) > 0.01
    assert (found["network without BN"] or 0) < 1e-5


def test_measuring_company_leaves_the_network_as_it_was():
    model = build(CNN, 0, BN)
    list(inference.alone(model, images(20).images))
    layer: Any = parts(model, "norm")[0]
    assert model.training
    assert int(layer.num_batches_tracked) == 0


# --- eps --------------------------------------------------------------


def test_eps_twice_scales_y_by_the_root_of_the_ratio_and_taken_off_again_by_nothing():
    result, _ = tiny()
    eps = inference.EPS
    for record in result.pick("scale of y with eps twice"):
        var = float(record.where["var"] or 0)
        assert record.value == pytest.approx(((var + eps) / (var + 2 * eps)) ** 0.5, rel=1e-12)
        # var + eps - eps is off by 2^-53 (var + eps), which is at most 11 roundings of var; y is of order 1
        assert abs(result.number("difference after conversion", var=var)) < 1e-14
    assert round(result.number("scale of y with eps twice", var=1e-6), 2) == 0.72


def test_eps_twice_is_measured_in_the_channel_that_varies_least():
    x = torch.tensor([[1.0, 0.002, 30.0], [-1.0, -0.002, -30.0]])
    exact = Statistics(np.zeros(3), np.array([1.0, 1e-6, 900.0]))
    (record,) = inference.eps_twice(nn.Identity(), x, exact, 1e-5)
    assert record.value == pytest.approx((1.1e-5 / 2.1e-5) ** 0.5, rel=1e-6)  # y is float32
    assert (record.where["smallest variance"], record.where["eps"]) == (1e-6, 1e-5)


def test_eps_twice_hardly_shows_in_channels_that_vary_much_more_than_eps():
    result, _ = tiny()
    for record in result.pick("scale of y in a trained network"):
        assert 0.99 < (record.value or 0) < 1
        assert float(record.where["smallest variance"] or 0) > 1e-3


# --- the run ----------------------------------------------------------


def test_the_work_announced_is_the_work_done():
    _, watch = tiny()
    assert watch.work == pytest.approx(EXPERIMENT.work(TINY))
    assert watch.trials == ["MLP, seed 0", "MLP, seed 1", "eps in the recorded variance"]


def test_the_same_seed_gives_the_same_records_but_for_timings():
    def untimed(result: Result) -> list[Any]:
        return [r for r in result.records if r.what != "seconds of gathering"]

    assert untimed(measure(EXPERIMENT)[0]) == untimed(tiny()[0])


def test_every_row_is_measured_and_every_value_is_a_finite_number():
    result, _ = tiny()
    assert {record.row for record in result.records} == set(EXPERIMENT.rows)
    assert all(record.value is not None and np.isfinite(record.value) for record in result.records)


@pytest.mark.parametrize("say", [EN, ZH])
def test_the_card_is_whole(say):
    assert_told(card(tiny()[0], say))
