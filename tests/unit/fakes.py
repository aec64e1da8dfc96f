"""Honest fakes for tests of our own logic, and the small real parts that several files of tests share."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rl.config import Config, override, validated
from rl.driver.fleet import Worker
from rl.init_model import InitModel, init_model
from rl.ledger import Ledger
from rollout_workers.engine import Sampled
from rollout_workers.renderer import Renderer
from rollout_workers.trajectory import (
    Completion,
    Context,
    Episode,
    EpisodeKey,
    Failed,
    Group,
    StopReason,
    Trajectory,
)
from verifiers.sandbox import SandboxUnavailable
from verifiers.task import Message, Submission, Task
from verifiers.verdict import Verdict

TINY = {
    "hidden_size": 32,
    "layers": 4,
    "heads": 4,
    "kv_heads": 2,
    "intermediate_size": 64,
    "sliding_window": 8,
    "context": 512,
    "vocab_size": 288,
}
"""A shape with sliding and global layers, grouped heads, and a window that short rows outgrow."""


def tiny_model(directory: Path, **changes: Any) -> Path:
    """A real model directory, some 40 k parameters; `changes` are fields of `InitModel`."""
    init_model(InitModel.model_validate(TINY | changes), directory)
    return directory


def config_of(*overrides: str) -> Config:
    """A whole configuration, all defaults but what a configuration must say, and `a.b=value` overrides."""
    tree: dict[str, Any] = {"model": {"path": "somewhere"}, "data": {"sources": [{"path": "tasks.jsonl"}]}}
    for text in overrides:
        override(tree, text)
    return validated(Config, tree, "test")


def task_of(name: str = "t", **changes: Any) -> Task:
    """A task of one question; `changes` are fields of `Task`."""
    return replace(Task(name, "math", (Message("user", "What is 2 + 2?"),), "math"), **changes)


def said(renderer: Renderer, text: str, *, version: int = 0, ended: bool = True, swap_at: int | None = None) -> Sampled:
    """A reply as an engine gives it. From token `swap_at` on it is of the next version."""
    tokens = (*renderer.content(text), *([renderer.stop_ids[0]] if ended else []))
    cuts = [0, len(tokens)] if swap_at is None else [0, swap_at, len(tokens)]
    parts = (tokens[start:end] for start, end in pairwise(cuts))
    completions = (
        Completion(part, tuple(-0.5 - token / 1000 for token in part), version + at) for at, part in enumerate(parts)
    )
    return Sampled(tuple(completions), ended)


class ScriptedSampler:
    """An engine that says what it was told to, keeps what it was asked, and insists on its budget."""

    def __init__(self, *replies: Sampled | float) -> None:
        self._replies = iter(replies)
        self.asked: list[tuple[tuple[int, ...], int]] = []

    async def sample(self, prompt: Sequence[int], max_tokens: int) -> Sampled:
        """The next reply; a number among them is a pause in seconds before the one after it."""
        self.asked.append((tuple(prompt), max_tokens))
        reply = next(self._replies)
        while isinstance(reply, float):
            await asyncio.sleep(reply)
            reply = next(self._replies)
        assert sum(len(completion.tokens) for completion in reply.completions) <= max_tokens
        return reply


class NoSandboxes:
    """An engine of sandboxes that is down."""

    def open(self, spec: object = None) -> Any:
        """Raises SandboxUnavailable."""
        raise SandboxUnavailable("the sandbox daemon is gone")


Act = Callable[[EpisodeKey, Task], Awaitable[Episode | Failed]]


class FakeFleet:
    """What `Rollouts` needs of a fleet: real slots, acting by `act`, a verdict by `judge`. Starts no process."""

    def __init__(self, act: Act, slots: int, workers: int = 1, judge: Callable[[Episode], Verdict] | None = None):
        self.workers = [Worker(index, slots) for index in range(workers)]
        self._act = act
        self._judge = judge or (lambda episode: Verdict.scored(episode.key.index, correct=False))
        self.now: dict[str, int] = dict.fromkeys((worker.name for worker in self.workers), 0)
        """Calls that act right now, by worker."""
        self.most = dict(self.now)
        self.tried: list[EpisodeKey] = []
        self.graded: list[EpisodeKey] = []
        self.greedy: set[bool] = set()
        """How it was asked to sample."""
        self.versions: list[int] = []
        """The oldest weights that each call would take."""

    def least_loaded(self) -> Worker:
        """As the real one."""
        return min(self.workers, key=lambda worker: worker.acting)

    async def sample(
        self, worker: Worker, key: EpisodeKey, task: Task, *, greedy: bool = False, version: int = -1
    ) -> Episode | Failed:
        """Whatever `act` does."""
        self.tried.append(key)
        self.greedy.add(greedy)
        self.versions.append(version)
        self.now[worker.name] += 1
        self.most[worker.name] = max(self.most[worker.name], self.now[worker.name])
        try:
            return await self._act(key, task)
        finally:
            self.now[worker.name] -= 1

    async def grade(self, worker: Worker, task: Task, episode: Episode) -> Verdict:
        """Whatever `judge` says."""
        self.graded.append(episode.key)
        return self._judge(episode)


def episode_of(key: EpisodeKey, *, length: int = 3, version: int = 0, token: int = 7, logprob: float = -0.5) -> Episode:
    """One turn of `length` sampled tokens."""
    completion = Completion((token,) * length, (logprob,) * length, version)
    return Episode(
        key, "t", "math", (Trajectory((Context((1, 2)), completion)),), StopReason.DONE, Submission("x"), {"tool": 0.5}
    )


def closed_group(ledger: Ledger, *rewards: float, length: int = 3, improbable: int | None = None) -> Group:
    """A group that went its whole way through the ledger, a member for every reward; one may be of rare tokens."""
    number = ledger.dispatch("t", "math", len(rewards), 4e9)
    for index, reward in enumerate(rewards):
        key = EpisodeKey(number, index, 0)
        logprob = -50.0 if index == improbable else -0.5
        ledger.sampled(episode_of(key, length=length, version=ledger.version, logprob=logprob))
        ledger.scored(key, Verdict.scored(reward, correct=reward > 0, parts={"math": reward}))
    return ledger.close(number)


def new_ledger(directory: Path) -> Iterator[Ledger]:
    """The body of a fixture: a ledger whose version 0 is published."""
    with Ledger.create(directory, "run-1", {}) as ledger:
        ledger.publish(0)
        yield ledger
