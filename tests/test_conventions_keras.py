"""Keras itself beside ours, on its TensorFlow and torch backends: inference in both directions, and training."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

import close
import normwright.torch as nw
from carried import same_inference
from carried import trained_in_float32 as exported
from every_kernel import run_python
from normwright.core.conventions import CONVENTIONS

BACKENDS = {"tensorflow": "tensorflow", "torch": "torch"}
COUNT, UPDATES, MOMENTUM, EPS = 24, 6, 0.9, 3e-3
NAMES = CONVENTIONS["keras"].arrays
SHAPES = {"rows": (24, 5), "last": (2, 3, 4, 5), "first": (2, 5, 3, 4)}  # 24 values per channel each

# Keras chooses its backend when it is imported: a process for each, which does all that is asked of Keras.
KERAS = """
import sys
import numpy as np
import keras

given, out = dict(np.load(sys.argv[1])), {}
names = ("gamma", "beta", "moving_mean", "moving_variance")


def numpy_of(t):
    return keras.ops.convert_to_numpy(t)


def layer(shape, **options):
    made = keras.layers.BatchNormalization(**options)
    made.build(shape)
    return made


default = layer((4, 5))
out["default"] = np.array([default.momentum, default.epsilon])
for name, w in zip(names, default.get_weights()):
    out[f"start/{name}"] = w
out["order"] = np.array([w.path.rpartition("/")[2] for w in default.weights])

for case, axis in (("rows", -1), ("last", -1), ("first", 1)):
    batches = given[f"{case}/batches"]
    theirs = layer(batches[0].shape, axis=axis, momentum=float(given["momentum"]), epsilon=float(given["eps"]))
    theirs.gamma.assign(given["gamma"])
    theirs.beta.assign(given["beta"])
    for batch in batches:
        theirs(batch, training=True)
    for name, w in zip(names, theirs.get_weights()):
        out[f"{case}/{name}"] = w
    out[f"{case}/y"] = numpy_of(theirs(batches[0], training=False))
    # one of ours, exported
    ours = {name: float(given[f"ours/{name}"]) for name in ("epsilon", "momentum")}
    back = layer(batches[0].shape, axis=axis, **ours)
    back.set_weights([given[f"ours/{name}"] for name in names])
    out[f"{case}/back"] = numpy_of(back(batches[0], training=False))

bare = layer((24, 5), center=False, scale=False)
bare.set_weights(list(given["bare"]))
out["bare/y"] = numpy_of(bare(given["rows/batches"][0], training=False))

model = keras.Sequential([
    keras.layers.Dense(4, use_bias=False, name="dense"), keras.layers.BatchNormalization(name="bn_a"),
    keras.layers.Dense(3, use_bias=False, name="head"), keras.layers.BatchNormalization(name="bn_b", scale=False),
])
model.build((None, 5))
rng = np.random.default_rng(3)
for w in model.weights:
    w.assign(np.exp(rng.normal(size=tuple(w.shape))))
for w in model.weights:
    out[f"model/{w.path}"] = numpy_of(w)
out["model/y"] = numpy_of(model(given["rows/batches"][0], training=False))
np.savez(sys.argv[2], **out)
"""


@pytest.fixture(scope="module", params=BACKENDS)
def both(request, tmp_path_factory):
    """What Keras was given and what came out, on one backend."""
    for package in ("keras", BACKENDS[request.param]):
        if importlib.util.find_spec(package) is None:
            pytest.skip(
                f"{package} is not installed: it is for development, and has no wheel for every Python"
            )
    folder, rng = tmp_path_factory.mktemp(request.param), np.random.default_rng(0)
    given = {
        f"{case}/batches": rng.normal(3, 2, (UPDATES, *shape)).astype(np.float32)
        for case, shape in SHAPES.items()
    }
    given |= {name: rng.normal(size=5).astype(np.float32) for name in ("gamma", "beta")}
    given |= {"bare": np.exp(rng.normal(size=(2, 5))).astype(np.float32), "momentum": MOMENTUM, "eps": EPS}
    given |= {f"ours/{name}": value for name, value in nw.export_statistics(exported(), "keras").items()}
    np.savez(folder / "given.npz", **given)
    code = (
        f"import sys; sys.argv = ['', {str(folder / 'given.npz')!r}, {str(folder / 'out.npz')!r}]\n" + KERAS
    )
    home = str(folder)  # where Keras writes its settings
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": "1"}
    run_python(code, KERAS_BACKEND=request.param, KERAS_HOME=home, **quiet)
    return given, dict(np.load(folder / "out.npz"))


def rows(x, case):
    """(N, C)"""
    return np.moveaxis(x, 1, -1).reshape(-1, 5) if case == "first" else x.reshape(-1, x.shape[-1])


def test_keras_defaults_names_and_start_are_those_of_the_table(both):
    _, out = both
    row = CONVENTIONS["keras"]
    assert out["default"].tolist() == [row.momentum, row.eps]
    assert out["order"].tolist() == list(row.arrays)
    assert (out[f"start/{row.mean}"] == 0).all()
    assert (out[f"start/{row.var}"] == row.starts_at).all()


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nw.BatchNorm1d])
@pytest.mark.parametrize("case", SHAPES)
def test_a_keras_layer_and_ours_infer_the_same_after_the_transfer(both, case, kind):
    given, out = both
    arrays = {name: out[f"{case}/{name}"] for name in NAMES}
    layer = nw.load_statistics(kind(5), arrays, eps=EPS).eval()
    x = rows(given[f"{case}/batches"][0], case)
    with torch.no_grad():
        ours = layer(torch.from_numpy(np.ascontiguousarray(x))).numpy()
    for y in (ours, rows(out[f"{case}/y"], case)):
        same_inference(y, x, *arrays.values(), EPS)


@pytest.mark.parametrize("case", SHAPES)
def test_a_layer_of_ours_and_keras_infer_the_same_after_the_transfer_back(both, case):
    given, out = both
    layer, x = exported(), rows(given[f"{case}/batches"][0], case)
    held = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    with torch.no_grad():
        ours = layer(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        for y in (ours, rows(out[f"{case}/back"], case)):
            same_inference(y, x, *(t.numpy() for t in held), layer.eps)


@pytest.mark.parametrize("case", SHAPES)
def test_what_keras_recorded_becomes_what_torch_records_of_the_same_batches(both, case):
    given, out = both
    ours = nn.BatchNorm1d(5, momentum=0.1)
    for batch in given[f"{case}/batches"]:
        ours(torch.from_numpy(np.ascontiguousarray(rows(batch, case))))
    arrays = {name: out[f"{case}/{name}"] for name in NAMES}
    told = {"count": COUNT, "updates": UPDATES, "momentum": MOMENTUM, "eps": EPS}
    layer = nw.load_statistics(nn.BatchNorm1d(5), arrays, **told)
    # Two float32 recursions of six steps, three roundings in each; Keras' torch backend takes a batch's variance as
    # E[x^2] - E[x]^2, which here loses another (3^2 + 2^2) / 2^2 of its units.
    for name in ("running_mean", "running_var"):
        want = getattr(ours, name).numpy()
        close.within(name, getattr(layer, name), want, 80 * 2.0**-24 * np.abs(want).max())
    # 23/24 of the batches' share is missing without the conversion: it was not for nothing.
    assert np.abs(arrays["moving_variance"] / ours.running_var.numpy() - 1).min() > 1e-2
    assert layer.momentum == 0.1
    assert layer.num_batches_tracked == UPDATES
    back = nw.export_statistics(layer, count=COUNT, updates=UPDATES)["moving_variance"]
    close.within("back", back, arrays["moving_variance"], 4 * 2.0**-24 * back)


def test_a_list_without_center_and_scale_is_read(both):
    given, out = both
    layer = nw.load_statistics(nw.BatchNorm1d(5), list(given["bare"])).eval()
    x = given["rows/batches"][0]
    with torch.no_grad():
        ours = layer(torch.from_numpy(x)).numpy()
    for y in (ours, out["bare/y"]):
        same_inference(y, x, np.ones(5), np.zeros(5), *given["bare"], 1e-3)


def test_a_whole_keras_model_is_loaded_by_its_weights_paths(both):
    given, out = both
    weights = {key.removeprefix("model/"): a for key, a in out.items() if key.startswith("model/")}
    model = nn.Sequential(
        nn.Linear(5, 4, bias=False), nw.BatchNorm1d(4), nn.Linear(4, 3, bias=False), nw.BatchNorm1d(3)
    )
    prefixes = {
        key.rpartition("/")[0].rpartition("/")[2]: key.rpartition("/")[0] for key in weights if "/" in key
    }
    with torch.no_grad():
        for layer, name in ((model[0], "dense"), (model[2], "head")):
            layer.weight.copy_(torch.from_numpy(weights[prefixes[name] + "/kernel"].T))
    weights[prefixes["bn_b"] + "/gamma"] = None  # scale=False
    nw.load_statistics(model, weights, names={"1": prefixes["bn_a"], "3": prefixes["bn_b"]})
    with torch.no_grad():
        got = model.eval()(torch.from_numpy(given["rows/batches"][0])).numpy()
    # Two matrix products of 5 and 4 terms, all of one sign but for x's, and two layers: some tens of roundings of
    # y's largest term.
    close.within("y", got, out["model/y"], 200 * 2.0**-24 * np.abs(got).max())
