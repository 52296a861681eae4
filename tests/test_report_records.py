"""Records as a file: what goes in comes out, and what docs/results.schema.json says is what is written."""

import copy
import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator
from torch import nn

import normwright.torch as nw
import tiny_lab
from normwright.lab import race, run
from normwright.lab.data import load
from normwright.report import records
from normwright.report.records import Record

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "docs" / "results.schema.json").read_text(encoding="utf-8"))
BENCHMARKS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))

SOME = [
    Record("accuracy", 1 / 3, "fraction", {"seed": 0, "network": "深 – CNN", "batch_norm": True}, 13, "race"),
    Record("failed at", None, "steps"),
]


def complaints(document: object) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(document)]


# --- the file ---------------------------------------------------------


def test_records_come_back_as_they_were(tmp_path):
    path = tmp_path / "folder" / "results.json"
    records.write(path, SOME, experiment="lab", seed=7)
    found, about = records.read(path)
    assert found == SOME
    assert (about["experiment"], about["seed"], about["schema"]) == ("lab", 7, records.SCHEMA)
    assert about["stamp"]["python"]


def test_a_record_is_a_line(tmp_path):
    records.write(tmp_path / "results.json", SOME)
    lines = (tmp_path / "results.json").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines[-3:-1]] == [asdict(record) for record in SOME]


def test_no_records_are_a_file_too(tmp_path):
    records.write(tmp_path / "results.json", [])
    assert records.read(tmp_path / "results.json")[0] == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_not_written_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "results.json"
    records.write(path, SOME)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        records.write(path, [Record("accuracy", value, "fraction")])
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ['{"schema": 0, "records": []}', '{"records": []}', "[]", "7", '"text"'])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected records of schema 1, got"):
        records.read(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 1}',
        '{"schema": 1, "records": [{"what": "accuracy"}]}',
        '{"schema": 1, "records": [{"colour": 1}]}',
    ],
    ids=["without records", "half a record", "another record"],
)
def test_a_file_whose_records_are_none_is_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected records, each with"):
        records.read(path)


# --- the schema -------------------------------------------------------


def fields(schema: object, where: str = "") -> dict[str, dict]:
    """Every named field of a schema, however deep, by its path."""
    found = {}
    if isinstance(schema, dict):
        for kind in ("properties", "patternProperties"):
            for name, field in schema.get(kind, {}).items():
                found[f"{where}/{name}"] = field
        for key, value in schema.items():
            found.update(fields(value, f"{where}/{key}"))
    return found


def test_the_schema_is_one_and_describes_every_field():
    Draft202012Validator.check_schema(SCHEMA)
    named = fields(SCHEMA)
    assert len(named) > 30
    assert [path for path, field in named.items() if not field.get("description", "").endswith(".")] == []


def test_the_schema_names_the_fields_of_a_record_and_no_others():
    assert set(SCHEMA["$defs"]["record"]["properties"]) == set(asdict(SOME[0]))


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """A results file of the laboratory, written as the runner writes it."""
    path = tmp_path_factory.mktemp("records") / "results.json"
    result, _ = tiny_lab.measure(race.EXPERIMENT)
    order = run.Order(["race"], "tiny", seed=0)
    run._write_results(path, order, load(), {"race": (list(result.records), 1.23)})
    return json.loads(path.read_text(encoding="utf-8"))


def test_what_the_laboratory_writes_satisfies_the_schema(document):
    assert len(document["records"]) > 100
    assert complaints(document) == []


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_the_benchmarks_of_this_repository_satisfy_the_schema(path):
    measured = json.loads(path.read_text(encoding="utf-8"))
    assert measured["experiment"] == "bench"
    assert complaints(measured) == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs").rglob("results.json")), ids=lambda path: path.parent.name
)
def test_the_measurements_in_the_documentation_satisfy_the_schema(path):
    measured = json.loads(path.read_text(encoding="utf-8"))
    assert {record["experiment"] for record in measured["records"]} == set(measured["experiments"])
    # A thousand records take a second: one of each kind that an experiment has stands for the others.
    kinds = {(r["experiment"], r["what"], *r["where"]): r for r in measured["records"]}
    assert complaints({**measured, "records": list(kinds.values())}) == []


@pytest.fixture(scope="module")
def of_a_users_model(tmp_path_factory):
    """What a recalibration and an inspection of a model write: layers moved, frozen and never reached."""
    folder = tmp_path_factory.mktemp("users")
    model = nn.Sequential(nn.BatchNorm1d(2), nw.freeze(nw.BatchNorm1d(2)))
    model.unused = nn.BatchNorm1d(3)
    drift = nw.recalibrate(model, [torch.arange(6.0).reshape(3, 2)], forward=lambda m, x: m[1](m[0](x)))
    drift.save(folder / "drift.json")
    nw.inspect(model).save(folder / "model.json")
    nw.inspect(model.state_dict()).save(folder / "state.json")
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}


def test_what_a_recalibration_and_the_doctor_write_satisfies_the_schema(of_a_users_model):
    kinds = {name: (doc["experiment"], len(doc["records"]) > 0) for name, doc in of_a_users_model.items()}
    assert kinds == {"drift": ("recalibrate", True), "model": ("inspect", True), "state": ("inspect", True)}
    assert of_a_users_model["drift"]["unreached"] == ["unused"]
    assert of_a_users_model["drift"]["frozen"] == ["1"]
    assert of_a_users_model["state"]["not checked"] != []
    for document in of_a_users_model.values():
        assert complaints(document) == []


@pytest.mark.parametrize(
    ("of", "path", "to"),
    [
        *(("drift", (name,), ...) for name in ("experiment", "passes", "batches", "unreached", "frozen")),
        *(("drift", ("records", 0, "where", key), ...) for key in ("layer", "position", "values", "channel")),
        ("drift", ("records", 0, "what"), "accuracy"),
        ("drift", ("records", 0, "where", "channel"), "third"),
        ("drift", ("passes",), 0),
        ("drift", ("layers",), 3),
        *(("state", (name,), ...) for name in ("layers", "taken", "not checked")),
        ("state", ("records", 0, "where", "severity"), "bad"),
        ("state", ("records", 0, "where", "remedy"), ...),
        ("state", ("not checked",), "momentum"),
        ("state", ("experiment",), "recalibrate"),
        ("state", ("experiment",), "lab"),
        ("state", ("passes",), 1),
    ],
    ids=lambda part: "/".join(map(str, part)) if isinstance(part, tuple) else repr(part),
)
def test_a_field_of_a_users_file_that_is_missing_or_wrong_is_refused(of_a_users_model, of, path, to):
    assert complaints(changed(of_a_users_model[of], "schema", to=1)) == []
    assert complaints(changed(of_a_users_model[of], *path, to=to)) != []


def test_there_are_benchmarks_in_this_repository():
    assert BENCHMARKS


def changed(document: dict, *path: str | int, to: object) -> dict:
    """The document with one field changed; with `...`, without it."""
    other = copy.deepcopy({**document, "records": document["records"][:1]})
    holder = other
    for step in path[:-1]:
        holder = holder[step]
    if to is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = to
    return other


@pytest.mark.parametrize(
    ("path", "to"),
    [
        *((("records", 0, name), ...) for name in asdict(SOME[0])),
        *(((name,), ...) for name in ("schema", "stamp", "experiment", "command", "records")),
        *(((name,), ...) for name in ("data", "seed", "experiments")),
        *((("experiments", "race", name), ...) for name in ("rows", "command", "seconds", "settings")),
        (("records", 0, "value"), "0.9"),
        (("records", 0, "value"), True),
        (("records", 0, "what"), 1),
        (("records", 0, "what"), ""),
        (("records", 0, "unit"), None),
        (("records", 0, "where"), {"seeds": [1, 2]}),
        (("records", 0, "row"), None),
        (("records", 0, "row"), "13"),
        (("records", 0, "row"), 31),
        (("records", 0, "experiment"), ""),
        (("records", 0, "colour"), "red"),
        (("schema",), 2),
        (("experiment",), "race"),
        (("experiment",), "bench"),
        (("command",), "python -m something"),
        (("seed",), -1),
        (("data", "name"), "imagenet"),
        (("experiments",), {}),
        (("quick",), False),
        (("surprise",), 1),
    ],
    ids=lambda part: "/".join(map(str, part)) if isinstance(part, tuple) else repr(part),
)
def test_a_field_that_is_missing_or_wrong_is_refused(document, path, to):
    assert complaints(changed(document, "seed", to=0)) == []
    assert complaints(changed(document, *path, to=to)) != []


def test_a_record_may_have_no_value_and_a_benchmarks_record_no_row(document):
    assert complaints(changed(document, "records", 0, "value", to=None)) == []
    bench = json.loads(BENCHMARKS[0].read_text(encoding="utf-8"))
    assert complaints(changed(bench, "records", 0, "row", to=None)) == []
    assert complaints(changed(bench, "records", 0, "experiment", to="")) == []
    assert complaints(changed(bench, "kernels", to=...)) != []
    assert complaints(changed(bench, "seed", to=0)) != []
