"""Trajectories to rows, and rows to micro-batches."""

from collections import Counter
from dataclasses import replace

import numpy as np
from fakes import episode_of
from hypothesis import given
from hypothesis import strategies as st

from rl.learner.packing import Row, balanced_shares, pack, row, rows
from rollout_workers.trajectory import Completion, Context, EpisodeKey, Scored, Trajectory
from verifiers.verdict import Verdict

segments = st.lists(
    st.one_of(
        st.lists(st.integers(0, 9)).map(lambda tokens: Context(tuple(tokens))),
        st.lists(st.integers(0, 9)).flatmap(
            lambda tokens: st.builds(
                Completion,
                st.just(tuple(tokens)),
                st.just(tuple(-float(token) for token in tokens)),
                st.integers(0, 5),
            )
        ),
    )
)


@given(segments=segments, advantage=st.floats(-2, 2))
def test_a_row_derives_everything_from_its_segments(segments: list[Context | Completion], advantage: float) -> None:
    found = row(Trajectory(tuple(segments)), advantage)
    expected = [
        (token, isinstance(part, Completion), part.logprobs[i] if isinstance(part, Completion) else 0.0)
        for part in segments
        for i, token in enumerate(part.tokens)
    ]
    assert list(zip(found.tokens.tolist(), found.mask.tolist(), found.logprobs.tolist(), strict=True)) == expected
    versions = [part.version if isinstance(part, Completion) else -1 for part in segments for _ in part.tokens]
    assert (found.versions.tolist(), found.advantage) == (versions, advantage)


def test_members_of_no_advantage_are_left_out() -> None:
    members = [
        Scored(episode_of(EpisodeKey(1, index, 0), token=index), Verdict.scored(0, correct=False)) for index in range(3)
    ]
    found = rows(members, [0.5, 0.0, -0.5])
    assert [(one.tokens[-1], one.advantage) for one in found] == [(0, 0.5), (2, -0.5)]


@given(sizes=st.lists(st.integers(1, 40), max_size=30), count=st.integers(1, 8))
def test_shares_hold_every_row_once_and_about_as_many_tokens(sizes: list[int], count: int) -> None:
    shares = balanced_shares(numbered(sizes), count)
    assert len(shares) == count
    assert sorted(one.advantage for share in shares for one in share) == list(range(len(sizes)))
    tokens = [sum(len(one.tokens) for one in share) for share in shares]
    assert max(tokens) - min(tokens) <= max(sizes, default=0)
    assert all(shares) or len(sizes) < count


def test_all_parts_of_an_episode_are_trained_with_its_one_advantage() -> None:
    whole = episode_of(EpisodeKey(1, 0, 0), token=4)
    parts = (*whole.trajectories, *episode_of(EpisodeKey(1, 0, 0), token=5, length=1).trajectories)
    member = Scored(replace(whole, trajectories=parts), Verdict.scored(1, correct=True))
    assert member.episode.sampled_tokens == 4  # which its weight in the baseline is
    found = rows([member], [0.5])
    assert [(one.tokens.tolist(), one.advantage) for one in found] == [([1, 2, 4, 4, 4], 0.5), ([1, 2, 5], 0.5)]


def numbered(sizes: list[int]) -> list[Row]:
    """Rows whose tokens tell them apart; a few equal ones among them would not matter."""
    return [
        row(Trajectory((Context((index,)), Completion((index,) * (size - 1), (-float(index),) * (size - 1), 0))), index)
        for index, size in enumerate(sizes)
    ]


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30), budget=st.integers(1, 64))
def test_packing_keeps_every_row_once_and_to_its_budget(sizes: list[int], budget: int) -> None:
    batches = pack(numbered(sizes), budget)
    found: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        assert len(batch.tokens) == sum(batch.row_lengths)
        assert len(batch.tokens) <= budget or len(batch.row_lengths) == 1
        start = 0
        for length in batch.row_lengths:
            part = slice(start, start := start + length)
            (index,) = set(batch.tokens[part].tolist())
            assert batch.positions[part].tolist() == list(range(length))
            assert batch.mask[part].tolist() == [False] + [True] * (length - 1)
            assert batch.logprobs[part].tolist() == [0.0] + [-float(index)] * (length - 1)
            assert set(batch.advantages[part].tolist()) == {float(index)}
            found[index, length] += 1
    assert found == Counter(enumerate(sizes))


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_packing_wastes_no_batch(sizes: list[int]) -> None:
    """First-fit: no two batches would fit into one."""
    filled = sorted(len(batch.tokens) for batch in pack(numbered(sizes), 20))
    assert len(filled) < 2 or filled[0] + filled[1] > 20


def test_what_is_packed_has_the_types_that_torch_takes() -> None:
    (batch,) = pack(numbered([3]), 8)
    kinds = (batch.tokens.dtype, batch.positions.dtype, batch.mask.dtype, batch.logprobs.dtype, batch.advantages.dtype)
    assert kinds == (np.int64, np.int64, np.bool_, np.float32, np.float32)
