"""Answers that others have labelled right or wrong, and how often a verifier agrees with them."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rl.tasks.forms import FORMS
from rl.tasks.rows import Row, read_rows
from verifiers.examples import boxed, fenced
from verifiers.registry import Verifier
from verifiers.runner import Grader
from verifiers.sandbox import Sandboxes
from verifiers.task import Message, Submission, Task

AT_ONCE: Final = 4
CONTEST_LANGUAGES: Final[Mapping[Any, str]] = {2: "cpp", 3: "python"}
"""As code_contests numbers them."""
REASONS: Final = (Message("system", "Think up to </think>."),)


@dataclass(frozen=True, slots=True)
class Labelled:
    """One answer to a task, and whether it is right."""

    where: str
    task: Task
    submission: Submission
    right: bool


def read(file: Path, name: str) -> Iterator[Labelled]:
    """Of a JSONL file in one of four forms, for the verifier `name`. Raises DataError.

    Ours: {"payload": {...}, "reply": text, "correct": true or false}, and "messages" where the reply needs them.
    GSM8K's labelled solutions: "question", "ground_truth" and columns {"solution", "is_correct"}, answers after `A:`.
    HumanEval: each canonical solution is right, and wrong for the problem after it.
    code_contests: "solutions" and "incorrect_solutions" in Python 3 and C++.
    """
    rows = list(read_rows(file, {}))
    first = rows[0]
    if first.has("reply"):
        yield from (_own(row, name) for row in rows)
    elif first.has("ground_truth"):
        yield from (one for row in rows for one in _gsm8k(row, name))
    elif first.has("incorrect_solutions"):
        yield from (one for row in rows for one in _contest(row, name))
    elif first.has("canonical_solution"):
        yield from _humaneval(rows, name)
    else:
        raise first.error(
            "needs the columns payload, reply and correct (or those of GSM8K's labels, HumanEval or code_contests)"
        )


def _own(row: Row, name: str) -> Labelled:
    payload, reply, right = row.get("payload"), row.get("reply"), row.get("correct")
    if not isinstance(payload, dict) or not isinstance(reply, str) or not isinstance(right, bool):
        raise row.error("'payload' must be an object, 'reply' text and 'correct' true or false")
    given = row.items("messages") if row.has("messages") else []
    if not all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in given):
        raise row.error("must be objects with role and content", "messages")
    messages = tuple(Message(one["role"], str(one.get("content", ""))) for one in given)
    task = Task(f"{row.file.name}/{row.line}", name, messages, name, payload=payload)
    return Labelled(f"line {row.line}", task, Submission(reply), right)


def _gsm8k(row: Row, name: str) -> Iterator[Labelled]:
    gold = row.text("ground_truth").rpartition("A:")[2].strip().replace(",", "")
    task = Task(f"{row.file.name}/{row.line}", name, REASONS, name, payload={"answer": gold})
    for column, value in row.data.items():
        if isinstance(value, Mapping) and "is_correct" in value:
            answer = str(value.get("solution", "")).rpartition("A:")[2].strip()
            yield Labelled(f"line {row.line}, {column}", task, Submission(boxed(answer)), bool(value["is_correct"]))


def _humaneval(rows: Sequence[Row], name: str) -> Iterator[Labelled]:
    columns = FORMS["humaneval"].columns
    rows = [Row(row.file, row.line, row.data, columns) for row in rows]
    solutions = [row.text("prompt") + row.text("canonical_solution") for row in rows]
    for at, row in enumerate(rows):
        draft = FORMS["humaneval"].read(row)
        task = Task(row.text("id"), name, REASONS, name, payload=draft.payload)
        yield Labelled(f"line {row.line}", task, Submission(fenced(solutions[at])), True)
        if len(rows) > 1:
            other = Submission(fenced(solutions[at - 1]))
            yield Labelled(f"line {row.line}, with the solution of the line before", task, other, False)


def _contest(row: Row, name: str) -> Iterator[Labelled]:
    row = Row(row.file, row.line, row.data, FORMS["code_contests"].columns)
    draft = FORMS["code_contests"].read(row)
    for column, right in (("solutions", True), ("incorrect_solutions", False)):
        both = row.get(column)
        if not isinstance(both, Mapping) or not all(
            isinstance(both.get(key), list) for key in ("language", "solution")
        ):
            raise row.error("needs the lists 'language' and 'solution'", column)
        if not all(isinstance(number, int | str) for number in both["language"]):
            raise row.error("has a language that is neither a number nor a name", column)
        for at, (number, source) in enumerate(zip(both["language"], both["solution"], strict=False)):
            if (language := CONTEST_LANGUAGES.get(number)) is not None:
                payload = {**draft.payload, "language": language}
                task = Task(f"{row.file.name}/{row.line}", name, REASONS, name, payload=payload)
                yield Labelled(f"line {row.line}, {column} {at}", task, Submission(fenced(source, language)), right)


async def audit(verifier: Verifier, sandboxes: Sandboxes, labelled: Sequence[Labelled]) -> dict[str, Any]:
    """Agreement and error rates, with every disagreement; gradings without a reward count apart, as `failed`."""
    grader = Grader(verifier, sandboxes)
    turns = iter(labelled)
    wrong: list[dict[str, Any]] = []
    counts = {"accepted_wrong": 0, "refused_right": 0, "failed": 0}

    async def work() -> None:
        for one in turns:
            verdict = await grader.grade(one.task, one.submission)
            if verdict.correct is one.right:
                continue
            kind = "failed" if verdict.reward is None else "refused_right" if one.right else "accepted_wrong"
            counts[kind] += 1
            wrong.append(
                {"where": one.where, "kind": kind, "detail": verdict.detail, "reply": one.submission.reply[-200:]}
            )

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    right = sum(one.right for one in labelled)
    return {
        "answers": len(labelled),
        "agreement": 1 - len(wrong) / len(labelled),
        "false_accept_rate": counts["accepted_wrong"] / max(1, len(labelled) - right),
        "false_refuse_rate": counts["refused_right"] / max(1, right),
        **counts,
        "disagreements": sorted(wrong, key=lambda one: str(one["where"])),
    }
