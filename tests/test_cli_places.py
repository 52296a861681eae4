"""Files that commands will write: every command refuses a missing folder alike, before its work, in one line."""

import json

import pytest
from typer.testing import CliRunner

from normwright.bench import run
from normwright.bench.distributed import scaling
from normwright.cli import app

cli = CliRunner()
#: Each option that names a file to be written, with a name that it takes, behind its command. Those of
#: recalibrate and verify-sync are asked for beside their other mistakes.
LINES = [
    ["inspect", "in.pt", "--json", "x.json"],
    ["bench", "--json", "x.json"],
    ["bench", "--figure", "x.svg"],
    ["scaling", "--figure", "x.svg"],
    ["table", "in.json", "--figure", "x.svg"],
]
PICTURES = [line for line in LINES if line[-1].endswith(".svg")]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """The current folder, and work that must not begin."""
    monkeypatch.chdir(tmp_path)
    for module in (run, scaling):
        monkeypatch.setattr(module, "run", lambda *_, **__: pytest.fail("the work was begun"))
    (tmp_path / "in.pt").write_text("never read")
    (tmp_path / "in.json").write_text(json.dumps({"never": "read"}))


def refused(line, words):
    told = cli.invoke(app, line)
    assert told.exit_code == 2, told.output
    assert told.stderr == f"normwright {line[0]}: {words}\n"


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_folder_that_is_not_there_is_not_made(line, tmp_path):
    refused([*line[:-1], f"none/{line[-1]}"], "none: No such file or directory")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_folder_is_no_file(line, tmp_path):
    (tmp_path / line[-1]).mkdir()
    refused(line, f"{line[-1]}: Is a directory")


@pytest.mark.parametrize("line", PICTURES, ids=" ".join)
@pytest.mark.parametrize(("name", "got"), [("x.png", ".png"), ("x", "none of that kind")])
def test_a_picture_of_another_kind_is_refused(line, name, got):
    refused([*line[:-1], name], f"{name}: expected a name that ends in .svg, got {got}.")
