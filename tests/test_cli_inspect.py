"""`normwright inspect`: what it prints, how it ends, and one line for a file that cannot be read."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from normwright.cli import app
from normwright.report import records

cli = CliRunner()


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model that was never trained; its weights are in.pt in the current folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    torch.save(model.state_dict(), "in.pt")
    return model


def test_a_file_is_inspected_without_code_and_its_errors_end_in_status_1(model):
    told = cli.invoke(app, ["inspect", "in.pt"], env={"COLUMNS": "200"})
    assert told.exit_code == 1
    for words in ("2 batch norm layers: 2 errors", "error: never trained", "nw.recalibrate(model, batches)"):
        assert words in told.stdout
    assert [line.split() for line in told.stdout.splitlines() if line.startswith("  1 ")] == [["1", "0"]]
    assert "Not checked: momentum and eps" in told.stdout


@pytest.mark.parametrize(("what", "status"), [("error", 0), ("warning", 1), ("never", 0)])
def test_what_fails_is_chosen(model, what, status):
    state = {key: (t + 1).half() if "running" in key else t for key, t in model.state_dict().items()}
    torch.save(state, "half.pt")  # half statistics: warnings, and no error
    assert cli.invoke(app, ["inspect", "half.pt", "--fail-on", what]).exit_code == status


def test_errors_do_not_fail_where_nothing_is_to(model):
    assert cli.invoke(app, ["inspect", "in.pt", "--fail-on", "never"]).exit_code == 0


def test_findings_are_written_as_records(model):
    told = cli.invoke(app, ["inspect", "in.pt", "--json", "found.json"])
    assert told.exit_code == 1
    read, about = records.read(Path("found.json"))
    assert [(r.what, r.where["layer"], r.where["severity"]) for r in read] == [
        ("never trained", "1", "error"),
        ("never trained", "3", "error"),
    ]
    assert (about["experiment"], about["layers"]) == ("inspect", 2)


def test_findings_go_into_a_pipe(model):
    """As `--json >(jq .)`: a descriptor of the process, in a folder where nobody makes files."""
    reader, writer = os.pipe()
    try:
        told = cli.invoke(app, ["inspect", "in.pt", "--json", f"/dev/fd/{writer}", "--fail-on", "never"])
        os.close(writer)
        with open(reader, closefd=False) as end:
            text = end.read()
    finally:
        os.close(reader)
    assert told.exit_code == 0, told.output
    assert json.loads(text)["experiment"] == "inspect"


def test_a_safetensors_file_is_inspected_as_any(model):
    save_file({key: t.bfloat16() for key, t in model.state_dict().items() if t.ndim}, "in.safetensors")
    told = cli.invoke(app, ["inspect", "in.safetensors"], env={"COLUMNS": "200"})
    assert told.exit_code == 1
    assert "error: never trained" in told.stdout
    assert "warning: half statistics" in told.stdout


@pytest.mark.parametrize("what", ["error", "warning", "never"])
def test_a_file_without_layers_is_said_to_have_none_and_is_no_success_whatever_fails(model, what):
    torch.save(nn.Linear(2, 2).state_dict(), "linear.pt")
    told = cli.invoke(app, ["inspect", "linear.pt", "--fail-on", what, "--json", "found.json"])
    assert told.exit_code == 2
    assert "0 batch norm layers: 1 warning" in told.stdout
    assert [record.what for record in records.read(Path("found.json"))[0]] == ["no layers"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.pt", "none.pt: No such file or directory"),
        (".", ".: Is a directory"),
        ("folder.safetensors", "folder.safetensors: Is a directory"),
        ("model.pt", "got an object of torch.nn.modules"),
        ("model.pt", "Save model.state_dict() instead"),
        ("list.pt", "list.pt: expected a state dict, got builtins.list"),
        ("junk.pt", "junk.pt: expected tensors as torch.save writes them, got something else"),
        ("empty.pt", "empty.pt: expected tensors"),
        ("cut.pt", "cut.pt: expected tensors"),
        ("junk.safetensors", "junk.safetensors: expected a safetensors file, got something else"),
    ],
)
def test_a_file_that_cannot_be_read_is_said_in_one_line(model, name, words):
    torch.save(model, "model.pt")
    torch.save([1], "list.pt")
    os.mkdir("folder.safetensors")
    for junk in ("junk.pt", "junk.safetensors"):
        Path(junk).write_bytes(b"hello" * 100)
    Path("empty.pt").write_bytes(b"")
    Path("cut.pt").write_bytes(Path("in.pt").read_bytes()[:-100])
    told = cli.invoke(app, ["inspect", name])
    assert told.exit_code == 2
    assert told.stderr.startswith("normwright inspect: ")
    assert words in told.stderr
    assert told.stderr.count("\n") == 1


def test_a_pickle_that_would_run_something_does_not(model):
    class Bad:
        def __reduce__(self):
            return os.mkdir, ("it ran",)

    torch.save({"state_dict": Bad()}, "bad.pt")
    assert cli.invoke(app, ["inspect", "bad.pt"]).exit_code == 2
    assert not os.path.exists("it ran")
