"""All that the kernel functions return for one input, and the two settings that must not change a bit of it.

with forced("avx2"), threads(3):
    results = everything(x, dy, gamma, beta, axis)
"""

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import close
from normwright.kernels import best, reference

EPS = 1e-5
F32, F64 = np.float32, np.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, F64])


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
    """x, dy, gamma, beta and the axis of a case."""
    return case.make(dtype), case.make_dy(dtype), *case.parameters(dtype), case.axis


def fixed_statistics(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A mean and a variance near the batch's own, and not the same; NaN and infinities do not count."""
    batch = reference.moments(np.where(np.isfinite(x), x, 0), axis)
    var = batch.m2 / max(batch.count, 1)
    return batch.mean + 0.25 * np.sqrt(var), 1.5 * var + 0.01


def everything(
    x: np.ndarray, dy: np.ndarray, gamma: Any, beta: Any, axis: int, fixed: Any = None, kernels: Any = best
) -> dict[str, np.ndarray]:
    """All that the five functions of `kernels` return, by name; `fixed`: the mean and var of two of them."""
    mean, var = fixed or fixed_statistics(x, axis)
    batch = kernels.moments(x, axis)
    y, saved = kernels.forward_train(x, gamma, beta, EPS, axis)
    out = {"moments.mean": batch.mean, "moments.m2": batch.m2, "y": y}
    out |= {f"saved.{name}": getattr(saved, name) for name in ("mean", "mean_tail", "m2", "rstd")}
    out["fixed.y"] = kernels.forward_fixed(x, gamma, beta, mean, var, EPS, axis)
    for when, gradients in {
        "train": kernels.backward_train(dy, x, gamma, saved, axis),
        "fixed": kernels.backward_fixed(dy, x, gamma, mean, var, EPS, axis),
    }.items():
        names = (f"{when}.{name}" for name in ("dx", "dgamma", "dbeta"))
        out |= dict(zip(names, gradients, strict=True))
    return out


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
