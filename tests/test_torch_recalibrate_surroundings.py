"""`recalibrate` beside what else a model holds: other buffers, hooks, wrappers, statistics in other places."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.nn.intrinsic.qat import ConvBn2d
from torch.ao.quantization import MovingAverageMinMaxObserver, get_default_qat_qconfig
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, IterableDataset

import normwright.torch as nw
from beside_torch import normal, same_bits, state, untouched
from normwright.torch.statistics import feeding

BATCHES = [normal(6, 3, seed=k) for k in range(3)]
NAN = torch.full((6, 3), float("nan"))
ORDERS = pytest.mark.parametrize("order", ["joint", "sequential"])


# --- other buffers ------------------------------------------------------


class Keeps(nn.Module):
    """Moves buffers in every way, in evaluation too."""

    def __init__(self):
        super().__init__()
        for name in ("counted", "replaced"):
            self.register_buffer(name, torch.zeros(2))
        for name in ("resized", "cache"):
            self.register_buffer(name, torch.ones(1))
        self.register_buffer("none", None)

    def forward(self, x):
        self.counted.add_(1)
        self.replaced = self.replaced + 1
        self.resized.resize_(5).fill_(7)
        self.cache = torch.zeros(len(x))
        self.register_buffer("made", torch.zeros(1))
        return x


@ORDERS
@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
def test_buffers_of_other_modules_hold_what_they_held(order, fails):
    model = nn.Sequential(Keeps(), nn.BatchNorm1d(3), MovingAverageMinMaxObserver())
    kept = dict(model[0]._buffers)
    before = state(model)
    if fails:
        with pytest.raises(nw.NonfiniteError):
            nw.recalibrate(model, [BATCHES[0], NAN], order=order)
        same_bits("statistics", model[1].running_mean, before["1.running_mean"])
    else:
        nw.recalibrate(model, BATCHES, order=order)
    for name in ("counted", "replaced", "resized"):
        assert model[0]._buffers[name] is kept[name], name
        same_bits(name, kept[name], before[f"0.{name}"])
    for name in ("min_val", "max_val"):
        same_bits(name, model[2]._buffers[name], before[f"2.{name}"])
    assert (len(model[0].cache), len(model[0].made)) == (
        6,
        1,
    )  # caches stay: a module knows of them elsewhere


def test_buffers_that_nobody_moved_are_not_written():
    model = nn.Sequential(nn.BatchNorm1d(3))
    model.register_buffer("positions", torch.arange(3).expand(2, 3))  # cannot be written
    with torch.inference_mode():
        model.register_buffer("born", torch.ones(1).expand(4))
    version = model.positions._version
    nw.recalibrate(model, BATCHES)
    assert model.positions._version == version


# --- who looks at statistics meanwhile ----------------------------------


@ORDERS
def test_hooks_of_the_user_see_the_old_statistics_of_layers_that_are_not_done(order):
    model, want = nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.BatchNorm1d(3))
    model[0].running_mean.fill_(4.0)
    seen = []
    model[0].register_forward_hook(lambda module, args, y: seen.append(module.running_mean.mean().item()))
    model[0].register_forward_pre_hook(lambda module, args: seen.append(module.running_var.mean().item()))
    nw.recalibrate(model, BATCHES, order=order)
    nw.recalibrate(want, BATCHES, order=order)
    assert seen == [1.0, 4.0] * (3 if order == "joint" else 4)
    untouched(model, state(want))


@ORDERS
def test_a_convolution_of_quantization_that_reads_its_layers_statistics_is_measured(order):
    torch.manual_seed(0)
    model = ConvBn2d(3, 4, 3, qconfig=get_default_qat_qconfig())
    before = state(model)
    drift = nw.recalibrate(model, [normal(2, 3, 8, 8, seed=k) for k in range(2)], order=order)
    assert [(layer.name, layer.count) for layer in drift.layers] == [("bn", 2 * 2 * 6 * 6)]
    for name, t in state(model).items():
        if not name.startswith("bn."):
            same_bits(name, t, before[name])


def test_a_layer_that_fails_and_is_caught_shows_its_statistics_again():
    class Catches(nn.BatchNorm1d):
        def forward(self, input):
            if len(input) == 5:
                raise ValueError
            return super().forward(input)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.seen = Catches(3), []

        def forward(self, x):
            try:
                self.bn(x[:5])
            except ValueError:
                self.seen.append(self.bn.running_mean.clone())
            return self.bn(x)

    model = Net()
    nw.recalibrate(model, BATCHES)
    assert [t.tolist() for t in model.seen] == [[0.0] * 3] * 3


# --- where statistics are -----------------------------------------------


class Parameters(nn.BatchNorm1d):
    """Its statistics are parameters without a gradient, or plain attributes."""

    def __init__(self, channels, plain=False):
        super().__init__(channels)
        for name in ("running_mean", "running_var"):
            t = getattr(self, name)
            delattr(self, name)
            if plain:
                self.__dict__[name] = t
            else:
                setattr(self, name, nn.Parameter(t, requires_grad=False))


@ORDERS
@pytest.mark.parametrize("plain", [False, True], ids=["parameters", "attributes"])
def test_statistics_that_are_no_buffers_are_measured_as_any(plain, order):
    model, want = nn.Sequential(Parameters(3, plain), nn.BatchNorm1d(3)), network()
    kept = model[0].running_mean
    drift = nw.recalibrate(model, BATCHES, order=order)
    nw.recalibrate(want, BATCHES, order=order)
    assert [layer.name for layer in drift.layers] == ["0", "1"]
    assert model[0].running_mean is kept
    for k in range(2):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            same_bits(name, getattr(model[k], name).detach(), getattr(want[k], name))


def network():
    return nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))


def test_statistics_that_a_property_makes_are_refused():
    class Made(nn.BatchNorm1d):
        running_mean = property(lambda self: torch.zeros(3), lambda self, value: None)

    layer = nn.BatchNorm1d(3)
    del layer.running_mean
    layer.__class__ = Made
    with pytest.raises(nw.ShapeError, match="buffers, parameters or plain attributes, got '1', where"):
        nw.recalibrate(nn.Sequential(nn.BatchNorm1d(3), layer), BATCHES)


@pytest.mark.parametrize("how", ["the same", "a view"])
def test_layers_that_share_statistics_are_refused(how):
    model = network()
    before = state(model)
    model[1].running_var = model[0].running_var if how == "the same" else model[0].running_var.view(3)
    with pytest.raises(
        nw.ShapeError, match=r"of its own, got one tensor in '0' and '1'\. Use one layer in both"
    ):
        nw.recalibrate(model, BATCHES)
    untouched(model, before)


def test_an_average_around_a_wrapper_is_run_without_it():
    class Never(nn.DataParallel):
        def forward(self, *args):
            raise AssertionError("a wrapper that ran")

    inner, want = network(), network()
    drift = nw.recalibrate(AveragedModel(Never(inner)), BATCHES)
    nw.recalibrate(want, BATCHES)
    assert [layer.name for layer in drift.layers] == ["0", "1"]
    plain = nw.recalibrate(AveragedModel(network()), BATCHES)
    assert [layer.name for layer in plain.layers] == ["module.0", "module.1"]


# --- batches and numbers ------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.cat(BATCHES))


@ORDERS
def test_a_loader_whose_length_nobody_knows_is_read(order):
    model, want, told = network(), network(), []
    loader = DataLoader(Stream(), batch_size=6)
    drift = nw.recalibrate(model, loader, order=order, progress=lambda *now: told.append(now))
    nw.recalibrate(want, BATCHES, order=order)
    assert drift.batches == 3
    assert {total for _, total in told} == {None}
    untouched(model, state(want))


@pytest.mark.parametrize("prior", [np.int64(4), np.float32(4), 4.0])
def test_a_prior_may_be_any_real_number(prior):
    model, want = network(), network()
    nw.recalibrate(model, BATCHES, prior=prior)
    nw.recalibrate(want, BATCHES, prior=4)
    untouched(model, state(want))


def test_a_prior_and_the_counter_count_uses():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x):
            self.bn(x)
            return self.bn(x)

    model, want = Twice(), nn.BatchNorm1d(3)
    nw.recalibrate(model, BATCHES, prior=4)
    nw.recalibrate(want, [x for x in BATCHES for _ in range(2)], prior=4)
    untouched(model.bn, state(want))
    assert model.bn.num_batches_tracked == 6


@pytest.mark.parametrize(("device", "waits"), [("cpu", False), ("meta", True)])
def test_only_copies_to_a_device_may_be_read_before_they_are_made(device, waits, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda t, device, *, non_blocking: asked.append(non_blocking))
    feeding.Feed("call", nn.Linear(1, 1, device=device), None)._moved(torch.ones(1))
    assert asked == [waits]
