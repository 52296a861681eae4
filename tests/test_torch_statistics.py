"""load_statistics and export_statistics of one layer: the same inference, settings, biased and unbiased."""

import numpy as np
import pytest
import torch
from torch import nn

import close
import normwright.numpy as nwn
import normwright.torch as nw
from carried import LAYERS, NAMES, arrays, state, trained, unchanged
from normwright.core.conventions import CONVENTIONS, momentum_of
from normwright.torch import DtypeError, ShapeError, export_statistics, load_statistics

# ---- one layer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("which", NAMES)
def test_a_loaded_layer_infers_what_the_framework_does(kind, which):
    given, row = arrays(which), CONVENTIONS[which]
    if row.fix_gamma:
        given[row.fix_gamma] = False
    layer = load_statistics(kind(3), given, which).eval()
    gamma, beta, mean, var = (given[name].astype(float) for name in row.arrays)
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    rstd = 1 / np.sqrt(var + (0 if row.eps_inside else row.eps))
    want = (x - mean) * rstd * gamma + beta
    # Float32: docs/numerics.md allows 8 units of the terms; torch's own form, which multiplies the mean out, and an
    # eps taken out of the variance round a few times more.
    bound = 16 * 2.0**-24 * (np.abs(gamma) * rstd * (np.abs(x) + np.abs(mean)) + np.abs(beta))
    close.within("y", layer(torch.from_numpy(x)).detach(), want, bound)
    assert layer.eps == row.eps


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("which", NAMES)
def test_what_is_exported_loads_again_to_the_bit(kind, which):
    source = trained(kind, eps=1e-4, momentum=0.03)
    exported = export_statistics(source, which)
    target = load_statistics(kind(3, dtype=torch.float64), exported, which, updates=7)
    before = state(source)
    if CONVENTIONS[which].eps_inside:  # var + eps - eps rounds
        close.within("var", target.running_var, source.running_var, 2.0**-51 * source.running_var.numpy())
        target.running_var.copy_(source.running_var)
    unchanged(target, before)


def test_a_list_is_read_as_keras_get_weights_has_it():
    given = arrays()
    by_name, by_order = load_statistics(nn.BatchNorm1d(3), given), nn.BatchNorm1d(3)
    assert load_statistics(by_order, list(given.values())) is by_order
    unchanged(by_order, state(by_name))
    bare = load_statistics(nn.BatchNorm1d(3), list(given.values())[2:])
    assert bare.weight.tolist() == [1, 1, 1]
    assert np.array_equal(bare.running_var, given["moving_variance"])


def test_a_layer_without_scale_or_center_is_told_by_none():
    given = arrays() | {"gamma": None}
    layer = trained().float()
    load_statistics(layer, given)
    assert layer.weight.tolist() == [1, 1, 1]
    assert np.array_equal(layer.bias.detach(), given["beta"])
    del given["gamma"]
    before = state(layer)
    with pytest.raises(ShapeError, match=r"an array gamma, got none\. gamma: None says"):
        load_statistics(layer, given)
    unchanged(layer, before)


def test_a_layer_without_weight_takes_a_gamma_of_one_alone():
    layer = nn.BatchNorm1d(3, affine=False)
    given = arrays()
    load_statistics(layer, given | {"gamma": np.ones(3), "beta": None})
    with pytest.raises(ShapeError, match=r"no gamma but 1, as the layer has no weight"):
        load_statistics(layer, given | {"beta": None})
    with pytest.raises(ShapeError, match=r"no beta but 0, as the layer has no bias"):
        load_statistics(nn.BatchNorm1d(3, bias=False), given)
    exported = export_statistics(layer)
    assert list(exported) == ["moving_mean", "moving_variance", "epsilon", "momentum"]


def test_eps_is_the_arrays_or_what_is_said_or_the_frameworks_default():
    given = arrays()
    assert load_statistics(nn.BatchNorm1d(3), given).eps == 1e-3
    assert load_statistics(nn.BatchNorm1d(3), given, eps=1.001e-5).eps == 1.001e-5
    assert load_statistics(nn.BatchNorm1d(3), given | {"epsilon": 1e-4}).eps == 1e-4
    assert load_statistics(nn.BatchNorm1d(3), given | {"epsilon": np.float32(1e-4)}, eps=1e-4).eps == 1e-4
    with pytest.raises(ShapeError, match=r"epsilon=0.001, as was said, got 0.0001 among the arrays"):
        load_statistics(nn.BatchNorm1d(3), given | {"epsilon": 1e-4}, eps=1e-3)
    for bad in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ShapeError, match="epsilon >= 0, and finite"):
            load_statistics(nn.BatchNorm1d(3), given, eps=bad)


def test_momentum_is_turned_where_it_is_known_and_stays_where_it_is_not():
    given = arrays()
    assert load_statistics(nn.BatchNorm1d(3, momentum=0.3), given).momentum == 0.3
    assert load_statistics(nn.BatchNorm1d(3), given, momentum=0.99).momentum == 0.01
    assert load_statistics(nn.BatchNorm1d(3), given | {"momentum": 0.9997}).momentum == 0.0003
    torchs = arrays("pytorch") | {"momentum": None, "num_batches_tracked": torch.tensor(5)}
    layer = load_statistics(nn.BatchNorm1d(3), torchs, "pytorch")
    assert layer.momentum is None
    assert layer.num_batches_tracked == 5
    with pytest.raises(ShapeError, match="momentum to be a number, got None"):
        load_statistics(nn.BatchNorm1d(3), given | {"momentum": None})
    assert "momentum" not in export_statistics(layer)
    assert export_statistics(layer, "pytorch")["momentum"] is None


def test_the_counter_is_what_was_said_and_stays_otherwise():
    layer = trained(updates=7).float()
    assert load_statistics(layer, arrays()).num_batches_tracked == 7
    assert load_statistics(layer, arrays(), updates=500).num_batches_tracked == 500


@pytest.mark.parametrize("how", ["momentum=None", "debias"])
def test_where_the_counter_weighs_the_next_batch_it_must_be_said(how):
    """With a counter of 0 the next batch would replace all that was loaded."""
    layer = nw.BatchNorm1d(3)
    if how == "debias":
        layer.debias = True
    else:
        layer.momentum = None
    before = state(layer)
    with pytest.raises(ShapeError, match=r"updates, the batches so far, got none"):
        load_statistics(layer, arrays())
    unchanged(layer, before)
    assert load_statistics(layer, arrays(), updates=4).num_batches_tracked == 4


def test_mxnets_gamma_is_asked_for_unless_it_is_one():
    given = arrays("mxnet")
    with pytest.raises(ShapeError, match=r"fix_gamma among the arrays, gamma not being 1, got none"):
        load_statistics(nn.BatchNorm1d(3), given, "mxnet")
    off = load_statistics(nn.BatchNorm1d(3), given | {"fix_gamma": False}, "mxnet")
    assert np.array_equal(off.weight.detach(), given["gamma"])
    on = load_statistics(nn.BatchNorm1d(3), given | {"fix_gamma": True}, "mxnet")
    assert on.weight.tolist() == [1, 1, 1]
    load_statistics(nn.BatchNorm1d(3), given | {"gamma": np.ones(3)}, "mxnet")
    load_statistics(nn.BatchNorm1d(3), arrays("gluon"), "gluon")
    assert export_statistics(off, "mxnet")["fix_gamma"] is False


def test_every_type_of_tensor_is_rounded_once():
    given = {name: a.astype(np.float64) + 1 / 3 for name, a in arrays().items()}
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        layer = load_statistics(nn.BatchNorm1d(3, dtype=dtype), given)
        buffer, place = layer.running_var, layer.running_var.data_ptr()
        assert torch.equal(layer.running_var, torch.from_numpy(given["moving_variance"]).to(dtype))
        assert load_statistics(layer, given).running_var is buffer
        assert buffer.data_ptr() == place  # in place: whoever shares it sees it
        exported = export_statistics(layer)["moving_variance"]
        assert exported.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    wide = given | {"moving_variance": np.array([1.0, 1e6, 1.0])}
    with pytest.raises(ShapeError, match=r"moving_variance that torch.float16 can hold, got 1e\+06"):
        load_statistics(nn.BatchNorm1d(3, dtype=torch.float16), wide)


def test_bfloat16_arrays_and_tensors_are_read():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 as a NumPy type is for development alone")
    given = arrays()
    want = load_statistics(nn.BatchNorm1d(3), {k: torch.from_numpy(a).bfloat16() for k, a in given.items()})
    got = load_statistics(nn.BatchNorm1d(3), {k: a.astype(ml_dtypes.bfloat16) for k, a in given.items()})
    unchanged(got, state(want))


def test_the_numpy_doors_layer_and_the_torch_doors_hold_the_same():
    theirs = nwn.BatchNorm(3, eps=1e-4, momentum=0.8)
    x = np.random.default_rng(0).normal(3, 2, (9, 3))
    theirs.train(x)
    row = CONVENTIONS["numpy"]
    named = {name: getattr(theirs, name) for name in (*row.arrays, row.eps_name, row.momentum_name)}
    ours = load_statistics(nw.BatchNorm1d(3, dtype=torch.float64), named, "numpy").eval()
    # The same kernels on the same float64 numbers: the same bits.
    assert np.array_equal(ours(torch.from_numpy(x)).detach(), theirs.predict(x))
    exported = export_statistics(ours, "numpy")
    assert all(np.array_equal(exported[name], value) for name, value in named.items())


# ---- biased and unbiased ---------------------------------------------------------------------------------------


def test_a_count_turns_the_variance_into_what_torch_would_have_recorded():
    """Seven batches of eight values, recorded by torch and by the rule of Keras."""
    torch.manual_seed(0)
    ours, batches = nn.BatchNorm1d(3, dtype=torch.float64, momentum=0.01), torch.randn(7, 8, 3).double() * 4
    biased = np.ones(3)
    for batch in batches:
        ours(batch)
        biased = 0.99 * biased + 0.01 * batch.numpy().var(axis=0)
    given = arrays() | {"moving_mean": ours.running_mean, "moving_variance": biased}
    more = {"count": 8, "updates": 7, "momentum": 0.99}
    got = load_statistics(nn.BatchNorm1d(3, dtype=torch.float64), given, **more)
    # Seven float64 updates on either side, a few roundings each.
    close.within("var", got.running_var, ours.running_var, 1e-14 * ours.running_var.numpy())
    back = export_statistics(got, count=8, updates=7)["moving_variance"]  # the momentum is the layer's
    close.within("back", back, biased, 1e-14 * biased)
    assert np.abs(biased / ours.running_var.numpy() - 1).min() > 1e-3  # the count has something to do


def test_a_layer_that_records_the_biased_variance_takes_keras_as_it_is():
    layer = nw.BatchNorm1d(3)
    layer.recorded_var = "biased"
    given = arrays()
    load_statistics(layer, given, count=8)
    assert np.array_equal(layer.running_var, given["moving_variance"])
    assert np.array_equal(export_statistics(layer, count=8)["moving_variance"], given["moving_variance"])
    load_statistics(layer, arrays("pytorch"), "pytorch", count=8, debiased=True)
    close.within("var", layer.running_var, arrays("pytorch")["running_var"] * (7 / 8), 2.0**-23)


def test_debiased_statistics_need_no_updates():
    given = arrays()
    layer = load_statistics(nn.BatchNorm1d(3), given, count=8, debiased=True)
    want = given["moving_variance"].astype(float) * 8 / 7
    close.within("var", layer.running_var, want, 2.0**-24 * want)
    assert layer.num_batches_tracked == 0
    population = nw.BatchNorm1d(3, dtype=torch.float64)
    population.running_var.fill_(8 / 7)
    exported = export_statistics(population, count=8, debiased=True)["moving_variance"]
    close.within("population", exported, np.ones(3), 1e-15)
    population.debias = True
    exported = export_statistics(population, count=8)["moving_variance"]
    close.within("debias=True", exported, np.ones(3), 1e-15)
    plain_mean = nn.BatchNorm1d(3, dtype=torch.float64, momentum=None)
    plain_mean.running_var.fill_(8 / 7)
    plain_mean.num_batches_tracked.fill_(3)
    close.within(
        "momentum=None", export_statistics(plain_mean, count=8)["moving_variance"], np.ones(3), 1e-15
    )
    plain_mean.num_batches_tracked = None
    close.within("no counter", export_statistics(plain_mean, count=8)["moving_variance"], np.ones(3), 1e-15)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"count": 8}, r"updates >= 1 with a count, got none\. The average starts at 1, and what is left"),
        ({"count": 8, "updates": 0}, r"updates >= 1 with a count, got 0"),
        ({"count": 8, "updates": 5}, r"momentum with a count, got none; the default is 0\.99"),
        ({"count": 1, "updates": 5, "momentum": 0.99}, "count >= 2, got 1"),
        ({"count": {}, "updates": 5, "momentum": 0.99}, "count of every layer, got none of ''"),
        ({"updates": -1}, "updates >= 0, got -1"),
        ({"count": 8, "updates": 5, "momentum": 1.5}, "momentum from 0 to 1, got 1.5"),
        (
            {"count": 8, "updates": 5, "momentum": 0.9999},
            "at least 0.9995.*, the share of its start after 5 updates",
        ),
    ],
)
def test_a_conversion_that_cannot_be_exact_is_refused_with_the_reason(more, words):
    layer = trained().float()
    before = state(layer)
    with pytest.raises(ShapeError, match=words):
        load_statistics(layer, arrays(), **more)
    unchanged(layer, before)


def test_an_export_whose_counter_is_lost_is_refused_with_the_reason():
    layer = trained()
    layer.num_batches_tracked.zero_()
    with pytest.raises(ShapeError, match="updates >= 1 with a count, got none but a counter of 0"):
        export_statistics(layer, count=8)
    export_statistics(layer, count=8, updates=7)
    layer.num_batches_tracked = None
    with pytest.raises(ShapeError, match="updates >= 1 with a count, got none"):
        export_statistics(layer, count=8)


def test_a_counter_of_batches_that_were_measured_is_not_taken_for_updates():
    """`recalibrate` sets the counter too, and its variance holds nothing of a start."""
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(1, dtype=torch.float64)
    batches = [torch.randn(64, 1, dtype=torch.float64) * 3 for _ in range(5)]
    nw.recalibrate(layer, batches)
    words = r"updates >= 1 with a count, got none but a counter of 5\..*debiased=True .*as after recalibrate"
    with pytest.raises(ShapeError, match=words):
        export_statistics(layer, count=320)
    want = torch.cat(batches).numpy().var(0)
    close.within("var", export_statistics(layer, count=320, debiased=True)["moving_variance"], want, 1e-13)
    given = export_statistics(layer, "pytorch")
    biased = nw.BatchNorm1d(1, running_var="biased")
    with pytest.raises(ShapeError, match=words):
        load_statistics(biased, given, "pytorch", count=320)
    load_statistics(biased.double(), given, "pytorch", count=320, debiased=True)
    close.within("loaded", biased.running_var, want, 1e-13)


@pytest.mark.parametrize("name", ["count", "updates"])
def test_a_count_that_is_no_integer_is_refused(name):
    with pytest.raises(DtypeError, match=f"{name} to be an integer, got 8.5"):
        load_statistics(nn.BatchNorm1d(3), arrays(), **{name: 8.5})


def test_the_momentum_of_every_framework_is_exported_in_its_words():
    layer = nn.BatchNorm1d(3, momentum=0.01)
    for which, row in CONVENTIONS.items():
        assert export_statistics(layer, which)[row.momentum_name] == momentum_of(0.01, which)
    assert export_statistics(layer, "keras")["momentum"] == 0.99
    assert export_statistics(layer, "pytorch")["num_batches_tracked"].dtype == np.int64
