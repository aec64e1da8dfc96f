"""A real run, begun, watched and ended through the service, as a browser or a script does it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from launch import ROOT, gone

from rl.ledger.audit import audit

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(600)]

OVERRIDES = {"run.steps": 500, "algorithm.token_budget": 2000}


class Service:
    """The command, and what is asked of it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, wanted: Any = None) -> Any:
        """The JSON of an answer that is no refusal."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            headers = {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
            connection.request(method, path, json.dumps(wanted) if wanted else None, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status in (200, 202), text
            return json.loads(text) if answer.headers["content-type"].startswith("application/json") else text

    def until(self, path: str, met: Any, seconds: float = 300) -> Any:
        """What is answered once `met` holds of it."""
        deadline = time.monotonic() + seconds
        while not met(found := self.ask("GET", path)):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        return found


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "rl.cli", "serve", "--runs", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None and child.stdout.readline().startswith("http://")
            yield Service(port)
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(20)


def test_started_watched_and_stopped(service: Service, tmp_path: Path) -> None:
    began = time.monotonic()
    service.ask("POST", "/api/v1/runs", {"config": "five-steps.toml", "run": "one", "overrides": OVERRIDES})
    service.until("/api/v1/runs", lambda found: any(run["name"] == "one" for run in found["runs"]), 90)
    first = time.monotonic() - began
    fleet = service.until("/api/v1/runs/one/fleet", lambda found: found["waits"], 90)
    assert fleet["state"] == "running" and fleet["pid"] and fleet["waits"][0]["until"] > time.time()
    shot(service, "/runs/one/fleet", "state running")
    fleet = service.until(
        "/api/v1/runs/one/fleet", lambda found: any(one["seen"] and one["slots"] for one in found["actors"])
    )
    assert {one["name"] for one in fleet["actors"]} == {"learner", "worker-0"}
    with closing(HTTPConnection("127.0.0.1", service.port, timeout=300)) as stream:
        stream.request("GET", "/api/v1/runs/one/events")
        answer = stream.getresponse()
        while not answer.readline().startswith(b"event: step"):
            pass
    found = service.ask("GET", "/api/v1/runs/one")
    assert found["state"] == "running" and found["step"] >= 1 and found["balanced"]
    assert service.ask("GET", "/api/v1/runs/one/episodes?state=trained")["episodes"]
    metrics = service.ask("GET", "/metrics")
    assert 'cwm_rl_slots{run="one",actor="worker-0"}' in metrics
    shot(service, "/runs/one", "Reward by domain")
    shot(service, "/runs/one/episodes", "trained")

    driver = psutil.Process(service.ask("GET", "/api/v1/runs/one/fleet")["pid"])
    processes = [driver, *driver.children(recursive=True)]
    asked = time.monotonic()
    service.ask("POST", "/api/v1/runs/one/stop")
    assert not gone(processes, 60)
    stopped = time.monotonic() - asked
    assert service.ask("GET", "/api/v1/runs/one")["state"] == "stopped"
    assert audit(tmp_path / "one").ok
    print(f"on the page after {first:.1f} s; all gone {stopped:.1f} s after it was told to stop")


def shot(service: Service, path: str, words: str) -> None:
    """Where there is a browser: the page as it is after its scripts have run; a picture where one is wanted."""
    browser = shutil.which("chromium")
    if browser is None:
        return
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", "--timeout=6000"]
    address = f"http://127.0.0.1:{service.port}{path}"
    done = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    assert words in done.stdout
    if kept := os.environ.get("CWM_RL_SCREENSHOTS"):
        picture = Path(kept) / f"{path.strip('/').replace('/', '-')}.png"
        command += [f"--screenshot={picture}", "--window-size=1280,1600", address]
        subprocess.run(command, stderr=subprocess.DEVNULL, timeout=120)
