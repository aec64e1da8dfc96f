"""Sandboxes kept ready, over a back end that counts what it is asked for."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import cast

import pytest

from rollout_workers.sandbox import pool
from rollout_workers.sandbox.box import DEFAULT
from rollout_workers.sandbox.pool import Backend, Pool
from verifiers.sandbox import SandboxSpec, SandboxUnavailable

SMALL = SandboxSpec(memory_bytes=64 << 20)


class Box:
    """A sandbox that can be dead."""

    def __init__(self, spec: SandboxSpec) -> None:
        self.spec, self.dead, self.ended = spec, False, False
        self.files: dict[str, bytes] = {}

    async def alive(self) -> bool:
        return not self.dead

    async def fill(self, files: Mapping[str, bytes]) -> None:
        self.files |= files


class Boxes:
    """A back end whose starts take a moment, or fail while it is down."""

    def __init__(self) -> None:
        self.made: list[Box] = []
        self.at_once, self.most_at_once = 0, 0
        self.tries, self.down = 0, False

    @asynccontextmanager
    async def open(self, spec: SandboxSpec = DEFAULT) -> AsyncIterator[Box]:
        self.tries += 1
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await asyncio.sleep(0.01)
            if self.down:
                raise SandboxUnavailable("down")
        finally:
            self.at_once -= 1
        box = Box(spec)
        self.made.append(box)
        try:
            yield box
        finally:
            box.ended = True

    @property
    def living(self) -> list[Box]:
        return [box for box in self.made if not box.ended]


def over(boxes: Boxes, size: int, starts: int = 4) -> Pool:
    return Pool(cast(Backend, boxes), size, starts=starts)


async def settled(boxes: Boxes, count: int) -> None:
    async with asyncio.timeout(5):
        while len(boxes.living) != count:  # noqa: ASYNC110 - counts what the back end did
            await asyncio.sleep(0.005)


async def test_what_is_kept_is_handed_out_and_replaced_and_all_ends_with_the_pool() -> None:
    boxes = Boxes()
    async with over(boxes, 3) as pool_:
        async with pool_.open():
            await settled(boxes, 4)
        await settled(boxes, 3)
        kept = boxes.living
        async with pool_.open(SandboxSpec(files={"a": b"1"})) as box:
            assert box in kept
            assert cast(Box, box).files == {"a": b"1"}
        assert cast(Box, box).ended
        await settled(boxes, 3)
        assert all(not box.files for box in boxes.living)
    assert boxes.living == []


async def test_a_dead_one_is_not_handed_out() -> None:
    boxes = Boxes()
    async with over(boxes, 2) as pool_:
        async with pool_.open():
            await settled(boxes, 3)
        await settled(boxes, 2)
        dead = boxes.living
        for one in dead:
            one.dead = True
        async with pool_.open() as box:
            assert box not in dead
        assert all(one.ended for one in dead)


async def test_what_is_old_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = Boxes()
    async with over(boxes, 1) as pool_:
        async with pool_.open():
            await settled(boxes, 2)
        old = boxes.living
        monkeypatch.setattr(pool, "MAX_AGE", 0.0)
        async with pool_.open() as box:
            assert box not in old


async def test_a_storm_starts_a_few_at_once_and_everybody_is_served() -> None:
    boxes = Boxes()

    async def one(pool_: Pool) -> None:
        async with pool_.open():
            await asyncio.sleep(0)

    async with over(boxes, 2, starts=3) as pool_:
        await asyncio.gather(*(one(pool_) for _ in range(40)))
        assert boxes.most_at_once == 3
        await settled(boxes, 2)
    assert boxes.living == []


async def test_other_limits_get_other_sandboxes_and_what_nobody_asks_for_yields(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boxes = Boxes()
    async with over(boxes, 2) as pool_:

        async def ask_for_small() -> set[int]:
            async with pool_.open(SMALL) as box:
                assert cast(Box, box).spec.memory_bytes == SMALL.memory_bytes
            await settled(boxes, 2)
            return {box.spec.memory_bytes for box in boxes.living}

        async with pool_.open():
            await settled(boxes, 3)
        assert await ask_for_small() == {SMALL.memory_bytes, DEFAULT.memory_bytes}
        monkeypatch.setattr(pool, "IDLE", 0.0)
        assert await ask_for_small() == {SMALL.memory_bytes}


async def test_while_the_engine_is_down_callers_are_told_and_nobody_spins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "FIRST_WAIT", 0.05)
    boxes = Boxes()
    boxes.down = True
    async with over(boxes, 0, starts=1) as pool_:
        for _ in range(5):
            with pytest.raises(SandboxUnavailable, match="down"):
                async with pool_.open():
                    pass
        started = asyncio.get_running_loop().time()
        boxes.down = False
        async with pool_.open():
            assert boxes.tries == 6
        assert asyncio.get_running_loop().time() - started > 0.1
        monkeypatch.setattr(pool, "FIRST_WAIT", 3600.0)
        monkeypatch.setattr(pool, "LONGEST_WAIT", 3600.0)
        async with asyncio.timeout(20):  # it counts anew: some more failures make nobody wait
            boxes.down = True
            for _ in range(pool.FAILURES - 1):
                with pytest.raises(SandboxUnavailable, match="down"):
                    async with pool_.open():
                        pass
            boxes.down = False
            async with pool_.open():
                pass


async def test_a_caller_who_gives_up_takes_nothing_along() -> None:
    boxes = Boxes()
    async with over(boxes, 1) as pool_:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005), pool_.open():
                pass
        await settled(boxes, 2)
        async with asyncio.timeout(1), pool_.open():
            pass
    assert boxes.living == []


async def test_who_waits_is_told_that_the_pool_closes() -> None:
    boxes = Boxes()
    async with over(boxes, 0, starts=1) as pool_:
        waiting = [asyncio.create_task(pool_.open().__aenter__()) for _ in range(3)]
        await asyncio.sleep(0)
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, SandboxUnavailable) and "closed" in str(one) for one in told)
    with pytest.raises(SandboxUnavailable, match="closed"):
        async with pool_.open():
            pass
    assert boxes.living == []


async def test_limits_whose_starts_fail_hold_up_no_others() -> None:
    boxes = Boxes()
    async with over(boxes, 0, starts=1) as pool_:
        boxes.down = True
        for _ in range(pool.FAILURES):
            with pytest.raises(SandboxUnavailable):
                async with pool_.open():
                    pass
        held_up = asyncio.create_task(pool_.open().__aenter__())
        await asyncio.sleep(0)
        boxes.down = False
        async with asyncio.timeout(pool.FIRST_WAIT / 2), pool_.open(SMALL):
            pass
        held_up.cancel()
        await asyncio.gather(held_up, return_exceptions=True)


async def test_bad_specs_are_refused_before_anything_starts() -> None:
    boxes = Boxes()
    async with over(boxes, 1) as pool_:
        with pytest.raises(ValueError, match="memory_bytes"):
            async with pool_.open(SandboxSpec(memory_bytes=1)):
                pass
    assert boxes.tries == 0
