"""Training and what is read from its curve."""

import math

import pytest
import torch
from torch import nn

from normwright.lab.data import Split, Splits
from normwright.lab.train import (
    CHUNK,
    Budget,
    accuracy,
    batches,
    chunks,
    one_thread,
    predictions,
    steps_to,
    train,
)

STEPS = (10, 20, 30, 40)


# --- the curve --------------------------------------------------------


def test_the_first_step_at_the_target_counts_and_not_the_best_one():
    assert steps_to(0.8, STEPS, (0.5, 0.8, 0.7, 0.9)) == 20


def test_touching_the_target_is_reaching_it():
    assert steps_to(0.9, STEPS, (0.5, 0.8, 0.7, 0.9)) == 40


def test_a_curve_that_never_reaches_the_target_has_no_step():
    assert steps_to(0.91, STEPS, (0.5, 0.8, 0.7, 0.9)) is None


# --- batches ----------------------------------------------------------


def test_every_pass_sees_each_image_once_and_in_another_order():
    budget = Budget(steps=4, batch_size=3, every=1)
    drawn = [batch.tolist() for batch in batches(6, budget, seed=0)]
    assert [len(batch) for batch in drawn] == [3, 3, 3, 3]
    assert sorted(drawn[0] + drawn[1]) == list(range(6))
    assert sorted(drawn[2] + drawn[3]) == list(range(6))
    assert drawn[:2] != drawn[2:]


def test_a_batch_is_never_short():
    # 7 images make two full batches of 3; the seventh waits for the next permutation.
    assert [len(batch) for batch in batches(7, Budget(5, 3, 1), seed=0)] == [3] * 5


def test_the_seed_fixes_the_order_and_another_seed_another_one():
    def order(seed: int) -> list[list[int]]:
        return [batch.tolist() for batch in batches(30, Budget(3, 10, 1), seed)]

    assert order(4) == order(4)
    assert order(4) != order(5)


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="expected at least 3 images, got 2"):
        next(batches(2, Budget(1, 3, 1), seed=0))


# --- one step, and many -----------------------------------------------


def _one_feature() -> tuple[nn.Sequential, Splits]:
    """A network of one weight per class, on images whose one pixel says the class."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    nn.init.zeros_(network[1].weight)
    split = Split(torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(4, 1, 1, 1), torch.tensor([0, 1, 0, 1]))
    return network, Splits(split, split, split)


def test_one_step_of_training_is_one_step_of_gradient_descent():
    network, data = _one_feature()
    run = train(network, data, rate=0.5, seed=0, budget=Budget(steps=1, batch_size=4, every=1))
    # At zero weights both classes have probability 1/2: the gradient of the mean loss is -1/2 and +1/2.
    assert network[1].weight.flatten().tolist() == pytest.approx([0.25, -0.25])
    assert run.steps == (1,)
    assert run.accuracy == (1.0,)
    assert run.failed is None


def test_the_curve_is_the_accuracy_on_the_validation_images_after_each_so_many_steps():
    network, data = _one_feature()
    wrong = Split(data.test.images, 1 - data.test.labels)
    budget = Budget(steps=5, batch_size=2, every=2)
    run = train(network, Splits(data.train, wrong, data.test), rate=1.0, seed=0, budget=budget)
    assert run.steps == (2, 4)
    assert run.accuracy == (0.0, 0.0)
    assert accuracy(run.network, data.test) == 1.0


def test_who_looks_on_hears_of_every_step_once_it_is_done():
    network, data = _one_feature()
    heard, weights = [], []

    def on_step(step: int) -> None:
        heard.append(step)
        weights.append(network[1].weight[0].item())
        assert network.training

    network.eval()
    train(network, data, rate=0.5, seed=0, budget=Budget(steps=4, batch_size=2, every=3), on_step=on_step)
    assert heard == [1, 2, 3, 4]
    assert 0 < weights[0] < weights[1] < weights[2] < weights[3]


class _Breaks(nn.Module):
    """Finite until the step `at` of training, and then not; counts how often it is trained and asked."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.at = at
        self.trained = self.asked = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.trained += 1
        else:
            self.asked += 1
        scores = torch.cat([x.flatten(1), -x.flatten(1)], dim=1) * self.weight
        return scores * (math.inf if self.training and self.trained == self.at else 1)


def test_a_run_whose_loss_is_not_finite_stops_and_says_where():
    _, data = _one_feature()
    layer, heard = _Breaks(at=3), []
    budget = Budget(steps=8, batch_size=2, every=2)
    run = train(nn.Sequential(layer), data, rate=0.1, seed=0, budget=budget, on_step=heard.append)
    assert run.failed == 3
    assert layer.trained == 3
    assert heard == list(range(1, 9))  # whoever counts steps counts them all


def test_the_curve_of_a_broken_run_goes_on_with_what_is_left():
    _, data = _one_feature()
    layer = _Breaks(at=3)
    run = train(nn.Sequential(layer), data, rate=0.1, seed=0, budget=Budget(steps=8, batch_size=2, every=2))
    assert run.steps == (2, 4, 6, 8)
    # Every image right at step 2; then the weight is nan, all scores with it, and the first class is the answer.
    assert run.accuracy == (1.0, 0.5, 0.5, 0.5)
    assert layer.asked == 2  # what cannot change any more is not measured again


def test_a_run_that_breaks_at_its_first_step_still_has_a_curve():
    _, data = _one_feature()
    budget = Budget(steps=2, batch_size=2, every=1)
    run = train(nn.Sequential(_Breaks(at=1)), data, rate=0.1, seed=0, budget=budget)
    assert (run.failed, run.accuracy) == (1, (0.5, 0.5))


def test_a_rate_far_too_large_breaks_a_run():
    network, data = _one_feature()
    bright = Split(10 * data.train.images, data.train.labels)
    budget = Budget(steps=3, batch_size=2, every=1)
    run = train(network, Splits(bright, bright, bright), rate=1e38, seed=0, budget=budget)
    assert run.failed == 2  # the first loss was that of zero weights; then they are 5e38, above every float


# --- asking a network -------------------------------------------------


def test_accuracy_leaves_the_mode_of_the_network_as_it_was():
    network, data = _one_feature()
    network.train()
    assert accuracy(network, data.test) == 0.5  # equal scores: the first class everywhere
    assert network.training
    accuracy(network.eval(), data.test)
    assert not network.training


def test_predictions_are_those_of_a_user_in_evaluation_mode():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2))
    network[1].running_mean.copy_(torch.tensor([5.0, 0.0]))
    images = torch.tensor([[6.0, 0.0], [7.0, 0.0]]).reshape(2, 2, 1, 1)
    # Both are above the running mean; by the batch's own mean the first would be below it.
    assert predictions(network, images).tolist() == [0, 0]
    assert network[1].num_batches_tracked == 0


def test_many_images_are_predicted_in_pieces_and_none_is_lost():
    images = torch.randn(2 * CHUNK + 30, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    network, _ = _one_feature()
    nn.init.constant_(network[1].weight[1], 1.0)
    assert [len(chunk) for chunk in chunks(images, CHUNK)] == [CHUNK, CHUNK, 30]
    assert torch.equal(predictions(network, images), (images.flatten() > 0).long())


def test_the_number_of_threads_comes_back_even_after_an_error():
    before = torch.get_num_threads()
    inside = []

    def fail():
        with one_thread():
            inside.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [1]
    assert torch.get_num_threads() == before
