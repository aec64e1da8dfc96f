"""The host's side of the frames. Nothing that comes back is believed: sizes are bounded before they are read."""

import asyncio
import marshal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Protocol, TypeVar

from rollout_workers.sandbox.agent import ENDED, ERROR_LIMIT, FAILED, FRAME, OOM, REPLY, TIMED_OUT, TRUNCATED

MARSHAL_VERSION = 2
"""Read by every Python 3."""

T = TypeVar("T")


class ChannelClosedError(Exception):
    """The other end is gone."""


class ChannelNonsenseError(Exception):
    """The other end is not our agent any more."""


class Reply(NamedTuple):
    """What the agent says of one request; see `agent.Runner.run`."""

    body: bytes
    stdout: int
    """Bytes of the body that are standard output; the rest is standard error."""
    status: int
    timed_out: bool
    truncated: bool
    oom: bool
    failed: bool
    """The agent could not do it at all; the body says why."""
    ended: bool
    """The shell is gone, and its state with it."""


class Source(Protocol):
    """Where frames are read from."""

    async def readexactly(self, n: int) -> bytes:
        """`n` bytes. Raises asyncio.IncompleteReadError, OSError."""
        ...


class Channel:
    """One request at a time, one reply each."""

    @classmethod
    @asynccontextmanager
    async def over(
        cls, sock: socket.socket, wrap: Callable[[asyncio.StreamReader], Source] = lambda reader: reader
    ) -> AsyncIterator["Channel"]:
        """A channel over `sock`, which is closed on leaving; `wrap` unpacks what the engine put round our frames."""
        reader, writer = await asyncio.open_connection(sock=sock)
        channel = cls(wrap(reader), writer)
        try:
            yield channel
        finally:
            channel.close()
            with suppress(OSError):
                await finish(writer.wait_closed())

    def __init__(self, source: Source, sink: asyncio.StreamWriter) -> None:
        self._source, self._sink = source, sink
        self._last = 0

    async def call(self, request: Mapping[str, Any], body: bytes = b"", *, reply_limit: int, timeout: float) -> Reply:
        """Ask and wait. `reply_limit` bounds the reply's body. Raises TimeoutError or the errors above."""
        self._last += 1
        header = marshal.dumps({**request, "id": self._last}, MARSHAL_VERSION)
        try:
            async with asyncio.timeout(timeout):
                self._sink.write(FRAME.pack(len(header), len(body)) + header)
                self._sink.write(body)
                await self._sink.drain()
                return await self._receive(reply_limit)
        except asyncio.IncompleteReadError as error:
            raise ChannelClosedError("the agent hung up") from error
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise ChannelClosedError(f"the agent is gone: {error}") from error

    async def _receive(self, reply_limit: int) -> Reply:
        size, number, stdout, status, flags = REPLY.unpack(await self._source.readexactly(REPLY.size))
        allowed = ERROR_LIMIT if flags == FAILED else reply_limit
        if size > allowed:
            raise ChannelNonsenseError(f"a reply of {size} bytes, {allowed} allowed")
        if number != self._last or stdout > size or not -64 <= status <= 255 or flags >= 2 * ENDED:
            raise ChannelNonsenseError("a reply that answers nothing asked")
        body = await self._source.readexactly(size)
        return Reply(body, stdout, status, *(bool(flags & flag) for flag in (TIMED_OUT, TRUNCATED, OOM, FAILED, ENDED)))

    def close(self) -> None:
        """Hang up: the agent ends, and its namespace with it."""
        self._sink.transport.abort()


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even when cancelled meanwhile; then the cancellation, or its error, goes on."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if (failure := task.exception()) is not None:
            raise failure from cancelled
        raise cancelled
    return task.result()
