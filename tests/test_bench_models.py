"""What follows a batch norm: seen in networks of a few layers, and read from what was counted in transformers."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from normwright.bench import architectures, models, models_page
from normwright.bench.architectures import Architecture
from normwright.bench.following import Call, follow
from normwright.core.activation import KINDS

PAGE = Path(__file__).parent.parent / "docs" / "models.md"


# --- following ------------------------------------------------------------


class Block(nn.Module):
    """A convolution, two batch norms and a forward that a test gives."""

    def __init__(self, forward):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3)
        self.steps = forward

    def forward(self, x):
        return self.steps(self, x)


def then(forward, shape=(2, 3, 5, 5)):
    """What follows each batch norm, by its name, in a block on the meta device and on the CPU alike."""
    told = []
    for device in ("meta", "cpu"):
        block = Block(forward).eval().to(device)
        x = torch.ones(shape, device=device)
        calls, error = follow(block, lambda block=block, x=x: block(x))
        assert error is None
        assert {call.shape for call in calls} == {shape}
        told.append({call.layer: " > ".join(call.then) for call in calls})
    assert told[0] == told[1]
    return told[0]


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (F.relu, "relu"),
        (torch.relu_, "relu"),
        (lambda x: x.relu(), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.Hardtanh(), "hardtanh(-1, 1)"),
        (nn.Hardtanh(0.0, 6.0), "relu6"),
        (nn.LeakyReLU(0.2), "leaky_relu"),
        (nn.SiLU(), "silu"),
        (nn.GELU(), "gelu"),
        (nn.GELU("tanh"), "gelu_tanh"),
        (nn.Hardswish(), "hardswish"),
        (nn.Sigmoid(), "sigmoid"),
        (torch.tanh, "tanh"),
        (nn.ELU(), "elu"),
    ],
    ids=str,
)
def test_an_activation_is_seen_by_its_name(activation, name):
    assert then(lambda b, x: activation(b.bn(b.conv(x)))) == {"bn": name}
    assert then(lambda b, x: activation(b.bn(b.conv(x)) + x)) == {"bn": f"add > {name}"}


def in_place(b, x):
    y = b.bn(b.conv(x))
    y += x
    return F.relu(y)


@pytest.mark.parametrize(
    ("forward", "want"),
    [
        (lambda b, x: b.bn(b.conv(x)), "nothing"),
        (lambda b, x: b.conv(b.bn(x)), "conv2d"),
        (in_place, "add > relu"),
        (lambda b, x: F.relu(torch.add(x, b.bn(x))), "add > relu"),
        (lambda b, x: b.bn(x) + x, "add > nothing"),
        (lambda b, x: F.relu(b.bn(x) + x + x), "add > add > relu"),
        (lambda b, x: F.relu(b.bn(x).flatten(2).transpose(1, 2)), "relu"),
        (lambda b, x: F.relu(F.dropout(b.bn(x), 0.5, training=False) + x), "add > relu"),
        (lambda b, x: F.relu(b.bn(x) + 1), "add of another shape"),
        (lambda b, x: F.relu(b.bn(x) + x[0, 0]), "add of another shape"),
        (lambda b, x: F.relu(b.bn(x) * x), "mul"),
        (lambda b, x: torch.cat([b.bn(x), x]), "cat"),
        (lambda b, x: F.relu(y := b.bn(x)) + y, "add & relu"),
        (lambda b, x: b.conv(y := b.bn(b.conv(x)) + x) + y, "add > add & conv2d"),
        (lambda b, x: b.conv(y := b.bn(x)) + y, "add & conv2d"),
        (lambda b, x: (y := b.bn(x), F.relu(y), F.relu(y))[1], "relu & relu"),
        (lambda b, x: F.relu(b.bn(x)) if b.bn(x).sum() > 0 else x, "relu"),
    ],
)
def test_what_reads_the_output_is_followed(forward, want):
    told = set(then(forward).values())
    assert want in told


def test_a_sum_of_two_belongs_to_one_of_them():
    want = {"bn": "add > relu", "other": "another's residual"}
    assert then(lambda b, x: F.relu(b.bn(b.conv(x)) + b.other(x))) == want
    assert then(lambda b, x: F.relu(b.bn(x) + x + b.other(x))) == {
        "bn": "add > another's residual",
        "other": "add > relu",
    }
    assert then(lambda b, x: b.other(b.bn(x))) == {"bn": "batch_norm", "other": "nothing"}


def test_a_tensor_in_the_place_of_one_that_is_gone_is_another():
    def forward(b, x):
        y = b.conv(b.bn(x))  # the batch norm's output is gone here, and its place is free
        for _ in range(20):
            F.relu(x + 1.0)
        return y

    assert then(forward) == {"bn": "conv2d"}


class GELUActivation(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1 + torch.erf(x / 2**0.5))


class ToyFrozenBatchNorm2d(nn.Module):
    def forward(self, x):
        return x * 2 + 1


class BatchNormAct2d(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x), inplace=True)


def test_classes_that_bring_more_along_are_seen_through():
    for norm, activation, want in (
        (nn.BatchNorm2d(3), GELUActivation(), ("gelu", False)),
        (ToyFrozenBatchNorm2d(), nn.ReLU(), ("relu", True)),
        (BatchNormAct2d(3), nn.Conv2d(3, 3, 1), ("relu", False)),
    ):
        network = nn.Sequential(norm, activation)
        ((call,), error) = follow(network, lambda network=network: network(torch.ones(2, 3, 4, 4)))
        assert (*call.then, call.frozen) == want
        assert error is None
        assert not norm._forward_hooks
        assert not norm._forward_pre_hooks


def test_an_error_ends_the_pass_and_what_was_seen_is_kept():
    def failing(b, x):
        b.other(F.relu(b.bn(x)))
        raise ValueError("no more")

    block = Block(failing)
    calls, error = follow(block, lambda: block(torch.ones(2, 3, 4, 4)))
    assert [(call.layer, call.then) for call in calls] == [("bn", ("relu",)), ("other", ("unknown",))]
    assert str(error) == "no more"
    assert not block.bn._forward_hooks


def test_values_that_are_not_there_are_made_up():
    block = Block(lambda b, x: F.relu(b.bn(x)) if bool(x.isfinite().all()) and not x.sum().item() else None)
    block.to("meta")
    ((call,), error) = follow(block, lambda: block(torch.ones(2, 3, 4, 4, device="meta")))
    assert (call.then, error) == (("relu",), None)


# --- the file -----------------------------------------------------------------


def test_every_shape_is_one_and_its_counts_agree():
    shapes = models.shapes()
    assert len(shapes) > 100
    assert len({each.shape for each in shapes}) == len(shapes)
    for each in shapes:
        assert 2 <= len(each.shape) <= 5
        assert all(isinstance(n, int) and n > 0 for n in each.shape)
        assert each.shape[0] % architectures.BATCH == 0
        assert each.occurs == sum(each.followed_by.values()) >= each.models >= 1
    assert [each.occurs for each in shapes] == sorted((each.occurs for each in shapes), reverse=True)


def test_the_shapes_are_those_of_the_models_that_see_images():
    vision = [model for model in models.counted()["models"] if model["image"]]
    of_models, of_shapes = {}, {}
    for counts, into in [
        *((model["then"], of_models) for model in vision),
        *((each.followed_by, of_shapes) for each in models.shapes()),
    ]:
        for name, times in counts.items():
            into[name] = into.get(name, 0) + times
    assert of_models == of_shapes


def test_what_follows_adds_up_to_the_batch_norms_of_the_models():
    found, counted = models.following(), models.counted()
    left_out = counted["left_out"]
    for model in counted["models"]:
        seen = sum(model["then"].values()) + sum(model["frozen_then"].values())
        # One that is called twice counts twice; what was not called is told among what was left out.
        assert (seen < model["norms"] + model["frozen"]) <= (model["name"] in left_out), model["name"]
    assert sum(each.layers for each in found) == sum(sum(m["then"].values()) for m in counted["models"])
    assert sum(each.frozen for each in found) == sum(
        sum(m["frozen_then"].values()) for m in counted["models"]
    )
    assert all(1 <= each.architectures <= len(counted["models"]) for each in found)
    assert len({model["name"] for model in counted["models"]}) == len(counted["models"])
    assert all(left_out.values())


def test_a_resnet_is_counted_as_it_is_known():
    (resnet,) = (model for model in models.counted()["models"] if model["name"] == "resnet")
    # 16 blocks of three, four of them with a fourth beside them, and one before all
    assert resnet["then"] == {"relu": 33, "add > relu": 16, "another's residual": 4}
    assert (resnet["norms"], resnet["frozen"], resnet["image"]) == (53, 0, [224, 224])


def test_settings_are_counts_of_names():
    found = models.settings()
    assert {"gelu", "relu", "silu"} <= set(found)
    assert all(times > 0 for of in found.values() for times in of.values())
    assert all(architectures.ACTIVATION_SETTING.search(key) for of in found.values() for key in of)


def test_the_file_is_small_and_says_what_it_was_made_with():
    assert models.FILE.stat().st_size < 150_000
    assert list(models.counted()["made_with"]) == list(models.VERSIONS)
    assert models.FILE.read_text(encoding="utf-8") == models.dumps(models.counted())


@pytest.mark.parametrize("k", [1, 2, 12, 40, 10_000])
def test_a_grid_has_different_shapes_of_all_sizes(k):
    grid = models.grid(k)
    fitting = [s for s in models.shapes() if len(s.shape) == 4 and s.bytes <= models.MOST_BYTES]
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
        ("add > add > relu", models.SUM_ALONE, True),
        ("add > conv2d", models.SUM_ALONE, True),
        ("add & relu", models.NONE, False),
        ("another's residual", models.OTHERS_RESIDUAL, False),
        ("nothing", models.NONE, False),
        ("add of another shape", models.NONE, False),
    ):
        followed = models.Followed(then_, 1, 0, 1)
        assert (followed.kind, followed.after_a_residual) == (kind, after), then_
    assert set(KINDS[1:]) <= set(models.ACTIVATIONS)


def test_the_tables_add_up():
    *rows, last = models_page.following_table().rows
    for column in (1, 4):
        assert sum(int(row[column]) for row in rows) == int(last[column])
    assert abs(sum(float(row[2].rstrip(" %")) for row in rows) - 100) < 0.06 * len(rows)
    assert {"relu", "leaky_relu", "relu6", "silu", "gelu", "hardswish", "sigmoid", "tanh", "elu"} <= {
        row[0] for row in rows
    }
    *rows, last = models_page.settings_table().rows
    for column in (1, 3):
        assert sum(int(row[column]) for row in rows) == int(last[column])


def test_the_page_says_what_the_file_says(tmp_path):
    page = tmp_path / "models.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    models_page.write(page)
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8"), (
        f"run: {models.COMMAND} --page docs/models.md"
    )


# --- the command --------------------------------------------------------------


def run(capsys, *arguments):
    """The exit status, and what was printed to both."""
    status = 0
    try:
        models.main(arguments)
    except SystemExit as left:
        status = left.code
    return status, *capsys.readouterr()


def test_without_transformers_the_command_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "find_spec", lambda name: None if name == "transformers" else object())
    told = run(capsys, "--into", str(tmp_path / "models.json"))
    assert told == (2, "", f"{models.COMMAND}: not installed: transformers. Install with: {models.NEEDS}\n")
    assert not (tmp_path / "models.json").exists()


def test_a_folder_or_page_that_is_not_there_is_said_in_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "find_spec", lambda name: object())
    monkeypatch.setattr(models, "count", lambda console: pytest.fail("it was counted"))
    status, _, told = run(capsys, "--into", str(tmp_path / "no" / "models.json"))
    assert (status, told) == (1, f"{models.COMMAND}: {tmp_path / 'no'}: No such folder\n")
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
    monkeypatch.setattr(models.metadata, "version", lambda name: "1.0+cpu")
    monkeypatch.setattr(models, "find_spec", lambda name: object())
    monkeypatch.setattr(
        models, "count", lambda console: models.summary(seen, {("hidden_act", "relu"): 2, ("act", "relu"): 1})
    )
    file = tmp_path / "models.json"
    status, printed, _ = run(capsys, "--into", str(file))
    assert (status, printed) == (0, f"Counted into {file}\n")
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["made_with"] == dict.fromkeys(models.VERSIONS, "1.0")
    assert document["settings"] == {"values": {"relu": {"act": 1, "hidden_act": 2}}}
    assert document["left_out"] == {"two": "3 of 4: ValueError: no", "three": "none by default"}
    monkeypatch.setattr(models, "counted", lambda: document)
    assert models.following() == [("relu", 2, 1, 2), ("add > relu", 1, 0, 1)]
    assert models.shapes() == [((8, 4, 2, 2), 2, 1, {"relu": 1, "add > relu": 1})]


def test_counting_shows_how_far_it_is_and_leaves_the_threads_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(architectures, "folders", lambda: [Path("one"), Path("two")])
    monkeypatch.setattr(
        architectures, "see", lambda folder: seen.append((folder.name, torch.get_num_threads()))
    )
    monkeypatch.setattr(architectures, "settings", dict)
    monkeypatch.setattr(models.metadata, "version", lambda name: "1.0")
    threads = torch.get_num_threads()
    console = Console(file=io.StringIO(), width=100)
    assert models.count(console)["models"] == []
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
