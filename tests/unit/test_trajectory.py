"""Segments, trajectories and episodes."""

import dataclasses

import pytest

from rollout_workers.trajectory import Completion, Context, Episode, EpisodeKey, StopReason, Trajectory
from verifiers.task import Submission


def test_a_completion_has_a_logprob_for_every_token() -> None:
    Completion((), (), 0)
    for tokens, logprobs in [((1, 2), (-0.5,)), ((), (-0.5,)), ((1,), ())]:
        with pytest.raises(ValueError, match=f"{len(tokens)} tokens with {len(logprobs)} log-probabilities"):
            Completion(tokens, logprobs, 0)


def test_a_trajectory_is_its_segments_end_to_end() -> None:
    first, second = Completion((3, 4), (-1.0, -2.0), 0), Completion((5,), (-3.0,), 1)
    whole = Trajectory((Context((1, 2)), first, second, Context((6,))))
    assert whole.tokens == (1, 2, 3, 4, 5, 6)
    assert len(whole) == 6
    assert list(whole.completions) == [first, second]
    assert len(Trajectory(())) == 0


def test_an_episode_counts_what_was_sampled_over_all_its_parts() -> None:
    parts = (
        Trajectory((Context((1,)), Completion((2, 3), (-1.0, -1.0), 4), Completion((2,), (-1.0,), 5))),
        Trajectory((Context((1,)), Completion((2,), (-1.0,), 5), Context((9,)), Completion((2,), (-1.0,), 7))),
    )
    episode = Episode(EpisodeKey(1, 2, 0), "t", "math", parts, StopReason.DONE, Submission(""))
    assert episode.sampled_tokens == 5
    assert episode.versions == (4, 5, 7)
    assert [completion.version for completion in episode.completions] == [4, 5, 5, 7]


def test_nothing_is_filled_in_later() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Context((1,)).tokens = (2,)  # type: ignore[misc]


def test_keys_are_written_and_sorted_as_people_expect() -> None:
    assert str(EpisodeKey(12, 3, 1)) == "12/3/1"
    assert sorted([EpisodeKey(2, 0, 0), EpisodeKey(1, 1, 0), EpisodeKey(1, 0, 1)])[0] == EpisodeKey(1, 0, 1)
