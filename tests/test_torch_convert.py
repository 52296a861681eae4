"""`convert` and `revert`: the class of a layer changes, and nothing else does."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import normwright.torch as nw
from beside_torch import UNIT, agree, normal, same_bits

PAIRS = {nn.BatchNorm1d: nw.BatchNorm1d, nn.BatchNorm2d: nw.BatchNorm2d, nn.BatchNorm3d: nw.BatchNorm3d}


class Net(nn.Module):
    """Layers nested, in a list, in a dict, and one used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5)) for _ in range(2))
        self.named = nn.ModuleDict({"norm": nn.BatchNorm1d(5)})
        self.again = self.named["norm"]

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        x = self.named["norm"](x.mean((2, 3)))
        return self.again(x)


def norms(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def named_tensors(model):
    return dict([*model.named_parameters(), *model.named_buffers()])


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = Net()
    net(normal(4, 3, 8, 8))  # statistics that are not the initial ones
    return net


def test_every_layer_changes_its_class_and_keeps_everything_else(model):
    model.blocks[0].eval()
    model.blocks[1][1].weight.requires_grad_(False)
    model.stem[1].mine = "kept"
    before = {name: (m, type(m), dict(m.__dict__)) for name, m in norms(model).items()}
    tensors = named_tensors(model)
    values = {name: t.detach().clone() for name, t in tensors.items()}
    for change, kinds in ((nw.convert, PAIRS), (nw.revert, {torchs: torchs for torchs in PAIRS})):
        assert change(model) is model
        assert list(norms(model)) == list(before)
        for name, (layer, kind, attributes) in before.items():
            assert norms(model)[name] is layer
            assert type(layer) is kinds[kind]
            now = dict(layer.__dict__)
            assert ("_guard" in now, "_guard" in attributes) == (change is nw.convert, False)
            now.pop("_guard", None)  # counts the batches that were left out
            assert now.pop("_path", "") == (name if change is nw.convert else "")  # by which messages name it
            assert now == attributes
        assert list(named_tensors(model)) == list(tensors)
        for name, t in named_tensors(model).items():
            assert t is tensors[name], name
            same_bits(name, t.detach(), values[name])
    assert [m.training for m in norms(model).values()] == [True, False, True, True]
    assert model.stem[1].mine == "kept"


def test_a_converted_model_computes_what_it_did(model):
    x, dy = normal(4, 3, 8, 8), normal(4, 5, seed=1)
    results = []
    for change in (nw.revert, nw.convert):
        net = change(model)
        kept = {name: t.clone() for name, t in net.state_dict().items()}
        net.zero_grad()
        y = net(x)
        y.backward(dy)
        results.append([y, *(p.grad.clone() for p in net.parameters()), *(b.double() for b in net.buffers())])
        results[-1] = [t.detach().clone() for t in results[-1]]
        net.load_state_dict(kept)
    for k, (got, want) in enumerate(zip(*reversed(results), strict=True)):
        # float32 roundings, which each of the net's ten layers may enlarge
        agree(f"result {k}", got, want, 1000 * UNIT[torch.float32] * max(1, want.abs().max().item()))


def test_a_batch_norm_itself_is_converted_and_its_sharing_kept(model):
    for torchs, ours in PAIRS.items():
        layer = torchs(4)
        assert nw.convert(layer) is layer
        assert type(layer) is ours
        assert type(nw.revert(layer)) is torchs
    nw.convert(model)
    assert model.again is model.named["norm"]
    model(normal(4, 3, 8, 8))
    assert model.again.num_batches_tracked.item() == 4  # twice in each of two passes


def test_hooks_fire_as_before(model):
    fired = []
    layer = model.stem[1]
    layer.register_forward_pre_hook(lambda module, args: fired.append("before"))
    layer.register_forward_hook(lambda module, args, y: fired.append("after"))
    layer.register_full_backward_hook(lambda module, dx, dy: fired.append("backward"))
    layer.weight.register_post_accumulate_grad_hook(lambda p: fired.append("weight"))
    layer.register_state_dict_post_hook(lambda *args: fired.append("state"))
    for change in (nw.convert, nw.revert):
        fired.clear()
        change(model)(normal(4, 3, 8, 8)).sum().backward()
        model.state_dict()
        assert sorted(fired) == ["after", "backward", "before", "state", "weight"]
        assert fired[:2] == ["before", "after"]


def test_an_optimizer_made_before_still_moves_the_layer(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    nw.convert(model)
    before = model.stem[1].weight.detach().clone()
    model(normal(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.stem[1].weight, before)
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 1.0


# --- strict_torch, and what cannot be reverted ---------------------------------


def test_strict_torch_keeps_torchs_behaviour_in_every_default(model):
    theirs = copy.deepcopy(model)
    attributes = {name: dict(m.__dict__) for name, m in norms(model).items()}
    nw.convert(model, strict_torch=True)
    x = normal(4, 3, 8, 8)
    for this in (model, theirs):
        checkpoint(this, x, use_reentrant=False).sum().backward()  # repeats the pass, and counts it twice
        with torch.no_grad():
            this(torch.where(x > 3, torch.nan, x))
    counts = [[m.num_batches_tracked.item() for m in norms(this).values()] for this in (model, theirs)]
    assert counts[0] == counts[1]
    assert model.stem[1].running_mean.isnan().all()
    assert nw.skipped(model) == {}
    assert "strict_torch=True" in repr(model.stem[1])
    half = nw.convert(nn.BatchNorm2d(4).bfloat16(), strict_torch=True)
    assert (half.running_mean.dtype, half.half().running_mean.dtype) == (torch.bfloat16, torch.float16)
    nw.revert(model)
    for name, m in norms(model).items():
        assert m.__dict__.keys() == attributes[name].keys()
    assert repr(model) == repr(theirs)


UNREVERTIBLE = {
    "frozen statistics": (lambda: nw.freeze(nw.BatchNorm2d(4)), "no frozen layer, got one at '1'"),
    "frozen weights": (
        lambda: nw.freeze(nw.BatchNorm2d(4), statistics=False, affine=True),
        "no frozen layer, got one at '1'",
    ),
    "channels last": (
        lambda: nw.BatchNorm2d(4, channel_dim=-1),
        "layers with channel_dim=1, as torch's, got channel_dim=-1 at '1'",
    ),
}


@pytest.mark.parametrize("name", UNREVERTIBLE)
def test_what_torch_cannot_do_is_not_reverted_and_nothing_changes(name):
    make, words = UNREVERTIBLE[name]
    model = nn.Sequential(nw.BatchNorm2d(4, on_nonfinite="raise"), make())  # the first could be
    before = [(type(layer), dict(layer.__dict__)) for layer in model]
    with pytest.raises(nw.ShapeError, match=f"^normwright.torch.revert: expected {words}"):
        nw.revert(model)
    assert [(type(layer), layer.__dict__) for layer in model] == before
    if "frozen" in name:
        nw.unfreeze(model)
        assert [type(layer) for layer in nw.revert(model)] == [nn.BatchNorm2d] * 2
    with pytest.raises(nw.ShapeError, match="at the model itself"):
        nw.revert(make())


def test_revert_forgets_options_that_torch_has_not():
    layer = nw.BatchNorm2d(4, on_nonfinite="raise", on_degenerate="running")
    assert nw.revert(layer).__dict__.keys() == nn.BatchNorm2d(4).__dict__.keys()
    assert repr(layer) == repr(nn.BatchNorm2d(4))


def test_both_ways_twice_is_the_same_as_once(model):
    first = {name: type(m) for name, m in norms(nw.convert(model)).items()}
    assert {name: type(m) for name, m in norms(nw.convert(model)).items()} == first
    nw.revert(model)
    assert {type(m) for m in norms(nw.revert(model)).values()} <= set(PAIRS)


def test_a_model_without_batch_norm_is_returned_as_it_is():
    model = nn.Sequential(nn.Linear(3, 3))
    assert nw.revert(nw.convert(model)) is model


@pytest.mark.parametrize("call", [nw.convert, nw.revert])
@pytest.mark.parametrize("model", [None, torch.nn.BatchNorm2d], ids=["nothing", "a class"])
def test_what_is_no_module_is_refused_by_name(call, model):
    with pytest.raises(
        TypeError, match=rf"^normwright.torch.{call.__name__}: expected a torch.nn.Module, got "
    ):
        call(model)
