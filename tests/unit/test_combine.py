"""Weighted sums of verifiers."""

import asyncio
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_sandbox import PlainSandboxes

from verifiers import registry
from verifiers.combine import Combined, Part
from verifiers.shaping import Format, Length
from verifiers.task import Limits, Submission, Task
from verifiers.verdict import Outcome, Verdict

TASK = Task("t", "math", (), "sum")


class Fixed:
    """Says the same of every answer."""

    def __init__(self, verdict: Verdict, lowest: float = -1.0) -> None:
        self.verdict = verdict
        self.lowest = lowest

    def check_task(self, task: Task) -> None:
        if self.verdict.outcome is Outcome.INVALID_TASK:
            raise ValueError("broken task")

    async def verify(self, task: Task, submission: Submission, sandboxes: object) -> Verdict:
        return self.verdict


def combined(**parts: tuple[float, Verdict]) -> Combined:
    return Combined({name: w for name, (w, _) in parts.items()}, verifiers={n: Fixed(v) for n, (_, v) in parts.items()})


def verify(verifier: Combined, reply: str = "x") -> Verdict:
    return asyncio.run(verifier.verify(TASK, Submission(reply), PlainSandboxes()))


RIGHT = Verdict.scored(1.0, correct=True)
DENSE = Verdict(Outcome.SCORED, 0.5)


def test_the_sum_is_weighted_its_parts_are_not_and_the_first_says_what_is_solved() -> None:
    verdict = verify(combined(main=(2.0, RIGHT), dense=(0.1, DENSE)))
    assert verdict.reward == pytest.approx(2.05)
    assert (verdict.correct, dict(verdict.parts)) == (True, {"main": 1.0, "dense": 0.5})
    assert verify(combined(dense=(0.1, DENSE), main=(2.0, RIGHT))).correct is None


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(-5, 5)), min_size=1, max_size=5))
def test_the_sum_is_the_sum(parts: list[tuple[float, float]]) -> None:
    verdict = verify(combined(**{f"p{i}": (w, Verdict.scored(r, correct=False)) for i, (w, r) in enumerate(parts)}))
    assert verdict.reward == pytest.approx(sum(w * r for w, r in parts))


def test_an_attack_on_one_part_costs_the_lowest_sum() -> None:
    verdict = verify(combined(main=(2.0, RIGHT), other=(0.5, Verdict(Outcome.TAMPERED, -1.0, False, "forged"))))
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.TAMPERED, -2.5, False)
    assert "forged" in verdict.detail


@pytest.mark.parametrize("outcome", [Outcome.INVALID_TASK, Outcome.VERIFIER_ERROR, Outcome.INFRA_ERROR])
def test_a_part_without_a_reward_takes_the_sum_with_it(outcome: Outcome) -> None:
    verdict = verify(combined(main=(1.0, RIGHT), other=(1.0, Verdict(outcome, detail="why"))))
    assert (verdict.outcome, verdict.reward, verdict.detail) == (outcome, None, "other: why")


def test_every_part_checks_the_task() -> None:
    with pytest.raises(ValueError, match="broken task"):
        combined(main=(1.0, RIGHT), other=(1.0, Verdict(Outcome.INVALID_TASK))).check_task(TASK)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weights_are_positive_and_finite(weight: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        Combined({"math": weight})


def test_no_part_is_refused() -> None:
    for parts in ({}, {"format": Part(gate=True)}):
        with pytest.raises(ValueError, match="at least one"):
            Combined(parts)


def test_a_shut_gate_costs_all_and_asks_nobody_else() -> None:
    class Never(Fixed):
        async def verify(self, task: Task, submission: Submission, sandboxes: object) -> Verdict:
            raise AssertionError("asked behind a shut gate")

    shut = Fixed(Verdict.scored(-1.0, correct=False, detail="no box"))
    parts = {"main": Part(2.0), "gate": Part(0.5, gate=True)}
    verdict = verify(Combined(parts, verifiers={"main": Never(RIGHT), "gate": shut}))
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.SCORED, -2.5, False)
    assert (dict(verdict.parts), verdict.detail) == ({"gate": -1.0}, "gate: no box")
    opened = Fixed(Verdict.scored(0.0, correct=True))
    verdict = verify(Combined(parts, verifiers={"main": Fixed(RIGHT), "gate": opened}))
    assert (verdict.reward, verdict.correct) == (2.0, True)


@pytest.mark.parametrize(
    ("tokens", "reward"), [(0, 0.0), (80, 0.0), (90, -0.5), (99, -0.95), (100, -1.0), (10_000, -1.0)]
)
def test_length_costs_more_and_more_near_its_limit(tokens: int, reward: float) -> None:
    verifier = Length(limit=100, margin=20)
    verdict = asyncio.run(verifier.verify(TASK, Submission("x", completion_tokens=tokens), PlainSandboxes()))
    assert verdict.reward == pytest.approx(reward)
    assert verdict.correct is (tokens <= 80)


@pytest.mark.parametrize(
    ("soft", "tokens", "reward"), [(20, 20, 0.0), (20, 60, -0.5), (20, 100, -1.0), (60, 60, 0.0), (500, 101, -1.0)]
)
def test_a_task_says_from_where_on_length_costs(soft: int, tokens: int, reward: float) -> None:
    task = replace(TASK, limits=Limits(tokens=100, soft_tokens=soft))
    verdict = asyncio.run(Length().verify(task, Submission("x", completion_tokens=tokens), PlainSandboxes()))
    assert verdict.reward == pytest.approx(reward)


def test_what_counts_for_right_answers_is_not_asked_about_others() -> None:
    parts = {"length": Part(2.0, if_correct=True), "main": Part(1.0)}
    half = Fixed(Verdict.scored(-0.5, correct=False))
    for main, reward in ((RIGHT, 0.0), (Verdict.scored(-1.0, correct=False), -1.0)):
        verdict = verify(Combined(parts, verifiers={"main": Fixed(main), "length": half}))
        assert (verdict.reward, verdict.correct) == (reward, main.correct)
        assert ("length" in verdict.parts) is main.correct


@pytest.mark.parametrize(
    ("needs", "reply", "kept"),
    [
        ("think", "a</think>b", True),
        ("think", "a</think></think>", False),
        ("boxed", "a</think>\\boxed{1}", True),
        ("boxed", "a</think>1", False),
        ("code", "a</think>```python\npass\n```", True),
        ("code", "a</think>```\npass", False),
    ],
)
def test_format(needs: str, reply: str, kept: bool) -> None:
    verdict = asyncio.run(Format(needs=needs).verify(TASK, Submission(reply), PlainSandboxes()))
    assert (verdict.correct, verdict.reward) == (kept, 0.0 if kept else -1.0)


def test_no_answer_is_worth_less_than_a_wrong_one() -> None:
    parts = {"length": Part(9.0, if_correct=True), "main": Part(1.0)}
    combined = Combined(parts, verifiers={"main": Fixed(RIGHT), "length": Fixed(Verdict.scored(-1.0, correct=False))})
    assert (combined.lowest, verify(combined).reward) == (-1.0, -1.0)
    with pytest.raises(ValueError, match="cannot be a gate and count only"):
        Combined({"main": 1.0, "odd": Part(gate=True, if_correct=True)}, verifiers=combined.verifiers)


def test_a_margin_that_is_all_of_an_episode() -> None:
    with pytest.raises(ValueError, match="at most 4096 tokens"):
        Length(margin=4096).check_task(TASK)


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": 5, "margin": 6}, {"limit": 5, "margin": -1}])
def test_a_length_that_cannot_be(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="'margin' must be"):
        Length(**options)


def test_the_example_plug_in_weighs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "plugins" / "cwm_rl_printable")
    monkeypatch.delitem(sys.modules, "cwm_rl_printable", raising=False)
    printable = registry.load("cwm_rl_printable:Printable")
    verifier = Combined({"math": 1.0, "printable": 0.2}, verifiers={"printable": printable})
    task = Task("t", "math", (), "sum", payload={"answer": "4"})

    async def both() -> tuple[Verdict, Verdict]:
        try:
            good = await verifier.verify(task, Submission("</think>\n\\boxed{4}"), PlainSandboxes())
            return good, await verifier.verify(task, Submission("\x00\x01ab"), PlainSandboxes())
        finally:
            await verifier.aclose()

    good, noise = asyncio.run(both())
    assert (good.reward, good.correct) == (pytest.approx(1.2), True)
    assert (noise.reward, noise.correct) == (pytest.approx(-0.9), False)
    assert verifier.lowest == -1.0
