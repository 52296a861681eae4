"""The networks: the shapes they promise, and one beginning for every style of them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import normwright.torch as nw
from normwright.lab.networks import (
    BN,
    CNN,
    DEEP_CNN,
    MLP,
    NETWORKS,
    PLAIN,
    SIGMOID,
    FlattenChannelsLast,
    Style,
    batch_norm,
    build,
    hidden,
    parts,
)

EVERY = [pytest.param(network, id=name) for name, network in NETWORKS.items()]
STYLES = {
    "BN": BN,
    "BN after the activation": replace(BN, after=True),
    "BN without bias": replace(BN, bias=False),
    "without bias": Style(bias=False),
    "tanh": Style(activation=nn.Tanh),
    "another norm": Style(norm=lambda channels, dims: nn.GroupNorm(1, channels)),
}


def names(network: nn.Sequential) -> list[str]:
    return [name for name, _ in network.named_children()]


# --- first weights ----------------------------------------------------


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("network", EVERY)
def test_every_style_begins_with_the_same_weights(network, style):
    plain = dict(build(network, 5).named_parameters())
    styled = dict(build(network, 5, style).named_parameters())
    ours = {name for name in styled if not name.startswith("norm")}
    assert set(plain) - ours == (
        set() if style.bias else {n for n in plain if n.startswith("map") and "bias" in n}
    )
    assert ours <= set(plain)
    assert [name for name in ours if not torch.equal(plain[name], styled[name])] == []


@pytest.mark.parametrize("network", EVERY)
def test_what_is_wrapped_computes_with_the_same_weights(network):
    plain, wrapped = build(network, 5), build(network, 5, Style(wrap=nn.utils.parametrizations.weight_norm))
    for one, other in zip(parts(plain, "map"), parts(wrapped, "map"), strict=True):
        assert hasattr(other, "parametrizations")
        # g * v / |v| with g = |v|: rounded three times.
        torch.testing.assert_close(other.weight, one.weight, rtol=1e-6, atol=0)
    assert torch.equal(wrapped.out.weight, plain.out.weight)
    assert not hasattr(wrapped.out, "parametrizations")


@pytest.mark.parametrize("network", EVERY)
def test_another_seed_begins_elsewhere(network):
    one, other = (build(network, seed).out.weight for seed in (5, 6))
    assert not torch.equal(one, other)


def test_building_a_network_leaves_the_random_state_of_torch_as_it_was():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build(MLP, 7, BN)
    assert torch.equal(torch.rand(3), expected)


def test_the_deep_cnn_begins_with_he_s_weights():
    for conv in parts(build(DEEP_CNN, 0), "map"):
        fan_in = conv.weight[0].numel()
        # 216 weights and more: the standard error of a standard deviation is below 1/sqrt(2 * 216) = 5 %.
        assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.15)
        assert not conv.bias.any()


# --- shapes and order -------------------------------------------------


@pytest.mark.parametrize("style", [PLAIN, BN], ids=["without BN", "BN"])
@pytest.mark.parametrize("network", EVERY)
def test_a_network_takes_the_images_that_it_says_and_names_ten_classes(network, style):
    images = torch.rand(4, network.channels, network.size, network.size)
    assert build(network, 0, style)(images).shape == (4, 10)


@pytest.mark.parametrize("network", [MLP, SIGMOID], ids=lambda network: network.name)
def test_the_layers_in_words_are_the_layers(network):
    maps = [*parts(build(network, 0), "map"), build(network, 0).out]
    assert network.layers == "-".join(map(str, (maps[0].in_features, *(m.out_features for m in maps))))


def test_the_cnn_is_the_papers():
    conv, pool, out = (build(CNN, 0).get_submodule(name) for name in ("map1", "pool1", "out"))
    assert (conv.in_channels, conv.out_channels, conv.kernel_size, conv.padding) == (3, 16, (3, 3), (1, 1))
    assert (pool.kernel_size, out.in_features) == (2, 16 * 16 * 16)


@pytest.mark.parametrize(
    ("style", "order"),
    [
        pytest.param(PLAIN, ["flat", "map1", "act1", "out"], id="none"),
        pytest.param(BN, ["flat", "map1", "norm1", "act1", "out"], id="before the activation by default"),
        pytest.param(replace(BN, after=True), ["flat", "map1", "act1", "norm1", "out"], id="after it"),
    ],
)
def test_normalization_stands_where_the_style_says(style, order):
    assert names(build(MLP, 0, style)) == order


def test_parts_are_numbered_by_depth_and_each_group_ends_with_a_pool():
    assert names(build(DEEP_CNN, 0, BN))[6:13] == ["map3", "norm3", "act3", "pool3", "map4", "norm4", "act4"]
    assert names(build(DEEP_CNN, 0))[-3:] == ["pool9", "flat", "out"]


def test_parts_are_found_by_kind_in_order_of_depth():
    network = build(SIGMOID, 0, BN)
    assert parts(network, "map") == [network.map1, network.map2, network.map3]
    assert parts(network, "norm") == [network.norm1, network.norm2, network.norm3]
    assert all(isinstance(layer, nn.Sigmoid) for layer in parts(network, "act"))
    assert parts(build(SIGMOID, 0), "norm") == []


@pytest.mark.parametrize(
    ("network", "layer", "channels"),
    [
        pytest.param(MLP, nw.BatchNorm1d, [256], id="one statistic for each of 256 features"),
        pytest.param(CNN, nw.BatchNorm2d, [16], id="one statistic for each of 16 channels"),
        pytest.param(DEEP_CNN, nw.BatchNorm2d, [8] * 3 + [16] * 3 + [32] * 3, id="one for each channel"),
    ],
)
def test_batch_normalization_is_ours_and_as_wide_as_its_layer(network, layer, channels):
    norms = parts(build(network, 0, BN), "norm")
    assert [type(norm) for norm in norms] == [layer] * len(channels)
    assert [norm.num_features for norm in norms] == channels


def test_a_norm_is_made_from_channels_and_spatial_dimensions():
    asked = []

    def norm(channels: int, dims: int) -> nn.Module:
        asked.append((channels, dims))
        return batch_norm(channels, dims)

    for network in (MLP, CNN):
        build(network, 0, Style(norm=norm))
    assert asked == [(256, 0), (16, 2)]


def test_an_activation_of_the_style_takes_the_place_of_the_networks_own():
    assert isinstance(build(MLP, 0).act1, nn.ReLU)
    assert isinstance(build(SIGMOID, 0).act1, nn.Sigmoid)
    assert isinstance(build(MLP, 0, Style(activation=nn.Tanh)).act1, nn.Tanh)


def test_hidden_layers_are_made_of_the_map_that_they_are_given():
    affine = nn.Linear(3, 2)
    made = dict(hidden(7, affine, 2, 0, replace(BN, bias=False), nn.ReLU))
    assert list(made) == ["map7", "norm7", "act7"]
    assert made["map7"] is affine
    assert affine.bias is None


# --- memory -----------------------------------------------------------


def test_flattening_channels_last_copies_nothing_and_loses_nothing():
    x = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    flat = FlattenChannelsLast()(x)
    assert flat.data_ptr() == x.data_ptr()
    assert sorted(flat[0].tolist()) == list(range(24))


def test_convolutions_are_laid_out_channels_last():
    assert build(CNN, 0).map1.weight.is_contiguous(memory_format=torch.channels_last)
