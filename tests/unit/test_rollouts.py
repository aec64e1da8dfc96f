"""Dispatch and its bookkeeping, with a fake fleet and a real ledger and inbox."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import Act, FakeFleet, closed_group, config_of, episode_of, task_of

from rl.config import Config
from rl.driver.fleet import WorkerLost
from rl.driver.inbox import Inbox
from rl.driver.rollouts import Rollouts
from rl.ledger import DropReason, Ledger, Reader, State
from rl.ledger.audit import audit
from rollout_workers.trajectory import Episode, EpisodeKey, Failed, FailureReason, Group
from verifiers.task import Task
from verifiers.verdict import Outcome, Verdict

SECONDS = 20
"""Deadline of everything that ought to happen; nothing here takes longer than a second."""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path, "run-1", {}) as ledger:
        ledger.publish(0)
        yield ledger
        ledger.interrupt()
    found = audit(tmp_path)
    assert found.ok, found.problems


def by_index(episode: Episode) -> Verdict:
    """Every other member is right: all groups teach."""
    return Verdict.scored(float(episode.key.index % 2), correct=True)


async def acts(key: EpisodeKey, task: Task) -> Episode | Failed:
    await asyncio.sleep(0.001)
    return episode_of(key)


def under(ledger: Ledger) -> Act:
    """Acts under the newest weights."""

    async def act(key: EpisodeKey, task: Task) -> Episode | Failed:
        await asyncio.sleep(0.001)
        return episode_of(key, version=ledger.version)

    return act


class Kept(Inbox):
    """An inbox that also remembers what was put into it."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        super().__init__(config.algorithm, 288, ledger, patience=1000, seed=0)
        self.groups: list[Group] = []

    async def put(self, group: Group) -> None:
        self.groups.append(group)
        await super().put(group)


def config(*overrides: str, slots: int = 4, size: int = 2) -> Config:
    """Room for everything, unless told otherwise."""
    return config_of(
        *(f"rollout.slots={slots}", f"algorithm.group_size={size}", "algorithm.max_lag=1000"),
        *("algorithm.token_budget=1000000", "guard.group_seconds=60", "guard.retries=2", *overrides),
    )


def endless() -> Iterator[Task]:
    return (task_of(f"t{i}") for i in itertools.count())


async def rolled_out(ledger: Ledger, settings: Config, fleet: FakeFleet, tasks: int) -> list[Group]:
    """The groups of so many tasks, all at their end."""
    inbox = Kept(settings, ledger)
    rollouts = Rollouts(settings, iter([task_of(f"t{i}") for i in range(tasks)]), fleet, ledger, inbox)  # type: ignore[arg-type]
    await asyncio.wait_for(rollouts.run(), SECONDS)
    return inbox.groups


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 (rows in a database set no event)
            await asyncio.sleep(0.002)


async def stopped(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel them as often as it takes: nothing may go on into the next test."""
    async with asyncio.timeout(SECONDS):
        while not all(task.done() for task in tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.05)


def dropped(ledger: Ledger) -> dict[DropReason, int]:
    with Reader(ledger.path) as reader:
        return {reason: count for reason, count in reader.counts().dropped.items() if count}


def pending(ledger: Ledger) -> dict[State, int]:
    with Reader(ledger.path) as reader:
        return {state: count for state, count in reader.counts().pending.items() if count}


@pytest.mark.parametrize(("slots", "workers", "size"), [(3, 1, 4), (4, 2, 2), (1, 1, 3)])
async def test_no_more_than_the_slots_act_at_once(ledger: Ledger, slots: int, workers: int, size: int) -> None:
    fleet = FakeFleet(acts, slots, workers)
    groups = await rolled_out(ledger, config(f"rollout.workers={workers}", slots=slots, size=size), fleet, 6)
    assert set(fleet.most.values()) == {slots}
    assert sorted(group.task_id for group in groups) == [f"t{i}" for i in range(6)]
    assert {len(group.members) for group in groups} == {size}
    assert pending(ledger) == {State.SCORED: 6 * size}
    assert all(worker.acting == 0 for worker in fleet.workers)


async def test_nothing_starts_before_a_version_is_published(tmp_path: Path) -> None:
    with Ledger.create(tmp_path, "run-1", {}) as ledger:
        fleet = FakeFleet(acts, 4)
        rolling = asyncio.create_task(rolled_out(ledger, config(), fleet, 1))
        await asyncio.sleep(0.05)
        assert not fleet.tried
        ledger.publish(0)
        assert len(await rolling) == 1


async def test_members_get_their_verdicts(ledger: Ledger) -> None:
    (group,) = await rolled_out(ledger, config(size=3), FakeFleet(acts, 4), 1)
    assert [(member.episode.key.index, member.verdict.reward) for member in group.members] == [(0, 0), (1, 1), (2, 2)]


def failing(times: int, failure: Callable[[EpisodeKey], Failed]) -> Act:
    """Member 1 fails so many times before it acts; `failure` may raise."""

    async def act(key: EpisodeKey, task: Task) -> Episode | Failed:
        await asyncio.sleep(0)
        return failure(key) if key.index == 1 and key.attempt < times else episode_of(key)

    return act


def no_sandbox(key: EpisodeKey) -> Failed:
    return Failed(key, FailureReason.INFRA_ERROR, "no sandbox")


def worker_lost(key: EpisodeKey) -> Failed:
    raise WorkerLost("worker-0 died")


FAILURES = [(no_sandbox, DropReason.INFRA_ERROR), (worker_lost, DropReason.WORKER_LOST)]


@pytest.mark.parametrize(("failure", "reason"), FAILURES)
async def test_a_retry_keeps_the_index_and_counts_the_attempt_up(
    ledger: Ledger, failure: Callable[[EpisodeKey], Failed], reason: DropReason
) -> None:
    fleet = FakeFleet(failing(2, failure), 4)
    (group,) = await rolled_out(ledger, config(), fleet, 1)
    number = group.id
    assert [key for key in fleet.tried if key.index == 1] == [EpisodeKey(number, 1, attempt) for attempt in range(3)]
    assert [member.episode.key for member in group.members] == [EpisodeKey(number, 0, 0), EpisodeKey(number, 1, 2)]
    assert dropped(ledger) == {reason: 2}


@pytest.mark.parametrize(("failure", "reason"), FAILURES)
async def test_failures_without_end_are_dropped_by_their_reason(
    ledger: Ledger, failure: Callable[[EpisodeKey], Failed], reason: DropReason
) -> None:
    (group,) = await rolled_out(ledger, config(size=3), FakeFleet(failing(99, failure), 4), 1)
    assert [member.episode.key.index for member in group.members] == [0, 2]
    assert dropped(ledger) == {reason: 3}
    assert pending(ledger) == {State.SCORED: 2}


@pytest.mark.parametrize("reason", [FailureReason.PROMPT_TOO_LONG, FailureReason.DEADLINE])
async def test_what_no_retry_can_help_is_not_tried_again(ledger: Ledger, reason: FailureReason) -> None:
    fleet = FakeFleet(failing(1, lambda key: Failed(key, reason, "no use")), 4)
    await rolled_out(ledger, config(size=3), fleet, 1)
    assert len(fleet.tried) == 3
    assert dropped(ledger) == {DropReason(reason): 1}
    assert pending(ledger) == {State.SCORED: 2}


async def test_a_group_that_failures_leave_too_small_is_dropped_whole(ledger: Ledger) -> None:
    (group,) = await rolled_out(ledger, config(size=2), FakeFleet(failing(99, no_sandbox), 4), 1)
    assert [member.episode.key.index for member in group.members] == [0]
    assert dropped(ledger) == {DropReason.INFRA_ERROR: 3, DropReason.GROUP_TOO_SMALL: 1}
    assert pending(ledger) == {}


@pytest.mark.parametrize("outcome", [Outcome.INFRA_ERROR, Outcome.VERIFIER_ERROR])
async def test_a_grading_that_fails_is_asked_again_and_nothing_is_sampled_anew(
    ledger: Ledger, outcome: Outcome
) -> None:
    verdicts = iter([Verdict(outcome, detail="gone")] * 2 + [Verdict.scored(1.0, correct=True)] * 5)
    fleet = FakeFleet(acts, 4, judge=lambda episode: next(verdicts))
    (group,) = await rolled_out(ledger, config(), fleet, 1)
    assert len(group.members) == 2
    assert (len(fleet.tried), len(fleet.graded)) == (2, 4)


@pytest.mark.parametrize("outcome", [Outcome.INFRA_ERROR, Outcome.VERIFIER_ERROR])
async def test_gradings_that_fail_without_end_are_dropped(ledger: Ledger, outcome: Outcome) -> None:
    fleet = FakeFleet(acts, 4, judge=lambda episode: Verdict(outcome, detail="gone"))
    (group,) = await rolled_out(ledger, config(), fleet, 1)
    assert group.members == ()
    assert len(fleet.graded) == 6
    assert dropped(ledger) == {DropReason(outcome): 2}


async def test_the_groups_deadline_leaves_stragglers_behind(ledger: Ledger) -> None:
    async def act(key: EpisodeKey, task: Task) -> Episode | Failed:
        if key.index == 1:
            await asyncio.Event().wait()
        return episode_of(key)

    fleet = FakeFleet(act, 4)
    (group,) = await rolled_out(ledger, config("guard.group_seconds=0.3", size=3), fleet, 1)
    assert [member.episode.key.index for member in group.members] == [0, 2]
    assert dropped(ledger) == {DropReason.DEADLINE: 1}
    assert fleet.now == {"worker-0": 0}, "a straggler still acts"
    assert fleet.workers[0].acting == 0


async def test_one_straggler_keeps_no_slot_but_its_own(ledger: Ledger) -> None:
    free = asyncio.Event()
    others = 0

    async def act(key: EpisodeKey, task: Task) -> Episode | Failed:
        nonlocal others
        if task.id == "t0" and key.index == 0:
            await free.wait()
        else:
            await asyncio.sleep(0.001)
            others += 1
            if others == 11:
                free.set()  # only when everybody else has ended
        return episode_of(key)

    fleet = FakeFleet(act, slots=2)
    groups = await rolled_out(ledger, config(slots=2), fleet, 6)
    assert groups[-1].task_id == "t0"
    assert fleet.most == {"worker-0": 2}


async def test_a_run_that_is_cancelled_ends_and_adds_up(ledger: Ledger) -> None:
    """At sixteen moments round the end of an episode's acting part, each a turn of the event loop later."""
    settings = config(slots=4, size=3)
    for turns in range(16):
        acted = asyncio.Event()

        async def act(key: EpisodeKey, task: Task, acted: asyncio.Event = acted) -> Episode | Failed:
            await asyncio.sleep(0.001)
            acted.set()
            return episode_of(key)

        fleet = FakeFleet(act, 4)
        rollouts = Rollouts(settings, endless(), fleet, ledger, Kept(settings, ledger))  # type: ignore[arg-type]
        rolling = asyncio.create_task(rollouts.run())
        await asyncio.wait_for(acted.wait(), SECONDS)
        for _ in range(turns):
            await asyncio.sleep(0)
        rolling.cancel()
        await asyncio.wait({rolling}, timeout=1)
        ended = rolling.cancelled()
        await stopped(rolling)
        assert ended, f"a cancellation {turns} turns after acting was swallowed: it goes on"
        assert fleet.now == {"worker-0": 0}
        with Reader(ledger.path) as reader:
            assert reader.balanced
            ledger.interrupt()
            assert reader.balanced
        assert set(pending(ledger)) <= {State.SCORED}


async def test_a_run_that_is_cancelled_before_it_began(ledger: Ledger) -> None:
    settings = config()
    rollouts = Rollouts(settings, endless(), FakeFleet(acts, 4), ledger, Kept(settings, ledger))  # type: ignore[arg-type]
    rolling = asyncio.create_task(rollouts.run())
    rolling.cancel()
    await asyncio.wait({rolling}, timeout=SECONDS)
    assert rolling.cancelled()
    assert pending(ledger) == {}


async def test_admission_stops_when_enough_waits_and_goes_on_for_a_learner_that_starves(ledger: Ledger) -> None:
    settings = config("algorithm.max_lag=1", "algorithm.token_budget=18")  # three groups of 6 tokens
    inbox = Kept(settings, ledger)
    fleet = FakeFleet(acts, 4, judge=by_index)
    rolling = asyncio.create_task(Rollouts(settings, endless(), fleet, ledger, inbox).run())  # type: ignore[arg-type]
    await until(lambda: len(inbox.groups) >= 6)
    await asyncio.sleep(0.2)
    with Reader(ledger.path) as reader:
        assert reader.groups == 6
        await inbox.take()  # learnt from until the next is asked for
        await asyncio.sleep(0.2)
        assert reader.groups == 6
        await inbox.take()
        await until(lambda: reader.groups == 9)
    await stopped(rolling)


@pytest.mark.parametrize("every", [1, 2, 4])
async def test_a_slow_learner_throws_little_away(ledger: Ledger, every: int) -> None:
    """Nor where most groups teach nothing: what waits is counted in what a batch is made of."""

    def judge(episode: Episode) -> Verdict:
        return by_index(episode) if episode.key.group % every == 0 else Verdict.scored(1.0, correct=True)

    settings = config("algorithm.max_lag=2", "algorithm.token_budget=48", slots=16, size=4)  # four groups of 12 tokens
    inbox = Kept(settings, ledger)
    rolling = asyncio.create_task(
        Rollouts(settings, endless(), FakeFleet(under(ledger), 16, judge=judge), ledger, inbox).run()
    )  # type: ignore[arg-type]
    for step in range(1, 16):
        batch = await asyncio.wait_for(inbox.take(), SECONDS)
        await asyncio.sleep(0.05)
        ledger.commit(step, batch.keys, {})
        ledger.publish(step)
    await stopped(rolling)
    assert dropped(ledger).get(DropReason.STALE, 0) <= 16, "of 240 that were trained"


async def test_what_depends_on_the_step_is_that_of_the_start(ledger: Ledger) -> None:
    drawn: list[int] = []

    def tasks() -> Iterator[Task]:
        for number in itertools.count():
            drawn.append(ledger.version)
            yield task_of(f"t{number}")

    settings = config("algorithm.max_lag=0", "algorithm.token_budget=12")  # two groups, which fill the slots
    inbox = Kept(settings, ledger)
    fleet = FakeFleet(under(ledger), 4, judge=by_index)
    rolling = asyncio.create_task(Rollouts(settings, tasks(), fleet, ledger, inbox).run())  # type: ignore[arg-type]
    for _ in range(3):
        await asyncio.wait_for(inbox.take(), SECONDS)
        ledger.publish(0)
    await stopped(rolling)
    assert drawn == [0, 0, 1, 1, 2, 2]


async def test_episodes_that_are_learnt_from_count(ledger: Ledger) -> None:
    async def act(key: EpisodeKey, task: Task) -> Episode | Failed:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    settings = config("algorithm.max_lag=1", "algorithm.token_budget=18", slots=20)  # three groups of 6 tokens
    inbox = Kept(settings, ledger)
    for _ in range(3):
        await inbox.put(closed_group(ledger, 1.0, 0.0))
    batch = await inbox.take()
    ledger.commit(1, batch.keys, {})
    with Reader(ledger.path) as reader:
        before = reader.groups
        rolling = asyncio.create_task(Rollouts(settings, endless(), FakeFleet(act, 20), ledger, inbox).run())  # type: ignore[arg-type]
        await until(lambda: reader.groups - before >= 3)
        await asyncio.sleep(0.2)
        started = reader.groups - before
    await stopped(rolling)
    assert started == 3  # room for twelve episodes, six of which are still learnt from


async def test_a_learner_that_waits_gets_no_episodes_that_will_be_too_old_for_it(ledger: Ledger) -> None:
    held = asyncio.Event()

    async def act(key: EpisodeKey, task: Task) -> Episode | Failed:
        await held.wait()
        return episode_of(key)

    settings = config("algorithm.max_lag=1", "algorithm.token_budget=18", slots=20)  # three groups of 6 tokens
    inbox = Kept(settings, ledger)
    for _ in range(3):
        await inbox.put(closed_group(ledger, 1.0, 0.0))
    await inbox.take()
    learner = asyncio.create_task(inbox.take())
    fleet = FakeFleet(act, 20, judge=lambda episode: Verdict.scored(1.0, correct=True))
    with Reader(ledger.path) as reader:
        before = reader.groups
        rolling = asyncio.create_task(Rollouts(settings, endless(), fleet, ledger, inbox).run())  # type: ignore[arg-type]
        await until(lambda: reader.groups - before >= 6)
        await asyncio.sleep(0.2)
        assert reader.groups - before == 6  # two steps of three groups; there are slots for ten
        held.set()  # they teach nothing, and others are started in their place
        await until(lambda: reader.groups - before > 60)
    await stopped(learner, rolling)


async def test_a_group_that_waits_for_a_straggler_counts_whole(ledger: Ledger) -> None:
    """Else more is started than can be trained in time, by one group for every straggler."""

    async def act(key: EpisodeKey, task: Task) -> Episode | Failed:
        if key.index == 0:
            await asyncio.Event().wait()
        return episode_of(key)

    settings = config("algorithm.max_lag=1", size=4)  # room for two groups
    fleet = FakeFleet(act, 4)
    rollouts = Rollouts(settings, endless(), fleet, ledger, Kept(settings, ledger))  # type: ignore[arg-type]
    rolling = asyncio.create_task(rollouts.run())
    with Reader(ledger.path) as reader:
        await until(lambda: reader.groups >= 2)
        await asyncio.sleep(0.2)
        started = reader.groups
    await stopped(rolling)
    assert started == 2
    assert set(fleet.versions) == {-1}, "whatever weights there are"


async def test_without_lag_a_wave_ends_before_the_next_begins(ledger: Ledger) -> None:
    held = asyncio.Event()

    async def act(key: EpisodeKey, task: Task) -> Episode | Failed:
        if key.group == 2:
            await held.wait()
        return episode_of(key)

    settings = config("algorithm.max_lag=0")  # two groups fill the slots
    inbox, fleet = Kept(settings, ledger), FakeFleet(act, 4)
    rolling = asyncio.create_task(Rollouts(settings, endless(), fleet, ledger, inbox).run())  # type: ignore[arg-type]
    with Reader(ledger.path) as reader:
        await asyncio.sleep(0.2)
        assert reader.groups == 0  # no learner waits
        learner = asyncio.create_task(inbox.take())
        await until(lambda: len(inbox.groups) == 1 and reader.groups >= 2)
        await asyncio.sleep(0.2)
        assert reader.groups == 2
        assert ledger.publish(0) == 1
        held.set()
        await until(lambda: reader.groups >= 4)
    await stopped(learner, rolling)
    assert fleet.versions[:4] == [0] * 4 and set(fleet.versions[4:]) == {1}, "not under weights older than the newest"


async def test_a_fleet_that_gives_up_ends_the_run(ledger: Ledger) -> None:
    async def act(key: EpisodeKey, task: Task) -> Episode | Failed:
        raise OSError("the last worker is gone")

    with pytest.raises(ExceptionGroup) as caught:
        await rolled_out(ledger, config(), FakeFleet(act, 4), 3)
    assert caught.group_contains(OSError, match="the last worker is gone")
