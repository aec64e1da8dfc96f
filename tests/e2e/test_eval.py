"""`cwm-rl eval` on a real engine, and what it leaves behind."""

import json
from pathlib import Path

import pytest
from launch import cwm_rl, gone

from rl.evaluation import evaluate
from rl.init_model import InitModel, init_model

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(600)]

DOMAINS = ("code", "math", "repair", "trace")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One that knows nothing, with less context than the built-in limits."""
    init_model(InitModel(layers=4, context=512), tmp_path / "model")
    return tmp_path / "model"


def test_from_beginning_to_end(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "below" / "out"
    with cwm_rl(tmp_path / "log", "eval", str(model), "--out", str(out), "-n", "3", "-k", "2") as command:
        command.wait_for("bubblewrap works")
        processes = command.tree()
        assert command.finish() == 0, command.output
    assert not gone(processes)
    said, samples = command.output, evaluate.read(out / "episodes.jsonl")
    assert "Traceback" not in said
    assert len(samples) == 2 * 3 * len(DOMAINS)
    assert {sample.outcome for sample in samples} == {"scored"}, [sample.detail for sample in samples]
    found = json.loads((out / "eval.json").read_text())
    assert tuple(found["eval"]) == DOMAINS
    for domain, rates in found["eval"].items():
        assert (rates["tasks"], rates["samples"], rates["failed"], rates["pass@k"]["k"]) == (3, 6, 0, 2)
        assert rates["low"] <= rates["pass@1"] <= rates["high"]
        assert f"\n{domain}" in said
    assert {source["limits"]["tokens"] for source in found["sources"]} == {384, 512}
    assert found["faults"] == []
    for one in found["worth_reading"]:
        assert samples[one["line"] - 1].task_id == one["task_id"]
        assert f"episodes.jsonl:{one['line']}  {one['task_id']}" in said
