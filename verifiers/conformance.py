"""Whether a verifier keeps the contract, tried on its own examples; and which attacks it pays."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, NamedTuple

from verifiers import attacks, examples
from verifiers.examples import Example
from verifiers.registry import Verifier
from verifiers.runner import Grader
from verifiers.sandbox import Sandboxes
from verifiers.task import Submission
from verifiers.verdict import Outcome, Verdict

SECONDS: Final = 60.0
AT_ONCE: Final = 8
HURRY_SECONDS: Final = 0.05
LATE_SECONDS: Final = 1.0
_NOTHING: Final = Submission("")


class Finding(NamedTuple):
    """One rule, and what was seen of it."""

    rule: str
    kept: bool
    seen: str


class Tried(NamedTuple):
    """One attack on one example."""

    verifier: str
    example: str
    attack: str
    outcome: str
    reward: float | None
    paid: bool
    detail: str


class BrokenRuleError(Exception):
    """What a verifier did instead."""


async def attack(name: str, verifier: Verifier, sandboxes: Sandboxes) -> AsyncIterator[Tried]:
    """Every attack on every example. Raises ValueError where the verifier shows no example."""
    grader = Grader(verifier, sandboxes, seconds=SECONDS)
    for example in examples.of(name, verifier):
        top = (await grader.grade(example.task, example.gold)).reward
        for one in attacks.on(name):
            verdict = await grader.grade(example.task, one.make(example))
            enough = verdict.reward is not None and top is not None and verdict.reward >= top
            paid = verdict.correct is True or enough
            yield Tried(
                name, example.task.id, one.name, verdict.outcome.value, verdict.reward, paid, verdict.detail[:200]
            )


async def check(name: str, verifier: Verifier, sandboxes: Sandboxes) -> list[Finding]:
    """Every rule of the contract. Raises ValueError where the verifier shows no example."""
    found = examples.of(name, verifier)
    grader = Grader(verifier, sandboxes, seconds=SECONDS)
    rules = {
        "its lowest reward is a finite number": _lowest(verifier),
        "examples are valid tasks": _valid(verifier, found),
        "gold passes": _gold(grader, found),
        "nothing fails, with the lowest reward": _empty(grader, found),
        "the same answer gets the same verdict": _same(grader, found),
        f"{AT_ONCE} at once are graded as one by one": _at_once(grader, found),
        "a broken payload is no reward": _broken(grader, found),
        "its deadline holds": _hurried(verifier, sandboxes, found),
    }
    findings = [await _finding(rule, trial) for rule, trial in rules.items()]
    tried = [one async for one in attack(name, verifier, sandboxes)]
    odd = [f"{one.attack} on {one.example}: {one.outcome}, {one.reward}" for one in tried if not _honest(one, verifier)]
    findings.append(Finding("whatever is said gets a reward, finite and not below the lowest", not odd, ", ".join(odd)))
    paid = [f"{one.attack} on {one.example}" for one in tried if one.paid]
    findings.append(Finding("no attack is paid", not paid, ", ".join(paid) or f"{len(tried)} were tried"))
    return findings


def _honest(one: Tried, verifier: Verifier) -> bool:
    scored = one.outcome in (Outcome.SCORED.value, Outcome.TAMPERED.value)
    return scored and one.reward is not None and math.isfinite(one.reward) and one.reward >= verifier.lowest


async def _finding(rule: str, trial: Awaitable[str | None]) -> Finding:
    try:
        return Finding(rule, True, await trial or "")
    except BrokenRuleError as error:
        return Finding(rule, False, str(error))
    except Exception as error:  # noqa: BLE001 - foreign code may raise anything, and each rule is tried
        return Finding(rule, False, f"{type(error).__name__}: {error}")


async def _lowest(verifier: Verifier) -> None:
    _must(math.isfinite(verifier.lowest), f"it is {verifier.lowest}")


async def _valid(verifier: Verifier, found: Sequence[Example]) -> None:
    for one in found:
        try:
            verifier.check_task(one.task)
        except ValueError as error:
            raise BrokenRuleError(f"check_task refuses {one.task.id}: {error}") from error


async def _gold(grader: Grader, found: Sequence[Example]) -> None:
    for one in found:
        verdict = await grader.grade(one.task, one.gold)
        _must(verdict.outcome is Outcome.SCORED and verdict.correct is True, _told(one, verdict))


async def _empty(grader: Grader, found: Sequence[Example]) -> None:
    for one in found:
        verdict = await grader.grade(one.task, _NOTHING)
        right = verdict.correct is False and verdict.reward == grader.verifier.lowest
        _must(verdict.outcome is Outcome.SCORED and right, _told(one, verdict))


async def _same(grader: Grader, found: Sequence[Example]) -> None:
    for one in found:
        for submission in (one.gold, _NOTHING):
            first, second = [await grader.grade(one.task, submission) for _ in range(2)]
            _must(first == second, f"{one.task.id}: {first} and then {second}")


async def _at_once(grader: Grader, found: Sequence[Example]) -> None:
    for one in found:
        verdicts = await asyncio.gather(*(grader.grade(one.task, one.gold) for _ in range(AT_ONCE)))
        for verdict in verdicts:
            _must(verdict.correct is True, _told(one, verdict))


async def _broken(grader: Grader, found: Sequence[Example]) -> str:
    task = replace(found[0].task, payload={})
    try:
        grader.verifier.check_task(task)
    except ValueError as error:
        _must(bool(str(error)), "check_task says nothing of what is wrong")
        verdict = await grader.grade(task, found[0].gold)
        _must(verdict.reward is None, f"check_task refuses it, and verify gives {verdict.reward}")
        return str(error)
    return "it needs none"


async def _hurried(verifier: Verifier, sandboxes: Sandboxes, found: Sequence[Example]) -> str:
    grader = Grader(verifier, sandboxes, seconds=HURRY_SECONDS)
    worst = 0.0
    for one in found:
        for submission in (one.gold, Submission("a" * 1_000_000)):
            with _no_longer(HURRY_SECONDS + LATE_SECONDS) as took:
                await grader.grade(one.task, submission)
            worst = max(worst, took[0])
    return f"{worst:.2f} s at most, with a deadline of {HURRY_SECONDS:g}"


@contextmanager
def _no_longer(seconds: float) -> Iterator[list[float]]:
    took: list[float] = []
    start = time.monotonic()
    yield took
    took.append(time.monotonic() - start)
    _must(took[0] <= seconds, f"it took {took[0]:.2f} s")


def _told(example: Example, verdict: Verdict) -> str:
    return f"{example.task.id}: {verdict.outcome.value}, reward {verdict.reward}, {verdict.detail or 'no detail'}"


def _must(condition: bool, otherwise: str) -> None:
    if not condition:
        raise BrokenRuleError(otherwise)
