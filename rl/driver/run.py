"""A run: everything the algorithm's loop needs, put together, taken apart again, and resumed."""

import asyncio
import json
import shlex
import time
from collections.abc import AsyncIterator, Iterator, Set
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl import cluster, trackers
from rl.cluster import Actor
from rl.config import Config
from rl.driver import publisher
from rl.driver.fleet import Fleet
from rl.driver.heartbeat import Heartbeat
from rl.driver.inbox import Batch, Inbox
from rl.driver.live import Live
from rl.driver.publisher import Transport
from rl.driver.rollouts import Rollouts
from rl.driver.waits import Waits
from rl.evaluation import evaluate
from rl.evaluation.plan import deadline
from rl.learner import checkpoint, exactness
from rl.learner.learner import Learner, LearnerSetup, StepRefused
from rl.learner.packing import Row
from rl.ledger import DropReason, Ledger, Reader
from rl.prepare import RunError, base_model, recipe, store, warm_start_seconds
from rl.progress import Say
from rl.reports import report
from rl.tasks.stream import Pool, softened, stream
from rl.train import train
from rollout_workers.files import replacing
from rollout_workers.renderer import Renderer
from rollout_workers.worker import WorkerSetup


@dataclass
class Run:
    """The parts of a running run. Its methods are what `rl.train.train` asks for."""

    config: Config
    directory: Path
    ledger: Ledger
    learner: Actor
    fleet: Fleet
    inbox: Inbox
    transport: Transport
    say: Say
    waits: Waits
    live: Live
    _refused: int = field(default=0, init=False)

    def remaining(self) -> Iterator[int]:
        """Steps still to take, for as long as there is time to begin one."""
        began, limit = time.monotonic(), self.config.run.seconds
        for step in range(self.ledger.step + 1, self.config.run.steps + 1):
            if limit is not None and time.monotonic() - began > limit:
                self.say(
                    f"ended after {limit:g} s (run.seconds), {step - 1} of {self.config.run.steps} steps; "
                    f"cwm-rl resume {self.directory} goes on"
                )
                return
            yield step

    async def take(self) -> Batch:
        """The next batch of groups that are fresh and teach something."""
        async with self.waits.named("a batch of scored groups", self.config.guard.batch_seconds):
            return await self.inbox.take()

    async def learn(self, batch: Batch) -> dict[str, float] | None:
        """An optimiser step. None where it was refused: the batch's episodes stay in the ledger, but are out.

        Raises StepRefused after so many in a row.
        """
        try:
            async with self.waits.named("the learner's step", self.config.learner.step_seconds):
                stats = dict(await self.learner.call("step", batch.rows))
        except StepRefused as error:
            self._refused += 1
            self.ledger.fault("learner", "refused", str(error))
            self.ledger.drop(batch.keys, DropReason.REFUSED, str(error))
            if self._refused >= self.config.guard.refused_batches:
                raise StepRefused(
                    f"{self._refused} batches in a row were refused, at last for {error}; their episodes are in the "
                    "ledger, dropped as 'refused'. A smaller learner.lr may help"
                ) from error
            self.say(f"{error}; another batch is taken")
            return None
        self._refused = 0
        return stats

    async def commit(self, step: int, batch: Batch, stats: dict[str, float]) -> None:
        """Record the step, save a checkpoint if one is due, and say how it went."""
        stats = stats | report.batch_stats(batch, self.ledger.version)
        self._evaluated("after").unlink(missing_ok=True)  # of a run that ended earlier, and now goes on
        async with self.waits.named("the ledger's commit", self.config.learner.step_seconds):
            self.ledger.commit(step, batch.keys, stats)
        if step % self.config.checkpoint.every == 0:
            await self.save(step)
        self.live.step(step, stats)

    async def save(self, step: int) -> None:
        """A checkpoint of the last step."""
        path = checkpoint.path_of(self.directory / "checkpoints", step)
        async with self.waits.named("a checkpoint", self.config.learner.step_seconds):
            await self.learner.call("save", str(path), step)
        self.ledger.checkpoint(step, path)
        checkpoint.prune(path.parent, self.config.checkpoint.keep, step)

    async def publish(self) -> None:
        """Put the learner's weights into every worker's mailbox, under the next version."""
        async with self.waits.named("weights from the learner", self.config.learner.step_seconds):
            await self.transport.prepare(self.ledger.version + 1)
        version = self.ledger.publish(self.ledger.step)
        async with self.waits.named("weights to the workers", self.config.rollout.engine.swap_seconds):
            await self.transport.offer(version)

    async def evaluate(self, when: str) -> None:
        """Episodes on held-out tasks, unless they are there already: eval/`when`.jsonl."""
        path, wanted, version = self._evaluated(when), self.config.eval, self.ledger.version
        if wanted is None or path.exists() or (when == "before" and version >= 0):  # the weights before are gone
            return
        async with self.waits.named("every worker's newest weights", self.config.rollout.engine.swap_seconds):
            if version < 0:
                await self.fleet.serve()
            await self.fleet.has(max(0, version))
        tasks = evaluate.held_out(self.config.data.generated, wanted.tasks)
        episodes, done = len(tasks) * wanted.samples, list[int]()
        async with (
            self.waits.named("the held-out episodes", deadline(self.config, episodes)),
            self.live.shown(f"evaluation {when}", episodes, lambda: len(done)),
        ):
            samples = await evaluate.evaluate(self.fleet, tasks, wanted.samples, done=done.append)
        evaluate.write(samples, path)
        self.say(evaluate.table(evaluate.summarise(samples)))

    def _evaluated(self, when: str) -> Path:
        return self.directory / "eval" / f"{when}.jsonl"

    async def status(self) -> tuple[dict[str, dict[str, float]], list[int]]:
        """Where each actor's time went, by cause, and the actors' process ids."""
        async with self.waits.named("the actors' status", self.config.learner.step_seconds):
            workers = await self.fleet.statuses()
            pid, seconds = await self.learner.call("status")
        queued = {worker.name: worker.queued.seconds for worker in self.fleet.workers}
        times = {name: {**status.seconds, **queued[name]} for name, status in workers.items()}
        pids = [pid, *(status.pid for status in workers.values())]
        return {"driver": dict(self.waits.seconds), "learner": dict(seconds), **times}, pids

    async def gap(self) -> exactness.Gap | None:
        """Compare engine and learner on what was trained. The learner is of no further use afterwards."""
        wanted, kept = self.config.guard.gap_versions, self.transport.versions()
        if not wanted or not kept:
            return None
        rows = await asyncio.to_thread(self._comparable, kept.keys())
        chosen = sorted(rows.keys() & kept.keys())[-wanted:]
        async with self.waits.named("the comparison of engine and learner", self.config.learner.step_seconds):
            return exactness.summarise(
                await self.learner.call("gaps", {v: rows[v] for v in chosen}, *(kept[v] for v in chosen))
            )

    def _comparable(self, kept: Set[int]) -> dict[int, list[Row]]:
        """Of what was sampled under those versions; episodes that ended under older ones are not even read."""
        with Reader(self.directory) as reader:
            records = reader.episodes(since=min(kept))
            sampled = (record.episode for record in records if record.episode is not None)
            return exactness.exact_rows(sampled, recompute=self.config.rollout.engine.kv == "recompute", of=kept)


async def execute(config: Config, directory: Path, pools: list[Pool], say: Say) -> dict[str, Any]:
    """Train from where the run stands to its last step; write and return the report. Raises what any part raises."""
    started = time.monotonic()
    async with opened(config, directory, pools, say) as run:
        loop_started, began = time.monotonic(), time.time()
        await run.evaluate("before")
        train_started, (times_before, _) = time.monotonic(), await run.status()
        with Reader(directory) as reader:
            drawn, mixture = reader.drawn(), config.data.mixture
        order = stream(pools, mixture, config.run.seed, drawn, lambda: run.ledger.step, run.ledger.solve_rate)
        order = softened(order, config.data.soft_tokens, lambda: run.ledger.step)
        async with run.live.training(), asyncio.TaskGroup() as both:
            rollouts = Rollouts(config, order, run.fleet, run.ledger, run.inbox)
            sampling = both.create_task(rollouts.run(), name="rollouts")
            await train(run)
            sampling.cancel()
        newest = run.ledger.newest_checkpoint()
        if newest is None or newest[0] != run.ledger.step:
            await run.save(run.ledger.step)
        train_ended, (times, _) = time.monotonic(), await run.status()
        run.ledger.finish()
        await run.evaluate("after")
        seconds = {
            **warm_start_seconds(directory),
            "startup": loop_started - started,
            "eval_before": train_started - loop_started,
            "training": train_ended - train_started,
            "eval_after": time.monotonic() - train_ended,
        }
        gap = await run.gap()
        _, pids = await run.status()
        spent = report.spent(times, times_before)
        result = report.build(directory, began, seconds, spent, gap, run.fleet.sandbox, pids)
        with replacing(directory / "report.json") as whole:
            whole.write_text(json.dumps(result, indent=2) + "\n")
    return result


@asynccontextmanager
async def opened(config: Config, directory: Path, pools: list[Pool], say: Say) -> AsyncIterator[Run]:
    """Ledger, cluster, learner and workers; on leaving, all of them ended."""
    base = base_model(config, directory)
    renderer = Renderer.load(base, reasoning=config.rollout.reasoning)
    async with AsyncExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(directory))
        waits = Waits()
        heart = await stack.enter_async_context(Heartbeat.beating(directory, waits))
        trackers.start(directory, config.run.trackers)
        store(config, directory)  # after a resume with other settings, the next one goes on with these
        model = fall_back(ledger, base, say)
        cpus = config.rollout.workers * config.rollout.cpus + config.learner.cpus
        gpus = config.rollout.workers * config.rollout.gpus + config.learner.gpus
        advice = f"go on with: cwm-rl resume {shlex.quote(str(directory))}"
        where = stack.enter_context(cluster.connected(config.cluster, directory, cpus, gpus, advice))
        say(f"{where}; starting the learner and {config.rollout.workers} worker(s)")
        learner = _start_learner(config, model, resumed=model != base)
        stack.callback(learner.kill)
        recipes = {name: recipe(config, name) for pool in pools for name in sorted(pool.verifiers)}
        setup = WorkerSetup(directory.name, base, config.model.dtype, config.run.seed, config.rollout, recipes)
        fleet = Fleet(setup, ledger, config.guard.worker_restarts)
        stack.push_async_callback(fleet.stop)
        live = Live(config.run.steps, ledger, waits, say)
        async with (
            waits.named("the learner and the workers to start", config.rollout.engine.start_seconds),
            live.shown("start", len(fleet.workers), lambda: sum(one.actor is not None for one in fleet.workers)),
        ):
            async with asyncio.TaskGroup() as both:
                size = both.create_task(learner.call("size_bytes"))
                both.create_task(fleet.start())
            ways = publisher.opened(config, directory, learner, fleet, size.result())
            transport = await stack.enter_async_context(ways)
        say(fleet.sandbox)
        patience = config.guard.zero_advantage_groups
        inbox = Inbox(config.algorithm, renderer.vocab_size, ledger, patience, config.run.seed)
        run = Run(config, directory, ledger, learner, fleet, inbox, transport, say, waits, live)
        if ledger.newest_checkpoint() is None:
            await run.save(0)
        for group in ledger.ready():
            await inbox.put(group)
        await stack.enter_async_context(heart.watching(fleet, lambda: learner.call("status")))
        stack.push(heart.leaving)
        yield run


def _start_learner(config: Config, model: str, *, resumed: bool) -> Actor:
    setup = LearnerSetup(
        model, resumed, config.model.dtype, config.rollout.temperature, config.learner, config.algorithm
    )
    # A waiting OpenMP thread that spins would starve the engine beside it.
    env = {"OMP_NUM_THREADS": str(config.learner.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return cluster.start_actor(
        Learner, setup, name="learner", cpus=config.learner.cpus, gpus=config.learner.gpus, env=env
    )


def fall_back(ledger: Ledger, base: str, say: Say) -> str:
    """Bring the ledger back to the newest whole checkpoint and return that, or the model the run began with.

    Raises RunError where steps were taken and no checkpoint can be read.
    """
    ledger.interrupt()
    with Reader(ledger.path) as reader:
        candidates = reader.checkpoints()
    step, model = 0, base
    for at, path in candidates:
        try:
            step, model = checkpoint.read_step(Path(path)), str(path)
            break
        except checkpoint.CheckpointError as error:
            ledger.fault("driver", "checkpoint", str(error))
            say(f"passed over step {at}: {error}")
    else:
        if ledger.step:  # a volume that is not mounted, say: nothing is thrown away for that
            raise RunError(
                f"{ledger.path.parent} has {ledger.step} step(s) and no checkpoint that can be read: put its "
                "checkpoints back, or begin another run"
            )
    if step < ledger.step:
        lost = ledger.step - step
        freed = ledger.rollback(step)
        say(f"fell back to step {step}: {lost} step(s) are taken again, and {freed} episodes are pending again")
    return model
