"""The whole benchmark: what is measured of whom, its processes, the allocator's state in each, its command."""

import importlib.util
import io
import json

import pytest
from rich.console import Console
from rich.progress import Task, TaskID
from typer.testing import CliRunner

from normwright.bench import processes, run
from normwright.bench.cases import OPS, Case
from normwright.bench.grid import Entry, Grid
from normwright.bench.job import Job
from normwright.bench.processes import CannotMeasure
from normwright.bench.run import Order
from normwright.bench.telling import table
from normwright.bench.timer import Budget, WrongValues
from normwright.cli import app
from normwright.kernels import NATIVE
from normwright.report import records
from normwright.report.words import Say

TINY = Entry((4, 3, 5, 5), "channels-last", "small", subset=True, types=True)
GRID = Grid((TINY,), {"listed": {TINY.place: 1.0}})
BUDGET = Budget(seconds=0, least=2, most=2)
JOB = Job(Case(TINY.shape, TINY.layout), ("bn",), ("torch", "normwright"), BUDGET, "warm")
measures = pytest.mark.skipif(
    not NATIVE or importlib.util.find_spec("torch") is None, reason="takes torch and native kernels"
)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=150)


# --- from end to end --------------------------------------------------


@measures
def test_a_small_benchmark_measures_each_state_apart_and_writes_what_it_prints(tmp_path, console):
    path, picture = tmp_path / "results.json", tmp_path / "speed.svg"
    order = Order(names=("torch",), threads=(1,))
    assert run.run(order, of=GRID, budget=BUDGET, into=path, figure=picture, console=console)
    measured, about = records.read(path)
    timed = [r for r in measured if r.unit == "seconds"]
    states = list(processes.allocators())
    assert {(r.where["dtype"], r.where["allocator"]) for r in timed} == {
        *((dtype, state) for dtype in ("float32", "bfloat16") for state in states),
        *((dtype, states[0]) for dtype in ("float16", "float64")),
    }
    assert {(r.where["op"], r.where["threads"]) for r in timed} == {(op, 1) for op in OPS}
    assert about["experiment"] == "bench"
    assert about["command"] == "normwright bench --threads 1 --contenders torch"
    assert about["allocators"] == processes.allocators()
    assert about["reasons"] == {"4x3x5x5 channels-last": "small"}
    assert set(about["contenders"]) == {"torch", "normwright"}
    printed = console.file.getvalue()
    assert "4x3x5x5" in printed
    assert "Never slower than torch" in printed
    assert "| 4x3x5x5 | channels-last | 0.001 |" in table.per_cell(measured, about, Say())
    assert picture.read_text().startswith("<svg")


# --- what goes wrong --------------------------------------------------


def test_without_native_kernels_the_command_says_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(run, "NATIVE", False)
    monkeypatch.setattr("normwright.cli.bench.need", lambda extra, packages: None)
    told = CliRunner().invoke(app, ["bench"])
    assert told.exit_code == 2
    assert told.stderr.startswith(
        "normwright bench: there is nothing to measure: built without native kernels"
    )
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "module", "extra"), [([], "torch", "torch"), (["--figure", "x.svg"], "matplotlib", "report")]
)
def test_without_a_package_the_command_says_how_to_install_it(monkeypatch, line, module, extra):
    monkeypatch.setattr("normwright.cli.leaving.find_spec", lambda name: None if name == module else name)
    told = CliRunner().invoke(app, ["bench", *line])
    assert told.exit_code == 2
    assert f"pip install 'normwright[{extra}]'" in told.stderr
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "normwright bench: stopped; nothing was written.\n"),
        (WrongValues("copy: wrong"), 1, "normwright bench: copy: wrong\n"),
        (PermissionError(13, "No"), 1, "normwright bench: cannot write to x.json: No\n"),
        (PermissionError(13, "No", "y.svg"), 1, "normwright bench: cannot write to y.svg: No\n"),
        (CannotMeasure("no."), 2, "normwright bench: no.\n"),
    ],
    ids=["Ctrl-C", "refused", "cannot write", "nor that", "nothing"],
)  # fmt: skip
def test_the_command_ends_with_one_line_whatever_stops_it(monkeypatch, raised, code, words):
    def stop(order, **options):
        raise raised

    monkeypatch.setattr(run, "run", stop)
    monkeypatch.setattr("normwright.cli.bench.need", lambda extra, packages: None)
    told = CliRunner().invoke(app, ["bench", "--json", "x.json"])
    assert (told.exit_code, told.stderr) == (code, words)


def test_a_run_in_which_someone_was_refused_ends_with_a_line_and_a_code(monkeypatch):
    monkeypatch.setattr(run, "run", lambda order, **options: False)
    monkeypatch.setattr("normwright.cli.bench.need", lambda extra, packages: None)
    told = CliRunner().invoke(app, ["bench"])
    assert told.exit_code == 1
    assert told.stderr == (
        "normwright bench: some contenders computed something else, and were not timed there.\n"
    )


@measures
@pytest.mark.parametrize("option", ["into", "figure"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, monkeypatch, option):
    monkeypatch.setattr(run, "Workers", lambda *_: pytest.fail("the work was begun"))
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        run.run(Order(), of=GRID, budget=BUDGET, **{option: tmp_path})
    with pytest.raises(FileNotFoundError, match="none"):
        run.run(Order(), of=GRID, budget=BUDGET, **{option: tmp_path / "none" / "x"})
    assert not (tmp_path / "none").exists()


def test_the_time_left_goes_by_all_that_went_before():
    task = Task(TaskID(0), "", total=100, completed=25, _get_time=lambda: 40.0)
    assert run.Left().render(task) == "-:--"
    task.start_time = 10.0
    assert run.Left().render(task) == "1:30"


def test_the_bar_names_each_job_and_ends_full(console):
    jobs = [JOB, Job(Case((32, 8), "(N, C)"), ("bn",), JOB.names, BUDGET, "warm")]
    with run._bar(jobs, console) as begin:
        for job in jobs:
            begin(job)(0.5)
    assert "100 %" in console.file.getvalue()


def test_save_names_the_file_after_the_machine(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(run, "run", lambda order, **options: given.update(options, order=order) or True)
    monkeypatch.setattr("normwright.cli.bench.need", lambda extra, packages: None)
    told = CliRunner().invoke(app, ["bench", "--quick", "--threads", "2", "--save", str(tmp_path)])
    assert told.exit_code == 0
    assert given == {
        "order": Order(quick=True, threads=(2,)),
        "into": tmp_path / run.file_name(),
        "figure": None,
    }
    assert run.file_name() == run.file_name().lower()
    assert " " not in run.file_name()


# --- tables -----------------------------------------------------------


@pytest.mark.parametrize(("part", "markers"), [("summary", "bench"), ("cells", "cells")])
def test_the_table_command_prints_and_puts_each_part_between_its_markers(
    monkeypatch, tmp_path, part, markers
):
    results, page = tmp_path / "r.json", tmp_path / "page.md"
    records.write(results, [], experiment="bench")
    monkeypatch.setattr(table, "summary", lambda measured, about, say: "| bench |\n")
    monkeypatch.setattr(table, "per_cell", lambda measured, about, say: "| cells |\n")
    line = ["table", str(results), "--part", part]
    assert CliRunner().invoke(app, line).stdout == f"| {markers} |\n"
    page.write_text(f"a\n<!-- {markers}:begin -->\n<!-- {markers}:end -->\nz\n")
    for _ in range(2):
        assert CliRunner().invoke(app, [*line, "--into", str(page)]).exit_code == 0
        assert page.read_text() == f"a\n<!-- {markers}:begin -->\n| {markers} |\n<!-- {markers}:end -->\nz\n"


@pytest.mark.parametrize(
    ("experiment", "part"), [("bench", "report"), ("bench", "questions"), ("lab", "cells"), ("demo", "cells")]
)
def test_a_part_that_records_do_not_have_is_refused_in_one_line(tmp_path, experiment, part):
    results = tmp_path / "r.json"
    records.write(results, [], experiment=experiment)
    told = CliRunner().invoke(app, ["table", str(results), "--part", part])
    assert told.exit_code == 1
    parts = "summary, cells" if experiment == "bench" else "summary, report, questions"
    expected = f"expected a --part that records of {experiment} have ({parts}), got {part}.\n"
    assert told.stderr.endswith(expected)
    assert told.stderr.count("\n") == 1


def test_the_table_command_tells_a_wrong_file_in_one_line(tmp_path):
    strange, old = tmp_path / "strange.json", tmp_path / "old.json"
    records.write(strange, [], experiment="weather")
    old.write_text(json.dumps({"schema": 0}))
    for results in (strange, old, tmp_path / "absent.json"):
        told = CliRunner().invoke(app, ["table", str(results)])
        assert told.exit_code == 1
        assert told.stderr.startswith("normwright table: ")
        assert told.stderr.count("\n") == 1
