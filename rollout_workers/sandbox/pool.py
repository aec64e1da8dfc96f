"""Sandboxes kept ready: what is handed out was started a while ago, and only has to prove that it lives."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Protocol, Self

from rollout_workers.sandbox.box import DEFAULT, check
from rollout_workers.sandbox.channel import finish
from verifiers.sandbox import Sandbox, SandboxError, SandboxSpec, SandboxUnavailable

NOTHING: Final[Mapping[str, bytes]] = MappingProxyType({})
MAX_AGE: Final = 600.0
"""Seconds after which a sandbox that nobody took is thrown away."""
IDLE: Final = 60.0
"""Seconds after which limits that nobody asked for keep nothing."""
FAILURES: Final = 3
"""Starts that fail in a row before the next ones have to wait."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0

CLOSED: Final = "the pool of sandboxes is closed"

Profile = tuple[str | None, int, int, float, int, bool]


class Fresh(Sandbox, Protocol):
    """A sandbox in which nothing has run yet. `box.Box` is one."""

    async def alive(self) -> bool:
        """Whether it answers. Does not raise."""
        ...

    async def fill(self, files: Mapping[str, bytes]) -> None:
        """Put files in place. Raises SandboxUnavailable, and ValueError for files that cannot be."""
        ...


class Backend(Protocol):
    """What starts them."""

    def open(self, spec: SandboxSpec = DEFAULT) -> AbstractAsyncContextManager[Fresh]:
        """Raises SandboxUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """A started sandbox and how it ends."""

    box: Fresh
    end: AsyncExitStack
    since: float


class Breaker:
    """Makes starts wait when the engine is down, ever longer: nobody spins on it."""

    def __init__(self) -> None:
        self._failures, self._until = 0, 0.0

    async def passage(self) -> None:
        """Return when it is time to try."""
        await asyncio.sleep(max(0.0, self._until - time.monotonic()))

    def worked(self) -> None:
        """A start worked: the next ones need not wait."""
        self._failures, self._until = 0, 0.0

    def failed(self) -> None:
        """A start failed; from some failures in a row on, the next ones wait."""
        self._failures += 1
        if (more := self._failures - FAILURES) >= 0:
            self._until = time.monotonic() + min(FIRST_WAIT * 2.0 ** min(more, 10), LONGEST_WAIT)


class Shelf:
    """What is kept, awaited and on its way of one set of limits."""

    def __init__(self, spec: SandboxSpec) -> None:
        self.spec = spec
        self.kept: deque[Kept] = deque()
        self.waiting: deque[asyncio.Future[Kept]] = deque()
        self.starting = 0
        self.asked = time.monotonic()
        self.breaker = Breaker()

    @property
    def spare(self) -> int:
        """Kept or on their way, and nobody's yet."""
        return max(0, len(self.kept) + self.starting - len(self.waiting))

    def next_waiting(self) -> asyncio.Future[Kept] | None:
        """Who has waited longest and still does."""
        while self.waiting:
            if not (first := self.waiting.popleft()).done():
                return first
        return None


class Pool:
    """Implements `verifiers.sandbox.Sandboxes` over a back end. A sandbox serves one caller, then is destroyed.

    open ──► one kept with these limits? ── yes ──► does it answer? ── yes ──► files ──► caller ──► destroyed
                  │ no                                  └ no: destroyed, the next one
                  └──► waits for the next that is started: `starts` at once at most, as many as wait and `size` spare

    `size` are kept over all sets of limits together; what nobody asks for any more yields to what is asked for.
    """

    def __init__(self, backend: Backend, size: int, *, starts: int = 4) -> None:
        self._backend, self._size = backend, size
        self._starts = asyncio.Semaphore(starts)
        self._closed = False
        self._shelves: dict[Profile, Shelf] = {}
        """The one asked for last stands last."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        await finish(self._close())

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for shelf in self._shelves.values():
            while (coming := shelf.next_waiting()) is not None:
                coming.set_exception(SandboxUnavailable(CLOSED))
        await asyncio.gather(*(_destroy(kept) for shelf in self._shelves.values() for kept in shelf.kept))
        self._shelves.clear()

    @asynccontextmanager
    async def open(self, spec: SandboxSpec = DEFAULT) -> AsyncIterator[Sandbox]:
        """See `verifiers.sandbox.Sandboxes.open`. Raises ValueError for a spec that cannot be."""
        check(spec)
        kept = await self._take(replace(spec, files=NOTHING))
        try:
            await kept.box.fill(spec.files)
            yield kept.box
        finally:
            await finish(kept.end.aclose())

    async def _take(self, spec: SandboxSpec) -> Kept:
        if self._closed:
            raise SandboxUnavailable(CLOSED)
        profile = _profile(spec)
        shelf = self._shelves.pop(profile) if profile in self._shelves else Shelf(spec)
        self._shelves[profile], shelf.asked = shelf, time.monotonic()
        try:
            while shelf.kept:
                kept = shelf.kept.popleft()
                if time.monotonic() - kept.since < MAX_AGE and await _lives(kept):
                    return kept
                await _destroy(kept)
        finally:
            self._replenish(shelf)
        coming: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()
        shelf.waiting.append(coming)
        self._replenish(shelf)
        try:
            return await coming
        except asyncio.CancelledError:
            if coming.done() and not coming.cancelled() and coming.exception() is None:
                shelf.kept.append(coming.result())  # handed over in the same moment
            with suppress(ValueError):
                shelf.waiting.remove(coming)
            raise

    def _replenish(self, shelf: Shelf) -> None:
        """Start what is waited for, and what there is room for or another shelf yields to."""
        if self._closed:
            return
        for other in self._shelves.values():
            if other is not shelf and time.monotonic() - other.asked > IDLE:
                while self._gives_up(other):
                    pass
        room = self._size - sum(one.spare for one in self._shelves.values())
        if room <= 0 and any(self._gives_up(other) for other in self._shelves.values() if other is not shelf):
            room = 1
        for _ in range(max(room, len(shelf.waiting) - shelf.starting)):
            shelf.starting += 1
            self._spawn(self._start(shelf), "a sandbox to be kept")

    def _gives_up(self, shelf: Shelf) -> bool:
        """Whether it had one to give up."""
        if not shelf.kept:
            return False
        self._spawn(_destroy(shelf.kept.popleft()), "the end of a kept sandbox")
        return True

    async def _start(self, shelf: Shelf) -> None:
        """Start one and hand it to who waits, or keep it; the same with what went wrong."""
        try:
            await shelf.breaker.passage()  # outside: other limits may start meanwhile
            async with self._starts, AsyncExitStack() as stack:
                box = await stack.enter_async_context(self._backend.open(shelf.spec))
                kept = Kept(box, stack.pop_all(), time.monotonic())
        except Exception as error:
            shelf.breaker.failed()
            enough = shelf.starting > len(shelf.waiting)
            if not enough and (waiting := shelf.next_waiting()) is not None:
                waiting.set_exception(error)
            elif not isinstance(error, SandboxUnavailable):
                raise
        else:
            shelf.breaker.worked()
            if (waiting := shelf.next_waiting()) is not None:
                waiting.set_result(kept)
            else:
                shelf.kept.append(kept)
        finally:
            shelf.starting -= 1

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _lives(kept: Kept) -> bool:
    try:
        return await kept.box.alive()
    except asyncio.CancelledError:
        await _destroy(kept)
        raise


async def _destroy(kept: Kept) -> None:
    with suppress(SandboxError):
        await finish(kept.end.aclose())


def _profile(spec: SandboxSpec) -> Profile:
    """Everything but the files."""
    return spec.image, spec.memory_bytes, spec.pids, spec.cpu_seconds, spec.disk_bytes, spec.writable_root
