"""What `normwright info` tells."""

import platform
import subprocess
import sys
from importlib import metadata

import pytest
from typer.testing import CliRunner

from normwright.bench import machine
from normwright.cli import app
from normwright.kernels import NATIVE


def lines(told):
    return {line[:16].strip(): line[17:] for line in told.splitlines()}


def test_versions_processor_and_caches_are_told():
    told = CliRunner().invoke(app, ["info"])
    assert told.exit_code == 0
    facts = lines(told.stdout)
    assert facts["normwright"] == metadata.version("normwright")
    assert facts["numpy"] == metadata.version("numpy")
    assert facts["python"] == f"{platform.python_version()}, {platform.system()}"
    assert " cores, " in facts["processor"]
    assert facts["cache"]


@pytest.mark.skipif(not NATIVE, reason="a package without native kernels")
def test_the_active_instruction_set_is_told_beside_those_that_could_be():
    from normwright import _native

    facts = lines(CliRunner().invoke(app, ["info"]).stdout)
    assert facts["kernels"] == "native"
    assert facts["instruction set"] == f"{_native.isa()} (this machine runs {', '.join(_native.isas())})"
    assert facts["threads"] == str(_native.threads())


def test_a_package_without_native_kernels_is_announced_in_words(monkeypatch):
    monkeypatch.setattr(machine, "NATIVE", False)
    facts = lines(CliRunner().invoke(app, ["info"]).stdout)
    assert facts["kernels"].startswith(
        "built without native kernels (NORMWRIGHT_PURE=1): NumPy runs the float64"
    )
    assert facts["kernels"].endswith("torch tensors go to torch's own batch norm")
    assert "instruction set" not in facts


def test_torch_is_told_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(machine, "stamp", lambda: {**stamped, "torch": None})
    assert machine.info()["torch"] == "not installed (pip install 'normwright[torch]')"


stamped = machine.stamp()


def test_info_imports_no_framework():
    code = (
        "import sys; from typer.testing import CliRunner; from normwright.cli import app; "
        "assert CliRunner().invoke(app, ['info']).exit_code == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not NATIVE, reason="a package without native kernels")
def test_an_instruction_set_that_cannot_be_is_told_in_one_line():
    told = subprocess.run(
        [sys.executable, "-c", "from normwright.cli import main; main()", "info"],
        env={"NORMWRIGHT_ISA": "abacus"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1
    assert "NORMWRIGHT_ISA" in told.stderr
    assert "'abacus'" in told.stderr
    assert told.stderr.count("\n") == 1
