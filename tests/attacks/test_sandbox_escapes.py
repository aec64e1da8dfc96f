"""Model-written code against its sandbox. Whatever it does, it is contained, and the sandbox answers afterwards."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from rollout_workers.sandbox import bubblewrap, docker
from verifiers.sandbox import ExecResult, Sandbox, Sandboxes, SandboxKilled, SandboxSpec

ROOT = Path(__file__).parents[2]
SYSCALLS = """
import ctypes, errno, platform
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 0, "aarch64": 1}[platform.machine()]
calls = {
    "ptrace": ((101, 117), (16, 1, 0, 0)), "unshare": ((272, 97), (0x10000000,)), "bpf": ((321, 280), (0, 0, 0)),
    "keyctl": ((250, 219), (0, -3, 0)), "mount": ((165, 40), (b"none", b"/tmp", b"tmpfs", 0, 0)),
    "setns": ((308, 268), (0, 0)), "chroot": ((161, 51), (b"/",)), "perf": ((298, 241), (0, 0, 0, 0, 0)),
    "vm_writev": ((311, 271), (1, 0, 0, 0, 0, 0)), "clone_newuser": ((56, 220), (0x10000011, 0, 0, 0, 0)),
    "prlimit_of_agent": ((302, 261), (1, 0, 0, 0)), "io_uring": ((425, 425), (1, 0)),
}
for name, (numbers, args) in calls.items():
    if libc.syscall(numbers[number], *args) != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        print(name, "was let through")
"""
NETWORK = """
import socket
def open_(family, address):
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(2)
            sock.connect(address)
            print("reached", address)
    except OSError:
        pass
for host in ("169.254.169.254", "127.0.0.1", "172.17.0.1", "8.8.8.8", "10.0.0.1"):
    for port in (53, 80, 443, PORT):
        open_(socket.AF_INET, (host, port))
open_(socket.AF_INET6, ("::1", PORT))
open_(40, (2, PORT))  # AF_VSOCK: a hypervisor's own way in, which no network namespace holds
try:
    print("resolved", socket.getaddrinfo("example.com", 80))
except OSError:
    pass
print("done")
"""
UNKILLABLE = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            time.sleep(27182.8)
time.sleep(WAIT)
"""
MEMORY_HOGS = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        blocks = []
        while True:
            blocks.append(b"x" * (16 << 20))
os.wait()
"""


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[
        pytest.param("bubblewrap", marks=pytest.mark.required),
        pytest.param("docker", marks=[pytest.mark.slow, pytest.mark.required]),
    ],
)
async def sandboxes(request: pytest.FixtureRequest) -> Sandboxes:
    probe, backend = await (bubblewrap.probe() if request.param == "bubblewrap" else docker.probe())
    if backend is None:
        pytest.skip(probe.why)
    return backend


async def python(box: Sandbox, program: str, timeout: float = 30.0) -> ExecResult:
    return await box.exec(["python3", "-c", program], timeout=timeout)


async def alive(box: Sandbox) -> bool:
    return (await box.exec(["echo", "alive"], timeout=30)).stdout == b"alive\n"


def processes_with(word: str) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if any(word in arg for arg in p.info["cmdline"] or [])]


async def test_fork_bomb(sandboxes: Sandboxes) -> None:
    async with sandboxes.open(SandboxSpec(pids=32)) as box:
        result = await box.exec("bomb() { bomb | bomb & }; bomb; sleep 1000", timeout=2)
        assert result.timed_out or result.exit_code != 0
        assert await alive(box)
        count = await python(box, "import os\nfor n in range(99): os.fork() or __import__('time').sleep(99)", timeout=2)
        assert count.exit_code == 1
        assert b"BlockingIOError" in count.stderr


@pytest.mark.parametrize("wait", [0, 1000])
async def test_setsid_double_fork_and_deaf_to_signals(sandboxes: Sandboxes, wait: int) -> None:
    async with sandboxes.open() as box:
        result = await python(box, UNKILLABLE.replace("WAIT", str(wait)), timeout=1.5)
        assert result.timed_out == bool(wait)
        assert processes_with("27182.8") == []  # gone when exec returns, not when the sandbox closes
        assert await alive(box)


async def test_eight_gibibytes(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        assert b"MemoryError" in (await python(box, "x = bytearray(8 << 30)")).stderr
        assert await alive(box)


async def test_memory_of_all_processes_together(sandboxes: Sandboxes) -> None:
    if isinstance(sandboxes, bubblewrap.Bubblewrap) and sandboxes.cgroups is None:
        pytest.skip("no control groups here")
    async with sandboxes.open(SandboxSpec(memory_bytes=128 << 20)) as box:
        assert (await python(box, MEMORY_HOGS)).oom
        assert await alive(box)
        assert not (await box.exec(["true"])).oom


async def test_disk_filling(sandboxes: Sandboxes) -> None:
    fill = "for d in /work /tmp; do cat /dev/zero > $d/x; cat /dev/zero > $d/y; done; du -sb /work /tmp"
    async with sandboxes.open(SandboxSpec(disk_bytes=32 << 20)) as box:
        result = await box.exec(fill)
        written = sum(int(line.split()[0]) for line in result.stdout.splitlines())
        assert 24 << 20 < written <= 33 << 20
        for place in ("/x", "/usr/x", "/etc/x", "/dev/x", "/var/x", "/run/x", "/proc/x", "/root/x"):
            assert (await box.exec(f"touch {place}")).exit_code != 0
        assert await alive(box)


async def test_inode_filling(sandboxes: Sandboxes) -> None:
    program = "n = 0\nwhile True:\n open(f'/work/{n}', 'w').close()\n n += 1"
    try:
        async with sandboxes.open(SandboxSpec(memory_bytes=64 << 20, disk_bytes=16 << 20)) as box:
            assert (await python(box, program, timeout=3)).exit_code != 0
    except SandboxKilled:
        pass  # out of memory, its own doing
    async with sandboxes.open() as box:
        assert await alive(box)


async def test_ten_gigabytes_on_stdout(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        before = psutil.Process().memory_info().rss
        result = await box.exec("head -c 10000000000 /dev/zero; echo done >&2", timeout=100)
        assert (len(result.stdout), result.stderr, result.truncated) == (1 << 16, b"done\n", True)
        assert psutil.Process().memory_info().rss - before < 64 << 20


async def test_endless_output_ends_at_the_timeout(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        start = time.monotonic()
        result = await box.exec("yes & yes >&2", timeout=1, output_limit=10)
        assert (result.stdout, result.stderr, result.timed_out) == (b"y\n" * 5, b"y\n" * 5, True)
        assert time.monotonic() - start < 10


async def test_no_network(sandboxes: Sandboxes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        async with sandboxes.open() as box:
            result = await python(box, NETWORK.replace("PORT", str(port)), timeout=60)
    assert result.stdout == b"done\n"


async def test_nothing_of_the_host_is_visible(sandboxes: Sandboxes, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    async with sandboxes.open() as other, sandboxes.open() as box:
        await other.write("theirs", b"hunter2")
        for path in (tmp_path / "secret", ROOT / "pyproject.toml", "/work/theirs", "/proc/1/environ", "/proc/1/mem"):
            assert (await box.exec(["cat", str(path)])).exit_code != 0
        hidden = await box.exec(
            "ls /root /home /mnt /var/run/docker.sock /run/docker.sock /sys/kernel/security 2>/dev/null"
        )
        assert b"sock" not in hidden.stdout
        assert b"/root:\n" not in hidden.stdout or isinstance(sandboxes, docker.Docker)
        processes = await box.exec("ls -d /proc/[0-9]* | wc -l")
        assert int(processes.stdout) < 6


async def test_the_agent_cannot_be_reached(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        await box.exec("for s in KILL STOP TERM INT SEGV CHLD USR1 HUP; do kill -$s 1; done")
        assert await alive(box)
        for target in ("fd/0", "fd/1", "fd/2", "mem", "oom_score_adj"):
            result = await box.exec(f"echo forged > /proc/1/{target}")
            assert result.exit_code != 0, target
        assert await alive(box)
        await box.exec("sleep 9 & kill -9 -1")
        assert await alive(box)


async def test_system_calls_are_refused(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        assert (await python(box, SYSCALLS)).stdout == b""
        assert (await box.exec(["unshare", "-Ur", "true"])).exit_code != 0


async def test_privileges_cannot_be_had(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        status = (await box.exec(["cat", "/proc/self/status"])).stdout.decode()
        fields = dict(line.split(":\t", 1) for line in status.splitlines())
        assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapAmb"], 16) == 0
        assert fields["NoNewPrivs"] == "1"
        assert set(fields["Uid"].split()) != {"0"}
        for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory"):
            assert (await box.exec(f"echo b > {path}")).exit_code != 0
        become = "cp /bin/sh s && chmod 6755 s && ./s -p -c 'id -u; cat /proc/self/status | grep CapEff'"
        assert (await box.exec(become)).stdout.splitlines()[1] == b"CapEff:\t0000000000000000"


async def test_links_and_devices_in_what_is_copied_out(sandboxes: Sandboxes) -> None:
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


async def test_nothing_survives_into_the_next_sandbox(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        await box.exec(
            "echo mark > /work/mark; echo mark > /tmp/mark; echo mark > /dev/shm/mark; setsid sleep 27182.9 &"
        )
    assert processes_with("27182.9") == []
    async with sandboxes.open() as box:
        assert (await box.exec("ls /work /tmp /dev/shm | grep mark")).stdout == b""


async def test_hang_with_closed_streams(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        result = await box.exec("exec <&- >&- 2>&-; while :; do :; done", timeout=1)
        assert result.timed_out
        assert await alive(box)


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
