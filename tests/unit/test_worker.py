"""A worker's mailbox: which weights it takes, who waits for them, and what it says of those it could not take."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import config_of, said, task_of, tiny_model
from plain_sandbox import PlainSandboxes

from rollout_workers import worker as module
from rollout_workers.engine import EngineError, Sampled
from rollout_workers.renderer import Renderer
from rollout_workers.trajectory import Episode, EpisodeKey
from rollout_workers.weights import WeightsError, WeightsRef
from rollout_workers.worker import KEPT, RolloutWorker, WorkerSetup

SECONDS = 20
KEY = EpisodeKey(1, 0, 0)


class FakeEngine:
    """Swaps as long as its gate is open, refuses what it was told to, and can be told to die of an update."""

    def __init__(self, renderer: Renderer) -> None:
        self.version = -1
        self.gate = asyncio.Event()
        self.gate.set()
        self.swaps: list[int] = []
        self.paths: list[str] = []
        self.refuses: set[int] = set()
        self.dies_of = -1
        self._renderer, self._dead = renderer, False

    async def serve(self) -> None:
        """As the real one."""
        self.version = 0

    def check(self) -> None:
        """As the real one."""
        if self._dead:
            raise EngineError("an update failed half way")

    async def swap(self, ref: WeightsRef) -> float:
        """As the real one."""
        self.swaps.append(ref.version)
        self.paths.append(ref.path)
        await self.gate.wait()
        if ref.version in self.refuses:
            raise WeightsError(f"weights of version {ref.version} are not whole")
        if ref.version == self.dies_of:
            self._dead = True
            self.check()
        self.version = ref.version
        return 0.01

    async def sample(self, prompt: Any, max_tokens: int, **_: Any) -> Sampled:
        """Four, under the version of now."""
        self.check()
        return said(self._renderer, "4", version=self.version)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
async def started(model: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[RolloutWorker, FakeEngine]]:
    engine = FakeEngine(Renderer.load(str(model)))

    @asynccontextmanager
    async def start(*_: Any, **__: Any) -> AsyncIterator[FakeEngine]:
        yield engine

    async def choose(*_: Any, **__: Any) -> tuple[PlainSandboxes, str]:
        return PlainSandboxes(), "none"

    monkeypatch.setattr(module.Engine, "start", start)
    monkeypatch.setattr(module, "choose", choose)
    config = config_of("rollout.sandbox.warm=0").rollout
    worker = RolloutWorker(WorkerSetup("run", str(model), "float32", 0, config, {}))
    await worker.start()
    await worker.serve()
    yield worker, engine
    await worker.stop()


async def until_it_has(worker: RolloutWorker, version: int) -> None:
    async with asyncio.timeout(SECONDS):
        while not await worker.has(version):  # noqa: ASYNC110 (as the driver asks, from another process)
            await asyncio.sleep(0.001)


async def test_an_episode_waits_for_the_weights_that_it_asks_for(started: tuple[RolloutWorker, FakeEngine]) -> None:
    worker, _ = started
    early, late = (asyncio.create_task(worker.sample(KEY, task_of(), version=version)) for version in (-1, 2))
    await worker.offer(WeightsRef(1, "1"))
    await until_it_has(worker, 1)
    assert isinstance(found := await early, Episode) and found.versions == (0,)
    assert not late.done()
    await worker.offer(WeightsRef(2, "2"))
    async with asyncio.timeout(SECONDS):
        assert isinstance(found := await late, Episode) and found.versions == (2,)


async def test_of_several_versions_only_the_newest_is_taken(started: tuple[RolloutWorker, FakeEngine]) -> None:
    worker, engine = started
    engine.gate.clear()
    await worker.offer(WeightsRef(1, "1"))
    await asyncio.sleep(0.01)
    for version in (2, 4, 3):
        await worker.offer(WeightsRef(version, str(version)))
    engine.gate.set()
    await until_it_has(worker, 4)
    await worker.offer(WeightsRef(4, "4"))
    await asyncio.sleep(0.01)
    assert engine.swaps == [1, 4]


async def test_weights_that_cannot_be_taken_are_told_once_and_the_next_are(
    started: tuple[RolloutWorker, FakeEngine],
) -> None:
    worker, engine = started
    engine.refuses = {1}
    await worker.offer(WeightsRef(1, "1"))
    async with asyncio.timeout(SECONDS):
        while not (faults := (await worker.status()).faults):  # noqa: ASYNC110 (the same)
            await asyncio.sleep(0.001)
    assert faults == ("weights of version 1 are not whole",)
    assert ((await worker.status()).faults, (await worker.status()).version) == ((), 0)
    await worker.offer(WeightsRef(2, "2"))
    await until_it_has(worker, 2)


async def test_who_waits_for_weights_that_cannot_be_taken_is_told(
    started: tuple[RolloutWorker, FakeEngine],
) -> None:
    """Without lag nothing newer would ever come."""
    worker, engine = started
    engine.refuses = {1}
    waiting = asyncio.create_task(worker.sample(KEY, task_of(), version=1))
    await asyncio.sleep(0)
    await worker.offer(WeightsRef(1, "1"))
    async with asyncio.timeout(SECONDS):
        with pytest.raises(EngineError, match="weights of version 1 are not whole; nothing newer came"):
            await waiting
    with pytest.raises(EngineError, match="not whole"):
        await worker.has(1)
    assert await worker.has(0)
    await worker.offer(WeightsRef(2, "2"))
    await until_it_has(worker, 2)
    assert await worker.has(1)


async def test_who_waits_for_weights_that_cannot_be_taken_gets_newer_ones(
    started: tuple[RolloutWorker, FakeEngine],
) -> None:
    worker, engine = started
    engine.refuses = {1}
    engine.gate.clear()
    waiting = asyncio.create_task(worker.sample(KEY, task_of(), version=1))
    for version in (1, 2):
        await worker.offer(WeightsRef(version, str(version)))
        await asyncio.sleep(0.01)
    engine.gate.set()
    async with asyncio.timeout(SECONDS):
        assert isinstance(found := await waiting, Episode) and found.versions == (2,)
    assert engine.swaps == [1, 2]


async def test_who_waits_for_weights_that_killed_the_engine_is_told(started: tuple[RolloutWorker, FakeEngine]) -> None:
    worker, engine = started
    engine.dies_of = 1
    waiting = [asyncio.create_task(worker.sample(KEY, task_of(), version=1)) for _ in range(2)]
    await asyncio.sleep(0)
    await worker.offer(WeightsRef(1, "1"))
    async with asyncio.timeout(SECONDS):
        told = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in told] == [EngineError] * 2
    with pytest.raises(EngineError):
        await worker.has(1)


async def test_weights_that_come_as_bytes_lie_in_a_few_files(
    started: tuple[RolloutWorker, FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, engine = started
    for version in range(1, KEPT + 3):
        await worker.offer(WeightsRef(version, ""), np.full(4, version, np.uint8))
        await until_it_has(worker, version)
    newest = Path(engine.paths[-1])
    assert newest.read_bytes() == bytes([KEPT + 2] * 4)  # noqa: ASYNC240 (four bytes)
    assert len(list(newest.parent.iterdir())) == KEPT
    monkeypatch.setattr(module, "replacing", lambda _: (_ for _ in ()).throw(OSError("no room")))
    await worker.offer(WeightsRef(99, ""), np.zeros(4, np.uint8))
    assert (await worker.status()).faults == ("weights of version 99 could not be put down here: no room",)
    assert (await worker.status()).version == KEPT + 2
    await worker.stop()
    assert not newest.parent.exists()
