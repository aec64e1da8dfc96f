"""Numbers on their way to somebody's tracker: all of them, once, and never at the run's cost."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import closed_group, new_ledger

from rl import trackers
from rl.ledger import Ledger

SOURCE = """
import json, os
_file = open(os.environ["TOLD"], "a")
def init(**options): print(json.dumps(options["name"]), file=_file, flush=True)
def log(values, step):
    if os.environ.get("BROKEN"): raise OSError("the tracker's server is down")
    print(json.dumps([step, values["reward/math"]]), file=_file, flush=True)
def finish(): print('"finished"', file=_file, flush=True)
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    (tmp_path / "run").mkdir()
    for ledger in new_ledger(tmp_path / "run"):
        for _ in range(3):
            step(ledger)
        yield ledger


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tracker's package with trackio's interface, on the path of every process; what it was told."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/trackio.py").write_text(SOURCE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'lib'}:{Path(__file__).parents[2]}")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    return tmp_path / "told"


def step(ledger: Ledger) -> None:
    group = closed_group(ledger, 1.0, -1.0)
    stats = {"reward": {"math": ledger.step / 10}, "grad_norm": float("nan")}
    ledger.commit(ledger.step + 1, [member.episode.key for member in group.members], stats)


def told(file: Path) -> list[object]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def track(run: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "rl.cli", "track", str(run), *arguments]
    return subprocess.run(command, text=True, capture_output=True, timeout=100)


def test_every_step_is_told_once(ledger: Ledger, tmp_path: Path, library: Path) -> None:
    ledger.release()
    done = track(tmp_path / "run", "--to", "trackio", "--follow")
    assert done.returncode == 0, done.stderr
    assert told(library) == ["run", [1, 0.0], [2, 0.1], [3, 0.2], "finished"]


@pytest.mark.slow
def test_it_follows_a_run_to_its_end(ledger: Ledger, tmp_path: Path, library: Path) -> None:
    (follower,) = trackers.start(tmp_path / "run", ["trackio"])
    deadline = time.monotonic() + 60
    while len(told(library)) < 4:
        assert time.monotonic() < deadline, (tmp_path / "run/logs/tracker-trackio.log").read_text()
        time.sleep(0.1)
    step(ledger)
    ledger.release()
    assert follower.wait(60) == 0
    assert told(library)[-2:] == [[4, 0.3], "finished"]


def test_one_that_fails_is_a_sentence_and_no_matter_of_the_run(
    ledger: Ledger, tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "1")
    done = track(tmp_path / "run", "--to", "trackio")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "trackio failed: OSError: the tracker's server is down" in done.stderr
    step(ledger)  # the writer has not noticed


def test_one_that_is_not_installed_is_named(ledger: Ledger, tmp_path: Path) -> None:
    done = track(tmp_path / "run", "--to", "wandb")
    assert done.returncode == 1
    assert done.stderr == f"cwm-rl: wandb is not installed: {sys.executable} -m pip install wandb\n"
