"""The rollout workers as the driver sees them: started, handed work and weights, and started anew when lost."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from rl import cluster
from rl.cluster import Actor, ActorLost
from rollout_workers.clock import Clock
from rollout_workers.engine import EngineError
from rollout_workers.trajectory import Episode, EpisodeKey, Failed
from rollout_workers.weights import WeightsRef
from rollout_workers.worker import RolloutWorker, WorkerSetup, WorkerStatus
from verifiers.errors import UserError
from verifiers.task import Task
from verifiers.verdict import Outcome, Verdict

_LOOK_AGAIN = 0.05
_STOP_SECONDS = 3.0


class FleetError(UserError):
    """Workers are lost more often than the configuration allows, or cannot start."""

    exit_code = 1


class WorkerLost(Exception):
    """The worker died under a call. The call's episode may be tried again."""


class Faults(Protocol):
    """Where losses are written down, such as the ledger."""

    def fault(self, actor: str, kind: str, detail: str) -> None:
        """Something of ours failed and was dealt with."""
        ...


class _Places:
    """For so many at once; the others queue, and for how long is told."""

    def __init__(self, number: int, clock: Clock, cause: str) -> None:
        self._free, self._clock, self._cause = asyncio.Semaphore(number), clock, cause

    async def __aenter__(self) -> None:
        with self._clock.time(self._cause):
            await self._free.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._free.release()


class Worker:
    """One place in the fleet; the actor in it may be replaced."""

    def __init__(self, index: int, slots: int) -> None:
        self.name = f"worker-{index}"
        self.size = slots
        self.queued = Clock()
        """What episodes waited for a place in one of the two below."""
        self.slots = _Places(slots, self.queued, "queued for a slot")
        """Taken by episodes that act."""
        self.gradings = _Places(slots, self.queued, "queued for grading")
        """Taken by episodes that are graded."""
        self.acting = 0
        """Members that act or wait for a slot."""
        self.actor: Actor | None = None
        """None while the actor starts."""
        self._up = asyncio.Event()
        self._failure: Exception | None = None

    async def ready(self) -> Actor:
        """The actor, as soon as it is up. Whoever calls has a deadline. Raises what its start raised."""
        while self.actor is None:
            if self._failure is not None:
                raise self._failure
            await self._up.wait()
        return self.actor

    def fail(self, error: Exception) -> None:
        """No actor will be up here again."""
        self._failure = error
        self._up.set()

    def replace(self, actor: Actor | None) -> None:
        """Another actor is up here; or none, for now."""
        self.actor = actor
        if actor is None:
            self._up.clear()
        else:
            self._up.set()


class Fleet:
    """Starts workers and keeps them; every call names the worker it went to."""

    def __init__(
        self,
        setup: WorkerSetup,
        faults: Faults,
        restarts: int,
        start_actor: Callable[..., Actor] = cluster.start_actor,
    ) -> None:
        self._setup = setup
        self._start_actor = start_actor
        self._faults = faults
        self._restarts = restarts
        self._weights: tuple[WeightsRef, Any] | None = None
        self._serving = False
        self._starting: set[asyncio.Task[None]] = set()
        self._seeds = count(setup.seed)
        self.workers = [Worker(i, setup.config.slots) for i in range(setup.config.workers)]
        self.files: Path | None = None
        """Where weights lie that every worker has to see; none where they come by other ways."""
        self.sandbox = ""
        """Which sandbox the workers took, in words."""

    async def start(self) -> None:
        """Start all workers, side by side. Raises what a worker's start raises."""
        async with asyncio.TaskGroup() as group:
            for worker in self.workers:
                group.create_task(self._start(worker))

    async def serve(self) -> None:
        """Workers sample from the weights they were started with, as version 0, until others come."""
        self._serving = True
        for worker in self.workers:
            await (await worker.ready()).call("serve")

    async def has(self, version: int) -> None:
        """Wait until every worker samples from `version` or a newer one. Whoever calls has a deadline.

        One that is lost meanwhile is started anew. Raises FleetError.
        """
        for worker in self.workers:
            while not await self._has(worker, version):  # noqa: ASYNC110 (another process)
                await asyncio.sleep(_LOOK_AGAIN)

    def least_loaded(self) -> Worker:
        """The worker with the fewest episodes, to which the next group goes."""
        return min(self.workers, key=lambda worker: worker.acting)

    def offer(self, ref: WeightsRef, data: Any = None) -> None:
        """Put weights into every mailbox; waits for nobody. `data`: see `RolloutWorker.offer`, or Ray's reference."""
        self._weights = ref, data
        for worker in self.workers:
            if worker.actor is not None:
                worker.actor.tell("offer", ref, data)

    async def sample(
        self, worker: Worker, key: EpisodeKey, task: Task, *, greedy: bool = False, version: int = -1
    ) -> Episode | Failed:
        """Not before weights of `version` have arrived there. Raises WorkerLost."""
        return await self._call(worker, "sample", key, task, greedy, version)  # type: ignore[no-any-return]

    async def grade(self, worker: Worker, task: Task, episode: Episode) -> Verdict:
        """The verdict; a lost worker is an infrastructure error of the grading, not of the sampling."""
        try:
            return await self._call(worker, "grade", task, episode)  # type: ignore[no-any-return]
        except WorkerLost as error:
            return Verdict(Outcome.INFRA_ERROR, detail=str(error))

    async def statuses(self) -> dict[str, WorkerStatus]:
        """Of the workers that answer."""
        found = {}
        for worker in self.workers:
            if worker.actor is not None:
                with suppress(ActorLost):  # its loss is dealt with by whoever has work there
                    found[worker.name] = await self._status(worker, worker.actor)
        return found

    async def status(self, worker: Worker) -> WorkerStatus:
        """Of one, as soon as it is up. Raises ActorLost, and what its start raised."""
        return await self._status(worker, await worker.ready())

    async def stop(self) -> None:
        """End every engine in good order, and then the actors."""
        if starts := set(self._starting):
            for start in starts:
                start.cancel()
            # Until they have: a call that is cancelled after Ray has gone cannot tell its actor.
            await asyncio.wait(starts, timeout=_STOP_SECONDS)
        async with asyncio.TaskGroup() as group:
            for worker in self.workers:
                if worker.actor is not None:
                    group.create_task(self._end(worker, worker.actor))

    async def _status(self, worker: Worker, actor: Actor) -> WorkerStatus:
        """The status of the actor that is up at `worker`; what it could not do is written down on the way."""
        status: WorkerStatus = await actor.call("status")
        for fault in status.faults:
            self._faults.fault(worker.name, "WeightsError", fault)
        return status

    async def _has(self, worker: Worker, version: int) -> bool:
        try:
            return bool(await self._call(worker, "has", version))
        except WorkerLost:  # another one is up by now, and has yet to take them
            return False

    async def _call(self, worker: Worker, method: str, *arguments: Any) -> Any:
        actor = await worker.ready()
        try:
            return await actor.call(method, *arguments)
        except (ActorLost, EngineError) as error:
            await self._replace(worker, actor, error)
            raise WorkerLost(str(error)) from error

    async def _replace(self, worker: Worker, lost: Actor, error: Exception) -> None:
        """Start anew, once, however many calls notice the loss."""
        if worker.actor is not lost:
            return
        worker.replace(None)
        self._faults.fault(worker.name, type(error).__name__, str(error))
        lost.kill()
        self._restarts -= 1
        if self._setup.config.engine.transport == "nccl":
            raise FleetError(f"{worker.name} was lost, and a broadcast group cannot be joined again: {error}")
        if self._restarts < 0:
            raise FleetError(f"{worker.name} was lost once too often: {error}")
        # The start outlives the episode that noticed the loss, should its deadline come first.
        start = asyncio.create_task(self._start(worker), name=f"start of {worker.name}")
        self._starting.add(start)
        start.add_done_callback(self._started)
        await asyncio.shield(start)

    def _started(self, start: "asyncio.Task[None]") -> None:
        self._starting.discard(start)
        if not start.cancelled():
            start.exception()  # looked at, for its waiters may be gone; `Worker.ready` raises it to others

    async def _start(self, worker: Worker) -> None:
        config = self._setup.config
        env = {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        try:
            actor = self._start_actor(
                RolloutWorker,
                # With the seed of another start it would sample the same noise again.
                replace(self._setup, seed=next(self._seeds)),
                name=worker.name,
                cpus=config.cpus,
                gpus=config.gpus,
                # Calls in flight: an episode in every slot, as many gradings, and the small ones.
                concurrency=2 * config.slots + 8,
                env=env,
            )
            self.sandbox = await actor.call("start")
            await self._check_reach(worker, actor)
            if self._serving and self._weights is None:
                await actor.call("serve")
        except Exception as error:
            worker.fail(error)
            raise
        worker.replace(actor)
        if self._weights is not None:
            actor.tell("offer", *self._weights)

    async def _check_reach(self, worker: Worker, actor: Actor) -> None:
        """A place may come up again on another host. Raises FleetError where weights in files do not get there."""
        if self.files is not None and not await actor.call("sees", str(self.files)):
            raise FleetError(
                f"{worker.name} came up again on another host, where this run's files of weights are not: "
                '`cwm-rl resume` goes on with rollout.engine.transport = "auto" or "ray"'
            )

    async def _end(self, worker: Worker, actor: Actor) -> None:
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await actor.call("stop")
        except (ActorLost, TimeoutError):
            pass  # gone already, or gone in a moment
        except Exception as error:  # noqa: BLE001 - a plug-in's end, say, which is no matter of a run that is done
            self._faults.fault(worker.name, type(error).__name__, str(error))
        finally:
            actor.kill()
