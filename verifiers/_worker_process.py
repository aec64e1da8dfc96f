"""The handle of a process that answers requests: started once, asked in turn, killed when it does not answer."""

import json
import os
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_START_SECONDS = 120.0


class SilentError(RuntimeError):
    """It did not answer in its time, and was killed."""


class WorkerProcess:
    """JSON lines in and out; the first to come out is {"ready": true}. Blocking; one thread at a time.

    `script` stands beside this file. It dies with us (see `_math_worker.die_with_parent`). `walls` is a command that it
    runs behind, without our environment.
    """

    def __init__(self, script: str, *arguments: str, walls: Sequence[str] = ()) -> None:
        self._name, self._has_walls = script, bool(walls)
        # -I: neither this folder (whose math.py would hide the standard library's) nor the environment is on its path.
        self._command = [*walls, sys.executable, "-I", str(Path(__file__).with_name(script)), *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer, self._coming = b"", False
        self._end: weakref.finalize[..., Any] | None = None

    def start(self) -> None:
        """Bring the process up if it is not. Raises RuntimeError if it does not come."""
        if not self.spawn():
            return
        why: object = None
        try:
            said = self._receive(_START_SECONDS)
            why = "it ended" if said is None else said.get("error")
        except TimeoutError:
            said, why = None, f"it did not answer within {_START_SECONDS:g} s"
        if said != {"ready": True}:
            self.close()
            raise RuntimeError(f"the process {self._name} did not start: {why}")
        self._coming = False

    def spawn(self) -> bool:
        """Begin to, if it is not up; whether it is still to say that it is ready."""
        if self._process is not None and self._process.poll() is None:
            return self._coming
        self.close()
        environment = ({} if self._has_walls else dict(os.environ)) | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self._end = weakref.finalize(self, _stop, self._process)
        self._coming = True
        return True

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
        """Its answer; None if it died. Raises SilentError after so many seconds, RuntimeError if it does not start."""
        self.start()
        stdin, _ = self._pipes()
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            reply = self._receive(seconds)
        except BrokenPipeError:
            reply = None
        except TimeoutError:
            self.close()
            raise SilentError(f"the process {self._name} did not answer within {seconds:g} s") from None
        if reply is None:
            self.close()
        return reply

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._process is None or self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError(f"the process {self._name} is not running")
        return self._process.stdin, self._process.stdout

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """The next line, or None if the process ended. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        stream = self._pipes()[1].fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            if not (chunk := os.read(stream, 1 << 16)):
                return None
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """Kill the process, if there is one, and reap it."""
        if self._end is not None:
            self._end()
        self._process, self._end, self._buffer = None, None, b""


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
