"""Walls of a container engine. The only module that knows the docker SDK, which is imported when it is first needed.

    host --attached socket: frames inside the engine's stream headers--> agent (process 1 of the container)

The agent is root in there with CAP_SETUID, CAP_SETGID and CAP_KILL alone; commands run under another uid, without any.
"""

import asyncio
import itertools
import os
import re
import secrets
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from rollout_workers.sandbox.box import (
    ADDRESS_SPACE,
    DEFAULT,
    OPEN_FILES,
    Box,
    Disk,
    Probe,
    agent_source,
    check,
    own_uid,
    rlimits,
    room,
)
from rollout_workers.sandbox.channel import Channel, ChannelNonsenseError, finish
from rollout_workers.sandbox.plain import KEEPER, PlainChannel
from rollout_workers.scratch import pid_namespace
from verifiers.sandbox import SandboxError, SandboxSpec, SandboxUnavailable

BASE_IMAGE: Final = "cwm-rl-base:local"
INSTALL: Final = "install and start a container engine (Debian, Ubuntu: apt-get install docker.io)"
CALL_SECONDS: Final = 30
END_SECONDS: Final = 10
KILLED: Final = 128 + 9
"""Exit code by SIGKILL."""
REMOVALS: Final = 3
OWN_PROCESSES: Final = 16
"""The agent, supervisors, and children of the agent that move files; commands have their own limit beside it."""
FULL: Final = 0.95
"""Share of its memory with which a sandbox is out of it, where nobody was killed."""
SAFE_RUNC, NEXT_RUNC, SAFE_NEXT_RUNC = (1, 2, 8), (1, 3, 0), (1, 3, 3)
GVISOR: Final = "runsc"
GVISOR_PROCESSES, GVISOR_SHARE = 512, 32
"""Of the host, for its kernel and for each process inside; a fork bomb of 32 took 844 in all."""
NO_PYTHON: Final = re.compile(r"python3\b.*(not found|no such file)", re.IGNORECASE | re.DOTALL)
STREAM: Final = struct.Struct("!BxxxI")
STREAM_LIMIT: Final = 1 << 20

P = ParamSpec("P")
T = TypeVar("T")
_numbers = itertools.count()
_left: set[str] = set()
"""Names of containers whose removal was asked for and has not been seen."""


@dataclass(frozen=True, slots=True)
class Docker:
    """Implements `verifiers.sandbox.Sandboxes`."""

    client: Any
    """A docker.APIClient; its calls block, and run in threads."""
    image: str = BASE_IMAGE
    """Where a spec names none. One with `python3` 3.8 or later on its PATH is fast; see `plain` for others."""
    runtime: str | None = None
    """The engine's own default, or a name it knows, such as `runsc` (gVisor)."""
    cpus: float = 1.0
    run: str = ""
    """Label of the run that the containers belong to."""
    max_seconds: float = 86400.0
    """No container is meant to live longer, on any clock; `sweep` removes it then, whoever owns it."""
    plain: set[str] = field(default_factory=set)
    """Images found to be without Python."""

    @asynccontextmanager
    async def open(self, spec: SandboxSpec = DEFAULT) -> AsyncIterator[Box]:
        """See `verifiers.sandbox.Sandboxes.open`. Raises ValueError for a spec that cannot be."""
        check(spec)
        image = spec.image or self.image
        async with AsyncExitStack() as stack:
            if image not in self.plain:
                try:
                    yield await self._with_agent(spec, stack)
                    return
                except _NoPythonError:
                    self.plain.add(image)
            yield await self._without(spec, stack)

    async def _with_agent(self, spec: SandboxSpec, stack: AsyncExitStack) -> Box:
        """Behind an agent. Raises _NoPythonError."""
        uid, agent = _uid(spec), ["python3", "-I", "-S", "-c", agent_source()]
        ulimits = {
            "core": (0, 0),
            "nofile": (OPEN_FILES * 2, OPEN_FILES * 2),
        }  # the agent's own; commands get lower ones from it
        more = {"cap_add": ["SETUID", "SETGID", "KILL"], "ulimits": _ulimits(ulimits)}
        container = await stack.enter_async_context(self._container(spec, uid, agent, more))
        try:
            await call(container.attach)  # first, so that no byte can be missed
            await call(container.start)
        except SandboxUnavailable as error:
            if NO_PYTHON.search(str(error)):
                raise _NoPythonError from error
            raise
        channel = await stack.enter_async_context(Channel.over(container.take(), Demultiplexed))
        return await Box.begin(channel, container, spec, uid=uid, memory=spec.memory_bytes * ADDRESS_SPACE)

    async def _without(self, spec: SandboxSpec, stack: AsyncExitStack) -> Box:
        """Behind the engine's own ways."""
        uid, memory = _uid(spec), spec.memory_bytes * ADDRESS_SPACE
        limits = {name.removeprefix("RLIMIT_").lower(): both for name, both in rlimits(spec, memory).items()}
        more = {"ulimits": _ulimits({name: both for name, both in limits.items() if name != "as"})}
        container = await stack.enter_async_context(self._container(spec, uid, KEEPER, more))
        await call(container.attach)  # what it waits for the end of
        await call(container.start)
        channel = PlainChannel(Starter(container, f"{uid}:{uid}"))
        stack.callback(channel.close)
        return await Box.begin(channel, container, spec, uid=uid, memory=memory)

    @asynccontextmanager
    async def _container(
        self, spec: SandboxSpec, uid: int, process: list[str], more: dict[str, Any]
    ) -> AsyncIterator["Container"]:
        """A container that is gone on leaving, even if its creation was cancelled half way."""
        container = Container(self.client, f"cwm-rl-{os.getpid()}-{next(_numbers)}-{secrets.token_hex(4)}")
        try:
            await call(self._create, container.name, spec, uid, process, more)
            yield container
        finally:
            await finish(container.remove())

    def _create(self, name: str, spec: SandboxSpec, uid: int, process: list[str], more: dict[str, Any]) -> None:
        """Everything that is taken from the container is taken here."""
        disk = Disk.of(spec)
        host = self.client.create_host_config(
            network_mode="none",
            ipc_mode="private",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            read_only=not spec.writable_root,
            tmpfs={"/work": _tmpfs(disk.work, f"mode=0755,uid={uid},gid={uid}"), "/tmp": _tmpfs(disk.tmp, "mode=1777")},  # noqa: S108
            shm_size=disk.shm,
            mem_limit=spec.memory_bytes,
            memswap_limit=spec.memory_bytes,
            pids_limit=self._processes(spec),
            nano_cpus=int(self.cpus * 1e9),
            log_config={"Type": "none", "Config": {}},
            runtime=self.runtime,
            **more,
        )
        self.client.create_container(
            spec.image or self.image,
            name=name,
            entrypoint=process,
            command=[],
            user="0:0",
            working_dir="/work",
            stdin_open=True,
            network_disabled=True,
            labels=labels(self.run, time.time() + self.max_seconds),
            host_config=host,
        )

    def _processes(self, spec: SandboxSpec) -> int:
        """What the container may have. gVisor's kernel ends when it gets no more, and keeps RLIMIT_NPROC itself."""
        if self.runtime == GVISOR:
            return GVISOR_PROCESSES + GVISOR_SHARE * spec.pids
        return spec.pids + OWN_PROCESSES

    def sweep(self) -> int:
        """Remove containers that nobody holds or whose time is over; how many. Blocks. Raises SandboxUnavailable."""
        gone = 0
        for found in _guarded(self.client.containers, all=True, filters={"label": "cwm-rl.owner"}):
            marks = found["Labels"]
            owned_here = marks.get("cwm-rl.host") == _host()
            orphan = owned_here and not Path("/proc", marks["cwm-rl.owner"]).exists()
            name = next(iter(found["Names"] or ()), "")  # a dead one may have none
            given_up = name.removeprefix("/") in _left
            if orphan or given_up or float(marks.get("cwm-rl.deadline", "inf")) < time.time():
                with suppress(SandboxUnavailable):  # one that is stuck is in nobody's way
                    _guarded(_remove, self.client, found["Id"])
                    gone += 1
        return gone


class Container:
    """What the engine knows of one sandbox. Implements `box.Walls`."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name
        self._sock: socket.socket | None = None

    def attach(self) -> None:
        """Blocks. Keeps the socket until it is taken: a cancelled caller loses none."""
        self._sock = _attach(self.client, self.name)

    def start(self) -> None:
        """Blocks."""
        self.client.start(self.name)

    def take(self) -> socket.socket:
        """The attached socket; the caller closes it."""
        sock, self._sock = self._sock, None
        assert sock is not None  # noqa: S101 - attach() has returned
        return sock

    def oom_kills(self) -> int:
        """The agent sees its own control group and reports."""
        return 0

    def survived(self) -> None:
        """The engine tells of the end alone."""

    async def cause(self) -> str | None:
        """The engine's word on how it ended."""
        try:
            with suppress(SandboxUnavailable):
                await call(self.client.wait, self.name, timeout=END_SECONDS)
            state = await self._state()
            stats = await call(self.client.stats, self.name, stream=False) if state["Running"] else {}
        except SandboxUnavailable:
            return None  # an engine that does not answer is no evidence
        if state["OOMKilled"]:
            return "out of memory: the engine saw its container killed for it"
        # One without an agent goes on when nothing can be started in it any more.
        memory = stats.get("memory_stats", {})
        full = "limit" in memory and memory.get("usage", 0) > FULL * memory["limit"]
        return "out of memory: its commands hold all that it may have" if full else None

    async def _state(self) -> dict[str, Any]:
        """How it is. That it was out of memory, the engine may hear after its end, mostly .1 s before."""
        for pause in (0, 0.1, 0.2, 0.4, 0.8):
            await asyncio.sleep(pause)
            state: dict[str, Any] = (await call(self.client.inspect_container, self.name))["State"]
            if state["OOMKilled"] or state["ExitCode"] != KILLED:
                break
        return state

    async def remove(self) -> None:
        """Kill and remove it; it may never have been. Raises SandboxUnavailable, and leaves it to `sweep`."""
        if self._sock is not None:
            self._sock.close()
        _left.add(self.name)
        await call(_remove, self.client, self.name)
        _left.remove(self.name)


class Demultiplexed:
    """Takes the agent's frames out of the engine's stream: each piece has a header (which stream, length)."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader, self._buffer = reader, bytearray()

    async def piece(self) -> tuple[int, bytes]:
        """The next one, and its stream. Raises ChannelNonsenseError, asyncio.IncompleteReadError, OSError."""
        stream, size = STREAM.unpack(await self._reader.readexactly(STREAM.size))
        if stream > 2 or size > STREAM_LIMIT:
            raise ChannelNonsenseError(f"the engine's stream has a piece {stream} of {size} bytes")
        return stream, await self._reader.readexactly(size)

    async def readexactly(self, n: int) -> bytes:
        """`n` bytes of standard output. Raises ChannelNonsenseError, asyncio.IncompleteReadError, OSError."""
        while len(self._buffer) < n:
            stream, piece = await self.piece()
            if stream == 1:
                self._buffer += piece
        taken = bytes(self._buffer[:n])
        del self._buffer[:n]
        return taken


class Starter:
    """Runs programs by the engine's exec. Implements `plain.Starter`."""

    def __init__(self, container: Container, user: str) -> None:
        self._container, self._user = container, user

    async def run(self, argv: Sequence[str], env: Mapping[str, str]) -> "Started":
        """See `plain.Starter.run`."""
        client = self._container.client
        options = {"stdin": True, "user": self._user, "environment": dict(env), "workdir": "/work"}
        made = await call(client.exec_create, self._container.name, list(argv), **options)
        opened: list[socket.socket] = []  # a cancelled caller loses none
        try:
            await call(lambda: opened.append(_bare(client.exec_start, made["Id"], socket=True)))
            return Started(client, made["Id"], *await asyncio.open_connection(sock=opened[0]))
        except BaseException:
            for sock in opened:
                sock.close()
            raise


class Started:
    """One of them. Implements `plain.Running`."""

    def __init__(self, client: Any, number: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._client, self._number, self._writer, self._pieces = client, number, writer, Demultiplexed(reader)

    async def piece(self) -> tuple[int, bytes] | None:
        """See `plain.Running.piece`."""
        try:
            return await self._pieces.piece()
        except asyncio.IncompleteReadError:
            return None

    async def feed(self, data: bytes, *, end: bool) -> None:
        """See `plain.Running.feed`."""
        self._writer.write(data)
        await self._writer.drain()
        if end:
            self._writer.write_eof()

    async def exit_code(self) -> int | None:
        """See `plain.Running.exit_code`."""
        code = (await call(self._client.exec_inspect, self._number))["ExitCode"]
        return None if code is None else int(code)

    def close(self) -> None:
        """See `plain.Running.close`."""
        self._writer.transport.abort()


class _NoPythonError(Exception):
    """The image has none."""


async def probe(
    image: str = BASE_IMAGE, *, runtime: str | None = None, cpus: float = 1.0, run: str = ""
) -> tuple[Probe, Docker | None]:
    """Open a sandbox and run a command in it; the back end if that worked."""
    try:
        client = await asyncio.to_thread(_connect)
        backend = Docker(client, image, runtime, cpus, run)
        await asyncio.to_thread(backend.sweep)
        async with backend.open() as sandbox:
            result = await sandbox.exec(["true"])
    except (SandboxError, ValueError) as error:
        return Probe(False, f"docker does not work here: {error}"), None
    if result.exit_code != 0:
        return Probe(False, f"docker runs nothing here: {result.stderr.decode(errors='replace')}"), None
    weak = "" if runtime == GVISOR else weakness(await call(client.version))
    return Probe(True, f"docker works, with image {image} and runtime {runtime or 'of its own choice'}{weak}"), backend


def weakness(version: Mapping[str, Any]) -> str:
    """What to say of a runc with known escapes, from the engine's account of its parts; empty for a later one."""
    for part in version.get("Components", ()):
        found = re.match(r"(\d+)\.(\d+)\.(\d+)", part["Version"]) if part["Name"] == "runc" else None
        if found is not None:
            one = tuple(map(int, found.groups()))
            if one < SAFE_RUNC or NEXT_RUNC <= one < SAFE_NEXT_RUNC:
                return (
                    f"; its runc {part['Version']} is of a release with known escapes (CVE-2025-31133 and others, "
                    "mended in 1.2.8 and 1.3.3): see whether your distribution has mended it"
                )
    return ""


def sweep() -> int:
    """Remove containers whose owners are gone, and count them; 0 where no engine answers. Blocks for seconds."""
    try:
        _knock()  # before the SDK is loaded: a driver that ends waits for this
        with closing(_connect()) as client:
            return Docker(client, BASE_IMAGE, None, 1.0, "").sweep()
    except (SandboxUnavailable, OSError):
        return 0


async def call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """An SDK call in a thread. It is seen to its end even when cancelled: what it makes must not be lost."""
    return await finish(asyncio.to_thread(lambda: _guarded(function, *args, **kwargs)))


def _guarded(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Name the SDK's errors. Raises SandboxUnavailable."""
    import docker.errors
    import requests

    try:
        return function(*args, **kwargs)
    except docker.errors.ImageNotFound as error:
        raise SandboxUnavailable(
            f"the engine has no such image ({error.explanation}); build or pull it first"
        ) from error
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise SandboxUnavailable(f"the container engine failed: {error}") from error


def _connect() -> Any:
    """A client of the engine that the environment names, speaking the engine's own version of the API."""
    import docker

    try:
        _guarded(_knock)
        return _guarded(docker.APIClient, version="auto", timeout=CALL_SECONDS, **docker.utils.kwargs_from_env())
    except SandboxUnavailable as error:
        raise SandboxUnavailable(f"no container engine answers ({error.__cause__}): {INSTALL}") from error


def _knock() -> None:
    """Raises OSError unless something listens at the engine's local address; the SDK would leak a socket."""
    address = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if address.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(CALL_SECONDS)
            try:
                sock.connect(address.removeprefix("unix://"))
            except OSError as error:
                raise OSError(f"{address}: {error.strerror}") from error


def _attach(client: Any, name: str) -> socket.socket:
    """The stream of its process 1."""
    return _bare(client.attach_socket, name, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})


def _bare(connect: Callable[..., Any], *args: Any, **kwargs: Any) -> socket.socket:
    """Our own descriptor of a stream that the SDK opens; its wrappers round it are closed."""
    wrapped = connect(*args, **kwargs)
    raw = getattr(wrapped, "_sock", wrapped)
    if isinstance(raw, ssl.SSLSocket):
        raise OSError("an engine behind TLS cannot be attached to: use its local socket")
    sock = socket.socket(fileno=os.dup(raw.fileno()))
    wrapped._response.close()
    raw.close()
    return sock


def _remove(client: Any, name: str) -> None:
    """Kill and remove; no error if it is gone or going. Raises docker.errors.DockerException."""
    import docker.errors

    for attempt in range(REMOVALS):
        try:
            client.remove_container(name, force=True, v=True)
            return
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            if error.status_code == 409:  # somebody else is removing it
                return
            if attempt == REMOVALS - 1:  # an engine gives up on a frozen gVisor, and kills it for good while it does
                raise


def labels(run: str, deadline: float) -> dict[str, str]:
    """Who a container belongs to, and until when (seconds since 1970); `sweep` reads it."""
    return {
        "cwm-rl.run": run,
        "cwm-rl.owner": str(os.getpid()),
        "cwm-rl.host": _host(),
        "cwm-rl.deadline": f"{deadline:.0f}",
    }


def _host() -> str:
    """What process ids mean: this boot, this pid namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{pid_namespace()}"


def _uid(spec: SandboxSpec) -> int:
    return 0 if spec.writable_root else own_uid()


def _ulimits(limits: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    return [{"Name": name, "Soft": soft, "Hard": hard} for name, (soft, hard) in limits.items()]


def _tmpfs(size: int, more: str) -> str:
    """Mount options."""
    return f"rw,exec,nosuid,nodev,{room(size)},{more}"
