"""What happens in a run, as it happens: one watcher a run that somebody looks at, and a bounded queue a client.

A client that does not take what it is sent is dropped, and counted by the reason; it comes back with the id of the
last event it saw, and gets what it missed.
"""

import asyncio
import json
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rl.driver.pulse import FILE as PULSE
from rl.ledger import LedgerError, Reader, schema
from rl.service import runs

LOOK_SECONDS: Final = 0.2
QUEUE: Final = 64
"""Events that a client may lag behind."""
SLOW_SECONDS: Final = 10.0
"""So long may one event take to be taken."""
QUIET_SECONDS: Final = 15.0
CLIENTS: Final = 400
_KERNEL_BYTES, _BUFFER_BYTES = 1 << 15, 1 << 14
_MISSED = 500
"""Steps told to a client that comes back, at most."""
_CURSOR = re.compile(r"(\d{1,9})-(\d{1,9})-(\d{1,9})")


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a client has seen: a step of a lineage, and so many faults."""

    lineage: int
    step: int
    faults: int

    @classmethod
    def read(cls, text: str) -> "Cursor | None":
        """Parse the id of an event; None if it is none of ours."""
        found = _CURSOR.fullmatch(text)
        return cls(*map(int, found.groups())) if found else None

    def __str__(self) -> str:
        return f"{self.lineage}-{self.step}-{self.faults}"


class _Client:
    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE)
        self.late = asyncio.Event()

    def tell(self, event: bytes) -> None:
        try:
            self.queue.put_nowait(event)
        except asyncio.QueueFull:
            self.late.set()


@dataclass
class _Watch:
    clients: set[_Client] = field(default_factory=set)
    task: "asyncio.Task[None] | None" = None


class Hub:
    """All watchers. Used by the event loop's thread alone."""

    def __init__(self) -> None:
        self._watches: dict[Path, _Watch] = {}
        self.clients = 0
        self.events = 0
        """Events sent, over all clients."""
        self.dropped: Counter[str] = Counter({"slow": 0, "behind": 0})
        """Clients by why they were dropped."""

    @property
    def full(self) -> bool:
        """Whether there are as many clients as there may be."""
        return self.clients >= CLIENTS

    @asynccontextmanager
    async def joined(self, run: Path) -> AsyncIterator[_Client]:
        """A client's place in the block."""
        watch = self._watches.setdefault(run, _Watch())
        client = _Client()
        watch.clients.add(client)
        self.clients += 1
        if watch.task is None:
            watch.task = asyncio.create_task(_watch(run, watch), name=f"watch of {run.name}")
        try:
            yield client
        finally:
            self.clients -= 1
            watch.clients.discard(client)
            if not watch.clients:
                watch.task.cancel()
                del self._watches[run]


class EventStream(Response):
    """An answer that goes on: server-sent events of one run."""

    def __init__(self, hub: Hub, run: Path, last: str) -> None:
        super().__init__()
        self._hub, self._run, self._last = hub, run, Cursor.read(last)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        async with self._hub.joined(self._run) as client:
            transport = scope["state"].get("transport")
            _narrow(transport)
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            missed = await run_in_threadpool(_missed, self._run, self._last)
            telling = asyncio.create_task(self._tell(client, missed, send))
            leaving = asyncio.create_task(_left(receive))
            late = asyncio.create_task(client.late.wait())
            try:
                done, _ = await asyncio.wait({telling, leaving, late}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (telling, leaving, late):
                    task.cancel()
            if leaving in done:
                return
            self._hub.dropped["behind" if late in done else "slow"] += 1
            if transport is not None:
                transport.abort()  # what lies in its buffer would wait for it for ever
                await _left(receive)

    async def _tell(self, client: _Client, missed: bytes, send: Send) -> None:
        """Until a piece takes too long to be taken."""
        piece = missed
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(SLOW_SECONDS):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                self._hub.events += 1
                piece = await _next(client)


async def _next(client: _Client) -> bytes:
    try:
        async with asyncio.timeout(QUIET_SECONDS):
            return await client.queue.get()
    except TimeoutError:
        return b": still here\n\n"


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _narrow(transport: asyncio.Transport | None) -> None:
    """Keep little for a client that takes nothing: it is noticed soon. None stands for a server that hides it."""
    if transport is not None:
        transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES)


async def _watch(run: Path, watch: _Watch) -> None:
    """Look for changes, and tell every client, while there is one."""
    look = _Look(run)
    while True:
        events = await run_in_threadpool(look.news)
        for event in events:
            for client in watch.clients:
                client.tell(event)
        await asyncio.sleep(LOOK_SECONDS)


class _Look:
    """What was seen last of a run. Used by one thread at a time."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._stamps: tuple[object, ...] = ()
        self._cursor: Cursor | None = None
        self._state = ""

    def news(self) -> list[bytes]:
        """Events since the last look. A ledger that cannot be read now has none."""
        stamps = tuple(map(_stamp, (self._run / PULSE, self._run / schema.FILE, self._run / f"{schema.FILE}-wal")))
        alive = schema.is_held(self._run / schema.FILE)
        if (*stamps, alive) == self._stamps:
            return []
        with suppress(LedgerError, OSError, runs.DatabaseError), Reader(self._run) as reader:
            found = list(self._changes(reader, self._stamps[:1] != stamps[:1], self._stamps[1:3] != stamps[1:]))
            self._stamps = (*stamps, alive)
            return found
        return []

    def _changes(self, reader: Reader, beat: bool, written: bool) -> Iterator[bytes]:
        before, now = self._cursor, cursor_of(reader)
        self._cursor = now
        if before is not None:
            yield from _since(reader, before, now)
        if (state := runs.state(self._run, reader)) != self._state:
            self._state = state
            yield event("state", now, {"state": state})
        if beat:
            yield event("pulse", now, runs.fleet(reader).model_dump(mode="json", exclude={"state"}))
        if written:
            yield event("change", now, {"at": runs.written_at(self._run)})


def cursor_of(reader: Reader) -> Cursor:
    """The position of a ledger, from which a client can go on."""
    return Cursor(reader.lineage, reader.step, reader.fault_count)


def _missed(run: Path, last: Cursor | None) -> bytes:
    """What a client gets first: how things stand, and what happened since it was here."""
    try:
        with Reader(run) as reader:
            now = cursor_of(reader)
            events = list(_since(reader, last, now)) if last else []
            told = event("state", now, {"state": runs.state(run, reader), "step": now.step})
    except (LedgerError, OSError, runs.DatabaseError) as error:
        return event("state", Cursor(0, 0, 0), {"state": "unreadable", "problem": str(error)})
    return b"retry: 2000\n\n" + b"".join([*events, told])


def _since(reader: Reader, before: Cursor, now: Cursor) -> Iterator[bytes]:
    """Steps and faults after `before`. Another lineage begins with all that it goes on from, cut short."""
    first = before.step if before.lineage == now.lineage else 0
    for step in reader.steps(after=max(first, now.step - _MISSED)):
        stats = runs.flat_stats(step)
        yield event("step", Cursor(step.lineage, step.step, before.faults), {"step": step.step, "at": step.at} | stats)
    for number, fault in enumerate(reader.faults(after=before.faults)[-_MISSED:]):
        told = {"at": fault.at, "actor": fault.actor, "kind": fault.kind, "detail": fault.detail}
        yield event("fault", Cursor(now.lineage, now.step, before.faults + number + 1), told)


def event(name: str, cursor: Cursor, data: dict[str, Any]) -> bytes:
    """As it goes over the wire. JSON has no newline in it, so that no text can make an event of its own."""
    return f"event: {name}\nid: {cursor}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size
