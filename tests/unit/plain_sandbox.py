"""An honest sandbox for tests that need isolation from nothing: real processes in a temporary directory."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from rollout_workers.sandbox.agent import SAY, evaluation
from rollout_workers.sandbox.box import inside
from verifiers.sandbox import ExecResult, Sandbox, SandboxSpec

DEFAULT_SPEC = SandboxSpec()


class PlainSandbox:
    """The contract of `verifiers.sandbox.Sandbox` without its protection: for code written in our own tests only."""

    def __init__(self, folder: Path) -> None:
        self.root, self._temporary = folder / "work", folder / "tmp"
        self.root.mkdir()
        self._temporary.mkdir()
        self._said, self._shown = folder / "said", folder / "shown"
        self._shell: asyncio.subprocess.Process | None = None

    async def exec(
        self,
        argv: Sequence[str] | str,
        *,
        stdin: bytes = b"",
        cwd: str = ".",
        env: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        output_limit: int = 1 << 16,
        live: object = None,
    ) -> ExecResult:
        command = ["sh", "-c", argv] if isinstance(argv, str) else list(argv)
        if "/" not in command[0] and not shutil.which(command[0], path=self._environment["PATH"]):
            return ExecResult(b"", f"{command[0]}: command not found\n".encode(), 127)
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.root / cwd,
            env={**self._environment, **(env or {})},
            start_new_session=True,
        )
        assert process.stdin and process.stdout and process.stderr
        timer = asyncio.get_running_loop().call_later(timeout, _kill, process.pid)
        started = asyncio.get_running_loop().time()
        try:
            (out, cut_out), (err, cut_err), _ = await asyncio.gather(
                _read(process.stdout, output_limit), _read(process.stderr, output_limit), _feed(process.stdin, stdin)
            )
            code = await process.wait()
        finally:
            timer.cancel()
            _kill(process.pid)
        timed_out = asyncio.get_running_loop().time() - started >= timeout
        return ExecResult(out, err, None if timed_out else code, cut_out or cut_err, timed_out)

    @property
    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.defpath}"
        # What our own tests need of pytest's plug-ins, a repository's do not: they are three quarters of its start.
        quick = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return {"PATH": path, "HOME": str(self._temporary), "TMPDIR": str(self._temporary), **quick}

    async def shell(
        self, text: str, *, timeout: float = 10.0, output_limit: int = 1 << 16, live: object = None
    ) -> ExecResult:
        if self._shell is None:
            self._said.write_bytes(b"")
            self._shown.write_bytes(b"")
            with self._shown.open("ab") as shown:
                self._shell = await asyncio.create_subprocess_exec(
                    *("bash", "-c", f"exec 3>>{self._said}; exec bash -s"),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=shown,
                    stderr=shown,
                    cwd=self.root,
                    env=self._environment,
                    start_new_session=True,
                )
        shell = self._shell
        assert shell.stdin
        before, begun = len(self._said.read_bytes()), len(self._shown.read_bytes())
        shell.stdin.write(evaluation(text.encode(), "bash") + SAY)
        timed_out = False
        try:
            async with asyncio.timeout(timeout):
                while len(self._said.read_bytes()) == before and shell.returncode is None:  # noqa: ASYNC110 - a file
                    await asyncio.sleep(0.005)
        except TimeoutError:
            timed_out = True
        said = self._said.read_bytes()[before:]
        ended = not said
        if ended:
            await self.close()
        code = None if timed_out else int(said) if said else shell.returncode
        shown_bytes = self._shown.read_bytes()[begun:]
        return ExecResult(
            shown_bytes[:output_limit], b"", code, len(shown_bytes) > output_limit, timed_out, ended=ended
        )

    async def close(self) -> None:
        if self._shell is not None:
            _kill(self._shell.pid)
            await self._shell.wait()
            self._shell = None

    async def python(
        self, source: str, *, stdin: bytes = b"", timeout: float = 10.0, output_limit: int = 1 << 16
    ) -> ExecResult:
        return await self.exec(["python3", "-I", "-c", source], stdin=stdin, timeout=timeout, output_limit=output_limit)

    async def read(self, path: str, *, limit: int = 1 << 20) -> bytes:
        target = self._plain(path)
        if not target.exists():
            raise FileNotFoundError(f"{path} is not in the sandbox")
        data = target.read_bytes()
        if len(data) > limit:
            raise ValueError(f"{path} is larger than {limit} bytes")
        return data

    async def write(self, path: str, data: bytes, *, new: bool = False) -> None:
        if new:
            with (self.root / inside(path)).open("xb") as file:
                file.write(data)
            return
        target = self._plain(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def _plain(self, path: str) -> Path:
        """Of a file below the working directory, no symbolic link on the way."""
        target = self.root / inside(path)
        if target.resolve() != self.root.resolve() / inside(path) or target.is_dir():
            raise ValueError(f"{path} is no regular file, or a symbolic link is in its path")
        return target


class PlainSandboxes:
    """Where `PlainSandbox` comes from; `opened` counts them."""

    def __init__(self) -> None:
        self.opened = 0
        self.open_now = 0
        self.most = 0

    @asynccontextmanager
    async def open(self, spec: SandboxSpec = DEFAULT_SPEC) -> AsyncIterator[Sandbox]:
        self.opened += 1
        self.open_now += 1
        self.most = max(self.most, self.open_now)
        try:
            with tempfile.TemporaryDirectory() as folder:
                sandbox = PlainSandbox(Path(folder))
                for path, data in spec.files.items():
                    await sandbox.write(path, data)
                try:
                    yield sandbox
                finally:
                    await sandbox.close()
        finally:
            self.open_now -= 1


def _kill(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


async def _read(stream: asyncio.StreamReader, limit: int) -> tuple[bytes, bool]:
    kept, cut = b"", False
    while chunk := await stream.read(1 << 16):
        cut = cut or len(kept) + len(chunk) > limit
        kept = (kept + chunk)[:limit]
    return kept, cut


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    try:
        stream.write(data)
        await stream.drain()
    except (BrokenPipeError, ConnectionResetError):
        pass
    stream.close()
