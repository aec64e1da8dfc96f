"""The host's side of the frames. Nothing that comes back is believed: sizes are bounded before they are read."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar

import msgspec

FRAME = struct.Struct("!II")
HEADER_LIMIT = 4096

T = TypeVar("T")


class ChannelClosedError(Exception):
    """The other end is gone."""


class ChannelNonsenseError(Exception):
    """The other end is not our agent any more."""


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the agent says of one request; see `agent.Runner.run`."""

    id: int
    status: int = 0
    timed_out: bool = False
    truncated: bool = False
    oom: bool = False
    stdout: int = 0
    """Bytes of the body that are standard output; the rest is standard error."""
    error: str = ""
    """Why the agent could not do it at all."""


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

    async def call(
        self, request: Mapping[str, Any], body: bytes = b"", *, reply_limit: int, timeout: float
    ) -> tuple[Reply, bytes]:
        """Ask and wait. `reply_limit` bounds the reply's body. Raises TimeoutError or the errors above."""
        self._last += 1
        header = json.dumps({**request, "id": self._last}).encode()
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

    async def _receive(self, reply_limit: int) -> tuple[Reply, bytes]:
        header_size, body_size = FRAME.unpack(await self._source.readexactly(FRAME.size))
        if header_size > HEADER_LIMIT or body_size > reply_limit:
            raise ChannelNonsenseError(f"a frame of {header_size} + {body_size} bytes, {reply_limit} allowed")
        header = await self._source.readexactly(header_size)
        try:
            reply = msgspec.json.decode(header, type=Reply)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ChannelNonsenseError(f"a header that is none: {error}") from error
        if reply.id != self._last or not 0 <= reply.stdout <= body_size or not -64 <= reply.status <= 255:
            raise ChannelNonsenseError("a reply that answers nothing asked")
        return reply, await self._source.readexactly(body_size)

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
