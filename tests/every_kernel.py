"""All that the kernel functions return for one input, and the two settings that must not change a bit of it.

with forced("avx2"), threads(3):
    results = everything(x, dy, gamma, beta, axis)
"""

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import close
from cases import CASES
from normwright.kernels import best, reference

EPS = 1e-5
F32, F64, F16, BF16 = np.float32, np.float64, np.float16, ml_dtypes.bfloat16
DTYPES = pytest.mark.parametrize("dtype", [F32, F64])
HALVES = pytest.mark.parametrize("dtype", [F16, BF16])
ALL_DTYPES = pytest.mark.parametrize("dtype", [F32, F64, F16, BF16])


def cases_in(*dtypes: type) -> Any:
    """Every case in every one of these types that holds its values."""
    fitting = [(case, dtype) for case in CASES for dtype in dtypes if case.fits(dtype)]
    names = [f"{case.name}-{dtype.__name__}" for case, dtype in fitting]
    return pytest.mark.parametrize(("case", "dtype"), fitting, ids=names)


def isas_of_floats() -> list[str]:
    """The instruction sets whose kernels for float32 and float64 differ: avx512_bf16 has those of avx512."""
    from normwright import _native

    return [isa for isa in _native.isas() if isa != "avx512_bf16"]


@contextmanager
def forced(isa: str):
    """The kernels of one instruction set; what was active before comes back at the end."""
    before = best.isa()
    best.force_isa(isa)
    try:
        yield
    finally:
        best.force_isa(before)


@contextmanager
def threads(n: int):
    """At most n threads for what this thread calls."""
    from normwright import _native

    before = _native.threads()
    _native.set_threads(n)
    try:
        yield
    finally:
        _native.set_threads(before)


def inputs(case: Any, dtype: type) -> tuple[Any, ...]:
    """x, dy, gamma, beta and the axis of a case; the parameters of half types are float32."""
    parameters = case.parameters(F64 if dtype is F64 else F32)
    return case.make(dtype), case.make_dy(dtype), *parameters, case.axis


def fixed_statistics(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A mean and a variance near the batch's own, and not the same; NaN and infinities do not count."""
    batch = reference.moments(np.where(np.isfinite(x), x, np.zeros((), x.dtype)), axis)
    var = batch.m2 / max(batch.count, 1)
    return batch.mean + 0.25 * np.sqrt(var), 1.5 * var + 0.01


def everything(
    x: np.ndarray,
    dy: np.ndarray,
    gamma: Any,
    beta: Any,
    axis: int,
    fixed: Any = None,
    kernels: Any = best,
    after: tuple[Any, Any] = (None, None),
) -> dict[str, np.ndarray]:
    """All that the five functions of `kernels` return, by name.

    Args:
        fixed: the mean and var of two of them.
        after: the activation and the residual.
    """
    mean, var = fixed or fixed_statistics(x, axis)
    batch = kernels.moments(x, axis)
    y, saved = kernels.forward_train(x, gamma, beta, EPS, axis, *after)
    out = {"moments.mean": batch.mean, "moments.m2": batch.m2, "y": y}
    out |= {f"saved.{name}": getattr(saved, name) for name in ("mean", "mean_tail", "m2", "rstd")}
    out["fixed.y"] = kernels.forward_fixed(x, gamma, beta, mean, var, EPS, axis, *after)
    for when, gradients in {
        "train": kernels.backward_train(dy, x, gamma, beta, saved, axis, *after),
        "fixed": kernels.backward_fixed(dy, x, gamma, beta, mean, var, EPS, axis, *after),
    }.items():
        assert (gradients.dresidual is None) == (after[1] is None)
        out |= {f"{when}.{name}": t for name, t in gradients._asdict().items() if t is not None}
    return out


@close.INFINITIES
def all_right(
    kernels: Any,
    x: np.ndarray,
    dy: np.ndarray,
    gamma: Any,
    beta: Any,
    axis: int,
    after: tuple[Any, Any] = (None, None),
    match_nan: bool = False,
) -> None:
    """Forward and backward, training and with fixed statistics, within their bounds of the reference."""
    options = {"activation": after[0], "residual": after[1], "match_nan": match_nan}
    y, saved = kernels.forward_train(x, gamma, beta, EPS, axis, *after)
    close.forward_train(y, x, gamma, beta, EPS, axis, **options)
    close.saved(saved, x, EPS, axis, match_nan=match_nan and not np.isfinite(x).all())
    gradients = kernels.backward_train(dy, x, gamma, beta, saved, axis, *after)
    close.backward_train(gradients, dy, x, gamma, EPS, axis, beta=beta, **options)
    fixed = (*fixed_statistics(x, axis), EPS, axis)
    close.forward_fixed(
        kernels.forward_fixed(x, gamma, beta, *fixed, *after), x, gamma, beta, *fixed, **options
    )
    gradients = kernels.backward_fixed(dy, x, gamma, beta, *fixed, *after)
    close.backward_fixed(gradients, dy, x, gamma, *fixed, beta=beta, **options)
    assert (gradients.dresidual is None) == (after[1] is None)


def all_same_bits(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Two answers of `everything` are one."""
    assert list(got) == list(want)
    for name in want:
        close.same_bits(name, got[name], want[name])


def run_python(code: str, *options: str, **environment: str) -> str:
    """What a fresh interpreter prints that runs `code`; its stderr is the message where it fails."""
    result = subprocess.run(
        [sys.executable, *options, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
