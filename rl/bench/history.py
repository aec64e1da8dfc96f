"""A long run's ledger, made in seconds: what the service is measured on. Its counts add up, as an audit sees."""

import itertools
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from rl.evaluation.evaluate import Sample, write
from rl.ledger import Ledger, codec
from rl.ledger.lives import summary
from rl.ledger.schema import connect_writer
from rollout_workers.trajectory import Completion, Context, Episode, EpisodeKey, StopReason, Trajectory
from verifiers.task import Message, Submission
from verifiers.verdict import Verdict

DOMAINS = ("math", "code", "trace", "repair")
GROUP = 8
"""Episodes of one."""
_EPISODE_COLUMNS = (
    "group_id, idx, attempt, state, reason, dispatched_at, sampled_at, scored_at, ended_at, first_version,"
    " last_version, multi_version, sampled_tokens, tokens, turns, stop, outcome, reward, correct, parts,"
    " verdict_detail, lineage, step"
)


def make(run: Path, *, episodes: int, steps: int, config: dict[str, object] | None = None) -> None:
    """A run that ended by itself: `episodes` in groups of eight, of `steps` steps, one in 25 dropped.

    Raises LedgerError if there is a run already.
    """
    run.mkdir(parents=True, exist_ok=True)
    with Ledger.create(run, run.name, config or {"run": {"steps": steps}}) as ledger:
        path = ledger.path
    began = time.time() - 30.0 * steps
    with closing(connect_writer(path)) as connection:
        connection.execute("BEGIN")
        _steps(connection, steps, began)
        _episodes(connection, episodes // GROUP, steps, began)
        connection.execute(
            "UPDATE steps SET (episodes, sampled_tokens) = (SELECT COUNT(*), COALESCE(SUM(sampled_tokens), 0)"
            " FROM episodes AS e WHERE e.lineage = steps.lineage AND e.step = steps.step)"
        )
        connection.execute("COMMIT")


def evaluate(run: Path, *, tasks: int) -> None:
    """Its evaluations before and after: `tasks` of every domain, four tries each. Raises OSError."""
    chance = random.Random(3)  # noqa: S311
    for when, share in (("before", 0.3), ("after", 0.7)):
        samples = []
        for domain, task, sample in itertools.product(DOMAINS, range(tasks), range(4)):
            correct = chance.random() < share
            said = _episode(EpisodeKey(task, sample, 0), (0, 0), chance).submission.turns
            grade = ("scored", 1.0 if correct else -1.0, correct, 1, 160, "")
            samples.append(Sample(f"{domain}/task-{task}", domain, 1, sample, *grade, said))
        write(samples, run / "eval" / f"{when}.jsonl")


def go_on(run: Path, rate: float, seconds: float) -> None:
    """A run that goes on: so many small steps a second, through the one door to a ledger. Raises LedgerError."""
    run.mkdir(parents=True, exist_ok=True)
    chance, until = random.Random(2), time.monotonic() + seconds  # noqa: S311
    with Ledger.create(run, run.name, {"run": {"steps": round(rate * seconds)}}) as ledger:
        ledger.publish(0)
        while (began := time.monotonic()) < until:
            step = ledger.step + 1
            number = ledger.dispatch(f"math/task-{step}", "math", 2, time.time() + 60)
            keys = [EpisodeKey(number, index, 0) for index in range(2)]
            for key in keys:
                ledger.sampled(_episode(key, (ledger.version, ledger.version), chance))
                ledger.scored(key, Verdict.scored(2.0 * key.index - 1, correct=key.index == 1))
            ledger.close(number)
            ledger.commit(step, keys, _stats(step, round(rate * seconds), chance))
            ledger.publish(step)
            time.sleep(max(0.0, began + 1 / rate - time.monotonic()))


def main() -> None:
    """RUN RATE SECONDS"""
    run, rate, seconds = sys.argv[1:]
    go_on(Path(run), float(rate), float(seconds))


def _steps(connection: sqlite3.Connection, steps: int, began: float) -> None:
    chance = random.Random(0)  # noqa: S311
    rows = []
    for step in range(1, steps + 1):
        stats = _stats(step, steps, chance)
        rows.append((0, step, began + 30 * step, step - 1, 0, 0, codec.to_json(stats)))
    connection.executemany("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    published = ((version, 0, version, began + 30 * version + 1) for version in range(steps + 1))
    connection.executemany("INSERT INTO versions VALUES (?, ?, ?, ?)", published)


def _stats(step: int, steps: int, chance: random.Random) -> dict[str, object]:
    learnt = step / steps
    reward = {domain: round(-0.6 + 1.2 * learnt + chance.gauss(0, 0.1), 4) for domain in DOMAINS}
    return {
        "loss": chance.gauss(0, 0.01),
        "grad_norm": abs(chance.gauss(0.5, 0.1)),
        "entropy": 1.5 - learnt,
        "kl_k3": abs(chance.gauss(0.001, 0.0005)),
        "clip_fraction": abs(chance.gauss(0.01, 0.003)),
        "tokens": 9000,
        "rows": 48,
        "microbatches": 5,
        "reward": reward,
        "correct": {domain: (value + 1) / 2 for domain, value in reward.items()},
        "parts": {"tests": 0.5},
        "episodes": 48,
        "sampled_tokens": 8000,
        "lag_max": 3,
        "lag_by_token": {"0": 2000, "1": 4000, "2": 2000},
    }


def _episodes(connection: sqlite3.Connection, groups: int, steps: int, began: float) -> None:
    connection.executemany(
        "INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            (number, f"{_domain(number)}/task-{number % 997}", _domain(number), GROUP, at - 60, at + 900, at)
            for number in range(1, groups + 1)
            for at in [_at(number, groups, steps, began)]
        ),
    )
    rows, payloads = zip(*_members(groups, steps, began), strict=True)
    marks = ", ".join("?" * len(_EPISODE_COLUMNS.split(",")))
    connection.executemany(f"INSERT INTO episodes ({_EPISODE_COLUMNS}) VALUES ({marks})", rows)  # noqa: S608
    connection.executemany("INSERT INTO payloads VALUES (?, ?, ?, ?)", payloads)


def _members(groups: int, steps: int, began: float) -> Iterator[tuple[tuple[object, ...], tuple[object, ...]]]:
    chance = random.Random(1)  # noqa: S311
    for number in range(1, groups + 1):
        at, step = _at(number, groups, steps, began), _step(number, groups, steps)
        dropped = number % 25 == 0
        for index in range(GROUP):
            key = EpisodeKey(number, index, 0)
            version = max(step - 3, 0)
            episode = _episode(key, (version, version + (step > 3 and index % 2)), chance)
            correct = not dropped and chance.random() < 0.2 + 0.6 * number / groups
            life = ("dropped", "zero_advantage") if dropped else ("trained", None)
            times = (at - 60, at - 20, at - 10, at)
            verdict = ("scored", 1.0 if correct else -1.0, correct, '{"tests": 1.0}', "")
            place = (None, None) if dropped else (0, step)
            seat = (number, index, 0)
            yield (*seat, *life, *times, *summary(episode), *verdict, *place), (*seat, codec.pack(episode))


def _episode(key: EpisodeKey, versions: tuple[int, int], chance: random.Random) -> Episode:
    words = [chance.choice(("so", "then", "x", "return", "plus", "loop", "value", "test")) for _ in range(60)]
    said = " ".join(words)
    tokens, middle = tuple(chance.randrange(4000) for _ in range(160)), 80
    logprobs = tuple(-(index % 7) / 8 for index in range(160))
    segments = (
        Context(tuple(range(40))),
        Completion(tokens[:middle], logprobs[:middle], versions[0]),
        Completion(tokens[middle:], logprobs[middle:], versions[1]),
    )
    turns = (Message("user", f"Task {key.group}: what comes of it?"), Message("assistant", said))
    domain = _domain(key.group)
    name = f"{domain}/task-{key.group % 997}"
    seconds = {"sampling": 30.0, "tool": 2.0}
    return Episode(key, name, domain, (Trajectory(segments),), StopReason.DONE, Submission(said, turns), seconds)


def _domain(number: int) -> str:
    return DOMAINS[number % len(DOMAINS)]


def _step(number: int, groups: int, steps: int) -> int:
    return 1 + (number - 1) * steps // groups


def _at(number: int, groups: int, steps: int, began: float) -> float:
    """When its group closed: before the step that took it."""
    return began + 30 * _step(number, groups, steps) - 1


if __name__ == "__main__":
    main()
