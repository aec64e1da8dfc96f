"""Tests of functions as plain data, and running them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verifiers._compare import same, show
from verifiers._plain import NotPlainError, encode, is_opaque
from verifiers._relay import Answer, Budget, Solution, ask, room
from verifiers.sandbox import Sandbox

MAX_TESTS = 10_000
JSON = "json"
"""A way to compare, by name: where the expected value is a list, a tuple will do, since JSON has none."""


@dataclass(frozen=True, slots=True)
class CallTest:
    """call(*args, **kwargs) == expected; arguments encoded as in `_plain`, the expected value as it is."""

    call: str
    args: Any
    kwargs: Any
    expected: Any
    size: int
    """Bytes of the expected value, written as it is in an answer."""


@dataclass(frozen=True, slots=True)
class TestResult:
    """How one test went: what came back, as Python prints it, or why nothing did."""

    __test__ = False  # no test class, whatever pytest thinks of its name

    passed: bool
    got: str = ""
    error: str = ""


def parse_call_tests(rows: object) -> list[CallTest]:
    """From rows {"call", "args", "kwargs", "expected"}. Raises ValueError with one sentence."""
    return [_call_test(row, f"test {place}") for place, row in enumerate(rows_of(rows))]


def rows_of(rows: object) -> Sequence[Mapping[str, Any]]:
    """Objects, at least one and not too many. Raises ValueError with one sentence."""
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
        expected = encode(row["expected"])
    except NotPlainError as error:
        raise ValueError(f"{where} holds {error}") from error
    if is_opaque([*given, expected]):
        raise ValueError(f"{where} holds a value that is no plain data")
    return CallTest(name, *given, row["expected"], len(json.dumps(expected)))


async def run_call_tests(
    sandbox: Sandbox,
    solution: Solution,
    tests: Sequence[CallTest],
    budget: Budget,
    *,
    fresh: bool,
    stop: bool,
    as_json: bool = False,
) -> list[TestResult]:
    """One result a test, in order, up to the first failure if `stop`; `fresh` as in `ask`, `as_json` as in `same`.

    Raises TamperedError, SandboxError.
    """
    results: list[TestResult] = []
    while len(results) < len(tests):
        rest = tests[len(results) :]
        calls = [(test.call, test.args, test.kwargs) for test in rest]
        limit = room(max(test.size for test in rest))
        answers = await ask(sandbox, solution, calls, budget, fresh=fresh and not results, limit=limit)
        for answer, test in zip(answers, rest, strict=False):
            results.append(_judge(answer, test, as_json))
            if stop and not results[-1].passed:
                return results
        if budget.left <= 0:
            return results + [TestResult(False, error=f"not run: {budget.over}")] * (len(tests) - len(results))
    return results


def _judge(answer: Answer, test: CallTest, as_json: bool) -> TestResult:
    if "died" in answer:
        return TestResult(False, error=answer["died"])
    if "raised" in answer:
        return TestResult(False, error="{}: {}".format(*answer["raised"]))
    return TestResult(same(answer["value"], test.expected, as_json=as_json), got=show(answer["value"]))
