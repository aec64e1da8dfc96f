"""`cwm-rl bench sandbox`: what a command, a sandbox and a full house cost, and the engine's own ways beside them."""

import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from threading import Timer
from typing import Any, Final

import psutil

from rl.progress import Say
from rollout_workers.sandbox import docker
from rollout_workers.sandbox.box import agent_source
from rollout_workers.sandbox.bubblewrap import Bubblewrap
from rollout_workers.sandbox.docker import Docker
from rollout_workers.sandbox.pool import Pool
from rollout_workers.sandbox.select import Backend, choose
from rollout_workers.sandbox.selftest import FLOOD
from verifiers.sandbox import Sandbox, SandboxUnavailable

THREADS: Final = 8
"""Of the raw SDK, and sandboxes being started at a time by us."""
POOL: Final = 32
REAP_EVERY: Final = 5.0
LEAK_SECONDS: Final = 60.0
OWNER_SECONDS: Final = 120.0
MEBI: Final = 1 << 20
AGENT: Final = agent_source()[:40]


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    commands: int = 400
    raw_commands: int = 40
    creations: int = 64
    arrivals: int = 200
    fanout: int = 64
    fanout_commands: int = 200
    flood: int = FLOOD
    cycles: int = 200


QUICK: Final = Scale(40, 5, 8, 16, 8, 20, FLOOD // 100, 8)
"""To see whether all of it runs."""


async def bench(backend: Backend, scale: Scale, say: Say) -> dict[str, Any]:
    """All of it. Raises SandboxUnavailable."""
    sandboxes, words = await choose(backend, run="bench")
    say(words)
    found: dict[str, Any] = {"backend": backend, "sandbox": words}
    raw = Raw(sandboxes) if isinstance(sandboxes, Docker) else None
    parts: tuple[tuple[str, Callable[[], Awaitable[dict[str, Any]]]], ...] = (
        ("commands", lambda: commands(sandboxes, raw, scale)),
        ("creation", lambda: creation(sandboxes, raw, scale)),
        ("floods and hangs", lambda: bounds(sandboxes, scale)),
        ("a full house", lambda: fanout(sandboxes, scale)),
    )
    for name, part in parts:
        say(f"{name} …")
        found |= await part()
    say("a pool of warm ones …")
    found |= await acquisition(sandboxes, found["raw_create_per_s" if raw else "create_per_s"], scale)
    say(f"killing owners, and looking for {LEAK_SECONDS:g} s at most for what they left …")
    return found | await asyncio.to_thread(leaks, backend, sandboxes, scale)


class Raw:
    """The engine through its SDK, as everybody uses it."""

    def __init__(self, backend: Docker) -> None:
        self.client, self.image, self.runtime = backend.client, backend.image, backend.runtime

    def start(self) -> str:
        """Create and start a container that waits."""
        host = self.client.create_host_config(network_mode="none", runtime=self.runtime)
        labels = docker.labels("bench", time.time() + 600)
        made = self.client.create_container(self.image, ["sleep", "600"], host_config=host, labels=labels)
        self.client.start(made["Id"])
        return str(made["Id"])

    def exec(self, container: str) -> None:
        """`docker exec CONTAINER true`."""
        self.client.exec_start(self.client.exec_create(container, ["true"])["Id"])

    def remove(self, container: str) -> None:
        """Kill the container, and remove it."""
        self.client.remove_container(container, force=True)


async def commands(sandboxes: Any, raw: Raw | None, scale: Scale) -> dict[str, Any]:
    """Milliseconds from asking to the answer, nothing else going on."""
    async with sandboxes.open() as box:
        found = {
            "exec_p50_ms": await _p50_ms(lambda: box.exec(["true"]), scale.commands),
            "session_p50_ms": await _p50_ms(lambda: box.shell("true"), scale.commands),
            "python_p50_ms": await _p50_ms(lambda: box.python("1"), scale.commands),
            "write_p50_ms": await _p50_ms(lambda: box.write("a", b"x" * 1000), scale.commands),
        }
    if raw is not None:
        container = await asyncio.to_thread(raw.start)
        try:
            cost = await _p50_ms(lambda: asyncio.to_thread(raw.exec, container), scale.raw_commands)
        finally:
            await asyncio.to_thread(raw.remove, container)
        found |= {"docker_exec_p50_ms": cost, "docker_exec_ratio": cost / found["exec_p50_ms"]}
    return found


async def creation(sandboxes: Any, raw: Raw | None, scale: Scale) -> dict[str, Any]:
    """Sandboxes a second, each made ready to run a command; the raw engine's containers, created and started."""

    async def one() -> None:
        async with sandboxes.open() as box:
            await box.exec(["true"])

    start = time.perf_counter()
    await _some_at_once(one, scale.creations, THREADS)
    found = {"open_close_per_s": scale.creations / (time.perf_counter() - start)}
    async with _opened(sandboxes, scale.creations) as seconds:
        found["create_per_s"] = scale.creations / seconds
    if raw is not None:
        with ThreadPoolExecutor(THREADS) as threads:
            start = time.perf_counter()
            made = list(threads.map(lambda _: raw.start(), range(scale.creations)))
            found["raw_create_per_s"] = scale.creations / (time.perf_counter() - start)
            list(threads.map(raw.remove, made))
        found["create_ratio"] = found["create_per_s"] / found["raw_create_per_s"]
    return found


@asynccontextmanager
async def _opened(sandboxes: Any, count: int) -> AsyncIterator[float]:
    """So many at once, started a few at a time; seconds until the last was ready."""
    async with AsyncExitStack() as stack:
        start = time.perf_counter()
        await _some_at_once(lambda: stack.enter_async_context(sandboxes.open()), count, THREADS)
        yield time.perf_counter() - start


async def bounds(sandboxes: Any, scale: Scale) -> dict[str, Any]:
    """A command that never stops writing, and one that never stops."""
    process = psutil.Process()
    async with sandboxes.open() as box:
        before = peak = process.memory_info().rss
        flooding = asyncio.create_task(box.exec(f"head -c {scale.flood} /dev/zero", timeout=300))
        start = time.perf_counter()
        while not flooding.done():
            peak = max(peak, process.memory_info().rss)
            await asyncio.wait([flooding], timeout=0.02)
        result, seconds = await flooding, time.perf_counter() - start
        hung = time.perf_counter()
        dead = await box.exec("sleep 31415.9 & while :; do :; done", timeout=1)
        late = time.perf_counter() - hung - 1
        left = [one.pid for one in psutil.process_iter(["cmdline"]) if "31415.9" in (one.info["cmdline"] or [])]
    return {
        "flood_gb": scale.flood / 1e9,
        "flood_s": seconds,
        "flood_cut": result.truncated and len(result.stdout) == 1 << 16,
        "flood_host_mb": (peak - before) / MEBI,
        "hang_late_s": late,
        "hang_dead": dead.timed_out and not left,
    }


async def fanout(sandboxes: Any, scale: Scale) -> dict[str, Any]:
    """All at once; every answer must be the right one. Memory: ours, of this process and of all that it started."""
    before = _memory_of_ours()
    async with AsyncExitStack() as stack:
        boxes: list[Sandbox] = []

        async def one() -> None:
            boxes.append(await stack.enter_async_context(sandboxes.open()))

        await _some_at_once(one, scale.fanout, THREADS)
        memory = (_memory_of_ours() - before) / scale.fanout / MEBI

        async def work(number: int, box: Sandbox) -> int:
            right = 0
            for turn in range(scale.fanout_commands):
                said = await box.exec(f"echo {number} $(({turn} + 1))")
                right += said.stdout == f"{number} {turn + 1}\n".encode()
            return right

        start = time.perf_counter()
        right = sum(await asyncio.gather(*(work(number, box) for number, box in enumerate(boxes))))
        seconds = time.perf_counter() - start
    total = scale.fanout * scale.fanout_commands
    return {
        "fanout": {"sandboxes": scale.fanout, "commands": total, "right": right / total},
        "fanout_commands_per_s": total / seconds,
        "host_mb_per_sandbox": memory,
    }


async def acquisition(sandboxes: Any, rate: float, scale: Scale) -> dict[str, Any]:
    """Milliseconds to a warm one that has proved alive, arrivals at random at half of `rate` a second."""
    chance = random.Random(0)  # noqa: S311 - no secret
    waits: list[float] = []

    async def take() -> None:
        start = time.perf_counter()
        async with pool.open():
            waits.append(1000 * (time.perf_counter() - start))

    async with Pool(sandboxes, POOL) as pool:
        async with pool.open():  # tells it what is asked for
            pass
        await asyncio.sleep(2 * POOL / rate)
        async with asyncio.TaskGroup() as arrivals:
            for _ in range(scale.arrivals):
                arrivals.create_task(take())
                await asyncio.sleep(chance.expovariate(rate / 2))
    cuts = statistics.quantiles(waits, n=100)
    return {"acquire_warm_p50_ms": cuts[49], "acquire_warm_p99_ms": cuts[98], "arrivals_per_s": rate / 2}


OWNER: Final = """
import asyncio, sys
from rollout_workers.sandbox.select import choose

async def main():
    sandboxes, _ = await choose(sys.argv[1], run="bench")
    print("ready", flush=True)
    async def live():
        while True:
            async with sandboxes.open() as box:
                await box.shell("sleep 31415.8 &")
                await box.exec(["true"])
                print("cycle", flush=True)
    await asyncio.gather(*(live() for _ in range(4)))

asyncio.run(main())
"""


def leaks(backend: str, sandboxes: Docker | Bubblewrap, scale: Scale) -> dict[str, Any]:
    """Owners killed in the middle of opening and closing, a reaper as the only other process; what is left, counted."""
    command = [sys.executable, "-m", "rl.cli", "sandbox", "reap", "--every", str(REAP_EVERY)]
    chance = random.Random(0)  # noqa: S311 - no secret
    killed, cycles = 0, 0
    reaping = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while cycles < scale.cycles:
            cycles += _owner(backend, chance.randint(1, max(1, scale.cycles // 10)), chance.random() * 0.2)
            killed += 1
        deadline = time.monotonic() + LEAK_SECONDS
        while (left := _left(sandboxes)) and time.monotonic() < deadline:
            time.sleep(1)
    finally:
        reaping.kill()
        reaping.wait()
    return {"cycles": cycles, "owners_killed": killed, "leaked": len(left)}


def _owner(backend: str, cycles: int, moment: float) -> int:
    """Let one live for so many cycles and a moment, then kill it. Raises SandboxUnavailable if it does not get on."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, backend], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None  # noqa: S101 - asked for
    patience = Timer(OWNER_SECONDS, owner.kill)
    patience.start()
    try:
        seen = sum(1 for _ in islice((line for line in owner.stdout if line == "cycle\n"), cycles))
        time.sleep(moment)
    finally:
        patience.cancel()
        owner.kill()
        owner.wait()
        owner.stdout.close()
    if seen < cycles:
        raise SandboxUnavailable(f"an owner of sandboxes ended, or stood still, after {seen} of {cycles} cycles")
    return seen


def _left(sandboxes: Docker | Bubblewrap) -> list[str]:
    """Containers, processes and control groups of owners that are no more."""
    found = [str(one.pid) for one in psutil.process_iter(["cmdline"]) if "31415.8" in (one.info["cmdline"] or [])]
    if isinstance(sandboxes, Docker):
        listed = sandboxes.client.containers(all=True, filters={"label": "cwm-rl.run=bench"})
        found += [one["Id"] for one in listed if int(one["Labels"]["cwm-rl.owner"]) != os.getpid()]
    elif sandboxes.cgroups is not None:
        found += map(str, sandboxes.cgroups.orphans())
    return found


def _memory_of_ours() -> int:
    """Bytes held by this process, its children, and agents inside containers; shared pages by their share."""
    found = {one for one in psutil.process_iter() if _ours(one)}
    return sum(_pss(one) for one in found)


def _ours(process: psutil.Process) -> bool:
    try:
        if process.pid == os.getpid():
            return True
        line = process.cmdline()
        above = [one.pid for one in process.parents()]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return os.getpid() in above or any(word.startswith(AGENT) for word in line)


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


async def _p50_ms(call: Callable[[], Awaitable[Any]], count: int) -> float:
    waits = []
    for _ in range(count):
        start = time.perf_counter()
        await call()
        waits.append(1000 * (time.perf_counter() - start))
    return statistics.median(waits)


async def _some_at_once(call: Callable[[], Awaitable[Any]], count: int, most: int) -> None:
    """`call`, `count` times, at most `most` at a time."""
    turns: Iterator[int] = iter(range(count))

    async def worker() -> None:
        for _ in turns:
            await call()

    await asyncio.gather(*(worker() for _ in range(most)))


def in_words(found: dict[str, Any]) -> str:
    """The numbers, a line each."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in found.items()}
    return "\n".join(f"{key:24} {value}" for key, value in shown.items())
