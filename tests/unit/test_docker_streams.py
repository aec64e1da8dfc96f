"""What the engine's streams become when their caller is cancelled, and what its word on a container's end is worth."""

import asyncio
import socket
import threading
from types import SimpleNamespace

import pytest

from rollout_workers.sandbox import docker


class SlowEngine:
    """An API client whose exec starts when it is told to."""

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()
        self.ours, self._theirs = socket.socketpair()

    def exec_create(self, *_: object, **__: object) -> dict[str, str]:
        return {"Id": "1"}

    def exec_start(self, *_: object, **__: object) -> object:
        self.asked.set()
        assert self.go.wait(10)
        return SimpleNamespace(_sock=self._theirs, _response=SimpleNamespace(close=lambda: None))


async def test_a_stream_that_opens_after_its_caller_was_cancelled_is_closed() -> None:
    engine = SlowEngine()
    with engine.ours:
        starting = asyncio.create_task(docker.Starter(docker.Container(engine, "one"), "1000").run(["true"], {}))
        await asyncio.to_thread(engine.asked.wait, 10)
        starting.cancel()
        engine.go.set()
        with pytest.raises(asyncio.CancelledError):
            await starting
        engine.ours.settimeout(10)
        assert engine.ours.recv(1) == b""  # nobody holds the other end


class LateEngine:
    """An API client that hears why a container was killed some looks after it ended."""

    def __init__(self, code: int, looks: int) -> None:
        self.code, self.looks = code, looks

    def wait(self, *_: object, **__: object) -> None:
        """It has ended."""

    def inspect_container(self, _: str) -> dict[str, object]:
        self.looks -= 1
        return {"State": {"Running": False, "ExitCode": self.code, "OOMKilled": self.looks < 0}}


@pytest.mark.parametrize(
    ("code", "looks", "said"), [(137, 0, True), (137, 2, True), (137, 99, False), (0, 99, False), (1, 1, False)]
)
async def test_who_was_killed_for_memory_is_looked_at_again(code: int, looks: int, said: bool) -> None:
    cause = await docker.Container(LateEngine(code, looks), "one").cause()
    assert ("out of memory" in (cause or "")) == said
