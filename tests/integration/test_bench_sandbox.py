"""The benchmark of sandboxes, a little of everything: its keys are there and what must be exact is exact."""

import json
import subprocess
import sys

import pytest

from rollout_workers.sandbox.select import Backend, choose
from verifiers.sandbox import SandboxUnavailable

pytestmark = [pytest.mark.required, pytest.mark.slow, pytest.mark.timeout(400)]
KEYS = {"exec_p50_ms", "session_p50_ms", "create_per_s", "acquire_warm_p50_ms", "acquire_warm_p99_ms", "fanout"}
KEYS |= {"host_mb_per_sandbox", "flood_host_mb", "hang_late_s", "leaked"}


@pytest.mark.parametrize("backend", ["bubblewrap", "docker", "gvisor"])
async def test_everything_is_measured(backend: Backend) -> None:
    try:
        await choose(backend)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "rl.cli", "bench", "sandbox", "--backend", backend, "--quick", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: ASYNC221 - nothing else to do
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found.keys() >= KEYS
    assert found["fanout"]["right"] == 1.0
    assert (found["leaked"], found["flood_cut"], found["hang_dead"]) == (0, True, True)
    if backend != "bubblewrap":
        assert found.keys() >= {"docker_exec_ratio", "create_ratio"}
