"""The relatives at tiny size: the same network for all, and clocks that compare what they say."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import normwright.torch as nw
from normwright.lab import relatives
from normwright.lab.networks import PLAIN, build, parts
from normwright.lab.relatives import EXPERIMENT, NONE, SHORT_CNN, STYLES, WITH, LocalResponse
from normwright.lab.whitening import ZCA
from normwright.report.cards.relatives import card
from tiny_lab import EN, ZH, assert_told, measure


@pytest.fixture(scope="module")
def done():
    return measure(EXPERIMENT)


def test_every_variant_is_measured_with_every_seed(done):
    result, _ = done
    assert result.each("test accuracy", "variant") == list(STYLES)
    for variant in STYLES:
        assert len(result.numbers("test accuracy", variant=variant)) == 2
        assert (
            len(result.numbers("validation accuracy", variant=variant)) == 2 * 2
        )  # 2 seeds, looked at twice
        assert all(0 <= value <= 1 for value in result.numbers("validation accuracy", variant=variant))
    assert {record.row for record in result.records} == {17}


def test_the_goal_is_the_median_of_the_best_without_normalization(done):
    result, _ = done
    best = [max(result.numbers("validation accuracy", variant=NONE, seed=seed)) for seed in (0, 1)]
    goal = result.number("goal")
    assert goal == sum(best) / 2
    for variant in STYLES:
        for seed in (0, 1):
            where = {"variant": variant, "seed": seed}
            curve = result.pick("validation accuracy", **where)
            there = [record.where["step"] for record in curve if record.value >= goal]
            assert result.values("steps to the goal", **where) == [min(there, default=None)]


def test_the_work_announced_is_the_work_done(done):
    _, watch = done
    assert watch.work == pytest.approx(EXPERIMENT.work(EXPERIMENT.plans["tiny"]))
    assert len(watch.trials) == len(set(watch.trials)) == 7 * 2 * 2 + 1  # variants, rates, seeds; the clocks


def test_costs_are_ratios_to_the_base_of_their_round(done):
    result, _ = done
    for what, base, places in (
        ("cost of a step", NONE, [{}]),
        ("cost of a layer", WITH, [{"channels": 4}, {"channels": 8}]),
    ):
        for place in places:
            for number in (0, 1):
                where = {**place, "round": number}
                unit = result.number(f"{what}, seconds", variant=base, **where)
                assert unit > 0
                assert result.number(what, variant=base, **where) == 1.0
                for variant in result.each(what, "variant", **where):
                    seconds = result.number(f"{what}, seconds", variant=variant, **where)
                    assert result.number(what, variant=variant, **where) == pytest.approx(seconds / unit)


def test_a_step_that_takes_three_times_as_long_costs_three(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(relatives, "CLOCK", lambda: now[0])

    def taking(seconds):
        def step():
            now[0] += seconds

        return step

    plan = EXPERIMENT.plans["tiny"]
    records = list(relatives._ratios("cost", {NONE: taking(2.0), WITH: taking(6.0)}, NONE, plan))
    assert [r.value for r in records if r.what == "cost" and r.where["variant"] == WITH] == [3.0, 3.0]
    assert [r.value for r in records if r.what == "cost, seconds"] == [2.0, 6.0, 2.0, 6.0]


def test_the_same_seed_measures_the_same_but_for_the_time():
    plan = replace(EXPERIMENT.plans["tiny"], variants=(NONE, "whitening"), rates=(0.1,), channels=(4,))
    runs = [measure(EXPERIMENT, plan, seed=seed)[0].records for seed in (0, 0, 1)]
    untimed = [[r for r in records if not r.what.startswith("cost")] for records in runs]
    assert untimed[0] == untimed[1]
    assert untimed[0] != untimed[2]
    assert [(r.what, r.where) for r in runs[0]] == [(r.what, r.where) for r in runs[1]]


def test_the_card_is_whole_in_both_languages(done):
    result, _ = done
    for say in (EN, ZH):
        told = card(result, say)
        assert_told(told)
        assert len(told.verdicts) == 4
        assert all(picture.name.startswith("relatives-") for picture in told.pictures)


# --- the variants -----------------------------------------------------


def _weights(variant):
    """Of the hidden maps and the last one, whatever stands between them."""
    network = build(SHORT_CNN, 3, STYLES[variant])
    return [layer.weight for layer in [*parts(network, "map"), network.out]]


@pytest.mark.parametrize("variant", list(STYLES))
def test_every_variant_begins_with_the_same_weights(variant):
    for own, plain in zip(_weights(variant), _weights(NONE), strict=True):
        # Weight normalization puts the weight together from direction and length: it is the same up to rounding.
        torch.testing.assert_close(own, plain, rtol=1e-6 if variant == "weight norm" else 0, atol=0)


def test_each_relative_stands_where_batch_normalization_stands():
    kinds = {
        WITH: nw.BatchNorm2d,
        "whitening": ZCA,
        "layer norm": nn.GroupNorm,
        "group norm": nn.GroupNorm,
        "local response": LocalResponse,
    }
    for variant, kind in kinds.items():
        network = build(SHORT_CNN, 0, STYLES[variant])
        assert [type(layer) for layer in parts(network, "norm")] == [kind, kind]
        names = [name for name, _ in network.named_children()]
        assert names.index("norm1") == names.index("map1") + 1 == names.index("act1") - 1
    assert [n.num_groups for n in parts(build(SHORT_CNN, 0, STYLES["layer norm"]), "norm")] == [1, 1]
    assert [n.num_groups for n in parts(build(SHORT_CNN, 0, STYLES["group norm"]), "norm")] == [2, 4]


def test_weight_normalization_learns_direction_and_length():
    network = build(SHORT_CNN, 0, STYLES["weight norm"])
    names = [name for name, _ in network.map1.named_parameters()]
    assert names == ["bias", "parametrizations.weight.original0", "parametrizations.weight.original1"]
    assert parts(network, "norm") == []
    assert [name for name, _ in build(SHORT_CNN, 0, PLAIN).map1.named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("channels", [3, 8, 16])
def test_local_response_is_torchs_own(channels):
    x = torch.randn(4, channels, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = nn.LocalResponseNorm(5, alpha=1.0, beta=0.75, k=1.0)(x)
    torch.testing.assert_close(LocalResponse(channels).double()(x), expected, rtol=1e-6, atol=0)
    assert not torch.allclose(expected, x, atol=0.1)
