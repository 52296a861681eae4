"""The command line: one line and an exit code where something is missing, never a traceback."""

import sys

import pytest
from typer.testing import CliRunner

import normwright
from normwright.cli import app
from normwright.lab import demo

cli = CliRunner()


@pytest.mark.parametrize(
    ("module", "name"), [("torch", "torch"), ("sklearn", "scikit-learn"), ("jinja2", "jinja2")], ids=str
)
def test_a_missing_package_is_answered_with_the_line_that_installs_it(module, name, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    result = cli.invoke(app, ["demo"])
    assert result.exit_code == 2
    assert (
        result.stderr == f"normwright: not installed: {name}. Install with: pip install 'normwright[lab]'\n"
    )


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "taken").write_text("a file")
    result = cli.invoke(app, ["demo", "--out", str(tmp_path / "taken")])
    assert result.exit_code == 1
    assert result.stderr == f"normwright demo: cannot write to {tmp_path / 'taken'}: File exists\n"


def test_an_interrupted_demo_ends_without_a_traceback(monkeypatch):
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    result = cli.invoke(app, ["demo"])
    assert result.exit_code == 130
    assert result.stderr == "normwright demo: stopped; nothing was written.\n"


def test_seed_and_folder_reach_the_demo(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(demo, "run", given.update)
    result = cli.invoke(app, ["demo", "--seed", "7", "--out", str(tmp_path)])
    assert result.exit_code == 0
    assert given == {"seed": 7, "out": tmp_path}


def test_a_negative_seed_is_refused():
    result = cli.invoke(app, ["demo", "--seed", "-1"], env={"TERM": "dumb"})
    assert result.exit_code == 2
    assert "--seed" in result.stderr


def test_the_version_is_told_and_nothing_else_is_done():
    result = cli.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"normwright {normwright.__version__}\n"
