"""Write code, see the public tests' results, write again. Hidden tests grade afterwards, elsewhere.

What is run has a time for all of an episode, which ends with it, before the episode's own deadline: code that hangs is
scored, not dropped.
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType
from typing import Any

from rollout_workers.environments.protocol import COMMANDS, Remaining
from verifiers.code import TOTAL_SECONDS, FormatError, TestResult, extract_code, run_tests
from verifiers.programs import LANGUAGES, Judging
from verifiers.reply import asks_to_reason
from verifiers.sandbox import Sandbox, Sandboxes, SandboxSpec
from verifiers.task import Message, Task


class CodeTests:
    """Runs the public tests on every reply, in one sandbox that starts with the first code."""

    files: Mapping[str, bytes] = MappingProxyType({})

    def __init__(self, task: Task, sandboxes: Sandboxes, stack: AsyncExitStack) -> None:
        self._task = task
        self._sandboxes = sandboxes
        self._stack = stack
        self._sandbox: Sandbox | None = None
        self._left = COMMANDS * task.limits.seconds

    async def respond(self, reply: str, left: Remaining) -> Message | None:
        """The public tests' results; None where all passed, there are none, or time is up."""
        tests = self._task.visible.get("tests", ())
        if not tests:
            return None
        visible = self._task.visible
        language = LANGUAGES[visible.get("language", "python")]
        try:
            source = extract_code(reply, reasoned=asks_to_reason(self._task.messages), marks=language.marks)
        except FormatError as error:
            return Message("tool: tests", f"No code was run: {error}")
        if self._sandbox is None:
            self._sandbox = await self._stack.enter_async_context(
                self._sandboxes.open(SandboxSpec(image=self._task.image))
            )
        how: dict[str, Any] = {"language": language, "judging": Judging(visible.get("compare", "lines"))}
        how |= {"preamble": visible.get("preamble", ""), "total_seconds": min(TOTAL_SECONDS, self._left)}
        began = time.monotonic()
        results = await run_tests(source, tests, self._sandbox, **how)
        self._left -= time.monotonic() - began
        if self._left <= 0 or all(result.passed for result in results):
            return None
        return Message("tool: tests", feedback(tests, results))


def feedback(tests: Sequence[Mapping[str, Any]], results: Sequence[TestResult]) -> str:
    """What the policy sees of its tests, a line each."""
    return "\n".join(map(_line, tests, results))


def _line(test: Mapping[str, Any], result: TestResult) -> str:
    """What a person would want to see of a public test."""
    if result.passed:
        return "passed"
    if "call" not in test:
        return f"failed: stdin {test['stdin']!r}: " + (
            result.error or f"printed {result.got!r}, not {test['stdout']!r}"
        )
    given = [repr(value) for value in test.get("args", ())]
    given += [f"{name}={value!r}" for name, value in test.get("kwargs", {}).items()]
    call = f"{test['call']}({', '.join(given)})"
    return f"failed: {call}: " + (result.error or f"got {result.got}, not {test['expected']!r}")


@asynccontextmanager
async def code_tests(task: Task, sandboxes: Sandboxes) -> AsyncIterator[CodeTests]:
    """The environment, and on leaving the end of its sandbox."""
    async with AsyncExitStack() as stack:
        yield CodeTests(task, sandboxes, stack)
