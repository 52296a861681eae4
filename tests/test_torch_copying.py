"""`copy_statistics`: by name, all of it or nothing, and what recalibrate makes of averaged weights."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import normwright.torch as nw


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2))


def trained(seed=0):
    torch.manual_seed(seed)
    model = network()
    for _ in range(5):
        model(torch.randn(16, 3) + 2)
    return model


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def of_statistics(found):
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    return {name: tensor for name, tensor in found.items() if name.endswith(kinds)}


def assert_same(found, want):
    assert found.keys() == want.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, want[name]), name  # a NaN equals nothing


def test_the_statistics_are_copied_and_nothing_else():
    source, target = trained(), network()
    weights = state(target)
    assert nw.copy_statistics(source, target) is target
    assert_same(of_statistics(state(target)), of_statistics(state(source)))
    assert len(of_statistics(weights)) == 6
    rest = weights.keys() - of_statistics(weights).keys()
    assert_same({n: t for n, t in state(target).items() if n in rest}, {n: weights[n] for n in rest})


def test_the_copy_is_a_copy():
    source, target = trained(), network()
    nw.copy_statistics(source, target)
    before = state(target)
    source(torch.randn(16, 3))
    assert_same(state(target), before)


@pytest.mark.parametrize(
    "wrap",
    [AveragedModel, nn.DataParallel, lambda m: torch.compile(m, backend="eager")],
    ids=["AveragedModel", "DataParallel", "compile"],
)
def test_wrappers_are_looked_through_on_both_sides(wrap):
    source = trained()
    inside = network()
    target = wrap(inside)
    inside = target.module if isinstance(target, AveragedModel) else inside  # that one makes a copy
    nw.copy_statistics(wrap(source), target)
    assert_same(of_statistics(state(inside)), of_statistics(state(source)))


def test_a_wrapper_within_a_wrapper_is_looked_through():
    source = trained()
    target = AveragedModel(nn.DataParallel(network()))
    nw.copy_statistics(source, target)
    assert_same(of_statistics(state(target.module.module)), of_statistics(state(source)))


def refused(source, target, error, words):
    before = state(target)
    with pytest.raises(error, match=words) as raised:
        nw.copy_statistics(source, target)
    assert str(raised.value).startswith("normwright.torch.copy_statistics")
    assert_same(state(target), before)


def test_other_names_are_refused_and_named():
    refused(trained(), network()[:2], nw.ShapeError, "'4' in one of them alone")
    refused(trained()[:2], network(), nw.ShapeError, "'4' in one of them alone")


def test_other_channels_are_refused_before_anything_is_written():
    target = network()
    target[4] = nn.BatchNorm1d(3)  # the last layer, so that the first could have been written
    refused(trained(), target, nw.ShapeError, r"4\.running_mean of shape \(3,\), got \(2,\) in source")


def test_a_value_that_the_type_cannot_hold_is_refused():
    source, target = trained(), network()
    source[4].running_var.fill_(1e6)
    target[4].half()
    refused(source, target, nw.NonfiniteError, r"4\.running_var that torch\.float16 holds, got up to 1e\+06")


def test_another_kind_of_variance_is_refused():
    source, target = trained(), network()
    target[1].recorded_var = "biased"
    refused(source, target, nw.ShapeError, "unbiased in source and biased in target")


def test_what_is_no_model_or_has_no_layer_is_refused():
    with pytest.raises(nw.DtypeError, match=r"a torch\.nn\.Module, got 1"):
        nw.copy_statistics(1, network())
    refused(trained(), nn.Linear(2, 2), nw.DtypeError, "a batch norm with running statistics")


def test_infinite_statistics_are_copied_as_they_are():
    source, target = trained(), network()
    source[1].running_var.fill_(torch.inf)
    nw.copy_statistics(source, target)
    assert target[1].running_var.isinf().all()


# --- averaged weights, with data --------------------------------------------------------


def test_recalibrate_takes_an_average_as_it_is():
    model = trained()
    average = AveragedModel(model, use_buffers=True)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn_like(each))
    model(torch.randn(16, 3))
    average.update_parameters(model)
    average.update_parameters(model)
    batches = [torch.randn(16, 3) for _ in range(4)]
    alone = copy.deepcopy(average.module)
    nw.recalibrate(alone, batches)
    drift = nw.recalibrate(average, batches)
    assert [layer.name for layer in drift.layers] == ["module.1", "module.4"]
    assert_same(state(average.module), state(alone))
    assert average.n_averaged == 2
    assert average.module[1].num_batches_tracked == 4  # torch's average of it was no count
