"""What follows batch normalization: the activations that kernels carry along, by their names.

The order of KINDS is that of `Kind` in native/kernels.h.
"""

from typing import NamedTuple

from normwright.core.checks import DtypeError, ShapeError, message

KINDS = (
    "identity",
    "relu",
    "leaky_relu",
    "hardtanh",
    "hardswish",
    "silu",
    "gelu",
    "gelu_tanh",
    "sigmoid",
    "tanh",
    "elu",
)


class Activation(NamedTuple):
    """An activation, as kernels know it.

    Attributes:
        kind: one of KINDS.
        a, b: leaky_relu's slope is a; hardtanh clamps to [a, b]; elu's alpha is a. Others have neither.
    """

    kind: str
    a: float = 0.0
    b: float = 0.0

    @property
    def number(self) -> int:
        """The place of the kind in KINDS."""
        return KINDS.index(self.kind)

    @property
    def is_told_by_a_bit(self) -> bool:
        """Whether one bit of z (above 0; within the bounds) says what the derivative is."""
        return self.kind in ("relu", "leaky_relu", "hardtanh")

    def __str__(self) -> str:
        if self == NAMES.get(self.kind) or self.kind not in WITH_NUMBERS:
            return self.kind
        numbers = (self.a, self.b)[: WITH_NUMBERS[self.kind]]
        return f"{self.kind}({', '.join(f'{n:g}' for n in numbers)})"


WITH_NUMBERS = {"leaky_relu": 1, "hardtanh": 2, "elu": 1}

#: What a name means. The numbers are those that torch.nn's modules have by default.
NAMES = {
    **{kind: Activation(kind) for kind in KINDS if kind not in WITH_NUMBERS},
    "leaky_relu": Activation("leaky_relu", 0.01),
    "hardtanh": Activation("hardtanh", -1.0, 1.0),
    "relu6": Activation("hardtanh", 0.0, 6.0),
    "elu": Activation("elu", 1.0),
    "swish": Activation("silu"),
    "gelu_pytorch_tanh": Activation("gelu_tanh"),
}


def parse(call: str, activation: object) -> Activation | None:
    """An Activation from its name, or from an Activation itself; None for None and "identity".

    Raises:
        ShapeError: an unknown name, or numbers that the kind cannot have.
        DtypeError: something else.

    Example:
        >>> parse("f", "relu6")
        Activation(kind='hardtanh', a=0.0, b=6.0)
        >>> print(parse("f", "relu6"), parse("f", Activation("leaky_relu", 0.2)), parse("f", "silu"))
        hardtanh(0, 6) leaky_relu(0.2) silu
    """
    if isinstance(activation, str):
        if activation not in NAMES:
            raise ShapeError(
                message(call, f"activation to be one of {', '.join(sorted(NAMES))}", repr(activation))
            )
        activation = NAMES[activation]
    if activation is None:
        return None
    if not isinstance(activation, Activation):
        raise DtypeError(message(call, "activation to be a name or None", repr(activation)))
    if activation.kind not in KINDS:
        raise ShapeError(
            message(call, f"activation of a kind among {', '.join(KINDS)}", repr(activation.kind))
        )
    if activation.kind == "hardtanh" and not activation.a < activation.b:
        raise ShapeError(
            message(call, "hardtanh from a to a larger b", f"{activation.a:g} and {activation.b:g}")
        )
    if activation.kind == "leaky_relu" and not 0 <= activation.a < float("inf"):
        raise ShapeError(message(call, "leaky_relu with a slope >= 0", f"{activation.a:g}"))
    if activation.kind == "elu" and not 0 <= activation.a < float("inf"):
        raise ShapeError(message(call, "elu with alpha >= 0", f"{activation.a:g}"))
    return None if activation.kind == "identity" else activation
