"""`cwm-rl serve`: the application on a socket of this machine's own."""

import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn

from rl.service.app import create_app
from verifiers.errors import UserError

HOSTS = {"127.0.0.1": socket.AF_INET, "localhost": socket.AF_INET, "::1": socket.AF_INET6}


class ServiceError(UserError):
    """The service cannot start, in one sentence."""


def serve(runs: Path, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises ServiceError."""
    if host not in HOSTS:
        raise ServiceError(
            f"the service answers on loopback only ({', '.join(HOSTS)}), not on '{host}': leave --host out, and from"
            f" another machine take a tunnel, ssh -L {port}:127.0.0.1:{port}"
        )
    if not 1 <= port <= 65535:
        raise ServiceError(f"--port {port} is no port: take one from 1 to 65535")
    if not runs.is_dir():
        raise ServiceError(f"there is no directory {runs}: name the one that holds the runs with --runs")
    with _bound(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{port}/ shows the runs in {runs}; Ctrl-C ends it")
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(runs, port),
                http="h11",  # it limits the size of headers
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=256,
                timeout_graceful_shutdown=2,
            )
        )
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ServiceError."""
    try:
        return socket.create_server((host, port), family=HOSTS[host], backlog=128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServiceError(f"port {port} is taken, perhaps by another service: choose one with --port") from error
        raise ServiceError(f"{host}:{port} cannot be listened on: {error.strerror}") from error
