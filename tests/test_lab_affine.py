"""Gamma and beta: measures whose values are known, a control that is fair, the experiment at tiny size."""

import math

import pytest
import torch
from torch import nn

import normwright.torch as nw
import tiny_lab
from normwright.lab import affine
from normwright.lab import affine_measures as measures
from normwright.lab.affine import EXPERIMENT, NO_AFFINE, PLANS, STYLES, WITH, WITHOUT, OnePair, data_of
from normwright.lab.data import Split, load
from normwright.lab.experiment import Desk
from normwright.lab.networks import MLP, SIGMOID, build, parts
from normwright.lab.notebook import Notebook
from normwright.lab.train import Budget, train
from normwright.report.cards.affine import card
from tiny_lab import EN, ZH

TINY = PLANS["tiny"]


def _values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _batch(count: int = 60) -> Split:
    labels = torch.randint(10, (count,), generator=torch.Generator().manual_seed(1))
    return Split(_values(count, 1, 28, 28).abs(), labels)


@pytest.fixture(scope="module")
def measured():
    return tiny_lab.measure(EXPERIMENT)


# --- the control ------------------------------------------------------


def test_one_pair_starts_as_normalization_without_gamma_and_beta():
    x = _values(60, 7)
    assert torch.equal(OnePair(7, 0)(x), nw.BatchNorm1d(7, affine=False)(x))
    images = _values(4, 7, 5, 5)
    assert torch.equal(OnePair(7, 2)(images), nw.BatchNorm2d(7, affine=False)(images))


def test_a_step_moves_the_one_pair_by_the_mean_of_the_channels_own_steps():
    x, pull = _values(60, 7), _values(60, 7, seed=1)
    own, one = nw.BatchNorm1d(7), OnePair(7, 0)
    for layer in (own, one):
        (layer(x) * pull).sum().backward()
    # gamma = 1 + pace * moved_gamma, so a step of moved_gamma moves gamma by pace times as much.
    assert one.moved_gamma.grad * one.pace == pytest.approx(float(own.weight.grad.mean()), rel=1e-4)
    assert one.moved_beta.grad * one.pace == pytest.approx(float(own.bias.grad.mean()), rel=1e-4)


# --- measures ---------------------------------------------------------


def test_a_straight_line_explains_itself_and_none_of_a_parabola():
    x = torch.linspace(-1, 1, 101)[:, None]
    assert measures.line_fit(x, 3 * x - 2) == pytest.approx(1.0, abs=1e-6)  # float32 x
    assert measures.line_fit(x, x * x) == pytest.approx(0.0, abs=1e-6)
    both = torch.cat([x, x], dim=1), torch.cat([x, x * x], dim=1)
    assert measures.line_fit(*both) == pytest.approx(0.5, abs=1e-6)


def test_units_that_do_not_vary_have_no_line():
    x, flat = torch.linspace(-1, 1, 101)[:, None], torch.zeros(101, 1)
    assert measures.line_fit(torch.cat([x, flat], 1), torch.cat([x, flat], 1)) == pytest.approx(1.0, abs=1e-6)
    assert measures.line_fit(flat, flat) is None


@pytest.mark.parametrize(
    ("scale", "inside", "fit"),
    [
        pytest.param(0.1, 1.0, 0.9999, id="small inputs: a line"),
        pytest.param(1.0, 0.683, 0.984, id="normal inputs: the values of the normal distribution"),
        pytest.param(100.0, 0.008, 2 / math.pi, id="large inputs: a step, of which a line explains 2/pi"),
    ],
)
def test_the_linear_part_is_measured_where_the_sigmoid_is_used(scale, inside, fit):
    x = scale * _values(20000, 1)
    model = nn.Sequential()
    model.add_module("act3", nn.Sigmoid())
    records = {r.what: r for r in measures.straightness(model, x)}
    assert {r.where["layer"] for r in records.values()} == {3}
    # 20000 draws: a share is known to 0.004, R^2 to about as much.
    assert records["inputs in the linear part"].value == pytest.approx(inside, abs=0.01)
    assert records["fit of a straight line"].value == pytest.approx(fit, abs=0.01)


def test_the_bias_before_bn_gets_no_gradient_and_without_bn_it_does():
    batch = _batch()
    # Sixty numbers, each right to a few 2^-24, cancel; see the card for the worst case of 7e-6.
    assert 0 < measures.bias_left(build(MLP, 0, STYLES[WITH]), batch) < 1e-6
    assert measures.bias_left(build(MLP, 0, STYLES[WITHOUT]), batch) > 0.01


def test_a_bias_drawn_anew_moves_no_logit():
    model = build(MLP, 0, STYLES[WITH])
    assert 0 < measures.moved_by_bias(model, _batch().images, seed=0) < 1e-5  # rounding next to a bias of 3


def test_a_bias_after_which_nothing_is_normalized_moves_the_logits():
    model = build(MLP, 0, STYLES[WITH])
    model.norm1 = nn.Identity()
    assert measures.moved_by_bias(model, _batch().images, seed=0) > 0.1


@pytest.mark.parametrize(
    "look",
    [
        pytest.param(lambda model, batch: measures.bias_left(model, batch), id="bias_left"),
        pytest.param(lambda model, batch: measures.moved_by_bias(model, batch.images, 0), id="moved_by_bias"),
        pytest.param(lambda model, batch: list(measures.recovered(model, batch.images)), id="recovered"),
    ],
)
def test_looking_changes_nothing(look):
    model = build(MLP, 0, STYLES[WITH])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    look(model, _batch())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_input_is_recovered_from_the_output_unless_a_gamma_is_zero():
    model = build(MLP, 0, STYLES[WITH])
    with torch.no_grad():
        model.norm1.weight.fill_(0.5)
        model.norm1.weight[3] = -0.25
        model.norm1.bias.fill_(2.0)
    error, gamma = measures.recovered(model, _batch().images)
    assert 0 < error.value < 1e-4  # float32's 6e-8, times means of some deviations, over a gamma of 1/4
    assert gamma.value == 0.25
    with torch.no_grad():
        model.norm1.weight[3] = 0.0
    error, gamma = measures.recovered(model, _batch().images)
    assert (error.value, gamma.value) == (None, 0.0)


def test_the_channels_own_share_is_none_where_all_move_together_and_all_where_they_part():
    model = build(MLP, 0, STYLES[WITH])
    with torch.no_grad():
        model.norm1.weight.fill_(1.5)
        model.norm1.bias[::2], model.norm1.bias[1::2] = 0.1, -0.1
    found = {(r.what, r.where["of"]): r.value for r in measures.spread_of(model)}
    assert found["mean over channels", "gamma"] == 1.5
    assert found["deviation across channels", "gamma"] == 0.0
    assert found["share of the channels' own", "gamma"] == 0.0
    assert found["deviation across channels", "beta"] == pytest.approx(0.1)
    assert found["share of the channels' own", "beta"] == pytest.approx(1.0)


def test_a_linear_map_knows_what_is_linear_and_not_the_exclusive_or():
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])[:, None, None, :]
    assert measures.linear_map(Split(corners, torch.tensor([0, 0, 0, 1]))) == 1.0
    assert measures.linear_map(Split(corners, torch.tensor([0, 1, 1, 0]))) <= 0.75


def test_the_trace_is_of_the_last_normalization():
    model = build(SIGMOID, 0, STYLES[WITH])
    with torch.no_grad():
        model.norm3.weight.fill_(4.0)
    assert {r.value for r in measures.Trace(model).records if r.what == "gamma"} == {4.0}


def test_the_trace_keeps_quantiles_and_channels_as_they_were():
    model = build(MLP, 0, STYLES[WITH])
    trace = measures.Trace(model)
    with torch.no_grad():
        model.norm1.weight.copy_(torch.linspace(0, 2, 256))
    trace.note(5)
    first = [r.value for r in trace.records if r.what == "gamma" and r.where["step"] == 0]
    later = {
        (r.where.get("quantile"), r.where.get("channel")): r.value
        for r in trace.records
        if r.what == "gamma" and r.where["step"] == 5
    }
    assert first == [1.0] * 6
    assert [later[q, None] for q in (0.1, 0.5, 0.9)] == pytest.approx([0.2, 1.0, 1.8], abs=1e-6)
    assert later[None, 1] == pytest.approx(2 / 255, abs=1e-6)


# --- the experiment ---------------------------------------------------


def test_random_labels_are_the_true_ones_in_another_order_and_another_for_each_seed():
    desk = Desk(load("digits"), 0, Notebook(tiny_lab.Counted()))
    entry = TINY.entries[0]
    true, drawn, other = desk.data(SIGMOID), data_of(desk, entry, 0), data_of(desk, entry, 1)
    assert drawn.train is drawn.validation is drawn.test
    assert torch.equal(drawn.train.images, true.train.images[:120])
    assert torch.equal(drawn.train.labels.bincount(), true.train.labels[:120].bincount())
    # Chance leaves a tenth of them right; a third would be no accident.
    assert float((drawn.train.labels == true.train.labels[:120]).double().mean()) < 0.33
    assert not torch.equal(drawn.train.labels, other.train.labels)
    assert data_of(desk, TINY.entries[1], 0) is true


def test_work_announced_is_work_done(measured):
    _, watch = measured
    assert watch.work == pytest.approx(EXPERIMENT.work(TINY))
    assert len(watch.trials) == len(set(watch.trials)) == 4 * 2 + 2 * 2 + 6 * 4


def test_the_best_of_the_tried_rates_is_chosen(measured):
    result, _ = measured
    for condition in result.each("score of a rate", "condition", network="MLP"):
        tried = {r.where["rate"]: r.value for r in result.pick("score of a rate", condition=condition)}
        assert tried.keys() == {0.3, 1.0}
        chosen = result.number("chosen rate", condition=condition, network="MLP")
        assert tried[chosen] == max(tried.values())


def test_records_are_what_they_are_called(measured):
    result, _ = measured
    assert set(result.each("train accuracy", "condition", labels="random")) == set(affine.FOUR)
    assert result.values("test accuracy", labels="random") == []
    assert len(result.values("test accuracy", labels="true")) == 2 * 2 + 6 * 2
    for what in ("train accuracy", "test accuracy", "inputs in the linear part", "fit of a straight line"):
        assert all(0 <= value <= 1 for value in result.numbers(what))
    assert max(result.numbers("bias gradient left", condition=WITH)) < 1e-6
    assert min(result.numbers("bias gradient left", condition=WITHOUT)) > 0.01


def test_training_without_the_bias_is_the_same_training():
    data = load("digits").splits(0, size=28, channels=1)
    trained = {}
    for condition in (WITH, affine.NO_BIAS):
        model = build(MLP, 0, STYLES[condition])
        train(model, data, rate=0.3, seed=0, budget=Budget(steps=8, batch_size=60, every=8))
        trained[condition] = model
    assert trained[affine.NO_BIAS].map1.bias is None
    first = build(MLP, 0, STYLES[WITH]).out.weight.detach()
    moved = trained[WITH].out.weight.detach() - first
    apart = trained[WITH].out.weight.detach() - trained[affine.NO_BIAS].out.weight.detach()
    # Rounding, 6e-8 of each number, through eight steps; a bias that mattered would show at the size of a step.
    assert float(moved.abs().max()) > 0.01
    assert float(apart.abs().max()) < 1e-4 * float(moved.abs().max())


def test_sigmoids_are_looked_at_in_each_layer_and_relus_in_none(measured):
    result, _ = measured
    assert result.each("fit of a straight line", "layer", condition=NO_AFFINE) == [1, 2, 3]
    assert result.pick("fit of a straight line", network="MLP") == []


def test_the_same_seed_gives_the_same_records(measured):
    assert tiny_lab.measure(EXPERIMENT)[0].records == measured[0].records


@pytest.mark.parametrize("size", ["full", "demo", "tiny"])
def test_rates_rise_and_what_is_compared_is_there(size):
    entries = PLANS[size].entries
    assert all(list(entry.rates) == sorted(set(entry.rates)) for entry in entries)
    random = {c for entry in entries if entry.labels == "random" for c in entry.conditions}
    looked = {c for entry in entries if entry.look for c in entry.conditions}
    assert {NO_AFFINE, WITH} <= random
    assert {WITHOUT, NO_AFFINE, WITH, affine.NO_BIAS, affine.AFTER} <= looked


def test_a_network_that_leaves_the_finite_numbers_is_told_as_none():
    model = build(MLP, 0, STYLES[WITH])
    with torch.no_grad():
        parts(model, "map")[0].weight.fill_(float("nan"))
    found = {r.what: r.value for r in measures.outcome_of(model, _batch(), None)}
    assert found["train loss"] is None
    assert measures.bias_left(model, _batch()) is None


def test_the_card_is_whole(measured):
    result, _ = measured
    for say in (EN, ZH):
        tiny_lab.assert_told(card(result, say))
