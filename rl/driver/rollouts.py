"""Keeps every slot of every worker busy, and turns what comes back into groups."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress

from rl.algorithm.staleness import capacity
from rl.config import Config
from rl.driver.fleet import Fleet, Worker, WorkerLost
from rl.driver.inbox import Inbox
from rl.ledger.writer import Ledger
from rollout_workers.trajectory import DropReason, Episode, EpisodeKey, FailureReason
from verifiers.task import Task
from verifiers.verdict import Verdict

_LOOK_AGAIN = 0.05
"""Seconds. A learner that begins to wait has no event here."""


class Rollouts:
    """Dispatches groups for as long as it runs; each member goes on by itself, and nobody waits for its group."""

    def __init__(self, config: Config, tasks: Iterator[Task], fleet: Fleet, ledger: Ledger, inbox: Inbox) -> None:
        self._config = config
        self._tasks = tasks
        self._fleet = fleet
        self._ledger = ledger
        self._inbox = inbox
        self._running = 0
        """Members of groups that have not closed."""
        self._gathering = False
        """Without lag: whether the episodes of a wave are still being started."""
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled. Raises FleetError."""
        async with asyncio.TaskGroup() as groups:
            while True:
                while not self._may_start():
                    self._ended.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_AGAIN):
                            await self._ended.wait()
                task = next(self._tasks, None)  # not before it may start: limits and mixture are those of this step
                if task is None:
                    return
                groups.create_task(self._group(task, self._fleet.least_loaded()), name=f"group of {task.id}")
                await asyncio.sleep(0)  # lets it count itself as running

    def _may_start(self) -> bool:
        """A slot is free, and what starts now will not be too old by its turn."""
        config, inbox = self._config, self._inbox
        if self._ledger.version < 0:
            return False  # engines may serve already, but nothing is published that an episode could be of
        free = self._fleet.least_loaded().acting < config.rollout.slots
        if config.algorithm.max_lag == 0:
            return self._in_a_wave() and free
        if not free:
            return False
        each, size = inbox.tokens_per_episode, config.algorithm.group_size
        if not each:  # nobody knows yet how many a step takes; slots are not to wait for stragglers
            return self._running < 2 * config.rollout.slots * config.rollout.workers
        room = capacity(
            max_lag=config.algorithm.max_lag,
            episodes_per_step=max(size, config.algorithm.token_budget / each),
            pending=inbox.tokens / each,
            running=self._running,
        )
        return room >= size

    def _in_a_wave(self) -> bool:
        """Nothing may lag: when the learner waits and nothing runs, every slot is filled, and then all end first."""
        if self._running == 0:
            self._gathering = self._inbox.starving
        elif self._running >= self._config.rollout.slots * self._config.rollout.workers:
            self._gathering = False
        return self._gathering

    async def _group(self, task: Task, worker: Worker) -> None:
        size, seconds = self._config.algorithm.group_size, self._config.guard.group_seconds
        self._running += size
        worker.acting += size
        number = self._ledger.dispatch(task.id, task.domain, size, time.time() + seconds)
        with suppress(TimeoutError):  # closing the group drops who is late, by that reason
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as members:
                for index in range(size):
                    members.create_task(self._member(EpisodeKey(number, index, 0), task, worker))
        await self._inbox.put(self._ledger.close(number))
        self._running -= size
        self._ended.set()

    async def _member(self, key: EpisodeKey, task: Task, worker: Worker) -> None:
        """One member: acting, again where the infrastructure failed, and then its verdict."""
        attempt: EpisodeKey | None = key
        episode = None
        try:
            async with worker.slots:
                while attempt is not None and episode is None:
                    episode, attempt = await self._act(attempt, task, worker)
        finally:
            worker.acting -= 1
            self._ended.set()
        if episode is not None and self._ledger.sampled(episode):
            async with worker.gradings:
                self._ledger.scored(episode.key, await self._grade(episode, task, worker))

    async def _act(self, key: EpisodeKey, task: Task, worker: Worker) -> tuple[Episode | None, EpisodeKey | None]:
        """The episode, or else the attempt to make instead, if another is allowed."""
        try:
            version = self._ledger.version if self._config.algorithm.max_lag == 0 else -1
            result = await self._fleet.sample(worker, key, task, version=version)
        except WorkerLost as error:
            return None, self._again(key, DropReason.WORKER_LOST, str(error))
        if isinstance(result, Episode):
            return result, None
        if result.reason is FailureReason.INFRA_ERROR:
            return None, self._again(key, DropReason.INFRA_ERROR, result.detail)
        self._ledger.drop([key], DropReason(result.reason), result.detail)
        return None, None

    async def _grade(self, episode: Episode, task: Task, worker: Worker) -> Verdict:
        """The verdict; asked for again where we failed, for what was sampled is not lost by that."""
        for _ in range(self._config.guard.retries):
            verdict = await self._fleet.grade(worker, task, episode)
            if not verdict.outcome.is_infrastructure:
                return verdict
        return await self._fleet.grade(worker, task, episode)

    def _again(self, key: EpisodeKey, reason: DropReason, detail: str) -> EpisodeKey | None:
        if key.attempt < self._config.guard.retries:
            return self._ledger.retry(key, reason, detail)
        self._ledger.drop([key], reason, detail)
        return None
