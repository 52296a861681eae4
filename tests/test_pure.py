"""The package built without a compiler: its kernels keep the same bounds, and both doors work on it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import close
from every_kernel import BF16, DTYPES, EPS, F16, F32, F64, all_right, cases_in, everything, inputs
from normwright.core.activation import Activation
from normwright.kernels import pure

ROOT = Path(__file__).parent.parent
EVERY_CASE = cases_in(F32, F64, F16, BF16)


@EVERY_CASE
@close.INFINITIES
def test_moments_are_the_references(case, dtype):
    x = case.make(dtype)
    close.moments(pure.moments(x, case.axis), x, case.axis, match_nan=not case.finite)


@pytest.mark.parametrize("afterwards", [False, True], ids=["alone", "with what comes after"])
@EVERY_CASE
def test_values_are_the_references(case, dtype, afterwards):
    after = case.after(dtype) if afterwards else (None, None)
    all_right(pure, *inputs(case, dtype), after, match_nan=not case.finite)


@EVERY_CASE
@close.INFINITIES
def test_outputs_have_the_types_of_the_native_kernels(case, dtype):
    x, dy, gamma, beta, axis = inputs(case, dtype)
    after = case.after(dtype)
    before = [t.tobytes() for t in (x, dy, after[1]) if t is not None]
    for name, got in everything(x, dy, gamma, beta, axis, kernels=pure, after=after).items():
        if name.endswith(("y", "dx", "dresidual")):
            assert (got.dtype, got.shape) == (dtype, x.shape), name
        else:
            assert (got.dtype, got.shape) == (F64, (x.shape[axis],)), name
    assert [t.tobytes() for t in (x, dy, after[1]) if t is not None] == before


@DTYPES
def test_forward_and_backward_agree_on_every_sign(dtype):
    # values about a corner of relu, as near as rounding: where y is above 0, and nowhere else, dy comes through
    rng = np.random.default_rng(3)
    x = rng.standard_normal((400, 3)).astype(dtype)
    relu, gamma, beta = Activation("relu"), np.array([1.0, -0.7, 1.3]), np.array([0.1, 0.0, 0.7])
    z, _ = pure.forward_train(x, gamma, beta, EPS, 1)
    residual = -z  # and so z is what is left of its own rounding
    y, saved = pure.forward_train(x, gamma, beta, EPS, 1, relu, residual)
    got = pure.backward_train(np.ones_like(x), x, gamma, beta, saved, 1, relu, residual)
    assert 0.1 < np.mean(y > 0) < 0.9
    close.same_bits("dresidual", got.dresidual, (y > 0).astype(dtype))


def test_a_result_may_be_written_over_an_input():
    x, residual = (np.random.default_rng(n).standard_normal((5, 3)).astype(F32) for n in (1, 2))
    given = (None, None, np.ones(3), np.ones(3), EPS, 1, Activation("silu"))
    want = pure.forward_fixed(x, *given, residual)
    for over in (0, 1):
        arrays = [x.copy(), residual.copy()]
        assert pure.forward_fixed(arrays[0], *given, arrays[1], out=arrays[over]) is arrays[over]
        close.same_bits("y", arrays[over], want)


# --- the package itself -------------------------------------------------

TRY_IT = """
import sys
sys.path[:0] = {path!r}
import numpy as np
import normwright.kernels, normwright.numpy as door
assert normwright.__file__.startswith({target!r}), normwright.__file__
assert normwright.kernels.NATIVE is False
assert normwright.kernels.best.__name__ == "normwright.kernels.pure"

import torch
import normwright.torch as nw

generator = torch.Generator().manual_seed(0)
x, dy = (torch.randn(8, 3, 5, 5, generator=generator) for _ in range(2))
gamma, beta = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 0.0, -1.0])
results = []
for layer in (torch.nn.BatchNorm2d(3), nw.BatchNorm2d(3), nw.convert(torch.nn.BatchNorm2d(3))):
    with torch.no_grad():
        layer.weight.copy_(gamma)
        layer.bias.copy_(beta)
    z = x.clone().requires_grad_()
    y = layer(z)
    y.backward(dy)
    results.append([y.detach(), z.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var,
                    layer.eval()(x).detach()])
for other in results[1:]:
    for got, want in zip(other, results[0], strict=True):
        assert torch.equal(got, want)

y, bn_param, cache = door.batchnorm_train_cached(x.numpy(), gamma.numpy(), beta.numpy(), {{"momentum": 0}})
numpys = [y, *door.batchnorm_backward(dy.numpy(), cache), bn_param["running_mean"]]
torchs = [*results[0][:4], x.mean((0, 2, 3))]
# float32 on torch's side: a few units of values below 8, of sums of 200 such values
for got, want, largest in zip(numpys, torchs, (8, 8, 1600, 1600, 8), strict=True):
    error = np.abs(got - want.numpy()).max()
    assert error <= 8 * 2.0**-24 * largest, error
predicted = door.batchnorm_predict(x.numpy(), None, None, bn_param)
assert np.abs(predicted - door.batchnorm_train(x.numpy(), None, None, {{}})[0]).max() <= 16 * 2.0**-24 * 8
everything = door.Population(1).add(x.numpy())
print("works")
"""


@pytest.mark.slow
def test_the_package_builds_without_cmake_or_a_compiler_and_both_doors_work(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("src", "native"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "_native*"))
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target))
    without_compiler = {
        "NORMWRIGHT_PURE": "1",
        "CXX": "/bin/false",
        "CC": "/bin/false",
        "CMAKE_GENERATOR": "none",
    }
    built = subprocess.run(
        [sys.executable, *pip, str(source)],
        env={**os.environ, **without_compiler},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert not list(target.rglob("*.so"))
    assert (target / "normwright" / "py.typed").exists()
    # -S: no .pth files, so that the editable install that these tests run from does not answer instead
    code = TRY_IT.format(path=[str(target), sysconfig.get_path("purelib")], target=str(target))
    tried = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert tried.returncode == 0, tried.stderr
    assert tried.stdout.strip() == "works"
