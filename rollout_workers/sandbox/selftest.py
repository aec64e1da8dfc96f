"""What model-written code may try against its sandbox, tried: each attempt says what was seen when it was contained.

Looked at from outside wherever the outside can see it: processes, sockets, files and memory of this host. What the
sandbox says of itself counts only where it speaks against itself.
"""

import asyncio
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from verifiers.sandbox import ExecResult, Sandbox, SandboxError, Sandboxes, SandboxKilled, SandboxSpec

MOST_SECONDS: Final = 150.0
FLOOD: Final = 10_000_000_000
_MARK: Final = 27182.0
"""Seconds that a left-over process would sleep; with the attempt's own decimals it is known by them from outside."""


class EscapedError(Exception):
    """An attempt that was not contained, in words."""


class Finding(NamedTuple):
    """How one attempt went."""

    name: str
    contained: bool
    seen: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """One thing to try. `run` returns what was seen of its containment and raises EscapedError, SandboxError."""

    name: str
    run: Callable[[Sandboxes], Awaitable[str]]


async def try_all(sandboxes: Sandboxes, say: Callable[[Finding], None]) -> list[Finding]:
    """Make every attempt, one after the other."""
    found = []
    for attempt in ATTEMPTS:
        found.append(await try_one(attempt, sandboxes))
        say(found[-1])
    return found


async def try_one(attempt: Attempt, sandboxes: Sandboxes) -> Finding:
    """Make an attempt. A sandbox that it killed has contained it; one that failed by itself has not."""
    start = time.monotonic()
    try:
        async with asyncio.timeout(MOST_SECONDS):
            contained, seen = True, await attempt.run(sandboxes)
    except EscapedError as error:
        contained, seen = False, str(error)
    except SandboxKilled as error:
        contained, seen = True, f"it killed its own sandbox: {error}"
    except SandboxError as error:
        contained, seen = False, f"the sandbox failed: {error}"
    except TimeoutError:
        contained, seen = False, f"it held the caller for {MOST_SECONDS:g} s"
    return Finding(attempt.name, contained, seen, time.monotonic() - start)


def in_words(one: Finding) -> str:
    """One line."""
    return f"{'contained' if one.contained else 'ESCAPED'.ljust(9)}  {one.name} ({one.seconds:.1f} s): {one.seen}"


async def fork_bomb(sandboxes: Sandboxes) -> str:
    """A bomb, while another sandbox works."""
    limit = 32
    async with sandboxes.open(SandboxSpec(pids=limit)) as box, sandboxes.open() as neighbour:
        bomb = asyncio.create_task(box.exec("bomb() { bomb | bomb & }; bomb; sleep 1000", timeout=3))
        await asyncio.sleep(1)
        _must(await _alive(neighbour), "the sandbox beside it did not answer")
        result = await bomb
        _must(result.timed_out or result.exit_code != 0, "the bomb ended as if nothing had been refused")
        forks = f"import os\nfor n in range(99): os.fork() or __import__('time').sleep({_MARK + 0.1})"
        refused = await _python(box, forks, timeout=30)  # it ends by itself, on a busy machine later
        _must(b"BlockingIOError" in refused.stderr, f"99 processes were let start, {limit} allowed")
        _gone(_MARK + 0.1)
        _must(await _alive(box), "the sandbox did not answer afterwards")
    return f"no more than {limit} processes, none left, the sandbox beside it answered meanwhile"


async def eight_gibibytes(sandboxes: Sandboxes) -> str:
    """One process that wants more memory than it may have."""
    async with sandboxes.open() as box:
        async with _never_more(_memory_taken, 1 << 30, "memory of this host"):
            result = await _python(box, "x = bytearray(8 << 30)\nprint(len(x))")
        _must(result.exit_code != 0 and not result.stdout, "8 GiB were given out")
        _must(await _alive(box), "the sandbox did not answer afterwards")
    return "refused or killed, and the sandbox went on"


async def memory_together(sandboxes: Sandboxes) -> str:
    """Several processes that are modest one by one."""
    hog = "b = []\n  while 1: b.append(b'x' * (16 << 20))"
    hogs = f"import os\nfor _ in range(4):\n if os.fork() == 0:\n  {hog}\nos.wait()"
    async with sandboxes.open(SandboxSpec(memory_bytes=128 << 20)) as box:
        async with _never_more(_memory_taken, 1 << 30, "memory of this host"):
            result = await _python(box, hogs, timeout=20)
        _must(await _alive(box), "the sandbox did not answer afterwards")
    return "killed for memory, and told so" if result.oom else f"ended with exit code {result.exit_code}"


async def disk(sandboxes: Sandboxes) -> str:
    """Fill every place that can be written."""
    fill = (
        "for d in /work /tmp /dev/shm; do cat /dev/zero >$d/x; cat /dev/zero >$d/y; done 2>/dev/null; du -sb /work /tmp"
    )
    places = "/x /usr/x /etc/x /dev/x /var/x /run/x /proc/x /lib/x /sys/x"
    free = shutil.disk_usage("/").free
    async with sandboxes.open(SandboxSpec(disk_bytes=32 << 20)) as box:
        result = await box.exec(fill, timeout=30)
        written = sum(int(line.split()[0]) for line in result.stdout.splitlines())
        _must(written <= 34 << 20, f"{written} bytes were written, {32 << 20} allowed")
        said = (await box.exec(f"for f in {places}; do touch $f && echo $f; done")).stdout
        _must(not said, f"files outside could be made: {said.decode(errors='replace')}")
        lost = free - shutil.disk_usage("/").free
        _must(lost < 256 << 20, f"the host's disk lost {lost} bytes")
        _must(await _alive(box), "the sandbox did not answer afterwards")
    return f"{written >> 20} MiB of 32 were written, nowhere else a byte"


async def inodes(sandboxes: Sandboxes) -> str:
    """Files without contents, as many as there can be."""
    program = "n = 0\ntry:\n while 1:\n  open(f'/work/{n}', 'w').close()\n  n += 1\nfinally: print(n)"
    async with sandboxes.open(SandboxSpec(memory_bytes=64 << 20, disk_bytes=16 << 20)) as box:
        result = await _python(box, program, timeout=10)
        _must(result.exit_code != 0, "there was no end to them")
    async with sandboxes.open() as box:
        _must(await _alive(box), "the next sandbox did not answer")
    return f"ended after {result.stdout.decode(errors='replace').strip() or 'some'} files"


async def flood(sandboxes: Sandboxes) -> str:
    """Ten gigabytes of output, or as much as goes through in a quarter of a minute."""
    limit = 1 << 16
    async with sandboxes.open() as box:
        async with _never_more(lambda: psutil.Process().memory_info().rss, 50 << 20, "memory of this process"):
            result = await box.exec(f"head -c {FLOOD} /dev/zero", timeout=15, output_limit=limit)
        _must(len(result.stdout) == limit and result.truncated, f"{len(result.stdout)} bytes came, {limit} allowed")
        _must(await _alive(box), "the sandbox did not answer afterwards")
    return f"cut at {limit} bytes, and this process grew by less than 50 MiB"


async def deaf_to_signals(sandboxes: Sandboxes) -> str:
    """Ignore SIGTERM, leave the session, fork twice."""
    program = (
        "import os, signal, time\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
        "for _ in range(3):\n if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n   os.setsid()\n"
        f"   time.sleep({_MARK + 0.2})\ntime.sleep(WAIT)"
    )
    async with sandboxes.open() as box:
        for wait in (0, 1000):
            result = await _python(box, program.replace("WAIT", str(wait)), timeout=2)
            _must(result.timed_out == bool(wait), "its timeout did not hold")
            _gone(_MARK + 0.2)  # when exec returns, not when the sandbox closes
        _must(await _alive(box), "the sandbox did not answer afterwards")
    return "nothing of it was left when the command returned"


async def hang(sandboxes: Sandboxes) -> str:
    """Neither output nor an exit."""
    async with sandboxes.open() as box:
        start = time.monotonic()
        result = await box.exec(f"exec <&- >&- 2>&-; while :; do sleep {_MARK + 0.3}; done", timeout=1)
        took = time.monotonic() - start
        _must(result.timed_out and took < 2, f"it returned after {took:.1f} s of 1 s")
        _gone(_MARK + 0.3)
        _must(await _alive(box), "the sandbox did not answer afterwards")
    return f"dead {took - 1:.1f} s after its timeout"


async def network(sandboxes: Sandboxes) -> str:
    """The host's ports, the gateway, metadata services, names."""
    program = (
        "import socket\nfor family, address in ADDRESSES:\n try:\n  s = socket.socket(family, 1)\n  s.settimeout(1)\n"
        "  s.connect(tuple(address))\n  print('reached', address)\n except OSError: pass\n"
        "try: print('resolved', socket.getaddrinfo('example.com', 80))\nexcept OSError: pass\nprint('done')"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        own = {one.address for all_ in psutil.net_if_addrs().values() for one in all_ if one.family == socket.AF_INET}
        hosts = sorted(own | {"169.254.169.254", "172.17.0.1", "10.0.0.1", "8.8.8.8"})
        addresses: list[tuple[int, tuple[str | int, int]]] = [
            (2, (host, at)) for host in hosts for at in (53, 80, port)
        ]
        addresses += [(10, ("::1", port)), (40, (2, port))]  # AF_VSOCK: a hypervisor's own way in
        async with sandboxes.open() as box:
            result = await _python(box, program.replace("ADDRESSES", repr(addresses)), timeout=90)
        try:
            server.accept()[0].close()
        except BlockingIOError:
            pass
        else:
            raise EscapedError("a port of this host was reached")
    said = result.stdout.decode(errors="replace").strip()
    _must(said == "done", said or "it could not even be tried")
    return f"{len(addresses)} addresses and a name were tried, none was reached"


async def engine_socket(sandboxes: Sandboxes) -> str:
    """A container engine's control, and any other socket of the host."""
    async with sandboxes.open() as box:
        found = await box.exec("find / -xdev -type s 2>/dev/null; ls /var/run/docker.sock /run/docker.sock 2>/dev/null")
    _must(not found.stdout.strip(), found.stdout.decode(errors="replace"))
    return "no socket to be found"


async def system_calls(sandboxes: Sandboxes) -> str:
    """Calls that only an escape needs."""
    program = """
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
        print(name)
"""
    async with sandboxes.open() as box:
        result = await _python(box, program)
        _must(result.exit_code == 0 and not result.stdout, f"let through: {result.stdout.decode(errors='replace')}")
        _must((await box.exec(["unshare", "-Ur", "true"])).exit_code != 0, "a user namespace could be made")
    return "ptrace, mount, unshare, setns, bpf, keyctl, perf, io_uring and the like: refused"


async def setuid_files(sandboxes: Sandboxes) -> str:
    """More rights by a file that has them."""
    async with sandboxes.open() as box:
        status = (await box.exec(["cat", "/proc/self/status"])).stdout.decode()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        _must(set(fields["Uid"].split()).isdisjoint({"0"}), "commands run as root")
        _must(int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0, "commands have capabilities")
        become = "cp /bin/sh s && chmod 6755 s && ./s -p -c 'id -u; grep CapEff /proc/self/status'"
        tried = (await box.exec(become)).stdout
        _must(b"CapEff:\t0000000000000000" in tried and not tried.startswith(b"0\n"), "a setuid file gave rights")
        for tool in ("su -c id", "mount -t tmpfs none /tmp", "chsh -s /bin/sh root"):
            _must((await box.exec(f"{tool} </dev/null")).exit_code != 0, f"{tool} worked")
    return "no capability, no root, and no way to either"


async def kernel_files(sandboxes: Sandboxes) -> str:
    """Levers of the kernel below /proc and /sys."""
    files = ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory")
    before = _contents(files[1:])
    async with sandboxes.open() as box:
        for file in (*files, "/sys/kernel/uevent_helper", "/proc/sys/kernel/modprobe"):
            _must((await box.exec(f"echo b > {file}")).exit_code != 0, f"{file} could be written")
    _must(_contents(files[1:]) == before, "a setting of this host's kernel changed")
    return "none could be written, and this host's are as they were"


async def the_agent(sandboxes: Sandboxes) -> str:
    """Kill process 1, stop it, write into its streams and its memory."""
    async with sandboxes.open() as box:
        await box.exec("for s in KILL STOP TERM INT SEGV CHLD USR1 HUP; do kill -$s 1; done")
        for target in ("fd/0", "fd/1", "fd/2", "mem", "oom_score_adj"):
            _must((await box.exec(f"echo forged > /proc/1/{target}")).exit_code != 0, f"its {target} could be written")
        _must((await box.exec("cat /proc/1/environ /proc/1/mem")).exit_code != 0, "its memory could be read")
        await box.exec("sleep 9 & kill -9 -1")
        _must(await _alive(box), "the sandbox did not answer afterwards")
    return "it could be neither signalled nor written to"


async def other_episodes(sandboxes: Sandboxes) -> str:
    """Files and processes of the host and of a sandbox beside this one."""
    with tempfile.NamedTemporaryFile() as secret:
        secret.write(b"hunter2")
        secret.flush()
        async with sandboxes.open() as other, sandboxes.open() as box:
            await other.write("theirs", b"hunter2")
            await other.shell(f"sleep {_MARK + 0.4} &")
            for path in (secret.name, "/work/theirs"):
                _must((await box.exec(["cat", path])).exit_code != 0, f"{path} could be read")
            listed = await box.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
            _must(f"{_MARK + 0.4}".encode() not in listed.stdout, "a process of the other sandbox could be seen")
            _must(
                int((await box.exec("ls -d /proc/[0-9]* | wc -l")).stdout) < 6, "more than its own processes are seen"
            )
    return "neither their files nor their processes can be seen"


async def survival(sandboxes: Sandboxes) -> str:
    """Live on into the next sandbox: the next episode's, or the grading's."""
    places = ("/work/mark", "/tmp/mark", "/dev/shm/mark")  # noqa: S108 - inside
    async with sandboxes.open() as box:
        await box.exec(";".join(f"echo mark >{place}" for place in places))
        await box.shell(f"setsid sleep {_MARK + 0.5} & (trap '' TERM HUP; sleep {_MARK + 0.5}) &")
    _gone(_MARK + 0.5)
    async with sandboxes.open() as box:
        found = (await box.exec(f"ls {' '.join(places)} 2>/dev/null")).stdout
        _must(not found, f"found in the next one: {found.decode(errors='replace')}")
    return "no file and no process did"


async def copied_out(sandboxes: Sandboxes) -> str:
    """Links, devices, pipes, other people's paths and bombs in what the host copies out."""
    make = (
        "ln -s /etc/passwd link; ln -s / root; ln -s . here; mkfifo pipe; mkdir -p good/deep; echo x >good/deep/file;"
        "ln -s ../../../../etc/shadow good/shadow; printf x >'good/a\n b'; printf x >\"good/\\$(id)\""
    )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "out")
        async with sandboxes.open() as box:
            await box.exec(make)
            for path in ("link", "root/etc/passwd", "here/good/deep/file", "pipe", "good"):
                await _refused(box.read(path), f"{path} was read")
            for path in ("/etc/passwd", "../x", "good/../../x"):
                await _refused(box.read(path), f"{path} was read")
            await _refused(box.write("root/x", b""), "a link was followed in writing")
            copied = await box.copy_out(".", target)
            found = _plain_files(target)
            _must(found == {"good/deep/file", "good/a\n b", "good/$(id)"}, f"copied: {sorted(found)}")
            _must(len(copied.left_out) == 5, f"left out: {copied.left_out}")
            await box.exec("truncate -s 40M sparse")
            await _refused(box.copy_out(".", Path(folder, "bomb"), limit=1 << 20), "a bomb was copied")
            many = "import os\nos.mkdir('many')\nfor n in range(3000): open(f'many/{n}', 'w').close()"
            await _python(box, many)
            await _refused(
                box.copy_out("many", Path(folder, "many"), files=1000), "3000 files were copied, 1000 allowed"
            )
            deep = "import os\nfor _ in range(300):\n os.mkdir('d')\n os.chdir('d')"
            await _python(box, deep)
            await _refused(box.copy_out("d", Path(folder, "deep")), "300 directories, one in the other, were copied")
    return "only plain files came out, and no more than was asked for"


ATTEMPTS: Final = (
    Attempt("fork bomb", fork_bomb),
    Attempt("8 GiB of memory", eight_gibibytes),
    Attempt("memory, shared out among processes", memory_together),
    Attempt("full disk", disk),
    Attempt("inodes", inodes),
    Attempt("10 GB on stdout", flood),
    Attempt("deaf to signals, setsid, double fork", deaf_to_signals),
    Attempt("hang without output or exit", hang),
    Attempt("network", network),
    Attempt("engine's socket", engine_socket),
    Attempt("system calls", system_calls),
    Attempt("setuid files", setuid_files),
    Attempt("kernel's files", kernel_files),
    Attempt("the agent", the_agent),
    Attempt("other episodes", other_episodes),
    Attempt("survival into the next sandbox", survival),
    Attempt("links and bombs in what is copied out", copied_out),
)


def _must(condition: bool, otherwise: str) -> None:
    if not condition:
        raise EscapedError(otherwise)


async def _refused(call: Awaitable[object], otherwise: str) -> None:
    try:
        await call
    except ValueError:
        return
    raise EscapedError(otherwise)


async def _python(box: Sandbox, program: str, timeout: float = 30.0) -> ExecResult:
    return await box.exec(["python3", "-c", program], timeout=timeout)


async def _alive(box: Sandbox) -> bool:
    return (await box.exec(["echo", "alive"], timeout=30)).stdout == b"alive\n"


def _contents(files: Sequence[str]) -> list[bytes]:
    return [Path(file).read_bytes() for file in files]


def _plain_files(folder: Path) -> set[str]:
    """Paths of the files below; no link is among them."""
    links = [str(path) for path in folder.rglob("*") if path.is_symlink()]
    _must(not links, f"links were copied: {links}")
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _gone(mark: float) -> None:
    """No process of this host has `mark` in its command line."""
    left = [one.pid for one in psutil.process_iter(["cmdline"]) if str(mark) in " ".join(one.info["cmdline"] or [])]
    _must(not left, f"processes {left} are still there")


def _memory_taken() -> int:
    """Bytes of this host that are not to be had."""
    memory = psutil.virtual_memory()
    return int(memory.total - memory.available)


@asynccontextmanager
async def _never_more(measure: Callable[[], int], most: int, what: str) -> AsyncIterator[None]:
    """What `measure` says grows at no moment by `most` bytes; others may take some of it meanwhile."""
    before = peak = measure()

    async def look() -> None:
        nonlocal peak
        while True:
            peak = max(peak, measure())
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
    _must(peak - before < most, f"{peak - before} bytes more {what} were taken, {most} allowed")
