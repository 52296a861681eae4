"""The examples, run as their users run them."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the examples need torch")
pytest.importorskip("sklearn", reason="the examples learn scikit-learn's digits")
pytest.importorskip("matplotlib", reason="the examples draw")

DISTRIBUTED = Path(__file__).parent.parent / "examples" / "train_distributed.py"
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def run(*arguments):
    """stdout of a fresh Python. Warnings that anybody prints fail."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},  # torchrun warns where it has to choose
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "warn" not in result.stderr.lower(), result.stderr
    return result.stdout


def differences(printed):
    """The largest difference of each curve from that of one process, as printed."""
    found = re.findall(r"^largest difference .*, (\d process\w*, \S+ ?\S*): (\S+)$", printed, re.MULTILINE)
    return {name: float(number) for name, number in found}


def test_two_processes_train_as_one_and_the_picture_is_drawn(tmp_path):
    figure = tmp_path / "curves.svg"
    printed = run(*LAUNCH, 2, DISTRIBUTED, "--steps", 10, "--figure", figure)
    found = differences(printed)
    assert list(found) == ["2 processes, sync", "2 processes, no sync"]
    # float64: ten steps from weights that are the same, with some 1e-16 of rounding in each; losses are about 2
    assert found["2 processes, sync"] < 1e-13
    assert found["2 processes, no sync"] > 1e-3
    (row,) = re.findall(r"│ 10 .*│ (\S+) .*│ (\S+) .*│ (\S+) .*│", printed)
    assert row[0] == row[1] != row[2]
    assert "one process" in printed
    assert "This was one process" not in printed
    assert all(f"<!-- {name} -->" in figure.read_text() for name in found)  # its legend


@pytest.fixture
def distributed():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("train_distributed", DISTRIBUTED)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOLD = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}


@pytest.mark.parametrize("told", [TOLD, {}], ids=["torchrun", "plain python"])
def test_one_process_is_itself_and_says_how_to_have_more(told, distributed, monkeypatch, capsys):
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [str(DISTRIBUTED), "--steps", "2", "--dtype", "float32"])
    distributed.main()
    printed = capsys.readouterr().out
    assert differences(printed) == {"1 process, sync": 0.0, "1 process, no sync": 0.0}
    assert "This was one process in all. To see several: torchrun --nproc-per-node 2" in printed
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("missing", ["rich", "sklearn", "matplotlib"])
def test_a_missing_package_is_named_before_anything_starts(missing, distributed, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    monkeypatch.setattr(sys, "argv", [str(DISTRIBUTED), "--figure", "curves.svg"])
    with pytest.raises(
        SystemExit, match=rf"^This needs {missing}. Install it with: pip install 'normwright\[lab\]'$"
    ):
        distributed.main()
