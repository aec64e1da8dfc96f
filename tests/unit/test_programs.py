"""Whole programs: languages, ways to compare, checkers, partial credit. See `plain_sandbox` for where they run."""

import shutil
from typing import Any

import pytest
from plain_sandbox import PlainSandboxes

from verifiers.code import CodeVerifier
from verifiers.examples import fenced
from verifiers.programs import COMPARISONS
from verifiers.task import Message, Submission, Task
from verifiers.verdict import Outcome, Verdict

SUMS = [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "5 6\n", "stdout": "11\n"}, {"stdin": "0 0", "stdout": "0"}]
CPP = "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }"
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")


async def grade(source: str, *, mark: str = "python", verifier: CodeVerifier | None = None, **payload: Any) -> Verdict:
    task = Task("t", "code", (Message("system", "Think up to </think>."),), "code", payload=payload)
    return await (verifier or CodeVerifier()).verify(task, Submission(fenced(source, mark)), PlainSandboxes())


@pytest.mark.required
@needs_compiler
async def test_a_compiled_language() -> None:
    right = await grade(CPP, mark="cpp", stdin_tests=SUMS, language="cpp")
    assert (right.outcome, right.reward, right.correct) == (Outcome.SCORED, 1.0, True), right
    wrong = await grade(CPP.replace("a + b", "a - b"), mark="c++", stdin_tests=SUMS, language="cpp")
    assert (wrong.correct, wrong.detail) == (False, "hidden test 1 failed: wrong result")
    broken = await grade("int main( {", mark="cpp", stdin_tests=SUMS, language="cpp")
    assert broken.reward == -1
    assert "does not compile" in broken.detail and "error" in broken.detail
    python = await grade(CPP, stdin_tests=SUMS, language="cpp")
    assert "must be marked c++" in python.detail


async def test_a_language_of_ones_own_and_a_compiler_that_is_not_there() -> None:
    shell = {"marks": ["sh"], "file": "s.sh", "run": ["sh", "s.sh"]}
    verifier = CodeVerifier(languages={"shell": shell, "none": {**shell, "build": ["no-such-compiler"]}})
    script = "read a b; echo $((a + b))"
    assert (await grade(script, mark="sh", verifier=verifier, stdin_tests=SUMS, language="shell")).correct
    verdict = await grade(script, mark="sh", verifier=verifier, stdin_tests=SUMS, language="none")
    assert (verdict.outcome, verdict.reward) == (Outcome.INVALID_TASK, None)
    assert "no 'no-such-compiler'" in verdict.detail
    for bad in ({}, {**shell, "run": []}, {**shell, "marks": "sh"}):
        with pytest.raises(ValueError, match="language 'shell' needs"):
            CodeVerifier(languages={"shell": bad})


@pytest.mark.parametrize(
    ("how", "printed", "expected", "same"),
    [
        ("lines", "1 \n2\n\n", "1\n2", True),
        ("lines", "1\n\n2", "1\n2", False),
        ("tokens", "1\n\n2", "1 2", True),
        ("tokens", "12", "1 2", False),
        ("unordered", "b\na\na\n", "a\nb\na", True),
        ("unordered", "a\nb\nb", "a\na\nb", False),
        ("caseless", "YES no", "yes NO", True),
        ("caseless", "yes", "no", False),
        ("numbers", "0.33333333 x", "0.33333334 x", True),
        ("numbers", "1e0 nan", "1 nan", True),
        ("numbers", "0.34", "0.33", False),
        ("numbers", "nan", "1", False),
        ("numbers", "inf", "1e308", False),
        ("numbers", "1 1", "1", False),
        ("numbers", "1000000000", "1000000007", False),
        ("numbers", "1000000000.0", "1000000007", False),
        ("numbers", "2000002", "2000001", False),
        ("numbers", "1000000007.000", "1000000007", True),
        ("numbers", "1.9999999 -0.0 3e2", "2 0 300", True),
        ("numbers", "1.999", "2", False),
        ("numbers", "1e999999999 snan", "1 1", False),
        ("numbers", "snan", "1", False),
    ],
)
def test_comparisons(how: str, printed: str, expected: str, same: bool) -> None:
    assert COMPARISONS[how](printed, expected) is same


DIVISOR = """
def check(stdin, expected, printed):
    number, found = int(stdin), int(printed)
    return 1 < found < number and number % found == 0
"""


async def test_a_checker_judges_where_the_candidate_is_not() -> None:
    tests = [{"stdin": "15\n", "stdout": "3\n"}, {"stdin": "77\n", "stdout": "7\n"}]
    any_divisor = "n = int(input())\nprint(max(k for k in range(2, n) if n % k == 0))"
    assert (await grade(any_divisor, stdin_tests=tests, checker=DIVISOR)).correct
    one = await grade("input()\nprint(5)", stdin_tests=tests, checker=DIVISOR)
    assert (one.correct, one.detail) == (False, "hidden test 2 failed: wrong result")
    said = await grade("print('many')", stdin_tests=tests, checker=DIVISOR)
    assert "cannot digest it: ValueError" in said.detail
    assert said.reward == -1
    truthy = DIVISOR.replace("return", "return 1 if 0 else 'yes' or")
    assert (await grade(any_divisor, stdin_tests=tests, checker=truthy)).correct is False


async def test_a_checker_that_does_not_load_is_the_tasks_fault() -> None:
    verdict = await grade("print(1)", stdin_tests=SUMS, checker="import nowhere\ndef check(a, b, c): return True")
    assert verdict.outcome is Outcome.INVALID_TASK
    assert "its checker" in verdict.detail and "nowhere" in verdict.detail


@pytest.mark.slow
async def test_time_grows_with_the_tests_and_a_checker_has_its_own() -> None:
    naps = [{"stdin": "1\n", "stdout": "1\n"}] * 60
    short = CodeVerifier(seconds=3.0, total_seconds=6.0)
    right = await grade("import time\ntime.sleep(0.1)\nprint(1)", verifier=short, stdin_tests=naps)
    assert right.correct, right
    slow = CodeVerifier(seconds=3.0, total_seconds=1.0)
    verdict = await grade("import time\ntime.sleep(0.7)\nprint(1)", verifier=slow, stdin_tests=naps[:3])
    assert "all tests together took longer than 1 s" in verdict.detail
    checker = "def check(stdin, expected, printed):\n    import time\n    time.sleep(0.6)\n    return True"
    program = "import time\ntime.sleep(0.6)\nprint(1)"
    own = CodeVerifier(seconds=3.0, total_seconds=1.6)
    assert (await grade(program, verifier=own, stdin_tests=naps[:1], checker=checker)).correct


async def test_partial_credit() -> None:
    half = CodeVerifier(partial=True)
    tests = [{"call": "f", "args": [n], "expected": n % 2} for n in range(4)]
    verdict = await grade("def f(n): return 0", verifier=half, tests=tests)
    assert (verdict.reward, verdict.correct, verdict.detail) == (0.0, False, "hidden test 2 failed: wrong result")
    assert (await grade("def f(n): return n % 2", verifier=half, tests=tests)).reward == 1.0
    dies = await grade("def f(n):\n    if n == 1: exit()\n    return n % 2", verifier=half, tests=tests)
    assert dies.reward == 0.5
    assert (await grade("print(3)", verifier=half, stdin_tests=SUMS)).reward == pytest.approx(-1 / 3)
    assert (await grade("print(3)", stdin_tests=SUMS)).reward == -1.0
    checked = await grade(
        "print(3)", verifier=half, stdin_tests=SUMS, checker="def check(a, b, c): return b.split() == c.split()"
    )
    assert checked.reward == pytest.approx(-1 / 3)


async def test_methods_of_a_solution_class() -> None:
    tests = [{"call": "add", "args": [1, 2], "expected": 3}]
    source = "class Solution:\n    def add(self, a: int, b: int) -> int:\n        return a + b"
    assert (await grade(source, tests=tests)).correct
    assert "defines no function" in (await grade("class Solution: pass", tests=tests)).detail


@pytest.mark.slow
async def test_fifty_megabytes_are_refused_or_graded_and_cost_no_run() -> None:
    verdict = await grade("#" * (50 << 20) + "\nprint(sum(map(int, input().split())))", stdin_tests=SUMS[:1])
    assert verdict.outcome in (Outcome.SCORED, Outcome.VERIFIER_ERROR), verdict
