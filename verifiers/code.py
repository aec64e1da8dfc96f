"""Code answers: +1 if the one fenced block after the reasoning passes every hidden test, else -1."""

import ast
import secrets
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from verifiers._relay import Answer, Budget, Call, Solution, TamperedError, ask, check_round
from verifiers.code_tests import JSON, TestResult, parse_call_tests, run_call_tests
from verifiers.errors import InvalidTaskError
from verifiers.programs import (
    BY_LINES,
    LANGUAGES,
    BuildError,
    Judging,
    Language,
    Program,
    judge,
    language_of,
    parse_judging,
    parse_language,
    parse_stdin_tests,
    run_programs,
)
from verifiers.reply import FormatError, asks_to_reason, extract_code
from verifiers.sandbox import Sandbox, Sandboxes, SandboxSpec
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict

__all__ = ["TOTAL_SECONDS", "CodeVerifier", "FormatError", "TestResult", "extract_code", "run_tests"]

_FORMS = ("tests", "stdin_tests", "check")
MAX_ROUNDS = 40
MAX_CALLS = 2000
TOTAL_SECONDS = 60.0
"""Of all tests of one answer, if there are at most twenty."""


async def run_tests(
    source: str,
    tests: Sequence[Mapping[str, Any]],
    sandbox: Sandbox,
    *,
    preamble: str = "",
    language: Language = LANGUAGES["python"],
    judging: Judging = BY_LINES,
    seconds: float = 6.0,
    total_seconds: float = TOTAL_SECONDS,
) -> list[TestResult]:
    """Visible tests for an environment: one result each, in order, also after a failure.

    `tests` are rows as in the payload's `tests` or `stdin_tests`; their expected values stay outside the sandbox here
    too, and no checker is asked. Raises ValueError on a broken row, SandboxError.
    """
    budget = Budget(seconds, total_seconds)
    try:
        if tests and "stdin" in tests[0]:
            program = Program(f"{preamble}\n{source}" if preamble else source, language)
            return await run_programs(sandbox, program, parse_stdin_tests(tests), judging, budget, stop=False)
        solution = Solution(source, preamble, _announced(preamble))
        rows, as_json = parse_call_tests(tests), judging.compare == JSON
        return await run_call_tests(sandbox, solution, rows, budget, fresh=False, stop=False, as_json=as_json)
    except (TamperedError, BuildError) as error:
        return [TestResult(False, error=str(error))] * len(tests)


class CodeVerifier:
    """Payload, one of

    {"tests": [{"call", "args", "kwargs", "expected"}, …]}      expected values are compared outside the sandbox;
    {"stdin_tests": [{"stdin", "stdout"}, …]}                   whole programs;
    {"check": SOURCE, "entry_point": NAME, "prompt": SOURCE}    HumanEval's `check(candidate)`, run in a second sandbox;

    beside `tests`, an optional "preamble": definitions the answer may use, and "compare": "json", by which a tuple is
    as good as a list; beside `stdin_tests`, an optional "language" (see `programs.LANGUAGES`), and "compare" (see
    `programs.COMPARISONS`) or "checker": Python that defines check(stdin, expected, printed), and runs where the
    candidate never was.

    A test has `seconds`, up to twenty `total_seconds`, more of them more in proportion, and a checker as much again, as
    far as the deadline of a grading goes; the first failure ends it. `partial` runs them all, and
    pays between -1 and 1 for the share that passes, in the forms that count tests. `languages` adds some, by name.
    """

    lowest = -1.0

    def __init__(
        self,
        *,
        seconds: float = 6.0,
        total_seconds: float = TOTAL_SECONDS,
        memory_bytes: int = 512 << 20,
        pids: int = 64,
        partial: bool = False,
        languages: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    ) -> None:
        self.seconds = seconds
        self.total_seconds = total_seconds
        self.memory_bytes = memory_bytes
        self.pids = pids
        self.partial = partial
        self.languages = {**LANGUAGES, **{name: language_of(name, one) for name, one in languages.items()}}

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
                if payload.get("compare", JSON) != JSON:
                    raise ValueError(f"'compare' beside 'tests' can only be {JSON}, not {payload['compare']!r:.40}")
            elif forms == ["stdin_tests"]:
                parse_stdin_tests(payload["stdin_tests"])
                parse_language(payload, self.languages)
                parse_judging(payload)
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
        share = 0.0
        try:
            marks = parse_language(task.payload, self.languages).marks
            source = extract_code(submission.reply, reasoned=asks_to_reason(task.messages), marks=marks)
            share, problem = await self._grade(task, source, sandboxes)
        except (FormatError, BuildError) as error:
            problem = str(error)
        except TamperedError as error:
            return Verdict(Outcome.TAMPERED, self.lowest, False, str(error))
        except InvalidTaskError as error:
            return Verdict(Outcome.INVALID_TASK, detail=f"task {task.id}: {error}")
        reward = 2 * share - 1 if self.partial and problem else 1.0 if not problem else -1.0
        return Verdict.scored(reward, correct=not problem, detail=problem)

    async def _grade(self, task: Task, source: str, sandboxes: Sandboxes) -> tuple[float, str]:
        """The share of tests that pass, and what is wrong with the source in a sentence; empty if nothing."""
        payload = task.payload
        judging = parse_judging(payload) if "stdin_tests" in payload else BY_LINES
        tests = len(payload.get("tests", payload.get("stdin_tests", ())))
        budget = Budget.of(self.seconds, self.total_seconds, tests, share=0.5 if judging.checker else 0.8)
        spec = SandboxSpec(image=task.image, memory_bytes=self.memory_bytes, pids=self.pids)
        if "check" in payload:
            problem = await _Check(payload, source, sandboxes, spec, budget).run()
            return float(not problem), problem
        if "tests" in payload:
            preamble, rows = payload.get("preamble", ""), parse_call_tests(payload["tests"])
            solution = Solution(source, preamble, _announced(preamble))
            async with sandboxes.open(spec) as sandbox:
                how = {"stop": not self.partial, "as_json": payload.get("compare") == JSON}
                results = await run_call_tests(sandbox, solution, rows, budget, fresh=True, **how)
            return _told(results, len(rows))
        stdin_tests = parse_stdin_tests(payload["stdin_tests"])
        program = Program(source, parse_language(payload, self.languages))
        async with sandboxes.open(spec) as sandbox:
            results = await run_programs(sandbox, program, stdin_tests, judging, budget, stop=not self.partial)
        if judging.checker and (self.partial or results[-1].passed):
            # Its time is its own, or a program would fail by what the checker takes.
            budget = Budget.of(self.seconds, self.total_seconds, tests)
            results = await judge(sandboxes, spec, judging.checker, stdin_tests, results, budget)
        return _told(results, tests)


def _told(results: Sequence[TestResult], tests: int) -> tuple[float, str]:
    failed = next((at for at, result in enumerate(results) if not result.passed), None)
    if failed is None:
        return 1.0, ""
    share = sum(result.passed for result in results) / tests
    return share, f"hidden test {failed + 1} failed: {results[failed].error or 'wrong result'}"


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
                answers = await ask(sandbox, self.solution, said["calls"], self.budget, fresh=True, echo=True)
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
