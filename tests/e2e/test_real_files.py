"""Five steps on files that others made: GSM8K and HumanEval."""

from pathlib import Path

import pytest
from launch import ROOT, cwm_rl, report_of

from rl.ledger.audit import audit

DATA = ROOT.parent / "shared" / "data"

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(600)]


@pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the project (../shared/data)")
def test_five_steps_on_gsm8k_and_humaneval(tmp_path: Path) -> None:
    settings = [f"data.dir={DATA}", f"run.directory={tmp_path}", "run.id=files", "algorithm.token_budget=3000"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    with cwm_rl(tmp_path / "log", "train", "deploy/configs/nano-files.toml", *arguments) as command:
        assert command.finish(300) == 0, command.output
    report = report_of(tmp_path / "files")
    assert report["steps"] == 5
    assert report["ledger"]["balanced"]
    assert set(report["verdicts"]) == {"scored"}
    assert {domain for step in report["reward"] for domain in step["reward"]} == {"math", "code"}
    assert audit(tmp_path / "files").ok
