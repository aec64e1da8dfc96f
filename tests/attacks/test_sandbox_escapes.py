"""Model-written code against its sandbox. Whatever it does, it is contained, and the sandbox answers afterwards."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytest_asyncio

from rollout_workers.sandbox.docker import Docker
from rollout_workers.sandbox.select import Backend, choose
from rollout_workers.sandbox.selftest import ATTEMPTS, Attempt, try_one
from verifiers.sandbox import Sandbox, Sandboxes, SandboxUnavailable

ROOT = Path(__file__).parents[2]


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[
        pytest.param("bubblewrap", marks=pytest.mark.required),
        pytest.param("docker", marks=[pytest.mark.slow, pytest.mark.required]),
        pytest.param("gvisor", marks=[pytest.mark.slow, pytest.mark.required]),
    ],
)
async def sandboxes(request: pytest.FixtureRequest) -> Sandboxes:
    backend: Backend = request.param
    try:
        return (await choose(backend))[0]
    except SandboxUnavailable as error:
        pytest.skip(str(error))


async def alive(box: Sandbox) -> bool:
    return (await box.exec(["echo", "alive"], timeout=30)).stdout == b"alive\n"


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=[one.name for one in ATTEMPTS])
async def test_every_attempt_is_contained(sandboxes: Sandboxes, attempt: Attempt) -> None:
    found = await try_one(attempt, sandboxes)
    assert found.contained, found.seen


async def test_nobody_hides_from_the_memory_killer(sandboxes: Sandboxes) -> None:
    if isinstance(sandboxes, Docker) and sandboxes.runtime is not None:
        return  # gVisor's own kernel is killed as a whole: inside there is nobody to hide from
    async with sandboxes.open() as box:
        assert (await box.exec("echo -1000 > /proc/self/oom_score_adj")).exit_code != 0


MEDDLE = r"""
import ctypes, os, subprocess, time
time.sleep(0.3)  # the next command's process is there by now
subprocess.Popen(["sleep", "1000"], start_new_session=True)  # and somebody outlives this one
trace = ctypes.CDLL(None, use_errno=True).ptrace
others = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid not in (1, os.getpid())]
waiting = [pid for pid in others if os.stat(f"/proc/{pid}").st_uid == 0]
reached = []
for pid in waiting:
    for way in (
        lambda: os.kill(pid, 9), lambda: os.kill(pid, 19), lambda: os.listdir(f"/proc/{pid}/fd"),
        lambda: open(f"/proc/{pid}/mem", "rb"), lambda: open(f"/proc/{pid}/environ", "rb").read(),
        lambda: open(f"/proc/{pid}/oom_score_adj", "w"), lambda: os.setpriority(os.PRIO_PROCESS, pid, 19),
        lambda: os.sched_setaffinity(pid, {0}), lambda: 1 / (1 + trace(16, pid, 0, 0)),
    ):
        try:
            way()
            reached.append(pid)
        except (OSError, ZeroDivisionError):
            pass
print(len(waiting), reached)
"""


async def test_a_command_cannot_reach_the_process_that_waits_for_the_next(sandboxes: Sandboxes) -> None:
    if isinstance(sandboxes, Docker) and sandboxes.runtime is not None:
        return  # in gVisor it waits only while no command runs
    if os.geteuid() != 0:
        pytest.skip("where the agent is not root, it waits only while no command runs")
    async with sandboxes.open() as box:
        for _ in range(3):  # before, nobody expects another command
            await box.exec(["true"])
        for _ in range(2):
            result = await box.exec(["python3", "-c", MEDDLE], timeout=30)
            assert (result.stdout, result.stderr) == (b"1 []\n", b"")
        left = await box.exec('for one in /proc/[0-9]*; do tr "\\0" " " < $one/cmdline; done 2>/dev/null')
        assert b"sleep 1000" not in left.stdout


async def test_endless_output_ends_at_the_timeout(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        start = time.monotonic()
        result = await box.exec("yes & yes >&2", timeout=3, output_limit=10)
        assert (result.stdout, result.stderr, result.timed_out) == (b"y\n" * 5, b"y\n" * 5, True)
        assert time.monotonic() - start < 10


async def test_links_and_devices_in_what_is_read_and_written(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        await box.exec("ln -s /etc/passwd link; ln -s /etc dir; ln -s . here; mkfifo fifo; mkdir d; echo x > d/f")
        for path in ("link", "dir/passwd", "here/d/f", "fifo", "d"):
            with pytest.raises(ValueError, match="no regular file"):
                await box.read(path)
        with pytest.raises(ValueError, match="symbolic link"):
            await box.write("dir/x", b"")
        await box.write("link", b"replaced, not followed")
        assert await box.read("link") == b"replaced, not followed"
        await box.exec("truncate -s 40M sparse")
        with pytest.raises(ValueError, match="larger"):
            await box.read("sparse")


UNPRIVILEGED = """
import asyncio, os
from rollout_workers.sandbox import bubblewrap
asyncio.run(bubblewrap.probe())  # reads and imports what it needs while it still may
os.setgroups([])
os.setresgid(100, 100, 100)
os.setresuid(65534, 65534, 65534)

async def main():
    probe, backend = await bubblewrap.probe()
    if backend is None:
        print("skip", probe.why)
        return
    async with backend.open() as sandbox, backend.open() as other:
        await sandbox.exec("kill -9 1; kill -STOP 1; echo forged > /proc/1/fd/1")
        bomb = asyncio.create_task(sandbox.exec("bomb() { bomb | bomb & }; bomb; sleep 9", timeout=2))
        await asyncio.sleep(1)
        print("beside", (await other.exec("id -u | cat; id -g | cat")).stdout)
        await bomb
        result = await sandbox.exec("cat /proc/1/fd/1 /proc/1/mem; touch /x /dev/x; grep CapBnd /proc/self/status")
        print("ran", result.stdout)

asyncio.run(main())
"""


@pytest.mark.required
@pytest.mark.skipif(os.geteuid() != 0, reason="everything above ran unprivileged already")
def test_the_agent_cannot_be_reached_when_the_host_process_is_not_root() -> None:
    run = subprocess.run([sys.executable, "-c", UNPRIVILEGED], cwd=ROOT, capture_output=True, timeout=60, text=True)
    if run.stdout.startswith("skip"):
        pytest.skip(run.stdout)
    assert run.stdout == "beside b'65534\\n100\\n'\nran b'CapBnd:\\t0000000000000000\\n'\n", run.stderr
