"""Activations and residuals in the native kernels: values, corners, one expression both ways, memory."""

import numpy as np
import pytest

import close
import close_activations
from cases import AFTER, CASES, channels_last, like
from every_kernel import (
    ALL_DTYPES,
    BF16,
    DTYPES,
    EPS,
    F16,
    F32,
    F64,
    all_right,
    all_same_bits,
    cases_in,
    everything,
    fixed_statistics,
    forced,
    inputs,
)
from normwright.core.activation import NAMES, Activation
from normwright.kernels import NATIVE, reference
from normwright.kernels.activations import activated, gradient, slope

if not NATIVE:
    pytest.skip("this package was built without native kernels", allow_module_level=True)

from normwright import _native
from normwright.kernels import cpu

ACTIVATIONS = pytest.mark.parametrize("activation", AFTER, ids=str)
PIECEWISE = [a for a in AFTER[1:] if a.kind in ("relu", "leaky_relu", "hardtanh", "hardswish")]
BY_NAME = {case.name: case for case in CASES}
ONE, ZERO = np.ones(1), np.zeros(1)


# --- values ----------------------------------------------------


@cases_in(F32, F64)
def test_values_are_the_references(case, dtype):
    all_right(cpu, *inputs(case, dtype), case.after(dtype), match_nan=not case.finite)


FEW = {  # one for each way through the kernels, with values on both sides of every corner
    "7x7": "channels in the middle, a run that ends within a vector",
    "channels-last": "rows",
    "c-3-nhwc": "rows of few channels",
    "transposed": "no outer axis",
    "offset-1e3": "a mean far from zero",
    "inner-block+8": "more than one block along a channel, a rest below a pack",
    "inner-block+7-double": "the same for float64",
    "strip+1": "more than one strip",
    "wide-2x2": "small maps as columns",
}


@ALL_DTYPES
@pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
@ACTIVATIONS
@pytest.mark.parametrize("name", FEW)
def test_every_activation_gives_the_references_values(name, activation, with_residual, dtype):
    case = BY_NAME[name]
    after = (activation, case.residual(dtype) if with_residual else None)
    all_right(cpu, *inputs(case, dtype), after)


@ALL_DTYPES
@pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
@ACTIVATIONS
def test_every_instruction_set_gives_the_same_bits(activation, with_residual, dtype):
    for name in FEW:
        case = BY_NAME[name]
        after = (activation, case.residual(dtype) if with_residual else None)
        results = []
        for isa in _native.isas():
            with forced(isa):
                results.append(everything(*inputs(case, dtype), after=after))
        for result in results[1:]:
            all_same_bits(result, results[0])


@DTYPES
@ACTIVATIONS
def test_far_out_values_have_their_own_digits(activation, dtype):
    # z itself is exact here, and all error the activation's own
    far = 110 if dtype is F32 else 750  # e^-far is 0
    z = np.concatenate([np.linspace(-far, far, 3001), np.linspace(-9, 9, 3001), [0.0, -0.0, 1e-30, -1e-30]])
    z = z.astype(dtype).reshape(-1, 1)
    dy = np.ones_like(z)
    y, got = through(z, activation, None, dy)
    wide, u, least = close.widen(z), close.UNIT[z.dtype], float(np.finfo(dtype).smallest_subnormal)
    given = (wide, np.zeros_like(wide), activation, u, least)
    close.within("y", y, activated(wide, activation), close_activations.of_value(*given))
    moved, own = close_activations.of_gradient(close.widen(dy), *given)
    close.within("dx", got.dx, slope(wide, activation), moved + own)


def through(z, activation, residual, dy):
    """y and Gradients of values that normalization leaves as they are."""
    y = cpu.forward_fixed(z, None, None, ZERO, ONE, 0.0, 1, activation, residual)
    return y, cpu.backward_fixed(dy, z, None, None, ZERO, ONE, 0.0, 1, activation, residual)


# --- corners ---------------------------------------------------


@ALL_DTYPES
@pytest.mark.parametrize("activation", PIECEWISE, ids=str)
@pytest.mark.parametrize("after_a_residual", [False, True], ids=["", "residual"])
def test_at_a_corner_the_derivative_is_that_of_the_definition(after_a_residual, activation, dtype):
    corners = [
        np.asarray(v).astype(dtype if dtype in (F32, F64) else F32)
        for v in (0, -3, 3, activation.a, activation.b)
    ]
    sides = [side for c in corners for side in (c, np.nextafter(c, c - 1), np.nextafter(c, c + 1))]
    z = np.array(sides).astype(dtype).reshape(-1, 1)
    dy = (np.arange(z.size) + 1).astype(dtype).reshape(-1, 1)
    x, residual = (np.zeros_like(z), z) if after_a_residual else (z, None)
    _, got = through(x, activation, residual, dy)
    dz = got.dresidual if after_a_residual else got.dx
    # The bounds, as the kernels have them: in the type that is computed in.
    bounds = Activation(activation.kind, *(float(close.computed(z).dtype.type(v)) for v in activation[1:]))
    want = gradient(dy.astype(F64), z.astype(F64), bounds)
    if activation.kind == "hardswish":  # two roundings of z/3 + 1/2, one of the product
        close.rounded_once(
            "dz", dz, want, 4 * close.UNIT[close.computed(z).dtype] * np.abs(dy.astype(F64)), z.dtype
        )
    else:
        wide = want.astype(close.computed(z).dtype)
        close.same_bits("dz", dz, wide.astype(dtype))


@ALL_DTYPES
@pytest.mark.parametrize("layout", [np.ascontiguousarray, channels_last], ids=["nchw", "channels-last"])
def test_forward_and_backward_agree_on_every_sign_after_a_residual(layout, dtype):
    rng = np.random.default_rng(3)
    x = layout(rng.standard_normal((6, 5, 7, 9)).astype(dtype))
    gamma, beta = rng.uniform(0.5, 2, 5), rng.standard_normal(5)
    exact, _ = reference.forward_train(close.widen(x), gamma, beta, EPS, 1)
    residual = -exact.astype(dtype)  # so that z is what is left of rounding
    for name in ("relu", "leaky_relu"):
        y, saved = cpu.forward_train(x, gamma, beta, EPS, 1, NAMES[name], residual)
        got = cpu.backward_train(np.ones_like(x), x, gamma, beta, saved, 1, NAMES[name], residual)
        assert 0.1 < np.mean(y > 0) < 0.9
        assert np.array_equal(got.dresidual == 1, y > 0)


@DTYPES  # of a half type y does not tell the sign of z: it is rounded
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "hardtanh"])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, channels_last], ids=["nchw", "channels-last"])
def test_forward_and_backward_agree_on_every_sign_without_a_residual(layout, name, dtype):
    # Each channel holds eight values, and its beta takes one of them to a corner as near as rounding.
    rng = np.random.default_rng(4)
    values, which = rng.standard_normal((40, 8)).astype(dtype), rng.integers(0, 8, (6, 40, 5, 7))
    x = layout(values[np.arange(40)[:, None, None], which])
    gamma, activation = rng.uniform(0.5, 2, 40), NAMES[name]
    _, saved = cpu.forward_train(x, gamma, None, EPS, 1)
    x_hat = (values[:, 3].astype(F64) - saved.mean - saved.mean_tail) * saved.rstd
    beta = (1 if name == "hardtanh" else 0) - gamma * x_hat
    y, saved = cpu.forward_train(x, gamma, beta, EPS, 1, activation)
    near = which == 3
    dy = like(x)
    dy[near] = 1
    got = cpu.backward_train(dy, x, gamma, beta, saved, 1, activation)
    passed = near & ((y < 1) if name == "hardtanh" else (y > 0))
    closed = 0.01 if name == "leaky_relu" else 0
    want = np.where(passed, 1, closed * near).sum(axis=(0, 2, 3))
    assert 0 < passed.sum() < near.sum()
    close.within("dbeta", got.dbeta, want, 1e-4)  # a sign is worth 1


@pytest.mark.parametrize("activation", PIECEWISE, ids=str)
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16])
def test_piecewise_activations_have_the_bits_of_the_operations_one_by_one(activation, dtype):
    case = BY_NAME["inner-blocks"]
    x, _, gamma, beta, axis = inputs(case, dtype)
    residual, fixed = case.residual(dtype), fixed_statistics(x, axis)
    y = cpu.forward_fixed(x, gamma, beta, *fixed, EPS, axis, activation, residual)
    wide = close.computed(x)
    z = cpu.forward_fixed(wide, gamma, beta, *fixed, EPS, axis) + close.computed(residual)
    a, b, three, six = (wide.dtype.type(v) for v in (activation.a, activation.b, 3, 6))
    want = {
        "relu": lambda: np.maximum(z, 0),
        "leaky_relu": lambda: np.where(z > 0, z, z * a),
        "hardtanh": lambda: np.clip(z, a, b),
        "hardswish": lambda: z * np.clip(z + three, 0, six) / six,
    }[activation.kind]()
    close.same_bits("y", y + dtype(0), want.astype(dtype) + dtype(0))  # -0 is 0


# --- what is not finite ----------------------------------------


@ALL_DTYPES
@ACTIVATIONS
def test_a_residual_that_is_not_finite_reaches_its_own_places_alone(activation, dtype):
    case = BY_NAME["7x7"]
    residual = case.residual(dtype)
    for at, value in enumerate((np.nan, np.inf, -np.inf)):
        residual[1, at, 3, 3] = value
    x, dy, gamma, beta, axis = inputs(case, dtype)
    with np.errstate(invalid="ignore"):
        all_right(cpu, x, dy, gamma, beta, axis, (activation, residual), match_nan=True)
    y, _ = cpu.forward_train(x, gamma, beta, EPS, axis, activation, residual)
    assert set(zip(*np.nonzero(~np.isfinite(y)), strict=True)) <= {(1, at, 3, 3) for at in range(3)}
    assert np.isnan(y[1, 0, 3, 3])


# --- memory ----------------------------------------------------


ORDERS = {
    "nchw": np.ascontiguousarray,
    "channels-last": channels_last,
    "fortran": np.asfortranarray,
    "broadcast": lambda r: np.broadcast_to(r[:1, :, :1, :1], r.shape),
    "every other": lambda r: np.repeat(r, 2, axis=3)[..., ::2],
    "backwards": lambda r: r[::-1, ::-1],
    "wider": lambda r: r.astype(F64),
}


@pytest.mark.parametrize("activation", [NAMES["relu"], NAMES["silu"], None], ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("of_x", ["nchw", "channels-last", "every other"])
def test_a_residual_may_lie_otherwise_in_memory_than_x(of_x, order, activation):
    rng = np.random.default_rng(6)
    x, dy, residual = rng.standard_normal((3, 4, 5, 6, 7)).astype(F32)
    x, residual = ORDERS[of_x](x), ORDERS[order](residual)
    before = residual.tobytes()
    plain = like(x)
    plain[...] = residual
    gamma, beta = rng.uniform(0.5, 2, 5), rng.standard_normal(5)
    want = everything(x, dy, gamma, beta, 1, after=(activation, plain))
    all_same_bits(everything(x, dy, gamma, beta, 1, after=(activation, residual)), want)
    assert residual.tobytes() == before


@ALL_DTYPES
@pytest.mark.parametrize("activation", [NAMES["relu"], NAMES["silu"], None], ids=str)
def test_a_residual_may_be_x_itself(activation, dtype):
    x, dy, gamma, beta, axis = inputs(BY_NAME["7x7"], dtype)
    want = everything(x, dy, gamma, beta, axis, after=(activation, x.copy()))
    all_same_bits(everything(x, dy, gamma, beta, axis, after=(activation, x)), want)


@ALL_DTYPES
@ACTIVATIONS
@pytest.mark.parametrize(
    "name", ["7x7", "channels-last", "some-channels", "broadcast", "block+1", "no-samples"]
)
def test_a_result_may_be_written_over_x_or_the_residual(name, activation, dtype):
    case = BY_NAME[name]
    x, _, gamma, beta, axis = inputs(case, dtype)
    residual, fixed = case.residual(dtype), (*fixed_statistics(x, axis), EPS, axis)
    want = cpu.forward_fixed(x, gamma, beta, *fixed, activation, residual)
    for over in ("x", "residual", "another"):
        arrays = {"x": x.copy("K"), "residual": residual.copy("K"), "another": np.empty_like(residual)}
        out = arrays[over]
        got = cpu.forward_fixed(arrays["x"], gamma, beta, *fixed, activation, arrays["residual"], out)
        assert got is out
        close.same_bits(over, np.ascontiguousarray(got), np.ascontiguousarray(want))
        for other, then in [("x", x), ("residual", residual)]:
            if other != over:
                close.same_bits(other, np.ascontiguousarray(arrays[other]), np.ascontiguousarray(then))


@ALL_DTYPES
@pytest.mark.parametrize("rows", [False, True], ids=["runs", "rows"])
def test_a_result_may_be_written_over_x_at_every_width(rows, dtype):
    # the last values of a row or run, fewer than a vector, must not be computed twice
    rng = np.random.default_rng(8)
    for width in range(1, 70):
        x = rng.standard_normal((5, width) if rows else (2, 3, width)).astype(dtype)
        numbers = rng.uniform(0.5, 2, (4, x.shape[1]))
        for residual in (None, x[::-1].copy()):
            given = (*numbers, EPS, 1, NAMES["silu"], residual)
            want, out = cpu.forward_fixed(x, *given), x.copy()
            cpu.forward_fixed(out, *given, out)
            close.same_bits(f"{width} wide", out, want)


@cases_in(F32, BF16)
def test_inputs_are_never_written_and_outputs_are_like_x(case, dtype):
    x, dy, gamma, beta, axis = inputs(case, dtype)
    activation, residual = case.after(dtype)
    residual = case.residual(dtype) if residual is None else residual
    arrays = {"x": x, "dy": dy, "gamma": gamma, "beta": beta, "residual": residual}
    before = {name: t.tobytes() for name, t in arrays.items()}
    results = everything(x, dy, gamma, beta, axis, after=(activation, residual))
    for name, t in arrays.items():
        assert t.tobytes() == before[name], name
    for name, got in results.items():
        if name.endswith(("y", "dx", "dresidual")):
            assert (got.dtype, got.shape) == (dtype, x.shape), name
            longer = [d for d in range(x.ndim) if x.shape[d] > 1]
            if 0 not in x.strides:
                assert [got.strides[d] for d in longer] == [like(x).strides[d] for d in longer], name
        else:
            assert (got.dtype, got.shape) == (F64, (x.shape[axis],)), name


def test_bits_are_kept_where_they_tell_the_derivative_and_the_residual_is_not_needed_again():
    x, dy, gamma, beta, axis = inputs(BY_NAME["7x7"], F32)
    residual = BY_NAME["7x7"].residual(F32)
    for activation in AFTER[1:]:
        _, saved = cpu.forward_train(x, gamma, beta, EPS, axis, activation, residual)
        assert (saved.bits is not None) == activation.is_told_by_a_bit
        assert cpu.forward_train(x, gamma, beta, EPS, axis, activation)[1].bits is None
        if saved.bits is not None:
            want = cpu.backward_train(dy, x, gamma, beta, saved, axis, activation, residual)
            got = cpu.backward_train(dy, x, gamma, beta, saved, axis, activation)
            for name, array in want._asdict().items():
                close.same_bits(name, getattr(got, name), array)
            with pytest.raises(ValueError, match="expected saved with bits, got none"):
                cpu.backward_train(dy, x, gamma, beta, saved._replace(bits=None), axis, activation, residual)


def test_without_an_activation_the_residuals_gradient_is_dy_itself():
    x, dy, gamma, beta, axis = inputs(BY_NAME["7x7"], F32)
    residual = BY_NAME["7x7"].residual(F32)
    _, saved = cpu.forward_train(x, gamma, beta, EPS, axis, None, residual)
    assert cpu.backward_train(dy, x, gamma, beta, saved, axis, None, residual).dresidual is dy
