"""Gradients, saturation and the scale of the first weights, at tiny size: laws, sane ranges, the same again."""

import math

import pytest
import torch
from torch import nn

from normwright.lab import gradients
from normwright.lab.data import Split
from normwright.lab.gradients import EXPERIMENT, Chain
from normwright.lab.networks import BN, PLAIN, build, parts
from normwright.report.cards.gradients import card
from tiny_lab import EN, ZH, assert_told, measure

PLAN = EXPERIMENT.plans["tiny"]
WITHOUT, WITH = "without BN", "BN"
BEFORE = "before training"


@pytest.fixture(scope="module")
def done():
    return measure(EXPERIMENT)


@pytest.fixture(scope="module")
def result(done):
    return done[0]


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(5)
    images = torch.rand(40, 1, 8, 8, generator=draw)
    return Split(images, torch.randint(10, (40,), generator=draw))


def step(result, activation, condition, scale, layer):
    where = {"activation": activation, "condition": condition, "scale": scale, "when": BEFORE}
    return result.numbers("step over weights", layer=layer, **where)


# --- the chain ----------------------------------------------------------


@pytest.mark.parametrize(("factor", "depth"), [(0.9, 8), (1.1, 12)])
def test_a_chain_without_bn_multiplies_the_gradient_by_its_factor_in_every_layer(result, factor, depth):
    where = {"activation": "linear", "factor": factor, "depth": depth, "condition": WITHOUT}
    back, rows = result.curves("gradient in the chain", "back", **where)
    assert back[0] == 0
    assert back[-1] == depth
    assert len(rows) == PLAN.seeds
    for row in rows:
        # Orthogonal matrices keep lengths up to single precision, about 1e-6 for a dozen of them.
        assert row == pytest.approx([factor**layers for layers in back], rel=1e-5)


def test_a_chain_with_bn_does_not_know_its_factor(batch):
    """BN(aWu) = BN(Wu) for the signal forward, and for the gradient at its input."""
    norms = {}
    for factor in (0.9, 1.1):
        network = gradients.stack(10, 64, "linear", gradients.orthogonal(factor))
        norms[factor] = gradients.by_depth(build(network, 3, BN), batch)[1]
    # eps (1e-5) against the smallest variance of a feature (about 0.05): a few parts in ten thousand a layer
    assert norms[0.9] == pytest.approx(norms[1.1], rel=0.01)
    assert norms[0.9][0] > 0


def test_the_gradient_of_the_full_chains_is_kept_with_bn(result):
    for factor, depth in ((0.9, 8), (1.1, 12)):
        where = {"activation": "linear", "factor": factor, "back": depth, "condition": WITH}
        assert all(0.3 < ratio < 3 for ratio in result.numbers("gradient in the chain", **where))


def test_a_chain_that_is_not_drawn_records_what_arrives_alone(result):
    records = result.pick("gradient in the chain", activation="tanh")
    assert [r.where["back"] for r in records] == [8] * len(records)
    # tanh's slope is at most 1: less arrives than through the linear chain
    assert max(r.value for r in records if r.where["condition"] == WITHOUT) < 0.9**8


def test_the_full_plan_holds_the_chains_that_the_sources_compute():
    linear = {(c.factor, c.depth) for c in EXPERIMENT.plans["full"].chains if c.activation == "linear"}
    assert {(0.9, 30), (1.1, 100)} <= linear
    assert pytest.approx((0.042, 13781), rel=0.01) == (0.9**30, 1.1**100)


# --- the deep network ---------------------------------------------------


def test_the_deep_network_grows_its_gradient_with_bn_as_the_theory_says():
    plan = gradients.Plan(
        **{**vars(PLAN), "depths": (20,), "width": 100, "images": 200, "chains": (), "seeds": 1}
    )
    plan = gradients.Plan(**{**vars(plan), "activations": (), "trained": (), "tuning": 0})
    found, _ = measure(EXPERIMENT, plan)
    theory = math.sqrt(math.pi / (math.pi - 1))
    # 100 units and 200 images are not the limit of the theory: a few hundredths
    assert found.number("growth per layer", condition=WITH) == pytest.approx(theory, abs=0.04)
    assert found.number("growth per layer", condition="He") == pytest.approx(1.0, abs=0.05)
    # torch's own first weights have a variance of 1/(3 n), of which ReLU keeps half: sqrt(1/6) = 0.408 a layer
    assert found.number("growth per layer", condition="default") == pytest.approx(math.sqrt(1 / 6), abs=0.04)
    scales = {
        c: [found.number("scale of activations", condition=c, layer=layer) for layer in (1, 20)]
        for c in (WITH, "default")
    }
    # ReLU of a standard normal varies by sqrt(1/2 - 1/(2 pi)) = 0.58, whatever the layer
    assert scales[WITH] == pytest.approx([0.584, 0.584], abs=0.06)
    assert scales["default"][1] < 1e-5 * scales["default"][0]


def test_the_growth_per_layer_is_the_slope_of_the_recorded_gradient(result):
    for seed in range(PLAN.seeds):
        where = {"condition": WITH, "depth": 8, "seed": seed}
        whole = result.number("gradient in the deep network", back=7, **where)
        assert result.number("growth per layer", **where) == pytest.approx(whole ** (1 / 7))
    assert result.numbers("gradient in the deep network", back=0) == [1.0] * 3 * PLAN.seeds


# --- the stack ------------------------------------------------------------


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "ReLU"])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_with_bn_weights_three_times_as_large_take_a_ninth_of_the_relative_step(result, activation, layer):
    """The gradient to aW is 1/a of that to W, and aW is a times as long."""
    steps = {scale: step(result, activation, WITH, scale, layer) for scale in (0.3, 1.0, 3.0)}
    for small, middle, large in zip(*steps.values(), strict=True):
        # eps is less than 1 % of the variance of the weakest signal, at scale 0.3
        assert middle / large == pytest.approx(9, rel=0.02)
        assert small / middle == pytest.approx((1 / 0.3) ** 2, rel=0.02)


def test_without_bn_the_relative_step_follows_no_such_law(result):
    for small, large in zip(
        step(result, "sigmoid", WITHOUT, 1.0, 2), step(result, "sigmoid", WITHOUT, 3.0, 2), strict=True
    ):
        assert small / large < 3


def test_a_step_is_the_gradient_over_the_weights(batch):
    model = build(gradients.stack(2, 5, "tanh"), 0)
    records = list(gradients.within(model, batch, "tanh", {}))
    loss = nn.functional.cross_entropy(model(batch.images), batch.labels)
    loss.backward()
    expected = [
        float(layer.weight.grad.norm() / layer.weight.detach().norm()) for layer in parts(model, "map")
    ]
    found = [r.value for r in records if r.what == "step over weights"]
    assert found == pytest.approx(expected, rel=1e-5)
    assert all(value > 0 for value in found)


@pytest.mark.parametrize(("activation", "edge"), [("tanh", 1.8184), ("sigmoid", 3.6369)])
def test_saturated_is_where_the_slope_is_below_a_tenth_of_the_steepest(activation, edge):
    x = torch.tensor([0.0, edge - 1e-3, edge + 1e-3, -edge + 1e-3, -edge - 1e-3], dtype=torch.float64)
    y = gradients.ACTIVATIONS[activation]()(x)
    slopes = gradients.SLOPE[activation](y)
    assert float(slopes[0]) == 1.0
    assert (slopes < gradients.SATURATED).tolist() == [False, False, True, False, True]


def test_a_large_scale_saturates_tanh_without_bn_and_leaves_it_as_it_is_with_it(batch):
    share = {}
    for name, style in ((WITHOUT, PLAIN), (WITH, BN)):
        for scale in (1.0, 30.0):
            model = gradients.scaled(build(gradients.stack(3, 100, "tanh"), 0, style), (scale,) * 3)
            share[name, scale] = next(iter(gradients.within(model, batch, "tanh", {}))).value
    assert share[WITHOUT, 1.0] < 0.01
    assert share[WITHOUT, 30.0] > 0.5
    # a standard normal is beyond 1.82 with probability 0.069; 40 images of noise are nearly that
    assert share[WITH, 1.0] == pytest.approx(0.069, abs=0.02)
    assert share[WITH, 30.0] == pytest.approx(share[WITH, 1.0], abs=0.002)


def test_the_scale_multiplies_every_hidden_layer_and_not_the_last():
    before, after = (build(gradients.stack(3, 7, "tanh"), 1) for _ in range(2))
    gradients.scaled(after, (0.1, 1.0, 10.0))
    for name, old in before.named_parameters():
        factor = {"map1": 0.1, "map2": 1.0, "map3": 10.0, "out": 1.0}[name.split(".")[0]]
        assert torch.equal(after.get_parameter(name), factor * old)


def test_a_broken_network_has_no_share_and_no_step(batch):
    model = gradients.scaled(build(gradients.stack(3, 7, "tanh"), 1), (math.nan,) * 3)
    assert [r.value for r in gradients.within(model, batch, "tanh", {})] == [None] * 4


# --- the whole --------------------------------------------------------------


def test_the_rate_is_the_best_at_scale_one_and_every_scale_is_trained_with_it(result):
    for condition in (WITHOUT, WITH):
        (chosen,) = result.numbers("chosen rate", activation="tanh", condition=condition)
        scores = {r.where["rate"]: r.value for r in result.pick("score of a rate", condition=condition)}
        assert set(scores) == set(PLAN.trained[0].rates)
        assert scores[chosen] == max(scores.values())
        found = result.pick("late validation accuracy", condition=condition)
        assert {r.where["rate"] for r in found} == {chosen}
        assert len(found) == PLAN.seeds * (len(PLAN.scales) + len(PLAN.mixed))
        assert all(0 <= r.value <= 1 for r in found)


def test_the_watch_hears_of_all_the_work(done):
    assert done[1].work == pytest.approx(EXPERIMENT.work(PLAN))
    tuned = len(PLAN.trained[0].rates) * 2
    trained = 2 * PLAN.seeds * (len(PLAN.scales) + len(PLAN.mixed))
    begun = 2 * PLAN.seeds * len(PLAN.activations) * (len(PLAN.scales) + len(PLAN.mixed))
    again = 2 * PLAN.tuning  # scale 1 at the chosen rate was trained while tuning
    probed = PLAN.seeds * (2 * len(PLAN.chains) + 3 * len(PLAN.depths))
    assert len(done[1].trials) == tuned + trained + begun + probed - again
    assert len(set(done[1].trials)) == len(done[1].trials)


def test_the_same_seed_measures_the_same(result):
    assert measure(EXPERIMENT)[0].records == result.records


def test_another_seed_measures_something_else():
    plan = gradients.Plan(**{**vars(PLAN), "chains": (Chain(0.9, 8),), "trained": (), "seeds": 1})
    first, second = (measure(EXPERIMENT, plan, seed=seed)[0] for seed in (0, 1))
    assert first.numbers("growth per layer") != second.numbers("growth per layer")


@pytest.mark.parametrize("say", [EN, ZH])
def test_the_card_is_whole(result, say):
    told = card(result, say)
    assert_told(told)
    assert len(told.verdicts) == 8
    assert [picture.name for picture in told.pictures] == [
        "gradients-chain",
        "gradients-accuracy",
        "gradients-saturation",
        "gradients-deep",
    ]
