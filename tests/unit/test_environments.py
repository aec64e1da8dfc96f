"""Environments: what answers a reply, and when it is over."""

import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from fakes import NoSandboxes, task_of
from plain_sandbox import PlainSandboxes

from rollout_workers.environments import ENVIRONMENTS, Remaining, find
from rollout_workers.environments.single_turn import single_turn
from verifiers.repair import PATCH
from verifiers.sandbox import SandboxUnavailable
from verifiers.task import Limits, Message, Task

ADD = {"tests": [{"call": "add", "args": [1], "kwargs": {"b": 2}, "expected": 3}]}
PROGRAM = {"tests": [{"stdin": "2\n", "stdout": "4\n"}]}
REASON = Message("system", "Think up to </think>.")
SHOP = {"files": {"shop.py": "def double(x):\n    return x * 3\n"}}
LOOK, SUBMIT = "<tool: bash>\ncat shop.py\n</tool>", "<tool: submit>\nfix.patch\n</tool>"
EDIT = (
    "<tool: edit>\nshop.py\n<<<<<<< SEARCH\n    return x * 3\n=======\n    return x * 2\n>>>>>>> REPLACE\n</tool>\n"
    "Now the patch."
)
PATCHED = "<tool: bash>\ngit diff > fix.patch\n</tool>"


def code(body: str) -> str:
    return f"I think.</think>\n```python\n{body}\n```"


def task(visible: dict[str, Any], environment: str = "code", *messages: Message) -> Task:
    return task_of(environment=environment, visible=visible, **({"messages": messages} if messages else {}))


async def answers(task: Task, *replies: str, sandboxes: Any = None) -> list[Message | None]:
    found, _ = await acted(task, *replies, sandboxes=sandboxes)
    return found


async def acted(task: Task, *replies: str, sandboxes: Any = None) -> tuple[list[Message | None], Mapping[str, bytes]]:
    """The answers, and the files that a verifier would get."""
    async with ENVIRONMENTS[task.environment](task, sandboxes or PlainSandboxes()) as environment:
        turns = enumerate(replies, start=1)
        found = [await environment.respond(reply, Remaining(9 - turn, 1000 - turn)) for turn, reply in turns]
        return found, dict(environment.files)


async def results(task: Task, *replies: str, sandboxes: Any = None) -> list[str | None]:
    """What public tests say."""
    found = await answers(task, *replies, sandboxes=sandboxes)
    assert {message.role for message in found if message is not None} <= {"tool: tests"}
    return [None if message is None else message.content for message in found]


async def test_one_reply_ends_a_single_turn() -> None:
    assert await answers(task_of(), "anything") == [None]


async def test_code_that_passes_ends_the_episode() -> None:
    assert await results(task(ADD), code("def add(a, b):\n    return a + b")) == [None]
    assert await results(task(PROGRAM), code("print(2 * int(input()))")) == [None]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def add(a, b):\n    return a - b", "failed: add(1, b=2): got -1, not 3"),
        ("def add(a, b):\n    raise KeyError(b)", "failed: add(1, b=2): KeyError: 2"),
        ("def sub(a, b):\n    return 3", "add"),
    ],
)
async def test_code_that_fails_is_answered_with_the_values(body: str, said: str) -> None:
    (answer,) = await results(task(ADD), code(body))
    assert answer is not None
    assert said in answer


async def test_programs_that_fail_are_answered_with_what_they_printed() -> None:
    (answer,) = await results(task(PROGRAM), code("print(7)"))
    assert answer == r"failed: stdin '2\n': printed '7\n', not '4\n'"


async def test_every_test_has_its_line() -> None:
    visible = {"tests": [*ADD["tests"], {"call": "add", "args": [1, 1], "expected": 5}]}
    (answer,) = await results(task(visible), code("def add(a, b):\n    return a + b"))
    assert answer == "passed\nfailed: add(1, 1): got 2, not 5"


async def test_no_sandbox_before_the_first_code_and_one_for_all_of_it() -> None:
    sandboxes = PlainSandboxes()
    wrong, left = code("def add(a, b):\n    return 0"), Remaining(1, 100)
    async with ENVIRONMENTS["code"](task(ADD), sandboxes) as environment:
        answer = await environment.respond("no code at all", left)
        assert answer is not None
        assert answer.content.startswith("No code was run: ")
        assert sandboxes.opened == 0
        for _ in range(2):
            await environment.respond(wrong, left)
        assert (sandboxes.opened, sandboxes.open_now) == (1, 1)
    assert sandboxes.open_now == 0


async def test_without_public_tests_the_first_reply_ends_it() -> None:
    sandboxes = PlainSandboxes()
    assert await answers(task({}), code("def add(a, b):\n    return 0"), sandboxes=sandboxes) == [None]
    assert sandboxes.opened == 0


async def test_the_preamble_is_there_for_the_code() -> None:
    visible = ADD | {"preamble": "import math\nONE = 1\n"}
    assert await answers(task(visible), code("def add(a, b):\n    return math.floor(a + b) * ONE")) == [None]


@pytest.mark.slow
@pytest.mark.parametrize("form", [ADD, PROGRAM], ids=["calls", "programs"])
async def test_code_that_hangs_ends_the_episode_before_its_deadline(form: dict[str, Any]) -> None:
    hangs = code("import time\ndef add(a, b):\n    time.sleep(60)\nif __name__ != 'solution':\n    time.sleep(60)")
    hurried = replace(task(form), limits=Limits(turns=9, seconds=8.0))
    began = time.monotonic()
    found = await answers(hurried, hangs, hangs)
    assert found[-1] is None
    assert time.monotonic() - began < 8.0, "so it is scored, not dropped"


async def test_public_results_are_compared_as_hidden_ones_are() -> None:
    visible = {"tests": [{"call": "f", "args": [], "expected": [1, [2]]}]}
    source = code("def f():\n    return 1, (2,)")
    assert await results(task(visible), source) == ["failed: f(): got (1, (2,)), not [1, [2]]"]
    assert await results(task({**visible, "compare": "json"}), source) == [None]


async def test_reasoning_is_asked_for_by_the_task() -> None:
    bare = "```python\ndef add(a, b):\n    return a + b\n```"
    assert await answers(task(ADD), bare) == [None]
    (answer,) = await results(task(ADD, "code", REASON), bare)
    assert answer is not None
    assert "</think>" in answer


async def test_a_repository_is_repaired_and_its_patch_handed_on() -> None:
    found, files = await acted(task(SHOP, "repository"), LOOK, EDIT, PATCHED, SUBMIT, "Done.")
    assert [message and message.role for message in found] == [
        *("tool: bash", "tool: edit", "tool: bash", "tool: submit"),
        None,
    ]
    look, edit, patched, submit = (message.content for message in found if message is not None)
    assert look == "<output>\ndef double(x):\n    return x * 3\n</output>\n8 turns, 999 tokens left"
    assert edit == "<output>\n1 def double(x):\n2     return x * 2\n</output>\n7 turns, 998 tokens left"
    assert patched == "<output>\n\n</output>\n6 turns, 997 tokens left"
    assert submit == "<output>\nSubmitted.\n</output>\n5 turns, 996 tokens left"
    assert list(files) == [PATCH]
    assert b"+    return x * 2\n" in files[PATCH]


async def test_a_reply_without_a_call_ends_nothing_before_a_submit() -> None:
    sandboxes = PlainSandboxes()
    found, files = await acted(task(SHOP, "repository"), "Done.", "Really.", sandboxes=sandboxes)
    assert [message and message.role for message in found] == ["tool: call"] * 2
    assert all(message and "Nothing was submitted yet" in message.content for message in found)
    assert files == {}
    assert sandboxes.opened == 0, "the sandbox starts at the first call"


async def test_a_submit_may_be_taken_back_by_another_one() -> None:
    again = EDIT.replace("x * 3", "x * 2", 1).replace("return x * 2\n>", "return x + x\n>")
    replies = (LOOK, EDIT, PATCHED, SUBMIT, again, PATCHED, SUBMIT, "Done.")
    found, files = await acted(task(SHOP, "repository"), *replies)
    assert [at for at, message in enumerate(found) if message is None] == [7]
    assert b"+    return x + x\n" in files[PATCH]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("<tool: bash>\nls", "Write exactly one call a turn"),
        (f"{LOOK}\n{LOOK}", "Write exactly one call a turn"),
        ("<tool: python>\n1\n</tool>", "There is no tool python; there are bash, edit, create, submit."),
        ("<tool: bash>\n\0\n</tool>", "NUL"),
        (SUBMIT, "There is no file fix.patch."),
    ],
)
async def test_what_is_wrong_with_a_call_is_said_and_the_episode_goes_on(reply: str, words: str) -> None:
    wrong, look = await answers(task(SHOP, "repository"), reply, LOOK)
    assert wrong is not None
    assert look is not None
    assert words in wrong.content
    assert wrong.role in ("tool: call", "tool: bash", "tool: submit"), "the policy names no roles"
    assert "return x * 3" in look.content


async def test_only_what_follows_the_reasoning_is_a_call() -> None:
    sandboxes = PlainSandboxes()
    reasoning = task(SHOP, "repository", REASON, Message("user", "Repair it."))
    found = await answers(reasoning, f"{LOOK}\n</think>\nHm.", LOOK, sandboxes=sandboxes)
    assert [message and message.role for message in found] == ["tool: call"] * 2
    assert sandboxes.opened == 0
    (answer,) = await answers(reasoning, f"{SUBMIT}\n</think>\n{LOOK}")
    assert answer is not None
    assert answer.role == "tool: bash"


async def test_one_sandbox_serves_a_repository_and_ends_with_it() -> None:
    sandboxes = PlainSandboxes()
    await answers(task(SHOP, "repository"), LOOK, EDIT, PATCHED, sandboxes=sandboxes)
    assert (sandboxes.opened, sandboxes.open_now) == (1, 0)


@pytest.mark.parametrize("environment", ["code", "repository"])
async def test_a_sandbox_that_cannot_be_had_is_ours(environment: str) -> None:
    reply = code("x = 1") if environment == "code" else LOOK
    with pytest.raises(SandboxUnavailable):
        await answers(task(ADD if environment == "code" else SHOP, environment), reply, sandboxes=NoSandboxes())


def test_an_environment_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def somewhere(task, sandboxes): return 1\n")
    assert find(f"{tmp_path}/mine.py:somewhere")(None, None) == 1  # type: ignore[arg-type,comparison-overlap]


async def test_the_one_that_the_readme_shows_is_whole(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = re.findall(r"^    from contextlib .*?(?=^\S)", readme, re.DOTALL | re.MULTILINE)
    (tmp_path / "mine.py").write_text(dedent(block))
    async with find(f"{tmp_path}/mine.py:doubtful")(task({}, "single_turn"), PlainSandboxes()) as place:
        assert not place.files
        assert await place.respond("It is 4.", Remaining(2, 100)) == Message("tool: doubt", "Are you sure?")
        assert await place.respond("I am sure.", Remaining(1, 80)) is None


def test_an_environment_may_lie_in_any_module() -> None:
    assert find("rollout_workers.environments.single_turn:single_turn") is find("single_turn") is single_turn


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "mars",
            "there is no environment 'mars': known are code, repository, single_turn, or module:attribute, "
            "file.py:attribute",
        ),
        ("nowhere:at_all", "there is no environment 'nowhere:at_all': No module named 'nowhere'"),
        ("json:mars", "there is no environment 'json:mars': module 'json' has no attribute 'mars'"),
    ],
)
def test_an_environment_that_is_not_there_is_named(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="there is no environment") as caught:
        find(name)
    assert str(caught.value) == sentence


async def test_an_episode_whose_commands_only_wait_ends_before_its_deadline() -> None:
    wait = task(SHOP, "repository", REASON)
    wait = replace(wait, limits=replace(wait.limits, seconds=2.0))
    found = await answers(wait, "</think><tool: bash>\nsleep 60\n</tool>")
    assert found == [None]
