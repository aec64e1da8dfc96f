"""A run's pulse: what a driver tells while it lives, what is left of its word, and how it hears a request to end."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import new_ledger
from starlette.testclient import TestClient

from rl.driver import pulse
from rl.driver.heartbeat import Heartbeat
from rl.driver.pulse import Phase
from rl.driver.waits import Overdue, Waits
from rl.ledger import Ledger, Reader
from rl.service import runs
from rl.service.app import create_app


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    (tmp_path / "one").mkdir()
    yield from new_ledger(tmp_path / "one")


def state_of(run: Path) -> str:
    with Reader(run) as reader:
        return runs.state(run, reader)


def phase(run: Path) -> Phase | None:
    beat = pulse.read(run)
    return beat.phase if beat else None


@pytest.mark.slow
async def test_it_tells_what_is_waited_for_until_when(ledger: Ledger, tmp_path: Path) -> None:
    run, waits = tmp_path / "one", Waits()
    async with Heartbeat.beating(run, waits), waits.named("a batch", 60):
        await asyncio.sleep(1.5)
        beat = pulse.read(run)
        assert beat is not None
        (wait,) = beat.waits
        assert wait.name == "a batch" and wait.until - wait.since == pytest.approx(60)
        assert (beat.pid, beat.host) == (os.getpid(), pulse.host())
        client = TestClient(create_app(tmp_path, ["here:1"]), base_url="http://here:1")
        found = client.get("/api/v1/runs/one/fleet").json()
        assert found["state"] == "running" and found["waits"][0]["name"] == "a batch"
        assert "a batch" in client.get("/runs/one/fleet").text
        assert "a batch" in client.get("/api/v1/runs").json()["runs"][0]["waiting"]


async def test_five_ends_are_five_states(ledger: Ledger, tmp_path: Path) -> None:
    run = tmp_path / "one"

    async def drive(error: BaseException | None = None) -> None:
        async with Heartbeat.beating(run, Waits()):
            assert state_of(run) == "running"
            if error is not None:
                raise error

    await drive()
    assert state_of(run) == "running", "the lock is still held"
    ledger.release()
    assert state_of(run) == "finished"
    with pytest.raises(asyncio.CancelledError):
        await drive_alone(run, asyncio.CancelledError())
    assert state_of(run) == "stopped"
    with pytest.raises(ExceptionGroup):
        await drive_alone(run, ExceptionGroup("", [Overdue("waited 3 s for a batch")]))
    assert state_of(run) == "failed"
    assert runs.summary(run).problem == "Overdue: waited 3 s for a batch"


async def drive_alone(run: Path, error: BaseException) -> None:
    with Ledger.open(run):
        async with Heartbeat.beating(run, Waits()):
            raise error


def test_a_killed_driver_has_crashed(ledger: Ledger, tmp_path: Path) -> None:
    run = tmp_path / "one"
    ledger.release()  # no database is taken into a fork
    child = os.fork()
    if not child:
        try:
            with Ledger.open(run):
                asyncio.run(_beat_for_ever(run))
        finally:
            os._exit(1)
    try:
        deadline = time.monotonic() + 20
        while state_of(run) != "running" or pulse.read(run) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert state_of(run) == "crashed"


async def _beat_for_ever(run: Path) -> None:
    async with Heartbeat.beating(run, Waits()):
        await asyncio.sleep(3600)


@pytest.mark.slow
async def test_a_request_to_stop_is_heard_as_ctrl_c(ledger: Ledger, tmp_path: Path) -> None:
    run, heard = tmp_path / "one", asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, heard.set)
    try:
        pulse.ask_to_stop(run)
        async with Heartbeat.beating(run, Waits()):
            await asyncio.sleep(1.5)
            assert not heard.is_set(), "it was asked of a driver before this one"
            pulse.ask_to_stop(run)
            async with asyncio.timeout(20):
                await heard.wait()
            heard.clear()
            pulse.ask_to_stop(run)
            await asyncio.sleep(1.5)
            assert not heard.is_set(), "a second signal would end it at once"
        assert not (run / pulse.STOP).exists()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


async def test_an_interruption_is_told_before_everything_is_put_away(ledger: Ledger, tmp_path: Path) -> None:
    run = tmp_path / "one"
    async with Heartbeat.beating(run, Waits()) as heart:
        heart.leaving(None, None, None)
        assert phase(run) is Phase.STARTING
        heart.leaving(asyncio.CancelledError, asyncio.CancelledError(), None)
        assert phase(run) is Phase.STOPPING


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"at": 1}', b"\xff\xfe", b'{"at":"x","began":1,"pid":1,"host":"","phase":"?"}']
)
def test_a_damaged_pulse_is_none(text: bytes, ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "one" / pulse.FILE).write_bytes(text)
    assert pulse.read(tmp_path / "one") is None
    assert state_of(tmp_path / "one") == "running"
