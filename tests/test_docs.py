"""The documentation names what exists: functions, tests, pictures, files."""

import re
from pathlib import Path

import pytest

from normwright.lab.registry import EXPERIMENTS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SOURCES = (DOCS / "sources.md").read_text(encoding="utf-8")
ROWS = [line for line in SOURCES.splitlines() if re.match(r"\| \d+ \|", line)]


def test_every_row_of_the_sources_is_there_once():
    assert [int(line.split("|")[1]) for line in ROWS] == list(range(1, 31))


def test_every_function_and_test_that_the_sources_name_exists():
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", SOURCES)
    assert len(named) > 60
    for path, name in named:
        file = (ROOT / "tests" if path.startswith("test_") else ROOT / "src" / "normwright") / path
        assert file.exists(), path
        assert not name or re.search(rf"^(?:def|class) {name}\b", file.read_text(), re.M), f"{path}::{name}"


def test_every_experiment_measures_the_rows_that_name_it():
    measured = {row: set() for row in range(1, 31)}
    for name, experiment in EXPERIMENTS.items():
        for row in experiment.rows:
            measured[row].add(name)
    for line in ROWS:
        shown = set(re.findall(r"\(laboratory\.md#([\w-]+)\)", line.split("|")[5]))
        assert shown <= set(EXPERIMENTS)
        assert measured[int(line.split("|")[1])] <= shown, line


@pytest.mark.parametrize("page", sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")]), ids=lambda path: path.name)
def test_every_link_within_the_project_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"
