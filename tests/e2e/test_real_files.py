"""Five steps on files that others made: GSM8K and HumanEval."""

from pathlib import Path

import pytest
from launch import cwm_rl, report_of
from public_data import public

from rl.ledger.audit import audit

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(600)]


def test_five_steps_on_gsm8k_and_humaneval(tmp_path: Path) -> None:
    data = public("gsm8k_test.jsonl", "humaneval.jsonl.gz")
    settings = [f"data.dir={data}", f"run.directory={tmp_path}", "run.id=files", "algorithm.token_budget=3000"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    with cwm_rl(tmp_path / "log", "train", "deploy/configs/nano-files.toml", *arguments) as command:
        assert command.finish(300) == 0, command.output
    report = report_of(tmp_path / "files")
    assert report["steps"] == 5
    assert report["ledger"]["balanced"]
    assert set(report["verdicts"]) == {"scored"}
    assert {domain for step in report["reward"] for domain in step["reward"]} == {"math", "code"}
    assert audit(tmp_path / "files").ok
