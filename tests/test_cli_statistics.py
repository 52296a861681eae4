"""`normwright recalibrate`: what it writes, what it never writes to, and one line for what goes wrong."""

import json
import os
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import close
import normwright.torch as nw
from normwright.cli import app
from normwright.report import records
from normwright.torch.statistics import checkpoint

cli = CliRunner()
SOURCE = """
    import torch
    from torch import nn

    def build():
        layers = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        return nn.Sequential(*layers)

    def other():
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))

    class Zoo:
        build = staticmethod(build)

    def linear():
        return nn.Linear(2, 2)

    def number():
        return 3

    def batches():
        for k in range(3):
            yield torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(k)), "target"

    LIST = list(batches())
    ITERATOR = iter(LIST)
    NAN = [torch.full((4, 3, 5, 5), float("nan"))]

    class Data:
        def __iter__(self):
            return iter(LIST)

    def stopped():
        raise KeyboardInterrupt
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The current folder, with a module of the user's and weights that were never trained; and the module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])
    (tmp_path / "mine.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    sys.path.insert(0, str(tmp_path))
    import mine

    sys.path.remove(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine")  # the command must find it anew
    torch.manual_seed(0)
    mine.weights = mine.build().state_dict()
    torch.save(mine.weights, "in.pt")
    return mine


def command(*options, build="mine:build", weights="in.pt", data="mine:batches", out="out.pt"):
    line = ["recalibrate", build, "--weights", weights, "--data", data, "--out", out, *options]
    return cli.invoke(app, line, env={"COLUMNS": "200", "TERM": "dumb"})


def refused(told, *words):
    """One line, with these words, and exit status 2; nothing is left in the folder."""
    assert told.exit_code == 2, told.output
    assert told.stderr.count("\n") == 1
    for word in words:
        assert word in told.stderr
    assert "out.pt" not in os.listdir()
    assert not [name for name in os.listdir() if name.startswith(".")]


def expected(mine, **options):
    """The state that `recalibrate` in Python leaves."""
    model = mine.build()
    model.load_state_dict(mine.weights)
    nw.recalibrate(model, mine.LIST, **options)
    return model.state_dict()


def same(got, want):
    assert got.keys() == want.keys()
    for name, t in want.items():
        assert got[name].dtype == t.dtype, name
        assert torch.equal(got[name], t), name


# --- recalibrate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "same_as"),
    [
        ([], {}),
        (["--order", "sequential"], {"order": "sequential"}),
        (["--method", "algorithm2", "--prior", "7"], {"method": "algorithm2", "prior": 7}),
        (["--method", "moving"], {"method": "moving"}),
    ],
    ids=["as it is", "sequential", "algorithm2", "moving"],
)
def test_what_is_written_is_what_recalibrate_in_python_leaves(mine, options, same_as):
    before = Path("in.pt").read_bytes()
    told = command(*options)
    assert told.exit_code == 0, told.output
    same(torch.load("out.pt"), expected(mine, **same_as))
    assert Path("in.pt").read_bytes() == before
    assert "Running statistics of 2 layers from 3 batches" in told.stdout
    assert told.stdout.endswith("The weights: out.pt\n")
    assert not [name for name in os.listdir() if name.startswith(".")]


@pytest.mark.parametrize("data", ["mine:LIST", "mine:Data", "mine:ITERATOR"])
def test_data_are_an_iterable_or_a_class_or_a_function(mine, data):
    assert command(data=data).exit_code == 0
    same(torch.load("out.pt"), expected(mine))


def test_a_function_may_be_inside_of_something(mine):
    assert command(build="mine:Zoo.build").exit_code == 0


def test_the_drift_is_written_as_records_and_as_a_picture(mine):
    told = command("--json", "drift.json", "--figure", "drift.svg")
    assert told.exit_code == 0, told.output
    read, _ = records.read(Path("drift.json"))
    assert {r.where["layer"] for r in read} == {"1", "4"}
    assert Path("drift.svg").read_text(encoding="utf-8").startswith("<svg")


def test_a_checkpoint_keeps_all_else_and_its_keys(mine):
    state = {f"module.{key}": t for key, t in mine.weights.items()}
    torch.save({"epoch": 3, "state_dict": state, "best": 0.5}, "in.pt")
    assert command().exit_code == 0
    got = torch.load("out.pt")
    assert list(got) == ["epoch", "state_dict", "best"]
    assert (got["epoch"], got["best"]) == (3, 0.5)
    same(got["state_dict"], {f"module.{key}": t for key, t in expected(mine).items()})


def test_of_several_networks_one_is_chosen_and_the_others_stay(mine):
    torch.save({"model": mine.weights, "model_ema": mine.weights}, "in.pt")
    refused(command(), "got 'model', 'model_ema'", "Choose one by --entry.")
    refused(command("--entry", "ema"), "expected an entry 'ema'", "'model_ema'")
    assert command("--entry", "model_ema").exit_code == 0
    got = torch.load("out.pt")
    same(got["model"], mine.weights)
    same(got["model_ema"], expected(mine))


def test_networks_in_one_flat_file_are_told_apart_by_what_their_keys_begin_with(mine):
    both = {f"{who}.{key}": t for who in ("student", "teacher") for key, t in mine.weights.items()}
    torch.save(both, "in.pt")
    refused(command(), "got 'student', 'teacher'")
    assert command("--entry", "teacher").exit_code == 0
    got = torch.load("out.pt")
    same({k[8:]: t for k, t in got.items() if k.startswith("teacher")}, expected(mine))
    same({k[8:]: t for k, t in got.items() if k.startswith("student")}, mine.weights)


class Versioned(nn.BatchNorm2d):
    """A layer that asks which version of itself wrote the file."""

    _version = 7

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        self.read = metadata.get("version")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_layers_learn_which_version_of_themselves_wrote_the_file(prefix):
    wrapped = (
        nn.ModuleDict({"module": nn.Sequential(Versioned(4))}) if prefix else nn.Sequential(Versioned(4))
    )
    model = nn.Sequential(Versioned(4))
    checkpoint.load("build", model, checkpoint.Checkpoint(wrapped.state_dict()), None)
    assert model[0].read == 7


def test_a_file_without_counters_gets_none(mine):
    old = {key: t for key, t in mine.weights.items() if not key.endswith("tracked")}
    torch.save(dict(old), "in.pt")
    assert command().exit_code == 0
    same(torch.load("out.pt"), {key: t for key, t in expected(mine).items() if key in old})


def test_safetensors_are_read_and_written_with_the_words_beside_them(mine):
    tied = dict(mine.weights)
    save_file(tied, "in.safetensors", metadata={"made": "by hand"})
    assert command(weights="in.safetensors", out="out.safetensors").exit_code == 0
    same(load_file("out.safetensors"), dict(expected(mine)))
    with safe_open("out.safetensors", framework="pt") as file:
        assert file.metadata() == {"made": "by hand"}


def test_one_kind_of_file_becomes_the_other_where_it_holds_tensors_alone(mine):
    assert command(out="out.safetensors").exit_code == 0
    same(load_file("out.safetensors"), dict(expected(mine)))
    torch.save({"epoch": 3, "state_dict": mine.weights}, "in.pt")
    refused(command("--force", out="next.safetensors"), "expected tensors alone", "got epoch, state_dict")
    assert not os.path.exists("next.safetensors")


def test_tensors_that_are_one_are_written_to_safetensors_as_two(mine):
    state = dict(mine.weights)
    content = {**state, "also": state["0.weight"]}
    checkpoint.write(Path("two.safetensors"), checkpoint.Checkpoint(content))
    same(load_file("two.safetensors"), content)


# --- what is never done -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["in.pt", "./in.pt", "folder/../in.pt", "link.pt", "hard.pt"])
def test_the_file_that_was_read_is_never_written_by_any_of_its_names(mine, name):
    os.mkdir("folder")
    os.symlink("in.pt", "link.pt")
    os.link("in.pt", "hard.pt")
    before = Path("in.pt").read_bytes()
    refused(command("--force", out=name), "expected another file than the one that was read", "in.pt itself")
    for option in ("--json", "--figure"):
        told = command("--force", option, name)
        refused(told, "expected another file than the one that was read", "in.pt itself")
    told = cli.invoke(app, ["inspect", "in.pt", "--json", name])
    refused(told, "expected another file than the one that was read", "in.pt itself")
    assert Path("in.pt").read_bytes() == before
    assert os.path.islink("link.pt")


@pytest.mark.parametrize("name", ["out.pt", "./out.pt", "folder/../out.pt", "OUT.pt"])
def test_no_file_is_written_twice(mine, name):
    os.mkdir("folder")
    for option in ("--json", "--figure"):
        refused(command(option, name), "expected another file than any other, got out.pt twice")
    refused(command("--json", "a.svg", "--figure", "a.svg"), "got a.svg twice")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["half", "double"])
def test_the_statistics_keep_the_type_that_they_have_in_the_file(mine, dtype):
    torch.save({name: t.to(dtype) if t.ndim else t for name, t in mine.weights.items()}, "typed.pt")
    assert command(weights="typed.pt").exit_code == 0
    written = torch.load("out.pt")
    assert {name: t.dtype for name, t in written.items() if t.ndim} == {
        name: dtype for name, t in mine.weights.items() if t.ndim
    }
    model = mine.build()
    model.load_state_dict(torch.load("typed.pt"))
    for layer in nw.recalibrate(model, mine.LIST).layers:
        for key, want in (("running_mean", layer.new_mean), ("running_var", layer.new_var)):
            got = written[f"{layer.name}.{key}"].double()
            # rounded once: half a unit of the last of 11 bits, or not at all
            unit = 2.0**-11 * 1.0000001 * abs(want) if dtype == torch.float16 else 0.0
            close.within(key, got, want, unit)


def test_statistics_that_the_file_cannot_hold_are_refused(mine, monkeypatch):
    torch.save({name: t.half() if t.ndim else t for name, t in mine.weights.items()}, "half.pt")
    (Path("mine.py")).write_text(Path("mine.py").read_text() + "\nLARGE = [1e6 * x for x, _ in LIST]\n")
    refused(command(weights="half.pt", data="mine:LARGE"), "statistics that torch.float16 holds")


def test_a_file_that_exists_is_replaced_by_force_alone(mine):
    Path("there.pt").write_text("precious")
    refused(
        command(out="there.pt"), "there.pt: expected a new file, got one that exists. --force replaces it."
    )
    assert Path("there.pt").read_text() == "precious"
    assert command("--force", out="there.pt").exit_code == 0
    same(torch.load("there.pt"), expected(mine))


def test_a_write_that_fails_leaves_what_was_there(mine, monkeypatch):
    Path("there.pt").write_text("precious")

    def half(content, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    refused(command("--force", out="there.pt"), "there.pt: No space left on device")
    assert Path("there.pt").read_text() == "precious"


def test_a_new_file_has_the_rights_of_any_new_file(mine):
    old = os.umask(0o027)
    try:
        assert command().exit_code == 0
    finally:
        os.umask(old)
    assert os.stat("out.pt").st_mode & 0o777 == 0o640


def test_an_interrupted_run_writes_nothing_and_says_so(mine):
    told = command(data="mine:stopped")
    assert (told.exit_code, told.stderr) == (130, "normwright recalibrate: stopped; nothing was written.\n")
    assert "out.pt" not in os.listdir()


# --- what a user gets wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"build": "mine"}, ["expected package.module:name, got mine."]),
        ({"build": "yours:build"}, ["cannot import yours: No module named 'yours'."]),
        ({"build": "mine:bild"}, ["mine has no bild; it has build, other"]),
        ({"build": "mine:LIST"}, ["expected mine:LIST to be a model or a function, got list."]),
        ({"build": "mine:number"}, ["mine:number: expected a torch.nn.Module, got builtins.int."]),
        (
            {"build": "mine:linear"},
            ["mine:linear: expected a model with running statistics, got one without."],
        ),
        ({"build": "mine:other"}, ["size mismatch for 0.weight"]),
        (
            {"data": "mine:number"},
            ["mine:number: expected batches to be an iterable of batches, got builtins.int"],
        ),
        ({"data": "mine:nothing"}, ["mine has no nothing"]),
        ({"data": "mine:NAN"}, ["NaN"]),
        ({"weights": "none.pt"}, ["none.pt: No such file or directory"]),
        ({"out": "no/out.pt"}, ["normwright recalibrate: no: No such file or directory"]),
        ({"out": "."}, [".: Is a directory"]),
    ],
    ids=lambda value: "".join(value.values()) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_line(mine, changed, words):
    refused(command(**changed), "normwright recalibrate: ", *words)


def test_a_one_shot_iterator_is_refused_where_it_is_to_be_read_again(mine):
    refused(command("--order", "sequential", data="mine:ITERATOR"), "one-shot list_iterator")


def test_keys_that_do_not_match_are_told_some_of_them(mine):
    torch.save({f"a{key}": t for key, t in mine.weights.items()}, "in.pt")
    refused(command(), "expected the model's layers '1', '4' in the weights, got layers 'a1', 'a4'.")
    state = dict(mine.weights)
    for k in range(5):
        state[f"more{k}"] = state["0.weight"]
    del state["0.bias"]
    torch.save(state, "in.pt")
    refused(command(), 'Missing key(s) in state_dict: "0.bias"', '"more2" and 2 more')


def test_a_module_that_does_not_import_is_told_with_what_it_lacks(mine):
    Path("broken.py").write_text("import a_module_that_is_none")
    refused(command(build="broken:build"), "cannot import broken: No module named 'a_module_that_is_none'")


def test_an_error_inside_of_the_users_code_keeps_its_traceback(mine):
    Path("raises.py").write_text("def build():\n    raise RuntimeError('mine')")
    told = command(build="raises:build")
    assert isinstance(told.exception, RuntimeError)
    assert json.dumps(str(told.exception)) == '"mine"'


# --- what is not installed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", [["inspect", "a.pt"], ["recalibrate", "m:b", "--weights", "a", "--data", "m:d", "--out", "b"]]
)
def test_without_torch_it_is_said_what_to_install(line, monkeypatch):  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch", None)
    told = cli.invoke(app, line)
    assert told.exit_code == 2
    assert told.stderr == "normwright: not installed: torch. Install with: pip install 'normwright[torch]'\n"


def test_without_safetensors_it_is_said_what_to_install(mine, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    install = "normwright: not installed: safetensors. Install with: pip install 'normwright[safetensors]'\n"
    for told in (cli.invoke(app, ["inspect", "in.safetensors"]), command(out="out.safetensors")):
        assert (told.exit_code, told.stderr) == (2, install)
    with pytest.raises(ImportError, match=r"pip install 'normwright\[safetensors\]'"):
        checkpoint.write(Path("out.safetensors"), checkpoint.Checkpoint(mine.weights))
    assert not [name for name in os.listdir() if "out" in name]
