"""Rivals that are not always there: `torch.compile`, which takes a C++ compiler, and JAX.

JAX computes what the others do, under one `jit` each: y and the moved running statistics in training, also the
gradients by `vjp`, y alone in inference; variances as Flax has them. Channels-last is its own NHWC.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from torch import Tensor

from normwright.bench.cases import COMPILED, JAX, Op
from normwright.bench.contenders import Step
from normwright.bench.problem import EPS, Problem
from normwright.bench.truth import RATE, Array, Results


def missing() -> dict[str, str]:
    """Those that cannot be timed here, and why."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    found = {}
    if shutil.which(compiler) is None:
        found[COMPILED] = f"it needs a C++ compiler, and there is no {compiler}"
    if find_spec("jax") is None:
        found[JAX] = "it is not installed (pip install jax)"
    return found


def jax_step(given: Problem, op: Op, threads: int) -> Step:
    """The passes of JAX."""
    jax = import_module("jax")
    if given.case.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    with _cores(threads):
        jax.devices()  # its threads are started here, as many as there are cores to run on
    norm = Norm(jax, given, op)
    wait = jax.block_until_ready
    train, step, fixed = (jax.jit(f) for f in (norm.train, norm.step, norm.fixed))

    def results(backward: bool) -> Results:
        if not backward:
            y, mean, var = train(*norm.inputs, *norm.fresh)
            return Results(norm.rows(y), norm.numbers(mean), norm.numbers(var))
        (y, mean, var), (dx, dgamma, dbeta, *dresidual) = step(norm.dy, *norm.inputs, *norm.fresh)
        return Results(
            norm.rows(y),
            norm.numbers(mean),
            norm.numbers(var),
            norm.rows(dx),
            norm.numbers(dgamma),
            norm.numbers(dbeta),
            norm.rows(dresidual[0]) if dresidual else None,
        )

    return Step(
        lambda: wait(train(*norm.inputs, *norm.fresh)),
        lambda: wait(step(norm.dy, *norm.inputs, *norm.fresh)),
        lambda: wait(fixed(*norm.inputs, *norm.given)),
        results,
        lambda: norm.rows(fixed(*norm.inputs, *norm.given)),
    )


class Norm:
    """Batch norm and what follows it in JAX, and its arrays.

    Attributes:
        inputs: x, gamma, beta and, where there is one, the residual.
        fresh, given: running mean and variance as training begins with them, and as inference has them.
    """

    def __init__(self, jax: Any, problem: Problem, op: Op) -> None:
        self._jax, self._np, self._problem = jax, jax.numpy, problem
        rank = len(problem.case.shape)
        self._last = problem.case.layout == "channels-last"
        axis = rank - 1 if self._last else 1
        self._axes = tuple(a for a in range(rank) if a != axis)
        self._along = tuple(-1 if a == axis else 1 for a in range(rank))
        self._relu, self._adds = op != "bn", op == "bn+add+relu"
        self.dy = self._array(problem.dy)
        tensors = [problem.x, problem.gamma, problem.beta, *([problem.residual] if self._adds else [])]
        self.inputs = [self._array(t) for t in tensors]
        self.fresh = [self._array(t) for t in (problem.mean * 0, problem.var * 0 + 1)]
        self.given = [self._array(t) for t in (problem.mean, problem.var)]

    def train(self, x: Any, gamma: Any, beta: Any, *others: Any) -> tuple[Any, Any, Any]:
        """y and the running statistics, moved."""
        *residual, running_mean, running_var = others
        wide = x.astype(gamma.dtype)
        mean = wide.mean(self._axes)
        var = self._np.maximum(0, (wide * wide).mean(self._axes) - mean * mean)
        count = x.size // x.shape[self._along.index(-1)]
        y = self._normalized(x, gamma, beta, mean, var, *residual)
        moved = running_mean + RATE * (mean - running_mean)
        return y, moved, running_var + RATE * (var * (count / max(count - 1, 1)) - running_var)

    def step(self, dy: Any, *all_inputs: Any) -> tuple[Any, Any]:
        """What `train` returns, and the gradients of x, gamma, beta and the residual."""
        *inputs, running_mean, running_var = all_inputs

        def y_of(*inputs: Any) -> tuple[Any, tuple[Any, Any]]:
            y, *moved = self.train(*inputs, running_mean, running_var)
            return y, tuple(moved)

        y, pull, moved = self._jax.vjp(y_of, *inputs, has_aux=True)
        return (y, *moved), pull(dy)

    def fixed(self, x: Any, gamma: Any, beta: Any, *others: Any) -> Any:
        """y by given statistics."""
        *residual, mean, var = others
        return self._normalized(x, gamma, beta, mean, var, *residual)

    def rows(self, array: Any) -> Array:
        """As `Problem.rows`."""
        channels = np.moveaxis(np.asarray(array), self._along.index(-1), 0)[self._problem.channels]
        return channels.reshape(len(channels), -1).astype(self._problem.wide)

    def numbers(self, array: Any) -> Array:
        """Of the channels compared."""
        return np.asarray(array)[self._problem.channels].astype(self._problem.wide)

    def _normalized(self, x: Any, gamma: Any, beta: Any, mean: Any, var: Any, *residual: Any) -> Any:
        mean, beta, scale = (
            v.reshape(self._along) for v in (mean, beta, self._jax.lax.rsqrt(var + EPS) * gamma)
        )
        y = ((x.astype(mean.dtype) - mean) * scale + beta).astype(x.dtype)
        y = y + residual[0] if residual else y
        return self._jax.nn.relu(y) if self._relu else y

    def _array(self, t: Tensor) -> Any:
        name = str(t.dtype).removeprefix("torch.")
        t = t.detach().movedim(1, -1) if self._last and t.dim() > 1 else t.detach()
        through = t.double() if name == "float64" else t.float()  # NumPy has no bfloat16
        return self._np.asarray(through.contiguous().numpy(), name)


@contextmanager
def _cores(n: int) -> Iterator[None]:
    """Only so many cores for what is started meanwhile, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(mine)[:n])
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)
