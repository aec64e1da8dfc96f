"""Ctrl-C, in a process of its own with a child of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import psutil
import pytest

ADVICE = "go on with: cwm-rl resume somewhere"
PROGRAM = f"""
import asyncio, subprocess, sys
from rl.interrupts import run_interruptible

async def work(stubborn):
    child = subprocess.Popen(["sleep", "300"])
    print(child.pid, flush=True)
    try:
        await asyncio.sleep({{seconds}})
        return "done"
    finally:
        if stubborn:
            await asyncio.sleep(300)
        child.kill()
        child.wait()
        print("tidied", flush=True)

print("result", run_interruptible(work({{stubborn}}), {ADVICE!r}))
"""


@contextmanager
def started(*, stubborn: bool, seconds: float = 300) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """The program and its child's id; both gone on leaving."""
    source = PROGRAM.format(stubborn=stubborn, seconds=seconds)
    process = subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    child = 0
    try:
        child = int(line_of(process.stdout))
        yield process, child
    finally:
        for pid in (process.pid, child):
            if pid and alive(pid):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=20)


def line_of(stream: IO[str] | None) -> str:
    """Not a byte more: what the stream had buffered, `communicate` would never see."""
    assert stream is not None
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(stream.fileno(), 1)):
        line += byte
    return line.decode()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pid: int) -> bool:
    """Soon: what was killed is there until it has a turn on a busy machine."""
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_once_ends_in_good_order_and_says_how_to_go_on(number: signal.Signals) -> None:
    with started(stubborn=False) as (process, child):
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert out.splitlines() == ["tidied", "result None"]
        assert err.splitlines() == ["stopping; once more ends it at once", ADVICE]
        assert process.returncode == 0  # the caller goes on, and chooses the exit code
        assert gone(child)


def test_twice_ends_at_once_and_leaves_nothing() -> None:
    with started(stubborn=True) as (process, child):
        process.send_signal(signal.SIGINT)
        assert "stopping" in line_of(process.stderr)
        assert alive(child)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=5)  # less than the grace of one
        assert (out, err.splitlines()) == ("", [ADVICE])
        assert process.returncode == 130
        assert gone(child)


def test_work_that_ends_by_itself_is_not_disturbed() -> None:
    with started(stubborn=False, seconds=0) as (process, child):
        out, err = process.communicate(timeout=20)
        assert (out.splitlines(), err) == (["tidied", "result done"], "")
        assert gone(child)
