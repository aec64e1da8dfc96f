"""Which sampled tokens engine and learner can be compared on."""

import pytest

from rl.learner.exactness import Gap, exact_rows, summarise
from rollout_workers.trajectory import Completion, Context, Episode, EpisodeKey, Segment, StopReason, Trajectory
from verifiers.task import Submission


def said(version: int, length: int = 2) -> Completion:
    return Completion((7,) * length, (-1.0,) * length, version)


def episode(*segments: Segment) -> Episode:
    return Episode(
        EpisodeKey(1, 0, 0), "t", "math", (Trajectory((Context((1,)), *segments)),), StopReason.DONE, Submission("")
    )


SWAPPED = episode(said(3), Context((9,)), said(3), said(4), Context((9,)), said(4, 1))
"""Three replies: one under version 3, one that saw the swap to 4, one under 4."""


def test_a_kept_cache_leaves_out_replies_that_saw_a_swap() -> None:
    found = exact_rows([SWAPPED], recompute=False)
    assert set(found) == {3, 4}
    (row,) = found[3]
    assert row.versions.tolist() == [-1, 3, 3, -1, -1, -1, -1, -1, -1, 4]
    assert row.mask.sum() == 7


def test_a_recomputed_cache_includes_them() -> None:
    (row,) = exact_rows([SWAPPED], recompute=True)[4]
    assert row.versions.tolist() == [-1, 3, 3, -1, 3, 3, 4, 4, -1, 4]


def test_an_episode_with_nothing_exact_is_of_no_version() -> None:
    only_swapped = episode(said(0), said(1))
    assert exact_rows([only_swapped], recompute=False) == {}
    assert set(exact_rows([only_swapped], recompute=True)) == {0, 1}
    assert exact_rows([], recompute=True) == {}


def test_a_few_episodes_a_version_are_enough() -> None:
    found = exact_rows([episode(said(0))] * 100 + [episode(said(1))], recompute=False)
    assert 0 < len(found[0]) < 100
    assert len(found[1]) == 1


def test_only_the_wanted_versions_are_kept() -> None:
    assert set(exact_rows([SWAPPED, episode(said(5))], recompute=False, of={4, 9})) == {4}


def test_the_gap_is_the_worst_of_all_versions() -> None:
    assert summarise({0: (1e-6, 10), 1: (3e-6, 5), 2: (0.0, 0)}) == Gap(3e-6, 15, {0: 1e-6, 1: 3e-6})
    assert summarise({2: (0.0, 0)}) is None
    assert summarise({}) is None


@pytest.mark.parametrize("recompute", [True, False])
def test_every_exact_token_keeps_its_recorded_logprob(recompute: bool) -> None:
    for rows in exact_rows([SWAPPED], recompute=recompute).values():
        for row in rows:
            assert (row.logprobs[row.versions >= 0] == -1.0).all()
            assert row.mask[row.versions >= 0].all()
