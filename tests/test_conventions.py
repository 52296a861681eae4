"""What frameworks mean by their numbers: directions, defaults, and the recorded variance turned into another's."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

import close
from normwright.core import running
from normwright.core.checks import ShapeError
from normwright.core.conventions import (
    CONVENTIONS,
    Convention,
    convention_of,
    momentum_of,
    rate_of,
    share_of_start,
    variance,
)

NAMES = list(CONVENTIONS)
# Formulas against a recursion of nine steps, both float64: some thirty roundings of 2^-53, and ten times that.
CLOSE = 1e-13


def batches(count: int, updates: int, channels: int = 3) -> np.ndarray:
    """(updates, count, channels) values whose variance is not the same twice."""
    rng = np.random.default_rng(0)
    return rng.normal(5, rng.uniform(0.1, 4, (updates, 1, channels)), (updates, count, channels))


def moving(which: Convention, data: np.ndarray, rate: float, eps: float) -> np.ndarray:
    """The running variance that a framework of this convention would have, by its own rule, batch by batch."""
    r = np.full(data.shape[2], which.starts_at)
    for batch in data:
        recorded = batch.var(axis=0, ddof=1 if which.recorded == "unbiased" else 0)
        r = running.update(r, recorded + (eps if which.eps_inside else 0), rate)
    return r


@pytest.mark.parametrize(("source", "target"), list(permutations(NAMES, 2)))
def test_a_converted_variance_is_what_the_other_framework_would_have_recorded(source, target):
    data, rate, eps = batches(count=4, updates=9), 0.05, 1e-2
    theirs, ours = CONVENTIONS[source], CONVENTIONS[target]
    t = len(data)
    recorded = moving(theirs, data, rate, eps)
    got = variance("f", recorded, theirs, ours, eps=eps, count=4, share=share_of_start(rate, t), updates=t)
    want = moving(ours, data, rate, eps)
    if theirs.recorded == ours.recorded and theirs.eps_inside != ours.eps_inside:
        # Only eps moves: what is left of the two starts, 1 less eps and 1, stays as it is, for the same inference.
        want = want + (share_of_start(rate, t) * eps if ours.eps_inside else -share_of_start(rate, t) * eps)
    close.within("variance", got, want, CLOSE * want)


def test_biased_and_unbiased_are_m_over_m_minus_1_apart_where_nothing_of_the_start_is_left():
    keras, torch = CONVENTIONS["keras"], CONVENTIONS["pytorch"]
    data = batches(count=4, updates=5)
    algorithm_2 = data.var(axis=1, ddof=1).mean(axis=0)
    got = variance("f", data.var(axis=1).mean(axis=0), keras, torch, eps=1e-3, count=4)
    close.within("to unbiased", got, algorithm_2, CLOSE * algorithm_2)
    back = variance("f", got, torch, keras, eps=1e-5, count=4)
    close.within("back", back, got * 0.75, CLOSE * got)


def test_without_a_count_the_recorded_variance_stays_to_the_bit():
    recorded = np.random.default_rng(0).random(50)
    for source, target in permutations(["pytorch", "keras", "keras2-fused", "flax", "numpy"], 2):
        got = variance("f", recorded, CONVENTIONS[source], CONVENTIONS[target], eps=1e-3)
        assert np.array_equal(got, recorded)


def test_an_eps_inside_leaves_and_comes_back():
    inside, torch = CONVENTIONS["numpy-eps-inside"], CONVENTIONS["pytorch"]
    recorded = np.array([1e-6, 1.0, 300.0]) + 1e-5
    plain = variance("f", recorded, inside, torch, eps=1e-5)
    # The tiniest loses digits to the addition above, not to the subtraction: 1e-5 * 2^-53 of 1e-6.
    close.within("without eps", plain, [1e-6, 1.0, 300.0], 2.0**-52 * recorded)
    close.within("with eps", variance("f", plain, torch, inside, eps=1e-5), recorded, 2.0**-52 * recorded)
    # What a reader loses who adds eps again: 28 % of y at variance 1e-6.
    assert np.sqrt(recorded[0] / (recorded[0] + 1e-5)) == pytest.approx(0.72, abs=0.005)
    assert 1 / np.sqrt(plain[0] + 1e-5) == pytest.approx(1 / np.sqrt(recorded[0]), rel=1e-15)


def test_a_constant_channel_in_float32_is_not_taken_for_a_mistake():
    """What is left of the start after thousands of roundings may be a little less than the formula's."""
    keras, torch = CONVENTIONS["keras"], CONVENTIONS["pytorch"]
    for rate, updates in [(0.1, 5), (0.01, 300), (0.001, 3000), (0.001, 20000)]:
        r = np.ones(1, np.float32)
        for _ in range(updates):
            r = (np.float32(1 - rate) * r).astype(np.float32)
        share = share_of_start(rate, updates)
        got = variance("f", r.astype(float), keras, torch, eps=1e-3, count=4, share=share, updates=updates)
        close.within("constant", got, [share], 4 * updates * 2.0**-24 * share)


def test_a_share_of_the_start_is_refused_that_is_more_than_all():
    keras, torch = CONVENTIONS["keras"], CONVENTIONS["pytorch"]
    with pytest.raises(
        ShapeError, match=r"moving_variance of at least 0\.59049.* after 5 updates, got 0\.5 at channel 1"
    ):
        variance("f", np.array([0.7, 0.5]), keras, torch, eps=1e-3, count=4, share=0.9**5, updates=5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e-9])
@pytest.mark.parametrize("source", NAMES)
def test_a_variance_that_is_none_is_refused(source, bad):
    with pytest.raises(ShapeError, match=r"finite and not negative, got .* at channel 1"):
        variance("f", np.array([1.0, bad]), CONVENTIONS[source], CONVENTIONS["pytorch"], eps=1e-3)


def test_a_variance_less_than_the_eps_inside_it_is_refused():
    inside, torch = CONVENTIONS["numpy-eps-inside"], CONVENTIONS["pytorch"]
    with pytest.raises(
        ShapeError, match=r"at least eps=0\.001, which stands inside it, got 0\.0009 at channel 1"
    ):
        variance("f", np.array([1.0, 0.0009]), inside, torch, eps=1e-3)
    assert variance("f", np.array([0.001]), inside, torch, eps=1e-3) == 0
    with pytest.raises(ShapeError, match="eps > 0"):
        variance("f", np.array([1.0]), inside, torch, eps=0.0)


def test_a_count_of_one_is_refused():
    with pytest.raises(ShapeError, match=r"count >= 2, got 1"):
        variance("f", np.ones(1), CONVENTIONS["keras"], CONVENTIONS["pytorch"], eps=1e-3, count=1)


def test_an_average_that_started_elsewhere_leaves_its_own_start():
    source = replace(CONVENTIONS["keras"], starts_at=0.0)
    data = batches(count=4, updates=9)
    recorded = moving(source, data, 0.05, 0)
    share = share_of_start(0.05, 9)
    got = variance("f", recorded, source, CONVENTIONS["pytorch"], eps=1e-3, count=4, share=share, updates=9)
    want = moving(CONVENTIONS["pytorch"], data, 0.05, 0)
    close.within("variance", got, want, CLOSE * want)


# ---- momentum --------------------------------------------------------------------------------------------------


def test_torchs_momentum_alone_weighs_the_new_batch():
    assert {name for name, c in CONVENTIONS.items() if c.momentum_weighs == "new"} == {"pytorch"}
    assert rate_of(0.1, "pytorch") == 0.1
    for name in set(NAMES) - {"pytorch"}:
        assert rate_of(0.9, name) == 0.1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.7, 0.9, 0.99, 0.997, 0.9997, 1.0, 1e-9])
def test_a_momentum_comes_back_as_it_was_written(name, momentum):
    assert momentum_of(rate_of(momentum, name), name) == momentum


def test_the_plain_mean_is_torchs_alone():
    assert rate_of(None, "pytorch") is None
    with pytest.raises(ShapeError, match="momentum to be a number, got None"):
        rate_of(None, "keras")
    with pytest.raises(ShapeError, match="rate to be a number, got None"):
        momentum_of(None, "flax")


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_a_momentum_that_weighs_nothing_is_refused(bad):
    with pytest.raises(ShapeError, match="momentum from 0 to 1"):
        rate_of(bad, "keras")


def test_an_unknown_convention_is_refused_by_the_names_of_the_known():
    with pytest.raises(ShapeError, match=r"one of pytorch, keras, .*, got 'tensorflow'"):
        convention_of("f", "tensorflow")
    with pytest.raises(ShapeError, match="got None"):
        convention_of("f", None)


# ---- the frameworks that are at hand -----------------------------------------------------------------------------


def test_the_row_of_torch_is_torchs():
    torch = pytest.importorskip("torch", reason="the torch door is optional")
    layer, row = torch.nn.BatchNorm1d(1), CONVENTIONS["pytorch"]
    assert (layer.momentum, layer.eps) == (row.momentum, row.eps)
    assert list(layer.state_dict()) == [*row.arrays, row.counter]
    assert (layer.running_mean.item(), layer.running_var.item()) == (0, row.starts_at)
    data = batches(count=4, updates=9)
    layer = torch.nn.BatchNorm1d(3, dtype=torch.float64)
    for batch in data:
        layer(torch.from_numpy(batch))
    close.within(
        "running_var", layer.running_var, moving(row, data, 0.1, 0), CLOSE * layer.running_var.numpy()
    )


def test_the_rows_of_numpy_are_the_numpy_doors():
    import normwright.numpy as nwn

    layer, row = nwn.BatchNorm(3), CONVENTIONS["numpy"]
    assert (layer.momentum, layer.eps) == (row.momentum, row.eps)
    data = batches(count=4, updates=9)
    for batch in data:
        layer.train(batch)
    close.within("running_var", layer.running_var, moving(row, data, 0.1, 0), CLOSE * layer.running_var)
    assert all(hasattr(layer, name) for name in (*row.arrays, row.eps_name, row.momentum_name))
    assert replace(CONVENTIONS["numpy-eps-inside"], name="numpy", eps_inside=False) == row


def test_the_row_of_onnx_is_that_of_onnx_and_its_runtime():
    onnx = pytest.importorskip("onnx", reason="onnx is for development alone")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is for development alone")
    row, make, f32 = CONVENTIONS["onnx"], onnx.helper, onnx.TensorProto.FLOAT
    schema = onnx.defs.get_schema("BatchNormalization")
    assert [each.name for each in schema.inputs[1:]] == list(row.arrays)
    # The schema keeps float32 numbers.
    assert np.float32(schema.attributes[row.momentum_name].default_value.f) == np.float32(row.momentum)
    assert np.float32(schema.attributes[row.eps_name].default_value.f) == np.float32(row.eps)

    names, outputs = ["x", *row.arrays], ["y", "mean", "var"]
    node = make.make_node("BatchNormalization", names, outputs, training_mode=1)
    values = [make.make_tensor_value_info(name, f32, None) for name in (*names, *outputs)]
    graph = make.make_graph([node], "one", values[: len(names)], values[len(names) :])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 15)], ir_version=10)
    session = runtime.InferenceSession(model.SerializeToString())
    data = batches(count=4, updates=9).astype(np.float32)
    given = dict(
        zip(row.arrays, np.array([np.ones(3), np.zeros(3), np.zeros(3), np.ones(3)], np.float32), strict=True)
    )
    for batch in data:
        _, given[row.mean], given[row.var] = session.run(None, {"x": batch, **given})
    # A float32 recursion of nine steps rounds by at most 27 units, each batch's variance by about m more.
    want = moving(row, data.astype(float), 0.1, 0)
    close.within("running variance", given[row.var], want, 40 * 2.0**-24 * want)
