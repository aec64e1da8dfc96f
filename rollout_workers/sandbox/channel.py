"""The host's side of the frames. Nothing that comes back is believed: sizes are bounded before they are read."""

import asyncio
import marshal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Protocol, TypeVar

from rollout_workers.sandbox.agent import ENDED, ERROR_LIMIT, FAILED, FRAME, MORE, OOM, REPLY, TIMED_OUT, TRUNCATED

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


class _Waiting:
    """A request that was sent."""

    def __init__(self, reply_limit: int, live: Callable[[bytes, bytes], None] | None) -> None:
        self.room, self.live = reply_limit, live
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.out, self.err = bytearray(), bytearray()


class Channel:
    """Requests side by side, one reply each, perhaps in pieces."""

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
        self._waiting: dict[int, _Waiting] = {}
        self._end: Exception | None = None
        self._reading = asyncio.create_task(self._read(), name="sandbox channel")

    async def call(
        self,
        request: Mapping[str, Any],
        body: bytes = b"",
        *,
        reply_limit: int,
        timeout: float,
        live: Callable[[bytes, bytes], None] | None = None,
    ) -> Reply:
        """Ask and wait. `reply_limit` bounds the reply's body; `live` is shown pieces of both outputs as they come.

        Raises TimeoutError or the errors above.
        """
        if self._end is not None:
            raise self._end
        self._last += 1
        number = self._last
        waiting = self._waiting[number] = _Waiting(reply_limit, live)
        header = marshal.dumps({**request, "id": number, "live": live is not None}, MARSHAL_VERSION)
        try:
            async with asyncio.timeout(timeout):
                self._sink.write(FRAME.pack(len(header), len(body)) + header)
                self._sink.write(body)
                await self._sink.drain()
                return await waiting.reply
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise ChannelClosedError(f"the agent is gone: {error}") from error
        finally:
            del self._waiting[number]
            if not waiting.reply.cancel() and not waiting.reply.cancelled():
                waiting.reply.exception()  # seen, whoever raises what

    async def _read(self) -> None:
        """Hand replies to those who wait, until the other end is gone or not our agent any more."""
        try:
            while True:
                await self._receive()
        except asyncio.IncompleteReadError:
            self._fail(ChannelClosedError("the agent hung up"))
        except OSError as error:
            self._fail(ChannelClosedError(f"the agent is gone: {error}"))
        except ChannelNonsenseError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - such as a `live` that raises: nobody may wait for ever
            self._fail(ChannelClosedError(f"what came could not be taken: {type(error).__name__}: {error}"))

    def _fail(self, error: Exception) -> None:
        self._end = error
        for one in self._waiting.values():
            if not one.reply.done():
                one.reply.set_exception(error)

    async def _receive(self) -> None:
        size, number, stdout, status, flags = REPLY.unpack(await self._source.readexactly(REPLY.size))
        waiting = self._waiting.get(number)
        if waiting is None or stdout > size or not -64 <= status <= 255 or flags >= 2 * MORE:
            raise ChannelNonsenseError("a reply that answers nothing asked")
        allowed = ERROR_LIMIT if flags == FAILED else waiting.room
        if size > allowed:
            raise ChannelNonsenseError(f"a reply of {size} bytes, {allowed} allowed")
        body = await self._source.readexactly(size)
        out, err = body[:stdout], body[stdout:]
        if waiting.live is not None and flags != FAILED:
            waiting.room -= size
            waiting.out += out
            waiting.err += err
            if body:
                waiting.live(out, err)
            body, stdout = bytes(waiting.out + waiting.err), len(waiting.out)
        elif flags & MORE:
            raise ChannelNonsenseError("a piece of a reply where a whole one was asked for")
        if not flags & MORE and not waiting.reply.done():
            flagged = (bool(flags & flag) for flag in (TIMED_OUT, TRUNCATED, OOM, FAILED, ENDED))
            waiting.reply.set_result(Reply(body, stdout, status, *flagged))

    def close(self) -> None:
        """Hang up: the agent ends, and its namespace with it."""
        self._sink.transport.abort()
        self._reading.cancel()
        self._fail(ChannelClosedError("the channel was closed"))


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
