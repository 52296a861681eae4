"""How commands show what they take: usage lines as other tools have them, nothing cut at 80 columns."""

import inspect
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
import typer
from typer.testing import CliRunner

from normwright.cli import app, torchrun

COMMANDS = ["", *(command.callback.__name__.replace("_", "-") for command in app.registered_commands)]
COMMANDS += ["bench", "bench compare"]


def helped(command):
    told = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert told.exit_code == 0
    return told.stdout


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("inspect", "inspect [OPTIONS] FILE"),
        ("lab", "lab [OPTIONS] [NAME]..."),
        ("table", "table [OPTIONS] RECORDS"),
        ("bench", "bench [OPTIONS] [compare OLD NEW]"),
        ("bench compare", "bench compare [OPTIONS] OLD NEW"),
        ("recalibrate", "recalibrate --weights FILE --data NAME --out FILE [OPTIONS] BUILD"),
    ],
)
def test_a_usage_line_shows_what_must_be_given_and_no_braces(command, line):
    told = " ".join(helped(command).split())
    assert f" {line} " in told


def words_of(command):
    """What a command's help is made of: texts and names, its own, its options' and its commands'."""
    at = typer.main.get_command(app)
    for name in command.split():
        at = at.commands[name]
    texts = [at.help or ""]
    with typer.Context(at) as context:
        for param in at.get_params(context):
            texts += [each for each in param.opts if each.startswith("-")]
            texts += [param.metavar or "", getattr(param, "help", None) or ""]
    for name, other in getattr(at, "commands", {}).items():
        texts += [name, (other.help or "").split("\n\n")[0]]
    return Counter(word for text in texts for word in text.replace("`", "").split())


@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_of_the_help_is_longer_than_the_terminal_and_no_word_is_cut(command):
    told = helped(command)
    assert all(len(line) <= 80 for line in told.splitlines())
    assert "…" not in told
    choices = [word for word in told.split() if word.startswith("<")]  # which no text of ours names
    assert all(word.endswith(">") for word in choices if "range" not in word)
    wanted = words_of(command)
    assert sum(wanted.values()) > 5
    missing = wanted - Counter(re.sub(r"[│╭╰─╮╯]", " ", told).split())
    assert not missing, f"cut or gone: {dict(missing)}\n{told}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_shows_no_value(command):
    assert "<bool>" not in helped(command)
    assert "BOOLEAN" not in helped(command)


def test_paragraphs_flow():
    told = [line.strip() for line in helped("inspect").splitlines()]
    first = next(k for k, line in enumerate(told) if line.startswith("No code is needed"))
    assert all(len(line) > 60 for line in told[first : first + 2])


def test_every_command_is_looked_at():
    assert len(COMMANDS) == len(set(COMMANDS)) >= 16


# --- whether others tell ------------------------------------------------------------------------------------------

TYPO = """
import sys
sys.modules["torch"] = None  # as where it is not installed
from normwright.cli import app, torchrun
torchrun._MOMENT = 0.0
app(["demo", "--typo"])
"""


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        pytest.param(["RANK"], "No such option", id="a scheduler's process, which stands alone"),
        pytest.param(torchrun._NEEDED, "", id="torchrun's, whose rank 0 tells"),
    ],
)
def test_a_typo_on_another_rank_than_0_asks_for_no_torch(variables, words):
    others = {name: value for name, value in os.environ.items() if name not in torchrun._NEEDED}
    environment = {**others, **dict.fromkeys(variables, "1")}
    line = [sys.executable, "-c", TYPO]
    ended = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2, ended.stderr
    assert words in ended.stderr
    assert bool(ended.stderr) == bool(words)
    assert "Traceback" not in ended.stderr


def test_what_must_be_set_is_what_torchrun_sets():
    pytest.importorskip("torch", reason="compared with torch's own launcher")
    from torch.distributed.elastic.agent.server import local_elastic_agent

    source = inspect.getsource(local_elastic_agent)
    assert [name for name in torchrun._NEEDED if f'"{name}"' not in source] == []
