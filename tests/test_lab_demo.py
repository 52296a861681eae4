"""The main job from end to end, in a few steps: what it writes, and that its page tells nothing but its records."""

import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from rich.console import Console

from normwright.lab import demo
from normwright.lab.train import Budget
from normwright.report import demo as story
from normwright.report import page
from normwright.report import records as files

TINY = (
    replace(demo.MLP, rates=(0.1, 0.3), budget=Budget(steps=8, batch_size=60, every=2)),
    replace(demo.CNN, rates=(0.01, 0.03), budget=Budget(steps=4, batch_size=60, every=2)),
)


def _run(out):
    spoken = io.StringIO()
    written = demo.run(seed=11, out=out, entries=TINY, console=Console(file=spoken, width=80))
    return written, spoken.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def told(done):
    return files.read(done[0].results)


def test_the_page_is_made_from_the_results_file_and_from_nothing_else(done, told):
    assert done[0].page.read_text(encoding="utf-8") == page.render(story.document(*told))


def test_a_number_on_the_page_changes_with_its_record(told):
    records, about = told
    changed = [replace(r, value=0.12345) if r.what == "test accuracy" else r for r in records]
    assert "12.3\u00a0%" not in page.render(story.document(records, about))
    assert "12.3\u00a0%" in page.render(story.document(changed, about))


def test_the_page_loads_nothing_from_anywhere(done):
    html = done[0].page.read_text(encoding="utf-8")
    namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert re.findall(r"https?://[^\s\"'<]*", namespaces) == []
    assert re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"|@import|<script|<link", namespaces) == []


def test_the_pictures_are_sound_and_no_id_stands_twice(done):
    html = done[0].page.read_text(encoding="utf-8")
    pictures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(pictures) == 2
    for picture in pictures:
        assert "without BN" in {text.text for text in ElementTree.fromstring(picture).iter() if text.text}
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="|url\()#([^")]*)', html))
    assert used <= set(ids)
    assert used


def test_every_measurement_has_its_record(told):
    records, about = told
    steps = {entry.name: entry.budget for entry in TINY}
    points = [r for r in records if r.what == "validation accuracy"]
    # Two sides, two rates, three seeds (both rates reach the final), one point for every second step.
    assert len(points) == sum(2 * 2 * 3 * budget.steps // budget.every for budget in steps.values())
    assert all(0 <= r.value <= 1 for r in points)
    assert about["settings"]["seeds"] == [11, 12, 13]
    assert about["settings"]["images"] == {"train": 900, "validation": 400, "test": 497}
    assert about["command"] == "normwright demo --seed 11"


def test_steps_are_counted_on_the_recorded_curves(told):
    records, _ = told

    def curve(network, batch_norm, seed):
        (rate,) = (
            r.value
            for r in records
            if r.what == "chosen rate"
            and (r.where["network"], r.where["batch_norm"]) == (network, batch_norm)
        )
        where = {"network": network, "batch_norm": batch_norm, "seed": seed, "rate": rate}
        return {
            r.where["step"]: r.value
            for r in records
            if r.what == "validation accuracy" and where.items() <= r.where.items()
        }

    counted = [r for r in records if r.what == "steps to it"]
    assert len(counted) == 2 * 2 * 3
    for record in counted:
        network, seed = record.where["network"], record.where["seed"]
        goal = max(curve(network, False, seed).values())
        reached = [s for s, v in curve(network, record.where["batch_norm"], seed).items() if v >= goal]
        assert record.value == (min(reached) if reached else None)


def test_the_terminal_tells_what_the_page_tells(done, told):
    spoken = re.sub(r"\s+", " ", done[1])
    document = story.document(*told)
    assert document.headline in spoken
    for card in document.cards:
        assert card.title in spoken
        assert all(verdict.sentence in spoken for verdict in card.verdicts)
    assert max(len(line) for line in done[1].splitlines()) <= 80 + len(str(done[0].results))


def test_the_same_seed_measures_the_same_numbers(told, tmp_path):
    again, _ = files.read(_run(tmp_path)[0].results)
    timed = {"seconds per step"}
    assert [r for r in again if r.what not in timed] == [r for r in told[0] if r.what not in timed]


def test_the_curves_are_saved_as_a_picture_too(done):
    assert done[0].curves.read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_is_found_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_measure", lambda *_: pytest.fail("the training began"))
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match="taken"):
        demo.run(out=tmp_path / "taken")
