"""torch's layers and ours side by side: what the table says of both, and the page that shows it."""

import io
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import normwright.torch as nw
from normwright.bench.side_by_side import behaviour
from normwright.bench.side_by_side.situations import SITUATIONS, Situation
from normwright.cli import app
from normwright.kernels import NATIVE
from normwright.report import markdown

PAGE = Path(__file__).parent.parent / "docs" / "pytorch.md"
TEXT = PAGE.read_text(encoding="utf-8")
WANT = {  # what torch's layers do, and what ours do; a pattern where other versions or machines may differ
    "checkpointed": (
        "counted twice; buffers not as in the plain run",
        "counted once; buffers as in the plain run",
    ),
    "quiet": ("no such scope", "`no_stat_update`: statistics stay; in torch's layers: statistics stay"),
    "frozen": ("`.eval()`: statistics move", "`freeze`: statistics stay"),
    "not_finite": ("NaN", "finite"),
    "batch_of_one": (
        re.compile(r"ValueError: Expected more than 1 value per channel when training.*; counted once"),
        re.compile(
            r"ShapeError: normwright\.torch\.BatchNorm1d: expected more than one value.*; not counted"
        ),
    ),
    "batch_of_one_wanted": ("no such option", '`on_degenerate="running"`: y finite, statistics stay'),
    "half_type": ("bfloat16", "float32"),
    # A tenth of what is missing is lost where it is below half of a last place, 1/64 at 3: from 0.08 on, or before
    "half_stalls": (re.compile(r"0\.[01]\d* and 0\.[01]\d*"), "less than 1e-4"),
    # Half of a last place of bfloat16 is 2^-7 between 2 and 4: of y, and of torch's mean beside a deviation of 0.1
    "half_throughout": (re.compile(r"\de-02"), re.compile("[78]e-03")),
    "mixed": (re.compile("RuntimeError: mixed dtype.*"), "y is float64"),
    # At 10^4 a float32 is known to 1/1000; torch adds up 16384 of them. Ours: 8 * 2^-24 of values below 5
    "far_mean": (re.compile(r"\de-0[123]"), re.compile(r"\de-0[67]")),
    "thread_count": ("other bits", "the same bits"),
    "channels_last_axis": (
        "RuntimeError: running_mean should contain 3 elements not 4",
        "`channel_dim=-1`: y of (8, 3, 4)",
    ),
    "vmapped": (
        re.compile("RuntimeError: .*running_mean.*"),
        "`batch_norm_stats`: y and statistics as of each batch alone",
    ),
    "jacrev": (re.compile("RuntimeError: .*in-place.*"), "`batch_norm_stats`: right"),
    "cumulative_compiled": (
        re.compile(r"\w+: .*data-dependent.*"),
        "compiles; statistics as uncompiled",
    ),
    "compiled_in_checkpoint": ("counted twice", "counted twice"),
    "batch_sizes": ("2 programs", "2 programs"),
    "traced": ("the layer is a leaf", "the layer is a leaf"),
    "second_order": ("right", "right"),
    "subclass": ("`convert_sync_batchnorm`: ReLU lost", "`convert`: ReLU kept"),
    "decay": ("`model.parameters()`: 0.9", "`param_groups`: 1.0"),
    "states": ("loads", "loads"),
    "copies": ("equal", "equal"),
}
OF_KERNELS = {"far_mean", "thread_count"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the command prints, the page it writes, and whether it left the process as it was."""
    page = tmp_path_factory.mktemp("made") / "page.md"
    page.write_text(TEXT, encoding="utf-8")
    console = Console(file=io.StringIO(), width=400)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(3)  # as no situation has it
    try:
        behaviour.run(into=page, console=console)
        same = torch.get_num_threads() == 3 and torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
    return console.file.getvalue(), page.read_text(encoding="utf-8"), same


def cells(text):
    """The cells of the table in a page, by the titles of the rows."""
    table = text.partition("<!-- behaviour:begin -->")[2].partition("<!-- behaviour:end -->")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| [")]
    return {title: (torchs, ours) for title, torchs, ours in rows}


@pytest.mark.parametrize("name", WANT)
def test_each_door_does_what_is_said_of_it(name, made):
    (situation,) = (each for each in SITUATIONS if each.seen.__name__ == name)
    if name in OF_KERNELS and not NATIVE:
        pytest.skip("this package was built without native kernels")
    got = cells(made[1])[f"[{situation.title}](#{situation.section})"]
    for words, want in zip(got, WANT[name], strict=True):
        assert words == want if isinstance(want, str) else want.fullmatch(words), words


def test_every_situation_is_a_row_and_is_held():
    assert [each.seen.__name__ for each in SITUATIONS] == list(WANT)
    assert len({each.title for each in SITUATIONS}) == len(SITUATIONS)


def test_the_table_of_the_page_is_what_the_tool_makes_now(made):
    told = re.search(r"^Made by `normwright behaviour`: .* torch ([\d.]+)\.$", TEXT, re.M)
    assert told, "the page does not say what its table was made with"
    if not NATIVE or told[1] != torch.__version__.partition("+")[0]:
        pytest.skip(f"the page was made with native kernels and torch {told[1]}")
    assert made[1] == TEXT, "run: normwright behaviour --into docs/pytorch.md"


def test_the_terminal_shows_the_same_without_marks(made):
    printed, page, _ = made
    for title, row in cells(page).items():
        words = [title.partition("](#")[0].removeprefix("["), *row]
        (line,) = (
            line for line in printed.splitlines() if line.startswith(f"  {words[0].replace('`', '')}  ")
        )
        assert re.split(r"  +", line.strip()) == [word.replace("`", "") for word in words]


def test_nothing_is_changed_in_the_process(made):
    assert made[2]


def test_a_situation_draws_the_same_numbers_and_keeps_its_warnings():
    def seen(door):
        warnings.warn("torch's own", stacklevel=1)
        return str(torch.randn(1).item())

    told = set()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("error")
        for seed in (1, 2):
            torch.manual_seed(seed)
            told.add(Situation("", "", seen).tell(nn))
    assert len(told) == 1


def test_a_situation_that_fails_is_told_in_the_first_words_of_its_error():
    def failing(door):
        raise ValueError("no such thing (here, or there): seen\nNor elsewhere. Use another.")

    def long(door):
        raise KeyError("word " * 100)

    assert Situation("", "", failing).tell(nn) == "ValueError: no such thing: seen"
    words = Situation("", "", long).tell(nn)
    assert words.endswith("word …")
    assert 80 < len(words) < 120


# --- the page -----------------------------------------------------------


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^## (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_row_and_link_leads_to_a_section():
    assert {each.section for each in SITUATIONS} <= anchors(TEXT)
    linked = set(re.findall(r"\]\(#([^)]*)\)", TEXT))
    assert len(linked) > 10
    assert linked <= anchors(TEXT)


BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)


def expected(block):
    """What a block's prints print: the comment behind each, or the lines of comment below it."""
    found = []
    lines = block.splitlines()
    for k, line in enumerate(lines):
        if line.lstrip().startswith("print("):
            _, _, behind = line.partition(")  # ")
            below = []
            while not behind and lines[k + 1 + len(below) :] and re.match(r" *# ", lines[k + 1 + len(below)]):
                below.append(lines[k + 1 + len(below)].strip(" #"))
            found.append(" ".join([behind, *below]).strip())
    return found


@pytest.mark.skipif(not NATIVE, reason="the page shows numbers of the native kernels")
def test_every_example_of_the_page_runs_and_prints_what_it_says(tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    script = tmp_path / "page.py"
    script.write_text("\n".join(BLOCKS), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    want = [line for block in BLOCKS for line in expected(block)]
    assert len(want) > 30
    assert all(want), "a print without what it prints"
    assert ran.stdout.splitlines() == want
    assert (tmp_path / "model.onnx").exists()


def test_every_section_about_a_feature_has_an_example():
    sections = re.split(r"^## ", TEXT, flags=re.M)
    without = {each.partition("\n")[0] for each in sections if "```python" not in each}
    assert without == {"Where the defaults differ from torch's", "Side by side", "Limits"}


# --- rows of the list of differences that no other test holds --------------------------------


def graph(layer):
    program = torch.export.export(layer.train(), (torch.randn(8, 4),))
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_a_training_graph_carries_the_guard_unless_torchs_way_is_asked_for():
    want = graph(nn.BatchNorm1d(4))
    assert want == ["aten.add_.Tensor", "aten.batch_norm.default"]
    assert {"aten.isfinite.default", "aten.where.self", "aten.copy_.default"} <= set(graph(nw.BatchNorm1d(4)))
    assert sorted(graph(nw.BatchNorm1d(4, on_nonfinite="propagate"))) == want
    assert sorted(graph(nw.convert(nn.BatchNorm1d(4), strict_torch=True))) == want


@pytest.mark.skipif(not NATIVE, reason="this package was built without native kernels")
def test_the_profiler_and_hooks_on_saved_tensors_see_what_the_list_says():
    seen = {}
    for layer in (nn.BatchNorm1d(4), nw.BatchNorm1d(4)):
        x, saved = torch.randn(8, 4, requires_grad=True), []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=saved: s.append(t.shape) or t, lambda t: t
        )
        with torch.autograd.profiler.profile() as profile, hooks:
            layer(x).sum().backward()
        names = {event.name for event in profile.function_events}
        known = {"aten::native_batch_norm", "_Train", "_TrainBackward"}
        seen[type(layer)] = names & known, [tuple(shape) for shape in saved]
    assert seen == {
        nn.BatchNorm1d: ({"aten::native_batch_norm"}, [(8, 4)] + [(4,)] * 5),
        nw.BatchNorm1d: ({"_Train", "_TrainBackward"}, [(8, 4), (4,)]),
    }


def test_strict_reaches_layers_that_are_ours_already():
    layer = nw.BatchNorm1d(4, dtype=torch.bfloat16)
    nw.convert(layer, strict_torch=True)
    assert (layer.strict_torch, layer.on_nonfinite) == (True, "propagate")
    assert layer.running_mean.dtype is torch.float32
    layer(torch.full((8, 4), torch.nan))
    assert layer.running_mean.isnan().all()
    assert type(layer) is nw.BatchNorm1d


# --- the limits that the page owns up to ------------------------------------------------


def test_torchs_converter_to_synchronized_layers_loses_two_options_without_a_word_and_is_stopped_at_others():
    layer = nw.BatchNorm1d(4, on_nonfinite="raise", on_degenerate="running")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    assert type(synchronized) is nn.SyncBatchNorm
    assert "on_" not in repr(synchronized)
    for lost in (nw.freeze(nw.BatchNorm1d(4)), nw.BatchNorm1d(4, channel_dim=-1)):
        with pytest.raises(nw.ShapeError, match=r"Use normwright\.torch\.convert\(model, sync='world'\)"):
            nn.SyncBatchNorm.convert_sync_batchnorm(lost)


def test_a_convolution_takes_in_a_norm_of_the_last_axis_wrongly():
    torch.manual_seed(0)
    conv, norm, x = (
        nn.Conv2d(3, 6, 1).eval(),
        nw.BatchNorm2d(6, channel_dim=-1).eval(),
        torch.randn(2, 3, 5, 6),
    )
    norm.running_mean.copy_(torch.arange(6.0))
    fused = nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
    assert (fused(x) - norm(conv(x))).abs().max() > 1  # means up to 5 are taken from the wrong values


def test_an_averaged_counter_is_no_count():
    for norm in (nw, nn):
        model = norm.BatchNorm1d(4)
        average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
        for _ in range(4):
            model(torch.randn(8, 4))
            average.update_parameters(model)
        assert (model.num_batches_tracked.item(), average.module.num_batches_tracked.item()) == (4, 1)


# --- the command -----------------------------------------------------------------


cli = CliRunner()


def test_a_file_without_the_markers_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(behaviour, "measure", lambda console: pytest.fail("something was done"))
    (tmp_path / "page.md").write_text("nothing here")
    told = cli.invoke(app, ["behaviour", "--into", str(tmp_path / "page.md")])
    assert told.exit_code == 1
    assert told.stderr.startswith(f"normwright behaviour: into {tmp_path / 'page.md'}: ")
    assert "behaviour:begin" in told.stderr
    assert told.stderr.count("\n") == 1
    assert (tmp_path / "page.md").read_text() == "nothing here"


def test_a_file_that_is_not_there_is_said_in_one_line(tmp_path):
    told = cli.invoke(app, ["behaviour", "--into", str(tmp_path / "page.md")])
    assert told.exit_code == 1
    assert told.stderr == f"normwright behaviour: {tmp_path / 'page.md'}: No such file or directory\n"


def test_the_command_prints_the_table_and_puts_it_between_the_markers(tmp_path, monkeypatch):
    rows = [(str(k), f"`{k}`") for k in range(len(SITUATIONS))]
    monkeypatch.setattr(behaviour, "measure", lambda console: rows)
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- behaviour:begin --><!-- behaviour:end -->\nz", encoding="utf-8")
    told = cli.invoke(app, ["behaviour", "--into", str(page)], env={"COLUMNS": "200"})
    assert told.exit_code == 0, told.output
    assert SITUATIONS[0].title.replace("`", "") in told.stdout
    assert f"The table: {page}" in told.stdout
    assert page.read_text(encoding="utf-8") == markdown.put_into(
        "a\n<!-- behaviour:begin --><!-- behaviour:end -->\nz", "behaviour", behaviour.as_markdown(rows)
    )
    assert f"[{SITUATIONS[1].title}](#{SITUATIONS[1].section}) | 1 | `1` |" in page.read_text(
        encoding="utf-8"
    )


def test_without_torch_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    told = cli.invoke(app, ["behaviour"])
    assert told.exit_code == 2
    assert told.stderr == "normwright: not installed: torch. Install with: pip install 'normwright[torch]'\n"


def test_an_interrupted_command_ends_without_a_traceback(monkeypatch):
    def interrupted(console):
        raise KeyboardInterrupt

    monkeypatch.setattr(behaviour, "measure", interrupted)
    told = cli.invoke(app, ["behaviour"])
    assert told.exit_code == 130
    assert told.stderr == "normwright behaviour: stopped; nothing was written.\n"
