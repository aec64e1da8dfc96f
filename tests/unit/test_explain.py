"""What held a run up: by the waits of its driver, and by what its slots did meanwhile."""

import json
from pathlib import Path
from typing import Any

import pytest

from rl import cli
from rl.reports.explain import explain


def run(*words: str) -> object:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    return stop.value.code


def report(folder: Path, driver: dict[str, float], slots: dict[str, float]) -> Path:
    content = {
        "seconds": {"training": 100.0},
        "time": {
            "driver": driver,
            "learner": {"forward": 10.0, "backward": 20.0},
            "worker-0": slots,
            "worker-1": slots,
        },
        "ledger": {"dispatched": 200, "trained": 150, "pending": 0, "balanced": True},
        "dropped": {"zero_advantage": 50, "stale": 0},
        "lag": {"0": 1, "2": 3},
    }
    (folder / "report.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("driver", "slots", "bottleneck"),
    [
        ({"the learner's step": 80.0, "a batch of scored groups": 10.0}, {"sampling": 50.0}, "learner"),
        ({"the learner's step": 10.0, "a batch of scored groups": 80.0}, {"sampling": 50.0, "tool": 9.0}, "sampling"),
        ({"the learner's step": 10.0, "a batch of scored groups": 80.0}, {"sampling": 5.0, "tool": 9.0}, "tool"),
        ({"the learner's step": 10.0, "a batch of scored groups": 80.0}, {"grading": 5.0}, "grading"),
        ({"the learner's step": 48.0, "a batch of scored groups": 45.0}, {"sampling": 5.0}, "balanced"),
        ({"the learner's step": 10.0, "a checkpoint": 60.0}, {"sampling": 5.0}, "checkpoint"),
        ({"the learner's step": 10.0, "the ledger's commit": 60.0}, {"sampling": 5.0}, "commit"),
        ({"a batch of scored groups": 80.0}, {"queued for a slot": 500.0, "sampling": 5.0, "tool": 9.0}, "tool"),
        ({"a batch of scored groups": 80.0}, {}, "sampling"),
        ({"a batch of scored groups": 80.0}, {"sampling": 5.0, "failed": 9.0}, "failed"),
        ({"a batch of scored groups": 80.0}, {"sampling": 5.0, "waiting for weights": 9.0}, "waiting for weights"),
        ({"weights from the learner": 30.0, "every worker's newest weights": 30.0}, {}, "weights"),
    ],
)
def test_the_bottleneck_is_what_was_waited_for(
    tmp_path: Path, driver: dict[str, float], slots: dict[str, float], bottleneck: str
) -> None:
    found = explain(report(tmp_path, driver, slots))
    assert found["bottleneck"] == bottleneck
    assert (found["trained"], found["dropped"], found["lag"]) == (0.75, {"zero_advantage": 0.25}, 1.5)


def test_it_is_said_in_words_and_for_programs(tmp_path: Path, capsys: Any) -> None:
    slots = {"sampling": 3.0, "tool": 1.0, "queued for a slot": 6.0, "queued for grading": 2.0}
    report(tmp_path, {"the learner's step": 80.0, "a batch of scored groups": 10.0}, slots)
    assert run("explain", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert said.startswith("What held it up: the learner. Of 100 s of training, 80% went to the learner's steps")
    assert "sampling 75%, tool 25%\n" in said
    assert "queued for a slot 75%, queued for grading 25%\n" in said
    assert "75% trained on; dropped: zero_advantage 25.0%; mean lag 1.5 versions" in said
    assert run("explain", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["bottleneck"] == "learner"


@pytest.mark.parametrize("content", [None, "{}", "[", '{"time": {}, "seconds": {"training": 1}}'])
def test_what_is_no_report_is_refused_in_a_sentence(tmp_path: Path, capsys: Any, content: str | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert run("explain", str(tmp_path)) == 2
    assert "report.json" in capsys.readouterr().err
