"""Training and what is read from its curve."""

import pytest
import torch
from torch import nn

from normwright.lab.data import Split, Splits
from normwright.lab.train import Budget, accuracy, batches, one_thread, steps_to, train

STEPS = (10, 20, 30, 40)


def test_the_first_step_at_the_target_counts_and_not_the_best_one():
    assert steps_to(0.8, STEPS, (0.5, 0.8, 0.7, 0.9)) == 20


def test_touching_the_target_is_reaching_it():
    assert steps_to(0.9, STEPS, (0.5, 0.8, 0.7, 0.9)) == 40


def test_a_curve_that_never_reaches_the_target_has_no_step():
    assert steps_to(0.91, STEPS, (0.5, 0.8, 0.7, 0.9)) is None


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


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="expected at least 3 images, got 2"):
        next(batches(2, Budget(1, 3, 1), seed=0))


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
    assert run.seconds > 0


def test_accuracy_leaves_the_mode_of_the_network_as_it_was():
    network, data = _one_feature()
    network.train()
    assert accuracy(network, data.test) == 0.5  # equal scores: the first class everywhere
    assert network.training


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
