"""How good a model is: episodes on held-out tasks through the same workers, and what they say of each domain."""

import asyncio
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from rl.driver.fleet import Fleet, Worker, WorkerLost
from rl.tasks.generated import GeneratedSource
from rollout_workers.files import replacing
from rollout_workers.trajectory import Episode, EpisodeKey, FailureReason
from verifiers.task import Message, Task
from verifiers.verdict import Verdict

_ATTEMPTS = 3
_Z = 1.96
"""Two-sided 95 % of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One episode of an evaluation, and what it came to."""

    task_id: str
    domain: str
    difficulty: int | None
    sample: int
    outcome: str
    """A verdict's, or the reason why there is no episode."""
    reward: float | None
    correct: bool | None
    """None where a failure of ours left nothing to judge."""
    turns: int
    """Replies of the policy."""
    sampled_tokens: int
    detail: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A held-out task, and the difficulty it was drawn at."""

    task: Task
    difficulty: int | None


def held_out(sources: Iterable[GeneratedSource], tasks: int) -> list[HeldOut]:
    """`tasks` different held-out tasks of every domain, its sources in turn, fewer where there are no more; domains
    in turn too, since some load the engine and some the sandboxes."""
    by_domain: dict[str, list[GeneratedSource]] = {}
    for source in sources:
        by_domain.setdefault(source.domain, []).append(source)
    drawn = [_of_a_domain(tuple(same), tasks) for same in by_domain.values()]
    return [one for turn in zip_longest(*drawn) for one in turn if one is not None]


@lru_cache(maxsize=16)  # drawing takes a second, and is asked for before and after a run
def _of_a_domain(sources: tuple[GeneratedSource, ...], tasks: int) -> tuple[HeldOut, ...]:
    """One of each source after the other; what two of them draw is taken once."""
    found: list[HeldOut] = []
    keys = set[tuple[str, str]]()
    turns = deque((source, source.held_out()) for source in sources)
    while turns and len(found) < tasks:
        source, drawn = turns.popleft()
        for key, task in drawn:
            if (source.generator, key) not in keys:
                keys.add((source.generator, key))
                found.append(HeldOut(task, source.difficulty))
                turns.append((source, drawn))
                break
    return tuple(found)


async def evaluate(
    fleet: Fleet, tasks: Sequence[HeldOut], samples: int, *, greedy: bool = False, done: Callable[[int], None]
) -> list[Sample]:
    """`samples` episodes of every task, as many at once as the workers have slots; `done` hears how many there are.

    Raises FleetError.
    """
    found: list[Sample] = []

    async def one(number: int, which: HeldOut, sample: int, worker: Worker) -> None:
        found.append(await _sample(fleet, worker, EpisodeKey(number, sample, 0), which, greedy=greedy))
        done(len(found))

    async with asyncio.TaskGroup() as group:
        for number, which in enumerate(tasks):
            for sample in range(samples):
                worker = fleet.workers[(number * samples + sample) % len(fleet.workers)]
                group.create_task(one(number, which, sample, worker))
    return sorted(found, key=lambda sample: (sample.domain, sample.task_id, sample.sample))


async def _sample(fleet: Fleet, worker: Worker, key: EpisodeKey, which: HeldOut, *, greedy: bool) -> Sample:
    """An episode and its verdict; tried again where our infrastructure failed."""
    task = which.task
    failure, episode, verdict = "", None, None
    for _ in range(_ATTEMPTS):
        if episode is None:
            async with worker.slots:
                try:
                    result = await fleet.sample(worker, key, task, greedy=greedy)
                except WorkerLost as error:
                    failure = str(error)
                    continue
            if not isinstance(result, Episode):
                failure = result.detail
                if result.reason is FailureReason.INFRA_ERROR:
                    continue
                break
            episode = result
        async with worker.gradings:
            verdict = await fleet.grade(worker, task, episode)
        if not verdict.outcome.is_infrastructure:
            break
    return _told(which, key.index, episode, verdict, failure)


def _told(which: HeldOut, sample: int, episode: Episode | None, verdict: Verdict | None, failure: str) -> Sample:
    task = which.task
    if episode is None or verdict is None:
        return Sample(
            task.id, task.domain, which.difficulty, sample, "failed", None, None, 0, 0, failure, task.messages
        )
    turns = episode.submission.turns
    return Sample(
        task.id,
        task.domain,
        which.difficulty,
        sample,
        verdict.outcome.value,
        verdict.reward,
        bool(verdict.correct) if verdict.reward is not None else None,
        sum(message.role == "assistant" for message in turns),
        episode.sampled_tokens,
        verdict.detail,
        turns,
    )


def summarise(samples: Sequence[Sample], k: int | None = None) -> dict[str, Any]:
    """Domain -> its rates, and under `by_difficulty` those of each level: `pass@1`, the ends `low` and `high` of its
    95 % interval, `tasks`, `samples`, `failed`; with several samples a task also `pass@k`, by default for all of them.
    """
    result = {}
    for domain in sorted({sample.domain for sample in samples}):
        chosen = [sample for sample in samples if sample.domain == domain]
        grades = sorted({sample.difficulty for sample in chosen if sample.difficulty is not None})
        by_difficulty = {
            str(grade): _rates([sample for sample in chosen if sample.difficulty == grade], k) for grade in grades
        }
        result[domain] = _rates(chosen, k) | {"by_difficulty": by_difficulty}
    return result


def _rates(samples: Sequence[Sample], k: int | None) -> dict[str, Any]:
    by_task: dict[str, list[bool]] = {}
    for sample in samples:
        if sample.correct is not None:
            by_task.setdefault(sample.task_id, []).append(sample.correct)
    rates: dict[str, Any] = {
        **_share([fmean(correct) for correct in by_task.values()], "pass@1"),
        "samples": sum(map(len, by_task.values())),
        "failed": sum(sample.correct is None for sample in samples),
    }
    size = k or max(map(len, by_task.values()), default=1)
    whole = [correct for correct in by_task.values() if len(correct) >= size > 1]
    if whole:
        rates["pass@k"] = {"k": size, **_share([pass_at_k(len(one), sum(one), size) for one in whole], "value")}
    return rates


def _share(means: Sequence[float], name: str) -> dict[str, Any]:
    low, high = interval(means)
    return {name: fmean(means) if means else 0.0, "low": low, "high": high, "tasks": len(means)}


def interval(means: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the mean over tasks: Wilson's for shares of one sample, else the normal one.

    Wilson's also where all tasks are alike: a spread of 0 is no certainty.
    """
    count = len(means)
    if not count:
        return 0.0, 1.0
    rate = fmean(means)
    if all(mean in (0.0, 1.0) for mean in means) or len(set(means)) == 1:
        centre = (rate + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
        half = _Z * math.sqrt(rate * (1 - rate) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
        return max(0.0, centre - half), min(1.0, centre + half)
    half = _Z * math.sqrt(variance(means) / count)
    return max(0.0, rate - half), min(1.0, rate + half)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k), the chance that one of k drawn samples is right (Chen et al. 2021, arXiv 2107.03374).

    k is at most n.
    """
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def second_turn(samples: Iterable[Sample]) -> dict[str, float]:
    """Of the code tasks whose first reply failed its public tests: how many, and which share was solved later."""
    later = [
        sample.correct
        for sample in samples
        if sample.domain == "code" and sample.turns > 1 and sample.correct is not None
    ]
    return {"tasks": len(later), "solved": fmean(later) if later else 0.0}


def write(samples: Iterable[Sample], path: Path) -> None:
    """One JSON object a line; the file is there whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as whole, whole.open("w", encoding="utf-8", errors="replace") as file:
        for sample in samples:
            file.write(json.dumps(_plain(sample), ensure_ascii=False) + "\n")


def read(path: Path, task_id: str | None = None) -> list[Sample]:
    """What `write` wrote, or what of it is of one task. Raises OSError, ValueError, TypeError, KeyError."""
    mark = "" if task_id is None else json.dumps(task_id, ensure_ascii=False)
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if mark in line]
    rows = [row for row in rows if task_id in (None, row["task_id"])]
    return [Sample(**row | {"messages": tuple(Message(**message) for message in row["messages"])}) for row in rows]


def _plain(sample: Sample) -> dict[str, Any]:
    fields = {name: getattr(sample, name) for name in Sample.__slots__}
    return fields | {"messages": [{"role": one.role, "content": one.content} for one in sample.messages]}


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """A summary for people."""
    lines = [f"{'domain':10} {'pass@1':>7}  {'95 % interval':15} {'tasks':>5} {'samples':>7}"]
    for domain, rates in summary.items():
        lines.append(_line(domain, rates))
        levels = rates.get("by_difficulty", {})
        if len(levels) > 1:
            lines += [_line(f"  level {grade}", part) for grade, part in levels.items()]
    return "\n".join(lines)


def _line(name: str, rates: Mapping[str, Any]) -> str:
    more = ""
    if found := rates.get("pass@k"):
        more = f"  pass@{found['k']} {found['value']:.3f}  {found['low']:.3f} to {found['high']:.3f}"
    if rates.get("failed"):
        more += f"  {rates['failed']} without a verdict"
    return (
        f"{name:10} {rates['pass@1']:7.3f}  {rates['low']:.3f} to {rates['high']:.3f}  "
        f"{rates['tasks']:5} {rates['samples']:7}{more}"
    )
