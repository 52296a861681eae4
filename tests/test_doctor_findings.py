"""What the doctor found, put together: the order, the table, the records; and the layers among a file's keys."""

import json

import numpy as np
import pytest

from healthy import HEALTHY, C, at, layer, told
from normwright.doctor import checks
from normwright.doctor.checks import CHECKS, examine
from normwright.doctor.findings import Finding, Findings
from normwright.doctor.layer import LayerState, Settings, prefixes
from normwright.report import records


def test_every_check_of_the_rooms_files_is_in_the_list():
    there = {
        name
        for module in (checks.statistics_checks, checks.training_checks)
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and "layers" in value.__annotations__
    }
    assert there == {check.find.__name__ for check in CHECKS}


def test_findings_come_worst_first_then_by_check_then_by_share_then_in_the_models_order():
    note = layer("note", var=at(HEALTHY.var, c0=1e-6))
    one = layer("one", var=at(HEALTHY.var, c0=-1.0))
    two = layer("two", var=at(HEALTHY.var, c0=-1.0, c1=-1.0))
    also = layer("also", var=at(HEALTHY.var, c7=-2.0))
    nan = layer("nan", mean=at(HEALTHY.mean, c0=np.nan))
    flat = layer("flat", var=at(HEALTHY.var, c0=0.0))
    found = [(f.severity, f.layer) for f in examine([note, flat, one, two, also, nan])]
    assert found == [
        ("error", "nan"),
        ("error", "two"),
        ("error", "one"),
        ("error", "also"),
        ("warning", "flat"),
        ("note", "note"),
    ]


def test_no_layers_are_a_warning_and_not_a_clean_bill():
    findings = examine([])
    assert told(findings.found[0]) == ("warning", "no layers", "", 0, ())
    assert (findings.layers, findings.fails("error"), findings.fails("warning")) == (0, False, True)


def test_a_layer_without_channels_is_passed_over():
    nothing = np.zeros(0)
    findings = examine([LayerState("empty", nothing, nothing, "float32"), layer()])
    assert (len(findings), findings.layers) == (0, 1)


@pytest.mark.parametrize(
    ("severity", "fails"),
    [
        ("error", {"error": True, "warning": True, "never": False}),
        ("warning", {"error": False, "warning": True, "never": False}),
        ("note", {"error": False, "warning": False, "never": False}),
    ],
)
def test_what_fails_goes_by_the_worst_finding(severity, fails):
    findings = Findings((Finding("check", severity, "bn", "number", 1.0, "1", "", ""),), 1)
    assert {on: findings.fails(on) for on in fails} == fails


def test_findings_are_records_with_everything_in_them(tmp_path):
    findings = examine([layer("a", var=np.full(C, -1.0)), layer("b", settings=None, updates=None)])
    findings.save(tmp_path / "folder" / "found.json")
    read, about = records.read(tmp_path / "folder" / "found.json")
    assert read == findings.records()
    first = read[0]
    assert (first.what, first.value, first.unit) == ("negative variance", -1.0, "input squared")
    assert first.where["layer"] == "a"
    assert first.where["severity"] == "error"
    assert (first.where["channels concerned"], first.where["channels"]) == (C, C)
    assert first.where["first channels"] == "0, 1, 2, 3, 4, ..."
    assert first.where["cause"] == findings.found[0].cause
    assert (about["layers"], about["not checked"]) == (2, list(findings.not_checked))


def test_records_hold_no_number_that_json_has_not():
    bad = layer("bad", mean=np.full(C, np.nan), var=np.full(C, np.inf), weight=np.full(C, np.inf))
    odd = layer("odd", settings=Settings(np.nan, np.nan))
    for record in examine([bad, odd]).records():
        json.dumps([record.value, dict(record.where)], allow_nan=False)


def test_many_layers_with_the_same_finding_are_one_table_cut_short():
    fresh = [layer(f"bn{k}", mean=np.zeros(C), var=np.ones(C), updates=0) for k in range(13)]
    findings = examine(fresh)
    assert len(findings) == 13
    (notice,) = findings.notices()
    assert len(notice.table.rows) == 10
    assert notice.table.note == "and 3 layers more"
    printed = str(findings)
    assert printed.startswith("13 batch norm layers: 13 errors\n")
    assert printed.count("Evaluation does not normalize.") == 1
    assert "error: never trained" in printed


def test_a_printed_finding_has_number_channels_cause_and_remedy():
    printed = " ".join(str(examine([layer("stem.bn", var=at(HEALTHY.var, c1=-0.25))])).split())
    for words in (
        "stem.bn",
        "-0.25",
        "1 of 8",
        "smallest variance",
        "No data has a negative",
        "nw.recalibrate",
    ):
        assert words in printed


# --- keys -------------------------------------------------------------------------------------------------------


def test_layers_are_found_by_their_keys_in_the_files_order():
    keys = ["b.running_var", "b.running_mean", "a.running_mean", "a.running_var", "a.weight", "ln.weight"]
    assert prefixes(keys) == ["b.", "a."]


@pytest.mark.parametrize(
    "keys",
    [
        ["a.running_mean"],
        ["a.running_var"],
        ["a.running_mean", "b.running_var"],
        ["my_running_mean", "my_running_var"],
    ],
    ids=" ".join,
)
def test_half_a_pair_or_another_name_is_no_layer(keys):
    assert prefixes(keys) == []


def test_a_layer_that_is_the_whole_file_has_no_name():
    assert prefixes(["running_mean", "running_var"]) == [""]
