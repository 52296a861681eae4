"""The whole benchmark: its processes, the allocator's state in each, its command."""

import importlib.util
import io
import json
import platform

import pytest
from rich.console import Console
from rich.progress import Task, TaskID
from typer.testing import CliRunner

from normwright.bench import run, table
from normwright.bench.cases import Case
from normwright.bench.timer import Budget, WrongValues
from normwright.bench.worker import Job
from normwright.cli import app
from normwright.kernels import NATIVE
from normwright.report import records
from normwright.report.words import Say

TINY = Case((4, 3, 5, 5), "channels-last", "small")
BUDGET = Budget(seconds=0, least=2, most=2)
measures = pytest.mark.skipif(
    not NATIVE or importlib.util.find_spec("torch") is None, reason="takes torch and native kernels"
)


@measures
def test_a_small_benchmark_measures_each_state_apart_and_writes_what_it_prints(tmp_path):
    console = Console(file=io.StringIO(), width=120)
    path = tmp_path / "new" / "results.json"
    measured = run.run(cases=[TINY], budget=BUDGET, threads=1, into=path, console=console)
    states = list(run.allocators())
    assert [r.where["allocator"] for r in measured] == [state for state in states for _ in range(6)]
    assert {r.where["threads"] for r in measured} == {1}
    written, about = records.read(path)
    assert written == measured
    assert about["experiment"] == "bench"
    assert about["allocators"] == run.allocators()
    assert about["stamp"]["torch"] is not None
    printed = console.file.getvalue()
    assert "4x3x5x5" in printed
    assert "Never slower than torch" in printed
    assert "| 4x3x5x5 | channels-last | 0.001 |" in table.markdown(measured, about, Say())


@measures
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="warm memory takes glibc")
def test_in_warm_memory_no_output_faults_in_its_pages():
    case = Case((16, 64, 32, 32), "NCHW", "4 MB: more than glibc keeps unless it is told to")
    faults = {}
    # Cold is no state of the benchmark: every block of 64 KB is mapped anew and handed back.
    for state, variables in {"warm": run.WARM, "cold": {"MALLOC_MMAP_THRESHOLD_": "65536"}}.items():
        told = run.measure_apart(Job(case, Budget(0, 9, 9), state, None), variables, tell=lambda share: None)
        faults[state] = [r.where["page_faults"] for r in told if r.where["contender"] != "memory"]
    assert faults["warm"] == [0, 0, 0, 0]
    assert min(faults["cold"]) > 0


def test_a_job_survives_its_line():
    job = Job(TINY, BUDGET, "warm", None)
    assert Job.loads(job.dumps()) == job


def test_only_the_states_variables_reach_the_allocator(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    given = run.environment(run.WARM)
    assert {key: value for key, value in given.items() if key.startswith(("MALLOC", "GLIBC"))} == run.WARM
    assert given["SOMETHING_ELSE"] == "kept"


def test_warm_memory_is_not_claimed_without_glibc(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert run.allocators() == {"default": {}}


def test_a_worker_that_breaks_is_told_by_its_last_words(monkeypatch):
    monkeypatch.setattr(Job, "dumps", lambda self: "not a job")
    with pytest.raises(
        run.CannotMeasure, match=r"^4x3x5x5 channels-last, warm: ended with status 1: .*Expecting"
    ):
        run.measure_apart(Job(TINY, BUDGET, "warm", None), {}, tell=lambda share: None)


def test_without_native_kernels_the_command_says_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(run, "NATIVE", False)
    monkeypatch.setattr("normwright.cli._need", lambda extra, packages: None)
    told = CliRunner().invoke(app, ["bench"])
    assert told.exit_code == 2
    assert told.stderr.startswith(
        "normwright bench: there is nothing to measure: built without native kernels"
    )
    assert told.stderr.count("\n") == 1


def test_without_torch_the_command_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("normwright.cli.find_spec", lambda module: None)
    told = CliRunner().invoke(app, ["bench"])
    assert told.exit_code == 2
    assert "pip install 'normwright[torch]'" in told.stderr
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "normwright bench: stopped; nothing was written.\n"),
        (WrongValues("torch forward: wrong"), 1, "normwright bench: torch forward: wrong\n"),
        (PermissionError(13, "No"), 1, "normwright bench: cannot write to x.json: No\n"),
    ],
    ids=["Ctrl-C", "refused", "cannot write"],
)  # fmt: skip
def test_the_command_ends_with_one_line_whatever_stops_it(monkeypatch, raised, code, words):
    def stop(**options):
        raise raised

    monkeypatch.setattr(run, "run", stop)
    monkeypatch.setattr("normwright.cli._need", lambda extra, packages: None)
    told = CliRunner().invoke(app, ["bench", "--json", "x.json"])
    assert (told.exit_code, told.stderr) == (code, words)


@measures
def test_a_folder_in_place_of_the_file_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        run.run(into=tmp_path, cases=[TINY], budget=BUDGET)


def test_the_time_left_goes_by_all_that_went_before():
    task = Task(TaskID(0), "", total=100, completed=25, _get_time=lambda: 40.0)
    assert run.Left().render(task) == "-:--"
    task.start_time = 10.0
    assert run.Left().render(task) == "1:30"


def test_save_names_the_file_after_the_machine(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(run, "run", lambda **options: given.update(options))
    monkeypatch.setattr("normwright.cli._need", lambda extra, packages: None)
    told = CliRunner().invoke(app, ["bench", "--quick", "--threads", "2", "--save", str(tmp_path)])
    assert told.exit_code == 0
    assert given == {"quick": True, "threads": 2, "into": tmp_path / run.file_name()}
    assert run.file_name() == run.file_name().lower()
    assert " " not in run.file_name()
    assert CliRunner().invoke(app, ["bench", "--json", "a", "--save", "b"]).exit_code == 2


def test_the_table_command_prints_and_puts_the_table_into_a_file(monkeypatch, tmp_path):
    results, readme = tmp_path / "r.json", tmp_path / "README.md"
    records.write(results, [], experiment="bench")
    monkeypatch.setattr(table, "markdown", lambda measured, about, say: f"| {about['experiment']} |\n")
    assert CliRunner().invoke(app, ["table", str(results)]).stdout == "| bench |\n"
    readme.write_text("a\n<!-- bench:begin -->\n<!-- bench:end -->\nz\n")
    for _ in range(2):
        assert CliRunner().invoke(app, ["table", str(results), "--into", str(readme)]).exit_code == 0
        assert readme.read_text() == "a\n<!-- bench:begin -->\n| bench |\n<!-- bench:end -->\nz\n"


def test_the_table_command_tells_a_wrong_file_in_one_line(tmp_path):
    strange, old = tmp_path / "strange.json", tmp_path / "old.json"
    records.write(strange, [], experiment="weather")
    old.write_text(json.dumps({"schema": 0}))
    for results in (strange, old, tmp_path / "absent.json"):
        told = CliRunner().invoke(app, ["table", str(results)])
        assert told.exit_code == 1
        assert told.stderr.startswith("normwright table: ")
        assert told.stderr.count("\n") == 1
