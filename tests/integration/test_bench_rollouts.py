"""The benchmarks of sampling, updates and steps, on little: their keys are there and their numbers are numbers."""

import json
import math
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.required, pytest.mark.slow, pytest.mark.timeout(300)]


def measured(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "rl.cli", "bench", *words, "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_sampling_is_measured_against_the_raw_engine() -> None:
    small = ("--streams", "4", "--tokens", "16", "--rounds", "1", "--update-every", "0.02")
    found = measured("rollouts", *small)["rollouts"]
    assert found["updates"] >= 2
    speeds = [found[name] for name in ("raw_tokens_per_s", "tokens_per_s", "updated_tokens_per_s")]
    assert all(math.isfinite(speed) and speed > 0 for speed in speeds)
    assert found["ratio"] == pytest.approx(speeds[1] / speeds[0])


def test_updates_are_measured_under_running_requests() -> None:
    found = measured("weights", "--shape", "nano", "--updates", "2")["weights"]
    assert 0 < found["paused_ms"] <= found["update_ms"]
    assert found["file_mb"] == pytest.approx(0.69 * 4 * 1e6 / 2**20, rel=0.1)


def test_a_step_is_measured_against_a_bare_loop() -> None:
    found = measured("learner", "--rows", "6", "--tokens", "16", "64", "--steps", "1")
    learner = found["learner"]
    assert learner["ratio"] == pytest.approx(learner["tokens_per_s"] / learner["bare_tokens_per_s"])
    assert 0 < learner["memory_ratio"] < 1
