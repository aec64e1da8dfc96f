"""Walls of Linux namespaces on this host: nothing of it but a read-only /usr. bubblewrap builds them once a thread.

    host --socket--> bwrap -> template (process 1 in there) --fork--> agent (process 1 of a sandbox, walls of its own)
      `-------------------------- channel, handed on to ------------------^

Both come as bytecode, compiled once by the interpreter that will run them.

Started as root, the agent stays root with CAP_SETUID, CAP_SETGID and CAP_KILL alone, and commands run under a uid that
no other sandbox has. Started as somebody else, a sandbox has one uid, in a user namespace of its own, and the agent is
guarded by being process 1, undumpable, and by the system call filter.
"""

import asyncio
import contextlib
import marshal
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from rollout_workers.sandbox.agent import ERROR_LIMIT, READY
from rollout_workers.sandbox.box import ADDRESS_SPACE, DEFAULT, START_SECONDS, Box, Disk, Probe, check, own_uid, room
from rollout_workers.sandbox.cgroup import Cgroup, Cgroups, find
from rollout_workers.sandbox.channel import MARSHAL_VERSION, Channel, finish
from verifiers.sandbox import SandboxError, SandboxSpec, SandboxUnavailable

SYSTEM_PYTHON: Final = "/usr/bin/python3"
INSTALL: Final = "install bubblewrap 0.6 or later (Debian, Ubuntu: apt-get install bubblewrap)"
ALLOW: Final = "allow user namespaces (Ubuntu 23.10 or later: sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
ORDER_SECONDS: Final = 5.0
"""How long a template may leave its orders lying, some hundred of them, before the next is refused."""
HANG_UP_SECONDS: Final = 2.0
KILL_SECONDS: Final = 10.0
CAPABILITIES: Final = (
    *("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SETPCAP"),  # the template's: namespaces, loopback, giving up the others
    *("CAP_SETUID", "CAP_SETGID", "CAP_KILL"),  # the agents'
)
MODULES: Final = {"/agent.pyc": "agent.py", "/template.pyc": "template.py"}
COMPILE: Final = """
import importlib.util, marshal, sys
code = compile(sys.stdin.buffer.read(), sys.argv[1], "exec", dont_inherit=True, optimize=2)
sys.stdout.buffer.write(importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code))
"""
"""Flags of zero and no time: the interpreter looks for no source beside it."""
OWN_PROCESSES: Final = 16
"""The agent, its parent for a moment, supervisors, and children that move files: all count in the control group."""

_here = threading.local()


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """Implements `verifiers.sandbox.Sandboxes`. Without `cgroups` only single processes are limited in memory."""

    executable: str
    cgroups: Cgroups | None = None

    @asynccontextmanager
    async def open(self, spec: SandboxSpec = DEFAULT) -> AsyncIterator[Box]:
        """See `verifiers.sandbox.Sandboxes.open`. Raises ValueError for a spec that cannot be."""
        check(spec)
        if spec.writable_root:
            raise ValueError("SandboxSpec.writable_root: bubblewrap has no root of its own to write; take docker")
        if spec.image is not None:
            raise SandboxUnavailable(f"image {spec.image!r} needs the docker back end: bubblewrap has no images")
        uid = own_uid() if os.geteuid() == 0 else None
        memory = spec.memory_bytes * (ADDRESS_SPACE if self.cgroups else 1)
        async with self._walls(spec, uid) as walls, Channel.over(walls.socket) as channel:
            try:
                box = await Box.begin(channel, walls, spec, uid=uid, memory=memory)
            except SandboxUnavailable as error:
                raise SandboxUnavailable(f"{error} {walls.template.complaint()}".strip()) from error
            yield box

    @asynccontextmanager
    async def _walls(self, spec: SandboxSpec, uid: int | None) -> AsyncIterator["Namespaces"]:
        """Walls that have fallen on leaving, once the channel was hung up. Raises SandboxUnavailable."""
        walls = self._order(spec, uid)
        try:
            await walls.stand()
            yield walls
        finally:
            await finish(walls.fall())

    def _order(self, spec: SandboxSpec, uid: int | None) -> "Namespaces":
        """Ask the template for a sandbox. Raises SandboxUnavailable."""
        group: Cgroup | None = None
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as handed:
            try:
                template = Template.here(self.executable)
                ours, theirs = socket.socketpair()
                undo.enter_context(ours)
                handed.enter_context(theirs)
                descriptors = [theirs.fileno()]
                if self.cgroups is not None:
                    group = self.cgroups.create(memory_bytes=spec.memory_bytes, pids=spec.pids + OWN_PROCESSES)
                    undo.callback(group.discard)
                    for path in group.paths:
                        descriptors.append(os.open(path / "cgroup.procs", os.O_WRONLY))
                        handed.callback(os.close, descriptors[-1])
                template.order({"disks": _disks(Disk.of(spec), uid), "names": _names(uid)}, descriptors)
            except OSError as error:
                raise SandboxUnavailable(f"bubblewrap did not start: {error}") from error
            undo.pop_all()
            return Namespaces(ours, group, template)


class Template:
    """What sandboxes are forked from: bubblewrap's walls and process 1 inside, as long as this thread lives."""

    @classmethod
    def here(cls, executable: str) -> "Template":
        """This thread's own, started if it has none that lives: bwrap's life hangs on the thread that started it.

        Raises OSError.
        """
        known: Template | None = getattr(_here, "template", None)
        if known is None or not known.serves(executable):
            known = _here.template = cls(executable)
        return known

    def __init__(self, executable: str) -> None:
        self._executable, self._owner, self._uid = executable, os.getpid(), os.geteuid()
        with contextlib.ExitStack() as undo:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.enter_context(self._control)
            self._control.settimeout(ORDER_SECONDS)
            with theirs, _files() as files:
                self._process = subprocess.Popen(
                    [executable, *_arguments(files)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=tuple(files.values()),
                    env={},
                    cwd="/",
                    start_new_session=True,  # a Ctrl-C at the terminal is ours to handle, not theirs
                )
            undo.pop_all()
        self.end = weakref.finalize(self, _end, self._control, self._process, self._owner)
        """End it now, and its sandboxes with it."""

    def serves(self, executable: str) -> bool:
        """Whether it lives, and was started with `executable` by this process as the user it still is."""
        ours = (self._executable, self._owner, self._uid) == (executable, os.getpid(), os.geteuid())
        return ours and self._process.poll() is None

    def order(self, what: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Have a sandbox made. Raises OSError."""
        socket.send_fds(self._control, [marshal.dumps(dict(what), MARSHAL_VERSION)], descriptors)

    def complaint(self) -> str:
        """What bwrap, the template or a dying agent said, for people."""
        assert self._process.stderr is not None  # noqa: S101 - asked for above
        if self._process.stderr.closed:  # another caller has ended it
            return ""
        os.set_blocking(self._process.stderr.fileno(), False)
        return (self._process.stderr.read(4096) or b"").decode(errors="replace").strip()


def _end(control: socket.socket, process: "subprocess.Popen[bytes]", owner: int) -> None:
    """Kill bwrap, which takes the template along, and that its sandboxes."""
    control.close()
    if owner == os.getpid():
        with contextlib.suppress(PermissionError):  # no longer its user: hanging up ends it
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_SECONDS)
        if process.stderr is not None:
            process.stderr.close()


class Namespaces:
    """The walls of one sandbox: how they are known to stand, and how they come down."""

    def __init__(self, ours: socket.socket, group: Cgroup | None, template: Template) -> None:
        self.socket, self.template = ours, template
        self._group = group
        self._outlived = 0, 0
        """Kills and refusals after which it went on."""
        self._pidfd: int | None = None

    async def stand(self) -> None:
        """Wait for process 1. Raises SandboxUnavailable."""
        try:
            if not await _readable(self.socket.fileno(), START_SECONDS):
                self.template.end()  # whatever holds it up; the next sandbox has another
                raise SandboxUnavailable(f"no sandbox within {START_SECONDS:g} s")
            said, descriptors, _, _ = socket.recv_fds(self.socket, ERROR_LIMIT, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise SandboxUnavailable(f"the sandbox did not start: {error}") from error
        if said != READY or not descriptors:
            why = f"{said.decode(errors='replace')} {self.template.complaint()}".strip()
            raise SandboxUnavailable(f"bubblewrap did not start: {why}")
        (self._pidfd,) = descriptors

    def oom_kills(self) -> int:
        """See `box.Walls`."""
        return self._group.oom_kills() if self._group else 0

    def survived(self) -> None:
        """See `box.Walls`."""
        if self._group is not None:
            self._outlived = self._group.oom_kills(), self._group.forks_refused()

    async def cause(self) -> str | None:
        """See `box.Walls`: the control group's counters are the evidence."""
        if self._group is None:
            return None
        if killed := self._group.oom_kills() - self._outlived[0]:
            return f"out of memory: {killed} of its processes were killed"
        if refused := self._group.forks_refused() - self._outlived[1]:
            return f"out of processes: {refused} forks were refused"
        return None

    async def fall(self) -> None:
        """Wait until nothing is left; use force where hanging up was not enough. Raises SandboxUnavailable."""
        self.socket.close()  # if no channel took it over
        try:
            if self._pidfd is not None and not await _readable(self._pidfd, HANG_UP_SECONDS):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)  # process 1 takes its namespace along
                if not await _readable(self._pidfd, KILL_SECONDS):
                    raise SandboxUnavailable("a sandbox cannot be killed")
            if self._group is not None:
                await self._group.remove()
        except TimeoutError as error:
            raise SandboxUnavailable(str(error)) from error
        finally:
            if self._pidfd is not None:
                os.close(self._pidfd)


async def _readable(descriptor: int, seconds: float) -> bool:
    """Whether there is something to read within `seconds`; of a process: whether it ends."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        async with asyncio.timeout(seconds):
            await ready.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
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
        return Probe(False, f"bubblewrap does not work here ({error}): {INSTALL}, and {ALLOW}"), None
    if result.exit_code != 0:
        return Probe(False, f"bubblewrap runs nothing here: {result.stderr.decode(errors='replace')}"), None
    return Probe(True, f"bubblewrap works, with {limits}"), backend


@contextmanager
def _files() -> Iterator[dict[str, int]]:
    """The programs, and the files of /etc that others cannot do without, as descriptors by path."""
    contents = {path: _bytecode(_interpreter(), name) for path, name in MODULES.items()} | {
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


def _disks(disk: Disk, uid: int | None) -> list[tuple[str, str]]:
    """Mount points of a sandbox's own file systems, and their options."""
    owner, group = _ids(uid)
    return [
        ("/dev/shm", f"{room(disk.shm)},mode=1777"),  # noqa: S108
        ("/tmp", f"{room(disk.tmp)},mode=1777"),  # noqa: S108
        ("/work", f"{room(disk.work)},mode=0755,uid={owner},gid={group}"),
    ]


def _names(uid: int | None) -> dict[str, bytes]:
    """The files of /etc that say who the commands' user is."""
    owner, group = _ids(uid)
    return {
        "passwd": f"root:x:0:0:root:/:/bin/false\nsandbox:x:{owner}:{group}:sandbox:/tmp:/bin/sh\n".encode(),
        "group": f"root:x:0:\nsandbox:x:{group}:\n".encode(),
    }


def _ids(uid: int | None) -> tuple[int, int]:
    """The commands' user and group: our own where they have none to themselves."""
    return (os.geteuid(), os.getegid()) if uid is None else (uid, uid)


def _arguments(files: dict[str, int]) -> list[str]:
    """bwrap's arguments, the template included."""
    words = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"]
    words += ["--hostname", "sandbox", "--cap-drop", "ALL"]
    words += [word for name in CAPABILITIES for word in ("--cap-add", name)]
    if os.geteuid() != 0:
        words += ["--unshare-user"]
    words += ["--ro-bind", "/usr", "/usr", "--perms", "0755", "--dir", "/etc"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        path = Path(name)
        words += ["--symlink", os.readlink(name), name] if path.is_symlink() else ["--ro-bind-try", name, name]
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        words += ["--ro-bind-try", name, name]
    for name in _names(None):
        words += ["--symlink", f"names/{name}", f"/etc/{name}"]
    for name, fd in files.items():
        words += ["--perms", "0444", "--file", str(fd), name]
    words += ["--proc", "/proc", "--dev", "/dev", "--dir", "/tmp", "--dir", "/work", "--dir", "/etc/names"]  # noqa: S108
    interpreter = _interpreter()
    if interpreter != SYSTEM_PYTHON:
        words += ["--ro-bind", sys.base_prefix, sys.base_prefix]
        words += ["--setenv", "PATH", f"{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin"]
    words += ["--remount-ro", "/dev", "--remount-ro", "/"]
    return [*words, interpreter, "-I", "-S", "/template.pyc"]


def _interpreter() -> str:
    """What runs the agent, at the same path inside and outside."""
    return SYSTEM_PYTHON if os.access(SYSTEM_PYTHON, os.X_OK) else f"{sys.base_prefix}/bin/python3"


@cache
def _bytecode(interpreter: str, name: str) -> bytes:
    """A module of this package, compiled for `interpreter`. Raises OSError if that does not run."""
    source = resources.files(__package__).joinpath(name).read_bytes()
    command = [interpreter, "-I", "-S", "-c", COMPILE, name]
    try:
        run = subprocess.run(command, input=source, capture_output=True, check=True, timeout=START_SECONDS)
    except subprocess.SubprocessError as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace")[-200:]
        raise OSError(f"{interpreter} does not compile {name}: {error} {said}") from error
    return run.stdout
