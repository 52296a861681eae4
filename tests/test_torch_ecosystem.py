"""Our layers inside torch's own tools: made directly and by `convert`, beside torch's in the same tool."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import func, nn
from torch.nn.utils import fusion, parametrize, prune
from torch.optim import swa_utils

import normwright.torch as nw
from beside_torch import NAMES, agree, normal, same_bits, twins
from torch_networks import BF16, BOUND, F64, HALF, MADE, network, networks, ours_alone, outcome, same

LAZY = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")  # torch's, at each one


def layers(made, shape=(4, 5, 3, 2)):
    ours, theirs = twins(normal(*shape, dtype=F64))
    if made != "directly":
        ours = nw.convert(copy.deepcopy(theirs))
    assert type(ours) is getattr(nw, NAMES[len(shape)])
    return ours, theirs


# --- born without memory --------------------------------------------


@MADE
@pytest.mark.parametrize("assign", [False, True], ids=["to_empty", "assign=True"])
def test_a_model_from_the_meta_device_loads_and_trains(made, assign):
    with torch.device("meta"):
        ours, _ = networks(made)
    assert {t.device.type for t in ours.state_dict().values()} == {"meta"}
    theirs = network()
    state = {name: t.clone() for name, t in theirs.state_dict().items()}
    if not assign:
        ours.to_empty(device="cpu")
    ours.load_state_dict(state, assign=assign)
    same(outcome(ours), outcome(theirs))
    assert (ours[1].running_mean is state["1.running_mean"]) == assign
    assert nw.skipped(ours) == {}  # counters of our own are not memory that nobody wrote


def test_a_half_checkpoint_assigned_to_a_model_from_the_meta_device_leaves_float32_statistics():
    with torch.device("meta"):
        ours = nw.convert(network()).to(BF16)
    half = {name: t.clone() for name, t in network(dtype=BF16).state_dict().items()}
    ours.load_state_dict(half, assign=True)
    assert (ours[1].weight.dtype, ours[1].running_mean.dtype) == (BF16, torch.float32)
    agree("running_var", ours[1].running_var, half["1.running_var"].float(), 0)
    theirs, x = network(dtype=torch.float32), normal(4, 3, 6, 6, dtype=BF16)
    theirs.load_state_dict(half)
    got, want = outcome(ours, x), outcome(theirs, x.float())
    moved = [name for name in want if "running" in name or "tracked" in name]
    same({name: got[name] for name in moved}, {name: want[name] for name in moved}, HALF)


@MADE
def test_a_layer_whose_initialization_is_skipped_is_ours(made):
    norm = nw if made == "directly" else nn
    layer = nw.convert(nn.utils.skip_init(norm.BatchNorm2d, 5, dtype=F64))
    _, theirs = layers(made)
    layer.load_state_dict(theirs.state_dict())
    x = normal(4, 5, 3, 2, dtype=F64)
    same(outcome(layer, x), outcome(theirs, x))
    assert type(layer) is nw.BatchNorm2d


@LAZY
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 7), (6, 5, 3, 4), (6, 5, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("made", ["directly", "converted before", "converted after"])
def test_a_lazy_layer_becomes_ours_at_its_first_batch(made, shape):
    x, name = normal(*shape, dtype=F64), NAMES[len(shape)]
    theirs, ours = (
        getattr(norm, f"Lazy{name}")(eps=0.25, momentum=0.5, dtype=F64)
        for norm in (nn, nw if made == "directly" else nn)
    )
    model = nn.Sequential(ours)
    if made == "converted before":
        nw.convert(model)
    if made == "converted after":
        model(x)
        theirs(x)
        nw.convert(model)
    same(outcome(ours, x), outcome(theirs, x))
    assert (type(ours), type(model[0]), ours.num_features) == (getattr(nw, name), type(ours), 5)
    nw.revert(model)
    assert type(ours) is getattr(nn, name)


@LAZY
def test_a_lazy_layer_that_is_reverted_before_its_first_batch_becomes_torchs():
    for lazy in (nw.LazyBatchNorm2d(), nw.convert(nn.LazyBatchNorm2d())):
        assert type(lazy) is nw.LazyBatchNorm2d
        assert type(nw.revert(lazy)) is nn.LazyBatchNorm2d
        lazy(normal(4, 5, 3, 2))
        assert type(lazy) is nn.BatchNorm2d


@LAZY
@MADE
def test_a_lazy_layer_takes_its_size_from_a_checkpoint(made):
    lazy = nw.LazyBatchNorm2d(dtype=F64) if made == "directly" else nw.convert(nn.LazyBatchNorm2d(dtype=F64))
    _, theirs = layers(made)
    lazy.load_state_dict(theirs.state_dict())
    x = normal(4, 5, 3, 2, dtype=F64)
    same(outcome(lazy, x), outcome(theirs, x))
    assert type(lazy) is nw.BatchNorm2d


# --- checkpoints -----------------------------------------------------


@MADE
@pytest.mark.parametrize("metadata", ["version 1", "none"])
def test_a_checkpoint_from_before_the_counter_loads_strictly_as_torchs(made, metadata):
    ours, theirs = networks(made)
    old = OrderedDict((k, t + 1) for k, t in network().state_dict().items() if "num_batches" not in k)
    if metadata == "version 1":
        old._metadata = OrderedDict((k, {"version": 1}) for k in theirs.state_dict()._metadata)
    for model in (ours, theirs):
        model[1].num_batches_tracked.fill_(7)
        model.load_state_dict(old, strict=True)
    same(dict(ours.state_dict()), dict(theirs.state_dict()), 0)
    assert ours[1].num_batches_tracked.item() == theirs[1].num_batches_tracked.item()
    same(outcome(ours), outcome(theirs))


@MADE
def test_a_load_that_swaps_parameters_is_torchs(made):
    ours, theirs = networks(made)
    weight = ours[1].weight
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        ours.float().double().load_state_dict(theirs.state_dict())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert ours[1].weight is weight
    same(outcome(ours), outcome(theirs))


# --- weights that are computed --------------------------------------


@pytest.mark.parametrize("when", ["made directly", "before convert", "after convert"])
def test_a_parametrized_weight_gives_torchs_values_and_every_class_comes_back(when):
    ours, theirs = layers("directly" if when == "made directly" else "by convert")
    x, before = normal(4, 5, 3, 2, dtype=F64), type(ours)
    if when == "before convert":
        nw.revert(ours)
        before = type(ours)
    for layer in (ours, theirs):
        parametrize.register_parametrization(layer, "weight", nn.Softplus())
    parametrized = type(ours)
    nw.convert(ours)
    assert isinstance(ours, nw.BatchNorm2d)
    assert not isinstance(ours.weight, nn.Parameter)
    same(outcome(ours, x), outcome(theirs, x))
    if when == "before convert":
        nw.revert(ours)
        assert type(ours) is parametrized
        same(outcome(ours, x), outcome(theirs, x))
    for layer in (ours, theirs):
        parametrize.remove_parametrizations(layer, "weight")
    assert type(ours) is before
    same(outcome(ours, x), outcome(theirs, x))
    assert type(nw.revert(ours)) is nn.BatchNorm2d


@pytest.mark.parametrize("when", ["made directly", "before convert", "after convert"])
def test_a_pruned_weight_gives_torchs_values(when):
    ours, theirs = layers("directly" if when == "made directly" else "by convert")
    if when == "before convert":
        nw.revert(ours)
    for layer in (ours, theirs):
        prune.l1_unstructured(layer, "weight", amount=2)
    assert type(nw.convert(ours)) is nw.BatchNorm2d
    x = normal(4, 5, 3, 2, dtype=F64)
    for _ in range(2):  # with the mask, and with the zeros left where it was
        got = outcome(ours, x)
        assert (ours.weight == 0).sum().item() == 2
        same(got, outcome(theirs, x))
        for layer in (ours, theirs):
            if prune.is_pruned(layer):
                prune.remove(layer, "weight")
    assert isinstance(ours.weight, nn.Parameter)


@MADE
def test_functional_call_moves_the_buffers_it_is_given_and_no_others(made):
    x, before = normal(4, 3, 6, 6, dtype=F64), network().state_dict()
    results = []
    for model in networks(made):
        named = {name: p.detach() * 2 for name, p in model.named_parameters()}
        buffers = {name: t.clone() + 1 for name, t in model.named_buffers()}
        y = func.functional_call(model, named | buffers, (x,))
        results.append({"y": y.detach(), **buffers})
        for name, t in model.state_dict().items():
            same_bits(name, t, before[name])
    same(*results)
    assert results[0]["1.num_batches_tracked"].item() == 2


@MADE
def test_an_ensemble_of_stacked_models_gives_each_models_values(made):
    x, pairs = normal(4, 3, 6, 6, dtype=F64), [networks(made) for _ in range(3)]
    for k, pair in enumerate(pairs):
        for model in pair:
            model.eval().load_state_dict({name: t + k for name, t in model.state_dict().items()})
    ours = [ours for ours, _ in pairs]
    base, state = copy.deepcopy(ours[0]).to("meta"), func.stack_module_state(ours)
    y = func.vmap(lambda p, b: func.functional_call(base, (p, b), (x,)))(*state)
    for k, (_, theirs) in enumerate(pairs):
        agree(f"y of {k}", y[k], theirs(x), BOUND * 100)  # values below 100


# --- averaging, fusing, copying, autocast ----------------------------------


@MADE
@pytest.mark.parametrize("how", ["parameters", "buffers too", "exponential"])
def test_an_averaged_model_and_its_statistics_are_torchs(made, how):
    options = {} if how == "parameters" else {"use_buffers": True}
    if how == "exponential":
        options["multi_avg_fn"] = swa_utils.get_ema_multi_avg_fn(0.5)
    batches = [normal(4, 3, 6, 6, dtype=F64, seed=k) for k in range(3)]
    averaged = []
    for model in networks(made):
        average = swa_utils.AveragedModel(model, **options)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for x in batches:
            outcome(model, x)
            optimizer.step()
            average.update_parameters(model)
        averaged.append(average)
    ours_alone(averaged[0])
    for _ in range(2):
        same(*({name: t.clone() for name, t in average.state_dict().items()} for average in averaged))
        for average in averaged:
            swa_utils.update_bn(batches, average)
    assert averaged[0].module[1].num_batches_tracked.item() == 3
    assert averaged[0].module[1].momentum == 0.1


@MADE
def test_a_convolution_or_a_linear_layer_takes_the_norm_in_as_torchs(made):
    ours, theirs = (model.eval() for model in networks(made))
    x = normal(4, 3, 6, 6, dtype=F64)
    got, want = (fusion.fuse_conv_bn_eval(model[0], model[1]) for model in (ours, theirs))
    same_bits("weight", got.weight, want.weight)
    same_bits("bias", got.bias, want.bias)
    agree("y", got(x), ours[:2](x), BOUND * 100)  # values below 100
    (norm, torchs), linear, x = (
        layers(made, (6, 5)),
        nn.Linear(4, 5, dtype=F64).eval(),
        normal(6, 4, dtype=F64),
    )
    got, want = (fusion.fuse_linear_bn_eval(linear, layer.eval()) for layer in (norm, torchs))
    same_bits("weight", got.weight, want.weight)
    same_bits("bias", got.bias, want.bias)
    agree("y", got(x), norm(linear(x)), BOUND * 100)


def test_a_linear_layer_takes_in_a_norm_of_the_last_axis():
    x, linear = normal(6, 3, 4, dtype=F64), nn.Linear(4, 5, dtype=F64).eval()
    norm = nw.BatchNorm1d(5, channel_dim=-1, dtype=F64)
    norm.load_state_dict(twins(normal(6, 5, dtype=F64))[1].state_dict())
    agree("y", fusion.fuse_linear_bn_eval(linear, norm.eval())(x), norm(linear(x)), BOUND * 100)


@MADE
def test_torchs_own_converter_to_synchronized_layers_takes_ours(made):
    ours, theirs = (nn.SyncBatchNorm.convert_sync_batchnorm(model).eval() for model in networks(made))
    assert [type(m) for m in (ours[1], ours[2][2])] == [nn.SyncBatchNorm] * 2
    same(outcome(ours), outcome(theirs))


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.again = self.net[2][2]

    def forward(self, x):
        return self.again(self.net(x).sin())


def test_a_copy_of_a_converted_model_keeps_what_is_shared():
    theirs = Twice()
    ours = copy.deepcopy(nw.convert(copy.deepcopy(theirs)))
    assert ours.again is ours.net[2][2]
    ours_alone(ours)
    same(outcome(ours), outcome(theirs))
    assert ours.again.num_batches_tracked.item() == 2
    assert type(nw.revert(ours).again) is nn.BatchNorm2d


@MADE
def test_a_training_step_under_autocast_is_torchs(made):
    results = []
    for model in networks(made):
        model.float()
        with torch.autocast("cpu", BF16):
            results.append(outcome(model, dtype=torch.float32))
    assert results[0]["y0"].dtype == BF16
    same(*results, HALF)


def test_memory_of_a_model_can_be_shared():
    model = nw.convert(network()).to(BF16).share_memory()
    assert all(t.is_shared() for t in model.state_dict().values())
    assert model[1].running_mean.dtype == torch.float32
