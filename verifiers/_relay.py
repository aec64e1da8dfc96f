"""Takes calls to a candidate in its sandbox and answers out of it. Expected values never pass through here."""

import json
import marshal
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from verifiers import deadline
from verifiers.errors import InvalidTaskError
from verifiers.sandbox import ExecResult, Sandbox, SandboxUnavailable

OUTPUT_LIMIT = 1 << 20
"""Bytes of answers one run may send back, where none is expected to be large."""
MARSHAL_VERSION = 2
"""Read by every Python 3."""
START_SECONDS = 4.0
"""Added to a run's time for Python's start, and for a machine that is busy."""
USUAL_TESTS = 20

Answer = Mapping[str, Any]
"""`value` (encoded), or `raised` (type, message), or `died` (a sentence); see `_candidate`."""
Call = Sequence[Any]
"""Name, encoded positional arguments, encoded keyword arguments."""


class TamperedError(Exception):
    """The private channel carried what the runner did not write: the candidate forged it."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A candidate's source; the preamble's definitions are there before it, except those it only announces."""

    source: str
    preamble: str = ""
    announced: tuple[str, ...] = ()


@dataclass(slots=True)
class Budget:
    """Seconds of one call, and of everything that is run for one grading; waiting for a sandbox is not counted."""

    call: float
    left: float
    whole: float = field(init=False)

    def __post_init__(self) -> None:
        self.whole = self.left

    @classmethod
    def of(cls, call: float, whole: float, tests: int, *, share: float = 0.8) -> "Budget":
        """With `whole` for up to USUAL_TESTS and more in proportion, up to a share of what is left of the grading."""
        seconds = whole * max(1.0, tests / USUAL_TESTS)
        clock = deadline.running.get()
        return cls(call, seconds if clock is None else min(seconds, max(whole, share * clock.left)))

    @property
    def over(self) -> str:
        """What to say where nothing is left."""
        return f"all tests together took longer than {self.whole:.3g} s"

    async def run(
        self, sandbox: Sandbox, program: str | Sequence[str], stdin: bytes = b"", *, limit: int = OUTPUT_LIMIT
    ) -> ExecResult:
        """Run Python source, or a command if it comes in words, within what is left, and take it off."""
        begun = time.monotonic()
        timeout = max(0.1, min(self.left, self.call + START_SECONDS))
        try:
            if isinstance(program, str):
                return await sandbox.python(program, stdin=stdin, timeout=timeout, output_limit=limit)
            return await sandbox.exec(program, stdin=stdin, timeout=timeout, output_limit=limit)
        finally:
            self.left -= time.monotonic() - begun


def room(expected: int) -> int:
    """Bytes for an answer where so many are expected: what is as good may be written with more digits."""
    return OUTPUT_LIMIT + 4 * expected


@cache
def program(module: str) -> str:
    """One text that brings `_plain` and `module` along, since the sandbox has no copy of this package."""
    names = ("verifiers", "verifiers._plain", f"verifiers.{module}")
    root = files("verifiers")
    texts = ["", *((root / f"{name.partition('.')[2]}.py").read_text("utf-8") for name in names[1:])]
    return (
        "import sys, types\n"
        f"for name, text in {list(zip(names, texts, strict=True))!r}:\n"
        "    module = sys.modules[name] = types.ModuleType(name)\n"
        "    exec(compile(text, name, 'exec'), module.__dict__)\n"
        "module.main()\n"
    )


async def ask(
    sandbox: Sandbox,
    solution: Solution,
    calls: Sequence[Call],
    budget: Budget,
    *,
    fresh: bool,
    echo: bool = False,
    limit: int = OUTPUT_LIMIT,
) -> list[Answer]:
    """Make calls in order in one process: an answer each, up to the first that is `died`; at least one.

    A run that is out of time, or of the `limit` in bytes for what it says, is repeated from the call it stood at, which
    then has all of it: no call gets more than `budget.call` + START_SECONDS, and none less. `echo` asks for arguments
    that a call has changed. `fresh` says that nothing of the policy ran in this sandbox yet: if Python does not even
    start in it, that is our failure. Raises TamperedError, SandboxError.
    """
    answers: list[Answer] = []
    while len(answers) < len(calls):
        if budget.left <= 0:
            return [*answers, {"died": budget.over}]
        result, lines = await _round(sandbox, solution, calls[len(answers) :], budget, echo, limit)
        if fresh and not lines and not answers and not result.oom and budget.left > 0:
            raise SandboxUnavailable(f"Python did not start in the sandbox: {result.stderr[-200:]!r}")
        new = lines[2:]
        if len(lines) > 1 and "raised" in lines[1]:
            return [*answers, {"died": "the answer cannot be loaded: {}: {}".format(*lines[1]["raised"])}]
        answers += new
        if len(answers) < len(calls) and not ((result.timed_out or result.truncated) and new):
            return [*answers, {"died": _why(result, budget, limit)}]
    return answers


async def _round(
    sandbox: Sandbox, solution: Solution, calls: Sequence[Call], budget: Budget, echo: bool, limit: int
) -> tuple[ExecResult, list[Answer]]:
    nonce = secrets.token_hex(16)
    request = {
        "nonce": nonce,
        "source": solution.source,
        "preamble": solution.preamble,
        "announced": solution.announced,
        "calls": list(calls),
        "seconds": budget.call,
        "echo": echo,
    }
    told = marshal.dumps(request, MARSHAL_VERSION)
    result = await budget.run(sandbox, program("_candidate"), told, limit=limit)
    lines = lines_of(result, nonce)
    if len(lines) > len(calls) + 2 or not all(map(_is_answer, lines)):
        raise TamperedError("the answer wrote into the channel of its results")
    return result, lines


def lines_of(result: ExecResult, nonce: str) -> list[Mapping[str, Any]]:
    """The complete lines of the channel. Raises TamperedError on one that the runner did not write."""
    complete = result.stdout.split(b"\n")[:-1]
    found: list[Mapping[str, Any]] = []
    for line in complete:
        try:
            key, _, text = line.decode().partition(" ")
            data = json.loads(text)
        except (ValueError, RecursionError):
            key, data = "", None
        if key != nonce or not isinstance(data, dict):
            if result.truncated:
                break
            raise TamperedError("the answer wrote into the channel of its results")
        found.append(data)
    return found


def _is_answer(data: Answer) -> bool:
    raised = data.get("raised", ["", ""])
    return (
        ("value" in data) != ("raised" in data) and isinstance(raised, list) and [type(x) for x in raised] == [str] * 2
    )


def _why(result: ExecResult, budget: Budget, limit: int = OUTPUT_LIMIT) -> str:
    """Why a run ended before its last answer."""
    if result.oom:
        return "the answer ran out of memory"
    if result.truncated:
        return f"the results are larger than {limit} bytes"
    if result.timed_out and budget.left <= 0:
        return budget.over
    if result.timed_out or result.exit_code in (-14, 128 + 14):
        return f"a test took longer than {budget.call:g} s"
    return f"the answer ended its process (exit code {result.exit_code})"


async def check_round(sandbox: Sandbox, request: Mapping[str, Any], budget: Budget) -> Mapping[str, Any]:
    """One round of `_checker`: what it printed. Raises InvalidTaskError, SandboxError."""
    nonce = secrets.token_hex(16)
    # Strings hash alike in every round, or a check that walks over a set would ask in another order each time.
    argv = ["env", "PYTHONHASHSEED=0", "python3", "-c", program("_checker"), nonce]
    try:
        told = json.dumps(request).encode()
    except RecursionError:
        return {"status": "failed", "detail": "what the answer returns is nested too deep"}
    result = await budget.run(sandbox, argv, told)
    lines = lines_of(result, nonce)
    if not lines and budget.left > 0:
        raise SandboxUnavailable(f"Python did not start in the sandbox: {result.stderr[-200:]!r}")
    if len(lines) == 2:
        return lines[1]
    why = _why(result, budget).replace("the answer", "check")
    if not request["transcript"] and budget.left > 0:
        raise InvalidTaskError(f"check fails by itself: {why}")
    return {"status": "failed", "detail": f"check cannot digest what the answer returns: {why}"}
