"""`cwm-rl bench service`: how long every reading route takes on a long run, and what many live clients cost."""

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

import psutil

from rl.bench import history
from rl.progress import Say
from verifiers.errors import UserError

START_SECONDS: Final = 60.0
RATE: Final = 10.0
"""Steps a second of the run that is watched."""
MEBI: Final = 1 << 20
ROUTES: Final = {
    "/": "/",
    "/runs/{run}": "/runs/long",
    "/runs/{run}/live": "/runs/long/live",
    "/runs/{run}/fleet": "/runs/long/fleet",
    "/runs/{run}/episodes": "/runs/long/episodes",
    "/runs/{run}/episodes?filters": "/runs/long/episodes?domain=trace&reward_min=0.5&correct=true",
    "/runs/{run}/episodes?nothing": "/runs/long/episodes?reward_min=7",
    "/runs/{run}/episodes?step": "/runs/long/episodes?step={step}",
    "/runs/{run}/episodes?text": "/runs/long/episodes?text=nosuchword",
    "/runs/{run}/episodes/{key}": "/runs/long/episodes/{group}/1/0",
    "/runs/{run}/groups/{group}": "/runs/long/groups/{group}",
    "/compare": "/compare?a=long:before&b=long:after",
    "/compare/answers": "/compare/answers?a=long:before&b=long:after&task=code/task-{task}",
    "/api/v1/compare": "/api/v1/compare?a=long:before&b=long:after",
    "/api/v1/compare/answers": "/api/v1/compare/answers?a=long:before&b=long:after&task=code/task-{task}",
    "/api/v1/runs": "/api/v1/runs",
    "/api/v1/runs/{run}": "/api/v1/runs/long",
    "/api/v1/runs/{run}/metrics": "/api/v1/runs/long/metrics",
    "/api/v1/runs/{run}/metrics?points=2000": "/api/v1/runs/long/metrics?points=2000",
    "/api/v1/runs/{run}/fleet": "/api/v1/runs/long/fleet",
    "/api/v1/runs/{run}/checkpoints": "/api/v1/runs/long/checkpoints",
    "/api/v1/runs/{run}/groups/{group}": "/api/v1/runs/long/groups/{group}",
    "/api/v1/runs/{run}/episodes": "/api/v1/runs/long/episodes?limit=500",
    "/api/v1/runs/{run}/episodes/{key}": "/api/v1/runs/long/episodes/{group}/1/0",
    "/api/v1/runs/{run}/episodes/{key}/tokens": "/api/v1/runs/long/episodes/{group}/1/0/tokens",
    "/api/v1/openapi.json": "/api/v1/openapi.json",
    "/metrics": "/metrics",
    "/healthz": "/healthz",
}
TASKS: Final = 200
"""Held-out tasks of a domain."""
_ASKED = 100
_WARM = 3
_SECONDS = 1.0


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    episodes: int = 100_000
    steps: int = 2_000
    clients: int = 200
    frozen: int = 20
    seconds: float = 30.0
    """Of the live part, and of the rest before it."""
    asked: int = _ASKED
    """Requests a route."""


@dataclass
class _Heard:
    """What the live clients that read got."""

    delays: list[float] = field(default_factory=list)
    events: int = 0


def bench(scale: Scale, say: Say) -> dict[str, Any]:
    """One object of numbers. Raises UserError where there would be none."""
    _check(scale)
    with tempfile.TemporaryDirectory(prefix="cwm-rl-bench-service-") as temporary:
        runs = Path(temporary)
        say(f"making a run of {scale.episodes:,} episodes and {scale.steps:,} steps")
        history.make(runs / "long", episodes=scale.episodes, steps=scale.steps)
        history.evaluate(runs / "long", tasks=TASKS)
        with _served(runs) as (server, port):
            say(f"asking {len(ROUTES)} routes {scale.asked} times each")
            reads = {route: _read(port, address, scale) for route, address in ROUTES.items()}
            say(f"resting {scale.seconds:g} s")
            rest = _rest(server, scale.seconds)
            say(f"{scale.clients} live clients, {scale.frozen} of them frozen, for {scale.seconds:g} s")
            with _written(runs / "live", scale.seconds + 30):
                live = asyncio.run(_live(server, port, scale))
    return {
        "episodes": scale.episodes,
        "steps": scale.steps,
        "read_p99_ms": {route: round(found["p99"], 2) for route, found in reads.items()},
        "read_p50_ms": {route: round(found["p50"], 2) for route, found in reads.items()},
        "read_worst_p99_ms": round(max(found["p99"] for found in reads.values()), 2),
        "weight_bytes": {route: found["bytes"] for route, found in reads.items()},
        "rest_cores": round(rest, 4),
        "live": live,
    }


def _check(scale: Scale) -> None:
    if scale.episodes < history.GROUP:
        raise UserError(f"{scale.episodes} episodes are no run: take {history.GROUP} at least, which are one group")
    if not 0 <= scale.frozen < scale.clients:
        raise UserError(
            f"{scale.frozen} of {scale.clients} clients cannot be frozen: choose --frozen from 0 on and below --clients"
        )
    if scale.seconds < _SECONDS:
        raise UserError(f"in {scale.seconds:g} s nothing is measured: take {_SECONDS:g} at least")


def in_words(found: dict[str, Any]) -> str:
    """A few lines for people."""
    live = found["live"]
    slowest = sorted(found["read_p99_ms"].items(), key=lambda one: -one[1])[:5]
    return "\n".join(
        [
            f"{found['episodes']:,} episodes, {found['steps']:,} steps; the slowest routes at the 99th percentile:",
            *(f"  {taken:7.1f} ms  {found['weight_bytes'][route]:9,} bytes  {route}" for route, taken in slowest),
            f"at rest {found['rest_cores']:.1%} of a core",
            f"live: {live['clients']} clients, {live['frozen']} frozen; an event arrives after {live['p50_ms']:.0f} ms "
            f"(median), {live['p99_ms']:.0f} ms (99th percentile); {live['cores']:.0%} of a core; dropped "
            f"{live['dropped']}; memory {live['rss_before_mib']:.0f} to {live['rss_after_mib']:.0f} MiB",
        ]
    )


@contextmanager
def _served(runs: Path) -> Iterator[tuple[psutil.Process, int]]:
    """The command itself, with no token, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rl.cli", "serve", "--runs", str(runs), "--port", str(port)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CWM_RL_")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as child:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(port):
                if child.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the service did not start")
                time.sleep(0.1)
            yield psutil.Process(child.pid), port
        finally:
            child.terminate()


def _answers(port: int) -> bool:
    with suppress(OSError):
        return _get(HTTPConnection("127.0.0.1", port, timeout=5), "/readyz") > 0
    return False


def _get(connection: HTTPConnection, path: str) -> int:
    """Bytes of the answer."""
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"GET {path} was answered with {answer.status}")
    return len(body)


def _read(port: int, address: str, scale: Scale) -> dict[str, float]:
    """One client that asks again and again, each time for another group or step."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    groups = scale.episodes // 8
    taken, size = [], 0
    for number in range(_WARM + scale.asked):
        path = address.format(
            group=1 + number * 97 % groups, step=1 + number * 37 % scale.steps, task=number * 7 % TASKS
        )
        began = time.perf_counter()
        size = _get(connection, path)
        taken.append(1000 * (time.perf_counter() - began))
        time.sleep(0.025)  # stays within what the service allows one client
    connection.close()
    taken = taken[_WARM:]
    return {"p50": statistics.median(taken), "p99": _percentile(taken, 0.99), "bytes": size}


def _rest(server: psutil.Process, seconds: float) -> float:
    """Cores that it takes while nobody asks."""
    before = _cpu(server)
    time.sleep(seconds)
    return (_cpu(server) - before) / seconds


@contextmanager
def _written(run: Path, seconds: float) -> Iterator[None]:
    """A run that goes on for so long at most; in a process of its own, so that clients do not hold it up."""
    command = [sys.executable, "-m", "rl.bench.history", str(run), str(RATE), str(seconds)]
    with subprocess.Popen(command) as writer:
        try:
            while not (run / "ledger.sqlite").exists() and writer.poll() is None:
                time.sleep(0.1)
            yield
        finally:
            writer.kill()


async def _live(server: psutil.Process, port: int, scale: Scale) -> dict[str, Any]:
    heard, before, cpu, began = _Heard(), server.memory_info().rss, _cpu(server), time.monotonic()
    clients = [_client(port, heard, frozen=number < scale.frozen) for number in range(scale.clients)]
    reading = [asyncio.create_task(client) for client in clients]
    await asyncio.sleep(scale.seconds / 2)
    middle = server.memory_info().rss
    await asyncio.sleep(scale.seconds / 2)
    cores = (_cpu(server) - cpu) / (time.monotonic() - began)
    after, dropped = server.memory_info().rss, _dropped(port)
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    return {
        "clients": scale.clients,
        "frozen": scale.frozen,
        "steps_per_s": RATE,
        "events": heard.events,
        "p50_ms": round(1000 * statistics.median(heard.delays), 1),
        "p99_ms": round(1000 * _percentile(heard.delays, 0.99), 1),
        "cores": round(cores, 4),
        "dropped": dropped,
        "rss_before_mib": round(before / MEBI, 1),
        "rss_middle_mib": round(middle / MEBI, 1),
        "rss_after_mib": round(after / MEBI, 1),
    }


async def _client(port: int, heard: _Heard, *, frozen: bool) -> None:
    """Reads until cancelled, or reads nothing at all."""
    connection = socket.socket()
    if frozen:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    request = f"GET /api/v1/runs/live/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
    await asyncio.get_running_loop().sock_sendall(connection, request.encode())
    if frozen:
        with connection:
            await asyncio.sleep(3600)
    reader, _ = await asyncio.open_connection(sock=connection)
    step = False
    while line := await reader.readline():
        if line.startswith(b"event: "):
            heard.events += 1
            step = line == b"event: step\n"
        elif step and line.startswith(b"data: "):
            heard.delays.append(time.time() - float(json.loads(line[6:])["at"]))


def _dropped(port: int) -> dict[str, int]:
    """By reason, as the service counts them."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    name = "cwm_rl_live_dropped_total{reason="
    lines = [line for line in connection.getresponse().read().decode().splitlines() if line.startswith(name)]
    connection.close()
    return {line.split('"')[1]: int(float(line.split()[-1])) for line in lines}


def _cpu(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return float(spent.user + spent.system)


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
