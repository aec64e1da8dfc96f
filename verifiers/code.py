"""Code answers: +1 if the one fenced block after the reasoning passes every hidden test, else -1."""

import ast
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from verifiers._relay import Answer, Budget, Call, InvalidTaskError, Solution, TamperedError, ask, check_round
from verifiers.code_tests import TestResult, parse_call_tests, parse_stdin_tests, run_call_tests, run_stdin_tests
from verifiers.reply import FormatError, asks_to_reason, extract_code
from verifiers.sandbox import Sandbox, Sandboxes, SandboxSpec
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict

__all__ = ["CodeVerifier", "FormatError", "TestResult", "extract_code", "run_tests"]

_FORMS = ("tests", "stdin_tests", "check")
MAX_ROUNDS = 40
MAX_CALLS = 2000


async def run_tests(
    source: str,
    tests: Sequence[Mapping[str, Any]],
    sandbox: Sandbox,
    *,
    preamble: str = "",
    seconds: float = 6.0,
    total_seconds: float = 60.0,
) -> list[TestResult]:
    """Visible tests for an environment: one result each, in order, also after a failure.

    `tests` are rows as in the payload's `tests` or `stdin_tests`; their expected values stay outside the sandbox here
    too. Raises ValueError on a broken row, SandboxError.
    """
    budget = Budget(seconds, total_seconds)
    solution = Solution(source, preamble, _announced(preamble))
    try:
        if tests and "stdin" in tests[0]:
            return await run_stdin_tests(sandbox, solution, parse_stdin_tests(tests), budget, grading=False)
        return await run_call_tests(sandbox, solution, parse_call_tests(tests), budget, grading=False)
    except TamperedError as error:
        return [TestResult(False, error=str(error))] * len(tests)


class CodeVerifier:
    """Payload, one of

    {"tests": [{"call", "args", "kwargs", "expected"}, …]}      expected values are compared outside the sandbox;
    {"stdin_tests": [{"stdin", "stdout"}, …]}                   whole programs;
    {"check": SOURCE, "entry_point": NAME, "prompt": SOURCE}    HumanEval's `check(candidate)`, run in a second sandbox;
    and, beside `tests`, an optional "preamble": definitions the answer may use.

    A test has `seconds`, all of one grading `total_seconds`; the first failure ends it.
    """

    lowest = -1.0

    def __init__(
        self, *, seconds: float = 6.0, total_seconds: float = 60.0, memory_bytes: int = 512 << 20, pids: int = 64
    ) -> None:
        self.seconds = seconds
        self.total_seconds = total_seconds
        self.memory_bytes = memory_bytes
        self.pids = pids

    def check_task(self, task: Task) -> None:
        """Raises ValueError with one sentence."""
        payload = task.payload
        forms = [form for form in _FORMS if form in payload]
        try:
            if len(forms) != 1:
                raise ValueError(f"the payload of a code task needs one of {', '.join(_FORMS)}, and has {len(forms)}")
            if forms == ["tests"]:
                parse_call_tests(payload["tests"])
                _announced(payload.get("preamble", ""))
            elif forms == ["stdin_tests"]:
                parse_stdin_tests(payload["stdin_tests"])
            else:
                _check_form(payload)
        except ValueError as error:
            raise ValueError(f"task {task.id}: {error}") from error

    async def verify(self, task: Task, submission: Submission, sandboxes: Sandboxes) -> Verdict:
        """Score one answer in sandboxes of its own. Raises SandboxError."""
        try:
            self.check_task(task)
        except ValueError as error:
            return Verdict(Outcome.INVALID_TASK, detail=str(error))
        try:
            source = extract_code(submission.reply, reasoned=asks_to_reason(task.messages))
            problem = await self._grade(task, source, sandboxes)
        except FormatError as error:
            problem = str(error)
        except TamperedError as error:
            return Verdict(Outcome.TAMPERED, self.lowest, False, str(error))
        except InvalidTaskError as error:
            return Verdict(Outcome.INVALID_TASK, detail=f"task {task.id}: {error}")
        return Verdict.scored(-1.0 if problem else 1.0, correct=not problem, detail=problem)

    async def _grade(self, task: Task, source: str, sandboxes: Sandboxes) -> str:
        """What is wrong with the source, in a sentence; empty if nothing."""
        payload, budget = task.payload, Budget(self.seconds, self.total_seconds)
        spec = SandboxSpec(image=task.image, memory_bytes=self.memory_bytes, pids=self.pids)
        if "check" in payload:
            return await _Check(payload, source, sandboxes, spec, budget).run()
        async with sandboxes.open(spec) as sandbox:
            if "tests" in payload:
                preamble = payload.get("preamble", "")
                solution, tests = Solution(source, preamble, _announced(preamble)), parse_call_tests(payload["tests"])
                results = await run_call_tests(sandbox, solution, tests, budget, grading=True)
            else:
                programs = parse_stdin_tests(payload["stdin_tests"])
                results = await run_stdin_tests(sandbox, Solution(source), programs, budget, grading=True)
        if results[-1].passed:
            return ""
        return f"hidden test {len(results)} failed: {results[-1].error or 'wrong result'}"


class _Check:
    """A `check(candidate)` and a candidate that never meet: calls and answers go between their sandboxes in rounds.

    Only one sandbox is open at a time: holding one while waiting for another could stop every grading for good.
    """

    def __init__(
        self, payload: Mapping[str, Any], source: str, sandboxes: Sandboxes, spec: SandboxSpec, budget: Budget
    ) -> None:
        prompt = payload.get("prompt", "")
        self.solution = Solution(source, prompt, (payload["entry_point"],))
        self.sandboxes = sandboxes
        self.spec = spec
        self.budget = budget
        self.request = {
            "prompt": prompt,
            "check": payload["check"],
            "entry_point": payload["entry_point"],
            "max_calls": MAX_CALLS,
            "seed": secrets.token_hex(8),  # the same in every round, unknown to the candidate
        }

    async def run(self) -> str:
        """What is wrong with the candidate; empty if nothing. Raises InvalidTaskError, TamperedError, SandboxError."""
        transcript: list[tuple[Call, Answer]] = []
        for _ in range(MAX_ROUNDS):
            if self.budget.left <= 0:
                break
            async with self.sandboxes.open(self.spec) as sandbox:
                said = await check_round(sandbox, self.request | {"transcript": transcript}, self.budget)
            if said["status"] == "unusable":
                raise InvalidTaskError(said["detail"])
            if said["status"] != "more":
                return "" if said["status"] == "passed" else f"check failed: {said['detail']}"
            if len(said["calls"]) > MAX_CALLS:
                return f"check failed: it made more than {MAX_CALLS} calls"
            async with self.sandboxes.open(self.spec) as sandbox:
                answers = await ask(sandbox, self.solution, said["calls"], self.budget, fresh=True)
            transcript = list(zip(said["calls"], answers, strict=False))
        return "check failed: it took too long"


def _announced(preamble: object) -> tuple[str, ...]:
    """Functions that a prompt declares without a body: the answer must define them. Raises ValueError."""
    if not isinstance(preamble, str):
        raise ValueError("the preamble must be text")
    found = []
    for node in _parse(preamble, "the preamble").body:
        if isinstance(node, ast.FunctionDef) and all(isinstance(part, (ast.Expr, ast.Pass)) for part in node.body):
            found.append(node.name)
    return tuple(found)


def _parse(source: str, what: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{what} is no Python: {error}") from error


def _check_form(payload: Mapping[str, Any]) -> None:
    check, name, prompt = payload["check"], payload.get("entry_point"), payload.get("prompt", "")
    if not isinstance(check, str) or not isinstance(prompt, str):
        raise ValueError("'check' and 'prompt' must be text")
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError("'entry_point' must name a function")
    _parse(prompt, "'prompt'")
    functions = [node for node in _parse(check, "'check'").body if isinstance(node, ast.FunctionDef)]
    if not any(function.name == "check" and function.args.args for function in functions):
        raise ValueError("'check' defines no function check(candidate)")
