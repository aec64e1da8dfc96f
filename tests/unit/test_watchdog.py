"""What a driver that is killed leaves below it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from rollout_workers.scratch import PUBLISHED, SHARED_MEMORY

pytestmark = pytest.mark.slow
DRIVER = """
import subprocess, sys, time
from pathlib import Path
from rl.watchdog import watched
from rollout_workers.scratch import PUBLISHED, SHARED_MEMORY, scratch
place = Path(sys.argv[1])
with scratch(PUBLISHED, SHARED_MEMORY), watched(place, place.parent / "logs", "gone without a word"):
    below = subprocess.Popen(["sleep", "300"], start_new_session=True)
    time.sleep(2.5)  # longer than the watchdog looks away
    print(below.pid, flush=True)
    time.sleep(60 if sys.argv[2] == "killed" else 0)
"""


@contextmanager
def _driver(scratch: Path, how: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A driver, and the id of what it started; both are gone afterwards."""
    printed = scratch / "session_latest" / "logs"
    printed.mkdir(parents=True)
    (printed / "worker-1.err").write_text("what it printed")
    command = [sys.executable, "-c", DRIVER, str(scratch), how]
    said = (scratch.parent / "said").open("w")
    with said, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as driver:
        assert driver.stdout is not None
        below = int(driver.stdout.readline())
        try:
            yield driver, below
        finally:
            driver.kill()
            with suppress(ProcessLookupError):
                os.kill(below, signal.SIGKILL)


def _assert_gone(driver: int, pid: int, scratch: Path) -> None:
    deadline = time.monotonic() + 15
    while (
        (psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie")
        or scratch.exists()
        or list(SHARED_MEMORY.glob(f"{PUBLISHED}-{driver}-*"))
    ):
        assert time.monotonic() < deadline, "the watchdog left something"
        time.sleep(0.1)


def test_a_killed_driver_leaves_nothing_but_last_words_and_logs(tmp_path: Path) -> None:
    with _driver(tmp_path / "scratch", "killed") as (driver, below):
        driver.send_signal(signal.SIGKILL)
        driver.wait(10)
        _assert_gone(driver.pid, below, tmp_path / "scratch")
    assert (tmp_path / "said").read_text() == "gone without a word\n"
    assert (tmp_path / "logs" / "worker-1.err").read_text() == "what it printed"


def test_neither_does_one_that_ends(tmp_path: Path) -> None:
    with _driver(tmp_path / "scratch", "ends") as (driver, below):
        assert driver.wait(30) == 0
        _assert_gone(driver.pid, below, tmp_path / "scratch")
    assert (tmp_path / "said").read_text() == ""
    assert (tmp_path / "logs" / "worker-1.err").exists()
