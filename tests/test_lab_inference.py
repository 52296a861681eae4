"""Prediction: exact statistics are exact, and a lone image is measured for what it is."""

import numpy as np
import torch
from torch import nn

from normwright.lab import inference
from normwright.lab.data import Split, Splits
from normwright.lab.networks import build, cnn, norm_layer
from normwright.lab.train import CHUNK, chunks


def _images(count: int) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 32, 32, generator=generator).to(memory_format=torch.channels_last)
    return Split(images, torch.arange(count) % 10)


def test_population_statistics_are_those_of_the_whole_set_at_once():
    network, split = build(cnn, 0, batch_norm=True), _images(230)  # three chunks, the last one short
    # In the same chunks: torch's convolution rounds differently for another number of images.
    entering = (
        torch.cat([network.conv(chunk) for chunk in chunks(split.images, CHUNK)]).detach().double().numpy()
    )
    total = inference.population(network, split)
    assert total.count == 230 * 32 * 32
    # A tenth of the rounding (6e-8) with which the layer will store them in float32.
    np.testing.assert_allclose(total.mean, entering.mean(axis=(0, 2, 3)), rtol=0, atol=6e-9)
    np.testing.assert_allclose(total.var(ddof=1), entering.var(axis=(0, 2, 3), ddof=1), rtol=6e-9)


def test_measuring_the_population_leaves_the_layer_and_its_hooks_alone():
    network = build(cnn, 0, batch_norm=True)
    layer = norm_layer(network)
    inference.population(network, _images(20))
    assert torch.equal(layer.running_mean, torch.zeros(16))
    assert int(layer.num_batches_tracked) == 0
    assert len(layer._forward_pre_hooks) == 0


def test_statistics_that_are_exact_already_have_no_drift():
    split = _images(60)
    network = build(cnn, 0, batch_norm=True)
    exact = inference.with_population_statistics(network, inference.population(network, split))
    records = {
        r.what: r.value for r in inference.compare_statistics("CNN", 0, exact, Splits(split, split, split))
    }
    assert records["drift of the mean"] == 0.0
    assert records["drift of the deviation"] == 0.0
    assert records["changed predictions"] == 0


def test_drift_is_told_in_the_units_of_the_layers_output():
    split = _images(60)
    network = build(cnn, 0, batch_norm=True)
    moved = inference.with_population_statistics(network, inference.population(network, split))
    layer = norm_layer(moved)
    deviation = torch.sqrt(layer.running_var + layer.eps)
    layer.running_mean[3] += 0.25 * deviation[3]
    layer.running_var[5] = (1.5 * deviation[5]) ** 2 - layer.eps
    records = {
        r.what: r.value for r in inference.compare_statistics("CNN", 0, moved, Splits(split, split, split))
    }
    # The statistics were rounded to float32 by the buffers, near means of about 1 deviation.
    assert abs(records["drift of the mean"] - 0.25) < 1e-5
    assert abs(records["drift of the deviation"] - 0.5) < 1e-5


def test_the_layer_gives_a_lone_image_exactly_what_it_gives_it_in_a_batch():
    networks = {norm: build(cnn, 0, batch_norm=norm) for norm in (False, True)}
    records = {r.where["of"]: r.value for r in inference.compare_alone("CNN", 0, networks, _images(60))}
    assert records["layer"] == 0.0
    assert records["network with BN"] < 1e-5  # rounding of the sums of the convolution and the linear layer
    assert records["layer in training mode"] > 0.01


def test_a_layer_that_depends_on_company_is_found_out():
    class MinusBatchMean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(dim=0)

    networks = {norm: build(cnn, 0, batch_norm=norm) for norm in (False, True)}
    networks[True].norm = MinusBatchMean()
    records = {r.where["of"]: r.value for r in inference.compare_alone("CNN", 0, networks, _images(60))}
    assert records["layer"] > 0.1
