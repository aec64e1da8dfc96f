"""The live stream over real HTTP: what comes, what is missed and made good, and who is dropped."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from fakes import closed_group, episode_of

from rl.ledger import Ledger
from rollout_workers.trajectory import EpisodeKey
from verifiers.task import Submission

IMPATIENT = (
    "from rl.service import server; server.STALL_SECONDS = 1; server.BODY_SECONDS = 1; server.HEADER_SECONDS = 2; "
    "from rl.cli import main; main()"
)
ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


@contextmanager
def serving(runs: Path, program: tuple[str, str] = ("-m", "rl.cli")) -> Iterator[int]:
    """The command itself; its port."""
    command = [sys.executable, *program, "serve", "--runs", str(runs), "--port", "0"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **pipes) as child:
        try:
            assert child.stdout is not None
            yield int(child.stdout.readline().partition("/ shows")[0].rpartition(":")[2])
        finally:
            child.kill()


def get(port: int, path: str) -> Any:
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode()


@contextmanager
def listening(port: int, last: str = "") -> Iterator[HTTPResponse]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", "/api/v1/runs/one/events", headers={"Last-Event-ID": last} if last else {})
        answer = connection.getresponse()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield answer


def events(answer: HTTPResponse) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, id, data) as they come."""
    found: dict[str, str] = {}
    for line in answer:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            found[name] = value
        elif "data" in found:
            yield found["event"], found["id"], json.loads(found["data"])
            found = {}


def step(ledger: Ledger) -> None:
    group = closed_group(ledger, 1.0, -1.0)
    stats = {"entropy": 1.5, "reward": {"math": 0.25}}
    ledger.commit(ledger.step + 1, [member.episode.key for member in group.members], stats)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    (tmp_path / "one").mkdir()
    with Ledger.create(tmp_path / "one", "one", {}) as ledger:
        ledger.publish(0)
        step(ledger)
        yield ledger


@pytest.fixture
def port(ledger: Ledger, tmp_path: Path) -> Iterator[int]:
    with serving(tmp_path) as port:
        yield port


def named(stream: Iterator[tuple[str, str, dict[str, Any]]], name: str) -> tuple[str, dict[str, Any]]:
    """The next event of that name: its id and data."""
    return next((which, data) for found, which, data in stream if found == name)


def test_steps_and_faults_come_as_they_happen(ledger: Ledger, port: int) -> None:
    with listening(port) as answer:
        stream = events(answer)
        assert named(stream, "state")[1] == {"state": "running", "step": 1}
        named(stream, "change")  # it looks from now on
        step(ledger)
        which, told = named(stream, "step")
        assert told["step"] == 2 and told["reward.math"] == 0.25 and which == "0-2-0"
        ledger.fault("worker-0", "EngineError", "data: x\n\nevent: step\n")
        which, told = named(stream, "fault")
        assert told["detail"] == "data: x\n\nevent: step\n" and which == "0-2-1"
        ledger.release()
        assert named(stream, "state")[1]["state"] == "stopped"


def test_who_comes_back_gets_what_was_missed(ledger: Ledger, port: int) -> None:
    for _ in range(3):
        step(ledger)
    ledger.fault("learner", "StepRefused", "no")
    with listening(port, "0-2-0") as answer:
        stream = events(answer)
        assert [next(stream)[0::2][1]["step"] for _ in range(2)] == [3, 4]
        assert named(stream, "fault")[0] == "0-4-1"
    with listening(port, "nonsense'; DROP TABLE steps") as answer:
        assert next(events(answer))[0] == "state"


def test_a_client_that_takes_nothing_is_dropped_and_the_others_hear_everything(ledger: Ledger, port: int) -> None:
    frozen = socket.socket()
    frozen.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with frozen, listening(port) as answer:
        frozen.connect(("127.0.0.1", port))
        frozen.sendall(f"GET /api/v1/runs/one/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        stream = events(answer)
        named(stream, "change")
        deadline = time.monotonic() + 60
        number = 0
        while not sum(dropped(port).values()):
            assert time.monotonic() < deadline
            for _ in range(40):
                number += 1
                ledger.fault("worker-0", "kind", "x" * 1900)
            seen, _ = named(stream, "fault")
            while int(seen.rpartition("-")[2]) < number:
                seen, _ = named(stream, "fault")
        ledger.fault("worker-0", "last", "")
        assert named(stream, "fault")[1]["kind"] == "last"


def dropped(port: int) -> dict[str, int]:
    name = "cwm_rl_live_dropped_total{reason="
    lines = [line for line in get(port, "/metrics").splitlines() if line.startswith(name)]
    return {line.split('"')[1]: int(line.split()[-1]) for line in lines}


def test_slow_headers_are_cut_off(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
        slow.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode())
        with suppress(ConnectionResetError):
            assert slow.recv(100) == b""


def test_a_body_that_nobody_asked_for_holds_no_connection(tmp_path: Path) -> None:
    with (
        serving(tmp_path, program=("-c", IMPATIENT)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=60) as slow,
    ):
        head = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 1000000\r\n\r\n"
        slow.sendall(head.encode())
        answer = b""
        with suppress(ConnectionResetError):
            while piece := slow.recv(1000):
                answer += piece
                slow.sendall(b"x")
        assert b" 200 " in answer, "it was answered, and then ended"


def test_who_takes_nothing_of_an_answer_is_cut_off(ledger: Ledger, tmp_path: Path) -> None:
    key = EpisodeKey(ledger.dispatch("t", "code", 1, 4e9), 0, 0)
    long = Submission("x" * (16 << 20))  # more than both kernels take
    ledger.sampled(replace(episode_of(key), submission=long))
    with serving(tmp_path, program=("-c", IMPATIENT)) as port, socket.socket() as frozen:
        frozen.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        frozen.connect(("127.0.0.1", port))
        frozen.sendall(f"GET /api/v1/runs/one/episodes/{key} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        time.sleep(4)
        assert sum(map(len, iter(lambda: frozen.recv(1 << 20), b""))) < 16 << 20
        assert len(get(port, f"/api/v1/runs/one/episodes/{key}")) > 16 << 20, "who takes it gets it"


def test_a_pickle_is_no_request(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sender:
        sender.sendall(b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.")
        sender.shutdown(socket.SHUT_WR)
        assert b" 200 " not in sender.recv(1000)
    assert get(port, "/healthz") == '{"ok":true}'
