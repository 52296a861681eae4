"""One small case, measured in this process: records that say everything, and refusals. No time is asserted."""

import pytest

from normwright.kernels import NATIVE

torch = pytest.importorskip("torch")
if not NATIVE:
    pytest.skip("without native kernels there is nothing to measure", allow_module_level=True)

from normwright import _native  # noqa: E402
from normwright.bench import contenders, measure  # noqa: E402
from normwright.bench.cases import CASES, LAYOUTS, QUICK, Case  # noqa: E402
from normwright.bench.timer import Budget, WrongValues  # noqa: E402

BUDGET = Budget(seconds=0, least=2, most=2)
SMALL = [
    Case((3, 5, 6, 7), "NCHW", "ordinary"),
    Case((3, 5, 6, 7), "channels-last", "ordinary"),
    Case((20, 5), "(N, C)", "ordinary"),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.layout)
def test_records_say_what_was_measured_of_whom_and_where(case):
    records = measure.measure(case, BUDGET, allocator="some state")
    assert [(r.what, r.where["contender"]) for r in records] == [
        ("forward", "torch"),
        ("forward", "normwright"),
        ("floor forward", "memory"),
        ("forward+backward", "torch"),
        ("forward+backward", "normwright"),
        ("floor forward+backward", "memory"),
    ]
    for r in records:
        assert r.unit == "seconds"
        assert 0 < r.where["q25"] <= r.value <= r.where["q75"]
        expected = {
            "shape": case.size,
            "layout": case.layout,
            "dtype": "float32",
            "bytes": 4 * case.values,
            "bytes_moved": 4 * case.values * (5 if "backward" in r.what else 2),
            "allocator": "some state",
            "threads": torch.get_num_threads(),
            "rounds": 2,
        }
        assert {key: r.where[key] for key in expected} == expected
        if r.where["contender"] == "memory":
            assert set(str(r.where["stores"]).split(", ")) <= {"ordinary", "streaming"}


def test_the_tensors_lie_in_memory_as_the_case_says():
    nchw, last, dense = (contenders.problem(case) for case in SMALL)
    assert nchw.x.is_contiguous()
    for t in (last.x, last.dy):
        assert t.is_contiguous(memory_format=torch.channels_last)
        assert not t.is_contiguous()
    assert dense.x.shape == (20, 5)
    assert torch.equal(nchw.x, last.x)


def test_a_run_leaves_no_gradient_behind():
    given = contenders.problem(SMALL[0])
    for contender in contenders.layers(SMALL[0], given):
        contender.run()
        contender.reset()
        assert given.x.grad is None


@pytest.mark.parametrize("wrong", [float("nan"), 0.001], ids=["nan", "a thousandth off"])
@pytest.mark.parametrize("library", ["torch", "normwright"])
def test_a_layer_with_wrong_values_is_refused(monkeypatch, library, wrong):
    right = contenders.LAYERS[library][4]

    class Wrong(right):
        def forward(self, x):
            return super().forward(x) + wrong

    monkeypatch.setitem(contenders.LAYERS[library], 4, Wrong)
    with pytest.raises(WrongValues, match=f"^{library} forward: .* values of y are wrong"):
        measure.measure(SMALL[0], BUDGET, allocator="default")


def test_a_layer_with_a_wrong_gradient_is_refused(monkeypatch):
    right = contenders.LAYERS["normwright"][4]

    class Wrong(right):
        def forward(self, x):
            y = super().forward(x)
            return y.detach() + 0.999 * (y - y.detach())

    monkeypatch.setitem(contenders.LAYERS["normwright"], 4, Wrong)
    with pytest.raises(WrongValues, match=r"^normwright forward\+backward: .* values of dx are wrong"):
        measure.measure(SMALL[0], BUDGET, allocator="default")


def test_a_layer_that_changes_the_layout_is_refused(monkeypatch):
    class Wrong(torch.nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).contiguous()

    monkeypatch.setitem(contenders.LAYERS["normwright"], 4, Wrong)
    with pytest.raises(WrongValues, match=r"^normwright forward: y lies in memory otherwise"):
        measure.measure(SMALL[1], BUDGET, allocator="default")


def test_a_floor_that_does_not_write_everything_is_refused(monkeypatch):
    right = _native.memory_floor
    monkeypatch.setattr(_native, "memory_floor", lambda a, b, c, n, stream: right(a, b, c, n - 1, stream))
    with pytest.raises(WrongValues, match=r"^copy ordinary: "):
        measure.measure(SMALL[0], BUDGET, allocator="default")


def test_the_cases_differ_have_reasons_and_cover_every_layout_quickly_too():
    assert len({(case.shape, case.layout) for case in CASES}) == len(CASES)
    assert all(case.reason for case in CASES)
    for some in (CASES, QUICK):
        assert {case.layout for case in some} == set(LAYOUTS)
