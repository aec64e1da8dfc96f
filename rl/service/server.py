"""`cwm-rl serve`: the application on a socket, of this machine's own unless there are tokens."""

import asyncio
import errno
import gc
import ipaddress
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rl.service.app import create_app
from rl.service.auth import doorkeeper
from rl.service.guard import BODY_SECONDS
from verifiers.errors import UserError

LOOPBACK: Final = {"127.0.0.1": socket.AF_INET, "localhost": socket.AF_INET, "::1": socket.AF_INET6}
HEADER_SECONDS: Final = 10.0
STALL_SECONDS: Final = 15.0
_CONNECTIONS = 1000
_NAME = re.compile(r"[A-Za-z0-9.\[\]:-]{1,255}")


class ServiceError(UserError):
    """The service cannot start, in one sentence."""


@dataclass(frozen=True)
class Place:
    """Where to listen, and what to show."""

    runs: Path
    host: str = "127.0.0.1"
    port: int = 8400
    """0 takes a free one."""
    names: tuple[str, ...] = ()
    """HOST or HOST:PORT by which others reach it, beside the one it listens on."""
    tokens: Path | None = None
    configs: Path | None = None
    """Configurations that may be started."""


def serve(place: Place, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises ServiceError, TokenError."""
    door = doorkeeper(place.tokens)
    if place.host not in LOOPBACK and door.open:
        raise ServiceError(
            f"without a token the service answers on loopback only ({', '.join(LOOPBACK)}), not on '{place.host}': give"
            " --token-file, or set CWM_RL_READ_TOKEN or CWM_RL_OPERATE_TOKEN, or leave --host out"
        )
    if not 0 <= place.port <= 65535:
        raise ServiceError(f"--port {place.port} is no port: take one from 1 to 65535, or 0 for a free one")
    if not place.runs.is_dir():
        raise ServiceError(f"there is no directory {place.runs}: name the one that holds the runs with --runs")
    if place.configs is not None and not place.configs.is_dir():
        raise ServiceError(f"there is no directory {place.configs}: name the one that holds configurations")
    with _bound(place.host, place.port) as listener:
        place = replace(place, port=listener.getsockname()[1])
        app = create_app(place.runs, _names(place), door, place.configs)
        shown = f"[{place.host}]" if ":" in place.host else place.host
        say(f"http://{shown}:{place.port}/ shows the runs in {place.runs}; Ctrl-C ends it")
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=2,
            )
        )
        gc.collect()
        gc.freeze()  # else each full collection goes through all imported modules, 50 ms in which nobody is answered
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


class _Protocol(H11Protocol):
    """h11 limits the size of headers; this one also their time, that of a body, asked for or not, and that in which a
    client takes nothing of an answer.

    The live stream, which has its own deadline, gets at the connection through it.
    """

    _late: asyncio.TimerHandle | None = None
    _in_body = False
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As asyncio has it."""
        super().connection_made(transport)
        self.app_state = self.app_state | {"transport": transport}
        transport.set_write_buffer_limits(high=0)  # whatever is not taken counts, be it the last piece
        self._expect(HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        """As asyncio has it."""
        if self._late is None:
            self._expect(HEADER_SECONDS)
        super().data_received(data)
        if self.conn.their_state is h11.SEND_BODY:
            if not self._in_body:  # which nobody may read, and then h11 waits for its end for ever
                self._came()
                self._expect(BODY_SECONDS + HEADER_SECONDS)
                self._in_body = True
        elif self._in_body or self.conn.their_state is not h11.IDLE:
            self._came()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it."""
        self._came()
        self._taken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """As asyncio has it."""
        super().pause_writing()
        self._expect_taking()

    def resume_writing(self) -> None:
        """As asyncio has it."""
        self._taken()
        super().resume_writing()

    def _expect_taking(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(STALL_SECONDS, self._look, left)

    def _look(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._expect_taking()
        else:
            self.transport.abort()

    def _taken(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _expect(self, seconds: float) -> None:
        self._late = self.loop.call_later(seconds, self.transport.abort)

    def _came(self) -> None:
        self._in_body = False
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _names(place: Place) -> list[str]:
    """HOST:PORT as browsers write it into `Host`: of loopback, of where it listens, and those that were given."""
    for name in place.names:
        if not _NAME.fullmatch(name):
            raise ServiceError(f"--name {name} is no HOST or HOST:PORT")
    names = [f"{name}:{place.port}" for name in ("127.0.0.1", "localhost", "[::1]")]
    if place.host not in LOOPBACK and not _unspecified(place.host):
        names.append(f"[{place.host}]:{place.port}" if ":" in place.host else f"{place.host}:{place.port}")
    return [*names, *place.names]


def _unspecified(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_unspecified
    return False


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ServiceError."""
    family = LOOPBACK.get(host, socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServiceError(f"port {port} is taken, perhaps by another service: choose one with --port") from error
        raise ServiceError(f"{host}:{port} cannot be listened on: {error.strerror}") from error
