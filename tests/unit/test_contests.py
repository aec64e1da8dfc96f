"""Rows of programming contests: what is read out of them, what is refused, and that nothing is unpickled."""

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from rl import labelled
from rl.tasks.files import DataError, FileSource, load
from verifiers.code import CodeVerifier
from verifiers.task import Task


def read(folder: Path, row: dict[str, Any], **source: Any) -> Task:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (task,) = load(FileSource(path="rows.jsonl", **source), folder, CodeVerifier().check_task)
    return task


def packed(value: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def apps(pairs: object, **more: Any) -> dict[str, Any]:
    return {"question": "Sum them.", "input_output": pairs if isinstance(pairs, str) else json.dumps(pairs), **more}


def test_apps_programs(tmp_path: Path) -> None:
    task = read(tmp_path, apps({"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}), form="apps")
    assert task.payload == {"stdin_tests": [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "3\n4", "stdout": "7"}]}
    assert (task.environment, task.verifier) == ("single_turn", "code")


def test_apps_functions_have_their_results_unwrapped(tmp_path: Path) -> None:
    pairs = {"fn_name": "add", "inputs": [[1, 2], [[3], [4]]], "outputs": [[3], [[3, 4]]]}
    task = read(tmp_path, apps(pairs, starter_code="class Solution:\n    def add(self, a, b):"), form="apps")
    assert [test["expected"] for test in task.payload["tests"]] == [3, [3, 4]]
    assert "class Solution" in task.messages[-1].content
    bare = read(tmp_path, apps({**pairs, "outputs": [3, [3, 4]]}), form="apps")
    assert [test["expected"] for test in bare.payload["tests"]] == [3, [3, 4]]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ("", "column 'input_output': is no JSON"),
        ("[1]", "lists 'inputs' and 'outputs'"),
        ({"inputs": [], "outputs": []}, "has no tests"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs and 0 outputs"),
        ({"inputs": [1], "outputs": ["1"]}, "no text"),
        ({"inputs": ["1"] * 10_001, "outputs": ["1"] * 10_001}, "at most 10000"),
        ({"fn_name": "f", "inputs": ["1"], "outputs": [1]}, "list of arguments"),
        ({"fn_name": "f()", "inputs": [[1]], "outputs": [1]}, "name of a function"),
    ],
)
def test_apps_rows_that_cannot_be(tmp_path: Path, pairs: object, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read(tmp_path, apps(pairs), form="apps")
    assert "line 1" in str(caught.value)


def live(public: object, hidden: object, **more: Any) -> dict[str, Any]:
    cases = {"public_test_cases": json.dumps(public), "private_test_cases": hidden}
    return {"question_id": "a1", "question_content": "Do it.", **cases, **more}


def case(given: str, wanted: str, kind: str = "stdin") -> dict[str, str]:
    return {"input": given, "output": wanted, "testtype": kind}


@pytest.mark.parametrize("pack", [packed, lambda text: text])
def test_livecodebench_hidden_tests_are_read_packed_or_not(tmp_path: Path, pack: Any) -> None:
    row = live([case("1\n", "2\n")], pack(json.dumps([case("3\n", "4\n")])))
    task = read(tmp_path, row, form="livecodebench")
    assert task.payload["stdin_tests"] == [{"stdin": "1\n", "stdout": "2\n"}, {"stdin": "3\n", "stdout": "4\n"}]
    assert task.visible["tests"] == task.payload["stdin_tests"][:1]
    assert (task.id, task.environment) == ("a1", "code")


def test_livecodebench_functions(tmp_path: Path) -> None:
    row = live(
        [case("[1, 2]\n3", "[4, 5]", "functional")], packed(json.dumps([case('"a"\n"b"', "null", "functional")]))
    )
    task = read(tmp_path, row | {"metadata": '{"func_name": "shift"}'}, form="livecodebench")
    assert task.payload["tests"][0] == {"call": "shift", "args": [[1, 2], 3], "expected": [4, 5]}
    assert task.payload["tests"][1] == {"call": "shift", "args": ["a", "b"], "expected": None}
    assert task.payload["compare"] == task.visible["compare"] == "json", "a tuple is as good as a list"
    ends = case('"a\u2028b\u0085c"\n3', "1", "functional")
    odd = read(tmp_path, live([ends], "[]", metadata='{"func_name": "shift"}'), form="livecodebench")
    assert odd.payload["tests"][0]["args"] == ["a\u2028b\u0085c", 3]
    with pytest.raises(DataError, match="func_name"):
        read(tmp_path, row, form="livecodebench")


class Trap:
    """Unpickled, it would leave a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.slow
def test_nothing_is_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Trap(mark)))
    mark.unlink()  # it would have
    for trap in (packed(Trap(mark)), packed(["[]", "[]"]), packed(json.dumps([])) + "!", packed("x" * (1 << 29))):
        with pytest.raises(DataError, match="private_test_cases"):
            read(tmp_path, live([], trap), form="livecodebench")
    assert not mark.exists()


def test_code_contests_both_ways(tmp_path: Path) -> None:
    pairs = {name: {"input": [f"{name}\n"], "output": ["1\n"]} for name in ("public_tests", "private_tests")}
    task = read(tmp_path, {"description": "Do it.", **pairs, "generated_tests": None}, form="code_contests")
    assert [test["stdin"] for test in task.payload["stdin_tests"]] == ["public_tests\n", "private_tests\n"]
    assert task.visible == {"tests": [{"stdin": "public_tests\n", "stdout": "1\n"}]}
    rows = json.dumps([{"input": {"stdin": "1"}, "output": {"stdout": "2"}}, {"input": "3", "output": "4"}])
    task = read(tmp_path, {"content": "p", "test": rows}, form="code_contests", columns={"prompt": "content"})
    assert task.payload["stdin_tests"] == [{"stdin": "1", "stdout": "2"}, {"stdin": "3", "stdout": "4"}]


def test_our_own_form_has_languages_and_checkers(tmp_path: Path) -> None:
    row = {"prompt": "p", "stdin_tests": [{"stdin": "", "stdout": "1"}], "language": "cpp", "compare": "numbers"}
    task = read(tmp_path, row)
    assert (task.payload["language"], task.payload["compare"]) == ("cpp", "numbers")
    assert "```cpp" in task.messages[0].content
    for change, said in (
        ({"language": "cobol"}, "'cobol' is not known; known are cpp, python"),
        ({"compare": "vibes"}, "must be one of lines, tokens"),
        ({"compare": "json"}, "must be one of lines, tokens"),
        ({"checker": "def check(a, b, c): return True"}, "exclude each other"),
        ({"compare": None, "checker": "check ="}, "no Python"),
        ({"compare": None, "checker": "def chek(): pass"}, "no function check"),
        ({"visible_tests": [{"stdin": "1"}]}, r"'visible_tests'.*needs the texts 'stdin' and 'stdout'"),
        ({"visible_tests": [{"call": "f"}]}, "'visible_tests'.*'expected'"),
    ):
        with pytest.raises(DataError, match=said):
            read(tmp_path, row | change)


def test_our_own_tests_of_functions_may_be_compared_as_json(tmp_path: Path) -> None:
    row = {"prompt": "p", "tests": ["f() == [1]"], "visible_tests": ["f() == [1]"], "compare": "json"}
    task = read(tmp_path, row)
    assert task.payload["compare"] == task.visible["compare"] == "json"
    with pytest.raises(DataError, match="is for whole programs"):
        read(tmp_path, row | {"compare": "tokens"})


def test_labelled_contest_solutions(tmp_path: Path) -> None:
    row = {
        "description": "p",
        "public_tests": {"input": ["1"], "output": ["1"]},
        "solutions": {"language": [3, 2, 1], "solution": ["print(1)", "int main(){}", "print 1"]},
        "incorrect_solutions": {"language": [3], "solution": ["print(2)"]},
    }
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row | {"solutions": {"language": [[3]], "solution": ["print(1)"]}}))
    with pytest.raises(DataError, match=r"line 1, column 'solutions'.*neither a number nor a name"):
        list(labelled.read(file, "code"))
    file.write_text(json.dumps(row))
    found = list(labelled.read(file, "code"))
    assert [(one.task.payload["language"], one.right) for one in found] == [
        ("python", True),
        ("cpp", True),
        ("python", False),
    ]
