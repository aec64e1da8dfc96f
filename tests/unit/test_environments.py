"""Environments: what answers a reply, and when it is over."""

from typing import Any

import pytest
from fakes import task_of
from plain_sandbox import PlainSandboxes

from rollout_workers.environments import ENVIRONMENTS
from verifiers.task import Message, Task

ADD = {"tests": [{"call": "add", "args": [1], "kwargs": {"b": 2}, "expected": 3}]}
PROGRAM = {"tests": [{"stdin": "2\n", "stdout": "4\n"}]}


def code(body: str) -> str:
    return f"I think.</think>\n```python\n{body}\n```"


def task(visible: dict[str, Any]) -> Task:
    return task_of(environment="code", visible=visible)


async def answers(task: Task, *replies: str, sandboxes: PlainSandboxes | None = None) -> list[str | None]:
    async with ENVIRONMENTS[task.environment](task, sandboxes or PlainSandboxes()) as environment:
        found: list[Message | None] = [await environment.respond(reply) for reply in replies]
    assert {message.role for message in found if message is not None} <= {"tool: tests"}
    return [None if message is None else message.content for message in found]


async def test_one_reply_ends_a_single_turn() -> None:
    assert await answers(task_of(), "anything") == [None]


async def test_code_that_passes_ends_the_episode() -> None:
    assert await answers(task(ADD), code("def add(a, b):\n    return a + b")) == [None]
    assert await answers(task(PROGRAM), code("print(2 * int(input()))")) == [None]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def add(a, b):\n    return a - b", "failed: add(1, b=2): got -1, not 3"),
        ("def add(a, b):\n    raise KeyError(b)", "failed: add(1, b=2): KeyError: 2"),
        ("def sub(a, b):\n    return 3", "add"),
    ],
)
async def test_code_that_fails_is_answered_with_the_values(body: str, said: str) -> None:
    (answer,) = await answers(task(ADD), code(body))
    assert answer is not None
    assert said in answer


async def test_programs_that_fail_are_answered_with_what_they_printed() -> None:
    (answer,) = await answers(task(PROGRAM), code("print(7)"))
    assert answer == r"failed: stdin '2\n': printed '7\n', not '4\n'"


async def test_every_test_has_its_line() -> None:
    visible = {"tests": [*ADD["tests"], {"call": "add", "args": [1, 1], "expected": 5}]}
    (answer,) = await answers(task(visible), code("def add(a, b):\n    return a + b"))
    assert answer == "passed\nfailed: add(1, 1): got 2, not 5"


async def test_no_sandbox_before_the_first_code_and_one_for_all_of_it() -> None:
    sandboxes = PlainSandboxes()
    wrong = code("def add(a, b):\n    return 0")
    async with ENVIRONMENTS["code"](task(ADD), sandboxes) as environment:
        answer = await environment.respond("no code at all")
        assert answer is not None
        assert answer.content.startswith("No code was run: ")
        assert sandboxes.opened == 0
        for _ in range(2):
            await environment.respond(wrong)
        assert (sandboxes.opened, sandboxes.open_now) == (1, 1)
    assert sandboxes.open_now == 0


async def test_without_public_tests_the_first_reply_ends_it() -> None:
    sandboxes = PlainSandboxes()
    assert await answers(task({}), code("def add(a, b):\n    return 0"), sandboxes=sandboxes) == [None]
    assert sandboxes.opened == 0


async def test_the_preamble_is_there_for_the_code() -> None:
    visible = ADD | {"preamble": "import math\nONE = 1\n"}
    assert await answers(task(visible), code("def add(a, b):\n    return math.floor(a + b) * ONE")) == [None]
