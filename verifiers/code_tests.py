"""Tests of code as plain data, and running them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verifiers._compare import same, show
from verifiers._plain import NotPlainError, encode, is_opaque
from verifiers._relay import Answer, Budget, Solution, ask
from verifiers.sandbox import ExecResult, Sandbox

MAX_TESTS = 10_000
_SOLUTION_FILE = "solution.py"


@dataclass(frozen=True, slots=True)
class CallTest:
    """call(*args, **kwargs) == expected; arguments encoded as in `_plain`, the expected value as it is."""

    call: str
    args: Any
    kwargs: Any
    expected: Any


@dataclass(frozen=True, slots=True)
class StdinTest:
    """A whole program that reads `stdin` and must print `stdout`; spaces at ends of lines do not count."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class TestResult:
    """How one test went: what came back, as Python prints it, or why nothing did."""

    __test__ = False  # no test class, whatever pytest thinks of its name

    passed: bool
    got: str = ""
    error: str = ""


def parse_call_tests(rows: object) -> list[CallTest]:
    """From rows {"call", "args", "kwargs", "expected"}. Raises ValueError with one sentence."""
    return [_call_test(row, f"test {place}") for place, row in enumerate(_rows(rows))]


def parse_stdin_tests(rows: object) -> list[StdinTest]:
    """From rows {"stdin", "stdout"}. Raises ValueError with one sentence."""
    tests = []
    for place, row in enumerate(_rows(rows)):
        if not (isinstance(row.get("stdin"), str) and isinstance(row.get("stdout"), str)):
            raise ValueError(f"test {place} needs the texts 'stdin' and 'stdout'")
        tests.append(StdinTest(row["stdin"], row["stdout"]))
    return tests


def _rows(rows: object) -> Sequence[Mapping[str, Any]]:
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise ValueError("there are no tests")
    if len(rows) > MAX_TESTS:
        raise ValueError(f"there are {len(rows)} tests, and at most {MAX_TESTS} may be")
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"test {place} is a {type(row).__name__} and not an object")
    return rows


def _call_test(row: Mapping[str, Any], where: str) -> CallTest:
    name, args, kwargs = row.get("call"), row.get("args", []), row.get("kwargs", {})
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{where} needs the name of a function in 'call'")
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, Mapping):
        raise ValueError(f"{where} needs a list in 'args' and an object in 'kwargs'")
    if "expected" not in row:
        raise ValueError(f"{where} has no 'expected'")
    try:
        given = encode(list(args)), encode(dict(kwargs))
        data = [*given, encode(row["expected"])]
    except NotPlainError as error:
        raise ValueError(f"{where} holds {error}") from error
    if is_opaque(data):
        raise ValueError(f"{where} holds a value that is no plain data")
    return CallTest(name, *given, row["expected"])


async def run_call_tests(
    sandbox: Sandbox, solution: Solution, tests: Sequence[CallTest], budget: Budget, *, grading: bool
) -> list[TestResult]:
    """One result a test, in order. `grading` takes a fresh sandbox, and stops at the first failure.

    Raises TamperedError, SandboxError.
    """
    results: list[TestResult] = []
    while len(results) < len(tests):
        rest = tests[len(results) :]
        calls = [(test.call, test.args, test.kwargs) for test in rest]
        answers = await ask(sandbox, solution, calls, budget, fresh=grading and not results)
        for answer, test in zip(answers, rest, strict=False):
            results.append(_judge(answer, test))
            if grading and not results[-1].passed:
                return results
        if budget.left <= 0:
            return results + [TestResult(False, error="not run: the tests took too long")] * (len(tests) - len(results))
    return results


def _judge(answer: Answer, test: CallTest) -> TestResult:
    if "died" in answer:
        return TestResult(False, error=answer["died"])
    if "raised" in answer:
        return TestResult(False, error="{}: {}".format(*answer["raised"]))
    return TestResult(same(answer["value"], test.expected), got=show(answer["value"]))


async def run_stdin_tests(
    sandbox: Sandbox, solution: Solution, tests: Sequence[StdinTest], budget: Budget, *, grading: bool
) -> list[TestResult]:
    """As `run_call_tests`, each test in a process of its own. Raises SandboxError."""
    await sandbox.write(_SOLUTION_FILE, f"{solution.preamble}\n{solution.source}".encode("utf-8", "replace"))
    results: list[TestResult] = []
    for test in tests:
        if budget.left <= 0:
            results.append(TestResult(False, error="not run: the tests took too long"))
        else:
            result = await budget.run(sandbox, ["python3", "-I", _SOLUTION_FILE], test.stdin.encode("utf-8", "replace"))
            results.append(_judge_output(result, test, budget))
        if grading and not results[-1].passed:
            break
    return results


def _judge_output(result: ExecResult, test: StdinTest, budget: Budget) -> TestResult:
    printed = result.stdout.decode("utf-8", "replace")
    got = printed if len(printed) <= 200 else printed[:200] + "..."
    if result.timed_out:
        return TestResult(False, got, f"the program took longer than {budget.call:g} s")
    if result.exit_code != 0 or result.oom:
        last = result.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return TestResult(False, got, f"the program ended with exit code {result.exit_code}: {last:.200}")
    if result.truncated:
        return TestResult(False, got, "the program printed too much")
    return TestResult(_trimmed(printed) == _trimmed(test.stdout), got)


def _trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
