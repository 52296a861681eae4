"""What was measured is kept as long as its code is the same: its own, and what that imports."""

import re

import pytest

from normwright.lab import run
from normwright.lab.registry import EXPERIMENTS

IMPORTS = {
    "a module": "from normwright.lab import train",
    "one of several": "from normwright.lab import networks, train",
    "one of several lines": "from normwright.lab import (\n    networks,\n    train,\n)",
    "a name": "from normwright.lab.train import Budget, Run",
    "several lines of names": "from normwright.lab.train import (\n    Budget,\n    Run,\n)",
    "under another name": "from normwright.lab import train as training",
    "a dotted module": "import normwright.lab.train as training",
    "inside a function": "def work():\n    from normwright.lab import train\n",
    "of one that it imports": "from normwright.lab.networks import MLP",
}


@pytest.mark.parametrize("text", IMPORTS.values(), ids=IMPORTS)
def test_the_code_of_an_experiment_is_its_own_and_all_that_it_imports(tmp_path, monkeypatch, text):
    modules = {"race": text, "networks": "from normwright.lab.train import Run", "train": "", "shift": ""}

    monkeypatch.setattr(run, "__file__", str(tmp_path / "run.py"))

    def code(**changed: str) -> str:
        for name, source in (modules | changed).items():
            (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        return run._code(EXPERIMENTS["race"])

    assert code() == code()
    assert code(race=f"{text}\nRATE = 1") != code()
    assert code(train="RATE = 1") != code()
    assert code(shift="RATE = 1") == code()  # another experiment's


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_the_code_of_every_experiment_is_found(experiment):
    assert re.fullmatch(r"[0-9a-f]{64}", run._code(experiment))
