"""Groups on their way to the learner, with a real ledger beside them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import closed_group, new_ledger

from rl.config import AlgorithmConfig
from rl.driver.inbox import Inbox, NothingToLearn
from rl.ledger import DropReason, Ledger, Reader, State
from rollout_workers.trajectory import Group

MIXED, EQUAL = (1.0, -1.0), (1.0, 1.0)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    yield from new_ledger(tmp_path)


def inbox_of(ledger: Ledger, *, budget: int = 6, patience: int = 9, **algorithm: int) -> Inbox:
    config = AlgorithmConfig.model_validate({"token_budget": budget, "max_lag": 1} | algorithm)
    return Inbox(config, 288, ledger, patience, seed=0)


def dropped(ledger: Ledger) -> dict[DropReason, int]:
    with Reader(ledger.path) as reader:
        counts = reader.counts()
        assert counts.balanced
        return {reason: count for reason, count in counts.dropped.items() if count}


def train_something(ledger: Ledger) -> None:
    """A step and a version later."""
    group = closed_group(ledger, *MIXED)
    ledger.commit(ledger.step + 1, [member.episode.key for member in group.members], {})
    ledger.publish(ledger.step)


async def put(inbox: Inbox, *groups: Group) -> None:
    for group in groups:
        await inbox.put(group)


async def starving(inbox: Inbox) -> "asyncio.Task[object]":
    """A learner that waits."""
    task: asyncio.Task[object] = asyncio.create_task(inbox.take())
    await asyncio.sleep(0)
    assert inbox.starving
    return task


async def test_a_batch_is_cut_at_the_budget(ledger: Ledger) -> None:
    inbox = inbox_of(ledger, budget=7)  # every group teaches 6 tokens
    groups = [closed_group(ledger, *MIXED) for _ in range(3)]
    await put(inbox, *groups)
    batch = await inbox.take()
    assert batch.groups == tuple(groups[:2])
    assert batch.keys == [member.episode.key for group in groups[:2] for member in group.members]
    assert [one.advantage for one in batch.rows] == [1.0, -1.0] * 2
    assert inbox.tokens == 18  # those of the batch count, until its version is published
    ledger.commit(1, batch.keys, {})
    another = asyncio.create_task(inbox.take())
    await asyncio.sleep(0)
    assert (inbox.tokens, inbox.starving) == (6, True)
    await put(inbox, closed_group(ledger, *MIXED))
    assert len((await another).groups) == 2


async def test_what_an_episode_brings_is_over_all_that_were_started(ledger: Ledger) -> None:
    inbox = inbox_of(ledger, group_size=2)
    assert inbox.tokens_per_episode == 0
    await put(inbox, closed_group(ledger, *MIXED))
    assert inbox.tokens_per_episode == 3
    await put(inbox, closed_group(ledger, *EQUAL))
    assert inbox.tokens_per_episode == 1.5
    await put(inbox, closed_group(ledger, 1.0))  # of two, one came to nothing
    assert inbox.tokens_per_episode == 1
    late = closed_group(ledger, *EQUAL)  # and no sign that episodes bring less
    ledger.publish(0)
    ledger.publish(0)
    await put(inbox, late)
    assert inbox.tokens_per_episode == 1
    assert dropped(ledger)[DropReason.STALE] == 2


async def test_the_learner_waits_for_enough(ledger: Ledger) -> None:
    inbox = inbox_of(ledger, budget=12)
    assert not inbox.starving
    learner = await starving(inbox)
    await put(inbox, closed_group(ledger, *MIXED))
    await asyncio.sleep(0.01)
    assert not learner.done()
    await put(inbox, closed_group(ledger, *MIXED))
    await asyncio.wait_for(learner, 5)
    assert not inbox.starving
    assert inbox.tokens == 12


async def test_a_learner_that_gives_up_does_not_starve(ledger: Ledger) -> None:
    inbox = inbox_of(ledger)
    learner = await starving(inbox)
    learner.cancel()
    await asyncio.wait({learner})
    assert not inbox.starving


async def test_what_teaches_nothing_is_dropped_by_its_reason(ledger: Ledger) -> None:
    inbox = inbox_of(ledger)
    equal, single, good = closed_group(ledger, *EQUAL), closed_group(ledger, 1.0), closed_group(ledger, *MIXED)
    await put(inbox, equal, single, good)
    assert inbox.tokens == 6
    assert dropped(ledger) == {DropReason.ZERO_ADVANTAGE: 2, DropReason.GROUP_TOO_SMALL: 1}
    assert (await inbox.take()).groups == (good,)
    assert ledger.state(good.members[0].episode.key) == State.SCORED


async def test_a_member_of_no_advantage_is_trained_as_part_of_its_baseline(ledger: Ledger) -> None:
    inbox = inbox_of(ledger)
    group = closed_group(ledger, 1.0, 0.0, -1.0)
    await put(inbox, group)
    batch = await inbox.take()
    assert len(batch.keys) == 3
    assert len(batch.rows) == 2


async def test_the_advantage_is_the_configured_one(ledger: Ledger) -> None:
    inbox = inbox_of(ledger, advantage="rloo")  # type: ignore[arg-type]
    await put(inbox, closed_group(ledger, *MIXED))
    assert [one.advantage for one in (await inbox.take()).rows] == [2.0, -2.0]


async def test_what_waits_too_long_is_stale(ledger: Ledger) -> None:
    inbox = inbox_of(ledger, max_lag=1)
    old = closed_group(ledger, *MIXED)
    await put(inbox, old)
    for _ in range(2):
        train_something(ledger)
    fresh = closed_group(ledger, *MIXED)
    await put(inbox, fresh)
    assert (await inbox.take()).groups == (fresh,)
    assert dropped(ledger) == {DropReason.STALE: 2}


async def test_at_the_largest_lag_it_is_still_trained(ledger: Ledger) -> None:
    inbox = inbox_of(ledger, max_lag=1)
    group = closed_group(ledger, *MIXED)
    await put(inbox, group)
    train_something(ledger)
    assert (await inbox.take()).groups == (group,)


async def test_gibberish_leaves_its_group(ledger: Ledger) -> None:
    inbox = inbox_of(ledger, rare_token_from=7)  # every token of these episodes is 7
    group = closed_group(ledger, *MIXED, 0.5, improbable=1)
    await put(inbox, group)
    (taken,) = (await inbox.take()).groups
    assert taken.members == (group.members[0], group.members[2])
    assert dropped(ledger) == {DropReason.GIBBERISH: 1}


@pytest.mark.parametrize("rewards", [EQUAL, ()], ids=["equal", "empty"])
async def test_patience_ends(ledger: Ledger, rewards: tuple[float, ...]) -> None:
    inbox = inbox_of(ledger, patience=3)
    learner = await starving(inbox)
    for count in range(3):
        assert not learner.done(), count
        group = closed_group(ledger, *rewards) if rewards else Group(count, "t", "math", ())
        await put(inbox, group)
        await asyncio.sleep(0.01)
    with pytest.raises(NothingToLearn, match="3 groups in a row taught nothing"):
        await asyncio.wait_for(learner, 5)


async def test_a_group_that_teaches_renews_the_patience(ledger: Ledger) -> None:
    inbox = inbox_of(ledger, patience=3)
    for _ in range(3):
        learner = await starving(inbox)
        await put(inbox, closed_group(ledger, *EQUAL), closed_group(ledger, *EQUAL), closed_group(ledger, *MIXED))
        await asyncio.wait_for(learner, 5)
    assert dropped(ledger) == {DropReason.ZERO_ADVANTAGE: 12}


async def test_a_group_that_waits_does_not_renew_it_again_and_again(ledger: Ledger) -> None:
    inbox = inbox_of(ledger, budget=100, patience=3)
    await put(inbox, closed_group(ledger, *MIXED))  # teaches, and is not enough for a batch
    learner = await starving(inbox)
    for _ in range(6):
        await put(inbox, closed_group(ledger, *EQUAL))
        await asyncio.sleep(0.01)
    with pytest.raises(NothingToLearn):
        await asyncio.wait_for(learner, 1)


async def test_groups_of_one_wear_patience_out(ledger: Ledger) -> None:
    inbox = inbox_of(ledger, patience=3)
    learner = await starving(inbox)
    for _ in range(3):
        await put(inbox, closed_group(ledger, 1.0))
        await asyncio.sleep(0.01)
    with pytest.raises(NothingToLearn):
        await asyncio.wait_for(learner, 1)
