"""What goes into a batch, what is left out of it, and how many episodes may be started for it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.algorithm.batch import cut, teaching_tokens
from rl.algorithm.filters import Partition, gibberish, partition, stale, zero_advantage
from rl.algorithm.staleness import capacity, lag
from rl.ledger import DropReason
from rollout_workers.trajectory import (
    Completion,
    Context,
    Episode,
    EpisodeKey,
    Group,
    Scored,
    Segment,
    StopReason,
    Trajectory,
)
from verifiers.task import Submission
from verifiers.verdict import Verdict

KEY = EpisodeKey(1, 0, 0)


def episode(*segments: Segment, key: EpisodeKey = KEY) -> Episode:
    return Episode(key, "t", "math", (Trajectory((Context((1, 2)), *segments)),), StopReason.DONE, Submission("x"))


def completion(length: int, version: int = 0, token: int = 5, logprob: float = -1.0) -> Completion:
    return Completion((token,) * length, (logprob,) * length, version)


def group(*members: tuple[float, Completion], number: int = 1) -> Group:
    scored = [
        Scored(episode(segment, key=EpisodeKey(number, index, 0)), Verdict.scored(reward, correct=reward > 0))
        for index, (reward, segment) in enumerate(members)
    ]
    return Group(number, "t", "math", tuple(scored))


def sort(*groups: Group, newest: int = 0, max_lag: int | None = None, rare_from: int | None = None) -> Partition:
    return partition(groups, newest, max_lag=max_lag, rare_from=rare_from, vocab_size=100)


def test_lag_counts_from_the_last_sampled_token() -> None:
    spread = episode(completion(3, version=2), Context((9,)), completion(1, version=4), completion(0, version=6))
    assert lag(spread, newest=7) == 3
    assert lag(episode(), newest=7) == 0


@pytest.mark.parametrize(("max_lag", "expected"), [(2, True), (3, False), (None, False)])
def test_stale_is_more_than_the_limit(max_lag: int | None, expected: bool) -> None:
    assert stale(episode(completion(3, version=1), completion(1, version=4)), 7, max_lag) is expected


@pytest.mark.parametrize(
    ("token", "logprob", "expected"),
    [(90, -math.log(100) - 2.1, True), (90, -math.log(100) - 1.9, False), (89, -50.0, False)],
)
def test_gibberish_is_rare_and_unlikely(token: int, logprob: float, expected: bool) -> None:
    said = episode(completion(4), completion(1, token=token, logprob=logprob))
    assert gibberish(said, rare_from=90, vocab_size=100) is expected
    assert not gibberish(said, rare_from=None, vocab_size=100)


def test_unlikely_context_is_no_gibberish() -> None:
    assert not gibberish(episode(Context((99,)), completion(1)), rare_from=90, vocab_size=100)


def test_zero_advantage_is_equal_rewards() -> None:
    assert zero_advantage(group((0.1, completion(3)), (0.1, completion(70))))
    assert not zero_advantage(group((0.1, completion(3)), (0.2, completion(3))))


def test_partition_drops_members_then_groups() -> None:
    old, fresh, wild = completion(4, version=0), completion(4, version=5), completion(4, 5, token=95, logprob=-20.0)
    kept = group((1, fresh), (-1, fresh), (-1, old), number=1)
    small = group((1, fresh), (-1, wild), number=2)
    equal = group((1, fresh), (1, fresh), (-1, old), number=3)  # unequal only by its stale member
    gone = group((1, old), (-1, old), number=4)
    result = sort(kept, small, equal, gone, newest=5, max_lag=3, rare_from=90)

    assert [(g.id, len(g.members)) for g in result.kept] == [(1, 2)]
    reasons = {key: reason for keys, reason in result.dropped for key in keys}
    assert reasons == {
        EpisodeKey(1, 2, 0): DropReason.STALE,
        EpisodeKey(2, 0, 0): DropReason.GROUP_TOO_SMALL,
        EpisodeKey(2, 1, 0): DropReason.GIBBERISH,
        EpisodeKey(3, 0, 0): DropReason.ZERO_ADVANTAGE,
        EpisodeKey(3, 1, 0): DropReason.ZERO_ADVANTAGE,
        EpisodeKey(3, 2, 0): DropReason.STALE,
        EpisodeKey(4, 0, 0): DropReason.STALE,
        EpisodeKey(4, 1, 0): DropReason.STALE,
    }


MEMBER = st.tuples(st.sampled_from([-1.0, 0.0, 1.0]), st.builds(completion, st.integers(0, 5), st.integers(0, 6)))


@given(st.lists(st.lists(MEMBER, max_size=5), max_size=6), st.integers(0, 6))
def test_partition_loses_nobody_and_names_nobody_twice(
    seats: list[list[tuple[float, Completion]]], max_lag: int
) -> None:
    groups = [group(*members, number=number) for number, members in enumerate(seats)]
    result = sort(*groups, newest=6, max_lag=max_lag)
    kept = [member.episode.key for g in result.kept for member in g.members]
    dropped = [key for keys, _ in result.dropped for key in keys]
    assert sorted(kept + dropped) == sorted(member.episode.key for g in groups for member in g.members)
    assert all(not zero_advantage(g) and len(g.members) >= 2 for g in result.kept)
    assert all(lag(member.episode, 6) <= max_lag for g in result.kept for member in g.members)


def test_tokens_with_zero_advantage_do_not_count() -> None:
    # μ = 0: the member in the middle teaches nothing
    assert teaching_tokens(group((1, completion(8)), (0, completion(8)), (-1, completion(8)))) == 16


def test_cut_takes_whole_groups_until_the_budget_is_reached() -> None:
    groups = [group((1, completion(10)), (-1, completion(10)), number=number) for number in range(3)]
    assert [len(part) for part in cut(groups, 20)] == [1, 2]
    assert [len(part) for part in cut(groups, 21)] == [2, 1]
    assert [len(part) for part in cut(groups, 60)] == [3, 0]


def test_cut_takes_nothing_below_the_budget() -> None:
    groups = [group((1, completion(10)), (-1, completion(10)))]
    assert cut(groups, 21) == ([], groups)
    assert cut([], 1) == ([], [])


def test_capacity_by_hand() -> None:
    # at most (2 + 1)·8 may wait or run, so that the last of them is trained at the third step from now, lag 2
    assert capacity(max_lag=2, episodes_per_step=8, pending=10, running=6) == 8
    assert capacity(max_lag=2, episodes_per_step=8, pending=20, running=30) == 0
    assert capacity(max_lag=0, episodes_per_step=8, pending=0, running=0) == 8


@given(st.integers(0, 4), st.integers(1, 8), st.data())
def test_nobody_whom_capacity_admits_gets_too_old(max_lag: int, per_step: int, data: st.DataObject) -> None:
    """A queue in order of start: each step trains the oldest, while more are started, and publishes one version."""
    queue: list[int] = []
    version = 0

    def admit(pending: int) -> None:
        room = capacity(max_lag=max_lag, episodes_per_step=per_step, pending=pending, running=0)
        queue.extend([version] * data.draw(st.integers(0, room)))

    for _ in range(12):
        admit(len(queue))
        if len(queue) >= per_step:
            trained, queue = queue[:per_step], queue[per_step:]
            assert all(version - started <= max_lag for started in trained)
            admit(len(queue) + len(trained))
            version += 1
