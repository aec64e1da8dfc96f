"""Real runs as a user starts them: the command line in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from rl.ledger import Reader
from rl.ledger.audit import audit

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "deploy/configs/five-steps.toml"


class Command:
    """A running `cwm-rl`, whose output goes to a file."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self._log = log
        self._seen: dict[int, psutil.Process] = {}

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str, seconds: float = 300) -> None:
        """Until `text` was printed; fails with the whole output if the process ends or the time is over first."""
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert self.process.poll() is None, f"ended before it printed '{text}':\n{self.output}"
            assert time.monotonic() < deadline, f"did not print '{text}' in {seconds} s:\n{self.output}"
            time.sleep(0.1)

    def finish(self, seconds: float = 400) -> int:
        """The exit code."""
        return self.process.wait(seconds)

    def tree(self) -> list[psutil.Process]:
        """The process and all below it."""
        own = psutil.Process(self.process.pid)
        found = [own, *own.children(recursive=True)]
        self._seen |= {one.pid: one for one in found}
        return found

    def kill(self) -> None:
        """Whatever is left of it, also of what it left behind where somebody looked."""
        if self.process.poll() is None:
            self.tree()
        for one in self._seen.values():
            with suppress(psutil.NoSuchProcess):
                one.kill()  # psutil knows one by its start, too: never another's of the same number
        self.process.wait(10)

    def find(self, title: str) -> psutil.Process:
        """The process below it whose title begins with `title`, such as `ray::Learner`."""
        return next(process for process in self.tree() if " ".join(process.cmdline()).startswith(title))


@contextmanager
def cwm_rl(
    log: Path, *arguments: str, env: dict[str, str] | None = None, before: Sequence[str] = ()
) -> Iterator[Command]:
    """Start a command, by that `before` it; whatever is left of it at the end is killed."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*before, sys.executable, "-m", "rl.cli", *arguments],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | (env or {}),
        )
    command = Command(process, log)
    try:
        yield command
    finally:
        command.kill()


def train(runs: Path, *settings: str) -> tuple[str, ...]:
    """Arguments of four steps in `runs`/run, in small batches: what they show does not hang on their size."""
    small = ("--set", "run.steps=4", "--set", "algorithm.token_budget=2000", "--set", "rollout.slots=16")
    return ("train", CONFIG, "--set", f"run.directory={runs}", "--set", "run.id=run", *small, *settings)


def assert_whole(directory: Path, steps: int) -> None:
    """The run took its steps, and its ledger adds up."""
    with Reader(directory) as reader:
        assert reader.step == steps
    found = audit(directory)
    assert found.ok, found.problems


def gone(processes: list[psutil.Process], seconds: float = 30) -> list[psutil.Process]:
    """Those that still live after at most `seconds`; what only waits to be reaped by its parent is gone."""
    deadline = time.monotonic() + seconds
    while (alive := [p for p in processes if _lives(p)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return alive


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def report_of(directory: Path) -> dict[str, Any]:
    """The report of a finished run."""
    return dict(json.loads((directory / "report.json").read_text()))
