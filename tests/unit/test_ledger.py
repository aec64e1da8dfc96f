"""The ledger through its public doors: one life after another, and the laws that refuse."""

import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.ledger import DropReason, Ledger, LedgerError, Reader, State, schema
from rl.ledger.audit import audit
from rollout_workers.trajectory import Completion, Context, Episode, EpisodeKey, StopReason, Trajectory
from verifiers.task import Message, Submission
from verifiers.verdict import Outcome, Verdict

RIGHT = Verdict.scored(1.0, correct=True, detail="all tests pass", parts={"tests": 1.0})
WRONG = Verdict.scored(-1.0, correct=False)
LATER = 4e9


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path, "run-1", {"seed": 1}) as opened:
        opened.publish(0)
        yield opened
        found = audit(tmp_path)
        assert found.ok, found.problems


def episode(key: EpisodeKey, *versions: int) -> Episode:
    """Three sampled tokens a version, in one turn."""
    completions = (Completion((7, 8, 9), (-0.1, -0.25, -2.5), version) for version in versions or (0,))
    trajectory = Trajectory((Context((1, 2)), *completions, Context((3,))))
    return Episode(
        key, "task", "math", (trajectory,), StopReason.DONE, Submission("x", files={"a": b"\0"}), {"tool": 0.5}
    )


def group_of(ledger: Ledger, size: int = 2) -> list[EpisodeKey]:
    """A closed group, all of it scored."""
    group = ledger.dispatch("task", "math", size, LATER)
    keys = [EpisodeKey(group, index, 0) for index in range(size)]
    for key in keys:
        assert ledger.sampled(episode(key, ledger.version))
        assert ledger.scored(key, RIGHT)
    ledger.close(group)
    return keys


def train(ledger: Ledger) -> list[EpisodeKey]:
    keys = group_of(ledger)
    ledger.commit(ledger.step + 1, keys, {"loss": 0.5})
    ledger.publish(ledger.step)
    return keys


def pending(ledger: Ledger) -> dict[State, int]:
    with Reader(ledger.path) as reader:
        assert reader.balanced
        return dict(reader.counts().pending)


def dropped(ledger: Ledger) -> dict[DropReason, int]:
    with Reader(ledger.path) as reader:
        return {reason: count for reason, count in reader.counts().dropped.items() if count}


def test_the_solve_rate_of_a_task_is_over_all_its_graded_episodes(ledger: Ledger) -> None:
    assert ledger.solve_rate("task") is None
    group = ledger.dispatch("task", "math", 3, LATER)
    assert ledger.solve_rate("task") is None
    for index, verdict in enumerate((RIGHT, WRONG, WRONG)):
        key = EpisodeKey(group, index, 0)
        ledger.sampled(episode(key, 0))
        ledger.scored(key, verdict)
    assert ledger.solve_rate("task") == pytest.approx(1 / 3)
    assert ledger.solve_rate("another") is None
    ledger.close(group)
    group_of(ledger, 3)
    assert ledger.solve_rate("task") == pytest.approx(4 / 6)


def test_a_life_from_dispatch_to_training(ledger: Ledger) -> None:
    group = ledger.dispatch("task", "math", 1, LATER)
    key = EpisodeKey(group, 0, 0)
    assert ledger.state(key) == State.DISPATCHED
    ledger.sampled(episode(key, 0))
    ledger.scored(key, RIGHT)
    members = ledger.close(group).members
    assert [(member.episode, member.verdict) for member in members] == [(episode(key, 0), RIGHT)]
    ledger.commit(1, [key], {"loss": 0.5, "nonsense": math.nan})

    with Reader(ledger.path) as reader:
        (record,) = reader.episodes(state=State.TRAINED)
        assert (record.key, record.task_id, record.lineage, record.step) == (key, "task", 0, 1)
        assert (record.episode, record.verdict) == (episode(key, 0), RIGHT)
        (step,) = reader.steps()
        assert (step.step, step.version, step.episodes, step.sampled_tokens) == (1, 0, 1, 3)
        assert step.stats == {"loss": 0.5, "nonsense": None}
        assert reader.counts().trained == 1
        assert (reader.run_id, reader.config) == ("run-1", {"seed": 1})


def test_what_comes_twice_changes_nothing(ledger: Ledger) -> None:
    key = EpisodeKey(ledger.dispatch("task", "math", 1, LATER), 0, 0)
    assert [ledger.sampled(episode(key)), ledger.sampled(episode(key))] == [True, False]
    assert [ledger.scored(key, RIGHT), ledger.scored(key, WRONG)] == [True, False]
    assert ledger.close(key.group) == ledger.close(key.group)
    (member,) = ledger.close(key.group).members
    assert member.verdict == RIGHT
    ledger.commit(1, [key], {})
    assert [ledger.sampled(episode(key)), ledger.scored(key, WRONG)] == [False, False]
    assert ledger.drop([key], DropReason.STALE) == 0
    assert ledger.state(key) == State.TRAINED


def test_a_retry_keeps_the_seat(ledger: Ledger) -> None:
    key = EpisodeKey(ledger.dispatch("task", "math", 1, LATER), 0, 0)
    ledger.sampled(episode(key))
    second = ledger.retry(key, DropReason.INFRA_ERROR, "the sandbox daemon is gone")
    assert second == EpisodeKey(key.group, 0, 1)
    assert ledger.retry(key, DropReason.INFRA_ERROR) is None
    assert not ledger.scored(key, RIGHT)
    assert ledger.sampled(episode(second))
    assert dropped(ledger) == {DropReason.INFRA_ERROR: 1}
    with pytest.raises(LedgerError, match="cannot be tried again after 'stale'"):
        ledger.retry(second, DropReason.STALE)
    ledger.close(key.group)
    assert ledger.retry(second, DropReason.WORKER_LOST) is None


def test_closing_leaves_stragglers_behind(ledger: Ledger) -> None:
    group_id = ledger.dispatch("task", "math", 3, LATER)
    keys = [EpisodeKey(group_id, index, 0) for index in range(3)]
    ledger.sampled(episode(keys[0]))
    ledger.scored(keys[0], WRONG)
    ledger.sampled(episode(keys[1]))
    group = ledger.close(group_id)
    assert [member.episode.key for member in group.members] == keys[:1]
    assert not ledger.sampled(episode(keys[2]))
    assert dropped(ledger) == {DropReason.DEADLINE: 2}


@pytest.mark.parametrize("outcome", [Outcome.INFRA_ERROR, Outcome.VERIFIER_ERROR, Outcome.INVALID_TASK])
def test_a_verdict_without_a_reward_is_no_member(ledger: Ledger, outcome: Outcome) -> None:
    key = EpisodeKey(ledger.dispatch("task", "math", 1, LATER), 0, 0)
    ledger.sampled(episode(key))
    ledger.scored(key, Verdict(outcome, detail="broken"))
    assert ledger.close(key.group).members == ()
    assert dropped(ledger) == {DropReason(outcome): 1}


def test_tampering_is_a_member_with_its_reward(ledger: Ledger) -> None:
    key = EpisodeKey(ledger.dispatch("task", "math", 1, LATER), 0, 0)
    ledger.sampled(episode(key))
    verdict = Verdict(Outcome.TAMPERED, -1.0, False)
    ledger.scored(key, verdict)
    assert [member.verdict for member in ledger.close(key.group).members] == [verdict]


def test_commit_is_all_or_nothing(ledger: Ledger) -> None:
    first, second = group_of(ledger), group_of(ledger)
    unscored = EpisodeKey(ledger.dispatch("task", "math", 1, LATER), 0, 0)
    ledger.sampled(episode(unscored))
    for step, keys, words in [
        (2, first, "after step 0"),
        (1, [], "no episode"),
        (1, [*first, unscored], f"{unscored} cannot be trained: it is sampled"),
        (1, [*first, first[0]], "it is trained"),
        (1, [EpisodeKey(99, 0, 0)], "no episode 99/0/0"),
    ]:
        with pytest.raises(LedgerError, match=words):
            ledger.commit(step, keys, {})
        assert (ledger.step, pending(ledger)[State.SCORED]) == (0, 4)
    ledger.commit(1, first, {})
    with pytest.raises(LedgerError, match="after step 1"):
        ledger.commit(1, second, {})


def test_a_member_of_an_open_group_is_not_trained(ledger: Ledger) -> None:
    key = EpisodeKey(ledger.dispatch("task", "math", 2, LATER), 0, 0)
    ledger.sampled(episode(key))
    ledger.scored(key, RIGHT)
    assert ledger.ready() == []
    with pytest.raises(LedgerError, match="its group is open"):
        ledger.commit(1, [key], {})


def test_a_verdict_needs_an_episode(ledger: Ledger) -> None:
    key = EpisodeKey(ledger.dispatch("task", "math", 1, LATER), 0, 0)
    with pytest.raises(LedgerError, match="before it was sampled"):
        ledger.scored(key, RIGHT)
    with pytest.raises(LedgerError, match="no group 77"):
        ledger.close(77)
    with pytest.raises(LedgerError, match="no episode 77/0/0"):
        ledger.sampled(episode(EpisodeKey(77, 0, 0)))
    with pytest.raises(LedgerError, match="at least one"):
        ledger.dispatch("task", "math", 0, LATER)


def test_versions_only_grow(ledger: Ledger) -> None:
    for step in (1, 2):
        train(ledger)
        assert (ledger.step, ledger.version) == (step, step)
    with pytest.raises(LedgerError, match="step 3 cannot be published: step 2 is committed"):
        ledger.publish(3)
    ledger.rollback(1)
    assert (ledger.step, ledger.version) == (1, 2)
    assert ledger.publish(1) == 3


def test_rollback_makes_work_pending_again(ledger: Ledger, tmp_path: Path) -> None:
    trained = [train(ledger) for _ in range(4)]
    for step in (0, 2, 4):
        ledger.checkpoint(step, tmp_path / f"step-{step}")
    assert ledger.rollback(2) == 4
    assert (ledger.step, ledger.lineage) == (2, 1)
    assert ledger.newest_checkpoint() == (2, tmp_path / "step-2")
    freed = [member.episode.key for group in ledger.ready() for member in group.members]
    assert freed == trained[2] + trained[3]
    ledger.commit(3, freed, {})
    assert ledger.rollback(3) == 0
    assert ledger.rollback(1) == 6
    assert (ledger.step, ledger.lineage) == (1, 3)
    with Reader(tmp_path) as reader:
        assert [(step.lineage, step.step) for step in reader.steps()] == [(0, 1)]
        assert reader.checkpoints() == [(0, tmp_path / "step-0")]
        assert reader.counts().trained == 2
    with pytest.raises(LedgerError, match="no step 2 to go back to"):
        ledger.rollback(2)


def test_checkpoints_are_where_the_run_lies_now(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    paths = [run / "checkpoints" / f"step-{step}" for step in (0, 1)]
    with Ledger.create(run, "run-1", {}) as ledger:
        ledger.checkpoint(0, paths[0])
    paths[0].mkdir(parents=True)
    moved = run.rename(tmp_path / "archive")
    with Reader(moved) as reader:
        assert reader.checkpoints() == [(0, moved / "checkpoints" / "step-0")]


def test_no_checkpoint_of_what_was_not_committed(ledger: Ledger) -> None:
    assert ledger.newest_checkpoint() is None
    with pytest.raises(LedgerError, match="the last step is 0"):
        ledger.checkpoint(1, "somewhere")


def test_a_resume_goes_on_where_the_driver_died(tmp_path: Path) -> None:
    with Ledger.create(tmp_path, "run-1", {}) as ledger:
        ledger.publish(0)
        keys = group_of(ledger)
        running = ledger.dispatch("task", "math", 2, LATER)
        ledger.sampled(episode(EpisodeKey(running, 0, 0)))
    with Ledger.open(tmp_path) as ledger:
        assert ledger.interrupt() == 2
        assert [member.episode.key for group in ledger.ready() for member in group.members] == keys
        assert dropped(ledger) == {DropReason.INTERRUPTED: 2}
        assert ledger.finish() == 2
        assert dropped(ledger) == {DropReason.INTERRUPTED: 2, DropReason.UNUSED: 2}
    assert audit(tmp_path).ok


def test_a_ledger_of_an_earlier_program_takes_the_reasons_of_today(tmp_path: Path) -> None:
    with Ledger.create(tmp_path, "run-1", {}) as ledger:
        ledger.publish(0)
        keys = group_of(ledger)
    made = sqlite3.connect(ledger.path, isolation_level=None)
    made.execute("PRAGMA writable_schema = ON")
    made.execute("UPDATE sqlite_schema SET sql = replace(sql, ?, '') WHERE name = 'episodes'", (", 'refused'",))
    made.close()
    earlier = sqlite3.connect(ledger.path)
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        earlier.execute("UPDATE episodes SET state = 'dropped', reason = 'refused'")
    earlier.close()
    for _ in range(2):
        with Ledger.open(tmp_path) as ledger:
            ledger.drop(keys, DropReason.REFUSED, "not finite")
    assert dropped(ledger) == {DropReason.REFUSED: 2}
    assert audit(tmp_path).ok


def test_versions_and_lags_of_what_was_trained(ledger: Ledger) -> None:
    train(ledger)
    group = ledger.dispatch("task", "math", 3, LATER)
    keys = [EpisodeKey(group, index, 0) for index in range(3)]
    for key, versions in zip(keys, [(0,), (0, 1), (1,)], strict=True):
        ledger.sampled(episode(key, *versions))
        ledger.scored(key, RIGHT)
    ledger.close(group)
    ledger.commit(2, keys, {})
    with Reader(ledger.path) as reader:
        assert reader.multi_version_fraction() == pytest.approx(1 / 5)
        assert reader.lags() == {0: 4, 1: 1}


def test_reading_while_writing_page_by_page(ledger: Ledger) -> None:
    keys = group_of(ledger, size=150)
    with Reader(ledger.path) as reader:
        records = reader.episodes(payloads=False)
        first = next(records)
        ledger.commit(1, keys, {})
        assert [first.key, *(record.key for record in records)] == keys
        assert first.episode is None
        assert reader.step == 1
        assert len(list(reader.episodes(step=1, group=keys[0].group))) == 150


def test_a_reader_cannot_write(ledger: Ledger) -> None:
    with Reader(ledger.path) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._connection.execute("DELETE FROM episodes")


def test_text_that_is_no_unicode_does_not_stop_the_run(ledger: Ledger) -> None:
    key = EpisodeKey(ledger.dispatch("\ud800", "math", 1, LATER), 0, 0)
    turns = (Message("user", "\udcff"),)
    bad = Episode(key, "\ud800", "math", (), StopReason.DONE, Submission("\udcff", turns, files={"\udcff": b"x"}))
    assert ledger.sampled(bad)
    assert ledger.scored(key, Verdict.scored(0.0, correct=False, detail="\udcff; DROP TABLE episodes; \0" * 1000))
    ledger.fault("worker'", "\udcff", "x\0")
    (member,) = ledger.close(key.group).members
    assert member.episode.submission == Submission("?", (Message("user", "?"),), files={"?": b"x"})
    with Reader(ledger.path) as reader:
        assert [fault.actor for fault in reader.faults()] == ["worker'"]


def test_a_part_that_is_no_number_stays_none(ledger: Ledger) -> None:
    key = EpisodeKey(ledger.dispatch("task", "math", 1, LATER), 0, 0)
    ledger.sampled(episode(key))
    ledger.scored(key, Verdict.scored(0.0, correct=False, parts={"good": 0.5, "bad": math.nan}))
    (member,) = ledger.close(key.group).members
    assert member.verdict.parts["good"] == 0.5
    assert math.isnan(member.verdict.parts["bad"])


def test_numbers_come_back_exactly(ledger: Ledger) -> None:
    key = EpisodeKey(ledger.dispatch("task", "math", 1, LATER), 0, 0)
    logprobs = (-0.1, -1e-300, -math.inf, -0.0)
    segments = (Context(()), Completion((0, 2**31 - 1, 151_643, 7), logprobs, 0), Completion((), (), 0))
    whole = Episode(key, "task", "math", (Trajectory(segments), Trajectory(())), StopReason.TOKENS, Submission(""))
    ledger.sampled(whole)
    ledger.scored(key, RIGHT)
    assert ledger.close(key.group).members[0].episode == whole


def test_a_ledger_is_not_made_twice_and_not_opened_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no ledger at"):
        Ledger.open(tmp_path)
    with pytest.raises(LedgerError, match="no ledger at"):
        Reader(tmp_path)
    Ledger.create(tmp_path, "run", {}).release()
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(tmp_path, "run", {})


@pytest.mark.parametrize("opener", [Ledger.open, Reader, audit])
def test_what_is_no_ledger_of_ours_is_refused(tmp_path: Path, opener: object) -> None:
    assert callable(opener)
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("not a database " * 100)
    connection = sqlite3.connect(tmp_path / "newer")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for name, words in [("empty", "never finished"), ("text", "not a database"), ("newer", "has schema 99")]:
        with pytest.raises(LedgerError, match=words):
            opener(tmp_path / name)


def test_one_that_is_being_made_is_nothing_to_remove(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    with schema.lock(tmp_path / "new"), pytest.raises(LedgerError, match="is being made: look again"):
        Reader(tmp_path / "new")
    with pytest.raises(LedgerError, match="never finished"):
        Reader(tmp_path / "new")


def test_the_clock_may_jump_back(tmp_path: Path) -> None:
    with Ledger.create(tmp_path, "run", {}) as ledger:
        ledger.publish(0)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        connection.execute("UPDATE versions SET at = at + 1e6")  # as if the clock had been ahead
    connection.close()
    with Ledger.open(tmp_path) as ledger:
        train(ledger)
    assert audit(tmp_path).ok
