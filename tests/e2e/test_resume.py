"""A driver that is killed, and a resumed run whose engine is."""

from pathlib import Path

import pytest
from launch import assert_whole, cwm_rl, gone, report_of, train
from safetensors.torch import load_file

from rl.learner.checkpoint import path_of
from rl.ledger.audit import audit

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(600)]


def test_killed_driver_then_resume_with_a_killed_engine(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    # After step 3 the newest checkpoint is of step 2. What has been sampled by then is enough for `max_lag` steps and
    # one at most, so that eight need another engine.
    longer = ("--set", "checkpoint.every=2", "--set", "run.steps=8")
    with cwm_rl(tmp_path / "log", *train(tmp_path), *longer) as command:
        command.wait_for("step 3/8")
        below = command.tree()
        command.process.kill()
        command.finish()
    assert gone(below, 10) == []
    assert audit(directory).ok
    with cwm_rl(tmp_path / "log2", "resume", str(directory)) as command:
        command.wait_for("fell back to step 2: ")
        command.wait_for("step 3/8")
        command.find("VLLM::EngineCore").kill()
        assert command.finish() == 0, command.output
    assert_whole(directory, 8)
    assert any("worker-0" in fault for fault in report_of(directory)["faults"])
    state = load_file(path_of(directory / "checkpoints", 8) / "trainer/optimizer.safetensors")
    steps = {name: int(value) for name, value in state.items() if name.endswith("/step")}
    assert steps and set(steps.values()) == {8}, "the optimiser went on from the checkpoint's state"
