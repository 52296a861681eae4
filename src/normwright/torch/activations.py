"""Activations as torch has them: its modules by their meaning, and its functions with their derivatives."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normwright.core import activation as core
from normwright.core.activation import Activation
from normwright.core.checks import DtypeError, message
from normwright.kernels import NATIVE

if NATIVE:
    from normwright import _native

ActivationLike = str | Activation | nn.Module | None  # how users say one

_aten: Any = torch.ops.aten

_OF_MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.Identity: lambda m: Activation("identity"),
    nn.ReLU: lambda m: Activation("relu"),
    nn.ReLU6: lambda m: Activation("hardtanh", 0.0, 6.0),
    nn.LeakyReLU: lambda m: Activation("leaky_relu", m.negative_slope),
    nn.Hardtanh: lambda m: Activation("hardtanh", m.min_val, m.max_val),
    nn.Hardswish: lambda m: Activation("hardswish"),
    nn.SiLU: lambda m: Activation("silu"),
    nn.GELU: lambda m: Activation("gelu" if m.approximate == "none" else "gelu_tanh"),
    nn.Sigmoid: lambda m: Activation("sigmoid"),
    nn.Tanh: lambda m: Activation("tanh"),
    nn.ELU: lambda m: Activation("elu", m.alpha),
}


def parse(call: str, activation: object) -> Activation | None:
    """An Activation from its name, a module of torch.nn, or an Activation; None for what does nothing.

    Raises:
        ShapeError: an unknown name, or numbers that the kind cannot have.
        DtypeError: something else, a module of another class among it.

    Example:
        >>> print(parse("f", nn.LeakyReLU(0.2)), parse("f", "relu6"), parse("f", nn.Identity()))
        leaky_relu(0.2) hardtanh(0, 6) None
    """
    if isinstance(activation, nn.Module | type):
        cls = activation if isinstance(activation, type) else type(activation)
        if cls not in _OF_MODULES or cls is activation:
            known = ", ".join(each.__name__ for each in _OF_MODULES)
            remedy = f"Say {cls.__name__}()." if cls in _OF_MODULES else "Apply it behind batch norm."
            expected = f"activation to be a name, or one of torch.nn's {known}"
            raise DtypeError(message(call, expected, repr(activation), remedy=remedy))
        activation = _OF_MODULES[cls](activation)
    return core.parse(call, activation)


@lru_cache(maxsize=64)
def native(activation: Activation) -> "_native.Activation":
    """As the kernels take it."""
    return _native.Activation(activation.number, float(activation.a), float(activation.b))


def apply(activation: Activation, z: Tensor) -> Tensor:
    """y of z, by torch's function; never in place."""
    kind, a, b = activation
    if kind == "leaky_relu":
        return F.leaky_relu(z, a)
    if kind == "hardtanh":
        return F.hardtanh(z, a, b)
    if kind == "elu":
        return F.elu(z, a)
    if kind == "gelu_tanh":
        return F.gelu(z, approximate="tanh")
    return _FUNCTIONS[kind](z)


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def gradient(activation: Activation, z: Tensor, dy: Tensor) -> Tensor:
    """dz = dy * activation'(z), in operations that can be differentiated by z and dy again."""
    return _GRADIENTS[activation.kind](activation, z, dy)  # type: ignore[no-any-return]


def _silu_gradient(z: Tensor, dy: Tensor) -> Tensor:
    """torch's own cannot be differentiated by name."""
    s = torch.sigmoid(z)
    return dy * (s * (1 + z * (1 - s)))


# torch's own formulas: they select, where a product would turn an infinite dy into NaN.
_GRADIENTS: dict[str, Callable[[Activation, Tensor, Tensor], Any]] = {
    "relu": lambda f, z, dy: _aten.threshold_backward(dy, z, 0),
    "leaky_relu": lambda f, z, dy: _aten.leaky_relu_backward(dy, z, f.a, False),
    "hardtanh": lambda f, z, dy: _aten.hardtanh_backward(dy, z, f.a, f.b),
    "hardswish": lambda f, z, dy: _aten.hardswish_backward(dy, z),
    "silu": lambda f, z, dy: _silu_gradient(z, dy),
    "gelu": lambda f, z, dy: _aten.gelu_backward(dy, z, approximate="none"),
    "gelu_tanh": lambda f, z, dy: _aten.gelu_backward(dy, z, approximate="tanh"),
    "sigmoid": lambda f, z, dy: _aten.sigmoid_backward(dy, torch.sigmoid(z)),
    "tanh": lambda f, z, dy: _aten.tanh_backward(dy, torch.tanh(z)),
    "elu": lambda f, z, dy: _aten.elu_backward(dy, f.a, 1, 1, False, z),
}


def gradient_by_bit(activation: Activation, bit: Tensor, dy: Tensor) -> Tensor:
    """dz of an activation that is told by a bit: dy where the bit is set; elsewhere 0, or a * dy for leaky_relu."""
    return torch.where(bit, dy, dy * activation.a if activation.kind == "leaky_relu" else 0)
