"""Walls of Linux namespaces on this host, by bubblewrap: nothing of the host but a read-only /usr.

    host --socketpair--> [sh: joins the control group] -> bwrap -> agent (process 1 of its own pid namespace)

The agent comes as bytecode, compiled once by the interpreter that will run it: compiling took a third of a start.

Started as root, the agent stays root with CAP_SETUID, CAP_SETGID and CAP_KILL alone, and commands run under a uid that
no other sandbox has. Started as somebody else, everything shares the one uid of a user namespace, and the agent is
guarded by being process 1, undumpable, and by the system call filter.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from rollout_workers.sandbox.box import (
    ADDRESS_SPACE,
    DEFAULT,
    START_SECONDS,
    Box,
    Disk,
    Probe,
    agent_source,
    check,
    own_uid,
)
from rollout_workers.sandbox.cgroup import Cgroup, Cgroups, find
from rollout_workers.sandbox.channel import Channel, finish
from verifiers.sandbox import Sandbox, SandboxError, SandboxSpec, SandboxUnavailable

SYSTEM_PYTHON: Final = "/usr/bin/python3"
INSTALL: Final = "install bubblewrap 0.6 or later (Debian, Ubuntu: apt-get install bubblewrap)"
HANG_UP_SECONDS: Final = 2.0
KILL_SECONDS: Final = 10.0
AGENT_CAPABILITIES: Final = ("CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_KILL")
"""The first for its start alone, then given up."""
AGENT: Final = "/agent.pyc"
COMPILE: Final = """
import importlib.util, marshal, sys
code = compile(sys.stdin.buffer.read(), "agent", "exec", dont_inherit=True, optimize=2)
sys.stdout.buffer.write(importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code))
"""
"""Flags of zero and no time: the interpreter looks for no source beside it."""
OWN_PROCESSES: Final = 2
"""bwrap and the agent, which count in the control group."""


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """Implements `verifiers.sandbox.Sandboxes`. Without `cgroups` only single processes are limited in memory."""

    executable: str
    cgroups: Cgroups | None = None

    @asynccontextmanager
    async def open(self, spec: SandboxSpec = DEFAULT) -> AsyncIterator[Sandbox]:
        """See `verifiers.sandbox.Sandboxes.open`. Raises ValueError for a spec that cannot be."""
        check(spec)
        if spec.image is not None:
            raise SandboxUnavailable(f"image {spec.image!r} needs the docker back end: bubblewrap has no images")
        uid = own_uid() if os.geteuid() == 0 else None
        memory = spec.memory_bytes * (ADDRESS_SPACE if self.cgroups else 1)
        async with self._walls(spec, uid) as walls, Channel.over(walls.socket) as channel:
            try:
                box = await Box.begin(channel, walls, spec, uid=uid, memory=memory)
            except SandboxUnavailable as error:
                raise SandboxUnavailable(f"{error} {walls.complaint()}".strip()) from error
            yield box

    @asynccontextmanager
    async def _walls(self, spec: SandboxSpec, uid: int | None) -> AsyncIterator["Namespaces"]:
        """Walls that have fallen on leaving, once the channel was hung up."""
        walls = self._build(spec, uid)
        try:
            yield walls
        finally:
            await finish(walls.fall())

    def _build(self, spec: SandboxSpec, uid: int | None) -> "Namespaces":
        """Start bwrap, from this thread: its life hangs on it. Raises SandboxUnavailable."""
        group: Cgroup | None = None
        with contextlib.ExitStack() as undo:
            try:
                ours, theirs = socket.socketpair()
                undo.enter_context(ours)
                with theirs, _files(uid) as files:
                    if self.cgroups is not None:
                        group = self.cgroups.create(memory_bytes=spec.memory_bytes, pids=spec.pids + OWN_PROCESSES)
                        undo.callback(group.discard)
                    argv = [self.executable, *_arguments(Disk.of(spec), uid, files)]
                    process = subprocess.Popen(
                        group.joined(argv) if group else argv,
                        stdin=theirs.fileno(),
                        stdout=theirs.fileno(),
                        stderr=subprocess.PIPE,
                        pass_fds=tuple(files.values()),
                        env={},
                        cwd="/",
                        start_new_session=True,  # a Ctrl-C at the terminal is ours to handle, not theirs
                    )
                undo.enter_context(process)  # reaps it and closes its pipe
                undo.callback(process.kill)
                walls = Namespaces(ours, process, group)
            except OSError as error:
                raise SandboxUnavailable(f"bubblewrap did not start: {error}") from error
            undo.pop_all()
            return walls


class Namespaces:
    """The walls of one sandbox, and how they come down."""

    def __init__(self, ours: socket.socket, process: "subprocess.Popen[bytes]", group: Cgroup | None) -> None:
        self.socket = ours
        self._process, self._group = process, group
        self._pidfd = os.pidfd_open(process.pid)

    def oom_kills(self) -> int:
        """See `box.Walls`."""
        return self._group.oom_kills() if self._group else 0

    async def cause(self) -> str | None:
        """See `box.Walls`: the control group's counters are the evidence."""
        if self._group is None:
            return None
        if killed := self._group.oom_kills():
            return f"out of memory: {killed} of its processes were killed"
        if refused := self._group.forks_refused():
            return f"out of processes: {refused} forks were refused"
        return None

    def complaint(self) -> str:
        """What bwrap or a dying agent said, for people."""
        assert self._process.stderr is not None  # noqa: S101 - asked for above
        os.set_blocking(self._process.stderr.fileno(), False)
        return (self._process.stderr.read(4096) or b"").decode(errors="replace").strip()

    async def fall(self) -> None:
        """Wait until nothing is left; use force where hanging up was not enough. Raises SandboxUnavailable."""
        try:
            if not await self._ended(HANG_UP_SECONDS):
                self._kill()
                if not await self._ended(KILL_SECONDS):
                    raise SandboxUnavailable(f"bwrap {self._process.pid} cannot be killed")
            self._process.wait()  # has ended: returns at once
            if self._group is not None:
                await self._group.remove()
        except TimeoutError as error:
            raise SandboxUnavailable(str(error)) from error
        finally:
            os.close(self._pidfd)
            if self._process.stderr is not None:
                self._process.stderr.close()

    def _kill(self) -> None:
        """Kill the agent, which takes its namespace along; bwrap, which waits for it, ends by itself or now."""
        task = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                os.kill(int(child), signal.SIGKILL)
        self._process.kill()

    async def _ended(self, seconds: float) -> bool:
        """Whether bwrap ends within `seconds`. It reaps process 1 first, which goes last of its namespace."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._pidfd, ended.set)
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._pidfd)
        return True


async def probe() -> tuple[Probe, Bubblewrap | None]:
    """Open a sandbox and run a command in it; the back end if that worked."""
    executable = shutil.which("bwrap")
    if executable is None:
        return Probe(False, f"bubblewrap is missing: {INSTALL}"), None
    cgroups = await asyncio.to_thread(find)
    limits = "limits on memory and processes by control groups"
    if isinstance(cgroups, str):
        limits = f"limits on single processes only, because {cgroups}"
    else:
        cgroups.sweep()
    backend = Bubblewrap(executable, None if isinstance(cgroups, str) else cgroups)
    try:
        async with backend.open() as sandbox:
            result = await sandbox.exec(["true"])
    except (SandboxError, ValueError) as error:
        return Probe(False, f"bubblewrap does not work here ({error}): {INSTALL}, and allow user namespaces"), None
    if result.exit_code != 0:
        return Probe(False, f"bubblewrap runs nothing here: {result.stderr.decode(errors='replace')}"), None
    return Probe(True, f"bubblewrap works, with {limits}"), backend


@contextmanager
def _files(uid: int | None) -> Iterator[dict[str, int]]:
    """The agent, and the files of /etc that programs cannot do without, as descriptors by path."""
    number = uid or os.geteuid()
    contents = {
        AGENT: _bytecode(_interpreter()),
        "/etc/passwd": f"root:x:0:0:root:/:/bin/false\nsandbox:x:{number}:{number}:sandbox:/tmp:/bin/sh\n".encode(),
        "/etc/group": f"root:x:0:\nsandbox:x:{number}:\n".encode(),
        "/etc/hosts": b"127.0.0.1 localhost\n::1 localhost\n",
        "/etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files\n",
    }
    with contextlib.ExitStack() as stack:
        files: dict[str, int] = {}
        for path, content in contents.items():
            files[path] = os.memfd_create("sandbox")
            stack.callback(os.close, files[path])
            os.write(files[path], content)
            os.lseek(files[path], 0, os.SEEK_SET)
        yield files


def _arguments(disk: Disk, uid: int | None, files: dict[str, int]) -> list[str]:
    """bwrap's arguments, the agent included."""
    words = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"]
    words += ["--hostname", "sandbox", "--cap-drop", "ALL"]
    if uid is None:
        words += ["--unshare-user"]
    else:
        words += [word for name in AGENT_CAPABILITIES for word in ("--cap-add", name)]
    words += ["--ro-bind", "/usr", "/usr", "--perms", "0755", "--dir", "/etc"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        path = Path(name)
        words += ["--symlink", os.readlink(name), name] if path.is_symlink() else ["--ro-bind-try", name, name]
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        words += ["--ro-bind-try", name, name]
    for name, fd in files.items():
        words += ["--perms", "0444", "--file", str(fd), name]
    words += ["--proc", "/proc", "--dev", "/dev"]
    for path_, mode, size in (("/dev/shm", "1777", disk.shm), ("/tmp", "1777", disk.tmp), ("/work", "0755", disk.work)):  # noqa: S108
        words += ["--perms", mode, "--size", str(size), "--tmpfs", path_]
    interpreter = _interpreter()
    if interpreter != SYSTEM_PYTHON:
        words += ["--ro-bind", sys.base_prefix, sys.base_prefix]
        words += ["--setenv", "PATH", f"{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin"]
    words += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/work"]
    return [*words, interpreter, "-I", "-S", AGENT]


def _interpreter() -> str:
    """What runs the agent, at the same path inside and outside."""
    return SYSTEM_PYTHON if os.access(SYSTEM_PYTHON, os.X_OK) else f"{sys.base_prefix}/bin/python3"


@cache
def _bytecode(interpreter: str) -> bytes:
    """The agent, compiled for `interpreter`. Raises OSError if that does not run."""
    command, source = [interpreter, "-I", "-S", "-c", COMPILE], agent_source().encode()
    try:
        run = subprocess.run(command, input=source, capture_output=True, check=True, timeout=START_SECONDS)
    except subprocess.SubprocessError as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace")[-200:]
        raise OSError(f"{interpreter} does not compile the agent: {error} {said}") from error
    return run.stdout
