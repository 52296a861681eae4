"""Layers whose running statistics move, by every path; and where they should arrive, told without a recursion.

layer, call = made("native", debias=True)
for x in DRIFTING:
    call(x)
as_wanted(layer, wanted(DRIFTING, debias=True), len(DRIFTING))
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import BaseTorchDispatchMode

import close
import normwright.torch as nw
from beside_torch import UNIT, normal

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
PATHS = {  # name: x's type and the layer's; without a mode and uncompiled the native kernels take it
    "native": (F32, F32),
    "native, float64": (F64, F64),
    "native, bfloat16": (BF16, F32),
    "torch's own": (F32, F32),
    "torch's own, float64": (F64, F64),
    "torch's own, bfloat16": (BF16, F32),
    "compiled": (F32, F32),
    "compiled, aot_eager": (F32, F32),
}
AOT = "compiled, aot_eager"  # functionalized, too, which takes its time: where numbers are compared
EACH = pytest.mark.parametrize("path", [path for path in PATHS if path != AOT])
EAGER = pytest.mark.parametrize("path", [path for path in PATHS if "compiled" not in path])
THREE = pytest.mark.parametrize("path", ["native", "torch's own", "compiled"])
BOTH = {"running_var": "biased", "debias": True}
SIZES = (6, 2, 3, 5, 4)  # of batches: two values, too, where the biased variance is half of the other
DRIFTING = [normal(size, 5, seed=k, mean=2.0 * k) for k, size in enumerate(SIZES)]


def call_by(path, layer):
    """A call of the layer that takes the path."""
    dtype = PATHS[path][0]
    if "compiled" in path:
        torch.compiler.reset()
        compiled = torch.compile(layer, backend="aot_eager" if path == AOT else "eager", fullgraph=True)
        return lambda x: compiled(x.to(dtype))

    def call(x):
        # A mode sees every operation: the native kernels give way to torch's own batch norm.
        with BaseTorchDispatchMode() if "torch's" in path else nullcontext():
            return layer(x.to(dtype))

    return call


def made(path, **options):
    """A layer that has seen nothing, and a call of it that takes the path."""
    layer = nw.BatchNorm1d(5, **options).to(PATHS[path][1])
    return layer, call_by(path, layer)


def wanted(batches, momentum=0.1, running_var="unbiased", debias=False, axis=1):
    """running_mean and running_var after all batches by their weights, in float64, without any recursion."""
    values = [np.moveaxis(x.double().numpy(), axis, -1).reshape(-1, x.shape[axis]) for x in batches]
    ddof = 0 if running_var == "biased" else 1
    t, a = len(batches), momentum
    found = []
    for began, each in ((0.0, [v.mean(0) for v in values]), (1.0, [v.var(0, ddof=ddof) for v in values])):
        if a is None:
            found.append(sum(each) / t)
        elif a == 0:
            found.append(np.full_like(each[0], began))
        else:
            weighted = sum(a * (1 - a) ** (t - k) * s for k, s in enumerate(each, start=1))
            found.append(weighted / (1 - (1 - a) ** t) if debias else (1 - a) ** t * began + weighted)
    return found


def as_wanted(layer, want, updates):
    unit = UNIT[layer.running_mean.dtype]
    for name, w in zip(("running_mean", "running_var"), want, strict=True):
        got = getattr(layer, name).double().numpy()
        # values below 16 (a batch's of some six terms by torch in x's type), a few roundings in each update; and
        # the powers above, which lose 1/momentum units of float64
        close.within(name, got, w, 16 * updates * unit * 16 + 200 * UNIT[F64] * 16)
