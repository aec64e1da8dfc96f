"""A driver that is killed, and a resumed run whose engine is."""

from pathlib import Path

import pytest
from launch import assert_whole, cwm_rl, gone, train

from rl.ledger.audit import audit

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(600)]


def test_killed_driver_then_resume_with_a_killed_engine(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with cwm_rl(tmp_path / "log", *train(tmp_path)) as command:
        command.wait_for("step 2/4")
        below = command.tree()
        command.process.kill()
        command.finish()
    assert gone(below, 10) == []
    assert audit(directory).ok
    with cwm_rl(tmp_path / "log2", "resume", str(directory)) as command:
        command.wait_for("step 3/4")
        command.find("VLLM::EngineCore").kill()
        assert command.finish() == 0, command.output
    assert_whole(directory, 4)
