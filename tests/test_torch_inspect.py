"""`inspect`: every layer of a model or a state dict reaches the doctor with the numbers that it recorded."""

import copy
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import normwright.torch as nw
from normwright.doctor.findings import Findings
from normwright.doctor.layer import Settings

NUMBERS = ("mean", "var", "weight", "bias")


@pytest.fixture
def seen(monkeypatch):
    """The layers that reach the doctor, and what is said about them."""
    found = {}

    def examine(layers, **about):
        found.update(about, layers=list(layers))
        return Findings((), 0)

    monkeypatch.setattr(sys.modules["normwright.torch.statistics.inspect"], "examine", examine)
    return found


def trained(kind=nn.BatchNorm2d, channels=4, **options):
    """A layer with numbers of its own in every tensor."""
    torch.manual_seed(channels)
    layer = kind(channels, **options)
    for name, t in layer.state_dict().items():
        t.fill_(7) if name.endswith("tracked") else t.copy_(torch.rand(channels) + 0.5)
    return layer


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 1), trained(), nn.ModuleDict({"bn": trained(channels=5)}))


def agrees(state, layer):
    """Every number of a layer, to the bit: float64 holds every float32."""
    for name, key in zip(NUMBERS, ("running_mean", "running_var", "weight", "bias"), strict=True):
        t = getattr(layer, key)
        got = getattr(state, name)
        if t is None:
            assert got is None, name
        else:
            assert got.dtype == np.float64
            np.testing.assert_array_equal(got, t.detach().double().numpy(), err_msg=name)
    assert state.updates == int(layer.num_batches_tracked)


# --- models -----------------------------------------------------------------------------------------------------


def test_every_layer_of_a_model_arrives_with_its_numbers_and_settings(seen):
    model = network()
    model[1].eps, model[1].momentum = 1e-3, 0.01
    model[2]["bn"].momentum = None
    nw.inspect(model)
    first, second = seen["layers"]
    assert (first.name, second.name) == ("1", "2.bn")
    agrees(first, model[1])
    agrees(second, model[2]["bn"])
    assert (first.settings, second.settings) == (Settings(1e-3, 0.01), Settings(1e-5, None))
    assert (first.dtype, first.weight_dtype) == ("float32", "float32")


@pytest.mark.parametrize(
    "layer",
    [
        trained(nn.BatchNorm1d),
        trained(nn.BatchNorm3d, affine=False),
        trained(nn.SyncBatchNorm),
        trained(nw.BatchNorm2d, bias=False),
        trained(nn.InstanceNorm2d, affine=True, track_running_stats=True),
        parametrizations.weight_norm(trained(), dim=None),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_kind_of_layer_arrives(seen, layer):
    nw.inspect(layer)
    (state,) = seen["layers"]
    assert state.name == ""
    agrees(state, layer)
    assert state.settings == Settings(1e-5, 0.1)


class Frozen(nn.Module):
    """As other libraries have them: four buffers, no counter."""

    def __init__(self):
        super().__init__()
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0.5), ("running_var", 2)):
            self.register_buffer(name, torch.full((4,), float(value)))


def test_a_frozen_layer_of_another_library_arrives_without_settings(seen):
    nw.inspect(nn.Sequential(Frozen()))
    (state,) = seen["layers"]
    assert (state.name, state.updates, state.settings) == ("0", None, None)
    assert state.var.tolist() == [2.0] * 4


def test_layers_of_ours_that_are_frozen_are_known_to_be():
    model = nw.freeze(nw.convert(nn.Sequential(trained(momentum=0.0))))
    assert not nw.inspect(model)
    assert [f.check for f in nw.inspect(nw.unfreeze(model))] == ["momentum"]


def test_layers_without_statistics_are_none(seen):
    nw.inspect(
        nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False), nn.LayerNorm(4), nn.GroupNorm(2, 4))
    )
    assert seen["layers"] == []


def test_a_layer_used_in_two_places_arrives_once(seen):
    shared = trained()
    nw.inspect(nn.Sequential(shared, nn.ReLU(), shared))
    assert [state.name for state in seen["layers"]] == ["0"]


def test_a_lazy_layer_is_named_as_not_checked(seen):
    nw.inspect(nn.Sequential(nn.LazyBatchNorm2d(), trained()))
    assert [state.name for state in seen["layers"]] == ["1"]
    assert seen["not_checked"] == ["Not checked, for they have seen no batch yet: 0."]


def test_inspecting_changes_nothing_and_later_changes_do_not_reach_the_findings(seen):
    model = network().double()  # float64 is what the doctor works in: it could be given the tensor itself
    before = copy.deepcopy(model.state_dict())
    versions = {name: t._version for name, t in model.named_buffers()}
    nw.inspect(model)
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])
    assert versions == {name: t._version for name, t in model.named_buffers()}
    model[1].running_mean.fill_(100)
    assert seen["layers"][0].mean.max() < 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_types_are_those_that_were_recorded(seen, dtype):
    layer = trained().to(dtype)
    nw.inspect(layer)
    (state,) = seen["layers"]
    name = str(dtype).removeprefix("torch.")
    assert (state.dtype, state.weight_dtype) == (name, name)
    agrees(state, layer)


def test_half_layers_of_ours_keep_wide_statistics():
    layer = nw.convert(trained()).to(torch.bfloat16)
    assert not nw.inspect(layer)
    assert [f.check for f in nw.inspect(trained().to(torch.bfloat16))] == ["half statistics"]


def test_what_is_on_the_meta_device_is_refused_by_its_name():
    words = (
        r"inspect: expected statistics with values, got tensors on the meta device at '1'. Load the weights"
    )
    with pytest.raises(nw.ShapeError, match=words):
        nw.inspect(network().to("meta"))


@pytest.mark.parametrize("given", ["weights.pt", 3, [1]])
def test_what_is_neither_a_model_nor_a_mapping_is_refused(given):
    words = f"expected a module or a state dict, got builtins.{type(given).__name__}"
    with pytest.raises(nw.DtypeError, match=words):
        nw.inspect(given)


def test_a_model_that_was_trained_a_little_has_nothing_wrong_with_it():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16),
        nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 10), nn.BatchNorm1d(10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        x = torch.randn(32, 3, 8, 8)
        loss = nn.functional.cross_entropy(model(x), x.mean((1, 2, 3)).mul(30).long().clamp(0, 9))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert list(nw.inspect(model)) == []
    assert list(nw.inspect(model.state_dict())) == []


def test_recalibration_ends_what_inspection_found():
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8))
    model[1].running_var.fill_(-1)
    assert [f.check for f in nw.inspect(model)] == ["negative variance"]
    torch.manual_seed(0)
    nw.recalibrate(model, [torch.randn(64, 3)])
    assert not nw.inspect(model)


# --- mappings ---------------------------------------------------------------------------------------------------


def test_a_state_dict_gives_the_same_layers_without_settings(seen):
    model = network()
    nw.inspect(model.state_dict())
    first, second = seen["layers"]
    assert (first.name, second.name) == ("1", "2.bn")
    agrees(first, model[1])
    agrees(second, model[2]["bn"])
    assert first.settings is None
    assert seen["taken"] == ""


def test_the_state_dict_of_one_layer_is_a_layer(seen):
    nw.inspect(trained().state_dict())
    assert [state.name for state in seen["layers"]] == [""]


def test_a_checkpoint_is_searched_and_it_is_said_what_was_taken(seen):
    model = network()
    nw.inspect({"epoch": 3, "optimizer": {"state": {}}, "state_dict": model.state_dict()})
    assert [state.name for state in seen["layers"]] == ["1", "2.bn"]
    assert seen["taken"] == "Taken from 'state_dict'."


def test_of_a_model_and_its_average_both_are_taken_and_told_apart(seen):
    model = network()
    nw.inspect({"model": model.state_dict(), "ema": {"shadow": model.state_dict()}})
    assert [(s.part, s.name) for s in seen["layers"]] == [
        ("model", "model: 1"), ("model", "model: 2.bn"),
        ("ema.shadow", "ema.shadow: 1"), ("ema.shadow", "ema.shadow: 2.bn"),
    ]  # fmt: skip
    assert seen["taken"] == "Taken from 'model', 'ema.shadow'; names begin with that."


def test_a_model_inside_of_a_checkpoint_counts_as_its_state_dict(seen):
    nw.inspect({"model": network()})
    assert [state.name for state in seen["layers"]] == ["1", "2.bn"]


def test_names_are_those_of_the_file_whatever_wrapped_the_model(seen):
    nw.inspect({f"module.{key}": t for key, t in network().state_dict().items()})
    assert [state.name for state in seen["layers"]] == ["module.1", "module.2.bn"]


def test_keys_that_are_no_words_and_values_that_are_no_tensors_are_passed_over(seen):
    state = OrderedDict(trained().state_dict())
    state[3], state["a.running_mean"], state["a.running_var"] = 1, "no", "tensor"
    nw.inspect(state)
    assert [layer.name for layer in seen["layers"]] == [""]


@pytest.mark.parametrize(
    ("mean", "var"),
    [
        (torch.zeros(3), torch.ones(4)),
        (torch.zeros(2, 2), torch.ones(2, 2)),
        (torch.zeros(3, dtype=torch.int64), torch.ones(3)),
    ],
    ids=["two lengths", "two axes", "integers"],
)
def test_a_pair_of_another_shape_or_type_is_no_layer(seen, mean, var):
    nw.inspect({"a.running_mean": mean, "a.running_var": var})
    assert seen["layers"] == []


def test_a_weight_that_is_not_one_number_per_channel_is_not_the_layers(seen):
    state = trained().state_dict() | {"weight": torch.zeros(2, 2), "bias": None}
    nw.inspect(state)
    (layer,) = seen["layers"]
    assert (layer.weight, layer.bias, layer.weight_dtype) == (None, None, None)


def test_where_there_are_no_layers_that_is_what_is_found():
    for empty in ({}, nn.Linear(2, 2), nn.Linear(2, 2).state_dict(), {"a": {"b": {"c": {"d": trained()}}}}):
        assert [(f.severity, f.check) for f in nw.inspect(empty)] == [("warning", "no layers")]
