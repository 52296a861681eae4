"""How commands show what they take: usage lines as other tools have them, nothing cut at 80 columns."""

import pytest
from typer.testing import CliRunner

from normwright.cli import app

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


@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_of_the_help_is_longer_than_the_terminal_and_no_word_is_cut(command):
    told = helped(command)
    assert all(len(line) <= 80 for line in told.splitlines())
    assert "…" not in told
    choices = [word for word in told.split() if word.startswith("<")]
    assert all(word.endswith(">") for word in choices if "range" not in word)


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
