"""What was counted in the models of transformers: read, told, and counted again."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from every_kernel import run_python
from normwright.bench.models import __main__ as command
from normwright.bench.models import architectures, counted, counting, page
from normwright.bench.models.architectures import Architecture
from normwright.bench.models.following import Call
from normwright.core.activation import KINDS
from terminals import assert_every_word_is_whole

PAGE = Path(__file__).parent.parent / "docs" / "models.md"


# --- the file -----------------------------------------------------------------


def test_every_shape_is_one_and_its_counts_agree():
    shapes = counted.shapes()
    assert len(shapes) > 100
    assert len({each.shape for each in shapes}) == len(shapes)
    for each in shapes:
        assert 2 <= len(each.shape) <= 5
        assert all(isinstance(n, int) and n > 0 for n in each.shape)
        assert each.shape[0] % architectures.BATCH == 0
        assert each.occurs == sum(each.followed_by.values()) >= each.models >= 1
    assert [each.occurs for each in shapes] == sorted((each.occurs for each in shapes), reverse=True)


def test_the_shapes_are_those_of_the_models_that_see_images():
    vision = [model for model in counted.document()["models"] if model["image"]]
    of_models, of_shapes = {}, {}
    for counts, into in [
        *((model["then"], of_models) for model in vision),
        *((each.followed_by, of_shapes) for each in counted.shapes()),
    ]:
        for name, times in counts.items():
            into[name] = into.get(name, 0) + times
    assert of_models == of_shapes


def test_what_follows_adds_up_to_the_batch_norms_of_the_models():
    found, document = counted.following(), counted.document()
    left_out = document["left_out"]
    for model in document["models"]:
        seen = sum(model["then"].values()) + sum(model["frozen_then"].values())
        # One that is called twice counts twice; what was not called is told among what was left out.
        assert (seen < model["norms"] + model["frozen"]) <= (model["name"] in left_out), model["name"]
    assert sum(each.layers for each in found) == sum(sum(m["then"].values()) for m in document["models"])
    assert sum(each.frozen for each in found) == sum(
        sum(m["frozen_then"].values()) for m in document["models"]
    )
    assert all(1 <= each.architectures <= len(document["models"]) for each in found)
    assert len({model["name"] for model in document["models"]}) == len(document["models"])
    assert all(left_out.values())


def test_a_resnet_is_counted_as_it_is_known():
    (resnet,) = (model for model in counted.document()["models"] if model["name"] == "resnet")
    # 16 blocks of three, four of them with a fourth beside them, and one before all
    assert resnet["then"] == {"relu": 33, "add > relu": 16, "another's residual": 4}
    assert (resnet["norms"], resnet["frozen"], resnet["image"]) == (53, 0, [224, 224])


def test_settings_are_counts_of_names():
    found = counted.settings()
    assert {"gelu", "relu", "silu"} <= set(found)
    assert all(times > 0 for of in found.values() for times in of.values())
    assert all(architectures.ACTIVATION_SETTING.search(key) for of in found.values() for key in of)


def test_the_file_is_small_and_says_what_it_was_made_with():
    assert counted.FILE.stat().st_size < 150_000
    assert list(counted.document()["made_with"]) == list(counted.VERSIONS)
    assert counted.FILE.read_text(encoding="utf-8") == counting.dumps(counted.document())


@pytest.mark.parametrize("k", [1, 2, 12, 40, 10_000])
def test_a_grid_has_different_shapes_of_all_sizes(k):
    grid = counted.grid(k)
    fitting = [s for s in counted.shapes() if len(s.shape) == 4 and s.bytes <= counted.MOST_BYTES]
    assert len(grid) == min(k, len(fitting)) == len({each.shape for each in grid})
    assert all(len(each.shape) == 4 and each.bytes <= 110e6 for each in grid)
    assert [each.bytes for each in grid] == sorted(each.bytes for each in grid)
    if k >= 12:
        assert grid[0].bytes < 1e6
        assert grid[-1].bytes > 5e7
        assert max(fitting, key=lambda each: each.occurs) in grid


# --- what is told -------------------------------------------------------------


def test_every_operation_has_a_kind():
    for then_, kind, after in (
        ("relu", "relu", False),
        ("add > relu", "relu", True),
        ("hardtanh(-1, 1)", "hardtanh", False),
        ("add > hardtanh(-1, 1)", "hardtanh", True),
        ("add > add > relu", counted.SUM_ALONE, True),
        ("add > conv2d", counted.SUM_ALONE, True),
        ("add & relu", counted.NONE, False),
        ("another's residual", counted.OTHERS_RESIDUAL, False),
        ("nothing", counted.NONE, False),
        ("add of another shape", counted.NONE, False),
    ):
        followed = counted.Followed(then_, 1, 0, 1)
        assert (followed.kind, followed.after_a_residual) == (kind, after), then_
    assert set(KINDS[1:]) <= set(counted.ACTIVATIONS)


def test_the_tables_add_up():
    *rows, last = page.following_table().rows
    for column in (1, 4):
        assert sum(int(row[column]) for row in rows) == int(last[column])
    assert abs(sum(float(row[2].rstrip(" %")) for row in rows) - 100) < 0.06 * len(rows)
    assert {"relu", "leaky_relu", "relu6", "silu", "gelu", "hardswish", "sigmoid", "tanh", "elu"} <= {
        row[0] for row in rows
    }
    *rows, last = page.settings_table().rows
    for column in (1, 3):
        assert sum(int(row[column]) for row in rows) == int(last[column])


def test_the_page_says_what_the_file_says(tmp_path):
    copy = tmp_path / "models.md"
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    page.write(copy)
    assert copy.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8"), (
        f"run: {page.COMMAND} --page docs/models.md"
    )


# --- the command --------------------------------------------------------------


def run(capsys, *arguments):
    """The exit status, and what was printed to both."""
    status = 0
    try:
        command.main(arguments)
    except SystemExit as left:
        status = left.code
    return status, *capsys.readouterr()


def test_without_transformers_the_command_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "transformers" else object())
    told = run(capsys, "--into", str(tmp_path / "models.json"))
    assert told == (2, "", f"{page.COMMAND}: not installed: transformers. Install with: {command.NEEDS}\n")
    assert not (tmp_path / "models.json").exists()


def test_a_folder_or_page_that_is_not_there_is_said_in_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "find_spec", lambda name: object())
    monkeypatch.setattr(counting, "count", lambda console: pytest.fail("it was counted"))
    status, _, told = run(capsys, "--into", str(tmp_path / "no" / "models.json"))
    assert (status, told) == (1, f"{page.COMMAND}: {tmp_path / 'no'}: No such folder\n")
    status, _, told = run(capsys, "--page", str(tmp_path / "no.md"))
    assert status == 1
    assert told.count("\n") == 1
    assert "no.md" in told


def test_without_options_the_tables_are_printed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # reading takes no transformers
    status, printed, told = run(capsys)
    assert (status, told) == (0, "")
    assert "What follows a batch norm" in printed
    assert "Activations in default configurations" in printed
    for table in (page.following_table(), page.settings_table()):
        assert_every_word_is_whole(table, 80)


def test_the_package_is_the_command_and_telling_takes_no_framework():
    told = run_python(
        "import runpy, sys\n"
        "sys.argv = ['models']\n"
        "runpy.run_module('normwright.bench.models', run_name='__main__')\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert "What follows a batch norm" in told
    assert told.splitlines()[-1] == "[]"


def test_what_was_seen_is_written_as_it_is_read(capsys, monkeypatch, tmp_path):
    calls = [
        Call("a", (8, 4, 2, 2), False, ("relu",)),
        Call("b", (8, 4, 2, 2), False, ("add", "relu")),
        Call("c", (8, 2, 1, 1), True, ("relu",)),
    ]
    seen = [
        Architecture("one", "OneModel", (2, 2), 2, 1, calls),
        Architecture("two", "TwoModel", None, 4, 0, calls[:1], "3 of 4: ValueError: no"),
        Architecture("three", left_out="none by default"),
    ]
    monkeypatch.setattr(counting.metadata, "version", lambda name: "1.0+cpu")
    monkeypatch.setattr(command, "find_spec", lambda name: object())
    monkeypatch.setattr(
        counting,
        "count",
        lambda console: counting.summary(seen, {("hidden_act", "relu"): 2, ("act", "relu"): 1}),
    )
    file = tmp_path / "models.json"
    status, printed, _ = run(capsys, "--into", str(file))
    assert (status, printed) == (0, f"Counted into {file}\n")
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["made_with"] == dict.fromkeys(counted.VERSIONS, "1.0")
    assert document["settings"] == {"values": {"relu": {"act": 1, "hidden_act": 2}}}
    assert document["left_out"] == {"two": "3 of 4: ValueError: no", "three": "none by default"}
    monkeypatch.setattr(counted, "document", lambda: document)
    assert counted.following() == [("relu", 2, 1, 2), ("add > relu", 1, 0, 1)]
    assert counted.shapes() == [((8, 4, 2, 2), 2, 1, {"relu": 1, "add > relu": 1})]


def test_counting_shows_how_far_it_is_and_leaves_the_threads_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(architectures, "folders", lambda: [Path("one"), Path("two")])
    monkeypatch.setattr(
        architectures, "see", lambda folder: seen.append((folder.name, torch.get_num_threads()))
    )
    monkeypatch.setattr(architectures, "settings", dict)
    monkeypatch.setattr(counting.metadata, "version", lambda name: "1.0")
    threads = torch.get_num_threads()
    console = Console(file=io.StringIO(), width=100)
    assert counting.count(console)["models"] == []
    assert seen == [("one", 1), ("two", 1)]
    assert torch.get_num_threads() == threads
    assert "models: two" in console.file.getvalue()


@pytest.mark.parametrize(
    ("size", "pair"),
    [
        (224, (224, 224)),
        ([480, 640], (480, 640)),
        ({"height": 48, "width": 320}, (48, 320)),
        ({"shortest_edge": 800, "longest_edge": 1333}, (800, 1333)),
        ({"shortest_edge": 256}, (256, 256)),
        (None, None),
        ({"max_height": 3}, None),
    ],
)
def test_sizes_are_read_as_configurations_write_them(size, pair):
    assert architectures._pair(size) == pair
