"""The native kernels give one answer: with any instruction set, any number of threads, called by anyone."""

import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import close
from cases import AFTER, like
from every_kernel import (
    BF16,
    DTYPES,
    EPS,
    F16,
    F32,
    F64,
    all_same_bits,
    cases_in,
    everything,
    fixed_statistics,
    forced,
    inputs,
    isas_of_floats,
    run_python,
    threads,
)
from normwright.core.activation import NAMES
from normwright.kernels import NATIVE

if not NATIVE:
    pytest.skip("this package was built without native kernels", allow_module_level=True)

from normwright import _native
from normwright.kernels import cpu


@pytest.mark.parametrize("afterwards", [False, True], ids=["alone", "with what comes after"])
@cases_in(F32, F64)
def test_every_instruction_set_gives_the_same_bits(case, dtype, afterwards):
    after, results = case.after(dtype) if afterwards else (None, None), {}
    for isa in isas_of_floats():
        with forced(isa):
            results[isa] = everything(*inputs(case, dtype), after=after)
    for result in results.values():
        for array in result.values():
            array[np.isnan(array)] = np.nan  # the sign of a NaN is the machine's; where it stands is not
        all_same_bits(result, results["baseline"])


# Each large enough for seven threads. Their number decides what a thread takes, never what is added to what.
THREADED = {
    "many groups of channels": lambda: normal(4, 128, 28, 28),  # 2, 3 and 7 threads each take whole channels
    "groups that 2 and 3 divide": lambda: normal(
        6, 48, 23, 29
    ),  # and 7 does not: there they share every channel
    "few channels": lambda: normal(200, 4, 15, 15),  # threads share the outer slices
    "one channel": lambda: normal(70, 1, 47, 47),
    "few long channels": lambda: normal(1, 2, 301, 307),  # threads share one slice's positions
    "outer slices apart": lambda: normal(8, 40, 30, 30)[:, 5:29],
    "rows": lambda: normal(5003, 48),
    "rows wider than a strip": lambda: normal(
        131, 4500
    ),  # three strips of at most 2048, that fit into a cache
    "tall rows wider than a strip": lambda: normal(701, 2600),  # two, that do not
    "wide small maps": lambda: normal(37, 600, 2, 2),  # 2400 columns, folded back into 600 channels
    "rows apart": lambda: normal(5003, 90)[:, 7:60],
    "folded rows": lambda: normal(100_007, 3),  # fewer than 16 channels: 16 rows seen as one, 7 rows are left
    "folded rows, none left": lambda: normal(160_000, 2),
    "folded rows, 15 channels": lambda: normal(20_015, 15),
    "narrow rows apart": lambda: normal(60_001, 8)[:, 1:6],  # few channels that cannot be folded
}


def normal(*shape):
    return np.random.default_rng(7).standard_normal(shape, dtype=F32) + F32(3)


def large_inputs(shape, dtype):
    x = THREADED[shape]().astype(dtype, order="K", copy=False)
    rng = np.random.default_rng(8)
    dy = like(x)
    dy[...] = rng.standard_normal(x.shape, dtype=F32) + F32(0.5)
    return x, dy, rng.uniform(0.5, 2, x.shape[1]), rng.standard_normal(x.shape[1]), 1


@DTYPES
@pytest.mark.parametrize("shape", THREADED)
def test_any_number_of_threads_gives_the_same_bits(shape, dtype):
    answer = large_inputs(shape, dtype)
    fixed = fixed_statistics(answer[0], 1)
    with threads(1):
        alone = everything(*answer, fixed)
    for n in (2, 3, 7):  # a divisor of most sizes, one of few, and one of hardly any
        with threads(n):
            all_same_bits(everything(*answer, fixed), alone)
    for isa in _native.isas()[:-1]:
        with forced(isa), threads(3):
            all_same_bits(everything(*answer, fixed), alone)


WHAT_FOLLOWS = {  # of each way through the kernels one, and every type
    "float32 relu after a residual": (F32, "relu", True),
    "float64 hardtanh after a residual": (F64, "hardtanh", True),
    "bfloat16 relu": (BF16, "relu", False),
    "float16 silu after a residual": (F16, "silu", True),
}


@pytest.mark.parametrize("what", WHAT_FOLLOWS)
@pytest.mark.parametrize("shape", THREADED)
def test_any_number_of_threads_gives_the_same_bits_with_what_follows(shape, what):
    dtype, activation, with_residual = WHAT_FOLLOWS[what]
    answer = large_inputs(shape, dtype)
    fixed = fixed_statistics(answer[0], 1)
    after = (NAMES[activation], answer[1] if with_residual else None)
    with threads(1):
        alone = everything(*answer, fixed, after=after)
    for n in (2, 7):
        with threads(n):
            all_same_bits(everything(*answer, fixed, after=after), alone)
    with forced("baseline"), threads(3):
        all_same_bits(everything(*answer, fixed, after=after), alone)


@pytest.mark.parametrize("activation", AFTER[1:], ids=str)
def test_every_activation_gives_the_same_bits_with_threads(activation):
    answer = large_inputs("groups that 2 and 3 divide", F32)
    fixed, after = fixed_statistics(answer[0], 1), (activation, answer[1])
    with threads(1):
        alone = everything(*answer, fixed, after=after)
    with threads(3):
        all_same_bits(everything(*answer, fixed, after=after), alone)


@pytest.mark.parametrize("shape", THREADED)
def test_large_calls_are_right_with_threads(shape):
    x, dy, gamma, beta, axis = large_inputs(shape, F32)
    with threads(3):
        y, saved = cpu.forward_train(x, gamma, beta, EPS, axis)
        gradients = cpu.backward_train(dy, x, gamma, beta, saved, axis)
    close.forward_train(y, x, gamma, beta, EPS, axis)
    close.saved(saved, x, EPS, axis)
    close.backward_train(gradients, dy, x, gamma, EPS, axis)


COUNT_THREADS = """
import os
import numpy as np
from normwright import _native
from normwright.kernels import cpu

team = 1
for shape in ((64, 8), (4, 128, 28, 28), (200, 4, 15, 15), (1, 2, 301, 307), (5003, 48), (100_007, 3)):
    x = np.ones(shape, np.float32)
    team += 1
    _native.set_threads(team)
    before = len(os.listdir("/proc/self/task"))
    cpu.forward_train(x, None, None, 1e-5, 1)
    print(len(os.listdir("/proc/self/task")) - before, end=" ")
"""


@pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"), reason="threads are counted the way Linux shows them"
)
def test_large_calls_really_use_the_threads_and_small_ones_do_not():
    # The team grows by one from shape to shape, and a call that uses it starts what is missing. The first call
    # is too small for two threads, so the second starts two.
    assert run_python(COUNT_THREADS).split() == ["0", "2", "1", "1", "1", "1"]


# --- called by many at once ------------------------------------


def test_python_threads_may_call_the_kernels_at_once():
    shapes = ["many groups of channels", "few channels", "rows", "folded rows", "narrow rows apart"]
    answers = {shape: large_inputs(shape, F32) for shape in shapes}
    alone = {shape: everything(*answer) for shape, answer in answers.items()}
    start = threading.Barrier(4)

    def work(first):
        start.wait()
        for k in range(
            3 * len(shapes)
        ):  # each thread meets every shape, no two the same one at the same time
            shape = shapes[(first + k) % len(shapes)]
            all_same_bits(everything(*answers[shape]), alone[shape])
        return first

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0, 1, 2, 3]


def test_other_python_threads_run_while_a_kernel_does():
    x, saved = np.ones((64, 4096), F32), bytearray(4 * 8 * 64)
    slices = 1000  # of no distance: the same megabyte read for a tenth of a second
    ticks, finished = [], threading.Event()

    def tick():
        while not finished.is_set():
            ticks.append(time.perf_counter())

    ticker, interval = threading.Thread(target=tick), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that little is ticked between the calls
    with threads(1):
        ticker.start()
        began = time.perf_counter()
        _native.moments(0, x.ctypes.data, slices, 64, 4096, 0, saved)
        took = time.perf_counter() - began
        finished.set()
        ticker.join()
    sys.setswitchinterval(interval)
    assert np.frombuffer(saved)[:64].tolist() == [1.0] * 64
    # A call that holds the interpreter's lock leaves the ticker nothing but its edges.
    parts = {int(20 * (t - began) / took) for t in ticks if began < t < began + took}
    assert len(parts) >= 10, f"ticks in {len(parts)} of 20 equal parts of {took * 1e3:.1f} ms"


# --- which instruction set -------------------------------------

PRINT_ISA = "from normwright.kernels import cpu; print(cpu.isa())"


@pytest.mark.parametrize("isa", _native.isas())
def test_the_environment_forces_an_instruction_set(isa):
    assert run_python(PRINT_ISA, NORMWRIGHT_ISA=isa).strip() == isa


def test_without_the_environment_the_widest_instruction_set_runs(monkeypatch):
    monkeypatch.delenv("NORMWRIGHT_ISA", raising=False)
    assert run_python(PRINT_ISA).strip() == _native.isas()[-1]


def test_an_unknown_instruction_set_is_a_clear_error():
    words = re.escape(f"expected NORMWRIGHT_ISA to be one of {_native.isas()}, got 'sse9'")
    with pytest.raises(AssertionError, match=f"ValueError: normwright: {words}"):
        run_python(PRINT_ISA, NORMWRIGHT_ISA="sse9")
    with pytest.raises(ValueError, match=words):
        cpu.force_isa("sse9")
    assert cpu.isa() in _native.isas()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
def test_a_forked_child_of_a_parent_with_threads_does_not_hang():
    # OpenMP's threads are not forked with the process. A child that waited for them would never end.
    code = """
import os, sys
import numpy as np
from normwright import _native
from normwright.kernels import cpu
_native.set_threads(2)
x = np.random.default_rng(0).standard_normal((8, 64, 56, 56)).astype(np.float32)
want, _ = cpu.forward_train(x, None, None, 1e-5, 1)
child = os.fork()
if child == 0:
    got, _ = cpu.forward_train(x, None, None, 1e-5, 1)
    os._exit(0 if got.tobytes() == want.tobytes() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(code).split() == ["0"]
