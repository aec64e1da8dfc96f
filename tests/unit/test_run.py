"""What a run that goes on does with its evaluations, and when it ends."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import closed_group, config_of, new_ledger, tiny_model

from rl.config import AlgorithmConfig, LearnerConfig
from rl.driver.inbox import Batch, Inbox
from rl.driver.live import Live
from rl.driver.run import Run, fall_back
from rl.driver.waits import Waits
from rl.evaluation.plan import deadline
from rl.learner.checkpoint import path_of
from rl.learner.learner import Learner, LearnerSetup, StepRefused
from rl.ledger import DropReason, Ledger, Reader, State
from rl.prepare import RunError
from rl.train import train

STATS = {"entropy": 1.0, "grad_norm": 1.0}


class Nobody:
    """An actor, a fleet or a transport that has nothing to do."""

    async def call(self, method: str, *arguments: Any) -> None:
        """Done at once; only a checkpoint is asked for here."""
        assert method == "save"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    yield from new_ledger(tmp_path)


@pytest.fixture
def run(ledger: Ledger, tmp_path: Path) -> Iterator[Run]:
    config, waits, nobody = (
        config_of("data.generated=[{generator='math'}]", "data.sources=[]", "eval={}"),
        Waits(),
        Nobody(),
    )
    inbox = Inbox(config.algorithm, 300, ledger, 9, seed=0)
    live = Live(5, ledger, waits, str)
    yield Run(config, tmp_path, ledger, nobody, nobody, inbox, nobody, str, waits, live)  # type: ignore[arg-type]


async def test_a_step_outdates_the_evaluation_of_the_last_one(run: Run) -> None:
    for when in ("before", "after"):
        (run.directory / "eval").mkdir(exist_ok=True)
        (run.directory / "eval" / f"{when}.jsonl").touch()
    group = closed_group(run.ledger, 1.0, -1.0)
    await run.commit(1, Batch((group,), ()), dict(STATS))
    assert [path.name for path in (run.directory / "eval").iterdir()] == ["before.jsonl"]


async def test_a_batch_that_the_learner_refuses_is_out_and_too_many_in_a_row_end_the_run(run: Run) -> None:
    answers = iter([False, False, True, False, False, False])
    said: list[str] = []

    class Choosy:
        async def call(self, method: str, *arguments: Any) -> dict[str, float]:
            if not next(answers):
                raise StepRefused("loss nan")
            return dict(STATS)

    run.learner, run.say = Choosy(), said.append  # type: ignore[assignment]
    run.ledger.publish(0)
    batches = [Batch((closed_group(run.ledger, 1.0, -1.0),), ()) for _ in range(6)]
    assert [await run.learn(one) for one in batches[:5]] == [None, None, STATS, None, None]
    with pytest.raises(StepRefused, match="3 batches in a row were refused, at last for loss nan"):
        await run.learn(batches[5])
    assert said == ["loss nan; another batch is taken"] * 4
    with Reader(run.ledger.path) as reader:
        assert reader.counts().dropped[DropReason.REFUSED] == 10
        assert [fault.kind for fault in reader.faults()] == ["refused"] * 5
        assert all(record.episode is not None for record in reader.episodes())  # for a look
    assert [group.id for group in run.ledger.ready()] == [batches[2].groups[0].id]  # a resume meets none of them again


async def test_another_batch_is_taken_for_one_that_was_refused() -> None:
    class Steps:
        def __init__(self) -> None:
            self.calls: list[object] = []
            self.batches, self.stats = iter("ab"), iter([None, dict(STATS)])

        def remaining(self) -> Iterator[int]:
            yield 1

        async def take(self) -> str:
            return next(self.batches)

        async def learn(self, batch: str) -> dict[str, float] | None:
            return next(self.stats)

        async def commit(self, step: int, batch: str, stats: dict[str, float]) -> None:
            self.calls.append((step, batch, stats))

        async def publish(self) -> None:
            self.calls.append("publish")

    steps = Steps()
    await train(steps)  # type: ignore[arg-type]
    assert steps.calls == ["publish", (1, "b", STATS), "publish"]


async def test_what_was_before_is_not_evaluated_once_weights_were_published(run: Run) -> None:
    run.ledger.publish(0)
    await run.evaluate("before")
    assert not (run.directory / "eval").exists()


def test_no_step_begins_after_its_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    run.say = said.append
    run.config = config_of("run.steps=9", "run.seconds=10")
    now = iter((100.0, 100.0, 109.0, 111.0))
    monkeypatch.setattr("rl.driver.run.time", SimpleNamespace(monotonic=lambda: next(now)))
    assert list(run.remaining()) == [1, 2]
    assert said == [f"ended after 10 s (run.seconds), 2 of 9 steps; cwm-rl resume {run.directory} goes on"]


def test_where_no_checkpoint_can_be_read_nothing_is_thrown_away(run: Run, ledger: Ledger) -> None:
    fall_back(ledger, "base", str)  # nothing was trained: there is nothing to lose
    batch = Batch((closed_group(ledger, 1.0, -1.0),), ())
    ledger.commit(1, batch.keys, STATS)
    ledger.checkpoint(1, run.directory / "checkpoints" / "step-00000001")
    with pytest.raises(RunError, match="put its checkpoints back"):
        fall_back(ledger, "base", str)
    assert ledger.step == 1


def test_a_damaged_checkpoint_is_passed_over_and_what_was_trained_since_the_older_one_is_pending_again(
    run: Run, ledger: Ledger
) -> None:
    base = tiny_model(run.directory / "base")
    learner = Learner(LearnerSetup(str(base), False, "float32", 1.0, LearnerConfig(), AlgorithmConfig()))
    paths = [path_of(run.directory / "checkpoints", step) for step in (1, 2)]
    for step, path in enumerate(paths, 1):
        ledger.commit(step, Batch((closed_group(ledger, 1.0, -1.0),), ()).keys, STATS)
        learner.save(str(path), step)
        ledger.checkpoint(step, path)
    (paths[1] / "trainer/state.json").write_text("{")
    said: list[str] = []
    assert fall_back(ledger, str(base), said.append) == str(paths[0])
    assert ledger.step == 1
    assert said[1:] == ["fell back to step 1: 1 step(s) are taken again, and 2 episodes are pending again"]
    with Reader(ledger.path) as reader:
        assert reader.counts().pending[State.SCORED] == 2
        (fault,) = reader.faults()
        assert (fault.actor, fault.kind) == ("driver", "checkpoint") and str(paths[1]) in fault.detail


def test_an_evaluation_has_time_for_all_its_rounds() -> None:
    config = config_of("rollout.workers=2", "rollout.slots=4", "guard.group_seconds=10")
    assert deadline(config, 16) == 30
    assert deadline(config, 17) == 40
