"""The sandbox contract. Implementations stand in `rollout_workers.sandbox`; floor 0 only names what it needs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from verifiers.errors import UserError

COPIED_BYTES = 64 << 20
COPIED_FILES = 10_000


class SandboxError(UserError):
    """Root of what can go wrong with a sandbox, as opposed to a command that merely failed in it."""


class SandboxUnavailable(SandboxError):
    """No sandbox could be had, or a living one stopped answering with no sign that its commands did it. Ours."""


class SandboxKilled(SandboxError):
    """The commands killed the sandbox: out of memory, out of processes, its agent killed. The policy's doing."""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What one sandbox may use. There is no network and no privilege to ask for."""

    image: str | None = None
    memory_bytes: int = 512 << 20
    """All processes together."""
    pids: int = 64
    cpu_seconds: float = 60.0
    """CPU time of one command's process, beside its wall-clock timeout."""
    disk_bytes: int = 64 << 20
    """Everything written below the working directory and /tmp."""
    writable_root: bool = False
    """For repository images, whose packages commands must be able to change: all of the image can be written, by a root
    without any capability, and `disk_bytes` does not bound what is written outside the working directory and /tmp."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Relative path -> content, put into the working directory at the start."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a command ended. `exit_code` is -N after signal N and None after a timeout."""

    stdout: bytes
    stderr: bytes
    exit_code: int | None
    truncated: bool = False
    """Output beyond the limit was thrown away."""
    timed_out: bool = False
    oom: bool = False
    """A process of it was killed for memory."""
    ended: bool = False
    """The shell has ended, by itself or at a timeout, and its state with it: the next command finds a new one."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What came out of a sandbox."""

    files: int
    bytes: int
    left_out: tuple[str, ...]
    """Paths of what is neither a regular file nor a directory."""


class Sandbox(Protocol):
    """An isolated place to run commands in. It serves one episode or one grading, then is destroyed."""

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
        """Run a program, or shell text if `argv` is a string. `timeout` in seconds; `output_limit` in bytes a stream.

        Several may run at once. Its whole process tree is gone when this returns; `live` is shown pieces of stdout and
        stderr as they come. Raises SandboxKilled, SandboxUnavailable.
        """
        ...

    async def python(
        self, source: str, *, stdin: bytes = b"", timeout: float = 10.0, output_limit: int = 1 << 16
    ) -> ExecResult:
        """Run Python source as `exec(["python3", "-I", "-c", source])` does; cheaper where an interpreter stands ready.

        Raises SandboxKilled, SandboxUnavailable.
        """
        ...

    async def shell(
        self,
        text: str,
        *,
        timeout: float = 10.0,
        output_limit: int = 1 << 16,
        live: Callable[[bytes, bytes], None] | None = None,
    ) -> ExecResult:
        """Run text in the sandbox's one shell, which keeps its directory, variables, functions and background jobs.

        Both outputs come as `stdout`, in order; there is no input. Between calls the shell and its jobs stand still.
        Raises SandboxKilled, SandboxUnavailable.
        """
        ...

    async def read(self, path: str, *, limit: int = 1 << 20) -> bytes:
        """A regular file below the working directory. Raises FileNotFoundError, ValueError (too long), SandboxError."""
        ...

    async def copy_out(
        self, path: str, target: Path, *, limit: int = COPIED_BYTES, files: int = COPIED_FILES
    ) -> Copied:
        """Copy what lies below a directory of the working directory, or `.`, into `target`, which is made.

        Only directories and regular files; what else there is, links too, is left out and named. At most `limit` bytes
        and `files` files: more is a ValueError, and what was copied until then stays. Raises FileExistsError for
        `target`, FileNotFoundError for `path`, ValueError, SandboxError.
        """
        ...

    async def write(self, path: str, data: bytes, *, new: bool = False) -> None:
        """Create or replace a file below the working directory, with its parents. Raises ValueError, SandboxError.

        A `new` one is only created, where its parents are: raises FileExistsError, FileNotFoundError.
        """
        ...


class Sandboxes(Protocol):
    """Where sandboxes come from."""

    def open(self, spec: SandboxSpec = SandboxSpec()) -> AbstractAsyncContextManager[Sandbox]:
        """A fresh sandbox, destroyed on leaving. Raises SandboxUnavailable on entering."""
        ...
