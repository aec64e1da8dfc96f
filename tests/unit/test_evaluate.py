"""Evaluations: what is sampled, what is tried again, and what is said of it."""

import asyncio
import errno
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from fakes import Act, FakeFleet, task_of
from hypothesis import given
from hypothesis import strategies as st

from rl.driver.fleet import WorkerLost
from rl.evaluation.evaluate import (
    HeldOut,
    Sample,
    evaluate,
    held_out,
    interval,
    pass_at_k,
    read,
    second_turn,
    summarise,
    table,
    write,
)
from rl.evaluation.reading import of_one
from rl.tasks.generated import GeneratedSource
from rollout_workers.trajectory import (
    Completion,
    Context,
    Episode,
    EpisodeKey,
    Failed,
    FailureReason,
    StopReason,
    Trajectory,
)
from verifiers.task import Message, Submission, Task
from verifiers.verdict import Outcome, Verdict

SECONDS = 20
TALK = (Message("user", "What is 2 + 2?"), Message("assistant", "3"), Message("tool: tests", "no"))


def sample(
    task: str = "t0", correct: bool | None = True, *, number: int = 0, domain: str = "math", **changes: Any
) -> Sample:
    reward = None if correct is None else 1.0 if correct else -1.0
    outcome = "scored" if correct is not None else "failed"
    made = Sample(task, domain, 1, number, outcome, reward, correct, 1, 5, "", TALK)
    return replace(made, **changes)


def several(task: str, *correct: bool | None, **changes: Any) -> list[Sample]:
    return [sample(task, one, number=number, **changes) for number, one in enumerate(correct)]


# --- numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # Wilson's score interval, worked by hand with z = 1.96
        (0, 10, 0.0, 0.27755),
        (10, 10, 0.72245, 1.0),
        (5, 10, 0.23659, 0.76341),
        (1, 2, 0.09453, 0.90547),
        (60, 200, 0.24072, 0.36678),
        (0, 200, 0.0, 0.01885),
    ],
)
def test_the_interval_of_single_samples_is_wilsons(right: int, count: int, low: float, high: float) -> None:
    assert interval([1.0] * right + [0.0] * (count - right)) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_of_several_samples_goes_by_the_spread_over_tasks() -> None:
    # mean 0.5, variance (0.0625 + 0 + 0.0625) / 2 = 0.0625, half = 1.96 * sqrt(0.0625 / 3) = 0.28290
    assert interval([0.25, 0.5, 0.75]) == pytest.approx((0.2171, 0.7829), abs=1e-4)
    # No spread, which says nothing of other tasks: Wilson's, as of 5 right in 10, and of a half right in 1.
    assert interval([0.5] * 10) == pytest.approx((0.23659, 0.76341), abs=1e-4)
    assert interval([0.5]) == pytest.approx((0.0546, 0.9454), abs=1e-4)
    assert interval([]) == (0.0, 1.0)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30))
def test_an_interval_holds_its_mean_and_stays_between_0_and_1(means: list[float]) -> None:
    low, high = interval(means)
    assert 0.0 <= low <= fmean(means) + 1e-12
    assert fmean(means) - 1e-12 <= high <= 1.0


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(numbers: tuple[int, int, int]) -> None:
    samples, correct, k = numbers
    draws = list(combinations(range(samples), k))
    share = fmean(any(one < correct for one in draw) for draw in draws)
    assert pass_at_k(samples, correct, k) == pytest.approx(share)


def test_a_summary_by_domain_and_level() -> None:
    samples = [
        *(sample(f"a{k}", k < 3, difficulty=1) for k in range(4)),
        *(sample(f"b{k}", k < 1, difficulty=2) for k in range(4)),
        *several("c", True, False, False, domain="code", difficulty=None),
        sample("d", None, domain="code", difficulty=None),
    ]
    found = summarise(samples)
    assert list(found) == ["code", "math"]
    assert found["math"]["pass@1"] == 0.5
    assert (found["math"]["low"], found["math"]["high"]) == interval([1, 1, 1, 0, 1, 0, 0, 0])
    assert (found["math"]["tasks"], found["math"]["samples"], found["math"]["failed"]) == (8, 8, 0)
    assert {grade: one["pass@1"] for grade, one in found["math"]["by_difficulty"].items()} == {"1": 0.75, "2": 0.25}
    assert "pass@k" not in found["math"], "one sample says nothing of several"
    assert found["code"]["pass@1"] == pytest.approx(1 / 3)
    assert (found["code"]["tasks"], found["code"]["samples"], found["code"]["failed"]) == (1, 3, 1)
    assert found["code"]["pass@k"] == {"k": 3, "value": 1.0, "low": pytest.approx(0.2065, abs=1e-3), "high": 1.0} | {
        "tasks": 1
    }
    assert found["code"]["by_difficulty"] == {}
    assert json.loads(json.dumps(found)) == found


def test_pass_at_k_is_over_the_tasks_that_have_so_many_samples() -> None:
    samples = [*several("a", True, False, False, False), *several("b", False, False, False, None)]
    found = summarise(samples, 2)["math"]
    assert found["pass@1"] == pytest.approx((0.25 + 0) / 2)
    assert (found["pass@k"]["k"], found["pass@k"]["tasks"]) == (2, 2)
    assert found["pass@k"]["value"] == pytest.approx((0.5 + 0) / 2)
    assert found["pass@k"]["low"] <= 0.25 <= found["pass@k"]["high"]
    assert summarise(samples, 4)["math"]["pass@k"]["tasks"] == 1, "a lost sample takes its task, not the number"
    assert "pass@k" not in summarise(samples, 5)["math"]
    assert "pass@k" not in summarise(samples, 1)["math"]


def test_nothing_but_failures_is_no_share() -> None:
    found = summarise([sample("a", None), sample("b", None)])["math"]
    assert (found["pass@1"], found["low"], found["high"], found["tasks"], found["failed"]) == (0.0, 0.0, 1.0, 0, 2)


def test_the_second_turn_is_of_code_that_failed_first_and_was_judged() -> None:
    samples = [
        sample("a", True, domain="code", turns=1),
        sample("b", False, domain="code", turns=1),
        sample("c", True, domain="code", turns=2),
        sample("d", False, domain="code", turns=3),
        sample("e", False, domain="code", turns=3),
        sample("f", True, domain="code", turns=3),
        sample("g", None, domain="code", turns=2),
        sample("h", True, domain="repair", turns=5),
    ]
    assert second_turn(samples) == {"tasks": 4, "solved": 0.5}
    assert second_turn(samples[:2]) == {"tasks": 0, "solved": 0.0}


def test_the_table_shows_every_number_that_there_is() -> None:
    samples = [
        *several("a", True, False, difficulty=1),
        *several("b", False, False, difficulty=2),
        sample("c", True, domain="trace"),
        sample("d", None, domain="trace"),
    ]
    lines = table(summarise(samples)).splitlines()
    assert [line.split()[0] for line in lines] == ["domain", "math", "level", "level", "trace"]
    assert "0.250" in lines[1]
    assert "pass@2 0.500" in lines[1]
    assert "1 without a verdict" in lines[4]


def test_episodes_worth_reading_are_pointed_at() -> None:
    samples = [
        sample("a", False, detail="wrong"),
        sample("b", True, domain="code"),
        sample("c", True, domain="code", turns=2),
        sample("d", None, domain="code", detail="the prompt of task d has 9 tokens"),
    ]
    assert [(one["line"], one["task_id"], one["why"]) for one in of_one(samples)] == [
        (1, "a", "not solved, wrong"),
        (3, "c", "solved at turn 2"),
        (4, "d", "no verdict, the prompt of task d has 9 tokens"),
    ]


# --- files ------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path: Path) -> None:
    samples = [
        sample("a", detail="é\n\u2028"),
        sample("b", None, difficulty=None),
        sample("c", messages=(Message("tool: tests", '"\\'),)),
    ]
    write(samples, tmp_path / "eval" / "before.jsonl")
    assert read(tmp_path / "eval" / "before.jsonl") == samples
    rows = (tmp_path / "eval" / "before.jsonl").read_text().split("\n")
    assert len(rows) == 4
    assert set(json.loads(rows[0])) >= {"task_id", "domain", "correct", "reward", "turns", "messages", "detail"}


def test_halves_of_characters_are_written_all_the_same(tmp_path: Path) -> None:
    write([sample("a", messages=(Message("assistant", "\ud800"),))], tmp_path / "f")
    assert read(tmp_path / "f")[0].messages[0].content == "?"


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def cut() -> Iterator[Sample]:
        yield sample("b")
        raise OSError(errno.ENOSPC, "no space left on device")

    with pytest.raises(OSError, match="no space"):
        write(cut(), tmp_path / "f")
    assert list(tmp_path.iterdir()) == []
    write([sample("a")], tmp_path / "f")
    with pytest.raises(OSError, match="no space"):
        write(cut(), tmp_path / "f")
    assert read(tmp_path / "f") == [sample("a")]


@pytest.mark.parametrize("text", ["{", '{"task_id": "a"}', "[]", "1", '{"messages": 3}'])
def test_a_damaged_file_is_an_error_and_no_summary(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(f"{text}\n")
    with pytest.raises((ValueError, TypeError, KeyError)):
        read(tmp_path / "f")


# --- what is sampled --------------------------------------------------------------------------------------------


def test_held_out_tasks_are_the_first_ones_of_every_domain() -> None:
    easy, hard = (GeneratedSource(generator="math", difficulty=difficulty) for difficulty in (1, 3))
    trace = GeneratedSource(generator="trace", difficulty=2)
    found = held_out([easy, trace, hard], 5)
    assert Counter(one.task.domain for one in found) == {"math": 5, "trace": 5}
    assert [one.task.domain for one in found[:4]] == ["math", "trace", "math", "trace"]
    assert [(one.task.id, one.difficulty) for one in found if one.task.domain == "math"] == [
        ("math-1-held_out-0/0", 1),
        ("math-3-held_out-0/0", 3),
        ("math-1-held_out-0/1", 1),
        ("math-3-held_out-0/1", 3),
        ("math-1-held_out-0/2", 1),
    ]
    assert found[0].task == easy.task(0, "held_out")
    assert held_out([easy], 2) == [one for one in found if one.difficulty == 1][:2]


def tasks(count: int) -> list[HeldOut]:
    return [HeldOut(task_of(f"t{number}"), 1 + number % 2) for number in range(count)]


def episode(key: EpisodeKey, task: Task, reply: str = "4") -> Episode:
    turns = (*task.messages, Message("assistant", reply))
    parts = (Trajectory((Context((1, 2)), Completion((7,) * 3, (-0.5,) * 3, 0))),)
    return Episode(key, task.id, task.domain, parts, StopReason.DONE, Submission(reply, turns), {})


async def acts(key: EpisodeKey, task: Task) -> Episode | Failed:
    await asyncio.sleep(0.001)
    return episode(key, task, "4" if key.index == 0 else "5")


def judge(one: Episode) -> Verdict:
    right = one.submission.reply == "4"
    return Verdict.scored(1.0 if right else -1.0, correct=right, detail="" if right else "it is 4")


async def evaluated(
    act: Act,
    which: Sequence[HeldOut],
    samples: int = 1,
    *,
    verdict: Callable[[Episode], Verdict] = judge,
    **options: Any,
) -> tuple[list[Sample], FakeFleet, list[int]]:
    fleet, heard = FakeFleet(act, 3, workers=2, judge=verdict), list[int]()
    work: Awaitable[list[Sample]] = evaluate(fleet, which, samples, done=heard.append, **options)  # type: ignore[arg-type]
    return await asyncio.wait_for(work, SECONDS), fleet, heard


async def test_every_task_is_sampled_so_often_and_graded_once_each() -> None:
    found, fleet, heard = await evaluated(acts, tasks(10), 2)
    assert [(one.task_id, one.sample) for one in found] == [(f"t{task}", k) for task in range(10) for k in (0, 1)]
    assert heard == list(range(1, 21))
    assert all(most == 3 for most in fleet.most.values()), "all slots of all workers are used, and no more"
    assert len(fleet.graded) == len(set(fleet.graded)) == 20
    assert fleet.greedy == {False}
    right, wrong = found[:2]
    assert (right.outcome, right.reward, right.correct, right.turns, right.sampled_tokens) == (
        "scored",
        1.0,
        True,
        1,
        3,
    )
    assert (wrong.correct, wrong.reward, wrong.detail) == (False, -1.0, "it is 4")
    assert [message.role for message in right.messages] == ["user", "assistant"]
    assert {one.task_id: one.difficulty for one in found}["t3"] == 2


async def test_greedy_is_handed_on() -> None:
    _, fleet, _ = await evaluated(acts, tasks(2), greedy=True)
    assert fleet.greedy == {True}


def failing(times: int, failure: Callable[[EpisodeKey], Failed]) -> Act:
    """The first task's episode fails so many times before it acts; `failure` may raise."""
    tried = Counter[int]()

    async def act(key: EpisodeKey, task: Task) -> Episode | Failed:
        await asyncio.sleep(0)
        tried[key.group] += 1
        return failure(key) if key.group == 0 and tried[0] <= times else episode(key, task)

    return act


def lost(key: EpisodeKey) -> Failed:
    raise WorkerLost("worker-0 died")


def no_sandbox(key: EpisodeKey) -> Failed:
    return Failed(key, FailureReason.INFRA_ERROR, "the sandbox daemon is gone")


def too_long(key: EpisodeKey) -> Failed:
    return Failed(key, FailureReason.PROMPT_TOO_LONG, "the prompt of task t0 has 900 tokens")


@pytest.mark.parametrize("failure", [lost, no_sandbox])
async def test_our_own_failures_are_tried_again(failure: Callable[[EpisodeKey], Failed]) -> None:
    found, fleet, _ = await evaluated(failing(2, failure), tasks(3))
    assert [one.correct for one in found] == [True] * 3
    assert len(fleet.tried) == 5


@pytest.mark.parametrize(
    ("failure", "tried", "words"),
    [
        (lost, 5, "worker-0 died"),
        (no_sandbox, 5, "the sandbox daemon is gone"),
        (too_long, 3, "the prompt of task t0 has 900 tokens"),
    ],
)
async def test_what_goes_on_failing_is_no_answer_and_costs_no_other(
    failure: Callable[[EpisodeKey], Failed], tried: int, words: str
) -> None:
    found, fleet, heard = await evaluated(failing(99, failure), tasks(3))
    failed = found[0]
    assert (failed.outcome, failed.reward, failed.correct, failed.detail) == ("failed", None, None, words)
    assert failed.messages == tasks(1)[0].task.messages
    assert [one.correct for one in found[1:]] == [True, True]
    assert len(fleet.tried) == tried
    assert heard[-1] == 3
    rates = summarise(found)["math"]
    assert (rates["pass@1"], rates["tasks"], rates["failed"]) == (1.0, 2, 1), (
        "a failure of ours is never a wrong answer"
    )


async def test_a_grading_that_fails_is_tried_again_without_another_episode() -> None:
    verdicts = iter([Verdict(Outcome.INFRA_ERROR, detail="no sandbox"), Verdict.scored(1.0, correct=True)])
    found, fleet, _ = await evaluated(acts, tasks(1), verdict=lambda _: next(verdicts))
    assert (len(fleet.tried), len(fleet.graded)) == (1, 2)
    assert found[0].correct


@pytest.mark.parametrize("outcome", [Outcome.INFRA_ERROR, Outcome.VERIFIER_ERROR, Outcome.INVALID_TASK])
async def test_an_episode_without_a_reward_is_told_and_not_counted(outcome: Outcome) -> None:
    found, _, _ = await evaluated(acts, tasks(1), verdict=lambda _: Verdict(outcome, detail="why"))
    (one,) = found
    assert (one.outcome, one.correct, one.reward, one.detail) == (outcome.value, None, None, "why")
    assert one.turns == 1, "what was said is there to read"


async def test_an_attack_counts_as_wrong() -> None:
    found, _, _ = await evaluated(acts, tasks(1), verdict=lambda _: Verdict(Outcome.TAMPERED, -1.0, False, "forged"))
    assert (found[0].outcome, found[0].correct, found[0].reward) == ("tampered", False, -1.0)


def test_wilson_is_not_the_normal_interval_at_the_ends() -> None:
    low, high = interval([0.0] * 50)
    assert low == 0.0
    assert high == pytest.approx(1.96**2 / (50 + 1.96**2))
    assert math.isclose(interval([1.0] * 50)[0], 1 - high)
