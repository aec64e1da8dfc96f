"""A rollout worker: one engine, many episodes at once, a mailbox for weights. `rl.cluster` makes it a Ray actor."""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rollout_workers.clock import Clock
from rollout_workers.config import RolloutConfig
from rollout_workers.engine import Engine, EngineError, Greedy
from rollout_workers.episode import run_episode
from rollout_workers.files import replacing
from rollout_workers.renderer import Renderer
from rollout_workers.sandbox.pool import Pool
from rollout_workers.sandbox.reaper import reaping
from rollout_workers.sandbox.select import choose
from rollout_workers.scratch import RECEIVED, SHARED_MEMORY, scratch
from rollout_workers.trajectory import Episode, EpisodeKey, Failed
from rollout_workers.weights import WeightsError, WeightsRef, sees
from verifiers.combine import Combined, Part
from verifiers.runner import Grader
from verifiers.sandbox import Sandbox, Sandboxes, SandboxSpec
from verifiers.task import Task
from verifiers.verdict import Verdict

KEPT: Final = 3
"""Files of weights that came as bytes."""


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker is started with."""

    run: str
    model: str
    dtype: str
    seed: int
    config: RolloutConfig
    recipes: Mapping[str, Mapping[str, Part]]
    """What scores the tasks that name a verifier: verifier -> weight."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker's state for the driver."""

    pid: int
    version: int
    """Of the weights it samples from."""
    seconds: Mapping[str, float]
    faults: tuple[str, ...]
    """Weights that could not be taken, since the last time one asked."""
    grading: int = 0
    """Episodes that are graded right now."""
    sandboxes: int = 0
    """Open right now, without those that only stand ready."""


@dataclass(frozen=True, slots=True)
class _Missed:
    """Weights that could not be taken."""

    version: int
    why: str


class RolloutWorker:
    """Samples episodes and grades them; takes the newest weights it has not got, and nobody waits for it."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._stack = AsyncExitStack()
        self._clock = Clock()
        self._graders: dict[str, Grader] = {}
        self._offered: WeightsRef | None = None
        self._mail = asyncio.Event()
        self._swapped = asyncio.Event()
        """Set at the next swap, and then another one takes its place."""
        self._missed = _Missed(-1, "")
        self._own_files = Path()
        self._faults: list[str] = []
        self._grading = 0

    async def start(self) -> str:
        """Start engine, sandboxes and verifiers; returns which sandbox was taken, in words.

        Raises EngineError, SandboxUnavailable, RendererError, ValueError (an unknown verifier).
        """
        setup, config = self._setup, self._setup.config
        self._renderer = Renderer.load(setup.model, reasoning=config.reasoning)
        if config.engine.transport in ("auto", "ray"):
            place = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
            self._own_files = self._stack.enter_context(scratch(RECEIVED, place))
        backend, chosen = await choose(
            config.sandbox.backend, image=config.sandbox.image, runtime=config.sandbox.runtime, run=setup.run
        )
        await self._stack.enter_async_context(reaping())
        source: Sandboxes = backend
        if config.sandbox.warm:
            source = await self._stack.enter_async_context(Pool(backend, config.sandbox.warm))
        self._sandboxes = _Counted(source)
        for name, parts in setup.recipes.items():
            grader = Grader(Combined(parts), self._sandboxes, seconds=config.grading_seconds)
            self._graders[name] = await self._stack.enter_async_context(grader)
        self._engine = await self._stack.enter_async_context(
            Engine.start(
                setup.model,
                config.engine,
                dtype=setup.dtype,
                slots=config.slots,
                temperature=config.temperature,
                stop=self._renderer.stop_ids,
                seed=setup.seed,
            )
        )
        mailbox = asyncio.create_task(self._read_mail(), name="weights mailbox")
        self._stack.callback(mailbox.cancel)
        return chosen

    async def stop(self) -> None:
        """End the engine and everything else."""
        await self._stack.aclose()

    async def sees(self, directory: str) -> bool:
        """Whether the driver's files there can be read here as well."""
        return sees(directory)

    async def offer(self, ref: WeightsRef, data: NDArray[np.uint8] | None = None) -> None:
        """Put weights into the mailbox; what lies there and was not taken yet is replaced.

        `data`, (bytes,) uint8, is the file itself where this host cannot read `ref.path`.
        """
        if data is not None:
            try:
                ref = await asyncio.to_thread(self._unpacked, ref.version, data)
            except OSError as error:
                self._miss(ref.version, f"weights of version {ref.version} could not be put down here: {error}")
                return
        if self._offered is None or ref.version > self._offered.version:
            self._offered = ref
            self._mail.set()

    def _unpacked(self, version: int, data: NDArray[np.uint8]) -> WeightsRef:
        """The same in a file of ours. A few stay: one may be on its way into the engine."""
        path = self._own_files / f"{version:08d}.safetensors"
        with replacing(path) as temporary:
            data.tofile(temporary)
        for old in sorted(self._own_files.glob("*.safetensors"))[:-KEPT]:
            old.unlink(missing_ok=True)
        return WeightsRef(version, str(path))

    async def serve(self) -> None:
        """Sample from the weights that the engine was started with, as version 0. Raises EngineError."""
        await self._engine.serve()

    async def has(self, version: int) -> bool:
        """Whether it samples from `version` or a newer one. Raises EngineError where it never will."""
        self._engine.check()
        newer = self._offered is not None and self._offered.version > self._missed.version
        if self._engine.version < version <= self._missed.version and not newer:
            raise EngineError(f"{self._missed.why}; nothing newer came")
        return self._engine.version >= version

    async def sample(self, key: EpisodeKey, task: Task, greedy: bool = False, version: int = -1) -> Episode | Failed:
        """Act one episode, not before weights of `version` are in. Raises EngineError."""
        with self._clock.time("waiting for weights"):
            while not await self.has(version):
                await self._swapped.wait()
        sampler, began = Greedy(self._engine) if greedy else self._engine, time.monotonic()
        result = await run_episode(key, task, sampler, self._renderer, self._sandboxes)
        went = result.seconds if isinstance(result, Episode) else {"failed": time.monotonic() - began}
        for cause, seconds in went.items():
            self._clock.seconds[cause] += seconds
        return result

    async def grade(self, task: Task, episode: Episode) -> Verdict:
        """The verdict on an episode, whoever sampled it."""
        self._grading += 1
        try:
            with self._clock.time("grading"):
                return await self._graders[task.verifier].grade(task, episode.submission)
        finally:
            self._grading -= 1

    async def status(self) -> WorkerStatus:
        """The state right now; its faults are told once."""
        faults, self._faults = tuple(self._faults), []
        seconds = dict(self._clock.seconds)
        return WorkerStatus(os.getpid(), self._engine.version, seconds, faults, self._grading, self._sandboxes.now)

    async def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        """vLLM's `init_weight_transfer_engine`: connect to the sender, for transports that push. Raises EngineError."""
        await self._engine.connect(info)

    async def start_weight_update(self) -> None:
        """vLLM's `start_weight_update`: pause sampling, running requests kept. Raises EngineError."""
        await self._engine.begin_update()

    async def update_weights(self, info: dict[str, Any]) -> None:
        """vLLM's `update_weights`: receive the pushed tensors. Raises EngineError."""
        with self._clock.time("swapping"):
            await self._engine.receive(info)

    async def finish_weight_update(self, version: int) -> None:
        """vLLM's `finish_weight_update`: resume sampling, now under `version`. Raises EngineError."""
        await self._engine.end_update(version)
        self._wake()

    async def _read_mail(self) -> None:
        while True:
            await self._mail.wait()
            self._mail.clear()
            ref = self._offered
            if ref is None or ref.version <= self._engine.version:
                continue
            try:
                self._clock.seconds["swapping"] += await self._engine.swap(ref)
            except WeightsError as error:
                self._miss(ref.version, str(error))
            except EngineError as error:
                self._missed = _Missed(ref.version, str(error))
                return  # every later `sample` raises it, and the driver starts another worker
            finally:
                self._wake()

    def _miss(self, version: int, why: str) -> None:
        """Go on with the weights that are there; who waits for these is told so."""
        self._faults.append(why)
        self._missed = _Missed(version, why)
        self._wake()

    def _wake(self) -> None:
        """Those who wait for a version look again."""
        self._swapped.set()
        self._swapped = asyncio.Event()


class _Counted:
    """Sandboxes, and how many of them are open now."""

    def __init__(self, source: Sandboxes) -> None:
        self._source = source
        self.now = 0

    @asynccontextmanager
    async def open(self, spec: SandboxSpec = SandboxSpec()) -> AsyncIterator[Sandbox]:  # noqa: B008 - frozen
        """A fresh sandbox, destroyed on leaving. Raises SandboxUnavailable on entering."""
        async with self._source.open(spec) as sandbox:
            self.now += 1
            try:
                yield sandbox
            finally:
                self.now -= 1
