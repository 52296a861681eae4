"""The documentation names what exists: functions, tests, pictures, files."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import normwright.torch as nw
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


STATISTICS = (DOCS / "statistics.md").read_text(encoding="utf-8")
DISTRIBUTED = (DOCS / "distributed.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "lines"),
    [
        (STATISTICS, 10),
        pytest.param(
            DISTRIBUTED,
            4,
            marks=pytest.mark.skipif(
                not dist.is_gloo_available(), reason="this torch was built without gloo"
            ),
        ),
    ],
    ids=["statistics", "distributed"],
)
def test_every_example_runs_and_prints_what_it_says(page, lines):
    printed, names = io.StringIO(), {}
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    with torch.random.fork_rng(devices=[]), redirect_stdout(printed):
        for block in blocks:
            exec(block, names)
    told = re.findall(r"^print\(.*\)  # (.*)$|^# (.*)$", "\n".join(blocks), re.M)
    assert len(told) == lines
    assert printed.getvalue().splitlines() == ["".join(each).partition(":")[0] for each in told]


@pytest.mark.parametrize(
    ("page", "links"), [(STATISTICS, 2), (DISTRIBUTED, 4)], ids=["statistics", "distributed"]
)
def test_a_page_has_the_heads_that_it_links_to(page, links):
    anchors = {
        re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-")
        for head in re.findall(r"^## (.*)$", page, re.M)
    }
    linked = set(re.findall(r"\]\(#([^)]*)\)", page))
    assert len(linked) == links
    assert linked <= anchors


@pytest.mark.parametrize("page", [STATISTICS, DISTRIBUTED], ids=["statistics", "distributed"])
def test_every_function_that_a_page_names_exists(page):
    named = set(re.findall(r"\bnw\.(\w+)", page))
    assert len(named) > 4
    assert named <= set(nw.__all__)
