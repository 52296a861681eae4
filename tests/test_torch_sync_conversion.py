"""Layers with sync keep it: converted, reverted, copied, pickled."""

import copy
import io
import pickle
import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrize

import normwright.torch as nw
from beside_torch import UNIT, agree, normal, same_bits

if not dist.is_available():
    pytest.skip("this torch was built without processes", allow_module_level=True)

NORMS = nn.modules.batchnorm._BatchNorm


@pytest.fixture(scope="module")
def group():
    """A process group: all that conversion asks of one is which it is."""
    return dist.ProcessGroup(dist.HashStore(), 0, 1)


class Labelled(nn.SyncBatchNorm):
    """A subclass without a forward of its own."""

    def __init__(self, channels, label, **options):
        super().__init__(channels, **options)
        self.label = label

    def extra_repr(self):
        return f"{super().extra_repr()}, label={self.label}"


class Strict(nn.SyncBatchNorm):
    """A subclass that refuses what torch's takes."""

    def _check_input_dim(self, x):
        if x.dim() != 2:
            raise ValueError("rank 2 alone")


class Loud(nn.SyncBatchNorm):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return super().forward(x) * 2


class Twice(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return 2 * weight


def parametrized(**options):
    layer = nn.SyncBatchNorm(4, **options)
    parametrize.register_parametrization(layer, "weight", Twice())
    return layer


THEIRS = {
    "plain": lambda **options: nn.SyncBatchNorm(4, eps=1e-3, momentum=None, **options),
    "without weights": lambda **options: nn.SyncBatchNorm(
        4, affine=False, track_running_stats=False, **options
    ),
    "a subclass": lambda **options: Labelled(4, "mine", **options),
    "parametrized": parametrized,
}


def tensors(model):
    return dict([*model.named_parameters(), *model.named_buffers()])


# --- convert and revert ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [False, True], ids=["world", "a group"])
@pytest.mark.parametrize("kind", THEIRS)
def test_a_synchronized_layer_of_torchs_becomes_ours_and_comes_back_as_it_was(kind, grouped, group):
    model = nn.Sequential(nn.Linear(3, 4), THEIRS[kind](process_group=group if grouped else None).eval())
    layer, called = model[1], []
    layer.register_forward_hook(lambda *_: called.append(1))
    cls, attributes, told, before = type(layer), dict(layer.__dict__), repr(model), tensors(model)
    x = normal(5, 3)
    want = model(x)
    assert nw.convert(model) is model
    assert model[1] is layer
    assert isinstance(layer, nw.SyncBatchNorm)
    assert layer.sync is group if grouped else layer.sync == "world"
    assert "process_group" not in layer.__dict__
    # evaluation, in which nothing is sent: roundings of float32, of values up to 10 times as large as the unit
    agree("y", model(x), want, 64 * UNIT[torch.float32])
    assert len(called) == 2
    nw.revert(model)
    assert (model[1], type(layer), repr(model)) == (layer, cls, told)
    assert layer.__dict__.keys() == attributes.keys()
    assert all(layer.__dict__[name] is value for name, value in attributes.items())
    for name, t in tensors(model).items():
        assert t is before[name], name


def test_a_subclass_is_of_both_classes_and_pickled_whole():
    layer, other = nw.convert(Labelled(4, "mine")), nw.convert(Strict(4))
    assert isinstance(layer, Labelled)
    assert "label=mine" in repr(layer)
    assert type(layer).forward is nw.SyncBatchNorm.forward
    for made in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert (type(made), made.label, made.sync) == (type(layer), "mine", "world")
        assert type(nw.revert(made)) is Labelled
    with pytest.raises(nw.ShapeError, match="x of rank 2 or more"):
        layer(normal(4))
    with pytest.raises(ValueError, match="rank 2 alone"):
        other(normal(2, 4, 3))


def test_a_subclass_with_a_forward_of_its_own_is_left_and_named(group):
    model = nn.Sequential(Loud(4, process_group=group))
    with pytest.warns(UserWarning, match=r"left as they are, .*: 0 \(.*Loud\)\.$"):
        nw.convert(model, sync="world")
    assert (type(model[0]), model[0].process_group) == (Loud, group)


def test_a_group_without_this_process_is_refused_before_anything_changes():
    outside = nn.SyncBatchNorm(4, process_group=dist.GroupMember.NON_GROUP_MEMBER)
    model = nn.Sequential(nn.BatchNorm1d(4), outside)
    before = [(type(layer), dict(layer.__dict__)) for layer in model]
    with pytest.raises(
        nw.ShapeError, match=r"^normwright.torch.convert: expected this process to be in sync, got"
    ):
        nw.convert(model)
    with pytest.raises(nw.ShapeError, match="this process to be in sync"):
        nw.convert(model[0], sync=dist.GroupMember.NON_GROUP_MEMBER)
    assert [(type(layer), layer.__dict__) for layer in model] == before


def test_convert_gives_sync_to_all_layers_and_without_it_takes_none_away(group):
    model = nn.Sequential(
        nn.BatchNorm2d(4), nn.LazyBatchNorm1d(), nw.BatchNorm3d(4, sync="world"), nn.SyncBatchNorm(4)
    )
    assert [layer.sync for layer in nw.convert(model)] == [None, None, "world", "world"]
    nw.convert(model, sync=group)
    assert all(layer.sync is group for layer in model)
    assert all(layer.sync is group for layer in nw.convert(model))
    assert [layer.sync for layer in nw.convert(model, sync="world")] == ["world"] * 4
    assert repr(model[0]).endswith("track_running_stats=True, sync='world')")
    model[0].sync = group
    assert repr(model[0]).endswith("sync=ProcessGroup)")
    model[0].sync = None
    assert "sync" not in repr(model[0])


def test_revert_names_the_layers_that_lose_their_processes(group):
    model = nn.Sequential(nn.BatchNorm2d(4), nn.SyncBatchNorm(4), nn.Sequential(nn.BatchNorm1d(4)))
    attributes = [dict(layer.__dict__) for layer in (model[0], model[1], model[2][0])]
    nw.convert(model, sync=group)
    with pytest.warns(UserWarning, match=r"without their processes from now on, .*: 0, 2\.0\.$"):
        nw.revert(model)
    assert [type(m) for m in model.modules() if isinstance(m, NORMS)] == [
        nn.BatchNorm2d,
        nn.SyncBatchNorm,
        nn.BatchNorm1d,
    ]
    assert [layer.__dict__.keys() for layer in (model[0], model[1], model[2][0])] == [
        a.keys() for a in attributes
    ]
    assert model[1].process_group is group  # as it was told last


def test_what_torchs_synchronized_layer_cannot_be_is_not_reverted():
    model = nn.Sequential(nw.BatchNorm2d(4), nw.SyncBatchNorm(4))
    model[1].sync = None
    words = r"^normwright.torch.revert: expected a SyncBatchNorm with processes.* at '1'\. Set its sync to 'world'"
    with pytest.raises(nw.ShapeError, match=words):
        nw.revert(model)
    assert [type(layer) for layer in model] == [nw.BatchNorm2d, nw.SyncBatchNorm]
    assert model[1](normal(6, 4)).shape == (6, 4)  # by itself


# --- copies and pickles ------------------------------------------------------------------------------------------


def saved(layer):
    kept = io.BytesIO()
    torch.save(layer, kept)
    kept.seek(0)
    return torch.load(kept, weights_only=False)


PICKLED = {"pickle": lambda layer: pickle.loads(pickle.dumps(layer)), "torch.save": saved}
LAYERS = {
    "BatchNorm1d": lambda sync: nw.BatchNorm1d(4, sync=sync),
    "LazyBatchNorm1d": lambda sync: nw.LazyBatchNorm1d(sync=sync),
    "SyncBatchNorm": lambda sync: nw.SyncBatchNorm(4, process_group=None if sync == "world" else sync),
}


@pytest.mark.parametrize("kind", ["BatchNorm1d", "SyncBatchNorm"])  # torch copies no lazy layer
def test_a_copy_shares_the_group(kind, group):
    for sync in ("world", group):
        model = nn.Sequential(LAYERS[kind](sync))
        for other in (copy.copy(model[0]), copy.deepcopy(model)[0]):
            assert other.sync is model[0].sync is sync
            assert type(other) is type(model[0])


@pytest.mark.parametrize("how", PICKLED)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_pickle_keeps_the_world_and_refuses_a_group_with_what_to_do(kind, how, group):
    layer = LAYERS[kind]("world")
    other = PICKLED[how](layer)
    assert (type(other), other.sync, repr(other)) == (type(layer), "world", repr(layer))
    layer.sync = group
    words = r"expected sync to be 'world' or None in a layer that is pickled, got a ProcessGroup\. Save model"
    with pytest.raises(pickle.PicklingError, match=words):
        PICKLED[how](layer)
    assert layer.sync is group
    layer.load_state_dict(PICKLED[how](layer.state_dict()))  # which knows nothing of it


def test_a_layer_pickled_before_there_was_sync_is_by_itself():
    layer = nw.BatchNorm1d(4, momentum=0.25)
    state = {name: value for name, value in layer.__dict__.items() if name not in ("_sync", "_path")}
    assert len(state) < len(layer.__dict__)
    old = nw.BatchNorm1d.__new__(nw.BatchNorm1d)
    old.__setstate__(copy.deepcopy(state))
    assert (old.sync, repr(old)) == (None, repr(layer))
    x = normal(6, 4)
    same_bits("y", old(x).detach(), layer(x).detach())
    assert type(nw.revert(old)) is nn.BatchNorm1d


# --- what sync may be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["gloo", 3, True, b"world", nn.Linear(1, 1), dist.ProcessGroup], ids=repr)
def test_sync_is_none_world_or_a_group(wrong):
    layer = nw.BatchNorm1d(4, sync="world")
    model = nn.Sequential(nn.BatchNorm1d(4))
    words = "expected sync to be None, 'world' or a torch.distributed.ProcessGroup, got " + re.escape(
        repr(wrong)
    )
    for call, act in {
        "BatchNorm2d": lambda: nw.BatchNorm2d(4, sync=wrong),
        "LazyBatchNorm2d": lambda: nw.LazyBatchNorm2d(sync=wrong),
        "SyncBatchNorm": lambda: nw.SyncBatchNorm(4, process_group=wrong),
        "BatchNorm1d": lambda: setattr(layer, "sync", wrong),
        "convert": lambda: nw.convert(model, sync=wrong),
    }.items():
        with pytest.raises(nw.DtypeError, match=f"^normwright.torch.{call}: {words}"):
            act()
    assert (layer.sync, type(model[0])) == ("world", nn.BatchNorm1d)


def test_our_synchronized_layer_takes_what_torchs_takes(group):
    given = (5, 1e-3, None, False, True, group, "cpu", torch.float64)
    ours, theirs = nw.SyncBatchNorm(*given), nn.SyncBatchNorm(*given)
    assert nw.convert(theirs).__dict__.keys() <= ours.__dict__.keys() | {"_path"}
    assert repr(ours) == repr(theirs)
    assert (ours.sync, ours.running_var.dtype) == (group, torch.float64)
    assert nw.SyncBatchNorm(5, bias=False).bias is None
    assert nw.SyncBatchNorm(5, activation="relu", channel_dim=-1).activation.kind == "relu"
    for rank in range(2, 7):  # any, unlike the others
        x = normal(*(3, 5, 2, 2, 1, 2)[:rank])
        want = nn.SyncBatchNorm(5).eval()(x)
        agree("y", nw.SyncBatchNorm(5).eval()(x), want, 16 * UNIT[torch.float32])


def test_the_world_is_asked_for_when_training_begins_and_not_before():
    layer = nw.BatchNorm1d(4, sync="world")
    layer.eval()(normal(2, 4))
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    with pytest.raises(nw.ShapeError, match="BatchNorm1d: expected an initialized process group, got none"):
        layer.train()(normal(2, 4))
    for name, t in layer.state_dict().items():
        same_bits(name, t, before[name])
