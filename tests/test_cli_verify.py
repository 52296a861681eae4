"""`torchrun ... -m normwright verify-sync`: what it prints; how every rank ends; one line for what is missing."""

import os
import re
import socket
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

import normwright.torch as nw
from normwright.cli import app, torchrun, verify
from normwright.report import records
from normwright.torch.distributed import launched, peers

ROOT = Path(__file__).parent.parent
HAS_GLOO = dist.is_available() and dist.is_gloo_available()
pytestmark = pytest.mark.skipif(not HAS_GLOO, reason="this torch was built without gloo")
cli = CliRunner()
GATHER = peers.Peers.gather

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}


def port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def started(monkeypatch):
    """This process, as if torchrun had started it as rank 0 of so many."""

    def as_rank_0(size):
        facts = {
            "RANK": 0,
            "LOCAL_RANK": 0,
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_PORT": port(),
        }
        for name, value in {**facts, "MASTER_ADDR": "127.0.0.1"}.items():
            monkeypatch.setenv(name, str(value))

    return as_rank_0


def test_two_processes_under_torchrun_prove_it_and_rank_0_tells(tmp_path):
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line += ["-m", "normwright", "verify-sync", "--json", "found.json"]
    ran = subprocess.run(line, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    backend = "cpu, gloo" if torch.cuda.device_count() < 2 else "cuda, nccl"
    headline = f"2 ranks ({backend}) equal one process on the joined batch: 28 of 28 cases hold."
    assert ran.stdout.startswith(headline + "\n")
    assert ran.stdout.count("equal one process") == 1
    assert len(re.findall(r"^  (?:b?float\d+) .* yes$", ran.stdout, re.M)) == 28
    found, about = records.read(tmp_path / "found.json")
    assert (about["experiment"], about["ok"], about["ranks"]) == ("verify-sync", True, 2)
    shares = [record.value for record in found if record.unit == "share of what is allowed"]
    assert len(shares) > 28 * 7
    assert all(0 <= share <= 1 for share in shares)


def as_large_as_the_others(self, *moments):
    rows = GATHER(self, *moments).clone()
    rows[:, 0] = rows[:, 0].mean()
    return rows


@contextmanager
def together(rank):
    """As if torchrun had started the processes, which have their group already."""
    there = mock.patch.object(launched, "everyone", return_value=nullcontext(rank))
    with mock.patch.object(verify, "is_launched", return_value=True), there:
        yield


def with_a_wrong_merge(rank):
    """The command on processes that have their group already."""
    wrong = mock.patch.object(peers.Peers, "gather", as_large_as_the_others)
    with wrong, together(rank):
        ran = cli.invoke(app, ["verify-sync"])
    return ran.exit_code, ran.stdout


def test_a_wrong_merge_ends_in_status_1_on_every_rank_and_is_told_once(processes):
    (first, words), (second, silence) = processes.run(with_a_wrong_merge)
    assert (first, second) == (1, 1)
    assert words.startswith("2 ranks (cpu, gloo) do NOT equal one process on the joined batch: ")
    assert re.search(r"^FAILS: float64, NCL, uneven, add, relu: y on rank [01] is off by 0\.", words, re.M)
    assert silence == ""


def test_without_torchrun_it_says_what_to_type(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    ran = cli.invoke(app, ["verify-sync"])
    assert ran.exit_code == 2
    assert ran.stderr == (
        "normwright verify-sync: expected to be started by torchrun, got no ranks. "
        "Type: torchrun --nproc-per-node 2 -m normwright verify-sync\n"
    )


def test_one_process_says_that_nothing_was_synchronized(started):
    started(1)
    ran = cli.invoke(app, ["verify-sync", "--backend", "gloo"])
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.startswith("1 rank (cpu, gloo): nothing was synchronized. ")
    assert not dist.is_initialized()


def test_nccl_without_a_device_is_refused_with_the_rank(started, monkeypatch):
    started(1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    ran = cli.invoke(app, ["verify-sync", "--backend", "nccl"])
    assert ran.exit_code == 2
    expected = "torchrun: expected a CUDA device for every rank with --backend nccl, got none on rank 0."
    assert ran.stderr == f"normwright verify-sync: {expected}\n"
    assert not dist.is_initialized()


def test_a_rank_that_does_not_start_ends_in_one_line(started, monkeypatch):
    started(2)
    monkeypatch.setattr(launched, "_LATE", timedelta(seconds=1))
    ran = cli.invoke(app, ["verify-sync"])
    assert ran.exit_code == 1
    expected = (
        "normwright verify-sync: torchrun: expected all 2 ranks to start within 1 seconds, got on rank 0: "
    )
    assert ran.stderr.startswith(expected)
    assert ran.stderr.count("\n") == 1


# --- what is wrong on every rank is told by rank 0 alone --------------------------------------------------------


def with_records_at(rank, path):
    """The command on processes that have their group already, which never come to the work."""
    worked = mock.patch.object(nw, "verify_sync", side_effect=AssertionError("the work was begun"))
    with worked, together(rank):
        ran = cli.invoke(app, ["verify-sync", "--json", str(path)])
    return ran.exit_code, ran.output


@pytest.mark.parametrize("name", ["none/found.json", "file/found.json"])
def test_a_file_that_cannot_be_written_ends_every_rank_before_the_work_and_is_told_once(
    processes, tmp_path, name
):
    (tmp_path / "file").write_text("")
    (first, words), *others = processes.run(with_records_at, tmp_path / name)
    assert first == 2
    assert words.startswith(f"normwright verify-sync: {(tmp_path / name).parent}: ")
    assert words.count("\n") == 1
    assert others == [(2, "")] * len(others)
    assert others
    assert not (tmp_path / "none").exists()


WRONG = [["verify-sync", "--jsn", "x"], ["verify-snc"], ["verify-sync", "--backend", "mpi"]]


@pytest.mark.parametrize("line", WRONG, ids=" ".join)
def test_a_mistyped_line_is_told_by_rank_0_and_ends_all_in_one_code(started, monkeypatch, line):
    started(2)
    monkeypatch.setattr(torchrun, "_MOMENT", 0.0)
    ran = cli.invoke(app, line)
    assert (ran.exit_code, bool(ran.stderr)) == (2, True)
    monkeypatch.setenv("RANK", "1")
    ran = cli.invoke(app, line)
    assert (ran.exit_code, ran.output) == (2, "")


def test_a_process_of_a_scheduler_that_stands_alone_tells_its_own_mistakes(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    ran = cli.invoke(app, WRONG[0])
    assert ran.exit_code == 2
    assert "--jsn" in ran.stderr


@pytest.mark.parametrize(("rank", "words"), [("0", "normwright verify-sync: no.\n"), ("1", "")])
def test_what_cannot_be_tried_on_any_rank_is_told_once(started, monkeypatch, rank, words):
    started(2)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(torchrun, "_MOMENT", 0.0)
    monkeypatch.setattr(launched, "everyone", mock.Mock(side_effect=nw.ShapeError("no.")))
    ran = cli.invoke(app, ["verify-sync"])
    assert (ran.exit_code, ran.output) == (2, words)
