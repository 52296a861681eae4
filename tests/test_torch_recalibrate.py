"""`recalibrate`: the statistics it writes, beside NumPy's on the whole data set."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import close
import normwright.torch as nw
from beside_torch import agree, last_place, normal, same_bits, untouched
from beside_torch import state as state_of

F64, F32 = torch.float64, torch.float32
# Both sides sum some 1000 terms in float64, in different orders: the bound, a thousand roundings.
TIGHT = 1e-12
EPS = 1e-5


def network(norm=nn, dtype=F64):
    """Dropout before each norm; weights are not the initial ones."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Dropout(0.5), norm.BatchNorm1d(4), nn.Linear(4, 3), nn.Dropout(0.5), norm.BatchNorm1d(3), nn.Linear(3, 2)
    ).to(dtype)  # fmt: skip


def batches(dtype=F64):
    """Of 1000 and of 2, of another mean each, far from 0 beside their deviation."""
    return [
        normal(n, 4, dtype=F64, seed=k, mean=mean).mul(0.03).add(1e3).to(dtype)
        for k, (n, mean) in enumerate([(1000, 0), (2, 40), (100, -3)])
    ]


def normalized(x, mean, var):
    return (x - mean) / np.sqrt(var + EPS)


def linear(model, at, x):
    weight, bias = (p.detach().double().numpy() for p in (model[at].weight, model[at].bias))
    return x @ weight.T + bias


def inputs_of_the_second(model, xs, statistics=None):
    """What the second norm sees, where the first normalizes by its batch or by the statistics given."""
    by = [statistics or (x.mean(0), x.var(0)) for x in xs]
    return [linear(model, 2, normalized(x, *each)) for x, each in zip(xs, by, strict=True)]


def pooled(xs, ddof=1):
    whole = np.concatenate(xs)
    return whole.mean(0), whole.var(0, ddof=ddof)


def same_statistics(layer, want, bound=TIGHT):
    """In proportion to the largest value, as rounding is."""
    for name, values in zip(("running_mean", "running_var"), want, strict=True):
        got = getattr(layer, name).double().numpy()
        close.within(name, got, values, bound * np.abs(values).max())


# --- the three methods ------------------------------------------------


@pytest.mark.parametrize("norm", [nn, nw], ids=["torch's layers", "ours"])
@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_pooled_statistics_are_those_of_the_whole_data_set(norm, order):
    model, xs = network(norm), [x.numpy() for x in batches()]
    nw.recalibrate(model.train(), batches(), order=order)
    first = pooled(xs)
    same_statistics(model[1], first)
    seen = inputs_of_the_second(model, xs, first if order == "sequential" else None)
    # The offset of 1e3 costs the first norm's output, and so the second's input, 1e3 / 0.03 roundings in float64.
    same_statistics(model[4], pooled(seen), 1e3 / 0.03 * 2.0**-53 * 16)
    assert model[1].num_batches_tracked.item() == 3


@pytest.mark.parametrize("norm", [nn, nw], ids=["torch's layers", "ours"])
def test_float32_statistics_are_rounded_once(norm):
    model = network(norm, F32)
    nw.recalibrate(model, batches(F32))
    for name, want in zip(
        ("running_mean", "running_var"), pooled([x.double().numpy() for x in batches(F32)]), strict=True
    ):
        want = torch.from_numpy(want)
        # half a unit of the last place, and the float64 sums' own roundings
        bound = (last_place(F32, want) * 0.501).numpy()
        agree(name, getattr(model[1], name).double(), want, bound)


def test_algorithm_2_is_the_papers():
    model, xs = network(), [x.numpy() for x in batches()]
    nw.recalibrate(model, batches(), method="algorithm2")
    mean = np.mean([x.mean(0) for x in xs], axis=0)
    same_statistics(model[1], (mean, np.mean([x.var(0, ddof=1) for x in xs], axis=0)))


@pytest.mark.parametrize(
    ("momentum", "debias"), [(0.1, False), (0.7, False), (None, False), (0.1, True), (None, True)]
)
def test_moving_goes_on_as_training_would_have(momentum, debias):
    model = nw.convert(network()) if debias else network()
    for layer in (model[1], model[4]):
        layer.momentum = momentum
        if debias:
            layer.debias = True
    model.train()
    for layer in (model[0], model[3]):
        layer.eval()  # Dropout off: training passes of the norms alone
    for x in batches():
        model(x)
    want = copy.deepcopy(model)
    for x in batches():
        want(x)
    nw.recalibrate(model, batches(), method="moving")
    for at in (1, 4):
        statistics = [t.double().numpy() for t in (want[at].running_mean, want[at].running_var)]
        same_statistics(model[at], statistics, 1e-9)  # torch's own mean and variance at an offset of 1e3
        assert model[at].num_batches_tracked.item() == want[at].num_batches_tracked.item() == 6


def test_a_prior_counts_as_so_many_samples():
    model = nn.BatchNorm2d(3).double()
    model.running_mean.copy_(torch.tensor([1.0, -2.0, 3.0]))
    model.running_var.copy_(torch.tensor([0.5, 2.0, 4.0]))
    model.num_batches_tracked.fill_(7)
    old = model.running_mean.numpy().copy(), model.running_var.numpy().copy()
    data = [normal(5, 3, 2, 2, dtype=F64), normal(3, 3, 2, 2, dtype=F64, seed=1)]
    nw.recalibrate(model, data, prior=24)  # 8 images, whatever their pixels: 3 to 1
    new = pooled([x.movedim(1, -1).reshape(-1, 3).numpy() for x in data])
    same_statistics(model, [0.75 * a + 0.25 * b for a, b in zip(old, new, strict=True)])
    assert model.num_batches_tracked.item() == 9


def test_a_prior_of_nothing_changes_nothing():
    with_it, without = network(), network()
    nw.recalibrate(with_it, batches(), prior=0)
    nw.recalibrate(without, batches())
    untouched(with_it, state_of(without))


# --- how batches are weighed ------------------------------------------


@pytest.mark.parametrize("sizes", [[7, 7, 7, 7], [27, 1], [1, 27], [1] * 28, [0, 28, 0]], ids=str)
def test_the_sizes_of_the_batches_do_not_matter(sizes):
    data = normal(28, 3, dtype=F64)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).double()
    nw.recalibrate(model, data.split(sizes))
    same_statistics(model[0], pooled([data.numpy()]))
    assert model[0].num_batches_tracked.item() == sum(size > 0 for size in sizes)
    assert torch.isfinite(model[1].running_var).all()


def test_a_single_value_is_normalized_by_all_values_so_far():
    data = normal(28, 3, dtype=F64)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).double()
    nw.recalibrate(model, data.split([27, 1]))
    x = data.numpy()
    seen = [normalized(x[:27], x[:27].mean(0), x[:27].var(0)), normalized(x[27:], x.mean(0), x.var(0))]
    same_statistics(model[1], pooled(seen))


def test_drifting_data_are_pooled_exactly():
    x = torch.linspace(0, 5, 103, dtype=F64)[:, None] + normal(103, 3, dtype=F64)
    model = nn.BatchNorm1d(3).double()
    nw.recalibrate(model, x.split(10))  # the last one has 3
    same_statistics(model, pooled([x.numpy()]))


def test_a_layer_that_is_used_twice_is_measured_over_both_uses():
    layer = nn.BatchNorm1d(3).double()

    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x) + self.layer(5 - 3 * x)

    for order in ("joint", "sequential"):
        layer.reset_running_stats()
        data = [normal(6, 3, dtype=F64), normal(2, 3, dtype=F64, seed=1)]
        drift = nw.recalibrate(Twins(), data, order=order)
        same_statistics(layer, pooled([y.numpy() for x in data for y in (x, 5 - 3 * x)]))
        assert (drift.layers[0].count, layer.num_batches_tracked.item(), drift.passes) == (16, 4, 1)


# --- which layers ------------------------------------------------------


class NormAct(nn.BatchNorm2d):
    """A subclass with a forward of its own, as model zoos have them."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.5), nn.ReLU(inplace=True)

    def forward(self, x):
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )  # fmt: skip
        return self.act(self.drop(y))


class ByHand(nn.BatchNorm2d):
    """A subclass that cannot do without statistics, and counts in evaluation too."""

    def forward(self, input):
        self.num_batches_tracked.add_(1)
        mean, var = (t[:, None, None] for t in (self.running_mean, self.running_var))
        return (input - mean) / (var + self.eps).sqrt()


def layers_of(kind, channels):
    if kind == "sync":
        return nn.SyncBatchNorm(channels)
    if kind == "channels on the last axis":
        return nn.Sequential(Last(), nw.BatchNorm2d(channels, channel_dim=-1), First())
    if kind == "biased":
        layer = nw.BatchNorm2d(channels)
        layer.recorded_var = "biased"
        return layer
    return {"torch": nn.BatchNorm2d, "ours": nw.BatchNorm2d, "subclass": NormAct, "by hand": ByHand}[kind](
        channels
    )


class Last(nn.Module):
    def forward(self, x):
        return x.movedim(1, -1)


class First(nn.Module):
    def forward(self, x):
        return x.movedim(-1, 1)


@pytest.mark.parametrize("order", ["joint", "sequential"])
@pytest.mark.parametrize(
    "kind", ["torch", "ours", "sync", "subclass", "by hand", "channels on the last axis", "biased"]
)
def test_every_kind_of_layer_is_measured(kind, order):
    model = nn.Sequential(layers_of(kind, 3), nn.Conv2d(3, 3, 1), layers_of(kind, 3)).double().train()
    data = [normal(4, 3, 5, 2, dtype=F64), normal(2, 3, 5, 2, dtype=F64, seed=1, mean=-4.0)]
    first, second = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    kept = first.running_mean
    drift = nw.recalibrate(model, data, order=order)
    assert first.running_mean is kept
    assert [layer.count for layer in drift.layers] == [60, 60]
    xs = [x.movedim(1, -1).reshape(-1, 3).numpy() for x in data]
    ddof = 0 if kind == "biased" else 1
    same_statistics(first, pooled(xs, ddof))

    by = [pooled(xs, ddof)] * 2 if order == "sequential" else [(x.mean(0), x.var(0)) for x in xs]
    outputs = [normalized(x, *each) for x, each in zip(xs, by, strict=True)]
    outputs = [np.maximum(y, 0) if kind == "subclass" else y for y in outputs]
    weight = model[1].weight.detach().double().numpy()[:, :, 0, 0]
    seen = [y @ weight.T + model[1].bias.detach().numpy() for y in outputs]
    same_statistics(second, pooled(seen, ddof))
    assert first.num_batches_tracked.item() == 2


def test_a_joint_pass_normalizes_to_the_bit_as_training_does():
    model = network(nw, F32)
    seen = []
    model[4].register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    nw.recalibrate(model, batches(F32))
    model.train()
    model[0].eval()
    model[3].eval()
    with torch.no_grad():
        for x in batches(F32):
            model(x)
    for k in range(3):
        same_bits("input of the second norm", seen[k], seen[k + 3])


def test_layers_that_no_batch_reaches_stay_and_are_named():
    model = network()
    model.add_module("spare", nn.BatchNorm1d(9))
    before = state_of(model[-1])
    for order in ("joint", "sequential"):
        drift = nw.recalibrate(model, batches(), order=order, forward=lambda m, x: m[:5](x))
        assert (drift.unreached, drift.frozen) == (("spare",), ())
        untouched(model.spare, before)


def test_frozen_layers_stay_and_are_named():
    model = nn.Sequential(nw.freeze(nw.BatchNorm1d(3)), nw.BatchNorm1d(3)).double()
    before = state_of(model[0])
    drift = nw.recalibrate(model, [normal(8, 3, dtype=F64)])
    assert (drift.frozen, [layer.name for layer in drift.layers]) == (("0",), ["1"])
    untouched(model[0], before)
    same_statistics(model[1], pooled([normal(8, 3, dtype=F64).numpy() / np.sqrt(1 + EPS)]))


def test_layers_without_statistics_stay_without():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3)).double()
    drift = nw.recalibrate(model, [normal(8, 3, dtype=F64)])
    assert [layer.name for layer in drift.layers] == ["1"]
    assert model[0].running_mean is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_statistics_are_rounded_once(dtype):
    layer = nn.BatchNorm1d(64).to(dtype)
    x = normal(33, 64).to(dtype)
    nw.recalibrate(layer, [x])
    assert layer.running_mean.dtype == dtype
    for name, want in zip(("running_mean", "running_var"), pooled([x.double().numpy()]), strict=True):
        want = torch.from_numpy(want)
        agree(name, getattr(layer, name).double(), want, (last_place(dtype, want) * 0.5000001).numpy())


def test_statistics_that_a_nan_has_poisoned_are_repaired():
    model = network()
    model[1].running_mean.fill_(float("nan"))
    drift = nw.recalibrate(model, batches(), order="sequential")
    same_statistics(model[1], pooled([x.numpy() for x in batches()]))
    assert "with old statistics that are not finite" in " ".join(str(drift).split())
