"""The benchmark of verifiers, a little of everything: its keys are there and what must be exact is exact."""

import json
import subprocess
import sys

import pytest

from rollout_workers.sandbox.select import choose
from verifiers.sandbox import SandboxUnavailable

pytestmark = [pytest.mark.required, pytest.mark.slow, pytest.mark.timeout(300)]


async def test_everything_is_measured() -> None:
    try:
        await choose("bubblewrap")
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "rl.cli", "bench", "verifiers", "--quick", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: ASYNC221 - nothing else to do
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["math"].keys() >= {"gradings_per_s_per_core", "ratio", "hang_late_s"}
    assert (found["math"]["agreement"], found["math"]["hangs"]) == (1.0, 1)
    assert found["code"].keys() >= {"tests_per_s_per_core", "programs_per_s_per_core"}
    assert (found["endurance"]["gradings"], found["endurance"]["processes_left"]) == (2000, 0)
