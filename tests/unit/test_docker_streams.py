"""What the engine's streams become when their caller is cancelled."""

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
