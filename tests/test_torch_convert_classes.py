"""`convert` and `revert` of layers that are not plainly torch's: subclasses, lazy and parametrized layers."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import normwright.torch as nw
from beside_torch import UNIT, agree, normal, same_bits, same_step, state, step, twins, untouched
from normwright.kernels import NATIVE


def named_tensors(model):
    return dict([*model.named_parameters(), *model.named_buffers()])


# --- what stays as it is ------------------------------------------------


class Mine(nn.BatchNorm2d):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return super().forward(x) * 2


class MineOfSeveral(nn.SyncBatchNorm):
    """A subclass of a layer whose forward torch has not from its base, and which has its own."""

    def forward(self, x):
        return super().forward(x) * 2


class MineOfYours(nw.BatchNorm2d):
    """A subclass of ours."""


@pytest.mark.parametrize(
    "layer",
    [nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4)],  # no batch norms of torch's
    ids=lambda layer: type(layer).__name__,
)
def test_layers_of_other_kinds_are_left_alone_without_a_word(layer):
    model = nn.Sequential(layer, nn.BatchNorm2d(4))
    kind = type(layer)
    nw.convert(model)
    assert (model[0], type(model[0]), type(model[1])) == (layer, kind, nw.BatchNorm2d)
    nw.revert(model)
    assert (model[0], type(model[0]), type(model[1])) == (layer, kind, nn.BatchNorm2d)


def test_a_subclass_of_ours_has_no_counterpart_and_is_named():
    model = nn.Sequential(nn.BatchNorm2d(4), MineOfYours(4))
    nw.convert(model)
    with pytest.warns(UserWarning, match=r"^normwright.torch.revert: left as they are, .*: 1\."):
        nw.revert(model)
    assert [type(m) for m in model] == [nn.BatchNorm2d, MineOfYours]


def test_batch_norms_with_a_forward_of_their_own_are_left_alone_and_one_warning_names_them():
    model = nn.Sequential(Mine(4), nn.Sequential(nn.BatchNorm2d(4), MineOfSeveral(4)))
    before = [(layer, type(layer), dict(layer.__dict__)) for layer in (model[0], model[1][1])]
    with pytest.warns(UserWarning, match=r"^normwright.torch.convert: left as they are, ") as warned:
        nw.convert(model)
    (warning,) = warned
    assert f"0 ({__name__}.Mine), 1.1 ({__name__}.MineOfSeveral)" in str(warning.message)
    assert warning.filename == __file__  # where convert was called
    assert type(model[1][0]) is nw.BatchNorm2d
    nw.revert(model)  # not converted: nothing to say
    for layer, kind, attributes in before:
        assert type(layer) is kind
        assert layer.__dict__ == attributes
    with pytest.warns(UserWarning, match="the model itself"):
        nw.convert(Mine(4))


# --- subclasses without a forward --------------------------------------


def count(layer, args, y):
    layer.calls.add_(1)


class Named(nn.BatchNorm2d):
    """A subclass without a forward of its own, but with more state, and methods that change what torch's do."""

    def __init__(self, channels, *, label="", **options):
        super().__init__(channels, **options)
        self.label = label
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_forward_hook(count)

    def extra_repr(self):
        return super().extra_repr() + f", label={self.label}"

    def train(self, mode=True):
        return super().train(mode and self.label != "always evaluating")

    def twice_eps(self):
        return 2 * self.eps


def named():
    layer = Named(4, label="mine", eps=1e-3, momentum=0.25)
    layer.load_state_dict(twins(normal(2, 4, 1, 1))[1].state_dict(), strict=False)
    return layer


def test_a_subclass_without_a_forward_becomes_one_of_both_classes():
    x, dy = normal(6, 4, 3, 5), normal(6, 4, 3, 5, seed=1)
    layer, theirs = named(), named()
    attributes, tensors = dict(layer.__dict__), named_tensors(layer)
    assert nw.convert(layer) is layer
    assert isinstance(layer, Named)
    assert isinstance(layer, nw.BatchNorm2d)
    assert type(layer) is type(nw.convert(named()))  # one class for all of them
    assert (layer.label, layer.twice_eps(), repr(layer)) == ("mine", 2e-3, repr(theirs))
    for training in (True, False):
        same_step(step(layer.train(training), x, dy), step(theirs.train(training), x, dy))
    assert layer.calls.item() == theirs.calls.item() == 2
    layer.label = theirs.label = "always evaluating"
    assert not layer.train().training
    nw.revert(layer)
    assert type(layer) is Named
    assert layer.__dict__.keys() == attributes.keys()
    for name, t in named_tensors(layer).items():
        assert t is tensors[name], name


@pytest.mark.skipif(not NATIVE, reason="this package was built without native kernels")
def test_a_subclass_without_a_forward_takes_the_kernels():
    x = normal(6, 4, 3, 5, mean=100)  # torch's own have other bits here
    layer, ours, theirs = nw.convert(named()), twins(x, eps=1e-3)[0], named()
    same_bits("y", layer(x).detach(), ours(x).detach())
    assert not torch.equal(layer(x), theirs(x))


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_converted_subclass_is_copied_whole(how):
    layer = nw.convert(named())
    layer(normal(6, 4, 3, 5))
    other = COPIES[how](layer)
    assert type(other) is type(layer)
    assert (other.label, other.eps, other.momentum) == ("mine", 1e-3, 0.25)
    untouched(other, state(layer))
    x = normal(6, 4, 3, 5, seed=1)
    if how != "copy":  # which shares its tensors
        same_bits("y", other(x).detach(), layer(x).detach())
    assert type(nw.revert(other)) is Named
    assert type(layer) is not Named


class AnyRank(nn.BatchNorm2d):
    """A subclass that takes what torch's does not."""

    def _check_input_dim(self, x):
        pass


class Strict(nn.BatchNorm2d):
    """A subclass that refuses what torch's takes."""

    def _check_input_dim(self, x):
        super()._check_input_dim(x)
        if x.shape[2] != x.shape[3]:
            raise ValueError("no square")


def test_a_subclass_with_its_own_idea_of_inputs_keeps_it():
    assert nw.convert(AnyRank(4))(normal(6, 4, 3)).shape == (6, 4, 3)
    with pytest.raises(ValueError, match="no square"):
        nw.convert(Strict(4))(normal(6, 4, 3, 5))


# --- lazy and parametrized layers -------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_lazy_layer_becomes_our_lazy_one_and_then_our_layer(rank):
    shape = (6, 4, 3, 2, 2)[: rank + 2]
    lazy, kind = getattr(nn, f"LazyBatchNorm{rank}d"), getattr(nn, f"BatchNorm{rank}d")
    layer, theirs = lazy(eps=1e-3, momentum=0.25), lazy(eps=1e-3, momentum=0.25)
    attributes, tensors = layer.__dict__.keys() | set(), named_tensors(layer)
    nw.convert(layer)
    assert type(layer) is getattr(nw, f"LazyBatchNorm{rank}d")
    nw.revert(layer)
    assert type(layer) is lazy
    assert layer.__dict__.keys() == attributes
    model = nw.convert(nn.Sequential(layer))
    x, dy = normal(*shape), normal(*shape, seed=1)
    same_step(step(model[0], x, dy), step(theirs, x, dy))
    assert type(layer) is getattr(nw, f"BatchNorm{rank}d")
    assert (layer.eps, layer.momentum) == (1e-3, 0.25)
    assert type(nw.revert(model)[0]) is kind
    assert layer.__dict__.keys() == theirs.__dict__.keys()
    for name, t in named_tensors(layer).items():
        assert t is tensors[name], name


class Twice(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return 2 * weight


def parametrized(*names):
    layer = nn.BatchNorm2d(4, momentum=0.25)
    for name in names:
        parametrize.register_parametrization(layer, name, Twice())
    return layer


@pytest.mark.parametrize("names", [("weight",), ("bias",), ("weight", "bias")], ids=str)
def test_a_parametrized_layer_becomes_ours_and_its_exact_class_comes_back(names):
    layer, theirs = parametrized(*names), parametrized(*names)
    kind, attributes = type(layer), dict(layer.__dict__)
    nw.convert(layer)
    assert isinstance(layer, nw.BatchNorm2d)
    assert type(layer).__name__ == kind.__name__ == "ParametrizedBatchNorm2d"
    assert parametrize.is_parametrized(layer, names[0])
    x, results = normal(6, 4, 3, 5), []
    for this in (layer, theirs):
        this(x).square().sum().backward()
        results.append({name: p.grad for name, p in this.named_parameters()} | dict(this.named_buffers()))
    assert results[0].keys() == results[1].keys()
    for name, want in results[1].items():
        bound = 0 if name == "num_batches_tracked" else 16 * UNIT[torch.float32] * 1000  # as in same_step
        agree(name, results[0][name], want, bound)
    other = copy.deepcopy(layer)
    nw.revert(layer)
    assert type(layer) is kind
    assert layer.__dict__.keys() == attributes.keys()
    same_bits("weight", layer.weight.detach(), theirs.weight.detach())
    assert isinstance(other, nw.BatchNorm2d)
    for name in names:
        parametrize.remove_parametrizations(other, name)
    assert type(other) is nw.BatchNorm2d
    assert type(nw.revert(other)) is nn.BatchNorm2d


def test_our_own_layer_with_a_parametrization_reverts():
    layer = nw.BatchNorm2d(4)
    parametrize.register_parametrization(layer, "weight", Twice())
    nw.revert(layer)
    assert isinstance(layer, nn.BatchNorm2d)
    assert not isinstance(layer, nw.BatchNorm2d)
    assert layer.weight.tolist() == [2.0] * 4
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.BatchNorm2d


@pytest.mark.parametrize("change", ["one more", "one less"])
def test_parametrizations_may_change_between_convert_and_revert(change):
    layer = nw.convert(parametrized("weight", "bias") if change == "one less" else parametrized("weight"))
    if change == "one less":
        parametrize.remove_parametrizations(layer, "bias")
    else:
        parametrize.register_parametrization(layer, "bias", Twice())
    want = layer.eval()(normal(6, 4, 3, 5))
    got = nw.revert(layer)(normal(6, 4, 3, 5))
    agree("y", got, want, 16 * UNIT[torch.float32] * 16)  # as in same_step
