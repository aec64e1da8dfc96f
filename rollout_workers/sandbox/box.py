"""The sandbox that callers see, whatever its walls are made of."""

import asyncio
import errno
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, Protocol

from rollout_workers.sandbox import filter as seccomp
from rollout_workers.sandbox.channel import ChannelClosedError, ChannelNonsenseError, Reply
from verifiers.sandbox import (
    COPIED_BYTES,
    COPIED_FILES,
    Copied,
    ExecResult,
    SandboxError,
    SandboxKilled,
    SandboxSpec,
    SandboxUnavailable,
)

START_SECONDS: Final = 30.0
PING_SECONDS: Final = 2.0
GRACE_SECONDS: Final = 15.0
"""How much later than a command's own timeout the host gives up on the agent; more than its sweep takes."""
MAX_SECONDS: Final = 86_400.0
FILE_SECONDS: Final = 20.0 + GRACE_SECONDS
OPEN_FILES: Final = 512
BYTES_PER_INODE: Final = 4096
DEPTH: Final = 100
"""Of directories in what is copied out."""
NAME_BYTES: Final = 256
"""On average, of a path in it."""
WORD_BYTES: Final = 1 << 17
"""Of one argument, its NUL byte included: Linux's MAX_ARG_STRLEN with pages of 4 KiB."""
FIRST_UID: Final = 2_000_000
DEFAULT: Final = SandboxSpec()
ADDRESS_SPACE: Final = 4
"""Where a control group holds the memory, address space may be this many times larger: much is reserved, never used."""

_numbers = itertools.count()


class Probe(NamedTuple):
    """Whether a back end works here, in a sentence: how well, or what to do about it."""

    ok: bool
    why: str


class Disk(NamedTuple):
    """How `SandboxSpec.disk_bytes` is shared out, in bytes: `work` and `tmp` add up to it, `shm` comes on top."""

    work: int
    tmp: int
    shm: int

    @classmethod
    def of(cls, spec: SandboxSpec) -> "Disk":
        """Three quarters to the working directory, the rest to /tmp; all of it lies in memory and counts there too."""
        tmp = spec.disk_bytes // 4
        return cls(spec.disk_bytes - tmp, tmp, max(spec.disk_bytes // 8, 1 << 20))


def room(size: int) -> str:
    """Mount options of a tmpfs: a hard size, and no more inodes, which are the kernel's memory, than files fill it."""
    return f"size={size},nr_inodes={max(size // BYTES_PER_INODE, 256)}"


class Walls(Protocol):
    """What a back end knows of a sandbox from outside of it."""

    def oom_kills(self) -> int:
        """Processes killed for memory so far; 0 where only the agent can tell."""
        ...

    def survived(self) -> None:
        """It has answered: what its commands did to it before is no cause of an end that comes later."""
        ...

    async def cause(self) -> str | None:
        """What its commands did to it, if the evidence outside says that they ended it. Does not raise."""
        ...


class Asked(Protocol):
    """A `channel.Channel`, or what stands for one."""

    async def call(
        self,
        request: Mapping[str, Any],
        body: bytes = b"",
        *,
        reply_limit: int,
        timeout: float,
        live: Callable[[bytes, bytes], None] | None = None,
    ) -> Reply:
        """See `channel.Channel.call`."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...


class Box:
    """A sandbox behind an agent. Implements `verifiers.sandbox.Sandbox`; commands run side by side, a shell's in turn.

    Cancelling a call in the middle ends the sandbox: nothing of the command goes on, and no later call can succeed.
    """

    def __init__(self, channel: Asked, walls: Walls, room: int) -> None:
        self._channel, self._walls, self._room = channel, walls, room
        self._shell = asyncio.Lock()
        self._dead: SandboxError | None = None
        self._ran = False
        """Whether a command was begun."""
        self._owed = 0.0
        """Seconds that all calls under way may take together: where commands cannot run side by side, they wait."""

    @classmethod
    async def begin(cls, channel: Asked, walls: Walls, spec: SandboxSpec, *, uid: int | None, memory: int) -> "Box":
        """Shake hands, confine, put `spec.files` in place. `memory`: address space of a process, in bytes.

        Raises SandboxUnavailable, and ValueError for files that cannot be.
        """
        room = min(Disk.of(spec).work, spec.memory_bytes // 3)  # in memory, and in the agent's meanwhile
        box = cls(channel, walls, room)
        request = {"op": "begin", "uid": uid, "limits": rlimits(spec, memory)}
        try:
            await box._call(request, seccomp.program(), reply_limit=0, timeout=START_SECONDS)
        except SandboxKilled as error:  # no command has run yet: whatever it was, it was not theirs
            raise SandboxUnavailable(f"the sandbox did not start: {error}") from error
        await box.fill(spec.files)
        return box

    async def alive(self) -> bool:
        """Whether the agent answers. Does not raise."""
        try:
            await self._call({"op": "ping"}, reply_limit=0, timeout=PING_SECONDS)
        except (SandboxUnavailable, SandboxKilled):
            return False
        return True

    async def fill(self, files: Mapping[str, bytes]) -> None:
        """Put files in place before any command ran. Raises SandboxUnavailable, ValueError for files that cannot be."""
        try:
            if files:
                await self._write(files)
        except SandboxKilled as error:
            raise SandboxUnavailable(f"the sandbox did not start: {error}") from error

    async def exec(
        self,
        argv: Sequence[str] | str,
        *,
        stdin: bytes = b"",
        cwd: str = ".",
        env: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        output_limit: int = 1 << 16,
        live: Callable[[bytes, bytes], None] | None = None,
    ) -> ExecResult:
        """See `verifiers.sandbox.Sandbox.exec`. Raises ValueError for what cannot be run."""
        words = ["/bin/sh", "-c", argv] if isinstance(argv, str) else list(argv)
        variables = dict(env or {})
        if not words or any("\0" in text for text in (*words, cwd, *variables, *variables.values())):
            raise ValueError("a command needs at least one word, and no NUL byte in it, its cwd or its environment")
        for text in (*words, *(f"{name}={value}" for name, value in variables.items())):
            if len(text) >= WORD_BYTES // 4 and (size := len(os.fsencode(text))) >= WORD_BYTES:
                raise ValueError(
                    f"a word of {size} bytes, {text[:20]!r}…, is longer than a program takes, {WORD_BYTES - 1}: hand "
                    "it in by `stdin`, in a file, or to `shell`"
                )
        request = {"op": "exec", "argv": words, "cwd": cwd, "env": variables}
        return await self._run(request, stdin, timeout, output_limit, live)

    async def python(
        self, source: str, *, stdin: bytes = b"", timeout: float = 10.0, output_limit: int = 1 << 16
    ) -> ExecResult:
        """See `verifiers.sandbox.Sandbox.python`: the agent's own interpreter, forked. Raises ValueError."""
        return await self._run({"op": "python", "source": source}, stdin, timeout, output_limit)

    async def shell(
        self,
        text: str,
        *,
        timeout: float = 10.0,
        output_limit: int = 1 << 16,
        live: Callable[[bytes, bytes], None] | None = None,
    ) -> ExecResult:
        """See `verifiers.sandbox.Sandbox.shell`. Raises ValueError for what cannot be run."""
        if "\0" in text:
            raise ValueError("no NUL byte can be in a command")
        async with self._shell:
            return await self._run({"op": "shell"}, text.encode(errors="surrogateescape"), timeout, output_limit, live)

    async def _run(
        self,
        request: Mapping[str, Any],
        stdin: bytes,
        timeout: float,
        output_limit: int,
        live: Callable[[bytes, bytes], None] | None = None,
    ) -> ExecResult:
        if not 0 < timeout <= MAX_SECONDS or output_limit < 0:
            raise ValueError(
                f"timeout {timeout} and output limit {output_limit}: 0 to {MAX_SECONDS:g} seconds, and >= 0"
            )
        request = {**request, "timeout": timeout, "limit": output_limit}
        self._ran = True
        killed, most = self._walls.oom_kills(), 2 * output_limit
        reply = await self._call(request, stdin, reply_limit=most, timeout=timeout + GRACE_SECONDS, live=live)
        oom = reply.oom or self._walls.oom_kills() > killed
        code = None if reply.timed_out else reply.status
        out, err = reply.body[: reply.stdout], reply.body[reply.stdout :]
        return ExecResult(out, err, code, reply.truncated, reply.timed_out, oom, reply.ended)

    async def read(self, path: str, *, limit: int = 1 << 20) -> bytes:
        """See `verifiers.sandbox.Sandbox.read`. No symbolic link is followed: ValueError."""
        request = {"op": "read", "path": inside(path), "limit": limit}
        reply = await self._call(request, reply_limit=limit, timeout=FILE_SECONDS)
        if reply.truncated:
            raise ValueError(f"{path} is larger than {limit} bytes")
        _check(reply, path, f"larger than {limit} bytes")
        return reply.body

    async def copy_out(
        self, path: str, target: Path, *, limit: int = COPIED_BYTES, files: int = COPIED_FILES
    ) -> Copied:
        """See `verifiers.sandbox.Sandbox.copy_out`."""
        below = "" if path == "." else inside(path)
        request = {"op": "list", "path": below, "depth": DEPTH, "limit": files * NAME_BYTES}
        reply = await self._call(request, reply_limit=files * NAME_BYTES, timeout=FILE_SECONDS)
        listed = reply.body.split(b"\0")[:-1]
        if reply.truncated or len(listed) > files:
            raise ValueError(f"{path} holds more than {files} files")
        _check(reply, path, "too large")
        left_out, room, copied = [], limit, 0
        await asyncio.to_thread(target.mkdir, parents=True)
        for kind, name in ((one[:1], os.fsdecode(one[1:])) for one in listed):
            if kind != b"f":
                left_out.append(name)
                continue
            try:
                data = await self.read(name, limit=room)
            except FileNotFoundError:  # gone since
                continue
            room -= len(data)
            await asyncio.to_thread(_place, target / _below(inside(name), below), data)
            copied += 1
        return Copied(copied, limit - room, tuple(left_out))

    async def write(self, path: str, data: bytes, *, new: bool = False) -> None:
        """See `verifiers.sandbox.Sandbox.write`. What stands there is replaced; a symbolic link is not followed."""
        await self._write({path: data}, new=new)

    async def _write(self, files: Mapping[str, bytes], *, new: bool = False) -> None:
        if sum(map(len, files.values())) > self._room:
            raise ValueError(f"{', '.join(files)} is more than the sandbox's disk takes at once, {self._room} bytes")
        request = {"op": "write", "files": [(inside(path), len(data)) for path, data in files.items()], "new": new}
        reply = await self._call(request, b"".join(files.values()), reply_limit=0, timeout=FILE_SECONDS)
        _check(reply, ", ".join(files), "more than the sandbox's disk holds")

    async def _call(
        self,
        request: Mapping[str, Any],
        body: bytes = b"",
        *,
        reply_limit: int,
        timeout: float,
        live: Callable[[bytes, bytes], None] | None = None,
    ) -> Reply:
        """Ask the agent. Raises SandboxKilled, SandboxUnavailable, and goes on raising it: a sandbox dies once."""
        if self._dead is not None:
            raise self._dead
        self._owed += timeout
        try:
            reply = await self._channel.call(request, body, reply_limit=reply_limit, timeout=self._owed, live=live)
        except asyncio.CancelledError:
            self._dead = SandboxUnavailable("the sandbox was ended by the cancellation of a call")
            self._channel.close()
            raise
        except ChannelNonsenseError as error:
            await self._die(str(error), tampered=True)
        except (ChannelClosedError, TimeoutError) as error:
            await self._die(str(error) or f"the agent did not answer within {self._owed:g} s", tampered=False)
        finally:
            self._owed -= timeout
        if reply.failed:
            why = reply.body.decode(errors="replace")
            full = self._ran and why.startswith("BlockingIOError")  # as many processes as there may be
            await self._die(why, tampered=full or why.startswith("SurvivorsError"))
        self._walls.survived()
        return reply

    async def _die(self, symptom: str, *, tampered: bool) -> NoReturn:
        """Hang up, ask the walls whose doing it was, and raise that."""
        self._channel.close()
        cause = await self._walls.cause() or (symptom if tampered else None)  # evidence first
        if self._dead is None:  # the first to see it knows best: others see a channel that was closed
            self._dead = SandboxUnavailable(symptom) if cause is None else SandboxKilled(cause)
        raise self._dead


@cache
def agent_source() -> str:
    """The agent, as text to hand in."""
    return resources.files("rollout_workers.sandbox").joinpath("agent.py").read_text()


def check(spec: SandboxSpec) -> None:
    """Raises ValueError for what no sandbox can be made with."""
    for name, least in (("memory_bytes", 32 << 20), ("disk_bytes", 1 << 20), ("pids", 1), ("cpu_seconds", 0.001)):
        if getattr(spec, name) < least:
            raise ValueError(f"SandboxSpec.{name} is {getattr(spec, name)}; it must be at least {least}")
    for path in spec.files:
        inside(path)


def own_uid() -> int:
    """A uid that no other living sandbox of this host has, so that RLIMIT_NPROC counts one sandbox alone."""
    return FIRST_UID + (os.getpid() % (1 << 18)) * (1 << 12) + next(_numbers) % (1 << 12)


def rlimits(spec: SandboxSpec, memory: int) -> dict[str, tuple[int, int]]:
    """Soft and hard limits of every process of the commands, by their names in `resource`."""
    seconds = math.ceil(spec.cpu_seconds)
    return {
        "RLIMIT_CPU": (seconds, seconds + 1),  # SIGXCPU, then SIGKILL
        "RLIMIT_AS": (memory, memory),
        "RLIMIT_FSIZE": (spec.disk_bytes, spec.disk_bytes),
        "RLIMIT_NOFILE": (OPEN_FILES, OPEN_FILES),
        "RLIMIT_NPROC": (spec.pids, spec.pids),
        "RLIMIT_CORE": (0, 0),
    }


def inside(path: str) -> str:
    """A relative path that stays below the working directory, normalised. Raises ValueError."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path or not parts:
        raise ValueError(f"{path!r} does not name a file below the working directory")
    return "/".join(parts)


def _below(path: str, folder: str) -> str:
    """A normalised path as seen from a folder that it lies in, or from the top. Raises ValueError."""
    if folder and not path.startswith(f"{folder}/"):
        raise ValueError(f"{path!r} was listed, and does not lie in {folder}")
    return path.removeprefix(f"{folder}/")


def _place(path: Path, data: bytes) -> None:
    """Make a file where there is none, with its directories: all below one that was made for it, so without a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)


def _check(reply: Reply, path: str, too_large: str) -> None:
    """Turn the errno of a file operation into the contract's errors."""
    if reply.oom or reply.status < 0:
        raise SandboxKilled(f"what was to work on {path} was {'out of memory' if reply.oom else 'killed'}")
    match reply.status:
        case 0 if not reply.timed_out:
            return
        case errno.ENOENT:
            raise FileNotFoundError(f"{path} is not in the sandbox")
        case errno.EEXIST:
            raise FileExistsError(f"{path} is in the sandbox already")
        case errno.EFBIG | errno.ENOSPC:
            raise ValueError(f"{path} is {too_large}")
        case errno.ELOOP | errno.ENOTDIR | errno.EINVAL | errno.EISDIR:
            raise ValueError(f"{path} is no regular file, or a symbolic link is in its path")
        case code if 0 < code < 125 and not reply.timed_out:
            raise ValueError(f"{path}: {os.strerror(code)}")
    raise SandboxUnavailable(f"the file operation on {path} did not finish (status {reply.status})")
