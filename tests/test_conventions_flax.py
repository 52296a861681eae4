"""Flax itself beside ours, linen and nnx: inference in both directions, and training."""

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

COUNT, UPDATES, MOMENTUM, EPS = 24, 6, 0.9, 3e-3
ROW = CONVENTIONS["flax"]
APIS = pytest.mark.parametrize("api", ["linen", "nnx"])

# A process of its own: JAX warns where others fork, and takes memory and threads for good.
FLAX = """
import sys
import jax, numpy as np
from flax import linen, nnx

given, out = dict(np.load(sys.argv[1])), {}
batches, names = given["batches"], ("scale", "bias", "mean", "var")
options = {"momentum": float(given["momentum"]), "epsilon": float(given["eps"])}
ours = {"momentum": float(given["ours/momentum"]), "epsilon": float(given["ours/epsilon"])}


def variables(arrays):
    return {"params": {n: arrays[n] for n in names[:2]}, "batch_stats": {n: arrays[n] for n in names[2:]}}


layer = linen.BatchNorm(use_running_average=False)
out["linen/default"] = np.array([layer.momentum, layer.epsilon])
state = layer.init(jax.random.key(0), batches[0])
for collection in state.values():
    for name, a in collection.items():
        out[f"linen/start/{name}"] = a
layer = linen.BatchNorm(use_running_average=False, **options)
state = {**state, "params": {name: given[name] for name in names[:2]}}
for batch in batches:
    _, moved = layer.apply(state, batch, mutable=["batch_stats"])
    state = {**state, **moved}
for collection in state.values():
    for name, a in collection.items():
        out[f"linen/{name}"] = a
out["linen/y"] = linen.BatchNorm(use_running_average=True, **options).apply(state, batches[0])
back = variables({name: given[f"ours/{name}"] for name in names})
out["linen/back"] = linen.BatchNorm(use_running_average=True, **ours).apply(back, batches[0])

layer = nnx.BatchNorm(5, rngs=nnx.Rngs(0))
out["nnx/default"] = np.array([layer.momentum, layer.epsilon])
for name, a in nnx.to_pure_dict(nnx.state(layer)).items():
    out[f"nnx/start/{name}"] = a
layer = nnx.BatchNorm(5, rngs=nnx.Rngs(0), **options)
nnx.update(layer, {"scale": given["scale"], "bias": given["bias"]})
for batch in batches:
    layer(batch)
for name, a in nnx.to_pure_dict(nnx.state(layer)).items():
    out[f"nnx/{name}"] = a
out["nnx/y"] = layer(batches[0], use_running_average=True)
layer = nnx.BatchNorm(5, rngs=nnx.Rngs(0), **ours)
nnx.update(layer, {name: given[f"ours/{name}"] for name in names})
out["nnx/back"] = layer(batches[0], use_running_average=True)


class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=True)(linen.Dense(4, use_bias=False)(x))
        return linen.BatchNorm(use_running_average=True, use_scale=False)(linen.Dense(3, use_bias=False)(x))


net, rng = Net(), np.random.default_rng(3)
state = net.init(jax.random.key(0), batches[0])
state = jax.tree.map(lambda a: np.exp(rng.normal(size=a.shape)).astype("f"), state)
for collection, modules in state.items():
    for module, arrays in modules.items():
        for name, a in arrays.items():
            out[f"net/{collection}/{module}/{name}"] = a
out["net/y"] = net.apply(state, batches[0])
np.savez(sys.argv[2], **out)
"""


@pytest.fixture(scope="module")
def flax(tmp_path_factory):
    """What Flax was given and what came out."""
    if importlib.util.find_spec("flax") is None:
        pytest.skip("flax is not installed: it is for development alone")
    folder, rng = tmp_path_factory.mktemp("flax"), np.random.default_rng(0)
    given = {
        "batches": rng.normal(3, 2, (UPDATES, COUNT, 5)).astype(np.float32),
        "momentum": MOMENTUM,
        "eps": EPS,
    }
    given |= {name: rng.normal(size=5).astype(np.float32) for name in ("scale", "bias")}
    given |= {f"ours/{name}": value for name, value in nw.export_statistics(exported(), "flax").items()}
    np.savez(folder / "given.npz", **given)
    code = f"import sys; sys.argv = ['', {str(folder / 'given.npz')!r}, {str(folder / 'out.npz')!r}]\n" + FLAX
    run_python(code, JAX_PLATFORMS="cpu", OMP_NUM_THREADS="1")
    return given, dict(np.load(folder / "out.npz"))


@APIS
def test_flax_defaults_names_and_start_are_those_of_the_table(flax, api):
    _, out = flax
    assert out[f"{api}/default"].tolist() == [ROW.momentum, ROW.eps]
    assert {key for key in out if key.startswith(f"{api}/start/")} == {
        f"{api}/start/{name}" for name in ROW.arrays
    }
    assert (out[f"{api}/start/{ROW.mean}"] == 0).all()
    assert (out[f"{api}/start/{ROW.var}"] == ROW.starts_at).all()


@APIS
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nw.BatchNorm1d])
def test_a_flax_layer_and_ours_infer_the_same_after_the_transfer(flax, api, kind):
    given, out = flax
    arrays, x = {name: out[f"{api}/{name}"] for name in ROW.arrays}, given["batches"][0]
    layer = nw.load_statistics(kind(5), arrays, "flax", eps=EPS).eval()
    with torch.no_grad():
        ours = layer(torch.from_numpy(x)).numpy()
    for y in (ours, out[f"{api}/y"]):
        same_inference(y, x, *arrays.values(), EPS)


@APIS
def test_a_layer_of_ours_and_flax_infer_the_same_after_the_transfer_back(flax, api):
    given, out = flax
    layer, x = exported(), given["batches"][0]
    held = [t.detach().numpy() for t in (layer.weight, layer.bias, layer.running_mean, layer.running_var)]
    with torch.no_grad():
        ours = layer(torch.from_numpy(x)).numpy()
    for y in (ours, out[f"{api}/back"]):
        same_inference(y, x, *held, layer.eps)


@APIS
def test_what_flax_recorded_becomes_what_torch_records_of_the_same_batches(flax, api):
    given, out = flax
    ours, arrays = nn.BatchNorm1d(5, momentum=0.1), {name: out[f"{api}/{name}"] for name in ROW.arrays}
    for batch in given["batches"]:
        ours(torch.from_numpy(batch))
    told = {"count": COUNT, "updates": UPDATES, "momentum": MOMENTUM}
    layer = nw.load_statistics(nn.BatchNorm1d(5), arrays, "flax", **told)
    # Two float32 recursions of six steps, three roundings in each; Flax takes a batch's variance as
    # E[x^2] - E[x]^2, which here loses another (3^2 + 2^2) / 2^2 of its units.
    for name in ("running_mean", "running_var"):
        want = getattr(ours, name).numpy()
        close.within(name, getattr(layer, name), want, 80 * 2.0**-24 * np.abs(want).max())
    # 23/24 of the batches' share is missing without the conversion: it was not for nothing.
    assert np.abs(arrays["var"] / ours.running_var.numpy() - 1).min() > 1e-2
    back = nw.export_statistics(layer, "flax", count=COUNT, updates=UPDATES)["var"]
    close.within("back", back, arrays["var"], 4 * 2.0**-24 * back)


def test_a_whole_flax_model_is_loaded_from_its_variables(flax):
    given, out = flax
    variables = {"params": {}, "batch_stats": {}}
    for key, a in out.items():
        if key.startswith("net/") and key.count("/") == 3:
            _, collection, module, name = key.split("/")
            variables[collection].setdefault(module, {})[name] = a
    params = variables["params"]
    model = nn.Sequential(
        nn.Linear(5, 4, bias=False), nw.BatchNorm1d(4), nn.Linear(4, 3, bias=False), nw.BatchNorm1d(3)
    )
    with torch.no_grad():
        for layer, name in ((model[0], "Dense_0"), (model[2], "Dense_1")):
            layer.weight.copy_(torch.from_numpy(params[name]["kernel"].T))
    assert "scale" not in params["BatchNorm_1"]
    params["BatchNorm_1"]["scale"] = None  # use_scale=False
    nw.load_statistics(model, variables, "flax", names={"1": "BatchNorm_0", "3": "BatchNorm_1"})
    with torch.no_grad():
        got = model.eval()(torch.from_numpy(given["batches"][0])).numpy()
    # Two matrix products of 5 and 4 terms, all of one sign but for x's, and two layers: some tens of roundings of
    # y's largest term.
    close.within("y", got, out["net/y"], 200 * 2.0**-24 * np.abs(got).max())
