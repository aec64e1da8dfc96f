"""Jobs of a cluster, with a stand-in for its dashboard: what is asked of it, and in which order."""

import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import pytest

from rl.cluster import ClusterError, Jobs, jobs
from rl.jobs import Job


class Dashboard:
    """Knows jobs as Ray's does; every question about a job's state brings it one further."""

    def __init__(self, *states: str) -> None:
        self.states = list(states)
        self.known: list[str] = []
        self.environments: list[dict[str, Any]] = []

    def list_jobs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(submission_id=name) for name in self.known]

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any]) -> None:
        assert submission_id not in self.known
        self.known.append(submission_id)
        self.environments.append(runtime_env)

    def get_job_status(self, name: str) -> str:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def get_job_logs(self, name: str) -> str:
        return f"{name} said so\n"

    def stop_job(self, name: str) -> None:
        self.states = ["RUNNING", "STOPPED"]


def job(name: str = "nano") -> Job:
    return Job(name, "python -m rl.cli train c.toml", Path("here"), Path("runs") / name)


def test_a_second_submit_is_the_same_job() -> None:
    dashboard, said = Dashboard("PENDING", "RUNNING"), list[str]()
    there = Jobs(dashboard)
    assert there.submit(job(), said.append) == "PENDING" and not said
    assert there.submit(job(), said.append) == "RUNNING"
    assert said == ["job nano is known to the cluster already"]
    assert dashboard.known == ["nano"]


def test_no_secret_travels(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    dashboard = Dashboard("RUNNING")
    Jobs(dashboard).submit(job(), print)
    (environment,) = dashboard.environments
    assert set(environment) == {"working_dir", "excludes"}, "the submitter's environment stays"
    stays = {
        ".env",
        ".env.local",
        "deploy/.env",
        "deploy/prometheus/token",
        "runs/one/ledger.sqlite",
        "models/m",
        "tests/t",
    }
    goes = {"rl/cli.py", "rl/models/m", "deploy/configs/nano.toml"}
    for name in stays | goes:
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).touch()
    create_package(str(tmp_path / "here"), tmp_path / "it.zip", True, excludes=environment["excludes"])
    with ZipFile(tmp_path / "it.zip") as package:
        assert {name for name in package.namelist() if not name.endswith("/")} == goes


class Failing(BaseHTTPRequestHandler):
    """A dashboard that is there, and fails."""

    def do_GET(self) -> None:
        about = self.path == "/api/version"
        said = b'{"ray_version": "2.60.0", "version": "4"}' if about else b"Traceback\n  somewhere\nValueError: no room"
        self.send_response(200 if about else 500)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *words: object) -> None: ...


@pytest.mark.slow
def test_a_cluster_that_answers_with_a_failure_is_not_called_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            with pytest.raises(ClusterError) as caught, jobs(address) as there:
                there.state("nano")
        finally:
            server.shutdown()
            thread.join()
    assert str(caught.value).startswith(
        f"what was asked of Ray at {address} failed: Request failed with status code 500"
    )
    assert str(caught.value).endswith("ValueError: no room.")
    with pytest.raises(ClusterError, match="no Ray cluster answers"), jobs(address):
        pass


ASKS = """
import sys
from rl.cluster import ClusterError, check, jobs
from rl.config import ClusterConfig
try:
    if sys.argv[1] == "train":
        check(ClusterConfig(address=sys.argv[2]))
    else:
        jobs(sys.argv[2]).__enter__()
except ClusterError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "scheme"), [("train", ""), ("submit", "http://")])
def test_without_a_token_one_is_told_whether_anybody_listens(how: str, scheme: str, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}

    def answer(address: str) -> str:
        command = [sys.executable, "-c", ASKS, how, address]  # Ray keeps the first token that a process has seen
        return subprocess.check_output(command, env=env | {"HOME": str(tmp_path)}, text=True, timeout=60)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"{scheme}127.0.0.1:{listening.getsockname()[1]}"
        asked = answer(address)
    assert asked.startswith(f"Ray at {address} was asked without a valid token: set RAY_AUTH_TOKEN")
    assert answer(address) == f"no Ray cluster answers at {address}: Connection refused\n"


def test_waiting_ends_with_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.cluster._ASK_SECONDS", 0.0)
    dashboard = Dashboard("PENDING", "RUNNING", "RUNNING", "SUCCEEDED")
    there = Jobs(dashboard)
    dashboard.known.append("nano")
    assert there.wait("nano") == "SUCCEEDED"
    assert there.stop("nano") == "STOPPED"
    assert there.logs("nano") == "nano said so\n"


def test_a_job_that_nobody_knows_is_a_sentence() -> None:
    there = Jobs(Dashboard("RUNNING"))
    for ask in (there.state, there.logs, there.stop, there.wait):
        with pytest.raises(ClusterError, match="no job 'nano'"):
            ask("nano")
