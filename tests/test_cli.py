"""The command line: options reach their work; what goes wrong is one line and an exit code, never a traceback."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import normwright
import tiny_lab
from normwright.cli import app
from normwright.lab import race, run
from normwright.lab.data import load
from normwright.lab.registry import EXPERIMENTS
from normwright.lab.run import Order

cli = CliRunner()


@pytest.fixture
def ordered(monkeypatch):
    """What would have been run: orders with their options."""
    orders = []
    monkeypatch.setattr(run, "run", lambda order, **options: orders.append((order, options)))
    return orders


# --- options ----------------------------------------------------------


def test_the_demo_is_every_experiment_in_small(ordered):
    assert cli.invoke(app, ["demo"]).exit_code == 0
    options = {"out": Path("normwright-report"), "jobs": None, "language": "en"}
    assert ordered == [(Order(list(EXPERIMENTS), "demo", "digits", 0), options)]


def test_options_reach_the_demo(ordered, tmp_path):
    line = ["demo", "--seed", "7", "--out", str(tmp_path), "--data", "mnist=x", "--jobs", "3", "--lang", "zh"]
    assert cli.invoke(app, line).exit_code == 0
    options = {"out": tmp_path, "jobs": 3, "language": "zh"}
    assert ordered == [(Order(list(EXPERIMENTS), "demo", "mnist=x", 7), options)]


def test_the_laboratory_runs_at_full_size_and_goes_on_where_it_was(ordered):
    assert cli.invoke(app, ["lab", "race"]).exit_code == 0
    options = {
        "out": Path("normwright-report"),
        "jobs": None,
        "language": "en",
        "resume": True,
        "again": False,
    }
    assert ordered == [(Order(["race"], "full", "digits", 0), options)]


def test_options_reach_the_laboratory(ordered, tmp_path):
    line = ["lab", "race", "--seed", "7", "--out", str(tmp_path), "--data", "cifar10=x", "--jobs", "3"]
    assert cli.invoke(app, [*line, "--lang", "zh", "--again"]).exit_code == 0
    options = {"out": tmp_path, "jobs": 3, "language": "zh", "resume": True, "again": True}
    assert ordered == [(Order(["race"], "full", "cifar10=x", 7), options)]


@pytest.mark.parametrize("names", [["all"], ["all", "all"], [*reversed(EXPERIMENTS), "race"]], ids=" ".join)
def test_all_is_every_experiment_once_and_in_the_reports_order(ordered, names):
    assert cli.invoke(app, ["lab", *names]).exit_code == 0
    assert [order.names for order, _ in ordered] == [list(EXPERIMENTS)]


def test_without_a_name_the_laboratory_lists_its_experiments(ordered):
    told = cli.invoke(app, ["lab"])
    assert told.exit_code == 0
    lines = told.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(EXPERIMENTS)
    for line, experiment in zip(lines, EXPERIMENTS.values(), strict=True):
        assert line.endswith(f" {experiment.about}")
        assert len(line) <= 100
    assert ordered == []


def test_the_version_is_told_and_nothing_else_is_done():
    result = cli.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"normwright {normwright.__version__}\n"


# --- what goes wrong --------------------------------------------------


def test_a_name_that_is_none_is_answered_with_those_there_are(ordered):
    result = cli.invoke(app, ["lab", "race", "rcae", "speed"])
    assert result.exit_code == 2
    assert result.stderr == (
        "normwright lab: expected names of experiments, got rcae, speed. "
        f"Known: {', '.join(['all', *EXPERIMENTS])}.\n"
    )
    assert ordered == []


def test_all_beside_a_name_is_refused(ordered):
    result = cli.invoke(app, ["lab", "all", "race", "shift", "race"])
    assert result.exit_code == 2
    assert result.stderr == (
        "normwright lab: expected all alone, or names, got all with race, shift. Leave one of them out.\n"
    )
    assert ordered == []


@pytest.mark.parametrize("line", [["demo"], ["lab"], ["lab", "race"]], ids=" ".join)
@pytest.mark.parametrize(
    ("module", "name"),
    [("torch", "torch"), ("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("jinja2", "jinja2")],
    ids=str,
)
def test_a_missing_package_is_answered_with_the_line_that_installs_it(module, name, line, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    result = cli.invoke(app, line)
    assert result.exit_code == 2
    assert (
        result.stderr == f"normwright: not installed: {name}. Install with: pip install 'normwright[lab]'\n"
    )


@pytest.mark.parametrize("command", [["demo"], ["lab", "race"]], ids=" ".join)
def test_a_folder_that_cannot_be_written_is_said_in_one_line(command, tmp_path):
    (tmp_path / "taken").write_text("a file")
    result = cli.invoke(app, [*command, "--out", str(tmp_path / "taken")])
    assert result.exit_code == 1
    assert result.stderr == f"normwright {command[0]}: cannot write to {tmp_path / 'taken'}: File exists\n"


@pytest.mark.parametrize("command", [["demo"], ["lab", "race"]], ids=" ".join)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param("mnist=/nowhere", "/nowhere", id="no folder"),
        pytest.param("cifar10=/nowhere", "/nowhere", id="nor that one"),
        pytest.param("mnist=EMPTY", "EMPTY", id="a folder without the files"),
        pytest.param("mnist=BROKEN", "train-images-idx3-ubyte", id="files that are none"),
        pytest.param("mnist", "got 'mnist'", id="no folder named"),
        pytest.param("imagenet=/data", "got 'imagenet=/data'", id="no such data set"),
    ],
)
def test_data_that_cannot_be_read_are_named_in_one_line(command, data, words, tmp_path):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BROKEN").mkdir()
    for part in ("train", "t10k"):
        for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            (tmp_path / "BROKEN" / name).write_bytes(b"no images")
    for folder in ("EMPTY", "BROKEN"):
        data = data.replace(folder, str(tmp_path / folder))
        words = words.replace(folder, str(tmp_path / folder))
    result = cli.invoke(app, [*command, "--data", data, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"normwright {command[0]}: ")
    assert words in result.stderr
    assert "cannot write" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_data_file_that_may_not_be_read_is_not_blamed_on_the_report(monkeypatch, tmp_path):
    def denied(spec: str) -> None:
        raise PermissionError(13, "Permission denied", "/data/train-images-idx3-ubyte")

    monkeypatch.setattr(run, "load", denied)
    result = cli.invoke(app, ["lab", "race", "--data", "mnist=/data", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "/data/train-images-idx3-ubyte" in result.stderr
    assert "cannot write" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_error_that_is_ours_is_not_told_as_the_readers(monkeypatch):
    def ours(*_: object, **__: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(run, "run", ours)
    result = cli.invoke(app, ["demo"])
    assert isinstance(result.exception, ValueError)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["demo"], "normwright demo: stopped; nothing was written.\n"),
        (["lab", "race"], "normwright lab: stopped; what was measured is kept; run it again to go on.\n"),
    ],
    ids=["demo", "lab"],
)
def test_an_interrupted_run_ends_without_a_traceback_and_says_what_is_left(line, words, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", interrupted)
    result = cli.invoke(app, line)
    assert result.exit_code == 130
    assert result.stderr == words


@pytest.mark.parametrize("option", ["--seed=-1", "--jobs=0", "--lang=fr"])
def test_an_option_that_cannot_be_is_refused_by_its_name(option, ordered):
    result = cli.invoke(app, ["demo", option], env={"TERM": "dumb"})
    assert result.exit_code == 2
    assert option.partition("=")[0] in result.stderr
    assert ordered == []


# --- tables -----------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results file of the laboratory in small."""
    path = tmp_path_factory.mktemp("told") / "results.json"
    result, _ = tiny_lab.measure(race.EXPERIMENT)
    run._write_results(path, Order(["race"], "tiny"), load(), {"race": (list(result.records), 1.0)})
    return path


def test_a_table_is_the_summary_by_default(results):
    told = cli.invoke(app, ["table", str(results)])
    assert told.exit_code == 0
    assert told.stdout.startswith("**Batch normalization took ")
    assert "| experiment | holds | holds partly | does not hold here |" in told.stdout
    assert "## " not in told.stdout


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("summary", "| 实验 | 成立 | 部分成立 | 在这里不成立 |"),
        ("report", "## 竞速：达到同样准确率所需的步数"),
    ],
)
def test_a_table_is_told_in_chinese_too(results, part, words):
    told = cli.invoke(app, ["table", str(results), "--part", part, "--lang", "zh"])
    assert told.exit_code == 0
    assert words in told.stdout.splitlines()


def test_the_report_shows_the_pictures_that_lie_beside_the_records(results, monkeypatch):
    monkeypatch.chdir(results.parent)
    told = cli.invoke(app, ["table", "results.json", "--part", "report"])
    assert "](pictures/race-mlp.svg)" in told.stdout


def test_the_questions_are_a_part_of_their_own(results):
    told = cli.invoke(app, ["table", str(results), "--part", "questions"])
    assert told.exit_code == 0
    assert "| experiment |" not in told.stdout


def test_a_table_is_put_between_the_markers_of_its_part(results, tmp_path):
    page = results.parent / "docs" / "laboratory.md"
    page.parent.mkdir()
    before = (
        "# Ours\n\n<!-- summary:begin --><!-- summary:end -->\n\n<!-- report:begin --><!-- report:end -->\n"
    )
    page.write_text(before, encoding="utf-8")
    for part in ("report", "summary"):
        told = cli.invoke(app, ["table", str(results), "--part", part, "--into", str(page)])
        assert (told.exit_code, told.stdout) == (0, "")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Ours\n\n<!-- summary:begin -->\n**Batch normalization took ")
    assert "](../pictures/race-mlp.svg)" in text  # as seen from the file that shows them
    assert text.count("| experiment | holds | holds partly | does not hold here |") == 1


def test_a_file_without_the_markers_is_refused_and_left_as_it_was(results, tmp_path):
    (tmp_path / "page.md").write_text("nothing here")
    told = cli.invoke(app, ["table", str(results), "--into", str(tmp_path / "page.md")])
    assert told.exit_code == 1
    assert "summary:begin" in told.stderr
    assert told.stderr.count("\n") == 1
    assert (tmp_path / "page.md").read_text() == "nothing here"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        '{"schema": 2}',
        '{"schema": 1}',
        '{"schema": 1, "records": [1]}',
        '{"schema": 1, "records": []}',
        '{"schema": 1, "records": [], "experiment": "lab"}',
        '{"schema": 1, "records": [], "experiment": "bench"}',
    ],
)
def test_a_file_that_holds_no_results_is_said_in_one_line(text, tmp_path):
    (tmp_path / "results.json").write_text(text)
    told = cli.invoke(app, ["table", str(tmp_path / "results.json")])
    assert told.exit_code == 1
    assert told.stderr.startswith(f"normwright table: {tmp_path / 'results.json'}: ")
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"no json", b"\x80\x02}q"], ids=["empty", "text", "bytes"])
def test_a_file_that_is_no_json_is_said_to_be_none(content, tmp_path):
    (tmp_path / "in.pt").write_bytes(content)
    told = cli.invoke(app, ["table", str(tmp_path / "in.pt")])
    assert told.exit_code == 1
    assert "in.pt: expected records as a JSON file, got something else: " in told.stderr


def test_results_of_an_experiment_that_is_no_more_are_said_in_one_line(results, tmp_path):
    document = json.loads(results.read_text())
    document["experiments"]["alchemy"] = document["experiments"].pop("race")
    (tmp_path / "results.json").write_text(json.dumps(document))
    told = cli.invoke(app, ["table", str(tmp_path / "results.json")])
    assert told.exit_code == 1
    assert "alchemy" in told.stderr


def test_a_results_file_that_is_not_there_is_said_in_one_line(tmp_path):
    told = cli.invoke(app, ["table", str(tmp_path / "results.json")])
    assert told.exit_code == 1
    assert told.stderr == f"normwright table: {tmp_path / 'results.json'}: No such file or directory\n"


def test_a_table_of_the_laboratory_without_matplotlib_is_answered_with_what_to_install(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told = cli.invoke(app, ["table", str(results)])
    assert told.exit_code == 2
    assert told.stderr == (
        "normwright: not installed: matplotlib. Install with: pip install 'normwright[report]'\n"
    )
