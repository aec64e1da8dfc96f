"""Whole programs: the languages they are written in, their tests, and what counts as the same output."""

import ast
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from verifiers._plain import encode
from verifiers._relay import Budget, Solution, ask, room
from verifiers.code_tests import TestResult, rows_of
from verifiers.errors import InvalidTaskError
from verifiers.reply import PYTHON
from verifiers.sandbox import ExecResult, Sandbox, Sandboxes, SandboxSpec

BUILD_SECONDS: Final = 30.0
BUILD_SAYS: Final = 300
"""Characters of a compiler's complaint that a verdict repeats."""
TOLERANCE: Final = 1e-6
_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
PRINTED_BYTES: Final = 32 << 20
"""Of all outputs of one answer, beside what is expected, where a checker has to read them."""
CHUNK: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Language:
    """How a program is built and run. `marks` open its fenced block."""

    marks: frozenset[str]
    file: str
    run: tuple[str, ...]
    build: tuple[str, ...] = ()


LANGUAGES: Final[Mapping[str, Language]] = {
    "python": Language(PYTHON, "solution.py", ("python3", "-I", "solution.py")),
    "cpp": Language(
        frozenset({"cpp", "c++", "cc", "cxx"}),
        "solution.cpp",
        ("./solution",),
        ("g++", "-O2", "-std=c++17", "-pipe", "-o", "solution", "solution.cpp"),
    ),
}


@dataclass(frozen=True, slots=True)
class Program:
    """A program's source, and its language."""

    source: str
    language: Language


@dataclass(frozen=True, slots=True)
class StdinTest:
    """A program that reads `stdin` must print `stdout`, as `Judging` compares."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class Judging:
    """What counts as right: a way of comparing, by name, or a checker's source."""

    compare: str = "lines"
    checker: str = ""


BY_LINES: Final = Judging()


class BuildError(ValueError):
    """The compiler refuses the program, in a sentence."""


def parse_stdin_tests(rows: object) -> list[StdinTest]:
    """From rows {"stdin", "stdout"}. Raises ValueError with one sentence."""
    tests = []
    for place, row in enumerate(rows_of(rows)):
        if not (isinstance(row.get("stdin"), str) and isinstance(row.get("stdout"), str)):
            raise ValueError(f"test {place} needs the texts 'stdin' and 'stdout'")
        tests.append(StdinTest(row["stdin"], row["stdout"]))
    return tests


def parse_language(payload: Mapping[str, Any], known: Mapping[str, Language]) -> Language:
    """The language that a payload names, Python if none. Raises ValueError."""
    name = payload.get("language", "python")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"the language {name!r:.40} is not known; known are {', '.join(sorted(known))}")
    return known[name]


def parse_judging(payload: Mapping[str, Any]) -> Judging:
    """Of `compare` or `checker`. Raises ValueError."""
    compare, checker = payload.get("compare", "lines"), payload.get("checker", "")
    if "compare" in payload and "checker" in payload:
        raise ValueError("'compare' and 'checker' exclude each other")
    if not isinstance(compare, str) or compare not in COMPARISONS:
        raise ValueError(f"'compare' must be one of {', '.join(COMPARISONS)}, not {compare!r:.40}")
    if not isinstance(checker, str):
        raise ValueError("'checker' must be text")
    if checker:
        try:
            found = ast.parse(checker).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"'checker' is no Python: {error}") from error
        if not any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in found):
            raise ValueError("'checker' defines no function check(stdin, expected, printed)")
    return Judging(compare, checker)


async def run_programs(
    sandbox: Sandbox, program: Program, tests: Sequence[StdinTest], judging: Judging, budget: Budget, *, stop: bool
) -> list[TestResult]:
    """One result a test, in order, each in a process of its own; up to the first failure if `stop`.

    With a checker they are as yet unjudged: those that ran hold all that was printed; see `judge`. Raises BuildError,
    InvalidTaskError, SandboxError.
    """
    await build(sandbox, program, budget)
    results: list[TestResult] = []
    expected = [len(test.stdout.encode("utf-8", "replace")) for test in tests]
    left = PRINTED_BYTES + sum(expected)
    for test, size in zip(tests, expected, strict=True):
        if budget.left <= 0:
            results.append(TestResult(False, error=f"not run: {budget.over}"))
        else:
            stdin = test.stdin.encode("utf-8", "replace")
            ran = await budget.run(sandbox, list(program.language.run), stdin, limit=room(size))
            results.append(_result(ran, test, judging, budget))
            left -= len(ran.stdout) if judging.checker else 0
            if left < 0:
                results[-1] = TestResult(False, error="the program printed too much")
        if stop and not results[-1].passed:
            break
    return results


async def build(sandbox: Sandbox, program: Program, budget: Budget) -> None:
    """Put it into the sandbox, and compile it. Raises BuildError, InvalidTaskError, SandboxError."""
    language = program.language
    try:
        await sandbox.write(language.file, program.source.encode("utf-8", "replace"))
    except ValueError as error:  # an earlier program of the policy's, in the same sandbox, stands in its way
        raise BuildError(f"there is no place for the program: {error}") from error
    if not language.build:
        return
    began, seconds = time.monotonic(), max(0.1, min(BUILD_SECONDS, budget.left))
    built = await sandbox.exec(list(language.build), timeout=seconds)
    budget.left -= time.monotonic() - began
    if built.exit_code == 127:
        raise InvalidTaskError(f"its sandbox has no '{language.build[0]}': name an image that has it")
    if built.timed_out:
        raise BuildError(f"the program took longer than {seconds:g} s to compile")
    if built.exit_code != 0:
        said = built.stderr.decode("utf-8", "replace").strip()
        errors = [line for line in said.splitlines() if "error" in line]
        raise BuildError(f"the program does not compile: {(errors or [said])[0]:.{BUILD_SAYS}}")


async def judge(
    sandboxes: Sandboxes,
    spec: SandboxSpec,
    checker: str,
    tests: Sequence[StdinTest],
    results: Sequence[TestResult],
    budget: Budget,
) -> list[TestResult]:
    """Have a checker say what is right of what programs printed, in a sandbox where no candidate ever was.

    Raises InvalidTaskError for a checker that does not load, SandboxError.
    """
    judged = list(results)
    async with sandboxes.open(spec) as sandbox:
        first = True
        for places in _chunks(tests, results):
            texts = [(tests[at].stdin, tests[at].stdout, results[at].got) for at in places]
            calls = [("check", encode(list(three)), encode({})) for three in texts]
            answers = await ask(sandbox, Solution(checker), calls, budget, fresh=first)
            first = False
            for at, answer in zip(places, answers, strict=False):
                judged[at] = _judgement(answer, results[at])
            for at in places[len(answers) :]:
                judged[at] = TestResult(False, error="not checked: the checker had ended")
    return judged


def _judgement(answer: Mapping[str, Any], result: TestResult) -> TestResult:
    got = _shown(result.got)
    if "died" in answer:
        if "cannot be loaded" in answer["died"]:
            raise InvalidTaskError(f"its checker: {answer['died'].replace('the answer', 'it')}")
        return TestResult(False, got, f"checker: {answer['died'].replace('the answer', 'it')}")
    if "raised" in answer:
        return TestResult(False, got, "the checker cannot digest it: {}: {}".format(*answer["raised"]))
    return TestResult(answer["value"] is True, got)


def _chunks(tests: Sequence[StdinTest], results: Sequence[TestResult]) -> Iterator[list[int]]:
    """Places of what ran, by so many that their texts fit into a request."""
    places: list[int] = []
    size = 0
    for at, result in enumerate(results):
        if not result.passed:
            continue
        texts = len(tests[at].stdin) + len(tests[at].stdout) + len(result.got)
        if places and size + texts > CHUNK:
            yield places
            places, size = [], 0
        places.append(at)
        size += texts
    if places:
        yield places


def _result(ran: ExecResult, test: StdinTest, judging: Judging, budget: Budget) -> TestResult:
    printed = ran.stdout.decode("utf-8", "replace")
    got = _shown(printed)
    if ran.timed_out:
        return TestResult(
            False, got, f"the program took longer than {budget.call:g} s" if budget.left > 0 else budget.over
        )
    if ran.exit_code != 0 or ran.oom:
        last = ran.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return TestResult(False, got, f"the program ended with exit code {ran.exit_code}: {last:.200}")
    if ran.truncated:
        return TestResult(False, got, "the program printed too much")
    if judging.checker:
        return TestResult(True, printed)
    return TestResult(COMPARISONS[judging.compare](printed, test.stdout), got)


def _shown(printed: str) -> str:
    return printed if len(printed) <= 200 else printed[:200] + "..."


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _same_lines(printed: str, expected: str) -> bool:
    return _lines(printed) == _lines(expected)


def _same_tokens(printed: str, expected: str) -> bool:
    return printed.split() == expected.split()


def _same_unordered(printed: str, expected: str) -> bool:
    return Counter(_lines(printed)) == Counter(_lines(expected))


def _same_caseless(printed: str, expected: str) -> bool:
    return printed.casefold().split() == expected.casefold().split()


def _same_numbers(printed: str, expected: str) -> bool:
    got, want = printed.split(), expected.split()
    return len(got) == len(want) and all(map(_near, got, want))


def _near(got: str, want: str) -> bool:
    if got == want:
        return True
    try:
        if _INTEGER.fullmatch(want) and (_INTEGER.fullmatch(got) or Decimal(got) == Decimal(want)):
            return Decimal(got) == Decimal(want)
        left, right = float(got), float(want)
    except (ValueError, ArithmeticError):
        return False
    if _INTEGER.fullmatch(want):  # 1999999.7 is not 2000000, but 1.9999999 is 2
        return abs(left - right) <= TOLERANCE
    return math.isclose(left, right, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


COMPARISONS: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "lines": _same_lines,
    "tokens": _same_tokens,
    "unordered": _same_unordered,
    "caseless": _same_caseless,
    "numbers": _same_numbers,
}
"""Lines, less spaces at their ends; words; lines in any order; words in any case; words, with numbers within 1e-6,
integers exactly."""


def language_of(name: str, settings: Mapping[str, Any]) -> Language:
    """One from plain settings: `marks`, `file`, `run`, `build`. Raises ValueError."""
    try:
        marks, file = settings["marks"], settings["file"]
        run, build_by = settings["run"], settings.get("build", [])
    except KeyError as error:
        raise ValueError(f"the language '{name}' needs {error}") from error
    if not isinstance(file, str) or not all(_are_words(part) for part in (marks, run, build_by)) or not run:
        raise ValueError(f"the language '{name}' needs a text 'file' and lists of words 'marks', 'run' and 'build'")
    return Language(frozenset(marks), file, tuple(run), tuple(build_by))


def _are_words(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(part, str) for part in value)
