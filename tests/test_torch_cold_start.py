"""debias=True: a moving average that holds nothing of where it began, wherever training stops and goes on."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import close
import normwright.torch as nw
from beside_torch import UNIT, same_bits, state, twins, untouched
from moved import BOTH, DRIFTING, EACH, F32, SIZES, THREE, as_wanted, call_by, made, wanted


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # some 30 numbers: more threads would only wait for each other
    yield
    torch.set_num_threads(before)


# --- the cold start -------------------------------------------------------------------------------------------


@THREE
def test_after_ten_batches_of_mean_10_torchs_mean_is_6_5_and_the_debiased_10(path):
    x = torch.tensor([[9.0], [11.0]])  # variance 1 biased, 2 unbiased
    theirs = nn.BatchNorm1d(1)
    layer = nw.BatchNorm1d(1, **BOTH)
    call = call_by(path, layer)
    for _ in range(10):
        theirs(x)
        call(x)
        # each update rounds twice
        close.within("debiased", layer.running_mean.numpy(), np.array([10.0]), 4 * UNIT[F32] * 10)
        close.within("biased", layer.running_var.numpy(), np.array([1.0]), 4 * UNIT[F32])
    assert f"{theirs.running_mean.item():.4f}" == f"{10 * (1 - 0.9**10):.4f}" == "6.5132"


@EACH
@pytest.mark.parametrize(
    "momentum", [0.1, 1e-6, 0.3, 1.0]
)  # 1 - 0.1 and 1 - 1e-6 are no floating point numbers
def test_the_first_batch_replaces_what_was_there_entirely(momentum, path):
    layer, call = made(path, momentum=momentum, **BOTH)
    other, call_other = made(path.replace("compiled", "torch's own"), momentum=1.0, running_var="biased")
    layer.running_mean.fill_(1e30)  # a unit of which would be seen
    layer.running_var.fill_(1e30)
    for each in (call, call_other):
        each(DRIFTING[0])
    for name in ("running_mean", "running_var"):
        same_bits(name, getattr(layer, name), getattr(other, name))


@THREE
def test_a_batch_that_is_left_out_is_no_first_batch(path):
    layer, call = made(path, **BOTH)
    bad = DRIFTING[1].clone()
    bad[0, 3] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nw.SkippedUpdateWarning)
        for k, x in enumerate(DRIFTING):
            before = state(layer)
            call(bad)
            untouched(layer, before)
            call(x)
            as_wanted(layer, wanted(DRIFTING[: k + 1], **BOTH), k + 1)
    assert nw.skipped(layer) == {"": len(SIZES)}


@THREE
def test_a_batch_without_values_is_no_first_batch(path):
    layer, call = made(path, **BOTH)
    call(torch.zeros(0, 5))
    assert layer.num_batches_tracked.item() == 0
    call(DRIFTING[0])
    as_wanted(layer, wanted(DRIFTING[:1], **BOTH), 1)


@THREE
def test_after_many_batches_the_rate_is_the_momentum(path):
    layer, call = made(path, momentum=0.25, **BOTH)
    other, call_other = made(path.replace("compiled", "torch's own"), momentum=0.25, running_var="biased")
    for this, each in ((layer, call), (other, call_other)):
        this.num_batches_tracked.fill_(10**9)
        each(DRIFTING[0])
    for name in ("running_mean", "running_var"):
        same_bits(name, getattr(layer, name), getattr(other, name))


# --- passes that do not count, and training that goes on -------------------------------------------------------


@THREE
def test_a_pass_that_must_not_count_moves_nothing(path):
    layer, call = made(path, **BOTH)
    seen = []
    for x in DRIFTING[:3]:
        with nw.no_stat_update(layer):
            before = state(layer)
            call(x + 5)
            untouched(layer, before)
        call(x)
        seen.append(x)
    as_wanted(layer, wanted(seen, **BOTH), 3)


@pytest.mark.parametrize("path", ["native", "torch's own"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_a_pass_that_checkpointing_repeats_counts_once(reentrant, path):
    (layer, call), (other, call_other) = made(path, **BOTH), made(path, **BOTH)
    for x in DRIFTING[:3]:
        z = x.clone().requires_grad_()
        checkpoint(lambda z: call(z).sin(), z, use_reentrant=reentrant).sum().backward()
        call_other(x)
        untouched(layer, state(other))
    assert layer.num_batches_tracked.item() == 3


@THREE
def test_training_goes_on_from_a_checkpoint_where_it_stopped(path):
    whole, call_whole = made(path, **BOTH)
    first, call_first = made(path.replace("compiled", "native"), **BOTH)
    for k, x in enumerate(DRIFTING):
        call_whole(x)
        if k < 2:
            call_first(x)
    second, call_second = made(path, **BOTH)
    assert second.load_state_dict(first.state_dict(), strict=True).missing_keys == []
    for x in DRIFTING[2:]:
        call_second(x)
    as_wanted(second, wanted(DRIFTING, **BOTH), len(SIZES))
    if path != "compiled":  # whose first layer was uncompiled
        untouched(second, state(whole))


def test_a_checkpoint_that_has_lost_its_counter_begins_anew():
    layer = nw.BatchNorm1d(5, **BOTH)
    layer.load_state_dict(twins(DRIFTING[0])[1].state_dict())  # statistics, and a counter of 0
    layer(DRIFTING[1])
    as_wanted(layer, wanted(DRIFTING[1:2], **BOTH), 1)
    layer.reset_running_stats()
    layer(DRIFTING[2])
    as_wanted(layer, wanted(DRIFTING[2:3], **BOTH), 1)


def test_a_state_has_torchs_keys_and_loads_into_torchs_layer():
    layer, theirs = nw.BatchNorm1d(5, **BOTH), nn.BatchNorm1d(5)
    layer(DRIFTING[0])
    assert list(layer.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(layer.state_dict(), strict=True)
    x = DRIFTING[1]
    # one float32 division and product of values below 16
    close.within("y", layer.eval()(x).detach().numpy(), theirs.eval()(x).detach().numpy(), 8 * UNIT[F32] * 16)
