"""float16 and bfloat16 in the native kernels: the float32 results, rounded once."""

import ml_dtypes
import numpy as np
import pytest

import close
from cases import AFTER, CASES, Case, different_channels, normal, then
from every_kernel import (
    BF16,
    EPS,
    F16,
    F32,
    F64,
    HALVES,
    all_right,
    all_same_bits,
    cases_in,
    everything,
    fixed_statistics,
    forced,
    inputs,
)
from normwright.core.activation import NAMES
from normwright.kernels import NATIVE

if not NATIVE:
    pytest.skip("this package was built without native kernels", allow_module_level=True)

from normwright import _native
from normwright.kernels import cpu

BY_NAME = {case.name: case for case in CASES}
ONE, ZERO = np.ones(1), np.zeros(1)


# --- values ----------------------------------------------------


@cases_in(F16, BF16)
def test_values_are_the_references(case, dtype):
    x = case.make(dtype)
    close.moments(cpu.moments(x, case.axis), x, case.axis, match_nan=not case.finite)
    all_right(cpu, *inputs(case, dtype), match_nan=not case.finite)


@cases_in(F16, BF16)
def test_values_with_what_comes_after_are_the_references(case, dtype):
    all_right(cpu, *inputs(case, dtype), case.after(dtype), match_nan=not case.finite)


@cases_in(F16, BF16)
def test_every_instruction_set_gives_the_same_bits(case, dtype):
    results = {}
    for isa in _native.isas():
        with forced(isa):
            results[isa] = everything(*inputs(case, dtype), after=case.after(dtype))
    for result in results.values():
        for name, array in result.items():
            result[name] = np.where(
                np.isnan(array), np.asarray(np.nan, array.dtype), array
            )  # as in test_cpu_threads
        all_same_bits(result, results["baseline"])


HARD = [
    Case("largest", "values up to the largest float16; their squares are beyond it", 1,
         then(normal(20, 3, 9, std=4e3), different_channels)),
    Case("offset-2e4", "a mean that float16 holds to 16 units", 1, normal(40, 5, 7, mean=2e4, std=100)),
    Case("subnormal", "subnormal float16 values", 1, normal(20, 3, 9, std=5e-6)),
    Case("integers", "sums beyond the integers that half types count", 1,
         lambda rng, dtype: rng.integers(0, 3, (300, 3, 20)).astype(dtype)),
]  # fmt: skip


@HALVES
@pytest.mark.parametrize("case", HARD, ids=lambda case: case.name)
def test_hard_values_are_the_references(case, dtype):
    assert case.fits(dtype)
    all_right(cpu, *inputs(case, dtype))
    for activation in AFTER[:8]:
        all_right(cpu, *inputs(case, dtype), (activation, case.residual(dtype)))


# --- rounding --------------------------------------------------


def every_value(dtype):
    """All 65536 values of a half type, NaN left out, in random order."""
    bits = np.random.default_rng(1).permutation(65536).astype(np.uint16)
    values = bits.view(dtype)
    with np.errstate(invalid="ignore"):  # signaling ones
        return values[~np.isnan(values)].reshape(-1, 1)


@HALVES
@pytest.mark.parametrize("isa", _native.isas())
def test_every_value_of_a_half_type_goes_in_and_out(isa, dtype):
    x = every_value(dtype)
    with forced(isa):
        y = cpu.forward_fixed(x, None, None, ZERO, ONE, 0.0, 1)
    assert np.array_equal(y + dtype(0), x + dtype(0))  # (x - 0) * 1 + 0: of -0 the sign is lost


@HALVES
@pytest.mark.parametrize("isa", _native.isas())
def test_results_are_rounded_to_nearest_ties_to_even(isa, dtype):
    # x * gamma is exact in float32, of 11 bits by 13. Among the products are ties, values beside them, subnormals,
    # and some beyond the largest half; NumPy and ml_dtypes round them as IEEE 754 does.
    x = every_value(dtype)
    x = x[np.isfinite(x)].reshape(-1, 1)
    for gamma in (1.5, 0.75, 1 + 2**-10, 2**-12, 3.0, 1 + 2**-12, 1 + 2**-8):
        with forced(isa), np.errstate(over="ignore"):
            y = cpu.forward_fixed(x, np.array([gamma]), None, ZERO, ONE, 0.0, 1)
            want = (x.astype(F32) * F32(gamma)).astype(dtype)
        assert np.array_equal(y + dtype(0), want + dtype(0)), gamma


@HALVES
def test_tiny_results_are_subnormal_and_large_ones_infinite(dtype):
    case = BY_NAME["inner-blocks"]
    x, dy, _, _, axis = inputs(case, dtype)
    least = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    large = (
        [2.0**15] if dtype is F16 else []
    )  # bfloat16 ends where float32 does, which would be infinite before it
    for scale in (*large, 20 * least, least):
        gamma = np.array([1.0, -1.0, 0.5]) * scale
        for activation in (None, NAMES["relu"], NAMES["silu"]):
            all_right(cpu, x, dy, gamma, gamma, axis, (activation, None))
            y, saved = cpu.forward_train(x, gamma, gamma, EPS, axis, activation)
            dx = cpu.backward_train(dy, x, gamma, gamma, saved, axis, activation).dx
            for values in (y, dx):
                assert np.isinf(values).any() == (scale > 1)
                small = np.abs(values.astype(F64))
                if scale < 1:
                    assert small.max() > 0  # not all that is tiny is 0


@HALVES
def test_fixed_statistics_give_the_float32_result_rounded_once(dtype):
    for name in ("7x7", "channels-last", "blocks+1", "some-channels"):
        case = BY_NAME[name]
        x, dy, gamma, beta, axis = inputs(case, dtype)
        fixed = (*fixed_statistics(x, axis), EPS, axis)
        for activation in AFTER:
            residual = case.residual(dtype)
            after, wide_after = (activation, residual), (activation, residual.astype(F32))
            y = cpu.forward_fixed(x, gamma, beta, *fixed, *after)
            wide = cpu.forward_fixed(x.astype(F32), gamma, beta, *fixed, *wide_after)
            close.same_bits("y", y, wide.astype(dtype))
            got = cpu.backward_fixed(dy, x, gamma, beta, *fixed, *after)
            want = cpu.backward_fixed(dy.astype(F32), x.astype(F32), gamma, beta, *fixed, *wide_after)
            close.same_bits("dx", got.dx, want.dx.astype(dtype))
            close.same_bits("dresidual", got.dresidual, want.dresidual.astype(dtype))


def test_both_half_types_were_meant():
    assert [cpu.CODES[np.dtype(t).name] for t in (F32, F64, BF16, F16)] == [0, 1, 2, 3]
