"""A job on a started cluster, by Ray's own means and by ours."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from launch import CONFIG, ROOT, cwm_rl, gone, report_of

from rl.driver import pulse
from rl.driver.pulse import Phase
from rl.ledger.audit import audit

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Cluster:
    """A single-node cluster on loopback with a token."""

    def __init__(self, home: Path) -> None:
        self.gcs, self.dashboard = _free_port(), _free_port()
        self.home = home
        self.env = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def ray(self, *arguments: str, seconds: float = 60) -> "subprocess.CompletedProcess[str]":
        command = [str(BIN / "ray"), *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.env, text=True, capture_output=True, timeout=seconds)

    def logs(self, job: str) -> str:
        return self.ray("job", "logs", "--address", self.address, job).stdout


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Short, for Ray's sockets lie below it.
    home = Path(tempfile.mkdtemp(prefix="cwm-ray-"))
    one = Cluster(home)
    head = subprocess.Popen(
        [
            str(BIN / "ray"),
            "start",
            "--head",
            "--block",
            "--node-ip-address=127.0.0.1",
            f"--port={one.gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={one.dashboard}",
            f"--dashboard-agent-listen-port={_free_port()}",  # the usual one may be another cluster's
            "--num-cpus=4",
            f"--temp-dir={home}",
        ],
        env=one.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while one.ray("job", "list", "--address", one.address).returncode:
            assert time.monotonic() < deadline, "the cluster did not start"
        yield one
    finally:
        head.terminate()
        try:
            head.wait(60)
        finally:
            head.kill()
            shutil.rmtree(home, ignore_errors=True)


def _state(cluster: Cluster, job: str) -> str:
    out = cluster.ray("job", "status", "--address", cluster.address, job).stdout.lower()
    return next((word for word in ("succeeded", "failed", "stopped", "running", "pending") if word in out), out)


def _wait(cluster: Cluster, job: str, seconds: float = 400) -> str:
    deadline = time.monotonic() + seconds
    while (state := _state(cluster, job)) in ("running", "pending") and time.monotonic() < deadline:
        time.sleep(1)
    return state


def _small(runs: Path) -> list[str]:
    settings = (f"run.directory={runs}", "run.steps=1", "algorithm.token_budget=1000", "rollout.slots=8")
    return [word for setting in settings for word in ("--set", setting)]


def test_jobs_run_to_their_end(cluster: Cluster, tmp_path: Path) -> None:
    """One by our own command, given twice, and one by plain `ray job submit`; they share the cluster."""
    arguments = ["submit", CONFIG, "--address", cluster.address, "--set", "run.id=ours", *_small(tmp_path)]
    with cwm_rl(tmp_path / "first", *arguments, env=cluster.env) as command:
        assert command.finish(60) == 0, command.output
    with cwm_rl(tmp_path / "second", *arguments, "--wait", "--json", env=cluster.env) as command:
        assert command.finish(400) == 0, command.output
    assert "known to the cluster already" in command.output
    assert '"job": "ours", "state": "SUCCEEDED"' in command.output
    assert "run ours: 1 steps" in ours(cluster, tmp_path, "logs", "ours")
    environment = json.dumps({"working_dir": str(ROOT), "excludes": ["/runs", "/tests"]})
    submitted = cluster.ray(
        *("job", "submit", "--address", cluster.address, "--submission-id", "plain", "--no-wait"),
        *("--runtime-env-json", environment, "--", "cwm-rl", "train", CONFIG, "--set", "run.id=plain"),
        *_small(tmp_path),
    )
    assert submitted.returncode == 0, submitted.stderr
    for job in ("ours", "plain"):
        assert _wait(cluster, job) == "succeeded", cluster.logs(job)
        assert report_of(tmp_path / job)["steps"] == 1
        assert audit(tmp_path / job).ok


def test_a_job_is_stopped(cluster: Cluster, tmp_path: Path) -> None:
    """Its driver ends in good order, and nothing that it has started is left."""
    settings = ("--set", "run.id=long", "--set", "run.steps=500", "--set", f"run.directory={tmp_path}")
    assert "job long: " in ours(cluster, tmp_path, "submit", CONFIG, *settings)
    deadline = time.monotonic() + 200
    while not (beat := pulse.read(tmp_path / "long")) or beat.phase is not Phase.RUNNING:
        assert time.monotonic() < deadline, cluster.logs("long")
        time.sleep(0.5)
    assert "job long: RUNNING" in ours(cluster, tmp_path, "status", "long")
    actors = [psutil.Process(one.pid) for one in _with_processes(tmp_path / "long")]
    driver = psutil.Process(beat.pid)
    assert "job long: STOPPED" in ours(cluster, tmp_path, "stop", "long")
    assert not gone([driver, *actors])
    assert audit(tmp_path / "long").ok


def ours(cluster: Cluster, tmp_path: Path, *arguments: str) -> str:
    """What one of our commands prints about the cluster's jobs, wherever RAY_ADDRESS points."""
    env = cluster.env | {"RAY_ADDRESS": "http://127.0.0.1:1"}
    with cwm_rl(tmp_path / "ours.log", *arguments, "--address", cluster.address, env=env) as command:
        assert command.finish(90) == 0, command.output
        return command.output


def _with_processes(run: Path) -> list[pulse.Actor]:
    """Its actors, once each has told its process."""
    deadline = time.monotonic() + 60
    while not (beat := pulse.read(run)) or not all(one.pid for one in beat.actors):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return list(beat.actors)


def test_wrong_token_is_a_sentence(cluster: Cluster, tmp_path: Path) -> None:
    wrong = cluster.env | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    addressed = ("--set", f"cluster.address=127.0.0.1:{cluster.gcs}", "--set", f"run.directory={tmp_path}")
    for arguments in (("submit", CONFIG, "--address", cluster.address), ("train", CONFIG, *addressed)):
        with cwm_rl(tmp_path / arguments[0], *arguments, env=wrong) as command:
            assert command.finish(60) == 2
        assert "without a valid token" in command.output
        assert "Traceback" not in command.output
    assert not list(tmp_path.glob("*/ledger.sqlite"))


def test_no_cluster_is_a_sentence(tmp_path: Path) -> None:
    port, env = _free_port(), {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    addressed = ("--set", f"cluster.address=127.0.0.1:{port}", "--set", f"run.directory={tmp_path}")
    submitted = ("submit", CONFIG, "--address", f"http://127.0.0.1:{port}")
    for arguments in (submitted, ("train", CONFIG, *addressed)):
        with cwm_rl(tmp_path / arguments[0], *arguments, env=env) as command:
            assert command.finish(60) == 2
        assert "no Ray cluster answers" in command.output
        assert "Traceback" not in command.output
