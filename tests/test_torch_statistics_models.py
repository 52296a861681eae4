"""load_statistics and export_statistics of whole models; what is refused, and that nothing has changed then."""

import copy
import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import close
import normwright.torch as nw
from carried import LAYERS, arrays, model, state, unchanged
from normwright.core.conventions import CONVENTIONS
from normwright.torch import DtypeError, ShapeError, export_statistics, load_statistics

# ---- whole models ----------------------------------------------------------------------------------------------


def prefixed(prefix, joint, seed, which="keras"):
    return {prefix + joint + name: a for name, a in arrays(which, seed=seed).items()}


@pytest.mark.parametrize("joint", ["/", ".", "_"])
def test_a_model_is_loaded_by_a_map_of_names(joint):
    given = (
        prefixed("first", joint, 1)
        | prefixed("second", joint, 2)
        | {"first_1" + joint + "kernel": np.ones(3)}
    )
    got = load_statistics(model(), given, names={"1": "first", "2.0": "second" + joint})
    for path, seed in (("1", 1), ("2.0", 2)):
        unchanged(got.get_submodule(path), state(load_statistics(nn.BatchNorm1d(3), arrays(seed=seed))))


def test_a_map_of_names_may_hold_the_arrays_themselves():
    names = {"1": arrays(seed=1), "2.0": list(arrays(seed=2).values())}
    got = load_statistics(model(), {}, names=names)
    for path, seed in (("1", 1), ("2.0", 2)):
        unchanged(got.get_submodule(path), state(load_statistics(nn.BatchNorm1d(3), arrays(seed=seed))))


def test_keras_2s_names_end_in_a_number():
    given = {f"bn/{name}:0": a for name, a in arrays().items()}
    layer = load_statistics(nn.BatchNorm1d(3), given, "keras2", names={"": "bn"})
    unchanged(layer, state(load_statistics(nn.BatchNorm1d(3), arrays())))


def test_flax_variables_are_taken_as_they_are():
    one, two = arrays("flax", seed=1), arrays("flax", seed=2)
    params = {"Dense_0": {"kernel": np.ones((2, 3))}}
    stats = {}
    for name, each in (("BatchNorm_0", one), ("BatchNorm_1", two)):
        params[name] = {"scale": each["scale"], "bias": each["bias"]}
        stats[name] = {"mean": each["mean"], "var": each["var"]}
    variables, names = {"params": params, "batch_stats": stats}, {"1": "BatchNorm_0", "2.0": "BatchNorm_1"}
    got = load_statistics(model(), variables, "flax", names=names)
    assert np.array_equal(got[1].running_var, one["var"])
    assert np.array_equal(got[2][0].weight.detach(), two["scale"])
    single = {"params": params["BatchNorm_0"], "batch_stats": stats["BatchNorm_0"]}
    alone = load_statistics(nn.BatchNorm1d(3), single, "flax")
    unchanged(alone, state(got[1]))


def test_a_state_dict_is_loaded_by_its_own_names():
    source = model()
    with torch.no_grad():
        for layer in (source[1], source[2][0]):
            layer.running_var.uniform_()
            layer.weight.uniform_()
            layer.num_batches_tracked.fill_(9)
    target = copy.deepcopy(source)
    target.load_state_dict(model().state_dict())
    target[0].load_state_dict(source[0].state_dict())
    load_statistics(target, source.state_dict(), "pytorch")
    unchanged(target, state(source))


def test_counts_are_given_layer_by_layer():
    given, more = prefixed("1", "/", 1) | prefixed("2.0", "/", 2), {"updates": 2000, "momentum": 0.9}
    got = load_statistics(model(), given, count={"1": 4, "2.0": 2}, **more)
    # Nothing is left of the start after 2000 updates at 0.1: the factor alone.
    for layer, seed, factor in ((got[1], 1, 4 / 3), (got[2][0], 2, 2.0)):
        want = arrays(seed=seed)["moving_variance"].astype(float) * factor
        close.within("var", layer.running_var, want, 2.0**-24 * want)
    with pytest.raises(ShapeError, match=r"at '2\.0': expected count of every layer, got none of '2\.0'"):
        load_statistics(model(), given, count={"1": 4}, **more)


def test_an_error_in_the_last_layer_leaves_the_first_as_it_was():
    target = model()
    before = state(target)
    given = prefixed("1", "/", 1) | prefixed("2.0", "/", 2)
    given["2.0/moving_variance"][1] = -1
    with pytest.raises(
        ShapeError, match=r"at '2\.0': expected moving_variance finite and not negative, got -1 at channel 1"
    ):
        load_statistics(target, given)
    unchanged(target, before)


def test_every_layer_must_be_named_or_left_out_by_name():
    target, given = model(), prefixed("1", "/", 1)
    before = state(target)
    with pytest.raises(ShapeError, match=r"names of every batch norm of the model, got none for '2\.0'"):
        load_statistics(target, given, names={"1": "1"})
    with pytest.raises(
        ShapeError, match=r"names of batch norms with running statistics, such as '1', got '0'"
    ):
        load_statistics(target, given, names={"0": "1", "1": "1", "2.0": None})
    with pytest.raises(DtypeError, match=r"names to be {our layer's name: theirs}, got 'bn'"):
        load_statistics(target, given, names="bn")
    unchanged(target, before)
    load_statistics(target, given, names={"1": "1", "2.0": None})
    assert torch.equal(target[2][0].running_var, torch.ones(3))
    assert np.array_equal(target[1].running_var, given["1/moving_variance"])


def test_a_model_is_exported_by_a_map_of_names():
    source = model()
    source[1].running_var.fill_(4)
    exported = export_statistics(source, "flax", names={"1": "BatchNorm_0", "2.0": None})
    assert list(exported) == ["BatchNorm_0"]
    assert exported["BatchNorm_0"]["var"].tolist() == [4, 4, 4]
    whole = export_statistics(source)
    assert list(whole) == ["1", "2.0"]
    unchanged(load_statistics(model(), whole)[1], state(source[1]))
    with pytest.raises(ShapeError, match=r"at '2\.0': expected each name once, got 'a' twice"):
        export_statistics(source, names={"1": "a", "2.0": "a"})
    with pytest.raises(DtypeError, match="a name, or None, got 5"):
        export_statistics(source, names={"1": 5, "2.0": "a"})


# ---- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"moving_mean": np.zeros(4)}, ShapeError, r"moving_mean of shape \(3,\), got \(4,\)"),
        ({"gamma": np.zeros((1, 3))}, ShapeError, r"gamma of shape \(3,\), got \(1, 3\)"),
        ({"beta": np.array([1, np.nan, 1])}, ShapeError, "beta to be finite, got nan"),
        ({"moving_mean": np.array([1, np.inf, 1])}, ShapeError, "moving_mean to be finite, got inf"),
        ({"moving_variance": np.array([1, -0.5, 1])}, ShapeError, "not negative, got -0.5 at channel 1"),
        ({"moving_variance": None}, ShapeError, "an array moving_variance, got none"),
        (
            {"moving_mean": np.ones(3, complex)},
            DtypeError,
            "moving_mean of real numbers, got dtype complex128",
        ),
        ({"moving_mean": "three"}, DtypeError, "moving_mean of real numbers"),
        ({"moving_mean": [[1], [1, 2]]}, DtypeError, "moving_mean of real numbers"),
        ({"moving_var": np.ones(3)}, ShapeError, "arrays named gamma, beta, .*, got 'moving_var'"),
        ({"momentum": [0.9, 0.8]}, ShapeError, "momentum to be one number, got 2"),
    ],
)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_wrong_is_said_before_anything_is_written(layer, change, kind, words):
    target = layer(3)
    before = state(target)
    with pytest.raises(kind, match=words):
        load_statistics(target, arrays() | change)
    unchanged(target, before)


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (
            [np.ones(3)] * 3,
            ShapeError,
            r"gamma, beta, mean, var, or the last two, got a list of 3\. Say which",
        ),
        ([np.ones(3)] * 7, ShapeError, "got a list of 7"),
        ("weights.h5", DtypeError, "a dictionary or a list, got str"),
        (None, DtypeError, "a dictionary or a list, got NoneType"),
    ],
)
def test_arrays_that_nobody_can_read_are_refused(given, kind, words):
    with pytest.raises(kind, match=words):
        load_statistics(nn.BatchNorm1d(3), given)


def test_a_prefix_that_is_not_there_or_is_there_twice_is_refused():
    with pytest.raises(ShapeError, match=r"begin with '2\.0', got keys such as '1/gamma', .*Say names="):
        load_statistics(model(), prefixed("1", "/", 1))
    twice = prefixed("1", "/", 1) | prefixed("1", ".", 1)
    with pytest.raises(ShapeError, match=r"one gamma of '1', got 1/gamma and 1\.gamma\. Write the prefix"):
        load_statistics(model(), twice, names={"1": "1", "2.0": None})
    with pytest.raises(ShapeError, match="each array once, got 'bn/gamma' twice"):
        load_statistics(model(), {"bn/gamma": [1.0], "bn": {"gamma": [1.0]}})
    with pytest.raises(DtypeError, match=r"arrays of a model to be \{prefix"):
        load_statistics(model(), [1, 2])


def without_buffers():
    """A layer whose statistics the user has taken away."""
    layer = nn.BatchNorm1d(3)
    layer.running_mean = layer.running_var = None
    return layer


def sharded():
    """A layer whose weight is a tensor made of tensors, as those of sharded models are."""
    layer = nn.BatchNorm1d(3)
    layer.weight = nn.Parameter(TwoTensor(torch.ones(3), torch.ones(3)))
    return layer


@pytest.mark.parametrize(
    ("layer", "kind", "words"),
    [
        (lambda: "a layer", DtypeError, "a torch.nn.Module, got 'a layer'"),
        (lambda: nn.Linear(2, 3), DtypeError, "a batch norm with running statistics, got none in Linear"),
        (lambda: nn.BatchNorm1d(3, track_running_stats=False), DtypeError, "got none in BatchNorm1d"),
        (lambda: without_buffers(), ShapeError, "a layer with running statistics, got one without"),
        (lambda: sharded(), ShapeError, "weight to be a whole tensor with values, got a TwoTensor"),
        (lambda: nn.LazyBatchNorm1d(), ShapeError, "a layer that knows its channels, got a lazy one"),
        (lambda: nw.LazyBatchNorm1d(), ShapeError, "a layer that knows its channels, got a lazy one"),
        (
            lambda: nn.BatchNorm1d(3, device="meta"),
            ShapeError,
            "a whole tensor with values, got one on the meta",
        ),
        (
            lambda: nn.utils.parametrizations.weight_norm(nn.BatchNorm1d(3), dim=None),
            ShapeError,
            "a plain weight and bias, got a parametrized one",
        ),
    ],
)
def test_what_holds_no_statistics_or_hides_them_is_refused_both_ways(layer, kind, words):
    for call in (lambda m: load_statistics(m, arrays()), export_statistics):
        with pytest.raises(kind, match=words):
            call(layer())


def test_a_layer_made_in_inference_mode_is_refused_before_anything_is_written():
    with torch.inference_mode():
        layer = nn.BatchNorm1d(3)
    with pytest.raises(ShapeError, match="a layer that can be written, got an inference tensor"):
        load_statistics(layer, arrays())
    assert layer.eps == 1e-5
    with torch.inference_mode():
        load_statistics(layer, arrays())
    assert layer.eps == 1e-3


def test_an_unknown_convention_is_refused_both_ways():
    for call in (
        lambda: load_statistics(nn.BatchNorm1d(3), arrays(), "tf"),
        lambda: export_statistics(model(), "tf"),
    ):
        with pytest.raises(ShapeError, match="convention to be one of pytorch, keras,"):
            call()


# ---- docs/conventions.md -----------------------------------------------------------------------------------------

PAGE = (Path(__file__).parent.parent / "docs" / "conventions.md").read_text(encoding="utf-8")


def test_the_pages_table_is_the_codes():
    told = []
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            name, _, weighs, momentum, eps, recorded, names, _ = (
                cell.strip() for cell in line.strip("|").split("|")
            )
            told.append((name.strip("`"), weighs.split()[1], float(momentum), float(eps), recorded, names))
    want = [
        (c.name, c.momentum_weighs, c.momentum, c.eps, c.recorded, " ".join(f"`{name}`" for name in c.arrays))
        for c in CONVENTIONS.values()
    ]
    assert told == want


def test_every_example_of_the_page_runs_and_prints_what_it_says():
    printed, names = io.StringIO(), {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    with redirect_stdout(printed):
        for block in blocks:
            exec(block, names)
    told = re.findall(r"^ *print\(.*\)  # (.*)$|^    # (.*)$", "\n".join(blocks), re.M)
    assert len(told) == 9
    assert " ".join(printed.getvalue().split()) == " ".join(" ".join(map("".join, told)).split())
