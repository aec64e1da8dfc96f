"""Every wait has a deadline and a name."""

import asyncio

import pytest

from rl.driver.waits import Overdue, Waits


async def test_a_wait_that_lasts_too_long_is_named() -> None:
    waits = Waits()
    with pytest.raises(Overdue, match=r"waited 0.05 s for the learner's step"):
        async with waits.named("the learner's step", 0.05):
            await asyncio.Event().wait()
    assert waits.running == []


async def test_what_is_waited_for_can_be_seen_oldest_first() -> None:
    waits = Waits()
    async with waits.named("weights", 60), waits.named("a batch", 30):
        first, second = waits.running
        assert [first.name, second.name] == ["weights", "a batch"]
        assert first.until - first.since == pytest.approx(60)
        assert first.since <= second.since
    assert waits.running == []


async def test_the_same_name_twice_at_once() -> None:
    waits = Waits()
    async with waits.named("a batch", 60):
        async with waits.named("a batch", 60):
            assert len(waits.running) == 2
        assert len(waits.running) == 1


async def test_the_time_is_added_up_by_name_also_of_waits_that_failed() -> None:
    waits = Waits()
    for _ in range(2):
        async with waits.named("weights", 60):
            await asyncio.sleep(0.02)
    with pytest.raises(KeyError):
        async with waits.named("a batch", 60):
            raise KeyError
    assert set(waits.seconds) == {"weights", "a batch"}
    assert waits.seconds["weights"] >= 0.035


async def test_somebody_elses_timeout_is_not_ours() -> None:
    with pytest.raises(TimeoutError) as caught:
        async with Waits().named("a batch", 60):
            raise TimeoutError("of a socket")
    assert not isinstance(caught.value, Overdue)


async def test_a_cancelled_wait_stays_cancelled() -> None:
    waits = Waits()

    async def wait() -> None:
        async with waits.named("a batch", 60):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waits.running == []
