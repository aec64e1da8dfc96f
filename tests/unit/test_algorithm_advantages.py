"""Advantages against references in float64, loop by loop."""

import statistics
from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rl.algorithm.advantages import ADVANTAGES, cwm

MEMBERS = st.lists(st.tuples(st.floats(-1, 1, width=32), st.integers(1, 5000)), min_size=2, max_size=16)


def slow_cwm(rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
    mean = sum(r * n for r, n in zip(rewards, lengths, strict=True)) / sum(lengths)
    return [r - mean for r in rewards]


def slow_dr_grpo(rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
    return [r - statistics.fmean(rewards) for r in rewards]


def slow_grpo(rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
    return [(r - statistics.fmean(rewards)) / (statistics.stdev(rewards) + 1e-6) for r in rewards]


def slow_rloo(rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
    others = [[r for j, r in enumerate(rewards) if j != i] for i in range(len(rewards))]
    return [r - statistics.fmean(rest) for r, rest in zip(rewards, others, strict=True)]


SLOW = {"cwm": slow_cwm, "grpo": slow_grpo, "dr_grpo": slow_dr_grpo, "rloo": slow_rloo}


def test_every_estimator_has_a_reference() -> None:
    assert SLOW.keys() == ADVANTAGES.keys()


@pytest.mark.parametrize("name", ADVANTAGES)
@given(members=MEMBERS)
def test_agrees_with_its_reference(name: str, members: list[tuple[float, int]]) -> None:
    rewards, lengths = zip(*members, strict=True)
    # Below this spread float32 cannot tell grpo's deviation from its rounding.
    assume(name != "grpo" or max(rewards) - min(rewards) > 1e-2)
    found = ADVANTAGES[name](torch.tensor(rewards), torch.tensor(lengths))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(SLOW[name](rewards, lengths), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ADVANTAGES)
@given(reward=st.floats(-1, 1, width=32), lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=16))
def test_equal_rewards_give_exact_zeros(name: str, reward: float, lengths: list[int]) -> None:
    assert ADVANTAGES[name](torch.full((len(lengths),), reward), torch.tensor(lengths)).tolist() == [0.0] * len(lengths)


@given(members=MEMBERS)
def test_cwm_is_centred_over_tokens(members: list[tuple[float, int]]) -> None:
    rewards, lengths = (torch.tensor(column) for column in zip(*members, strict=True))
    assert (cwm(rewards, lengths) * lengths).sum().item() / lengths.sum().item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ADVANTAGES)
@given(members=MEMBERS)
def test_the_order_of_members_does_not_matter(name: str, members: list[tuple[float, int]]) -> None:
    rewards, lengths = (torch.tensor(column) for column in zip(*members, strict=True))
    assume(name != "grpo" or (rewards.max() - rewards.min()).item() > 1e-2)
    turned = ADVANTAGES[name](rewards.flip(0), lengths.flip(0)).flip(0)
    torch.testing.assert_close(turned, ADVANTAGES[name](rewards, lengths), rtol=1e-3, atol=1e-4)


def test_cwm_by_hand() -> None:
    # μ = (1·100 − 1·300) / 400 = −0.5
    assert cwm(torch.tensor([1.0, -1.0]), torch.tensor([100, 300])).tolist() == [1.5, -0.5]


def test_cwm_without_a_single_token_is_zero() -> None:
    assert cwm(torch.tensor([1.0, -1.0]), torch.tensor([0, 0])).tolist() == [0.0, 0.0]
