"""The code verifier: its forms, and answers that attack their grading. See `plain_sandbox` for where they run."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from plain_sandbox import DEFAULT_SPEC, PlainSandboxes

from verifiers import _compare, _plain
from verifiers.code import CodeVerifier, run_tests
from verifiers.reply import FormatError, extract_code
from verifiers.runner import Grader
from verifiers.sandbox import ExecResult, Sandbox, SandboxSpec
from verifiers.task import Message, Submission, Task
from verifiers.verdict import Outcome, Verdict

ADD = [
    {"call": "add", "args": [1, 2], "expected": 3},
    {"call": "add", "args": [5], "kwargs": {"b": -5}, "expected": 0},
    {"call": "add", "args": ["a", "b"], "expected": "ab"},
]
CHECK = """
def check(candidate):
    assert candidate(1, 2) == 3
    for k in range(50):
        assert candidate(k, k) == 2 * k, "wrong for " + str(candidate(k, k))
"""


def task(payload: dict[str, Any]) -> Task:
    """One that asks for reasoning."""
    return Task("t", "code", (Message("system", "Think first, up to </think>."),), "code", payload=payload)


async def grade(source: str, payload: dict[str, Any], *, seconds: float = 6.0, total: float = 60.0) -> Verdict:
    verifier = CodeVerifier(seconds=seconds, total_seconds=total)
    reply = Submission(f"thoughts</think>\nHere:\n```python\n{source}\n```\n")
    sandboxes = PlainSandboxes()
    verdict = await verifier.verify(task(payload), reply, sandboxes)
    assert sandboxes.most <= 1, "two sandboxes at once can deadlock a bounded pool"
    return verdict


PAYLOADS = [{"tests": ADD}, {"check": CHECK, "entry_point": "add", "prompt": ""}]
both_forms = pytest.mark.parametrize("payload", PAYLOADS, ids=["tests", "check"])


@both_forms
async def test_a_right_answer_passes(payload: dict[str, Any]) -> None:
    verdict = await grade("def add(a, b):\n    print('noise')\n    return a + b", payload)
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.SCORED, 1.0, True), verdict.detail


EQUAL_TO_ALL = """
class Yes(KIND):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __add__(self, other): return self
    def __index__(self): return 3
    def __repr__(self): return '3'
def add(a, b): return Yes()
"""


@pytest.mark.slow
@both_forms
@pytest.mark.parametrize(
    "source",
    [
        "def add(a, b): return a - b",
        "",
        "def add(a, b) return a + b",
        "def plus(a, b): return a + b",
        "add = 3",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "exit(0)",
        "raise KeyboardInterrupt",
        "def add(a, b): raise SystemExit(0)",
        "def add(a, b): quit()",
        "def add(a, b):\n    import os\n    os._exit(0)",
        "def add(a, b):\n    import os\n    os.execv('/bin/true', ['true'])",
        "import os\nos.execv('/bin/true', ['true'])",
        "import atexit, os\natexit.register(os._exit, 0)\nprint('PASSED')",
        "import sys\nsys.excepthook = lambda *a: None\nprint('OK', 'passed', 1.0)\nraise ValueError",
        "import json\njson.dumps = lambda *a, **k: '{\"value\": true}'\ndef add(a, b): return 1",
        "import json\njson.loads = lambda *a, **k: {}\ndef add(a, b): return 1",
        "import builtins\nbuiltins.AssertionError = Warning\ndef add(a, b): return 1",
        "def add(a, b): return NotImplemented",
        "def add(a, b): return (x for x in [1])",
        "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
        "def add(a, b): return 'x' * (1 << 22)",
        EQUAL_TO_ALL.replace("KIND", "object"),
        EQUAL_TO_ALL.replace("KIND", "int"),
        EQUAL_TO_ALL.replace("KIND", "str"),
    ],
)
async def test_other_answers_fail(payload: dict[str, Any], source: str) -> None:
    verdict = await grade(source, payload)
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.SCORED, -1.0, False)
    assert verdict.detail


@both_forms
async def test_writing_into_the_channel_of_results_is_tampering(payload: dict[str, Any]) -> None:
    forge = """
import os
for fd in range(3, 300):
    try: os.write(fd, b'{"value": 3}\\n' * 3)
    except OSError: pass
def add(a, b): return 3
"""
    verdict = await grade(forge, payload)
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.TAMPERED, -1.0, False)


async def test_results_forged_with_the_real_nonce_only_say_what_a_return_would() -> None:
    forge = """
import os, sys, json
frame = sys._getframe()
while 'send' not in frame.f_locals: frame = frame.f_back
send = frame.f_locals['send']
for _ in range(9): send({"value": 3})
def add(a, b): return 3
"""
    verdict = await grade(forge, {"tests": ADD})
    assert (verdict.outcome, verdict.correct) == (Outcome.TAMPERED, False)
    verdict = await grade(forge.replace("range(9)", "range(2)") + "os._exit(0)", {"tests": ADD})
    assert verdict.correct is False


SECRET = 918273645
LOOK = f"""
import gc, re, sys
def add(a, b):
    texts = [repr(o) for o in gc.get_objects() if type(o) in (dict, list, tuple, str)]
    frame = sys._getframe()
    while frame:
        texts.append(repr(dict(frame.f_locals)))
        frame = frame.f_back
    texts += [open('/proc/self/' + name, errors='replace').read() for name in ('environ', 'cmdline')]
    numbers = set(re.findall(r'[0-9]{{9}}', ' '.join(texts)))
    return 'found' if any(int(n) * 7 + 1 == {SECRET * 7 + 1} for n in numbers) else 'absent'
"""


@pytest.mark.slow
@pytest.mark.parametrize(("argument", "result"), [(SECRET, "found"), (1, "absent")])
async def test_expected_values_are_not_where_the_candidate_runs(argument: int, result: str) -> None:
    tests = [
        {"call": "add", "args": [argument, 2], "expected": result},
        {"call": "add", "args": [1, 2], "expected": SECRET},
    ]
    assert (await grade(LOOK, {"tests": tests})).detail == "hidden test 2 failed: wrong result"
    check = f"def check(candidate):\n    assert candidate({argument}, 2) in ({SECRET}, {result!r})"
    assert (await grade(LOOK, {"check": check, "entry_point": "add"})).correct


@pytest.mark.slow
@both_forms
async def test_an_endless_answer_fails_in_its_time(payload: dict[str, Any]) -> None:
    begun = time.monotonic()
    verdict = await grade("def add(a, b):\n    while True: pass", payload, seconds=0.5)
    assert verdict.correct is False and "0.5 s" in verdict.detail
    assert time.monotonic() - begun < 8


@pytest.mark.slow
async def test_an_answer_that_disarms_the_alarm_is_ended_from_outside() -> None:
    source = "import signal, time\ndef add(a, b):\n    signal.setitimer(signal.ITIMER_REAL, 0)\n    time.sleep(60)"
    begun = time.monotonic()
    verdict = await grade(source, {"tests": ADD}, seconds=0.5, total=1.5)
    assert (verdict.outcome, verdict.correct) == (Outcome.SCORED, False)
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize(
    ("expected", "source"),
    [
        (3, "from fractions import Fraction\ndef f(n): return Fraction(n)"),
        (3, "from decimal import Decimal\ndef f(n): return Decimal(n)"),
        (0.5, "from decimal import Decimal\ndef f(n): return Decimal('0.5')"),
        ([10**400, 0.5], "from fractions import Fraction\ndef f(n): return [Fraction(10**400), Fraction(1, 2)]"),
        ({1, 2}, "def f(n): return {1: 0, 2: 0}.keys()"),
        ({(1, 0)}, "def f(n): return {1: 0}.items()"),
        ([3, True], "import numpy\ndef f(n): return [numpy.int64(3), numpy.bool_(True)]"),
    ],
)
async def test_what_equals_plain_data_is_as_good(expected: object, source: str) -> None:
    assert (await grade(source, {"tests": [{"call": "f", "args": [3], "expected": expected}]})).correct
    other = [{"call": "f", "args": [3], "expected": 4}]
    assert not (await grade(source, {"tests": other})).correct


@pytest.mark.parametrize(
    ("prompt", "source", "caught"),
    [
        ("", "class Bad(ValueError): pass\ndef f(n): raise Bad('x')", "ValueError"),
        ("", "import json\ndef f(n): json.loads('{')", "ValueError"),
        ("class Bad(Exception): pass", "def f(n): raise Bad('x')", "Bad"),
        ("class Bad(Exception): pass", "class Worse(Bad): pass\ndef f(n): raise Worse('x')", "Bad"),
    ],
)
async def test_an_exception_is_caught_by_its_bases(prompt: str, source: str, caught: str) -> None:
    check = "def check(candidate):\n    try:\n        candidate(3)\n        assert False\n    except {}: pass"
    payload = {"check": check.format(caught), "entry_point": "f", "prompt": prompt}
    assert (await grade(source, payload)).correct
    assert not (await grade(source, payload | {"check": check.format("KeyError")})).correct


async def test_carriage_returns_and_a_longer_fence() -> None:
    for reply in (
        "x</think>\r\n```python\r\ndef f(n):\r\n    return n\r\n```\r\n",
        "x</think>\n```python\ndef f(n):\n    return n\n`````\n",
    ):
        tests = [{"call": "f", "args": [3], "expected": 3}]
        assert (await CodeVerifier().verify(task({"tests": tests}), Submission(reply), PlainSandboxes())).correct


async def test_annotations_are_the_answers_own() -> None:
    source = "def f(n: int):\n    assert all(isinstance(n, kind) for kind in f.__annotations__.values())\n    return n"
    assert (await grade(source, {"tests": [{"call": "f", "args": [3], "expected": 3}]})).correct


@pytest.mark.slow
async def test_every_test_has_its_own_time_but_all_together_have_theirs() -> None:
    slow = "import time\ndef add(a, b):\n    time.sleep(0.5)\n    return a + b"
    tests = [{"call": "add", "args": [k, k], "expected": 2 * k} for k in range(5)]
    assert (await grade(slow, {"tests": tests}, seconds=1.5)).correct
    verdict = await grade(slow, {"tests": tests}, seconds=1.5, total=1.0)
    assert verdict.correct is False and "together took longer than 1 s" in verdict.detail


class BusyMachine(PlainSandboxes):
    """Every command starts 0.3 s late."""

    @asynccontextmanager
    async def open(self, spec: SandboxSpec = DEFAULT_SPEC) -> AsyncIterator[Sandbox]:
        async with super().open(spec) as sandbox:
            at_once = sandbox.exec

            async def late(argv: Sequence[str], **options: Any) -> ExecResult:
                return await at_once(["sh", "-c", 'sleep 0.3; exec "$@"', "sh", *argv], **options)

            sandbox.exec = late  # type: ignore[method-assign, assignment]
            yield sandbox


@pytest.mark.slow
@both_forms
async def test_an_answer_that_uses_all_its_time_up_is_wrong_and_no_fault_of_ours(payload: dict[str, Any]) -> None:
    """Though in no time at all Python does not even start, which is how a broken sandbox looks, too."""
    reply = Submission("</think>\n```python\nimport time\ndef add(a, b): time.sleep(60)\n```")
    grader = Grader(CodeVerifier(seconds=5.0, total_seconds=1.5), BusyMachine())
    verdict = await grader.grade(task(payload), reply)
    assert (verdict.outcome, verdict.correct) == (Outcome.SCORED, False), verdict.detail


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expected", "value", "passes"),
    [
        *[("(1, 2)", "(1, 2)", True), ("(1, 2)", "[1, 2]", False), ("{1, 2}", "{2, 1}", True), ("{1}", "[1]", False)],
        *[("0.3", "0.1 + 0.2", True), ("0.3", "0.31", False), ("float('nan')", "float('nan')", True)],
        *[("float('inf')", "1e999", True), ("None", "None", True), ("None", "False", False), ("True", "1", True)],
        *[("2**80", "2**80", True), ("2**80", "2**80 + 1", False), ("3", "3.0", True), ("3", "'3'", False)],
        *[
            ("{'a': [1]}", "{'a': [1]}", True),
            ("{1: 2}", "{'1': 2}", False),
            ("b'x'", "b'x'", True),
            ("1j", "1j", True),
        ],
        *[("{'a': 1}", "__import__('collections').Counter('a')", True), ("[]", "()", False), ("''", "[]", False)],
        *[("1.0", "10**400", False), ("[1]", "1", False), ("{}", "set()", False), ("'\\ud800'", "'\\ud800'", True)],
    ],
)
async def test_results_are_compared_as_plain_values(expected: str, value: str, passes: bool) -> None:
    tests = [{"call": "f", "args": [], "expected": eval(expected)}]
    assert (await grade(f"def f(): return {value}", {"tests": tests})).correct is passes


async def test_a_check_sees_mutation_exceptions_keywords_and_helpers_of_its_prompt() -> None:
    prompt = "import math\ndef helper(x):\n    return x + 1\n\ndef work(xs, *, add):\n    '''Adds in place.'''\n"
    check = """
def check(candidate):
    xs = [1, 2]
    assert candidate(xs, add=1) is None and xs == [helper(1), 3]
    try:
        candidate(None, add=1)
    except TypeError:
        pass
    else:
        assert False, "no TypeError"
    try:
        candidate([], add=-1)
    except Exception as error:
        assert type(error).__name__ == "OwnError" and str(error) == "negative"
    ys = []
    while len(ys) < 3:
        ys.append(0)
        candidate(ys, add=ys[-1] + 1)
    assert ys == work_list(candidate)

def work_list(candidate):
    ys = [0]
    for _ in range(2):
        candidate(ys, add=ys[-1] + 1)
        ys.append(0)
    candidate(ys, add=ys[-1] + 1)
    return ys
"""
    source = """
class OwnError(Exception): pass
def work(xs, *, add):
    if add < 0: raise OwnError("negative")
    for place in range(len(xs)): xs[place] += add
"""
    payload = {"check": check, "entry_point": "work", "prompt": prompt}
    verdict = await grade(source, payload)
    assert verdict.correct, verdict.detail
    assert (await grade(source.replace("negative", "no"), payload)).correct is False
    assert (await grade(source.replace("+=", "-="), payload)).correct is False


async def test_calls_are_made_in_order_in_one_process() -> None:
    check = "def check(candidate):\n    assert candidate([1]) == [1]\n    assert candidate([1]) == [1]"
    sticky = "def f(xs, seen=[]):\n    seen += xs\n    return seen"
    payload = {"check": check, "entry_point": "f"}
    assert (await grade(sticky, payload)).correct is False
    assert (await grade("def f(xs): return xs", payload)).correct


async def test_a_prompt_that_only_announces_a_function_does_not_answer_for_it() -> None:
    prompt = "def f(x):\n    '''Returns None.'''\n"
    payload = {"check": "def check(candidate):\n    assert candidate(1) is None", "entry_point": "f", "prompt": prompt}
    assert (await grade("x = 1", payload)).correct is False
    assert (await grade("def f(x): pass", payload)).correct


@pytest.mark.parametrize(
    "check",
    [
        "import no_such_module\ndef check(candidate): assert candidate(1) == 1",
        "def check(candidate): pass",
        "def check(candidate): raise ValueError",
        "def check(candidate): assert candidate(lambda x: x) == 1",
    ],
)
async def test_a_check_that_is_broken_by_itself_is_an_invalid_task(check: str) -> None:
    verdict = await grade("def f(x): return 1", {"check": check, "entry_point": "f"})
    assert (verdict.outcome, verdict.reward) == (Outcome.INVALID_TASK, None)


async def test_an_answer_cannot_make_its_task_invalid() -> None:
    check = "def check(candidate):\n    assert candidate(candidate(1)) == 1"
    for value in ("print", "[[]] * 3 + [object()]", "(x for x in [])"):
        verdict = await grade(f"def f(x): return {value}", {"check": check, "entry_point": "f"})
        assert (verdict.outcome, verdict.correct) == (Outcome.SCORED, False)


PROGRAMS = {"stdin_tests": [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "5 6\n", "stdout": "11"}]}


@pytest.mark.parametrize(
    ("source", "passes"),
    [
        ("print(sum(map(int, input().split())))", True),
        ("print(sum(map(int, input().split())), '  ')\nexit()", True),
        ("print(3)", False),
        ("print(sum(map(int, input().split())))\nraise ValueError('after the answer')", False),
        ("print(sum(map(int, input().split())), flush=True)\nimport os; os.kill(os.getpid(), 9)", False),
        ("", False),
    ],
)
async def test_programs_are_judged_by_what_they_print(source: str, passes: bool) -> None:
    assert (await grade(source, PROGRAMS, seconds=1.0)).correct is passes


@pytest.mark.slow
async def test_a_program_that_prints_without_end_fails_in_its_time() -> None:
    begun = time.monotonic()
    verdict = await grade("while True: print('x' * 1000)", PROGRAMS, seconds=1.0, total=1.5)
    assert (verdict.outcome, verdict.correct) == (Outcome.SCORED, False)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({}, "needs one of tests, stdin_tests, check, and has 0"),
        ({"tests": ADD, "check": CHECK}, "has 2"),
        ({"tests": []}, "there are no tests"),
        ({"tests": "add(1, 2) == 3"}, "there are no tests"),
        ({"tests": [3]}, "test 0 is a int"),
        ({"tests": [{"call": "not a name", "expected": 1}]}, "name of a function"),
        ({"tests": [{"call": "f", "args": 3, "expected": 1}]}, "a list in 'args'"),
        ({"tests": [{"call": "f"}]}, "no 'expected'"),
        ({"tests": [{"call": "f", "expected": object()}]}, "no plain data"),
        ({"tests": [{"call": "f", "expected": 1}] * 10_001}, "at most 10000"),
        ({"tests": ADD, "compare": "lines"}, "'compare' beside 'tests' can only be json"),
        ({"stdin_tests": [{"stdin": "x"}]}, "'stdin' and 'stdout'"),
        ({"stdin_tests": [{"stdin": "", "stdout": ""}], "compare": "json"}, "'compare' must be one of lines"),
        ({"check": "def check(candidate", "entry_point": "f"}, "'check' is no Python"),
        ({"check": "def test(): pass", "entry_point": "f"}, "no function check"),
        ({"check": CHECK}, "'entry_point' must name a function"),
        ({"check": CHECK, "entry_point": "f", "prompt": "def ("}, "'prompt' is no Python"),
    ],
)
async def test_a_broken_payload_is_refused_at_load_and_is_never_a_reward(
    payload: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match="task t: ") as caught:
        CodeVerifier().check_task(task(payload))
    assert sentence in str(caught.value)
    assert (await grade("def f(): pass", payload)).outcome is Outcome.INVALID_TASK


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "```python\nx\n```",
        "</think>no code",
        "</think>```python\nx",
        "</think>\n```python\nx\n```\n```python\ny\n```",
        "</think>\n```python\nx\n```</think>",
        "</think>\n```c\nx\n```",
        "```python\nx\n```</think>",
    ],
)
async def test_a_broken_format_is_scored_and_wrong_without_a_sandbox(reply: str) -> None:
    with pytest.raises(FormatError):
        extract_code(reply)
    sandboxes = PlainSandboxes()
    verdict = await CodeVerifier().verify(task({"tests": ADD}), Submission(reply), sandboxes)
    assert (verdict.outcome, verdict.correct, sandboxes.opened) == (Outcome.SCORED, False, 0)


def test_code_is_taken_from_the_block_as_it_stands() -> None:
    assert extract_code("a```b</think>text\n```python\nif x:\n    '```'\n```\nmore") == "if x:\n    '```'\n"


def test_a_fence_may_have_blanks_behind_it() -> None:
    assert extract_code(f"</think>\n```python{' ' * 200_000}\nx\n``` \n") == "x\n"
    with pytest.raises(FormatError, match="must be marked"):
        extract_code(f"</think>\n```a{' ' * 200_000}b\nx\n```\n")


@pytest.mark.slow
async def test_large_results_of_several_tests_have_room_one_by_one() -> None:
    tests = [{"call": "f", "args": [list(range(60_000))], "expected": list(range(60_000))}] * 4
    assert (await grade("def f(a):\n    return list(a)", {"tests": tests})).correct


@pytest.mark.slow
async def test_what_a_call_does_to_its_arguments_takes_no_room_where_nobody_asks() -> None:
    tests = [{"call": "f", "args": [list(range(200_000, 0, -1))], "expected": 1}]
    assert (await grade("def f(a):\n    a.sort()\n    return a[0]", {"tests": tests})).correct
    unplain = [{"call": "f", "args": [[1]], "expected": 1}]
    assert (await grade("def f(a):\n    a.append(a)\n    return a[0]", {"tests": unplain})).correct


@pytest.mark.slow
async def test_what_is_expected_has_room_and_more_has_none() -> None:
    big = [{"call": "f", "args": [n], "expected": list(range(n))} for n in (3, 300_000)]
    assert (await grade("def f(n):\n    return list(range(n))", {"tests": big})).correct
    many = await grade("def f(n):\n    return list(range(9 * n))", {"tests": big[1:]})
    assert (many.outcome, many.correct) == (Outcome.SCORED, False)
    assert "larger than" in many.detail
    texts = [{"stdin": str(n), "stdout": "x" * n} for n in (3, 3 << 20)]
    for checker in ({}, {"checker": "def check(a, b, c): return b == c.strip()"}):
        payload = {"stdin_tests": texts, **checker}
        assert (await grade("print('x' * int(input()))", payload)).correct
        printed = await grade("print('x' * (1 << 25))", payload)
        assert (printed.correct, "printed too much" in printed.detail) == (False, True)


@pytest.mark.parametrize(
    ("expected", "value", "passes"),
    [
        *[([1, 2], "(1, 2)", True), ([[1, "a"], [2, "b"]], "[(1, 'a'), (2, 'b')]", True), ([], "()", True)],
        *[({"a": [[1]]}, "{'a': ([1],)}", True), ([[1.5]], "((1.5000001,),)", True)],
        *[([1, 2], "(1, 3)", False), ([1, 2], "(1, 2, 2)", False), ([1], "{1}", False), (["t"], "{'t': 1}", False)],
        *[([1], "1", False), ("ab", "('a', 'b')", False), ((1, 2), "[1, 2]", False)],
    ],
)
async def test_a_tuple_is_as_good_as_a_list_where_values_are_of_json(expected: Any, value: str, passes: bool) -> None:
    payload = {"tests": [{"call": "f", "args": [], "expected": expected}], "compare": "json"}
    assert (await grade(f"def f(): return {value}", payload)).correct is passes


async def test_a_program_that_was_there_before_does_not_stand_in_the_way_for_good() -> None:
    tests = [{"stdin": "", "stdout": ""}]
    async with PlainSandboxes().open() as sandbox:
        await run_tests("import os; os.remove('solution.py'); os.mkdir('solution.py')", tests, sandbox)
        (result,) = await run_tests("pass", tests, sandbox)
    assert not result.passed and "no place for the program" in result.error


async def test_visible_tests_say_what_came_back() -> None:
    source = """
import os
def add(a, b):
    if b == 7: raise ValueError('seven')
    if b == 8: os._exit(3)
    return [a + b]
"""
    tests = [{"call": "add", "args": [1, b], "expected": [3]} for b in (2, 3, 7, 8, 2)]
    async with PlainSandboxes().open() as sandbox:
        results = await run_tests(source, tests, sandbox)
        assert [result.passed for result in results] == [True, False, False, False, True]
        assert results[1].got == "[4]"
        assert results[2].error == "ValueError: seven"
        assert "exit code 3" in results[3].error
        assert "SyntaxError" in (await run_tests("def", tests, sandbox))[0].error
        shown = await run_tests(
            "print(input())", [{"stdin": "a", "stdout": "a"}, {"stdin": "a", "stdout": "b"}], sandbox
        )
        assert [result.passed for result in shown] == [True, False] and shown[1].got == "a\n"


async def test_many_gradings_at_once_do_not_mix() -> None:
    verdicts = await asyncio.gather(
        *(grade(f"def add(a, b): return a + b + {k}", {"tests": ADD[:2]}) for k in range(6))
    )
    assert [verdict.correct for verdict in verdicts] == [True, *[False] * 5]


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.sets(st.integers(), max_size=3)
    ),
    max_leaves=10,
)


def written(value: Any) -> str:
    """As Python writes it, types, signs and NaN told apart, but sets in one order."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{written(key)}: {written(part)}' for key, part in value.items())}}}"
    if isinstance(value, (list, tuple, set)):
        parts = map(written, sorted(value) if isinstance(value, set) else value)
        return f"{type(value).__name__}({', '.join(parts)})"
    return repr(value)


@given(plain_values)
@example({35, 3})
def test_plain_values_cross_the_border_unchanged(value: Any) -> None:
    data = _plain.encode(value)
    assert json.loads(_plain.to_json({"value": data})) == {"value": data}
    assert written(_plain.decode(data)) == written(value)
    assert _compare.same(data, value)
    assert isinstance(_compare.show(data), str)


@given(plain_values, plain_values)
def test_sameness_is_equality(left: Any, right: Any) -> None:
    if "nan" not in repr((left, right)) and "." not in repr((left, right)) and "e" not in repr((left, right)):
        assert _compare.same(_plain.encode(left), right) is (left == right)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("tszdicfbox"), inner, max_size=2),
    max_leaves=10,
)


@given(json_values, plain_values)
def test_whatever_comes_out_of_a_sandbox_is_read_without_an_error(data: Any, want: Any) -> None:
    assert _compare.same(data, want) in (True, False)
    assert isinstance(_compare.show(data), str)


@pytest.mark.parametrize("want", [1, 1.0, "x", [1], (1,), {1: 2}, {1}, frozenset({1}), None, b"x"])
def test_so_is_what_is_nested_as_deep_as_json_goes(want: Any) -> None:
    for depth in (100, 600, 900):
        for tag in ("[{}]", '{{"t": [{}]}}', '{{"s": [{}]}}', '{{"d": [[{}, 1]]}}'):
            text = "1"
            for _ in range(depth):
                text = tag.format(text)
            try:
                data = json.loads(text)
            except RecursionError:  # which is told as tampering
                continue
            assert _compare.same(data, want) is False
            assert isinstance(_compare.show(data), str)
