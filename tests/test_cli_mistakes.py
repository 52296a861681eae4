"""`normwright recalibrate` and the code of its users: what that raises, and what it is not, said in one line."""

import os
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from normwright.cli import app, statistics

cli = CliRunner()
SOURCE = """
    from os.path import join
    import torch
    from torch import nn

    def build():
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    class Own(nn.Sequential):
        def forward(self, x, scale=1):
            return super().forward(x) if scale == 1 else join(x)

    def own():
        return Own(*build())

    def wide():
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))

    def needs(arg, *rest, other=3):
        return build()

    def opens():
        return inside("none.txt")

    def inside(name):
        return open(name)

    def reads():
        yield GOOD
        open("data.txt")

    def broken():
        yield GOOD
        raise ValueError("of the data")

    model = build()
    GOOD = torch.randn(4, 3, 2, 2)
    BAD = [GOOD, GOOD, (torch.randn(4, 5, 2, 2), "target")]
    NAN = [GOOD, GOOD * float("nan")]
    WORDS = [{"x": GOOD, "scale": 2}]
    STRANGE = ["text"]
    LIST = [GOOD]
    a = b = c = d = 1
"""
LINE = {line.strip(): k for k, line in enumerate(textwrap.dedent(SOURCE).splitlines(), 1)}


@pytest.fixture(autouse=True)
def _mine(tmp_path, monkeypatch):
    """The current folder, with a module of the user's and weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])
    monkeypatch.setitem(sys.modules, "mine", None)
    del sys.modules["mine"]  # and at the end again, whoever imports it
    Path("mine.py").write_text(textwrap.dedent(SOURCE))
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).state_dict(), "in.pt")


def command(*options, build="mine:build", data="mine:LIST"):
    line = ["recalibrate", build, "--weights", "in.pt", "--data", data, "--out", "out.pt", *options]
    return cli.invoke(app, line, env={"COLUMNS": "200", "TERM": "dumb"})


def refused(told, *words):
    assert told.exit_code == 2, told.output
    assert told.stderr.startswith("normwright recalibrate: ")
    assert told.stderr.count("\n") == 1
    for word in words:
        assert word in told.stderr, told.stderr
    assert "out.pt" not in os.listdir()


# --- the model on a batch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_a_batch_that_the_model_cannot_take_is_told_with_its_number_and_shapes(order):
    told = command("--order", order, build="mine:own", data="mine:BAD")
    what = "the model raised on batch 3 of mine:BAD, tuple (Tensor (4, 5, 2, 2), str), given as model(batch[0]): "
    line = LINE["return super().forward(x) if scale == 1 else join(x)"]
    refused(told, what + "RuntimeError: Given groups=1", f"; at mine.py:{line}.")


def test_a_dict_is_told_as_keywords_and_where_the_users_code_called():
    told = command(build="mine:own", data="mine:WORDS")
    what = "batch 1 of mine:WORDS, dict (x: Tensor (4, 3, 2, 2), scale: int), given as model(**batch): TypeError: "
    refused(told, what, f"; at mine.py:{LINE['return super().forward(x) if scale == 1 else join(x)']}.")


def test_without_code_of_the_users_on_the_way_no_place_is_told():
    told = command(data="mine:BAD")
    refused(told, "batch 3")
    assert "; at" not in told.stderr


def test_a_batch_with_nan_is_told_by_its_number_and_no_place_in_the_library():
    told = command(data="mine:NAN")
    refused(told, "batch 2 of mine:NAN, Tensor (4, 3, 2, 2), given as model(batch)", "NaN")
    assert "; at" not in told.stderr


def test_an_error_of_the_data_keeps_its_traceback():
    told = command(data="mine:broken")
    assert isinstance(told.exception, ValueError)
    assert str(told.exception) == "of the data"


def test_batches_of_another_kind_get_a_remedy_that_the_command_has():
    told = command(data="mine:STRANGE")
    refused(told, "got builtins.str. Let --data yield the inputs alone, or wrap the model in build.")
    assert "forward=" not in told.stderr


def test_the_help_says_what_the_model_gets():
    told = cli.invoke(app, ["recalibrate", "--help"], env={"COLUMNS": "400", "TERM": "dumb"})
    words = " ".join(told.stdout.split())
    assert "of a tuple or list the first; a dict is keywords." in words
    assert "Another file: a copy of --weights with new statistics" in words


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--json", "no/drift.json"], "recalibrate: no: No such file or directory"),
        (["--figure", "no/drift.svg"], "recalibrate: no: No such file or directory"),
        (["--json", "folder.svg"], "folder.svg: Is a directory"),
        (["--figure", "folder.svg"], "folder.svg: Is a directory"),
        (["--figure", "drift.png"], "drift.png: expected a name that ends in .svg, got .png."),
        (["--figure", "drift"], "drift: expected a name that ends in .svg, got none"),
    ],
)
def test_the_places_of_records_and_picture_are_checked_before_anything_is_measured(
    monkeypatch, options, words
):
    os.mkdir("folder.svg")
    monkeypatch.setattr(statistics, "called", lambda *_: pytest.fail("the model was built"))
    refused(command(*options), words)


@pytest.mark.parametrize(
    ("named", "name", "line"),
    [
        ({"build": "mine:opens"}, "mine:opens", "return open(name)"),
        ({"data": "mine:opens"}, "mine:opens", "return open(name)"),
        ({"data": "mine:reads"}, "mine:reads", 'open("data.txt")'),
    ],
)
def test_a_file_that_the_users_code_misses_is_said_to_be_theirs(named, name, line):
    refused(command(**named), f"{name} raised FileNotFoundError at mine.py:{LINE[line]}: [Errno 2]", ".txt'.")


def test_a_file_that_is_missed_in_importing_is_said_to_be_theirs():
    Path("early.py").write_text("\nopen('none.txt')\n")
    refused(command(build="early:build"), "early:build raised FileNotFoundError at early.py:2: ")


@pytest.mark.parametrize("name", ["out", "out.safetensor", "out.v2", ".pt"])
def test_a_name_that_says_no_format_is_refused_with_those_there_are(name):
    refused(command("--out", name), "ends in .pt, .pth, .bin, .ckpt, .tar or .safetensors, got ")
    assert name not in os.listdir()


def test_any_suffix_that_the_weights_have_says_their_format():
    os.rename("in.pt", "in.v1")
    assert command("--weights", "in.v1", "--out", "out.v1").exit_code == 0
    assert command("--weights", "in.v1", "--out", "OUT.SAFETENSORS").exit_code == 0
    written, same = torch.load("out.v1"), load_file("OUT.SAFETENSORS")
    assert written.keys() == same.keys()
    assert all(torch.equal(t, same[key]) for key, t in written.items())


def test_an_entry_of_a_file_that_has_none_is_refused_with_what_to_do():
    told = command("--entry", "model")
    refused(told, "expected an entry 'model' with the model's layers, got them at the top of the file")
    refused(told, "which has no entries. Leave --entry out to take those at the top.")
    state = torch.load("in.pt")
    torch.save({**state, **{f"ema.{key}": t for key, t in state.items()}}, "in.pt")
    refused(command("--entry", "model"), "at the top of the file and in 'ema'. Leave --entry out")


def test_a_name_that_is_taken_gets_a_remedy():
    refused(command("--json", "in.pt"), "got in.pt itself. Choose another name.")


def test_weights_of_another_shape_are_told_whole_with_their_file():
    told = command(build="mine:wide")
    refused(told, "mine:wide: expected weights of Sequential in in.pt, got size mismatch for 0.weight: ")
    assert "torch.Size([4, 3, 1, 1]) from checkpoint" in told.stderr
    assert "torch.Size([8, 3, 1, 1])" in told.stderr
    assert "; and 3 more." in told.stderr  # of weight and bias, and four of the layer's


def test_out_is_replaced_whole_so_its_folder_alone_must_take_it(monkeypatch):
    Path("out.pt").write_text("old")
    # no rights of files bind root
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "out.pt")
    told = command("--force")
    assert told.exit_code == 0, told.output
    assert torch.load("out.pt").keys() == torch.load("in.pt").keys()


def test_an_out_whose_folder_takes_no_files_is_refused_though_it_is_there(monkeypatch):
    def denied(**_):
        raise PermissionError(13, "Permission denied")

    Path("old.pt").write_text("old")
    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    monkeypatch.setattr(statistics, "called", lambda *_: pytest.fail("the model was built"))
    refused(command("--force", "--out", "old.pt"), "recalibrate: .: Permission denied")
    assert Path("old.pt").read_text() == "old"


# --- names ------------------------------------------------------------------------------------------------------


def test_a_model_is_taken_as_it_is():
    told = command(build="mine:model")
    assert told.exit_code == 0, told.output
    assert "Running statistics of 1 layer" in told.stdout


def test_the_table_of_the_drift_is_as_wide_as_the_terminal():
    line = ["recalibrate", "mine:build", "--weights", "in.pt", "--data", "mine:LIST", "--out", "out.pt"]
    told = cli.invoke(app, line, env={"COLUMNS": "80"})
    assert told.exit_code == 0, told.output
    assert "smallest" in told.stdout
    assert max(map(len, told.stdout.splitlines())) <= 80


def test_a_function_with_arguments_is_refused():
    told = "mine:needs takes arguments (arg); give a function without any."
    refused(command(build="mine:needs"), told)
    refused(command(data="mine:needs"), told)


def test_names_that_are_close_come_first_and_imported_ones_not_at_all():
    told = command(build="mine:Lisst")
    refused(told, "mine has no Lisst; it has ", " more.")
    listed = told.stderr.partition("it has ")[2]
    assert not {"torch", "nn", "join"} & set(listed.split(", "))
    refused(command(build="mine:modl"), "it has model, ")


def test_a_file_in_place_of_a_module_is_told_as_one():
    refused(command(build="mine.py:build"), "got mine.py:build; give the module: mine:build.")
    refused(command(build="./src/mine.py:build"), "give the module: src.mine:build.")
