"""Ctrl-C, once and twice."""

import signal
import time
from pathlib import Path

import pytest
from launch import Command, cwm_rl, gone, train

from rl.ledger.audit import audit

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(600)]


def test_ctrl_c_ends_in_good_order(tmp_path: Path) -> None:
    with cwm_rl(tmp_path / "log", *train(tmp_path)) as command:
        command.wait_for("step 1/4")
        _interrupt(command, 1, tmp_path, seconds=10)


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    with cwm_rl(tmp_path / "log", *train(tmp_path)) as command:
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
