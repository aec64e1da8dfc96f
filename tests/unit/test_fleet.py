"""The workers as the driver sees them, with actors in this process instead of Ray's."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fakes import config_of, episode_of, task_of

from rl.cluster import ActorLost
from rl.driver.fleet import Fleet, FleetError, WorkerLost
from rollout_workers.trajectory import EpisodeKey
from rollout_workers.weights import WeightsRef, sees
from rollout_workers.worker import WorkerSetup, WorkerStatus
from verifiers.verdict import Outcome


class FakeActor:
    """A worker that starts, answers, and is lost when it shall sample, or do what else it `dies_of`."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.seed = setup.seed
        self.faults: list[str] = []
        self.hangs = self.cancelled = self.stubborn = self.killed = False
        self.dies_of = {"sample"}
        self.told: list[tuple[Any, ...]] = []

    async def call(self, method: str, *arguments: Any) -> Any:
        """As the real one, faults told once."""
        if method in self.dies_of:
            raise ActorLost("it died")
        if method == "start" and self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled = True
        if method == "has":
            return True
        if method == "stop" and self.stubborn:
            raise KeyError("of a plug-in")
        if method == "sees":
            return sees(*arguments)
        faults, self.faults = tuple(self.faults), []
        return WorkerStatus(1, 4, {}, faults) if method == "status" else ""

    def tell(self, *told: Any) -> None:
        """Kept."""
        self.told.append(told)

    def kill(self) -> None:
        """Nothing runs."""
        self.killed = True


class Started:
    """Where actors come from and faults go to."""

    def __init__(self, workers: int) -> None:
        config = config_of(f"rollout.workers={workers}").rollout
        self.actors: list[FakeActor] = []
        self.hang = False
        """Whether actors that are started from now on never are up."""
        self.dies_of = {"sample"}
        """What they die of, who are started from now on."""
        self.faults: list[tuple[str, str, str]] = []
        self.fleet = Fleet(WorkerSetup("r", "m", "float32", 7, config, {}), self, 1, self._start)  # type: ignore[arg-type]

    def fault(self, *told: str) -> None:
        """Kept."""
        self.faults.append(told)  # type: ignore[arg-type]

    def _start(self, cls: type, setup: WorkerSetup, **options: Any) -> FakeActor:
        self.actors.append(FakeActor(setup))
        self.actors[-1].hangs, self.actors[-1].dies_of = self.hang, self.dies_of
        return self.actors[-1]


async def test_every_start_of_a_worker_has_a_seed_of_its_own() -> None:
    started = Started(workers=3)
    await started.fleet.start()
    with pytest.raises(WorkerLost):
        await started.fleet.sample(started.fleet.workers[1], EpisodeKey(1, 0, 0), task_of())
    assert [actor.seed for actor in started.actors] == [7, 8, 9, 10]
    assert started.faults == [("worker-1", "ActorLost", "it died")]


async def test_weights_that_a_worker_could_not_take_are_recorded_once() -> None:
    started = Started(workers=2)
    await started.fleet.start()
    started.actors[1].faults.append("weights of version 3 are not whole")
    await started.fleet.has(4)
    await started.fleet.statuses()
    assert started.faults == [("worker-1", "WeightsError", "weights of version 3 are not whole")]


async def test_a_start_that_is_under_way_has_ended_when_the_fleet_has() -> None:
    started = Started(workers=1)
    await started.fleet.start()
    started.hang = True
    call = asyncio.create_task(started.fleet.sample(started.fleet.workers[0], EpisodeKey(1, 0, 0), task_of()))
    for _ in range(9):
        await asyncio.sleep(0)
    assert started.actors[-1].hangs
    call.cancel()
    await started.fleet.stop()
    assert started.actors[-1].cancelled


async def test_one_that_is_lost_before_it_has_the_weights_is_started_anew() -> None:
    started = Started(workers=2)
    await started.fleet.start()
    started.actors[1].dies_of = {"has"}
    await started.fleet.has(3)
    assert len(started.actors) == 3
    assert started.faults == [("worker-1", "ActorLost", "it died")]


async def test_one_that_is_lost_while_it_grades_is_no_verdict_on_the_answer() -> None:
    started = Started(workers=1)
    started.dies_of = {"grade"}
    await started.fleet.start()
    verdict = await started.fleet.grade(started.fleet.workers[0], task_of(), episode_of(EpisodeKey(1, 0, 0)))
    assert (verdict.outcome, verdict.reward, verdict.detail) == (Outcome.INFRA_ERROR, None, "it died")
    assert len(started.actors) == 2


async def test_one_that_is_lost_again_and_again_ends_the_run() -> None:
    started = Started(workers=1)
    await started.fleet.start()

    async def sample() -> None:
        await started.fleet.sample(started.fleet.workers[0], EpisodeKey(1, 0, 0), task_of())

    with pytest.raises(WorkerLost):
        await sample()
    with pytest.raises(FleetError, match="worker-0 was lost once too often: it died"):
        await sample()
    assert len(started.actors) == 2


async def test_when_it_does_not_come_up_again_all_who_wait_for_it_are_told() -> None:
    started = Started(workers=1)
    await started.fleet.start()
    started.dies_of = {"start"}
    worker = started.fleet.workers[0]
    calls = (started.fleet.sample(worker, EpisodeKey(1, index, 0), task_of()) for index in range(3))
    async with asyncio.timeout(20):
        told = await asyncio.gather(*calls, started.fleet.status(worker), return_exceptions=True)
    assert all(isinstance(error, ActorLost | WorkerLost) for error in told), told
    assert len(started.actors) == 2


async def test_one_that_ends_badly_is_recorded_and_killed() -> None:
    started = Started(workers=2)
    await started.fleet.start()
    started.actors[0].stubborn = True
    await started.fleet.stop()
    assert started.faults == [("worker-0", "KeyError", "'of a plug-in'")]
    assert all(actor.killed for actor in started.actors)


@pytest.mark.parametrize("here", [True, False])
async def test_a_worker_that_comes_up_again_gets_the_weights_or_says_why_not(tmp_path: Path, here: bool) -> None:
    started = Started(workers=1)
    await started.fleet.start()
    started.fleet.files = tmp_path if here else tmp_path / "elsewhere"
    ref = WeightsRef(3, str(started.fleet.files / "3"))
    started.fleet.offer(ref)
    with pytest.raises(WorkerLost if here else FleetError, match="died" if here else "worker-0 came up again on ano"):
        await started.fleet.sample(started.fleet.workers[0], EpisodeKey(1, 0, 0), task_of())
    assert [actor.told for actor in started.actors] == [[("offer", ref, None)], [("offer", ref, None)] if here else []]


async def test_it_is_told_before_there_are_any_weights() -> None:
    started = Started(workers=1)
    await started.fleet.start()
    started.fleet.files = Path("/of/another/host")
    with pytest.raises(FleetError, match="worker-0 came up again on another host"):
        await started.fleet.sample(started.fleet.workers[0], EpisodeKey(1, 0, 0), task_of())
