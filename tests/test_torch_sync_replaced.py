"""torch's own conversion to synchronized layers, and its copies: what ours would lose is refused."""

import pytest
import torch.distributed as dist
from torch import nn

import normwright.torch as nw
from every_kernel import run_python

if not dist.is_available():
    pytest.skip("this torch was built without processes", allow_module_level=True)

NORMS = nn.modules.batchnorm._BatchNorm


class Inherited(nn.SyncBatchNorm):
    """A subclass with torch's class method."""


def tensors(model):
    return dict([*model.named_parameters(), *model.named_buffers()])


def convert_sync_batchnorm(module, group=None):
    """What other libraries have copied from torch, and changed: this one is no method, and has other arguments."""
    made = nn.SyncBatchNorm(module.num_features) if isinstance(module, NORMS) else module
    for name, child in module.named_children():
        made.add_module(name, convert_sync_batchnorm(child, group))
    return made


def convert_syncbn_model(module):
    made = nn.SyncBatchNorm(module.num_features) if isinstance(module, NORMS) else module
    for name, child in module.named_children():
        made.add_module(name, convert_syncbn_model(child))
    return made


def by_another_name(model):
    made = nn.SyncBatchNorm(model.num_features) if isinstance(model, NORMS) else model
    for name, child in model.named_children():
        made.add_module(name, by_another_name(child))
    return made


class Converter(nn.SyncBatchNorm):
    """A subclass with a class method that calls torch's."""

    @classmethod
    def convert_sync_batchnorm(cls, model, process_group=None):
        return super().convert_sync_batchnorm(model, process_group)


REPLACE = {
    "torch's": nn.SyncBatchNorm.convert_sync_batchnorm,
    "a subclass's": Inherited.convert_sync_batchnorm,
    "a subclass's own": Converter.convert_sync_batchnorm,
    "a copy": convert_sync_batchnorm,
    "apex's": convert_syncbn_model,
}
MORE = {
    "activation": lambda: nw.BatchNorm1d(4, activation="relu"),
    "channel_dim": lambda: nw.BatchNorm1d(4, channel_dim=-1),
    "recorded_var": lambda: nw.BatchNorm1d(4, running_var="biased"),
    "debias": lambda: nw.BatchNorm1d(4, debias=True),
    "frozen": lambda: nw.freeze(nw.BatchNorm1d(4)),
    "frozen, synchronized": lambda: nw.freeze(nw.SyncBatchNorm(4), statistics=False, affine=True),
}


@pytest.mark.parametrize("how", REPLACE)
@pytest.mark.parametrize("what", MORE)
def test_torchs_conversion_of_what_it_would_lose_is_refused_and_all_of_ours_stay(what, how):
    model = nn.Sequential(nw.BatchNorm1d(4), nn.Sequential(nn.ReLU(), nw.SyncBatchNorm(4), MORE[what]()))
    before = [(name, m, type(m), repr(m)) for name, m in model.named_modules()]
    option = what.split(",")[0]
    words = rf"convert_sync\w+: expected .*{option}.* at '1\.2'\. Use normwright.torch.convert\(model, sync="
    with pytest.raises(nw.ShapeError, match=words):
        REPLACE[how](model)
    assert [(name, m, type(m), repr(m)) for name, m in model.named_modules()] == before
    with pytest.raises(nw.ShapeError, match="at the model itself"):
        REPLACE[how](model[1][2])
    assert nw.convert(model, sync="world") is model  # the remedy
    assert [m.sync for m in model.modules() if isinstance(m, NORMS)] == ["world"] * 3


def test_torchs_layers_before_the_first_of_ours_are_torchs_synchronized_ones_by_then():
    model = nn.Sequential(nn.BatchNorm1d(4), nw.BatchNorm1d(4), nw.BatchNorm1d(4, activation="relu"))
    with pytest.raises(nw.ShapeError, match="at '2'"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert [type(layer) for layer in model] == [nn.SyncBatchNorm, nw.BatchNorm1d, nw.BatchNorm1d]


def test_a_conversion_by_another_name_is_not_caught():
    assert type(by_another_name(nw.BatchNorm1d(4, activation="relu"))) is nn.SyncBatchNorm


def test_torchs_conversion_without_a_group_does_not_take_a_layers_own():
    group = dist.ProcessGroup(dist.HashStore(), 0, 1)
    model = nn.Sequential(nw.BatchNorm1d(4), nw.BatchNorm1d(4, sync=group))
    with pytest.raises(nw.ShapeError, match=r"expected the process group of a layer that has one, .* at '1'"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert [type(layer) for layer in model] == [nw.BatchNorm1d] * 2
    made = nn.SyncBatchNorm.convert_sync_batchnorm(model, group)  # then it is the user's will
    assert [layer.process_group for layer in made] == [group] * 2


def test_torchs_conversion_of_plain_layers_of_ours_makes_torchs():
    group = dist.ProcessGroup(dist.HashStore(), 0, 1)
    model = nn.Sequential(
        nw.BatchNorm1d(4, sync="world"), nw.SyncBatchNorm(4), nw.BatchNorm2d(4, affine=False)
    )
    model[1].sync = None
    before = tensors(model)
    made = nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
    assert [(type(layer), layer.process_group) for layer in made] == [(nn.SyncBatchNorm, group)] * 3
    assert tensors(made).keys() == before.keys()
    for name, t in tensors(made).items():
        assert t is before[name], name
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(nw.BatchNorm3d(4))) is nn.SyncBatchNorm


def test_children_are_given_to_everybody_else():
    layer = nw.BatchNorm1d(4, activation="relu")
    layer.extra = nn.Linear(1, 1)
    assert dict(layer.named_children()) == {"extra": layer.extra}
    assert list(layer.children()) == [layer.extra]
    assert layer.apply(lambda module: module) is layer


@pytest.mark.slow
def test_what_torchs_conversion_would_lose_is_refused_without_assertions_too():
    printed = run_python(
        "import torch, normwright.torch as nw\n"
        "try:\n"
        "    torch.nn.SyncBatchNorm.convert_sync_batchnorm(nw.BatchNorm1d(4, activation='relu'))\n"
        "except nw.ShapeError as error:\n"
        "    print(error)\n",
        "-O",
    )
    assert "activation" in printed
