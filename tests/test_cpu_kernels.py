"""The native kernels on every nasty input, with every instruction set: values, layouts, inputs left alone."""

import numpy as np
import pytest

import close
from cases import CASES, channels_last, like
from every_kernel import (
    DTYPES,
    EPS,
    F32,
    F64,
    all_same_bits,
    everything,
    fixed_statistics,
    forced,
    inputs,
    isas_of_floats,
)
from normwright.kernels import NATIVE

if not NATIVE:
    pytest.skip("this package was built without native kernels", allow_module_level=True)

from normwright import _native
from normwright.kernels import cpu

ALL_CASES = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(params=isas_of_floats())
def isa(request):
    """Run a test once with each instruction set of this machine."""
    with forced(request.param):
        yield request.param


# --- values, on every nasty input -------------------------------


@DTYPES
@ALL_CASES
@pytest.mark.usefixtures("isa")
def test_moments_are_the_references(case, dtype):
    x = case.make(dtype)
    close.moments(cpu.moments(x, case.axis), x, case.axis, match_nan=not case.finite)


@DTYPES
@ALL_CASES
@pytest.mark.usefixtures("isa")
def test_training_is_the_references(case, dtype):
    x, dy, gamma, beta, axis = inputs(case, dtype)
    any_nan = {"match_nan": not case.finite}
    y, saved = cpu.forward_train(x, gamma, beta, EPS, axis)
    close.forward_train(y, x, gamma, beta, EPS, axis, **any_nan)
    close.saved(saved, x, EPS, axis, **any_nan)
    gradients = cpu.backward_train(dy, x, gamma, beta, saved, axis)
    close.backward_train(gradients, dy, x, gamma, EPS, axis, **any_nan)


@DTYPES
@ALL_CASES
@pytest.mark.usefixtures("isa")
def test_fixed_statistics_give_the_references_values(case, dtype):
    x, dy, gamma, beta, axis = inputs(case, dtype)
    mean, var = fixed_statistics(x, axis)
    any_nan = {"match_nan": not case.finite}
    y = cpu.forward_fixed(x, gamma, beta, mean, var, EPS, axis)
    close.forward_fixed(y, x, gamma, beta, mean, var, EPS, axis, **any_nan)
    gradients = cpu.backward_fixed(dy, x, gamma, beta, mean, var, EPS, axis)
    close.backward_fixed(gradients, dy, x, gamma, mean, var, EPS, axis, **any_nan)


@DTYPES
@pytest.mark.parametrize("case", CASES[:8], ids=lambda case: case.name)
def test_without_gamma_and_beta_they_are_1_and_0(case, dtype):
    x, dy, *_, axis = inputs(case, dtype)
    channels = x.shape[axis]
    explicit = everything(x, dy, np.ones(channels), np.zeros(channels), axis)
    all_same_bits(everything(x, dy, None, None, axis), explicit)


OFFSET_LAYOUTS = {  # more than one block of values a channel, and no size a multiple of a vector
    "nchw": ((7, 5, 33, 37), lambda x: x),
    "channels-last": ((7, 21, 19, 23), channels_last),
    "narrow channels-last": ((7, 3, 33, 37), channels_last),
    "n-c": ((3001, 33), lambda x: x),
}


@DTYPES
@pytest.mark.parametrize("ratio", [1.0, 1e2, 1e4, 1e6])  # |mean| / std, up to the 1e6 that is promised
@pytest.mark.parametrize("layout", OFFSET_LAYOUTS)
@pytest.mark.usefixtures("isa")
def test_a_mean_far_from_zero_costs_no_digits(layout, ratio, dtype):
    shape, arrange = OFFSET_LAYOUTS[layout]
    rng = np.random.default_rng(5)
    channels = shape[1]
    sign = close.across(np.where(np.arange(channels) % 3, -1.0, 1.0), np.empty(shape), 1)
    x = arrange((rng.standard_normal(shape) + sign * ratio).astype(dtype))
    dy = arrange((rng.standard_normal(shape) + 0.5).astype(dtype))
    gamma = rng.uniform(0.5, 2, channels)
    beta = rng.standard_normal(channels)
    beta[::2] = 0  # then nothing hides the error of a small x_hat
    y, saved = cpu.forward_train(x, gamma, beta, EPS, 1)
    close.forward_train(y, x, gamma, beta, EPS, 1)
    close.saved(saved, x, EPS, 1)
    close.backward_train(cpu.backward_train(dy, x, gamma, beta, saved, 1), dy, x, gamma, EPS, 1)
    mean, var = fixed_statistics(x, 1)
    y = cpu.forward_fixed(x, gamma, beta, mean, var, EPS, 1)
    close.forward_fixed(y, x, gamma, beta, mean, var, EPS, 1)
    close.backward_fixed(
        cpu.backward_fixed(dy, x, gamma, beta, mean, var, EPS, 1), dy, x, gamma, mean, var, EPS, 1
    )


@DTYPES
@ALL_CASES
def test_outputs_have_the_shape_type_and_axis_order_of_x(case, dtype):
    x, dy, gamma, beta, axis = inputs(case, dtype)
    for name, got in everything(x, dy, gamma, beta, axis).items():
        if not name.endswith(("y", "dx")):
            assert (got.dtype, got.shape) == (F64, (x.shape[axis],)), name
            continue
        assert (got.dtype, got.shape) == (dtype, x.shape), name
        if 0 in x.strides:
            continue  # a broadcast axis has no place in memory
        longer = [d for d in range(x.ndim) if x.shape[d] > 1]
        assert [got.strides[d] for d in longer] == [like(x).strides[d] for d in longer], name


@pytest.mark.parametrize(
    "arrange",
    [
        np.ascontiguousarray,
        channels_last,
        np.asfortranarray,
        lambda dy: np.broadcast_to(dy[:1, :, :1, :1], dy.shape),
        lambda dy: np.repeat(dy, 2, axis=1)[:, ::2],
        lambda dy: dy[::-1, ::-1],
        lambda dy: dy.astype(F64),
    ],
    ids=["nchw", "channels-last", "fortran", "broadcast", "every-other-channel", "backwards", "float64"],
)
@pytest.mark.parametrize("of_x", [np.ascontiguousarray, channels_last], ids=["x nchw", "x channels-last"])
def test_dy_may_lie_otherwise_in_memory_than_x(of_x, arrange):
    rng = np.random.default_rng(6)
    x = of_x(rng.standard_normal((4, 5, 6, 7)).astype(F32))
    dy = arrange(rng.standard_normal(x.shape).astype(F32))
    plain = like(x)
    plain[...] = dy
    gamma, beta = rng.uniform(0.5, 2, 5), rng.standard_normal(5)
    all_same_bits(everything(x, dy, gamma, beta, 1), everything(x, plain, gamma, beta, 1))


@DTYPES
@ALL_CASES
def test_inputs_are_never_written(case, dtype):
    x, dy, gamma, beta, axis = inputs(case, dtype)
    whole = x.base if isinstance(x.base, np.ndarray) else x  # the gaps of a slice, too
    arrays = {"x": x, "memory of x": whole, "dy": dy, "gamma": gamma, "beta": beta}
    before = {name: t.tobytes() for name, t in arrays.items()}
    for t in (x, dy, gamma, beta):
        t.flags.writeable = (
            False  # a kernel that writes through an address is not stopped by this; NumPy would be
        )
    for isa in _native.isas():
        with forced(isa):
            everything(x, dy, gamma, beta, axis)
        for name, t in arrays.items():
            assert t.tobytes() == before[name], f"{name}, by {isa}"
