"""A run from end to end: what it leaves, what it keeps, and what it does not take for its own."""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console

from normwright.lab import networks, run, workers
from normwright.lab.data import load
from normwright.lab.experiment import Desk, Experiment
from normwright.lab.registry import EXPERIMENTS
from normwright.lab.run import Order
from normwright.lab.train import Budget
from normwright.report import figures, laboratory, page, style
from normwright.report import records as files
from normwright.report.document import Card, Picture, Table, Verdict, outcome
from normwright.report.records import Record
from normwright.report.words import Say

SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "results.schema.json").read_text())


@dataclass(frozen=True)
class Plan:
    trials: int


@dataclass
class Diary:
    """What two made-up experiments measured, and which trial is to break."""

    measured: list[str] = field(default_factory=list)
    breaks_at: str = ""

    def experiment(self, name: str, plan: Plan) -> Experiment[Plan]:
        def trial(number: int, seed: int) -> list[Record]:
            if self.breaks_at == f"{name} {number}":
                raise KeyboardInterrupt
            self.measured.append(f"{name} {number}")
            return [Record("height", seed + number / 8, "fraction", {"trial": number}, 13)]

        def measure(desk: Desk, plan: Plan) -> Iterator[Record]:
            for number in range(plan.trials):
                yield from desk.once(f"trial {number}", 5, lambda number=number: trial(number, desk.seed))

        measure.__module__ = "normwright.lab.race"  # whose code is then this experiment's
        return Experiment(
            name, f"the {name} one", (13,), {"tiny": plan, "demo": plan}, lambda p: 5 * p.trials, measure
        )


def card(result, say) -> Card:
    heights = result.numbers("height")
    return Card(
        name=result.name,
        title=f"Card of {result.name}",
        claim=say("It rises.", "它上升。"),
        done=say("Measured.", "已测量。"),
        verdicts=(
            Verdict(
                say("It rises", "它上升"), outcome(heights[-1] > heights[0], False), f"To {heights[-1]}."
            ),
        ),
        tables=(
            Table("Heights", ("trial", "height"), tuple((str(n), str(h)) for n, h in enumerate(heights))),
        ),
        command=result.command,
    )


def pictured(result, say) -> Card:
    drawn = figures.Line("height", range(3), result.numbers("height"), style.WITH)
    axis = figures.Axis("trial")
    picture = Picture(f"{result.name}-rise", lambda: figures.lines([drawn], axis, axis), "It rises.")
    return replace(card(result, say), pictures=(picture,))


@pytest.fixture
def diary(monkeypatch):
    """The laboratory with two experiments of three trials, `first` and `second`, and no others."""
    diary = Diary()
    for name in list(EXPERIMENTS):
        monkeypatch.delitem(EXPERIMENTS, name)
    for name in ("first", "second"):
        monkeypatch.setitem(EXPERIMENTS, name, diary.experiment(name, Plan(3)))
        monkeypatch.setitem(laboratory.CARDS, name, card)
    return diary


def measure(out: Path, *names: str, seed: int = 0, **options: object) -> tuple[run.Written, str]:
    """A run in this process; the files, and what was said."""
    spoken = io.StringIO()
    console = Console(file=spoken, width=80)
    written = run.run(Order(names, "tiny", seed=seed), out=out, jobs=1, console=console, **options)
    return written, re.sub(r"\s+", " ", spoken.getvalue())


def told(written: run.Written) -> dict[str, list[float | None]]:
    """Experiment by experiment, the values of a results file."""
    records, about = files.read(written.results)
    return {name: [r.value for r in records if r.experiment == name] for name in about["experiments"]}


FIRST, SECOND = ([f"{name} {number}" for number in range(3)] for name in ("first", "second"))
VALUES = [0.0, 0.125, 0.25]


# --- cut off, and gone on with ----------------------------------------


def test_a_run_that_was_cut_off_goes_on_where_it_was(diary, tmp_path):
    diary.breaks_at = "first 2"
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, "first", resume=True)
    assert diary.measured == FIRST[:2]
    assert not (tmp_path / "results.json").exists()
    diary.breaks_at = ""
    written, _ = measure(tmp_path, "first", resume=True)
    assert diary.measured == FIRST
    assert told(written) == {"first": VALUES}


def test_an_experiment_that_was_done_before_another_broke_is_not_measured_again(diary, tmp_path):
    diary.breaks_at = "second 1"
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, "first", "second", resume=True)
    diary.breaks_at = ""
    written, _ = measure(tmp_path, "first", "second", resume=True)
    assert diary.measured == FIRST + SECOND
    assert told(written) == {"first": VALUES, "second": VALUES}


def test_without_resuming_nothing_is_kept_and_everything_measured_anew(diary, tmp_path):
    measure(tmp_path, "first", "second")
    written, spoken = measure(tmp_path, "first")
    assert diary.measured == FIRST + SECOND + FIRST
    assert told(written) == {"first": VALUES}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "pictures", "results.json"]
    assert "Kept" not in spoken


def test_what_was_finished_is_not_measured_again_and_said_to_be_kept(diary, tmp_path):
    _, before = measure(tmp_path, "first", resume=True)
    written, spoken = measure(tmp_path, "second", "first", resume=True)
    assert diary.measured == FIRST + SECOND
    assert "Kept" not in before
    assert "Kept from an earlier run, not measured again (--again does): first." in spoken
    assert told(written) == {"first": VALUES, "second": VALUES}


def test_everything_kept_is_told_without_measuring(diary, tmp_path):
    written, _ = measure(tmp_path, "first", resume=True)
    before = written.page.read_bytes()
    written.page.unlink()
    measure(tmp_path, "first", resume=True)
    assert diary.measured == FIRST
    assert written.page.read_bytes() == before


def test_experiments_of_earlier_runs_stand_on_the_page_in_the_laboratorys_order(diary, tmp_path):
    measure(tmp_path, "second", resume=True)
    written, spoken = measure(tmp_path, "first", resume=True)
    assert list(told(written)) == ["first", "second"]
    html = written.page.read_text(encoding="utf-8")
    assert html.index("<h2>Card of first</h2>") < html.index("<h2>Card of second</h2>")
    assert "Card of second" in spoken


def test_the_order_of_the_command_line_is_not_that_of_the_page(diary, tmp_path):
    written, _ = measure(tmp_path, "second", "first")
    assert list(told(written)) == ["first", "second"]
    assert [record.experiment for record in files.read(written.results)[0]] == ["first"] * 3 + ["second"] * 3


def other_source(monkeypatch, **changes: object) -> None:
    source = load()
    monkeypatch.setattr(run, "load", lambda spec: replace(source, **changes))


@pytest.mark.parametrize("changed", ["seed", "plan", "labels", "images", "code", "torch"])
def test_what_was_measured_otherwise_is_not_taken_for_the_same(diary, tmp_path, monkeypatch, changed):
    """Another seed, plan, data set, laboratory or torch: neither resumed nor told beside the new."""
    measure(tmp_path / "out", "first", resume=True)
    diary.breaks_at = "second 2"
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "out", "second", resume=True)
    diary.breaks_at, diary.measured[:] = "", []
    seed = int(changed == "seed")
    if changed == "plan":
        for name in ("first", "second"):
            monkeypatch.setitem(EXPERIMENTS, name, diary.experiment(name, Plan(2)))
    elif changed == "labels":
        other_source(monkeypatch, labels=9 - load().labels)
    elif changed == "images":
        other_source(monkeypatch, images=16 - load().images)
    elif changed == "code":
        (tmp_path / "race.py").write_text("# a laboratory that measures otherwise")
        monkeypatch.setattr(run, "__file__", str(tmp_path / "run.py"))
    elif changed == "torch":
        monkeypatch.setattr(run.torch, "__version__", "9.9")
    written, _ = measure(tmp_path / "out", "second", resume=True, seed=seed)
    assert diary.measured == SECOND[: 2 if changed == "plan" else 3]
    assert list(told(written)) == ["second"]


def test_going_back_to_what_was_measured_before_finds_it(diary, tmp_path):
    measure(tmp_path, "first", resume=True)
    measure(tmp_path, "first", resume=True, seed=1)
    diary.measured.clear()
    written, _ = measure(tmp_path, "first", resume=True)
    assert diary.measured == []
    assert told(written) == {"first": VALUES}


def test_again_forgets_what_it_names_and_nothing_else(diary, tmp_path):
    measure(tmp_path, "first", "second", resume=True)
    written, spoken = measure(tmp_path, "second", resume=True, again=True)
    assert diary.measured == FIRST + SECOND + SECOND
    assert list(told(written)) == ["first", "second"]
    assert "Kept" not in spoken


def test_again_forgets_trials_too(diary, tmp_path):
    diary.breaks_at = "first 1"
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, "first", resume=True)
    diary.breaks_at = ""
    measure(tmp_path, "first", resume=True, again=True)
    assert diary.measured == [FIRST[0], *FIRST]


def test_records_that_were_cut_off_while_they_were_written_are_not_taken_for_whole(
    diary, tmp_path, monkeypatch
):
    whole = files.write

    def half(path, *arguments, **about):
        whole(path, *arguments, **about)
        path.write_bytes(path.read_bytes()[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "write", half)
        with pytest.raises(KeyboardInterrupt):
            measure(tmp_path, "first", resume=True)
    written, _ = measure(tmp_path, "first", resume=True)
    assert diary.measured == FIRST
    assert told(written) == {"first": VALUES}


# --- what it leaves ---------------------------------------------------


def test_the_page_is_made_from_the_results_file_and_from_nothing_else(diary, tmp_path):
    written, _ = measure(tmp_path, "first", "second", language="zh")
    document = laboratory.document(*files.read(written.results), Say("zh"))
    assert written.page.read_text(encoding="utf-8") == page.render(document, Say("zh"))


def test_a_number_on_the_page_changes_with_its_record(diary, tmp_path):
    written, _ = measure(tmp_path, "first")
    found, about = files.read(written.results)
    other = [replace(found[0], value=0.0625), *found[1:]]
    told = [page.render(laboratory.document(each, about, Say()), Say()) for each in (found, other)]
    assert ["0.0625" in html for html in told] == [False, True]


def test_every_picture_is_a_file_of_its_own_too(diary, tmp_path, monkeypatch):
    for name in ("first", "second"):
        monkeypatch.setitem(laboratory.CARDS, name, pictured)
    measure(tmp_path, "first", "second")
    pictures = {path.name: path.read_text() for path in (tmp_path / "pictures").iterdir()}
    assert sorted(pictures) == ["first-rise.svg", "second-rise.svg"]
    assert all("prefers-color-scheme: dark" in text for text in pictures.values())


def test_the_files_are_told(diary, tmp_path):
    written, spoken = measure(tmp_path, "first")
    assert written == run.Written(tmp_path / "results.json", tmp_path / "index.html")
    assert f"The page: {written.page} The records: {written.results}" in spoken


def test_the_terminal_tells_what_the_page_tells(diary, tmp_path):
    written, spoken = measure(tmp_path, "first", "second")
    document = laboratory.document(*files.read(written.results), Say())
    assert document.headline in spoken
    for each in document.cards:
        assert each.title in spoken
        assert all(f"{v.claim}: {v.outcome}. {v.sentence}" in spoken for v in each.verdicts)


def test_a_file_of_results_says_how_it_came_about(diary, tmp_path):
    written, _ = measure(tmp_path, "second", seed=3)
    document = json.loads(written.results.read_text(encoding="utf-8"))
    assert list(Draft202012Validator(SCHEMA).iter_errors(document)) == []
    assert (document["experiment"], document["seed"]) == ("lab", 3)
    assert document["data"] == {"name": "digits", "pixels": 8, "channels": 1}
    about = document["experiments"]["second"]
    assert about.pop("seconds") >= 0
    assert about == {"rows": [13], "command": "normwright lab second --seed 3", "settings": {"trials": 3}}
    assert {record["experiment"] for record in document["records"]} == {"second"}


@pytest.mark.parametrize(
    ("names", "command"),
    [(("first", "second"), "normwright lab all"), (("second",), "normwright lab second")],
    ids=["all", "one"],
)
def test_the_command_on_the_page_measures_what_stands_there(diary, tmp_path, names, command):
    written, _ = measure(tmp_path, *names)
    assert json.loads(written.results.read_text())["command"] == command
    assert f"<code>{command}</code>" in written.page.read_text()


@pytest.mark.parametrize(
    ("order", "command"),
    [
        (Order(["race"], "full"), "normwright lab race"),
        (Order(["race"], "full", seed=7), "normwright lab race --seed 7"),
        (Order(["race"], "demo", seed=7), "normwright demo --seed 7"),
        (Order(["race"], "full", "mnist=/home/me/secret"), "normwright lab race --data mnist=DIR"),
    ],
)
def test_an_order_is_told_as_its_command_and_no_folder_of_the_reader_with_it(order, command):
    assert order.command("race") == command


def test_settings_are_plain_and_a_network_is_told_in_words():
    plan = run.plain({"budget": Budget(3, 60, 1), "networks": (networks.MLP,), "seeds": range(2), 1: None})
    assert plan == {
        "budget": {"steps": 3, "batch_size": 60, "every": 1},
        "networks": [{"name": "MLP", "layers": "784-256-10", "input": "1x28x28"}],
        "seeds": [0, 1],
        "1": None,
    }


# --- before the training ----------------------------------------------


@pytest.fixture
def untrained(diary, monkeypatch):
    monkeypatch.setattr(workers, "measure", lambda *_: pytest.fail("the training began"))


def test_a_folder_that_cannot_be_written_is_found_before_the_training(untrained, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match="taken"):
        measure(tmp_path / "taken", "first")


@pytest.mark.parametrize(
    ("data", "error"), [("mnist=/nowhere", FileNotFoundError), ("imagenet", ValueError)], ids=str
)
def test_data_that_cannot_be_read_are_found_before_the_training(untrained, tmp_path, data, error):
    with pytest.raises(error, match=r"/nowhere|imagenet"):
        run.run(Order(["first"], "tiny", data), out=tmp_path, console=Console(file=io.StringIO()))


# --- a real one -------------------------------------------------------


def test_the_race_runs_from_end_to_end(tmp_path):
    written, spoken = measure(tmp_path, "race", seed=11)
    found, about = files.read(written.results)
    assert len(found) > 200
    assert {record.experiment for record in found} == {"race"}
    assert {record.row for record in found} <= set(EXPERIMENTS["race"].rows)
    assert {record.where["seed"] for record in found if "seed" in record.where} == {11, 12}
    document = laboratory.document(found, about, Say())
    assert document.headline in spoken
    assert {path.stem for path in (tmp_path / "pictures").iterdir()} == {p.name for p in document.pictures}
