"""`deploy/compose.yaml` for real: two workers in containers of their own, one of them killed under a job.

Needs compose 2 and the image `cwm-rl:cpu`, which takes minutes and a registry: `docker build`.
"""

import json
import os
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launch import CONFIG, ROOT, cwm_rl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IMAGE = "cwm-rl:cpu"
DASHBOARD, SERVICE = "http://127.0.0.1:8265", "http://127.0.0.1:8400"
STEPS = 8


class Compose:
    """The head, the service and two workers, as a project of its own."""

    def __init__(self) -> None:
        self.project = f"cwm-rl-test-{secrets.token_hex(4)}"
        self.read, self.ray = secrets.token_hex(32), secrets.token_hex(32)
        self.env = os.environ | {
            "RAY_AUTH_TOKEN": self.ray,
            "CWM_RL_READ_TOKEN": self.read,
            "CWM_RL_OPERATE_TOKEN": secrets.token_hex(32),
            "GRAFANA_PASSWORD": secrets.token_hex(32),
        }

    def __call__(self, *words: str) -> str:
        command = ["docker", "compose", "-p", self.project, "-f", str(ROOT / "deploy/compose.yaml"), *words]
        done = subprocess.run(command, env=self.env, text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def containers(self, service: str) -> list[str]:
        """Their ids."""
        return self("ps", "--all", "--quiet", service).split()

    def audit(self, run: str) -> str:
        return self("exec", "-T", "head", "cwm-rl", "audit", f"/runs/{run}")


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no container engine answers: deploy/install-docker.sh")
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker has no compose 2: install its plug-in docker-compose")
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode:
        pytest.skip(f"there is no image {IMAGE}: docker build -f deploy/Dockerfile --target cpu -t {IMAGE} .")
    one = Compose()
    try:
        one("up", "--detach", "--wait", "--scale", "worker=2", "head", "worker", "service")
        yield one
    finally:
        one("down", "--volumes", "--timeout", "20")


def test_a_job_outlives_a_worker_and_the_service_shows_it(compose: Compose, tmp_path: Path) -> None:
    settings = ("run.directory=/runs", "run.id=one", "rollout.workers=2", f"run.steps={STEPS}")
    words = ["submit", CONFIG, "--address", DASHBOARD, "--wait", *(w for one in settings for w in ("--set", one))]
    with cwm_rl(tmp_path / "log", *words, env={"RAY_AUTH_TOKEN": compose.ray}) as job:
        deadline = time.monotonic() + 300
        while (state := _run(compose)["step"]) < 2:
            assert job.process.poll() is None and time.monotonic() < deadline, (state, job.output)
            time.sleep(0.5)
        victim = next(one for one in compose.containers("worker") if "ray::RolloutWorker" in _docker("top", one))
        _docker("kill", victim)
        _docker("start", victim)
        assert job.finish() == 0, job.output
    run = _run(compose)
    assert (run["state"], run["step"]) == ("finished", STEPS)
    told = compose.audit("one")
    assert "all is well" in told and "worker_lost" in told, told


@pytest.mark.parametrize(("url", "host", "status"), [(DASHBOARD, "", 401), (SERVICE, "", 401), (SERVICE, "evil", 421)])
def test_nobody_gets_in_without_a_token_or_by_another_name(compose: Compose, url: str, host: str, status: int) -> None:
    path = "/api/jobs/" if url == DASHBOARD else "/api/v1/runs"
    request = urllib.request.Request(url + path, headers={"Host": host} if host else {})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    with refused.value as answer:
        assert answer.code == status


def _docker(*words: str) -> str:
    return subprocess.run(["docker", *words], check=True, text=True, capture_output=True).stdout


def _run(compose: Compose) -> dict[str, Any]:
    """The one run, as the service has it; before it is there, at step -1."""
    request = urllib.request.Request(f"{SERVICE}/api/v1/runs", headers={"Authorization": f"Bearer {compose.read}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        runs = json.load(answer)["runs"]
    return runs[0] if runs else {"state": "", "step": -1}
