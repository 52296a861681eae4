"""Files that commands will write: every command refuses a missing folder alike, before its work, in one line."""

import json
import os
import select
import tempfile
from pathlib import Path

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


# --- what is there already ----------------------------------------------------------------------------------------


@pytest.fixture
def begun(monkeypatch):
    """Files of records that were asked for where the work would have begun."""
    given = []
    for module in (run, scaling):
        monkeypatch.setattr(module, "run", lambda *_, into, figure: given.append(into) or True)
    return given


def begins(line):
    told = cli.invoke(app, line)
    assert told.exit_code == 0, told.output


def denied(monkeypatch, mode, name):
    """No rights of files bind root, so what the system says of them is put in its place."""
    monkeypatch.setattr(os, "access", lambda path, asked: Path(path).name != name or not asked & mode)


def full(monkeypatch):
    """Folders that take no new files."""

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_file_that_may_not_be_written_to_is_refused_whatever_its_folder_takes(line, tmp_path, monkeypatch):
    (tmp_path / line[-1]).write_text("kept")
    denied(monkeypatch, os.W_OK, line[-1])
    refused(line, f"{line[-1]}: Permission denied")
    assert (tmp_path / line[-1]).read_text() == "kept"


def test_a_file_that_is_there_is_written_to_whatever_its_folder_takes(begun, tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text("kept")
    full(monkeypatch)
    begins(["bench", "--json", "x.json"])
    assert begun == [Path("x.json")]
    assert (tmp_path / "x.json").read_text() == "kept"  # by the look alone
    refused(["bench", "--json", "new.json"], ".: Permission denied")


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_file_that_is_written_need_not_be_readable(line, begun, tmp_path, monkeypatch):
    (tmp_path / line[-1]).write_text("")
    denied(monkeypatch, os.R_OK, line[-1])
    assert "readable" not in cli.invoke(app, line).output


def test_records_may_go_to_a_device(begun, monkeypatch):
    full(monkeypatch)  # as /dev is for everybody but root
    begins(["bench", "--json", os.devnull])
    assert begun == [Path(os.devnull)]


def test_the_reader_of_a_pipe_does_not_take_the_look_for_the_end(begun):
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        begins(["bench", "--json", "pipe"])
        poll = select.poll()
        poll.register(reader)
        assert poll.poll(0) == []  # POLLHUP where a writer has come and gone
    finally:
        os.close(reader)


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_what_a_link_leads_to_has_a_folder_of_its_own(line, tmp_path):
    (tmp_path / line[-1]).symlink_to(Path("none") / line[-1])
    refused(line, f"{tmp_path.resolve() / 'none'}: No such file or directory")


# --- folders that an option names ---------------------------------------------------------------------------------


def test_save_makes_its_folder(begun, tmp_path):
    begins(["bench", "--save", "new/deep"])
    assert begun == [Path("new/deep") / run.file_name()]
    assert (tmp_path / "new" / "deep").is_dir()


def test_save_into_a_file_is_refused_like_any_place(tmp_path):
    (tmp_path / "taken").write_text("kept")
    refused(["bench", "--save", "taken"], "taken: File exists")
    refused(["bench", "--save", "taken/deep"], "taken/deep: Not a directory")


def test_save_does_not_replace_what_may_not_be_written_to(tmp_path, monkeypatch):
    (tmp_path / run.file_name()).write_text("kept")
    denied(monkeypatch, os.W_OK, run.file_name())
    refused(["bench", "--save", "."], f"{run.file_name()}: Permission denied")


def test_words_that_are_wrong_make_no_folder(tmp_path):
    assert cli.invoke(app, ["bench", "--save", "new", "--threads", "none"]).exit_code == 2
    assert not (tmp_path / "new").exists()
