"""The controls: what they change of a run, and what they say of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import closed_group, config_of, new_ledger

from rl.algorithm.controls import shuffled
from rl.config import Config, ConfigError
from rl.controls import run_controls
from rl.driver.inbox import Batch, Inbox
from rl.ledger import Ledger
from rl.reports.report import batch_stats, build
from rollout_workers.trajectory import Group

LEARNED = {"entropy": 5.5, "kl_k3": 0.01, "clip_fraction": 0.0, "grad_norm": 0.25}
EVALUATED = ("eval.tasks=2", "run.id=mine", "data.sources=[]", "data.generated=[{generator='math'}]")
SHARE = {"pass@1": 0.25, "low": 0.2, "high": 0.31, "tasks": 2, "samples": 2}
EVAL = {"before": {"math": SHARE}, "after": {"math": SHARE | {"pass@1": 0.5, "high": 0.6}}}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    yield from new_ledger(tmp_path)


class Executed:
    """Takes a run of one step without learning anything, and evaluates it by heart."""

    def __init__(self, root: Path, interrupted_at: int | None = None) -> None:
        self._root, self._interrupted_at = root, interrupted_at
        self.configs: list[Config] = []

    def __call__(self, config: Config) -> tuple[Path, dict[str, Any]] | None:
        self.configs.append(config)
        directory = self._root / str(config.run.id)
        directory.mkdir()
        if len(self.configs) == self._interrupted_at:
            return None
        with Ledger.create(directory, directory.name, {}) as ledger:
            ledger.publish(0)
            batch = Batch((closed_group(ledger, 1.0, -1.0),), ())
            ledger.commit(1, batch.keys, LEARNED | batch_stats(batch, 0))
        seconds = {"startup": 1.0, "training": 1.0}
        report = build(directory, 0.0, seconds, {}, None, "bubblewrap works.", ()) | {"eval": EVAL}
        (directory / "report.json").write_text(json.dumps(report))
        return directory, report


@pytest.mark.slow
def test_each_control_takes_the_learning_out_and_every_report_has_both(tmp_path: Path) -> None:
    executed = Executed(tmp_path)
    words = run_controls(config_of(*EVALUATED), executed)
    still, dealt = executed.configs
    assert (still.run.id, still.learner.lr, still.algorithm.shuffle_rewards) == ("mine-lr-0", 0, False)
    assert (dealt.run.id, dealt.learner.lr > 0) == ("mine-shuffled-rewards", True)
    assert dealt.algorithm.shuffle_rewards
    assert {one.eval.samples for one in executed.configs if one.eval} == {4}, "chance alone changes little"
    assert words is not None
    assert words.splitlines() == [
        "control lr 0, math: 0.250 before, 0.500 after, +0.250",
        "control shuffled rewards, math: 0.250 before, 0.500 after, +0.250",
    ]
    for config in executed.configs:
        directory = tmp_path / str(config.run.id)
        written = json.loads((directory / "report.json").read_text())
        assert written["run"] == config.run.id
        assert written["controls"] == dict.fromkeys(("lr 0", "shuffled rewards"), EVAL)
        assert (directory / "report.html").exists()


def test_an_interrupted_control_ends_them(tmp_path: Path) -> None:
    executed = Executed(tmp_path, interrupted_at=1)
    assert run_controls(config_of(*EVALUATED), executed) is None
    assert len(executed.configs) == 1


def test_without_an_evaluation_there_is_nothing_to_compare(tmp_path: Path) -> None:
    executed = Executed(tmp_path)
    with pytest.raises(ConfigError, match=r"has no \[eval\]"):
        run_controls(config_of(), executed)
    assert executed.configs == []


def rewards(group: Group) -> list[float | None]:
    return [member.verdict.reward for member in group.members]


def test_rewards_are_dealt_out_anew_within_their_group(ledger: Ledger) -> None:
    groups = [closed_group(ledger, 1.0, 2.0, 3.0, 4.0) for _ in range(20)]
    dealt = [shuffled(group, 0) for group in groups]
    for before, after in zip(groups, dealt, strict=True):
        assert [one.episode for one in after.members] == [one.episode for one in before.members]
        assert sorted(map(float, filter(None, rewards(after)))) == [1.0, 2.0, 3.0, 4.0]
    assert len({tuple(rewards(group)) for group in dealt}) > 5, "every group has a deal of its own"
    assert [rewards(shuffled(group, 0)) for group in groups] == [rewards(group) for group in dealt]


async def test_a_batch_is_trained_on_rewards_that_its_episodes_did_not_earn(ledger: Ledger) -> None:
    """Chance gives half of them their own: the advantage says nothing of who earned it."""
    config = config_of("algorithm.shuffle_rewards=true", "algorithm.token_budget=240").algorithm
    groups = [closed_group(ledger, 1.0, -1.0) for _ in range(40)]
    deals = set()
    for seed in (0, 0, 1):
        inbox = Inbox(config, 288, ledger, patience=9, seed=seed)
        for group in groups:
            await inbox.put(group)
        batch = await inbox.take()
        earned = [member.verdict.reward for group in batch.groups for member in group.members]
        kept = sum(row.advantage == reward for row, reward in zip(batch.rows, earned, strict=True)) / len(earned)
        assert 0.2 < kept < 0.8
        deals.add(tuple(row.advantage for row in batch.rows))
    assert len(deals) == 2, "each seed of a run has deals of its own"
