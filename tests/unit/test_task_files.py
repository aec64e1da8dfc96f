"""Tasks from files: the forms of public data sets, our own, and rows that are broken."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from plain_sandbox import PlainSandboxes
from public_data import public
from pydantic import ValidationError

from rl.tasks.files import DataError, FileSource, LimitsOverride, load
from verifiers.code import CodeVerifier
from verifiers.math import MathVerifier
from verifiers.task import Submission, Task

ROOT = Path(__file__).parents[2]
OWN = ROOT / "deploy" / "configs" / "tasks"


def write(folder: Path, *rows: object, name: str = "rows.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def one(folder: Path, row: object, **source: Any) -> Task:
    (task,) = load(FileSource(path="rows.jsonl", **source), write(folder, row))
    return task


def test_gsm8k(tmp_path: Path) -> None:
    task = one(tmp_path, {"question": "How many?", "answer": "3*400=<<1200>>\n#### 1,200"}, form="gsm8k")
    assert task.payload == {"answer": "1200"}
    assert (task.id, task.domain, task.verifier, task.environment) == ("rows/1", "math", "math", "single_turn")
    assert [message.role for message in task.messages] == ["system", "user"]
    assert "</think>" in task.messages[0].content and "\\boxed{}" in task.messages[0].content
    assert task.messages[1].content == "How many?"


def test_math_takes_the_answer_column_or_the_last_box(tmp_path: Path) -> None:
    solution = "first \\boxed{1}, then \\boxed{\\frac{1}{2}}."
    assert one(tmp_path, {"problem": "p", "solution": solution}, form="math").payload == {"answer": "\\frac{1}{2}"}
    assert one(tmp_path, {"problem": "p", "solution": solution, "answer": 7}, form="math").payload == {"answer": "7"}


HUMANEVAL = {
    "task_id": "HumanEval/x",
    "prompt": 'def f(x):\n    """Doubles.\n    >>> f(1)\n    2\n    >>> round(f(1.5), 2)\n    3.0\n    """\n',
    "entry_point": "f",
    "canonical_solution": "    return the_secret(x)\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}


def test_humaneval_shows_its_examples_and_never_its_solution(tmp_path: Path) -> None:
    task = one(tmp_path, HUMANEVAL, form="humaneval")
    assert task.visible["tests"] == [{"call": "f", "args": [1], "kwargs": {}, "expected": 2}]
    assert (task.id, task.environment, task.payload["entry_point"]) == ("HumanEval/x", "code", "f")
    assert "the_secret" not in repr(task)
    assert "candidate" not in repr(task.messages) + repr(task.visible)
    without = one(tmp_path, HUMANEVAL | {"prompt": "def f(x):\n    '''Doubles.'''\n"}, form="humaneval")
    assert (without.environment, without.visible) == ("single_turn", {})


def test_mbpp_makes_call_tests_of_literal_asserts_and_a_check_of_others(tmp_path: Path) -> None:
    row = {
        "task_id": 7,
        "text": "Swap.",
        "code": "x",
        "test_list": ["assert f((1, 2)) == (2, 1)", "assert f(x=3) == {4}"],
    }
    task = one(tmp_path, row, form="mbpp")
    assert task.payload["tests"] == [
        {"call": "f", "args": [(1, 2)], "kwargs": {}, "expected": (2, 1)},
        {"call": "f", "args": [], "kwargs": {"x": 3}, "expected": {4}},
    ]
    assert task.id == "7" and "f((1, 2))" in task.messages[1].content and "{4}" not in task.messages[1].content
    row["test_list"] = ["assert set(f([1])) == set([1])", "assert f([]) is None", "for i in (1, 2): assert f(i)"]
    task = one(tmp_path, row, form="mbpp")
    assert task.payload["entry_point"] == "f" and "assert f([]) is None" in task.payload["check"]
    assert "\n    for i in (1, 2):\n        assert f(i)" in task.payload["check"]
    CodeVerifier().check_task(task)


def test_columns_template_limits_and_names_come_from_the_configuration(tmp_path: Path) -> None:
    source = {
        "columns": {"prompt": "q", "answer": "a", "id": "key"},
        "template": "Solve: {prompt}!",
        "system": "",
        "domain": "sums",
        "verifier": "module:Mine",
        "environment": "other",
        "limits": LimitsOverride(turns=3),
    }
    task = one(tmp_path, {"q": "1+1 {x}", "a": 2.5, "key": "k1"}, **source)
    assert [message.content for message in task.messages] == ["Solve: 1+1 {x}!"]
    assert (task.id, task.domain, task.verifier, task.environment) == ("k1", "sums", "module:Mine", "other")
    assert (task.limits.turns, task.limits.tokens, task.payload) == (3, 4096, {"answer": "2.5"})


def test_patterns_gzip_limits_and_blank_lines(tmp_path: Path) -> None:
    write(tmp_path, {"prompt": "1", "answer": "1"}, {"prompt": "2", "answer": "2"}, name="a.jsonl")
    content = b'\xef\xbb\xbf{"prompt": "3", "answer": "3"}\n\n  \n{"prompt": "4", "answer": "4"}'
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content))
    tasks = load(FileSource(path="*.jsonl*"), tmp_path)
    assert [task.id for task in tasks] == ["a/1", "a/2", "b/1", "b/4"]
    assert len(load(FileSource(path="*.jsonl*", limit=3), tmp_path)) == 3


def test_files_of_one_name_in_two_folders_make_different_tasks(tmp_path: Path) -> None:
    for name in ("gsm", "own.v2"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, {"prompt": "1", "answer": "1"}, name="train.jsonl")
    found = load(FileSource(path="*/train.jsonl"), tmp_path)
    assert [task.id for task in found] == ["gsm/train/1", "own.v2/train/1"]
    (elsewhere,) = load(FileSource(path=str(tmp_path / "gsm/train.jsonl")), Path("elsewhere"))
    assert elsewhere.id == "train/1"


GOOD = b'{"prompt": "1+1", "answer": "2"}\n'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "where", "problem"),
    [
        (b"", "rows.jsonl: ", "no rows"),
        (b"\n\n", "rows.jsonl: ", "no rows"),
        (GOOD + b'{"prompt": ', "line 2: ", "not JSON at character 11"),
        (GOOD + b'{"prompt": "\xff"}', "line 2: ", "not UTF-8 at byte 12"),
        (GOOD + b"[1]", "line 2: ", "must be a JSON object, not a list"),
        (GOOD + b"[" * 100_000, "line 2: ", "cannot be read"),
        (GOOD + b'{"answer": "2"}', "line 2, column 'prompt': ", "missing; the row has answer"),
        (GOOD + b'{"prompt": "x"}', "line 2: ", "needs one of the columns answer, tests"),
        (GOOD + b'{"prompt": ["x"], "answer": "2"}', "line 2, column 'prompt': ", "must be text, not a list"),
        (GOOD + b'{"prompt": " ", "answer": "2"}', "line 2, column 'prompt': ", "is empty"),
        (GOOD + b'{"prompt": "x", "answer": true}', "line 2, column 'answer': ", "must be text, not true or false"),
        (GOOD + b'{"prompt": "x", "tests": "f(1)"}', "line 2, column 'tests': ", "must be a list, not text"),
        (GOOD + b'{"prompt": "x", "tests": ["f(y) == 1"]}', "line 2, column 'tests': ", "test 0 must be"),
        (
            GOOD + b'{"prompt": "x", "tests": ["f(1) == 2"], "language": "cpp"}',
            "line 2, column 'language'",
            "is for whole",
        ),
        (
            b'{"prompt": "x", "stdin_tests": [{"stdin": "1", "stdout": "2"}], "visible_tests": ["f(1) == 2"], '
            b'"language": "cpp"}',
            "column 'visible_tests': ",
            "are calls of a function in Python, and the language is cpp",
        ),
        (GOOD + b'{"prompt": "x", "answer": "}{"}', "line 2: ", "cannot be read as mathematics"),
        (b'{"id": "a", "prompt": "x", "answer": 1}\n' * 2, "line 2, column 'id': ", "rows.jsonl, line 1"),
        (GOOD + b'{"prompt": "' + b"x" * (16 << 20) + b'", "answer": "2"}', "line 2: ", "longer than 16 MiB"),
    ],
)
async def test_a_bad_row_is_named_by_file_line_and_column(
    tmp_path: Path, content: bytes, where: str, problem: str
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    verifier = MathVerifier()
    try:
        with pytest.raises(DataError) as caught:
            load(FileSource(path="rows.jsonl"), tmp_path, verifier.check_task if b"}{" in content else None)
    finally:
        await verifier.aclose()
    message = str(caught.value)
    assert "rows.jsonl" in message and where in message and problem in message and "\n" not in message


@pytest.mark.parametrize(
    ("form", "row", "problem"),
    [
        ("gsm8k", {"question": "q", "answer": "no mark"}, "column 'answer': has no answer after '####'"),
        ("gsm8k", {"question": "q"}, "column 'answer': missing"),
        ("math", {"problem": "q", "solution": "none"}, "column 'solution': there is no \\boxed"),
        ("humaneval", {"task_id": "x", "prompt": "p", "entry_point": "f"}, "column 'test': missing"),
        ("mbpp", {"text": "q", "test_list": []}, "column 'test_list': is empty"),
        ("mbpp", {"text": "q", "test_list": ["assert ("]}, "column 'test_list': is no Python"),
    ],
)
def test_a_bad_row_of_a_public_form_is_named_by_its_own_column(
    tmp_path: Path, form: str, row: object, problem: str
) -> None:
    with pytest.raises(DataError) as caught:
        one(tmp_path, row, form=form)
    assert problem in str(caught.value)


def test_files_that_cannot_be_read_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        load(FileSource(path="missing.jsonl"), tmp_path)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(GOOD * 1000)[:-20])
    (tmp_path / "not.jsonl.gz").write_bytes(GOOD)
    for name in ("cut.jsonl.gz", "not.jsonl.gz"):
        with pytest.raises(DataError, match="cannot be read"):
            load(FileSource(path=name, columns={"id": "nothing"}), tmp_path)


def test_a_configuration_that_cannot_be_meant_is_refused() -> None:
    for broken in (
        {"columns": {"question": "q"}},
        {"template": "no place"},
        {"limit": 0},
        {"form": "csv"},
        {"pth": "x"},
    ):
        with pytest.raises(ValidationError):
            FileSource(**({"path": "x"} | broken))


@pytest.mark.slow
async def test_our_arithmetic_tasks_are_sound() -> None:
    tasks = load(FileSource(path="arithmetic.jsonl"), OWN, MathVerifier().check_task)
    assert len(tasks) >= 24
    for task in tasks:
        right, wrong = Submission(f"</think>\\boxed{{{task.payload['answer']}}}"), Submission("</think>\\boxed{31337}")
        assert (await MathVerifier().verify(task, right, PlainSandboxes())).correct
        assert not (await MathVerifier().verify(task, wrong, PlainSandboxes())).correct


@pytest.mark.slow
async def test_our_function_tasks_pass_their_solutions_and_fail_others() -> None:
    verifier = CodeVerifier()
    tasks = load(FileSource(path="functions.jsonl"), OWN, verifier.check_task)
    with (OWN / "functions.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    assert len(tasks) >= 24
    for task, row in zip(tasks, rows, strict=True):
        assert task.environment == "code" and 2 <= len(task.visible["tests"]) <= 3 and len(task.payload["tests"]) >= 4
        assert row["solution"] not in repr(task)
        name = task.payload["tests"][0]["call"]
        wrong = f"def {name}(*args):\n    return {task.visible['tests'][0]['expected']!r}"
        for source, expected in ((row["solution"], True), (wrong, False)):
            reply = Submission(f"</think>\n```python\n{source}\n```")
            verdict = await verifier.verify(task, reply, PlainSandboxes())
            assert verdict.correct is expected, f"{task.id}: {verdict.detail}"


@pytest.mark.required
@pytest.mark.parametrize(
    ("path", "form", "rows", "columns"),
    [
        ("gsm8k_test.jsonl", "gsm8k", 1319, {}),
        ("humaneval.jsonl.gz", "humaneval", 164, {}),
        ("aime24.jsonl", "math", 30, {}),
        ("minerva_math.jsonl", "math", 272, {"id": "idx"}),
    ],
)
def test_public_files_load_whole(path: str, form: Any, rows: int, columns: dict[str, str]) -> None:
    tasks = load(FileSource(path=path, form=form, columns=columns), public(path))
    assert len(tasks) == rows
    assert all(task.messages[-1].content.strip() for task in tasks)
    if form == "humaneval":
        assert sum(task.environment == "code" for task in tasks) > 50
        for task in tasks:
            CodeVerifier().check_task(task)


def test_a_payload_of_ones_own(tmp_path: Path) -> None:
    row = {"prompt": "Say abc.", "payload": {"text": "abc"}, "visible": {"hint": 1}}
    task = one(tmp_path, row, verifier="mine", environment="mine:place")
    assert (task.verifier, task.environment, task.domain) == ("mine", "mine:place", "own")
    assert (task.payload, task.visible, task.limits.turns) == ({"text": "abc"}, {"hint": 1}, 1)
    for change, source, said in (
        ({}, {}, "'payload': is for a verifier of one's own"),
        ({"payload": 3}, {"verifier": "mine"}, "'payload': must be an object"),
        ({"visible": []}, {"verifier": "mine"}, "'visible': must be an object"),
        ({"answer": "3"}, {"verifier": "mine"}, "and has 2"),
    ):
        with pytest.raises(DataError, match=said):
            one(tmp_path, row | change, **source)


def test_an_environment_that_answers_has_turns_to_answer_in(tmp_path: Path) -> None:
    row = {"prompt": "p", "tests": ["f(1) == 2"], "visible_tests": ["f(1) == 2"]}
    assert one(tmp_path, row).limits.turns == 3
    assert one(tmp_path, row, limits={"turns": 2}).limits.turns == 2
    assert one(tmp_path, row | {"visible_tests": None}).limits.turns == 1
