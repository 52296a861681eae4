"""The networks: the paper's shapes, and one beginning for both sides of a comparison."""

import pytest
import torch

import normwright.torch as nw
from normwright.lab.networks import FlattenChannelsLast, build, cnn, mlp, norm_layer

NETWORKS = [
    pytest.param(mlp, (1, 28, 28), nw.BatchNorm1d, 256, id="mlp: one statistic for each of 256 features"),
    pytest.param(cnn, (3, 32, 32), nw.BatchNorm2d, 16, id="cnn: one statistic for each of 16 channels"),
]


@pytest.mark.parametrize(("make", "shape", "layer", "channels"), NETWORKS)
def test_both_sides_begin_with_the_same_weights(make, shape, layer, channels):
    without = build(make, 5, batch_norm=False).state_dict()
    with_norm = build(make, 5, batch_norm=True).state_dict()
    assert set(with_norm) - set(without) == {f"norm.{name}" for name in nw.BatchNorm1d(1).state_dict()}
    assert all(torch.equal(value, with_norm[name]) for name, value in without.items())


@pytest.mark.parametrize(("make", "shape", "layer", "channels"), NETWORKS)
def test_another_seed_begins_elsewhere(make, shape, layer, channels):
    one, other = (build(make, seed, batch_norm=False).state_dict()["out.weight"] for seed in (5, 6))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("make", "shape", "layer", "channels"), NETWORKS)
def test_normalization_stands_before_relu_and_is_ours(make, shape, layer, channels):
    network = build(make, 0, batch_norm=True)
    names = [name for name, _ in network.named_children()]
    assert names.index("norm") == names.index("relu") - 1
    assert type(norm_layer(network)) is layer
    assert norm_layer(network).num_features == channels
    assert network(torch.rand(4, *shape)).shape == (4, 10)


def test_building_a_network_leaves_the_random_state_of_torch_as_it_was():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build(mlp, 7, batch_norm=True)
    assert torch.equal(torch.rand(3), expected)


def test_flattening_channels_last_copies_nothing_and_loses_nothing():
    x = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    flat = FlattenChannelsLast()(x)
    assert flat.data_ptr() == x.data_ptr()
    assert sorted(flat[0].tolist()) == list(range(24))
