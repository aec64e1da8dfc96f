"""The forms that data sets really have: from a row to what a task is made of."""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from textwrap import indent
from typing import Any

from rl.tasks import contests, repositories
from rl.tasks.drafts import Draft
from rl.tasks.literals import TestRow, call_test, called_function, examples
from rl.tasks.rows import Row
from verifiers.code_tests import JSON, parse_call_tests
from verifiers.programs import LANGUAGES, parse_language, parse_stdin_tests
from verifiers.reply import FormatError, last_boxed


@dataclass(frozen=True, slots=True)
class Form:
    """A preset: how to read a row, and which of our fields stands in which column."""

    read: Callable[[Row], Draft]
    columns: Mapping[str, str]


def _gsm8k(row: Row) -> Draft:
    """The answer stands after the last `####`, with commas in its thousands."""
    text = row.text("answer")
    _, mark, answer = text.rpartition("####")
    if not mark or not answer.strip():
        raise row.error("has no answer after '####'", "answer")
    return Draft(row.text("prompt"), "math", {"answer": answer.strip().replace(",", "")})


def _math(row: Row) -> Draft:
    r"""The answer has a column, or is the last `\boxed{}` of the solution."""
    if row.has("answer"):
        return Draft(row.text("prompt"), "math", {"answer": row.text("answer").strip()})
    try:
        answer = last_boxed(row.text("solution"))
    except FormatError as error:
        raise row.error(str(error), "solution") from error
    return Draft(row.text("prompt"), "math", {"answer": answer})


def _humaneval(row: Row) -> Draft:
    """A prompt that is code, and `check(candidate)`; examples in the docstring are public."""
    prompt, name = row.text("prompt"), row.text("entry_point")
    shown = f"Complete this function. Write it whole:\n\n```python\n{prompt.strip()}\n```"
    public = examples(prompt, name)
    visible = {"tests": public, "preamble": prompt} if public else {}
    return Draft(shown, "code", {"check": row.text("check"), "entry_point": name, "prompt": prompt}, visible)


def _mbpp(row: Row) -> Draft:
    """Assertions. By the data set's custom the first is shown, since nothing else names the function."""
    lines = [str(line) for line in row.items("tests")]
    if not lines:
        raise row.error("is empty", "tests")
    shown = f"{row.text('prompt').strip()}\n\nIt must satisfy, for example:\n{lines[0].strip()}"
    setup = row.text("setup") if row.has("setup") and row.get("setup") else ""
    tests = [test for line in lines if (test := call_test(line)) is not None]
    if len(tests) == len(lines):
        visible: Mapping[str, Any] = {"tests": tests[:1], "preamble": setup}
        return Draft(shown, "code", {"tests": tests, "preamble": setup}, visible)
    payload = {"check": _as_check(row, lines), "entry_point": _entry_point(row, lines), "prompt": setup}
    return Draft(shown, "code", payload)


def _as_check(row: Row, lines: list[str]) -> str:
    try:
        body = [node for line in lines for node in ast.parse(line.strip()).body]
    except (SyntaxError, ValueError, RecursionError) as error:
        raise row.error(f"is no Python: {error}", "tests") from error
    return "def check(candidate):\n" + "\n".join(indent(ast.unparse(node), "    ") for node in body)


def _entry_point(row: Row, lines: list[str]) -> str:
    for line in lines:
        if name := called_function(line):
            return name
    raise row.error("calls no function", "tests")


def _native(row: Row) -> Draft:
    """Our own form: a prompt, and one of answer, tests, stdin_tests, check with entry_point, or payload.

    `payload` is an object for a verifier of one's own, which the source names, and `visible`, beside it, one for an
    environment of one's own.
    """
    kinds = [kind for kind in ("answer", "tests", "stdin_tests", "check", "payload") if row.has(kind)]
    if len(kinds) != 1:
        raise row.error(f"needs one of the columns answer, tests, stdin_tests, check, payload, and has {len(kinds)}")
    prompt = row.text("prompt")
    if kinds == ["payload"]:
        own = _object(row, "payload"), _object(row, "visible")
        return Draft(prompt, _domain(row, "own"), *own, environment_name="single_turn")
    if kinds == ["answer"]:
        return Draft(prompt, _domain(row, "math"), {"answer": row.text("answer").strip()})
    payload: dict[str, Any]
    programs = ("language", "compare", "checker")
    usual = {"language": "python"} | ({"compare": JSON} if kinds == ["tests"] else {})
    idle = [name for name in programs if row.has(name) and row.get(name) != usual.get(name)]
    if idle and kinds != ["stdin_tests"]:
        raise row.error(f"is for whole programs, with stdin_tests, and this row has {kinds[0]}", idle[0])
    if kinds == ["check"]:
        payload = {"check": row.text("check"), "entry_point": row.text("entry_point")}
    else:
        how = {name: row.text(name) for name in ("language", "compare", "checker") if row.has(name)}
        payload = {kinds[0]: _tests(row, kinds[0]), **how}
    visible: dict[str, Any] = {"tests": _tests(row, "visible_tests")} if row.has("visible_tests") else {}
    if visible:
        visible |= {name: payload[name] for name in ("language", "compare") if name in payload}
        _check_visible(row, visible)
    return Draft(prompt, _domain(row, "code"), payload, visible)


def _object(row: Row, field_name: str) -> Mapping[str, Any]:
    found = row.get(field_name) if row.has(field_name) else {}
    if not isinstance(found, dict):
        raise row.error("must be an object", field_name)
    return found


def _check_visible(row: Row, visible: Mapping[str, Any]) -> None:
    """What the environment runs, no verifier looks at."""
    tests = visible["tests"]
    try:
        if tests and "stdin" in tests[0]:
            parse_stdin_tests(tests)
        else:
            parse_call_tests(tests)
            if "language" in visible and visible["language"] != "python":
                raise ValueError(f"are calls of a function in Python, and the language is {visible['language']}")
        parse_language(visible, LANGUAGES)
    except ValueError as error:
        raise row.error(str(error), "visible_tests") from error


def _reasoning_gym(row: Row) -> Draft:
    """An entry as the package makes it; the metadata names the data set that scores it."""
    entry = {"question": row.text("prompt"), "answer": row.get("answer"), "metadata": row.get("metadata")}
    return Draft(row.text("prompt"), "reasoning", {"entry": entry})


def _domain(row: Row, default: str) -> str:
    return row.text("domain") if row.has("domain") else default


def _tests(row: Row, field_name: str) -> list[TestRow]:
    """Test rows as they are; a text such as "f(1) == (2, 3)" is read as Python, which has more types than JSON."""
    tests = []
    for place, item in enumerate(row.items(field_name)):
        test = call_test(item) if isinstance(item, str) else item
        if not isinstance(test, dict):
            raise row.error(f"test {place} must be an object, or a text like f(1) == 2 with literal values", field_name)
        tests.append(test)
    return tests


_SWE = {
    "id": "instance_id",
    "prompt": "problem_statement",
    "fail_to_pass": "FAIL_TO_PASS",
    "pass_to_pass": "PASS_TO_PASS",
}
FORMS: Mapping[str, Form] = {
    "gsm8k": Form(_gsm8k, {"prompt": "question"}),
    "math": Form(_math, {"prompt": "problem"}),
    "humaneval": Form(_humaneval, {"id": "task_id", "check": "test"}),
    "mbpp": Form(_mbpp, {"id": "task_id", "prompt": "text", "tests": "test_list", "setup": "test_setup_code"}),
    "apps": Form(contests.apps, {"prompt": "question", "tests": "input_output", "starter": "starter_code"}),
    "livecodebench": Form(
        contests.livecodebench,
        {
            "id": "question_id",
            "prompt": "question_content",
            "starter": "starter_code",
            "public_tests": "public_test_cases",
            "hidden_tests": "private_test_cases",
        },
    ),
    "code_contests": Form(
        contests.code_contests, {"prompt": "description", "tests": "test", "hidden_tests": "private_tests"}
    ),
    "reasoning_gym": Form(_reasoning_gym, {"prompt": "question"}),
    "swe_bench": Form(repositories.swe_bench, _SWE),
    "swe_smith": Form(repositories.swe_smith, {**_SWE, "image": "image_name"}),
    "tasks": Form(_native, {}),
}
