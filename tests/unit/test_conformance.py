"""The conformance kit tells verifiers that keep the contract from others; audits count; attacks are refused."""

import asyncio
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from plain_sandbox import PlainSandboxes

from rl import labelled, verifying
from rl.cli import main
from rl.tasks.rows import DataError
from verifiers import conformance, registry
from verifiers.examples import Example
from verifiers.math import MathVerifier
from verifiers.task import Message, Submission, Task
from verifiers.verdict import Outcome, Verdict

TASK = Task("one", "plain", (Message("user", "Say abc backwards."),), "plain", payload={"text": "cba"})


class Plain:
    """Keeps the contract; the others are broken in one place."""

    lowest = -1.0

    def check_task(self, task: Task) -> None:
        if "text" not in task.payload:
            raise ValueError("the payload needs a text")

    async def verify(self, task: Task, submission: Submission, sandboxes: object) -> Verdict:
        if "text" not in task.payload:
            return Verdict(Outcome.INVALID_TASK, detail="the payload needs a text")
        return self.score(submission.reply, submission.reply.strip() == task.payload["text"])

    def score(self, reply: str, correct: bool) -> Verdict:
        return Verdict.scored(1.0 if correct else -1.0, correct=correct)

    def examples(self) -> list[Example]:
        return [Example(TASK, Submission("cba"))]


class Generous(Plain):
    def score(self, reply: str, correct: bool) -> Verdict:
        return super().score(reply, correct or "passed" in reply)


class Fickle(Plain):
    times = itertools.count()

    def score(self, reply: str, correct: bool) -> Verdict:
        return Verdict.scored(-1.0 + (next(self.times) % 7) / 100, correct=correct)


class Blocking(Plain):
    def score(self, reply: str, correct: bool) -> Verdict:
        time.sleep(1.5 if len(reply) > 500_000 else 0)
        return super().score(reply, correct)


class Raising(Plain):
    def score(self, reply: str, correct: bool) -> Verdict:
        if "nan" in reply:
            raise ArithmeticError
        return super().score(reply, correct)


class Careless(Plain):
    async def verify(self, task: Task, submission: Submission, sandboxes: object) -> Verdict:
        return self.score(submission.reply, submission.reply == task.payload.get("text"))


class Odd(Plain):
    def check_task(self, task: Task) -> None:
        raise KeyError("text")


class Refusing(Plain):
    def check_task(self, task: Task) -> None:
        raise ValueError("never")


async def broken(verifier: Any) -> set[str]:
    found = await conformance.check("plain", verifier, PlainSandboxes())
    return {one.rule for one in found if not one.kept}


async def test_a_good_one_keeps_every_rule() -> None:
    assert await broken(Plain()) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (Generous, "no attack is paid"),
        (Fickle, "the same answer gets the same verdict"),
        (Blocking, "its deadline holds"),
        (Raising, "whatever is said gets a reward, finite and not below the lowest"),
        (Odd, "examples are valid tasks"),
        (Careless, "a broken payload is no reward"),
        (Refusing, "examples are valid tasks"),
    ],
)
async def test_what_is_broken_is_named(kind: type[Plain], rule: str) -> None:
    assert rule in await broken(kind())


async def test_without_examples_nothing_can_be_checked() -> None:
    with pytest.raises(ValueError, match="examples"):
        await conformance.check("unheard", registry.load("math"), PlainSandboxes())


@pytest.mark.slow
async def test_no_attack_on_mathematics_is_paid() -> None:
    verifier = MathVerifier(seconds=1.0)
    tried = [one async for one in conformance.attack("math", verifier, PlainSandboxes())]
    await verifier.aclose()
    assert len(tried) > 100
    assert [one for one in tried if one.paid or one.reward is None] == []


async def test_no_attack_on_traces_is_paid() -> None:
    tried = [one async for one in conformance.attack("trace", registry.load("trace"), PlainSandboxes())]
    assert [one for one in tried if one.paid or one.reward is None] == []


@pytest.mark.slow
def test_a_new_one_works_as_it_stands(tmp_path: Path) -> None:
    place = verifying.new("my_words", tmp_path)
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", place], capture_output=True, text=True, check=False)
    assert "1 passed" in run.stdout, run.stdout + run.stderr
    verifier = registry.load(f"{place}/cwm_rl_my_words.py:MyWordsVerifier")
    assert verifier is not registry.load(f"{place}/cwm_rl_my_words.py:MyWordsVerifier")
    assert asyncio.run(broken(verifier)) == set()


def test_one_named_like_what_it_imports_works_too(tmp_path: Path) -> None:
    place = verifying.new("task", tmp_path)
    assert asyncio.run(broken(registry.load(f"{place}/cwm_rl_task.py:TaskVerifier"))) == set()


@pytest.mark.parametrize(
    ("name", "words"),
    [("My", "a to z"), ("a-b", "a to z"), ("größe", "a to z"), ("x_", "a to z"), ("1a", "a to z"), ("math", "already")],
)
def test_names_that_cannot_be(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(verifying.VerifierError, match=words):
        verifying.new(name, tmp_path)
    verifying.new("twice", tmp_path)
    with pytest.raises(verifying.VerifierError, match="is there already"):
        verifying.new("twice", tmp_path)


@pytest.mark.parametrize("target", ["no/such/file.py:X", "no.such.module:X", "verifiers.math:Nothing", "mat"])
def test_what_cannot_be_loaded_gets_a_sentence(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["verifier", "check", target])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert target in err
    assert err.count("\n") == 1


def rows(tmp_path: Path, *found: object) -> Path:
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return file


async def test_an_audit_counts_both_kinds_of_error_and_lists_them(tmp_path: Path) -> None:
    payload = {"text": "cba"}
    file = rows(
        tmp_path,
        {"payload": payload, "reply": "cba", "correct": True},
        {"payload": payload, "reply": "cba", "correct": False},
        {"payload": payload, "reply": "abc", "correct": True},
        {"payload": payload, "reply": "abc", "correct": False},
        {"payload": {}, "reply": "", "correct": False},
    )
    found = await labelled.audit(Plain(), PlainSandboxes(), list(labelled.read(file, "plain")))
    assert (found["answers"], found["agreement"]) == (5, 0.4)
    assert (found["accepted_wrong"], found["refused_right"], found["failed"]) == (1, 1, 1)
    assert (found["false_accept_rate"], found["false_refuse_rate"]) == (1 / 3, 1 / 2)
    assert [one["where"] for one in found["disagreements"]] == ["line 2", "line 3", "line 5"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "?"}, "needs the columns payload, reply and correct"),
        ({"payload": 1, "reply": "a", "correct": True}, "must be an object"),
        ({"payload": {}, "reply": "a", "correct": 1}, "true or false"),
        ({"payload": {}, "reply": 1, "correct": True}, "'reply' text"),
        ({"payload": {}, "reply": "a", "correct": True, "messages": [1]}, "role and content"),
    ],
)
def test_rows_without_labels_are_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(labelled.read(rows(tmp_path, row), "plain"))


def test_an_audit_of_nothing_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = rows(tmp_path, {"question": "q", "ground_truth": "A: 4", "solution": "x"})
    with pytest.raises(SystemExit) as caught:
        main(["verifier", "audit", "math", "--data", str(file), "--backend", "bubblewrap"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"cwm-rl: {file} holds no labelled answer that math can grade\n"
