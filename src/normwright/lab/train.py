"""Plain stochastic gradient descent, and what a learning curve says."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from normwright.lab.data import Split, Splits

CHUNK = 100  # images in one forward pass of an evaluation; changes no result, keeps the activations in cache


@dataclass(frozen=True)
class Budget:
    """How long a run is: `steps` of `batch_size` images, the validation accuracy taken after each `every`."""

    steps: int
    batch_size: int
    every: int


@dataclass(frozen=True)
class Run:
    """One training: the network and its validation curve.

    `failed` is the step whose loss was not a finite number, where there was one; training stops there, and
    the curve goes on with the accuracy of what is left.
    """

    network: nn.Sequential
    steps: tuple[int, ...]
    accuracy: tuple[float, ...]
    failed: int | None = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread until the block ends.

    So the same seed gives the same numbers however many cores there are. Networks this small lose little by
    it, and on a machine that is busy with other things they gain.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def batches(count: int, budget: Budget, seed: int) -> Iterator[torch.Tensor]:
    """The indices of each batch: permutation after permutation of `count` images, in full batches only."""
    if count < budget.batch_size:
        raise ValueError(f"batches: expected at least {budget.batch_size} images, got {count}.")
    rng = np.random.default_rng(seed)
    left = budget.steps
    while left:
        order = torch.from_numpy(rng.permutation(count))
        for start in range(0, count - budget.batch_size + 1, budget.batch_size)[:left]:
            left -= 1
            yield order[start : start + budget.batch_size]


def accuracy(network: nn.Module, split: Split) -> float:
    """Share of the images of `split` that the network names rightly, predicting as a user would."""
    return float((predictions(network, split.images) == split.labels).double().mean())


def chunks(images: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """The images, `size` at a time."""
    return (images[start : start + size] for start in range(0, len(images), size))


def predictions(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The most probable class of each image, ``(N,)``; the network is left in the mode it was in."""
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        classes = torch.cat([network(chunk).argmax(1) for chunk in chunks(images, CHUNK)])
    network.train(was_training)
    return classes


def train(
    network: nn.Sequential,
    data: Splits,
    *,
    rate: float,
    seed: int,
    budget: Budget,
    on_step: Callable[[int], None] = lambda step: None,
) -> Run:
    """Train with plain SGD: constant `rate`, no momentum, no weight decay; one number is to be chosen.

    `seed` fixes the order of the images, and does so alike for every network. `on_step` is called with the
    number of each step when it is done, the network in training mode.
    """
    parameters = list(network.parameters())
    network.train()
    steps: list[int] = []
    curve: list[float] = []
    failed = None
    for step, batch in enumerate(batches(len(data.train), budget, seed), start=1):
        if failed is None:
            loss = nn.functional.cross_entropy(network(data.train.images[batch]), data.train.labels[batch])
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=rate)
            failed = None if bool(loss.isfinite()) else step
        if step % budget.every == 0:
            broken = failed is not None and failed <= step - budget.every
            curve.append(curve[-1] if broken and curve else accuracy(network, data.validation))
            steps.append(step)
        on_step(step)
    return Run(network, tuple(steps), tuple(curve), failed)


def steps_to(target: float, steps: Sequence[int], curve: Sequence[float]) -> int | None:
    """The first of `steps` at which `curve` is at least `target`; None where it never is.

    >>> steps_to(0.9, [10, 20, 30], [0.5, 0.9, 0.8])
    20
    """
    return next((step for step, height in zip(steps, curve, strict=True) if height >= target), None)
