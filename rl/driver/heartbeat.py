"""The driver's side of `rl.driver.pulse`: it beats, asks the actors how they are, and hears a request to end."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from rl.driver.fleet import Fleet, Worker
from rl.driver.pulse import FILE, STOP, Actor, Phase, Pulse, Wait, host
from rl.driver.waits import Waits
from rollout_workers.worker import WorkerStatus

_BEAT_SECONDS = 1.0
_LOOK_SECONDS = 2.0
_DETAIL_LIMIT = 500


class Heartbeat:
    """Beats from the moment it is made until its block ends, and then tells how it ended."""

    def __init__(self, run: Path, waits: Waits) -> None:
        self._run, self._waits = run, waits
        self._began = time.time()
        self._phase, self._detail = Phase.STARTING, ""
        self._actors: Callable[[], Iterator[Actor]] = lambda: iter(())

    @classmethod
    @asynccontextmanager
    async def beating(cls, run: Path, waits: Waits) -> AsyncIterator["Heartbeat"]:
        """Whoever calls holds the ledger's lock. Raises OSError."""
        (run / STOP).unlink(missing_ok=True)
        heart = cls(run, waits)
        heart._beat()
        task = asyncio.create_task(heart._go_on(), name="pulse")
        try:
            yield heart
            heart._tell(Phase.FINISHED)
        except BaseException as error:
            heart._tell(*_ending(error))
            raise
        finally:
            task.cancel()

    @asynccontextmanager
    async def watching(self, fleet: Fleet, learner: Callable[[], Awaitable[Any]]) -> AsyncIterator[None]:
        """Ask the actors now and then while the block runs; `learner` returns its process id and seconds."""
        looks = {worker.name: _Look() for worker in fleet.workers} | {"learner": _Look()}
        self._actors = lambda: _described(fleet, looks)
        self._phase = Phase.RUNNING
        tasks = [asyncio.create_task(_ask(looks["learner"], learner), name="pulse of the learner")]
        for worker in fleet.workers:
            ask = _of_worker(fleet, worker)
            tasks.append(asyncio.create_task(_ask(looks[worker.name], ask), name=f"pulse of {worker.name}"))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    def leaving(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """For an exit stack: tells an interruption at once, as putting everything away takes a while."""
        if error is not None and _ending(error)[0] is Phase.STOPPED:
            self._tell(Phase.STOPPING)

    async def _go_on(self) -> None:
        asked = False
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            if (self._run / STOP).exists():
                (self._run / STOP).unlink(missing_ok=True)
                if not asked:
                    signal.raise_signal(signal.SIGINT)
                asked = True  # a second signal would end it at once
            self._beat()

    def _tell(self, phase: Phase, detail: str = "") -> None:
        self._phase, self._detail = phase, detail
        self._beat()

    def _beat(self) -> None:
        waits = tuple(Wait(one.name, one.since, one.until) for one in self._waits.running)
        beat = Pulse(
            time.time(),
            self._began,
            os.getpid(),
            host(),
            self._phase,
            self._detail,
            waits,
            tuple(self._actors()),
        )
        fresh = self._run / f".{FILE}.new"
        with suppress(OSError):  # a full disk is told by what needs the disk; not synced, as it is out of date soon
            fresh.write_bytes(msgspec.json.encode(beat))
            fresh.replace(self._run / FILE)


class _Look:
    """The last answer of an actor, and when it came."""

    seen: float | None = None
    pid: int | None = None
    worker: WorkerStatus | None = None
    seconds: dict[str, float] = {}  # noqa: RUF012 - replaced, never changed


def _of_worker(fleet: Fleet, worker: Worker) -> Callable[[], Awaitable[Any]]:
    return lambda: fleet.status(worker)


async def _ask(look: _Look, ask: Callable[[], Awaitable[Any]]) -> None:
    """Until cancelled. One question at a time: an actor that hangs is asked once."""
    while True:
        with suppress(Exception):  # its loss is dealt with, and recorded, by whoever has work there
            answer = await ask()
            look.seen = time.time()
            if isinstance(answer, WorkerStatus):
                look.worker, look.pid, look.seconds = answer, answer.pid, dict(answer.seconds)
            else:
                look.pid, look.seconds = answer[0], dict(answer[1])
        await asyncio.sleep(_LOOK_SECONDS)


def _described(fleet: Fleet, looks: dict[str, _Look]) -> Iterator[Actor]:
    learner = looks["learner"]
    yield Actor("learner", "up", learner.seen, learner.pid, seconds=learner.seconds)
    for worker in fleet.workers:
        look = looks[worker.name]
        told = look.worker
        yield Actor(
            worker.name,
            "starting" if worker.actor is None else "up",
            look.seen,
            look.pid,
            told.version if told else None,
            worker.acting,
            worker.size,
            told.grading if told else 0,
            told.sandboxes if told else 0,
            look.seconds,
        )


def _ending(error: BaseException) -> tuple[Phase, str]:
    """How a driver ends that is left with `error`."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | GeneratorExit | SystemExit):
        return Phase.STOPPED, ""
    return Phase.FAILED, f"{type(error).__name__}: {error}"[:_DETAIL_LIMIT]
