"""Runs that are killed or interrupted at every part, and go on."""

import signal
import time
from pathlib import Path

import pytest
from launch import CONFIG, Command, cwm_rl, gone, report_of

from rl.ledger import Reader
from rl.ledger.audit import audit

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(600)]

# Small batches: what is shown here does not hang on their size.
SMALL = ("--set", "algorithm.token_budget=4000")


def _train(runs: Path, *settings: str) -> tuple[str, ...]:
    return ("train", CONFIG, "--set", f"run.directory={runs}", "--set", "run.id=run", *SMALL, *settings)


def _assert_whole(directory: Path, steps: int) -> None:
    with Reader(directory) as reader:
        assert reader.step == steps
    found = audit(directory)
    assert found.ok, found.problems


def test_killed_worker_is_replaced_and_a_killed_learner_resumed(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with cwm_rl(tmp_path / "log", *_train(tmp_path)) as command:
        command.wait_for("step 1/5")
        command.find("ray::RolloutWorker").kill()
        command.wait_for("step 3/5")
        command.find("ray::Learner").kill()
        assert command.finish() == 1
        assert "learner died" in command.output
        assert f"cwm-rl resume {directory}" in command.output
        assert "Traceback" not in command.output
    assert audit(directory).ok
    # Goes on with caches computed anew at every swap: then even replies that saw one can be compared exactly.
    with cwm_rl(tmp_path / "log2", "resume", str(directory), "--set", "rollout.engine.kv=recompute") as command:
        assert command.finish() == 0, command.output
    _assert_whole(directory, 5)
    report = report_of(directory)
    assert report["logprob_gap"]["tokens"] > 0
    assert report["logprob_gap"]["max"] <= 1e-4
    assert report["dropped"]["worker_lost"] > 0
    assert any("worker-0" in fault for fault in report["faults"])


def test_killed_driver_then_resume_with_a_killed_engine(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with cwm_rl(tmp_path / "log", *_train(tmp_path)) as command:
        command.wait_for("step 3/5")
        below = command.tree()
        command.process.kill()
        command.finish()
    assert gone(below, 10) == []
    assert audit(directory).ok
    with cwm_rl(tmp_path / "log2", "resume", str(directory)) as command:
        command.wait_for("step 4/5")
        command.find("VLLM::EngineCore").kill()
        assert command.finish() == 0, command.output
    _assert_whole(directory, 5)


def test_ctrl_c_ends_in_good_order(tmp_path: Path) -> None:
    with cwm_rl(tmp_path / "log", *_train(tmp_path)) as command:
        command.wait_for("step 1/5")
        _interrupt(command, 1, tmp_path, seconds=10)


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    with cwm_rl(tmp_path / "log", *_train(tmp_path)) as command:
        command.wait_for("starting the learner")
        time.sleep(5)  # actors are starting, a moment as awkward as any
        _interrupt(command, 2, tmp_path, seconds=2)


def _interrupt(command: Command, signals: int, runs: Path, *, seconds: float) -> None:
    below, start = command.tree(), time.monotonic()
    for _ in range(signals):
        command.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert command.finish(20) == 130
    assert time.monotonic() - start < seconds
    assert f"go on with: cwm-rl resume {runs / 'run'}" in command.output
    assert "Traceback" not in command.output
    assert gone(below, 5) == []
    assert audit(runs / "run").ok
