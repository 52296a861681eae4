"""One small input, measured in this process: records that say everything, and refusals. No time is asserted."""

import mmap

import pytest

from normwright.kernels import NATIVE

torch = pytest.importorskip("torch")
if not NATIVE:
    pytest.skip("without native kernels there is nothing to measure", allow_module_level=True)

from normwright import _native  # noqa: E402
from normwright.bench import contenders, floor, measure, memory, peers, problem  # noqa: E402
from normwright.bench.cases import DTYPES, OPS, PASSES, Case, bytes_moved  # noqa: E402
from normwright.bench.job import Job  # noqa: E402
from normwright.bench.timer import Budget, WrongValues  # noqa: E402

BUDGET = Budget(seconds=0, least=2, most=2)
NCHW = Case((3, 5, 6, 7), "NCHW")
SMALL = [
    NCHW,
    Case((3, 5, 6, 7), "channels-last"),
    Case((3, 5, 6, 7), "NCHW slice"),
    Case((20, 5), "(N, C)"),
    Case((4, 5, 9), "NCHW"),
    Case((2, 3, 4, 5, 3), "channels-last", "bfloat16"),
    Case((3, 5, 7, 7), "NCHW", "bfloat16"),
    Case((3, 5, 6, 7), "channels-last", "float16"),
    Case((3, 5, 6, 7), "NCHW slice", "float64"),
    Case((4, 3, 1, 1), "NCHW", "float64"),
]


def measured(case, ops=OPS, names=("torch", "normwright"), allocator="some state"):
    return measure.measure(Job(case, ops, names, BUDGET, allocator))


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.named(""))
def test_records_say_what_was_measured_of_whom_and_where(case):
    records = measured(case)
    assert [(r.where["op"], r.what, r.where["contender"]) for r in records] == [
        (op, f"floor {what}" if who == "memory" else what, who)
        for op in OPS
        for what in PASSES
        for who in ("torch", "normwright", "memory")
    ]
    for r in records:
        assert r.unit == "seconds"
        assert 0 < r.where["q25"] <= r.value <= r.where["q75"]
        expected = {
            "shape": case.size,
            "layout": case.layout,
            "dtype": case.dtype,
            "bytes": case.bytes,
            "bytes_moved": round(bytes_moved(case, r.where["op"], r.what.removeprefix("floor "))),
            "allocator": "some state",
            "threads": torch.get_num_threads(),
            "rounds": 2,
        }
        assert {key: r.where[key] for key in expected} == expected
        if r.where["contender"] == "memory":
            assert set(str(r.where["stores"]).split(", ")) <= {"ordinary", "streaming"}


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.named(""))
def test_the_tensors_lie_in_memory_as_the_case_says(case):
    given = problem.problem(case)
    tensors = (given.x, given.dy, given.residual)
    assert all(t.dtype == getattr(torch, case.dtype) and t.shape == case.shape for t in tensors)
    by_channels = [t.movedim(1, -1).is_contiguous() for t in tensors]
    if case.layout == "channels-last":
        assert by_channels == [True] * 3
    elif case.layout == "NCHW slice":
        assert [t.is_contiguous() for t in tensors] == [False, True, True]
        assert given.x.stride(0) == 2 * given.dy.stride(0)
    else:
        assert all(t.is_contiguous() for t in tensors)
    assert torch.equal(given.x, problem.problem(Case(case.shape, "NCHW", case.dtype)).x)


def test_parameters_are_those_that_a_user_has_beside_the_type():
    for dtype in DTYPES:
        given = problem.problem(Case((3, 5, 6, 7), "NCHW", dtype))
        wanted = torch.float64 if dtype == "float64" else torch.float32
        assert {t.dtype for t in (given.gamma, given.beta, given.mean, given.var)} == {wanted}


def test_a_run_leaves_no_gradient_behind_and_no_graph_in_inference():
    given = problem.problem(NCHW)
    for name in ("torch", "normwright"):
        step = contenders.torch_step(name, given, "bn+add+relu")
        _, gradients = step.both()
        assert len(gradients) == 4
        assert given.x.grad is given.residual.grad is None
        assert step.forward().requires_grad
        assert not step.inference().requires_grad


# --- who is refused ---------------------------------------------------


def wrong(monkeypatch, library, forward):
    """Layers of a library whose forward does this to a right y."""
    right = contenders.LAYERS[library][4]

    class Wrong(right):
        def forward(self, *inputs):
            return forward(super().forward(*inputs))

    monkeypatch.setitem(contenders.LAYERS[library], 4, Wrong)


def refusals(records):
    return {(r.what, r.where["contender"]): r.where["refused"] for r in records if r.value is None}


@pytest.mark.parametrize("off", [float("nan"), 0.01], ids=["nan", "a hundredth off"])
@pytest.mark.parametrize("library", ["torch", "normwright"])
def test_a_layer_with_wrong_values_is_not_timed_and_the_others_are(monkeypatch, library, off):
    wrong(monkeypatch, library, lambda y: y + off)
    records = measured(NCHW, ("bn",))
    found = refusals(records)
    assert set(found) == {(what, library) for what in PASSES}
    for (what, _), words in found.items():
        assert words.startswith(f"{library} {what}: ")
        assert words.endswith("; it was not timed.")
    assert {r.where["contender"] for r in records if r.value is not None} == {
        "torch",
        "normwright",
        "memory",
    } - {library}


def test_a_layer_with_a_wrong_gradient_is_not_timed_with_its_backward_alone(monkeypatch):
    wrong(monkeypatch, "normwright", lambda y: y.detach() + 0.99 * (y - y.detach()))
    found = refusals(measured(NCHW, ("bn+add+relu",)))
    assert list(found) == [("forward+backward", "normwright")]
    assert "values of dx are wrong" in found["forward+backward", "normwright"]


def test_a_layer_that_changes_the_layout_is_refused(monkeypatch):
    wrong(monkeypatch, "normwright", lambda y: y.contiguous())
    found = refusals(measured(SMALL[1], ("bn",)))
    assert found["forward", "normwright"].startswith("normwright forward: y lies in memory otherwise")
    assert refusals(measured(NCHW, ("bn",))) == {}


def test_a_value_in_a_channel_that_is_not_compared_must_be_finite(monkeypatch):
    monkeypatch.setattr("normwright.bench.truth.VALUES_COMPARED", 126)  # one channel's
    wrong(monkeypatch, "torch", lambda y: y.index_fill(1, torch.tensor([4]), float("inf")))
    assert "not finite everywhere" in refusals(measured(NCHW, ("bn",)))["forward", "torch"]


@pytest.mark.parametrize("op", ["bn", "bn+add+relu"])
def test_a_floor_that_does_not_write_everything_ends_the_measurement(monkeypatch, op):
    right = _native.memory_floor
    monkeypatch.setattr(
        _native, "memory_floor", lambda a, b, c, d, n, stream: right(a, b, c, d, n - 1, stream)
    )
    with pytest.raises(WrongValues, match=r"^(copy|triad) ordinary: "):
        measured(NCHW, (op,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_floor_sweeps_as_many_bytes_as_the_tensor_has(monkeypatch, dtype):
    swept = []
    monkeypatch.setattr(_native, "memory_floor", lambda *given: swept.append(given))
    case = Case((3, 5, 7, 7), "NCHW", dtype)  # an odd number of values
    for contender in floor.contenders(problem.problem(case), "bn+add+relu"):
        contender.run()
    assert {n for *_, n, _ in swept} == {case.bytes // 4}
    reads_and_writes = {(b != 0, d != 0) for _, b, _, d, _, _ in swept}
    assert reads_and_writes == {(True, False), (True, True)}  # triads and quads


# --- rivals -----------------------------------------------------------


@pytest.mark.parametrize("case", SMALL[:2] + SMALL[3:7], ids=lambda case: case.named(""))
@pytest.mark.parametrize("op", OPS)
def test_jax_computes_what_float64_does(case, op):
    pytest.importorskip("jax")
    given = problem.problem(case)
    step = peers.jax_step(given, op, threads=1)
    found = contenders.racers("jax", step, lambda: given.truth(op), contenders.tolerance("jax", given))
    for contender in found:
        contender.check()
        contender.run()


def test_torch_compile_gets_the_whole_graph_and_is_timed_for_few_rounds(monkeypatch):
    compiled = []

    def compile_(layer, **options):
        compiled.append(options)
        return layer

    monkeypatch.setattr(torch, "compile", compile_)
    names = ("torch", "torch.compile", "normwright")
    records = measure.measure(Job(NCHW, ("bn+relu",), names, Budget(0, 20, 20), "some state"))
    assert compiled == [{"fullgraph": True, "dynamic": False}] * 2  # one of them in evaluation
    rounds = {r.where["contender"]: r.where["rounds"] for r in records}
    assert rounds == {"torch": 20, "torch.compile": contenders.FEW, "normwright": 20, "memory": 20}


def test_a_compiler_that_fails_leaves_the_others_their_race(monkeypatch):
    def compile_(layer, **options):
        def fails(*inputs):
            raise RuntimeError("no\ncompiler\n\nand much more")

        return fails

    monkeypatch.setattr(torch, "compile", compile_)
    found = refusals(measured(NCHW, ("bn",), ("torch", "torch.compile", "normwright")))
    assert found == {
        (what, "torch.compile"): f"torch.compile {what}: RuntimeError: no compiler; it was not timed."
        for what in PASSES
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_what_torch_compiles_computes_what_float64_does(dtype):
    if "torch.compile" in peers.missing():
        pytest.skip(peers.missing()["torch.compile"])
    records = measured(Case((3, 5, 6, 7), "NCHW", dtype), ("bn+add+relu",), ("torch.compile", "normwright"))
    assert refusals(records) == {}


def test_who_is_not_here_is_told_with_the_reason(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert peers.missing() == {
        "torch.compile": "it needs a C++ compiler, and there is no no-such-compiler",
        "jax": "it is not installed (pip install jax)",
    }


# --- memory -----------------------------------------------------------

counts = pytest.mark.skipif(not memory.can_count(), reason="Linux tells what is resident")
BLOCK = 64 << 20


def block():
    """Pages of the system's own: malloc may have as much lying free below something in use, resident already."""
    pages = mmap.mmap(-1, BLOCK)
    pages[:: mmap.PAGESIZE] = bytes(BLOCK // mmap.PAGESIZE)  # written, and so resident
    return pages


@counts
def test_a_peak_counts_what_is_alive_together_and_what_is_let_go_before_the_end():
    def after_one_another():
        for _ in range(3):
            block()

    def together():
        return [block() for _ in range(3)]

    for run, blocks in ((after_one_another, 1), (together, 3), (after_one_another, 1)):
        assert memory.peak(run) == pytest.approx(blocks * BLOCK, abs=memory.NOISE)


@counts
def test_in_the_state_for_counting_nothing_is_timed():
    records = measured(NCHW, ("bn", "bn+relu"), allocator="counting")
    assert [(r.where["op"], r.what, r.unit, r.where["contender"]) for r in records] == [
        (op, "peak", "bytes", who) for op in ("bn", "bn+relu") for who in ("torch", "normwright")
    ]
