"""The lag study: which runs it takes, which it has already, and what it says of them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes import config_of
from test_controls import EVALUATED, Executed

from rl.config import ConfigError
from rl.ledger import Ledger
from rl.study import Course, Kind, lines, run_study

TWO = {"lags": (0, 4), "corrections": ("none",), "caches": ("keep",), "seeds": (0, 1)}


def test_every_run_is_taken_once_and_those_that_are_there_are_not(tmp_path: Path) -> None:
    config = config_of(*EVALUATED, f"run.directory={tmp_path}")
    executed = Executed(tmp_path, interrupted_at=3)
    assert run_study(config, executed, **TWO) is None
    assert [(one.algorithm.max_lag, one.run.seed) for one in executed.configs] == [(0, 0), (4, 0), (0, 1)]
    shutil.rmtree(tmp_path / "lag-0-none-keep-0")  # what the study needs of it is in its own file
    known = tmp_path / "study-lag.json"
    courses = json.loads(known.read_text())
    del courses["runs"]["lag-4-none-keep-0"]  # killed before it was written down: the run itself is there
    known.write_text(json.dumps(courses))
    again = Executed(tmp_path)
    table = run_study(config, again, **TWO)
    assert [one.run.id for one in again.configs] == ["lag-0-none-keep-1", "lag-4-none-keep-1"]
    assert table is not None
    assert len(table.splitlines()) == 4
    assert (tmp_path / "study-lag.md").read_text() == f"{table}\n"
    assert (tmp_path / "study-lag.png").read_bytes().startswith(b"\x89PNG")
    other = config_of(*EVALUATED, f"run.directory={tmp_path}", "learner.lr=1e-9")
    with pytest.raises(ConfigError, match="was taken of another configuration"):
        run_study(other, again, **TWO)


def test_a_word_that_is_none_is_found_before_anything_runs(tmp_path: Path) -> None:
    executed = Executed(tmp_path)
    with pytest.raises(ConfigError, match="correction"):
        run_study(
            config_of(*EVALUATED, f"run.directory={tmp_path}"), executed, **TWO | {"corrections": ("none", "typo")}
        )
    assert executed.configs == []


def test_without_lag_there_is_nothing_to_vary(tmp_path: Path) -> None:
    executed = Executed(tmp_path)
    both = {"corrections": ("none", "decoupled"), "caches": ("keep", "recompute"), "seeds": (0,)}
    run_study(config_of(*EVALUATED, f"run.directory={tmp_path}"), executed, lags=(0, 1), **both)
    assert [one.run.id for one in executed.configs] == [
        "lag-0-none-keep-0",
        *(f"lag-1-{how}-0" for how in ("none-keep", "none-recompute", "decoupled-keep", "decoupled-recompute")),
    ]


def test_a_run_that_still_runs_is_left_alone(tmp_path: Path) -> None:
    running = tmp_path / "lag-0-none-keep-0"
    running.mkdir()
    with Ledger.create(running, running.name, {}), pytest.raises(ConfigError, match="another process writes"):
        run_study(config_of(*EVALUATED, f"run.directory={tmp_path}"), Executed(tmp_path), **TWO)
    assert running.is_dir()


def test_a_row_has_means_and_the_range_of_gains() -> None:
    def one(after: float, seconds: Sequence[float]) -> Course:
        return Course((0.0,) * len(seconds), seconds, 0.25, after, 0.01)

    *_, row = lines({Kind(4, "decoupled", "keep"): [one(0.5, (0, 2, 4)), one(0.75, (0, 3, 6))]})
    assert row == "| 4 | decoupled | keep | 0.25 → 0.62 | +0.25 to +0.50 | 2.5 | 1.0% |"


def test_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \[eval\]"):
        run_study(config_of(), Executed(tmp_path))
