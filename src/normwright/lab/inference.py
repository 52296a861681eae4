"""Prediction with a trained network: from which statistics, and whether a batch's company matters."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from normwright.lab.data import Split, Splits
from normwright.lab.networks import norm_layer
from normwright.lab.train import CHUNK, accuracy, chunks, predictions
from normwright.numpy import Population
from normwright.report.records import Record, Scalar

COMPANY = 60  # images in the batch that an image is taken out of: as many as in training


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect what enters `layer` in each forward pass, until the block ends."""
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        hook.remove()


def population(network: nn.Sequential, split: Split) -> Population:
    """Exact statistics of what enters the normalization layer, over all of `split` in one pass.

    Exact because the weights rest and nothing before this layer depends on the batch; in constant memory,
    since the moments of each chunk are merged and the chunk is dropped.
    """
    total = Population(axis=1)
    network.eval()
    with torch.inference_mode(), inputs_of(norm_layer(network)) as seen:
        for chunk in chunks(split.images, CHUNK):
            network(chunk)
            total.add(seen.pop().numpy())
    return total


def with_population_statistics(network: nn.Sequential, total: Population) -> nn.Sequential:
    """A copy of `network` that predicts with the statistics of `total`; unbiased variance, as the paper."""
    copy = deepcopy(network)
    layer: Any = norm_layer(copy)
    with torch.no_grad():
        layer.running_mean.copy_(torch.from_numpy(total.mean))
        layer.running_var.copy_(torch.from_numpy(total.var(ddof=1)))
    return copy


def compare_statistics(name: str, seed: int, network: nn.Sequential, data: Splits) -> list[Record]:
    """The moving average that training left, beside the statistics of the whole training set.

    The drifts are the worst channel's, in the unit in which the layer's output feels them: the mean's in
    standard deviations, ``|mean_moving - mean| / sqrt(var + eps)``, the deviation's as a share of itself,
    ``|sqrt((var_moving + eps) / (var + eps)) - 1|``.
    """
    exact = with_population_statistics(network, population(network, data.train))
    moving_layer: Any = norm_layer(network)
    exact_layer: Any = norm_layer(exact)
    deviation = (exact_layer.running_var.double() + exact_layer.eps).sqrt()
    mean_drift = (moving_layer.running_mean.double() - exact_layer.running_mean.double()).abs() / deviation
    std_drift = ((moving_layer.running_var.double() + moving_layer.eps).sqrt() / deviation - 1).abs()
    changed = (predictions(network, data.test.images) != predictions(exact, data.test.images)).sum()
    where: dict[str, Scalar] = {"network": name, "seed": seed}
    accuracies = {"moving average": accuracy(network, data.test), "population": accuracy(exact, data.test)}
    return [
        *(
            Record("test accuracy by statistics", value, "fraction", {**where, "statistics": statistics})
            for statistics, value in accuracies.items()
        ),
        Record("drift of the mean", float(mean_drift.max()), "standard deviations", where),
        Record("drift of the deviation", float(std_drift.max()), "fraction", where),
        Record("changed predictions", int(changed), "images", {**where, "of": len(data.test)}),
    ]


def compare_alone(name: str, seed: int, networks: dict[bool, nn.Sequential], split: Split) -> list[Record]:
    """The largest difference that the company of other images makes to an image's output, when predicting.

    Measured for the normalization layer alone, for the whole network with it, and for the network without
    it: what the last shows is the doing of the convolution and the matrix product, which torch may sum in
    another order for another number of images. Beside them the layer in training mode, where company does
    count: the same images in a batch and in half of it.
    """
    where: dict[str, Scalar] = {"network": name, "seed": seed}
    images = split.images[:COMPANY]
    with_norm = networks[True].eval()
    layer = norm_layer(with_norm)
    with torch.inference_mode(), inputs_of(layer) as seen:
        with_norm(images)
        entering = seen.pop()
        training = deepcopy(layer).train()  # a copy, whose running statistics may move
        half = len(images) // 2
        measured = {
            "layer": _company(layer, entering),
            "network with BN": _company(with_norm, images),
            "network without BN": _company(networks[False].eval(), images),
            "layer in training mode": float(
                (training(entering)[:half] - training(entering[:half])).abs().max()
            ),
        }
    return [
        Record(
            "difference alone to in a batch", value, "absolute", {**where, "of": of, "images": len(images)}
        )
        for of, value in measured.items()
    ]


def _company(module: nn.Module, images: torch.Tensor) -> float:
    """Largest absolute difference between a batch's outputs and those of its images one by one."""
    together = module(images)
    alone = torch.cat([module(image) for image in chunks(images, 1)])
    return float((together - alone).abs().max())
