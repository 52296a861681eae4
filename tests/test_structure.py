"""The rooms of the library: imports go one way, importing is cheap, nothing grows without a concept."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import normwright
from every_kernel import run_python

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src"

# core <- kernels <- doors <- lab, bench, cli;  core, report <- doctor <- torch;  report <- lab, bench, cli. The lab
# shows what users can do: it knows the doors alone. The benchmark also measures beside the reference and the memory
# floor. The doctor knows no framework: doors bring it arrays.
MAY_IMPORT = {
    "": set(),  # normwright/__init__.py
    "core": {"core"},
    "kernels": {"core", "kernels", "_native"},
    "numpy": {"core", "kernels", "numpy"},
    "torch": {"core", "kernels", "_native", "torch", "doctor", "report"},
    "doctor": {"core", "report", "doctor"},
    "report": {"report"},
    "lab": {"numpy", "torch", "report", "lab"},
    "bench": {"core", "kernels", "_native", "numpy", "torch", "report", "bench"},
    "__main__": {"cli"},
    "cli": {"cli", "core", "kernels", "_native", "numpy", "torch", "report", "lab", "bench", "doctor"},
}
FRAMEWORKS = {"torch", "sklearn", "matplotlib", "jinja2", "rich", "typer", "safetensors"}
MAY_USE = {
    "torch": {"torch", "rich", "safetensors"},
    "report": {"matplotlib", "jinja2", "rich"},
    "lab": {"torch", "sklearn", "rich"},
    "bench": {"torch", "rich"},
    "__main__": set(),
    "cli": {"typer", "rich"},
}


def imports(path: Path, module: str) -> Iterator[str]:
    """The modules that a file imports anywhere, in full names; `module` is its own."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            # `from normwright import kernels`: the room is the name; a name of a module is no harm elsewhere
            yield from (f"{source}.{name.name}" for name in node.names)


def rooms_in(sources: Path) -> Iterator[tuple[Path, str, str]]:
    """Every file of the package with its module and its room."""
    for path in sorted(sources.glob("normwright/**/*.py")):
        parts = path.relative_to(sources).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        yield path, ".".join(parts), parts[1] if len(parts) > 1 else ""


def violations(sources: Path) -> list[str]:
    """Every import against the rules above, in words."""
    found = []
    for path, module, room in rooms_in(sources):
        if room not in MAY_IMPORT:
            found.append(f"{module}: {room} is a room without a rule")
            continue
        for target in imports(path, module):
            first, *rest = target.split(".")
            if first == "normwright" and rest and rest[0] not in MAY_IMPORT[room] | {"__version__"}:
                found.append(f"{module} imports {target}")
            if first in FRAMEWORKS and first not in MAY_USE.get(room, set()):
                found.append(f"{module} imports {target}")
    return found


def test_imports_go_one_way():
    assert violations(SOURCES) == []
    assert len(list(rooms_in(SOURCES))) > 20  # the files were really found


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        (
            "core/layout.py",
            "from normwright.kernels import cpu",
            "core.layout imports normwright.kernels.cpu",
        ),
        ("core/layout.py", "from ..kernels import cpu", "core.layout imports normwright.kernels.cpu"),
        ("core/__init__.py", "from .. import kernels", "core imports normwright.kernels"),
        ("core/layout.py", "def f():\n    import torch", "core.layout imports torch"),
        ("core/layout.py", "import torch.nn as nn", "core.layout imports torch.nn"),
        ("kernels/cpu.py", "import normwright.torch", "kernels.cpu imports normwright.torch"),
        ("kernels/cpu.py", "from normwright import numpy", "kernels.cpu imports normwright.numpy"),
        ("numpy/layer.py", "from normwright.torch import x", "numpy.layer imports normwright.torch.x"),
        ("numpy/layer.py", "from normwright.report import x", "numpy.layer imports normwright.report.x"),
        ("report/page.py", "from normwright.lab import x", "report.page imports normwright.lab.x"),
        ("report/page.py", "from normwright import numpy", "report.page imports normwright.numpy"),
        ("report/page.py", "from torch import nn", "report.page imports torch.nn"),
        (
            "report/cards/race.py",
            "from normwright.lab import x",
            "report.cards.race imports normwright.lab.x",
        ),
        ("report/cards/race.py", "from ...lab import x", "report.cards.race imports normwright.lab.x"),
        ("report/cards/race.py", "import torch", "report.cards.race imports torch"),
        ("doctor/checks.py", "import torch", "doctor.checks imports torch"),
        ("doctor/checks.py", "from rich import box", "doctor.checks imports rich.box"),
        ("doctor/checks.py", "from normwright.torch import x", "doctor.checks imports normwright.torch.x"),
        ("cli/lab.py", "import torch", "cli.lab imports torch"),
        ("lab/race.py", "from normwright.kernels import best", "lab.race imports normwright.kernels.best"),
        ("__init__.py", "from normwright import core", "normwright imports normwright.core"),
        ("shed/tool.py", "", "shed.tool: shed is a room without a rule"),
    ],
)
def test_an_import_the_wrong_way_is_seen(file, line, words, tmp_path):
    path = tmp_path / "normwright" / file
    path.parent.mkdir(parents=True)
    path.write_text("import numpy\n" + line)
    (found,) = violations(tmp_path)
    assert found.endswith(words)


def test_an_import_the_right_way_is_no_violation(tmp_path):
    for file, line in {
        "core/layout.py": "from . import checks\nfrom normwright.core.checks import message",
        "torch/layer.py": "import torch\nfrom normwright import kernels, _native",
        "torch/statistics/inspect.py": "from normwright.doctor import checks",
        "doctor/checks.py": "from normwright.core import checks\nfrom normwright.report import records",
        "lab/race.py": "import sklearn.datasets, torch\nimport normwright.torch as nw\nfrom ..report import page",
    }.items():
        path = tmp_path / "normwright" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
    assert violations(tmp_path) == []


# --- what an import costs -------------------------------------------

IMPORT = """
import sys
before = set(sys.modules)
import normwright{door}
print(*sorted(set(sys.modules) - before))
"""


def imported(door: str) -> set[str]:
    """All that `import normwright` with this behind it imports, in full names."""
    return set(run_python(IMPORT.format(door=door)).split())


def packages(door: str) -> set[str]:
    return {name.partition(".")[0] for name in imported(door)}


def test_importing_normwright_imports_python_alone():
    modules = {name for name in imported("") if name.partition(".")[0] not in sys.stdlib_module_names}
    assert modules == {"normwright"}


def test_a_door_imports_its_own_framework_alone():
    modules = packages(".numpy")
    assert "numpy" in modules
    assert (FRAMEWORKS & modules) == set()


def test_telling_the_benchmark_draws_nothing():
    modules = packages(".bench.telling.table, normwright.report.terminal")
    assert "rich" in modules
    assert {"matplotlib", "jinja2", "sklearn"} & modules == set()


def test_the_version_is_the_packages():
    assert normwright.__version__.split(".")[0].isdigit()
    assert f'version = "{normwright.__version__}"' in (ROOT / "pyproject.toml").read_text()


# --- sizes and names --------------------------------------------------


def own_files(*kinds: str) -> list[Path]:
    return [
        path
        for folder in ("src", "native", "tests")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in kinds and path.suffixes != [".pyi"]
    ]


def long_functions(path: Path, limit: int) -> list[str]:
    """Functions with more than `limit` lines of code; the docstring, which is to be thorough, is not counted."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                text = node.body[0]
                assert text.end_lineno is not None
                lines -= text.end_lineno - text.lineno + 1
            if lines > limit:
                found.append(f"{path.name}:{node.lineno} {node.name}: {lines} lines")
    return found


def test_no_file_is_longer_than_400_lines():
    lengths = {path: len(path.read_text().splitlines()) for path in own_files(".py", ".h", ".inl", ".cpp")}
    assert len(lengths) > 40
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > 400} == {}


def test_no_function_is_longer_than_60_lines():
    assert [line for path in own_files(".py") for line in long_functions(path, 60)] == []


def test_a_long_function_is_seen_and_its_docstring_is_not_counted(tmp_path):
    path = tmp_path / "long.py"
    text = '    """One.\n' + "\n" * 80 + '    """\n'
    path.write_text("def short():\n" + text + "    x = 1\n" * 59 + "def long():\n" + "    x = 1\n" * 60)
    assert long_functions(path, 60) == ["long.py:143 long: 61 lines"]


def test_no_module_is_named_for_everything_and_nothing():
    words = {"util", "utils", "helper", "helpers", "misc", "common", "tools", "stuff"}
    names = {path: set(path.stem.lower().split("_")) for path in own_files(".py", ".h", ".inl", ".cpp")}
    assert [str(path.relative_to(ROOT)) for path, parts in names.items() if parts & words] == []
