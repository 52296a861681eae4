"""How each framework writes down a batch norm: names, directions, defaults, and what its recorded variance is.

The core says `rate`, the weight of the NEW batch. Everything that a framework says otherwise stands in CONVENTIONS.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from normwright.core.checks import ShapeError, check_eps, message

Float64 = NDArray[np.float64]
Recorded = Literal["biased", "unbiased"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """What one framework means by its numbers.

    Attributes:
        name: as in CONVENTIONS.
        momentum_weighs: what the framework's momentum multiplies, the "new" batch or the "old" value.
        momentum, eps: the framework's defaults.
        recorded: a batch's variance goes into the running one "biased", m2/m, or "unbiased", m2/(m-1).
        eps_inside: the recorded variance is var + eps, and inference adds none.
        gamma, beta, mean, var: what these are called.
        counter: what the number of batches so far is called; None where none is kept.
        eps_name, momentum_name: what these settings are called.
        fix_gamma: the setting, on by default, that computes with 1 whatever gamma holds; None where there is none.
        starts_at: the running variance before the first batch. (The running mean starts at 0 everywhere.)
    """

    name: str
    momentum_weighs: Literal["new", "old"]
    momentum: float
    eps: float
    recorded: Recorded
    eps_inside: bool = False
    gamma: str = "gamma"
    beta: str = "beta"
    mean: str
    var: str
    counter: str | None = None
    eps_name: str = "epsilon"
    momentum_name: str = "momentum"
    fix_gamma: str | None = None
    starts_at: float = 1.0

    @property
    def arrays(self) -> tuple[str, str, str, str]:
        """The names of gamma, beta, mean and var, in this order."""
        return self.gamma, self.beta, self.mean, self.var


def _moving(name: str, recorded: Recorded) -> Convention:
    """Keras' names and defaults, which did not change from 2 to 3."""
    return Convention(
        name=name, momentum_weighs="old", momentum=0.99, eps=1e-3, recorded=recorded,
        mean="moving_mean", var="moving_variance",
    )  # fmt: skip


def _running(name: str, *, eps_inside: bool) -> Convention:
    """The NumPy form: a dictionary bn_param, whose momentum weighs the old value."""
    return Convention(
        name=name, momentum_weighs="old", momentum=0.9, eps=1e-5, recorded="biased", eps_inside=eps_inside,
        mean="running_mean", var="running_var", eps_name="eps",
    )  # fmt: skip


_ALL = (
    Convention(
        name="pytorch", momentum_weighs="new", momentum=0.1, eps=1e-5, recorded="unbiased",
        gamma="weight", beta="bias", mean="running_mean", var="running_var",
        counter="num_batches_tracked", eps_name="eps",
    ),
    _moving("keras", "biased"),
    _moving("keras2", "biased"),
    _moving("keras2-fused", "unbiased"),
    Convention(
        name="flax", momentum_weighs="old", momentum=0.99, eps=1e-5, recorded="biased",
        gamma="scale", beta="bias", mean="mean", var="var",
    ),
    Convention(
        name="mxnet", momentum_weighs="old", momentum=0.9, eps=1e-3, recorded="biased",
        mean="moving_mean", var="moving_var", eps_name="eps", fix_gamma="fix_gamma",
    ),
    Convention(
        name="gluon", momentum_weighs="old", momentum=0.9, eps=1e-5, recorded="biased",
        mean="running_mean", var="running_var", eps_name="eps",
    ),
    Convention(
        name="paddle", momentum_weighs="old", momentum=0.9, eps=1e-5, recorded="biased",
        gamma="weight", beta="bias", mean="_mean", var="_variance",
    ),
    Convention(
        name="onnx", momentum_weighs="old", momentum=0.9, eps=1e-5, recorded="biased",
        gamma="scale", beta="B", mean="input_mean", var="input_var",
    ),
    _running("numpy", eps_inside=False),
    _running("numpy-eps-inside", eps_inside=True),
)  # fmt: skip

CONVENTIONS: Mapping[str, Convention] = MappingProxyType({each.name: each for each in _ALL})
"""Every convention by its name; docs/conventions.md says how each of their facts is known."""


def convention_of(call: str, convention: str) -> Convention:
    """The convention of that name. Raise ShapeError where there is none."""
    found = CONVENTIONS.get(convention) if isinstance(convention, str) else None
    if found is None:
        expected = f"convention to be one of {', '.join(CONVENTIONS)}"
        raise ShapeError(message(call, expected, repr(convention)))
    return found


def rate_of(momentum: float | None, convention: str) -> float | None:
    """The weight of the NEW batch that a framework's momentum means.

    rate = momentum where it weighs the new batch, 1 - momentum where it weighs the old value

    Args:
        momentum: in the framework's words, from 0 to 1. None, which torch alone has, is the plain mean of all
            batches.
        convention: a name in CONVENTIONS.

    Returns:
        The rate; None for None.

    Raises:
        ShapeError: the convention is unknown, momentum is not from 0 to 1, or None where the framework has no None.

    Numerics:
        1 - momentum is taken of the decimal number that is written, so that 0.99 gives 0.01 and not
        0.010000000000000009; `momentum_of` brings 0.99 back.

    Example:
        >>> rate_of(0.99, "keras"), rate_of(0.1, "pytorch")
        (0.01, 0.1)
    """
    return _turned("normwright.core.conventions.rate_of", "momentum", momentum, convention)


def momentum_of(rate: float | None, convention: str) -> float | None:
    """The momentum, in a framework's words, by which a new batch gets the weight `rate`: the inverse of `rate_of`.

    Args, Returns, Raises, Numerics: as `rate_of`.

    Example:
        >>> momentum_of(0.1, "paddle"), momentum_of(None, "pytorch")
        (0.9, None)
    """
    return _turned("normwright.core.conventions.momentum_of", "rate", rate, convention)


def _turned(call: str, argument: str, value: float | None, convention: str) -> float | None:
    which = convention_of(call, convention)
    if value is None:
        if which.name != "pytorch":
            remedy = "None, the plain mean of all batches, is torch's alone."
            raise ShapeError(message(call, f"{argument} to be a number", "None", remedy=remedy))
        return None
    if not 0 <= value <= 1:
        raise ShapeError(message(call, f"{argument} from 0 to 1", repr(value)))
    return float(value) if which.momentum_weighs == "new" else float(1 - Decimal(repr(float(value))))


def share_of_start(rate: float | None, updates: int) -> float:
    """How much of its value before the first batch a moving average still holds.

    share = (1 - rate)^updates

    Args:
        rate: weight of the NEW batch, the same at every update; None for the plain mean, which holds none of it.
        updates: how many batches came in; not negative.

    Returns:
        From 0 to 1.

    Example:
        >>> share_of_start(0.5, 3), share_of_start(None, 3), share_of_start(None, 0)
        (0.125, 0.0, 1.0)
    """
    if rate is None:
        return 0.0 if updates else 1.0
    return float((1 - rate) ** updates)


def variance(
    call: str,
    recorded: NDArray[Any],
    source: Convention,
    target: Convention,
    *,
    eps: float,
    count: int | None = None,
    share: float = 0.0,
    updates: int = 0,
) -> Float64:
    """A running variance in another convention.

    v = recorded - eps where eps stands inside, else recorded               (the same inference)
    v = share*s' + f*(v - share*s), f = m/(m-1) to unbiased, (m-1)/m to biased     (only with a count)
    recorded' = v + eps where the target has eps inside, else v

    The second line holds for a moving average of constant rate over batches of constant count: it is
    (1-rate)^t * s + sum_k rate (1-rate)^(t-k) v_k, and only the sum carries the factor. s and s' are what the two
    averages start at, less an eps inside.

    Args:
        call: for the words of an error.
        recorded: (C,), as the source has it.
        source, target: conventions.
        eps: the source's; not negative, and positive where it stands inside.
        count: m, values per channel in each batch. Default None: inference by the result is the source's own;
            biased stays biased. With a count: what the target would have recorded of the same batches.
        share: (1-rate)^t, as `share_of_start`. Default 0, where nothing of the start is left.
        updates: t, for the rounding that a float32 recursion is allowed. Default 0.

    Returns:
        (C,) float64.

    Raises:
        ShapeError: count < 2; an entry is not finite, is negative, less than an eps inside, or less than the share
            of the start, which cannot be after `updates` batches at this rate.

    Numerics:
        A few float64 roundings. recorded - eps is exact within a factor of two of eps (Sterbenz), and below
        2^-53 of recorded elsewhere.

    Source:
        Ioffe & Szegedy 2015, Algorithm 2 (m/(m-1)); the closed form of the recursion in `core/running.py`.

    Example:
        >>> keras, torch = CONVENTIONS["keras"], CONVENTIONS["pytorch"]
        >>> variance("f", np.array([2.5]), keras, torch, eps=1e-3)
        array([2.5])
        >>> variance("f", np.array([2.5]), keras, torch, eps=1e-3, count=4, share=0.5)  # 0.5 + 4/3 * 2
        array([3.16666667])
    """
    v = np.asarray(recorded).astype(np.float64)
    start, becomes = source.starts_at, target.starts_at
    if source.eps_inside or target.eps_inside:
        check_eps(call, eps)
    _check_entries(call, source, v)
    if source.eps_inside:
        v, start = _without_eps(call, source, v, eps), start - eps
    if target.eps_inside:
        becomes -= eps
    if count is not None and source.recorded != target.recorded:
        if count < 2:
            remedy = "A single value has no unbiased variance."
            raise ShapeError(message(call, "count >= 2", repr(count), remedy=remedy))
        batches = v - share * start
        # Each update of a float32 recursion rounds up to three times, by 2^-24 of what is left of the start.
        if (batches < -4 * updates * 2**-24 * share * abs(start)).any():
            worst = int(batches.argmin())
            least = f"{share * start:.6g}, the share of its start after {updates} updates"
            expected = f"{source.var} of at least {least}"
            remedy = "updates or momentum is not that of these statistics."
            raise ShapeError(message(call, expected, f"{v[worst]:.6g} at channel {worst}", remedy=remedy))
        factor = count / (count - 1) if target.recorded == "unbiased" else (count - 1) / count
        v = share * becomes + factor * np.maximum(batches, 0)
    return v + eps if target.eps_inside else v


def _check_entries(call: str, source: Convention, v: Float64) -> None:
    bad = ~(np.isfinite(v) & (v >= 0))
    if bad.any():
        first = int(bad.argmax())
        expected = f"{source.var} finite and not negative"
        raise ShapeError(message(call, expected, f"{v[first]:.6g} at channel {first}"))


def _without_eps(call: str, source: Convention, v: Float64, eps: float) -> Float64:
    if (v < eps).any():
        worst = int(v.argmin())
        expected = f"{source.var} of at least eps={eps!r}, which stands inside it"
        remedy = "This eps is not that of these statistics, or their eps does not stand inside."
        raise ShapeError(message(call, expected, f"{v[worst]:.6g} at channel {worst}", remedy=remedy))
    plain: Float64 = v - eps
    return plain
