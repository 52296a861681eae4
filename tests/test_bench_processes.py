"""The processes that measure: the allocator's state in each, what they answer, and how they end."""

import importlib.util
import json
import platform
import sys

import pytest

from normwright.bench import processes
from normwright.bench.cases import OPS, Case
from normwright.bench.job import Job
from normwright.bench.processes import CannotMeasure, Workers
from normwright.bench.timer import Budget, WrongValues
from normwright.kernels import NATIVE

BUDGET = Budget(seconds=0, least=2, most=2)
JOB = Job(Case((4, 3, 5, 5), "channels-last"), ("bn",), ("torch", "normwright"), BUDGET, "warm")
measures = pytest.mark.skipif(
    not NATIVE or importlib.util.find_spec("torch") is None, reason="takes torch and native kernels"
)
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="warm memory takes glibc")


@measures
@glibc
def test_in_warm_memory_no_output_faults_in_its_pages_and_in_the_other_they_are_counted():
    case = Case((16, 64, 32, 32), "NCHW")  # 4 MB: more than glibc keeps unless it is told to
    ops, names = ("bn+relu",), ("torch", "normwright")
    with Workers({"warm": processes.WARM}, names) as workers:
        warm = workers.measure(Job(case, ops, names, Budget(0, 9, 9), "warm"))
        counted = workers.measure(Job(case, ops, names, Budget(0, 9, 9), "counting"))
    # an output has 1024 pages; one or two may be the stack's, or the interpreter's
    assert max(r.where["page_faults"] for r in warm if r.where["contender"] != "memory") < 16
    arrays = {(r.what, r.where["contender"]): r.value / case.bytes for r in counted}
    assert arrays == {
        ("peak", "torch"): pytest.approx(3, abs=0.3),  # y, what relu's backward makes of dy, dx
        ("peak", "normwright"): pytest.approx(2, abs=0.3),  # y, dx
    }


def test_a_job_survives_its_line():
    job = Job(Case((4, 3, 5, 5), "channels-last", "bfloat16"), OPS, ("torch",), BUDGET, "warm", 3)
    assert Job.of(json.loads(json.dumps(job.told()))) == job


def test_only_the_states_variables_reach_the_allocator(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    given = processes.environment(processes.WARM)
    assert {
        key: value for key, value in given.items() if key.startswith(("MALLOC", "GLIBC"))
    } == processes.WARM
    assert given["SOMETHING_ELSE"] == "kept"


def test_warm_memory_is_not_claimed_without_glibc(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert processes.allocators() == {"default": {}}
    assert not processes.can_count()


# --- what goes wrong --------------------------------------------------


class Worker:
    """A process that answers each line with these lines of Python."""

    def __init__(self, monkeypatch, code):
        right = processes.Workers.__init__

        def init(workers, states, names):
            right(workers, states, names)
            workers._command = [sys.executable, "-c", code]

        monkeypatch.setattr(processes.Workers, "__init__", init)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise SystemExit('broken')", "ended with status 1: broken"),
        ("input(); print('{\"over\": 0.5}')", "ended with status 0: it said nothing"),
        ("input(); print('{\"ended\": -9}')", "ended with status -9: it said nothing"),
        (
            "import sys; input(); sys.stderr.write('last words'); sys.stderr.flush(); print('{\"ended\": 1}')",
            "ended with status 1: last words",
        ),
    ],
)
def test_a_worker_that_breaks_is_told_by_its_last_words(monkeypatch, code, words):
    Worker(monkeypatch, code)
    with (
        Workers({"warm": {}}, []) as workers,
        pytest.raises(CannotMeasure, match=rf"^4x3x5x5 channels-last float32 bn, warm: {words}$"),
    ):
        workers.measure(JOB)


def test_a_sweep_that_was_refused_is_told_with_its_input(monkeypatch):
    Worker(monkeypatch, 'input(); print(\'{"refused": "copy: wrong"}\'); print(\'{"ended": 0}\')')
    with (
        Workers({"warm": {}}, []) as workers,
        pytest.raises(WrongValues, match=r"^4x3x5x5 channels-last float32: copy: wrong$"),
    ):
        workers.measure(JOB)


@measures
@pytest.mark.skipif(sys.platform != "linux", reason="jobs run in forks on Linux")
def test_a_job_that_dies_in_its_fork_leaves_its_process_to_the_next():
    broken = Job(Case((0,), "(N, C)"), ("bn",), ("torch", "normwright"), BUDGET, "default", 1)
    with Workers({"default": {}}, []) as workers:
        with pytest.raises(CannotMeasure, match="ended with status 1: IndexError"):
            workers.measure(broken)
        assert workers.measure(Job(JOB.case, ("bn",), JOB.names, BUDGET, "default", 1))


def test_processes_are_gone_however_they_are_left(monkeypatch):
    Worker(monkeypatch, "import time; print('{\"over\": 0}', flush=True); time.sleep(600)")

    def interrupt(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Workers({"warm": {}}, []) as workers:
        workers.measure(JOB, interrupt)
    (process, _) = workers._running["warm"]
    assert process.poll() is not None
