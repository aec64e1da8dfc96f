"""Random lives against a model in plain dictionaries: states, steps and versions agree after every call."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rl.ledger import RETRIABLE, DropReason, Ledger, LedgerError, Reader, State
from rl.ledger.audit import audit
from rollout_workers.trajectory import Completion, Episode, EpisodeKey, StopReason, Trajectory
from verifiers.task import Submission
from verifiers.verdict import Outcome, Verdict

UNFINISHED = {State.DISPATCHED, State.SAMPLED}
PICK = st.integers(0, 10**6)
FAILED = [Outcome.INFRA_ERROR, Outcome.VERIFIER_ERROR, Outcome.INVALID_TASK]


class Lives(RuleBasedStateMachine):
    """`states` is what every episode should be; `history` the keys of every step that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name)
        self.ledger = Ledger.create(self.path, "run", {})
        self.states: dict[EpisodeKey, State] = {}
        self.open: set[int] = set()
        self.history: list[list[EpisodeKey]] = []
        self.published = 0

    def teardown(self) -> None:
        self.ledger.release()
        self.directory.cleanup()

    @initialize()
    def first_version(self) -> None:
        assert self.ledger.publish(0) == 0

    def pick(self, number: int) -> EpisodeKey:
        keys = sorted(self.states)
        return keys[number % len(keys)]

    def ready(self) -> list[EpisodeKey]:
        return sorted(k for k, state in self.states.items() if state == State.SCORED and k.group not in self.open)

    @rule(size=st.integers(1, 3))
    def dispatch(self, size: int) -> None:
        group = self.ledger.dispatch("task", "math", size, 4e9)
        self.open.add(group)
        self.states |= {EpisodeKey(group, index, 0): State.DISPATCHED for index in range(size)}

    @precondition(lambda self: self.states)
    @rule(number=PICK, older=st.booleans())
    def sampled(self, number: int, older: bool) -> None:
        key = self.pick(number)
        versions = (0, self.published) if older else (self.published,)
        completions = tuple(Completion((number % 97,), (-0.5,), version) for version in versions)
        episode = Episode(key, "task", "math", (Trajectory(completions),), StopReason.DONE, Submission("x"))
        fresh = self.states[key] == State.DISPATCHED
        assert self.ledger.sampled(episode) is fresh
        if fresh:
            self.states[key] = State.SAMPLED

    @precondition(lambda self: self.states)
    @rule(number=PICK, reward=st.none() | st.floats(-1, 1), failed=st.sampled_from(FAILED))
    def scored(self, number: int, reward: float | None, failed: Outcome) -> None:
        key = self.pick(number)
        verdict = Verdict(failed) if reward is None else Verdict.scored(reward, correct=reward > 0)
        if self.states[key] == State.DISPATCHED:
            return
        fresh = self.states[key] == State.SAMPLED
        assert self.ledger.scored(key, verdict) is fresh
        if fresh:
            self.states[key] = State.DROPPED if reward is None else State.SCORED

    @precondition(lambda self: self.states)
    @rule(number=PICK, reason=st.sampled_from(sorted(RETRIABLE)))
    def retry(self, number: int, reason: DropReason) -> None:
        key = self.pick(number)
        successor = self.ledger.retry(key, reason)
        assert (successor is not None) == (self.states[key] in UNFINISHED)
        if successor is not None:
            self.states |= {key: State.DROPPED, successor: State.DISPATCHED}

    @precondition(lambda self: self.states)
    @rule(number=PICK, reason=st.sampled_from([DropReason.STALE, DropReason.GIBBERISH, DropReason.ZERO_ADVANTAGE]))
    def drop(self, number: int, reason: DropReason) -> None:
        key = self.pick(number)
        pending = self.states[key] not in (State.TRAINED, State.DROPPED)
        assert self.ledger.drop([key], reason) == pending
        if pending:
            self.states[key] = State.DROPPED

    @precondition(lambda self: self.states)
    @rule(number=PICK)
    def close(self, number: int) -> None:
        group = self.pick(number).group
        members = [member.episode.key for member in self.ledger.close(group).members]
        self.open.discard(group)
        for key in [key for key, state in self.states.items() if key.group == group and state in UNFINISHED]:
            self.states[key] = State.DROPPED
        assert members == sorted(k for k, state in self.states.items() if k.group == group and state == State.SCORED)

    @precondition(lambda self: self.ready())
    @rule(count=st.integers(1, 4))
    def commit_and_publish(self, count: int) -> None:
        keys = self.ready()[:count]
        self.ledger.commit(len(self.history) + 1, keys, {})
        self.history.append(keys)
        self.states |= dict.fromkeys(keys, State.TRAINED)
        self.published += 1
        assert self.ledger.publish(len(self.history)) == self.published

    @precondition(lambda self: self.states)
    @rule(number=PICK)
    def only_the_ready_are_trained(self, number: int) -> None:
        key = self.pick(number)
        if key in self.ready():
            return
        try:
            self.ledger.commit(len(self.history) + 1, [key], {})
        except LedgerError:
            return
        raise AssertionError(f"{key} was trained, though it was {self.states[key]}")

    @rule(number=PICK)
    def rollback(self, number: int) -> None:
        step = number % (len(self.history) + 1)
        freed = [key for keys in self.history[step:] for key in keys]
        assert self.ledger.rollback(step) == len(freed)
        del self.history[step:]
        self.states |= dict.fromkeys(freed, State.SCORED)

    @rule()
    def resume(self) -> None:
        self.ledger.release()
        self.ledger = Ledger.open(self.path)
        running = [key for key, state in self.states.items() if state in UNFINISHED]
        assert self.ledger.interrupt() == len(running)
        self.states |= dict.fromkeys(running, State.DROPPED)
        self.open.clear()

    @invariant()
    def everything_agrees(self) -> None:
        assert self.ledger.step == len(self.history)
        with Reader(self.path) as reader:
            assert {record.key: record.state for record in reader.episodes(payloads=False)} == self.states
            assert reader.balanced
        ready = [member.episode.key for group in self.ledger.ready() for member in group.members]
        assert ready == self.ready()
        found = audit(self.path)
        assert found.ok, found.problems


TestLives = pytest.mark.slow(Lives.TestCase)
TestLives.settings = settings(max_examples=25, stateful_step_count=30)
