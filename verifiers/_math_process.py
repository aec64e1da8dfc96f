"""The handle of the math-verify process: started once, asked in turn, killed when it does not answer."""

import json
import os
import select
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import IO, Any

_SCRIPT = Path(__file__).with_name("_math_worker.py")
_START_SECONDS = 120.0
_SLACK_SECONDS = 5.0
"""Beyond the worker's own limit, for a machine that is busy."""


class MathProcess:
    """Blocking; one thread at a time. The process also dies with that thread's process (see `_math_worker`)."""

    def __init__(self, seconds: float, memory_bytes: int) -> None:
        self.seconds = seconds
        self.memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer, self._coming = b"", False
        self._end: weakref.finalize[..., Any] | None = None

    def start(self) -> None:
        """Bring the process up if it is not. Raises RuntimeError if it does not come."""
        if not self.spawn():
            return
        if self._receive(_START_SECONDS) != {"ready": True}:
            self.close()
            raise RuntimeError(
                f"the math-verify process did not start within {_START_SECONDS:g} s: is math-verify there?"
            )
        self._coming = False

    def spawn(self) -> bool:
        """Begin to, if it is not up; whether it is still to say that it is ready."""
        if self._process is not None and self._process.poll() is None:
            return self._coming
        self.close()
        # -I: neither this folder (whose math.py would hide the standard library's) nor the environment is on its path.
        command = [sys.executable, "-I", str(_SCRIPT)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self._end = weakref.finalize(self, _stop, self._process)
        self._coming = True
        return True

    def ask(self, gold: str, answer: str | None) -> str:
        """`right`, `wrong`, `no_gold`, `crashed` or `timeout`. Raises RuntimeError if the process does not start."""
        self.start()
        request = {"gold": gold, "answer": answer, "seconds": self.seconds, "memory": self.memory_bytes}
        reply = self._exchange(json.dumps(request).encode() + b"\n")
        if reply is None:
            self.close()
            return "crashed"
        return str(reply["outcome"])

    def _exchange(self, line: bytes) -> dict[str, Any] | None:
        """One request, one answer; None if the process ended or kept silent."""
        stdin, _ = self._pipes()
        try:
            stdin.write(line)
            stdin.flush()
        except BrokenPipeError:
            return None
        return self._receive(self.seconds + _SLACK_SECONDS)

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._process is None or self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the math-verify process is not running")
        return self._process.stdin, self._process.stdout

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """The next line, or None if the process ended or kept silent for `seconds`."""
        deadline = time.monotonic() + seconds
        stream = self._pipes()[1].fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(stream, 1 << 16) if ready else b""
            if not chunk:
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
