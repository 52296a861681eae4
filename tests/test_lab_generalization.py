"""Generalization at tiny size: what is compared is comparable, and every number is what it says."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import normwright.torch as nw
from normwright.lab.data import Split, Splits
from normwright.lab.generalization import (
    EXPERIMENT,
    SCORE,
    WITH,
    WITHOUT,
    Look,
    Pieces,
    choose,
    crossing,
    in_pieces,
    look,
    truncated,
)
from normwright.lab.networks import BN, MLP, build
from normwright.report.cards.generalization import card
from normwright.report.records import Record
from tiny_lab import EN, ZH, assert_told, measure


@pytest.fixture(scope="module")
def done():
    return measure(EXPERIMENT)


def test_every_condition_of_the_plan_is_measured_with_every_seed(done):
    result, _ = done
    for images in (50, 100):
        for condition in (WITHOUT, WITH, in_pieces(10)):
            for what in ("training accuracy", "test accuracy", "gap in accuracy", "gap in loss"):
                assert len(result.numbers(what, images=images, condition=condition)) == 2
    assert {record.row for record in result.records} == {22}


def test_the_gaps_are_differences_of_what_is_recorded(done):
    result, _ = done
    for condition in (WITHOUT, WITH):
        train, test, gap = (
            result.numbers(what, condition=condition)
            for what in ("training accuracy", "test accuracy", "gap in accuracy")
        )
        assert gap == [a - b for a, b in zip(train, test, strict=True)]
        train, test, gap = (
            result.numbers(what, condition=condition)
            for what in ("training loss", "test loss", "gap in loss")
        )
        assert gap == [b - a for a, b in zip(train, test, strict=True)]


def test_a_few_steps_learn_something(done):
    result, _ = done
    # Guessing among ten classes names 0.1 of the images rightly; twelve steps name far more.
    assert min(result.numbers("training accuracy", condition=WITH)) > 0.5
    assert 0.3 < min(result.numbers("test accuracy", condition=WITH)) <= 1
    assert max(result.numbers("test loss", condition=WITH)) < math.log(10)


def test_the_work_announced_is_the_work_done(done):
    result, watch = done
    plan = EXPERIMENT.plans["tiny"]
    assert watch.work == pytest.approx(EXPERIMENT.work(plan))
    assert (
        len(watch.trials) == len(set(watch.trials)) == 24
    )  # 2 numbers of images, 3 conditions, 2 rates, 2 seeds
    assert result.settings["seeds"] == 2


def test_the_same_seed_measures_the_same_and_another_does_not(done):
    plan = EXPERIMENT.plans["tiny"]
    (entry,) = plan.entries
    short = replace(plan, entries=(replace(entry, images=(50,), rates=(0.1,)),))
    one, two, other = (measure(EXPERIMENT, short, seed=seed)[0].records for seed in (0, 0, 1))
    assert one == two
    assert one != other


def test_the_card_is_whole_in_both_languages(done):
    result, _ = done
    for say in (EN, ZH):
        told = card(result, say)
        assert_told(told)
        assert len(told.verdicts) == 5
        assert all(picture.name.startswith("generalization-") for picture in told.pictures)


# --- what the numbers are made of --------------------------------------


def _splits(count: int) -> Splits:
    images = torch.arange(count, dtype=torch.float32).reshape(count, 1, 1, 1) / count
    split = Split(images, torch.arange(count) % 10)
    return Splits(split, split, split)


def test_a_truncated_training_set_is_drawn_by_the_seed_and_the_rest_is_kept():
    whole = _splits(40)
    few, again, other = truncated(whole, 15, 3), truncated(whole, 15, 3), truncated(whole, 15, 4)
    assert torch.equal(few.train.images, again.train.images)
    assert not torch.equal(few.train.images, other.train.images)
    assert len(set(few.train.images.flatten().tolist())) == len(few.train) == 15
    chosen = (few.train.images.flatten() * 40).round().long()
    assert torch.equal(few.train.labels, chosen % 10)  # each image with its own label
    assert few.test is whole.test
    assert few.validation is whole.validation
    with pytest.raises(ValueError, match="at most 40 images, got 41"):
        truncated(whole, 41, 0)


def test_a_look_sees_accuracy_and_loss_as_in_prediction():
    class Sure(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training
            wrong = x.flatten() >= 0.5
            logits = torch.zeros(len(x), 10)
            logits[~wrong, 0] = 1000.0
            return logits

    zeros = torch.zeros(120, dtype=torch.long)
    train = Split(torch.zeros(120, 1, 1, 1), zeros)  # all right, without a loss; more than one chunk
    test = Split(torch.arange(120.0).reshape(-1, 1, 1, 1) / 120, zeros + 1)
    network = Sure()
    seen = look(network, Splits(train, test, test))
    assert (seen.train_accuracy, seen.train_loss, seen.test_accuracy) == (1.0, 0.0, 0.0)
    # Half the test images are named wrongly with all confidence, half in ten equal parts.
    assert seen.test_loss == pytest.approx((1000 + math.log(10)) / 2)
    assert network.training


def _look(train_loss: float, test_loss: float) -> Look:
    return Look(1.0, train_loss, 1.0, test_loss)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        pytest.param(0.1, 0.8, id="at a look"),
        pytest.param(math.sqrt(0.1), 1.4, id="half way in the logarithm"),
        pytest.param(0.01, None, id="never reached"),
        pytest.param(2.0, None, id="below it from the first look"),
    ],
)
def test_the_test_loss_at_a_training_loss_is_read_between_looks(level, expected):
    looks = [_look(1.0, 2.0), _look(0.1, 0.8), _look(0.3, 5.0), _look(0.05, 3.0)]
    assert crossing(looks, level) == (None if expected is None else pytest.approx(expected))


def test_after_a_training_that_failed_nothing_is_read():
    assert crossing([_look(1.0, 2.0), _look(math.nan, math.nan)], 0.1) is None
    assert crossing([_look(1.0, 2.0), _look(math.inf, 1.0), _look(0.01, 1.0)], 0.1) is None


def test_pieces_are_normalized_each_by_itself_and_evaluated_together():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    layer = Pieces(nw.BatchNorm1d(3), 4)
    y = layer(x)
    expected = torch.cat([nw.BatchNorm1d(3)(piece) for piece in x.split(4)])
    assert torch.equal(y, expected)
    assert not torch.allclose(y, nw.BatchNorm1d(3)(x), atol=0.01)
    layer.eval()
    assert torch.equal(layer(x), layer.norm(x))


def test_pieces_as_large_as_the_batch_are_batch_normalization():
    images = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    style = replace(BN, norm=lambda channels, dims: Pieces(nw.BatchNorm1d(channels), 20))
    assert torch.equal(build(MLP, 0, style)(images), build(MLP, 0, BN)(images))


def test_the_rate_is_chosen_by_all_seeds_among_the_best_two_of_the_first():
    scores = {0.1: (0.7, 1.0), 0.3: (0.9, 0.6), 1.0: (0.8, 0.9)}
    asked = []

    def trial(rate: float, seed: int) -> list[Record]:
        asked.append((rate, seed))
        return [Record(SCORE, scores[rate][seed], "fraction"), Record("test accuracy", 1 - rate, "fraction")]

    rate, records = choose(tuple(scores), range(2), trial, {"condition": WITH}, 22)
    assert rate == 1.0
    assert (0.1, 1) not in asked
    values = [record.value for record in records if record.what == "score of a rate"]
    assert values == [0.7, pytest.approx(0.75), pytest.approx(0.85)]
    assert records[-1].where == {"condition": WITH, "edge": "highest"}
