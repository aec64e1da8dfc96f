"""A worker and a learner that are killed. One file for each long test: a file is what a test process takes."""

import time
from pathlib import Path

import pytest
from launch import assert_whole, cwm_rl, report_of, train

from rl.ledger import DropReason, Reader
from rl.ledger.audit import audit

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(600)]


def dropped(directory: Path, reason: DropReason) -> int:
    with Reader(directory) as reader:
        return reader.counts().dropped[reason]


def test_killed_worker_is_replaced_and_a_killed_learner_resumed(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with cwm_rl(tmp_path / "log", *train(tmp_path), "--set", "run.steps=8") as command:
        command.wait_for("step 1/8")
        command.find("ray::RolloutWorker").kill()
        lost = time.monotonic()
        while not dropped(directory, DropReason.WORKER_LOST):  # written once another worker is up
            assert command.process.poll() is None and time.monotonic() - lost < 200, command.output
            time.sleep(0.2)
        command.find("ray::Learner").kill()
        assert command.finish() == 1
        assert "learner died" in command.output
        assert f"cwm-rl resume {directory}" in command.output
        assert "Traceback" not in command.output
    assert audit(directory).ok
    # Goes on with caches computed anew at every swap: then even replies that saw one can be compared exactly. And with
    # two workers that share no file with the learner.
    others = ("rollout.engine.kv=recompute", "rollout.engine.transport=ray", "rollout.workers=2", "rollout.slots=8")
    changed = [word for setting in others for word in ("--set", setting)]
    with cwm_rl(tmp_path / "log2", "resume", str(directory), *changed) as command:
        assert command.finish() == 0, command.output
    assert_whole(directory, 8)
    report = report_of(directory)
    assert report["logprob_gap"]["tokens"] > 0
    assert report["logprob_gap"]["max"] <= 1e-4
    assert all(report["time"][worker]["swapping"] > 0 for worker in ("worker-0", "worker-1"))
    assert report["dropped"]["worker_lost"] > 0
    assert any("worker-0" in fault for fault in report["faults"])
