"""The comparisons with an activation, a residual and half types: wrong kernels again, and each must be caught."""

import ml_dtypes
import numpy as np
import pytest

import cases
import close
import close_activations
from close import across
from normwright.core.activation import NAMES, Activation
from normwright.core.moments import Gradients
from normwright.kernels import reference
from normwright.kernels.activations import activated, slope

EPS = 1e-5
F32, F16, BF16 = np.float32, np.float16, ml_dtypes.bfloat16
BY_NAME = {case.name: case for case in cases.CASES}
RELU, LEAKY, SILU, GELU = (NAMES[name] for name in ("relu", "leaky_relu", "silu", "gelu"))


class Problem:
    """A case with all that a kernel is handed, its exact z, and the right answers."""

    def __init__(self, name, dtype, activation, with_residual=True):
        case = BY_NAME[name]
        self.x, self.dy, self.axis, self.activation = (
            case.make(dtype),
            case.make_dy(dtype),
            case.axis,
            activation,
        )
        self.gamma, self.beta = case.parameters(F32)
        self.residual = case.residual(dtype) if with_residual else None
        wide = self.x.astype(float)
        _, self.saved = reference.forward_train(wide, None, None, EPS, self.axis)
        self.z = self.before_activation(self.residual)

    def before_activation(self, residual):
        wide = self.x.astype(float)
        return reference.apply(wide, self.gamma, self.beta, self.saved, self.axis, None, residual)

    def backward(self, z=None, activation=None):
        """Gradients with dz = dy * activation'(z), rounded as they must be: by an exact z the right ones."""
        dz = self.dy * slope(self.z if z is None else z, activation or self.activation)
        return self.of_dz(dz)

    def of_dz(self, dz):
        alone = reference.backward_train(dz, self.x, self.gamma, None, self.saved, self.axis)
        return Gradients(alone.dx.astype(self.x.dtype), *alone[1:3], dz.astype(self.x.dtype))

    def check_y(self, y, **options):
        given = (self.x, self.gamma, self.beta, EPS, self.axis)
        return close.forward_train(y, *given, activation=self.activation, residual=self.residual, **options)

    def check_gradients(self, got, **options):
        options |= {"beta": self.beta, "activation": self.activation, "residual": self.residual}
        return close.backward_train(got, self.dy, self.x, self.gamma, EPS, self.axis, **options)

    def y(self):
        with np.errstate(over="ignore"):
            return activated(self.z, self.activation).astype(self.x.dtype)


def caught(check, got):
    for match_nan in (False, True):
        with pytest.raises(AssertionError, match=r"^(y|dx|dgamma|dbeta|dresidual)\[.* times the bound"):
            check(got, match_nan=match_nan)


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("activation", cases.AFTER, ids=str)
def test_the_right_answer_uses_little_of_its_bound(activation, dtype):
    this = Problem("7x7", dtype, activation)
    units = max(this.check_y(this.y()), *this.check_gradients(this.backward()).values())
    if dtype is F32 and (activation is None or activation.kind in ("relu", *close_activations.SMOOTH)):
        assert units <= 1.5  # elsewhere one rounding is most of what is allowed


# --- forward ---------------------------------------------------


def residual_afterwards(this):
    return activated(this.before_activation(None), this.activation) + this.residual


def residual_forgotten(this):
    return activated(this.before_activation(None), this.activation)


def residual_twice(this):
    return activated(this.before_activation(2 * this.residual), this.activation)


def no_activation(this):
    return this.z


def by_tanh(this):
    return activated(this.z, NAMES["gelu_tanh"])


def nan_becomes_zero(this):
    y = this.y()
    y[(-1,) * y.ndim] = np.nan
    return y


def a_tail_that_is_flat(this):
    return np.where(this.z < -2.5, 0, activated(this.z, this.activation))


@pytest.mark.parametrize(
    ("kernel", "activation"),
    [
        (residual_afterwards, RELU),
        (residual_afterwards, SILU),
        (residual_forgotten, LEAKY),
        (residual_twice, GELU),
        (no_activation, LEAKY),
        (by_tanh, GELU),
        (nan_becomes_zero, RELU),
        (a_tail_that_is_flat, GELU),
        (a_tail_that_is_flat, SILU),
        (lambda this: activated(this.z, Activation("leaky_relu", 0.02)), LEAKY),
        (lambda this: activated(this.z, Activation("hardtanh", 0.0, 5.0)), NAMES["relu6"]),
        (lambda this: activated(this.z, SILU) * (1 + 3e-6), SILU),  # fifty units of 2^-24
        (lambda this: np.tanh(this.z.astype(F16)), NAMES["tanh"]),
    ],
)
def test_a_wrong_forward_is_caught(kernel, activation):
    this = Problem("inner-blocks" if activation == NAMES["relu6"] else "7x7", F32, activation)
    this.check_y(this.y())
    caught(this.check_y, np.asarray(kernel(this)).astype(F32))


def test_relu6_with_a_residual_is_reached_at_six():
    assert (Problem("inner-blocks", F32, NAMES["relu6"]).z > 5).any()  # or the case above says nothing


# --- backward --------------------------------------------------


def another_expression(this):
    # x * a + b is off by the rounding of mean * a, and some signs with it
    a = (this.gamma * this.saved.rstd).astype(F32)
    b = (this.beta - this.saved.mean * a).astype(F32)
    return this.backward(this.x * across(a, this.x, this.axis) + across(b, this.x, this.axis) + this.residual)


def residual_forgotten_in_backward(this):
    return this.backward(this.before_activation(None))


def bits_shifted_by_one(this):
    each = slope(this.z, this.activation)
    return this.of_dz(this.dy * np.roll(each.reshape(-1), 1).reshape(each.shape))


def slope_at_y(this):
    return this.backward(activated(this.z, this.activation))


def slope_forgotten(this):
    return this.of_dz(this.dy.astype(float))


def dresidual_before_the_activation(this):
    return this.backward()._replace(dresidual=this.dy)


def dresidual_is_dx(this):
    right = this.backward()
    return right._replace(dresidual=right.dx)


def nan_in_dresidual(this):
    right = this.backward()
    right.dresidual[(0,) * this.x.ndim] = np.nan
    return right


def sums_of_dy(this):
    right, plain = this.backward(), this.of_dz(this.dy.astype(float))
    return right._replace(dgamma=plain.dgamma, dbeta=plain.dbeta)


@pytest.mark.parametrize(
    ("kernel", "name", "activation"),
    [
        (another_expression, "offset-1e6", RELU),
        (another_expression, "offset-1e3", SILU),
        (residual_forgotten_in_backward, "7x7", RELU),
        (residual_forgotten_in_backward, "7x7", SILU),
        (bits_shifted_by_one, "7x7", RELU),
        (bits_shifted_by_one, "7x7", LEAKY),
        (bits_shifted_by_one, "7x7", NAMES["hardtanh"]),
        (slope_at_y, "7x7", NAMES["elu"]),
        (slope_at_y, "7x7", GELU),
        (slope_forgotten, "7x7", RELU),
        (dresidual_before_the_activation, "7x7", SILU),
        (dresidual_is_dx, "7x7", RELU),
        (nan_in_dresidual, "7x7", RELU),
        (nan_in_dresidual, "7x7", SILU),
        (sums_of_dy, "7x7", RELU),
        (lambda this: this.backward(activation=NAMES["gelu_tanh"]), "7x7", GELU),
        (lambda this: this.backward(activation=Activation("elu", 1.1)), "7x7", NAMES["elu"]),
        (lambda this: this.backward(this.z.astype(F16).astype(float)), "7x7", SILU),
    ],
)
def test_a_wrong_backward_is_caught(kernel, name, activation):
    this = Problem(name, F32, activation)
    this.check_gradients(this.backward())
    caught(this.check_gradients, kernel(this))


def test_at_a_corner_either_side_is_right_and_nothing_else():
    this = Problem("7x7", F32, RELU)
    this.residual = -this.before_activation(None).astype(F32)  # z is what is left of rounding, everywhere
    this.z = this.before_activation(this.residual)
    for part in (0.0, 1.0):
        right = this.of_dz(this.dy.astype(float) * part)
        assert this.check_gradients(right)["dresidual"] <= 1.01
    for wrong in (0.5, 1.001, -0.001, np.nan):
        with pytest.raises(AssertionError, match=r"^dresidual\["):
            this.check_gradients(right._replace(dresidual=this.dy * F32(wrong)))
    away = this.residual + F32(1e-4)  # a corner is as near as rounding, and no nearer
    this.residual = away
    with pytest.raises(AssertionError, match="times the bound"):
        this.check_gradients(this.of_dz(this.dy * 0.0))


# --- half types ------------------------------------------------


def normalized_in_the_half_type(this):
    return activated(this.before_activation(None).astype(this.x.dtype) + this.residual, None)


def z_in_the_half_type(this):
    return activated(this.z.astype(this.x.dtype).astype(float), this.activation)


def cut_off(this):
    y = activated(this.z, this.activation).astype(F32)
    bits = 16 if this.x.dtype == BF16 else 13
    return (y.view(np.uint32) >> bits << bits).view(F32)


def half_a_unit_more(this):
    y = this.y()
    return np.nextafter(y, np.asarray(np.inf, y.dtype))


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize(
    ("kernel", "activation"),
    [
        (normalized_in_the_half_type, None),
        (z_in_the_half_type, SILU),
        (z_in_the_half_type, NAMES["tanh"]),
        (cut_off, SILU),
        (half_a_unit_more, None),
    ],
)
def test_a_half_type_rounded_otherwise_than_once_is_caught(kernel, activation, dtype):
    this = Problem("7x7", dtype, activation)
    this.check_y(this.y())
    caught(this.check_y, np.asarray(kernel(this)).astype(dtype))


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_sums_of_rounded_gradients_are_caught(dtype):
    this = Problem("7x7", dtype, SILU)
    dz = (this.dy * slope(this.z, SILU)).astype(dtype).astype(float)
    caught(this.check_gradients, this.of_dz(dz))


def test_infinite_and_subnormal_halves_are_compared():
    want = np.array([70_000.0, 65_519.0, 65_520.5, 3e-8, 1e-6, -1e-9])
    with np.errstate(over="ignore"):
        right = want.astype(F16)
    assert np.isinf(right).tolist() == [True, False, True, False, False, False]
    assert close.rounded_once("y", right, want, 1e-9, right.dtype) <= 1
    for at, wrong in [(0, 65_504), (0, -np.inf), (0, np.nan), (1, np.inf), (2, 65_504), (4, 0), (5, 6e-8)]:
        changed = right.copy()
        changed[at] = wrong
        for match_nan in (False, True):
            with pytest.raises(AssertionError, match=rf"^y\[{at}\]"):
                close.rounded_once("y", changed, want, 1e-9, right.dtype, match_nan=match_nan)
    either = np.array([65_520.0])  # the bound reaches both sides
    for value in (65_504.0, np.inf):
        assert close.rounded_once("y", np.array([value], F16), either, 1.0, right.dtype) <= 1


def test_nan_in_a_half_passes_only_where_it_is_expected():
    nan, one = np.array([np.nan], F16), np.array([1.0], F16)
    assert close.rounded_once("y", nan, nan.astype(float), 0.1, one.dtype, match_nan=True) == 0
    for got, want, match_nan in [(nan, nan, False), (nan, one, True), (one, nan, True), (nan, one, False)]:
        with pytest.raises(AssertionError, match=r"^y\[0\]"):
            close.rounded_once("y", got, want.astype(float), 0.1, one.dtype, match_nan=match_nan)
    with pytest.raises(AssertionError, match="y: float32, expected float16"):
        close.rounded_once("y", one.astype(F32), one.astype(float), 0.1, one.dtype)
