"""The clipped surrogate: against a slow reference, and by its properties."""

import math
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.algorithm.advantages import cwm
from rl.algorithm.losses import STATISTICS, clipped_surrogate, statistics

BOUNDS = {"low": 0.2, "high": 0.25}
CWM = BOUNDS | {"norm": 8.0}
TOKEN = st.tuples(st.floats(-4, 0, width=32), st.floats(-4, 0, width=32), st.floats(-2, 2, width=32), st.booleans())
TOKENS = st.lists(TOKEN, min_size=1, max_size=24)
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def tensors(tokens: list[tuple[float, float, float, bool]]) -> Batch:
    logp, behaviour, advantage, mask = zip(*tokens, strict=True)
    return torch.tensor(logp), torch.tensor(behaviour), torch.tensor(advantage), torch.tensor(mask)


def gradient(batch: Batch) -> Tensor:
    logp = batch[0].clone().requires_grad_()
    clipped_surrogate(logp, *batch[1:], **CWM).backward()
    assert logp.grad is not None
    return logp.grad


def slow(batch: Batch) -> float:
    """The formula, token by token, in float64."""
    total = 0.0
    for logp, behaviour, advantage, mask in zip(*(column.tolist() for column in batch), strict=True):
        ratio = math.exp(logp - behaviour)
        clipped = min(max(ratio, 1 - CWM["low"]), 1 + CWM["high"])
        total += min(ratio * advantage, clipped * advantage) if mask else 0.0
    return -total / CWM["norm"]


@given(TOKENS)
def test_agrees_with_a_slow_reference(tokens: list[tuple[float, float, float, bool]]) -> None:
    batch = tensors(tokens)
    assert clipped_surrogate(*batch, **CWM).item() == pytest.approx(slow(batch), rel=1e-4, abs=1e-5)


@given(TOKENS, st.integers(0, 24))
def test_splitting_a_batch_changes_neither_the_sum_nor_the_gradient(
    tokens: list[tuple[float, float, float, bool]], where: int
) -> None:
    batch = tensors(tokens)
    left, right = tuple(column[:where] for column in batch), tuple(column[where:] for column in batch)
    parts = clipped_surrogate(*left, **CWM) + clipped_surrogate(*right, **CWM)
    torch.testing.assert_close(parts, clipped_surrogate(*batch, **CWM), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([gradient(left), gradient(right)]), gradient(batch))


@given(TOKENS, st.randoms(use_true_random=False))
def test_the_order_of_tokens_does_not_matter(tokens: list[tuple[float, float, float, bool]], random: Random) -> None:
    batch = tensors(tokens)
    order = torch.tensor(random.sample(range(len(tokens)), len(tokens)))
    shuffled = tuple(column[order] for column in batch)
    torch.testing.assert_close(gradient(shuffled), gradient(batch)[order])


@given(TOKENS)
def test_context_gets_no_gradient_and_its_values_do_not_matter(tokens: list[tuple[float, float, float, bool]]) -> None:
    logp, behaviour, advantage, mask = tensors(tokens)
    nan = torch.tensor(math.nan)
    noisy = (logp.where(mask, nan), behaviour.where(mask, nan), advantage.where(mask, nan), mask)
    torch.testing.assert_close(gradient(noisy), gradient((logp, behaviour, advantage, mask)))
    assert not gradient(noisy)[~mask].any()
    assert statistics(*noisy[:2], noisy[3]) == statistics(logp, behaviour, mask)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.2, 1.0, 1.2),  # inside: ρA
        (1.3, 1.0, 0.0),  # a good token that is likelier already: no further push
        (0.5, 1.0, 0.5),  # a good token that became rare: pushed up
        (0.7, -1.0, 0.0),  # a bad token that is rarer already: no further push
        (0.78, -1.0, 0.0),  # the two bounds differ: 0.78 lies beyond 1 − low, but not beyond 1 − high
        (1.22, 1.0, 1.22),
        (0.9, -1.0, -0.9),
        (2.0, -1.0, -2.0),  # a bad token that became likely: pushed down
    ],
)
def test_clipping_by_hand(ratio: float, advantage: float, slope: float) -> None:
    batch = (torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([advantage]), torch.tensor([True]))
    assert gradient(batch).item() == pytest.approx(-slope / CWM["norm"], rel=1e-6)


def test_on_policy_the_gradient_is_reinforce_with_the_same_baseline() -> None:
    """Three episodes of a softmax policy, one parameter vector: −(1/N) Σ_i A_i Σ_t ∇log π(a_t)."""
    theta = torch.tensor([0.3, -0.1, 0.5], requires_grad=True)
    episodes, rewards = [[0, 1], [2], [1, 1, 0]], torch.tensor([1.0, -1.0, 0.5])
    lengths = torch.tensor([len(actions) for actions in episodes])
    advantages = cwm(rewards, lengths)
    logp = theta.log_softmax(0)[torch.tensor([action for actions in episodes for action in actions])]
    mask = torch.ones(len(logp), dtype=torch.bool)
    loss = clipped_surrogate(logp, logp.detach(), advantages.repeat_interleave(lengths), mask, **CWM)
    (ours,) = torch.autograd.grad(loss, theta)

    probabilities = theta.detach().softmax(0)
    reinforce = torch.zeros(3)
    for advantage, actions in zip(advantages, episodes, strict=True):
        for action in actions:
            reinforce += advantage * (torch.nn.functional.one_hot(torch.tensor(action), 3) - probabilities)
    torch.testing.assert_close(ours, -reinforce / CWM["norm"])


def test_statistics_by_hand() -> None:
    ratios = torch.tensor([1.0, 2.0, 0.5, 9.0])
    found = statistics(ratios.log(), torch.zeros(4), torch.tensor([True, True, True, False]))
    assert found["tokens"] == 3
    assert found["kl_k1"] == pytest.approx(0.0, abs=1e-7)
    assert found["kl_k3"] == pytest.approx((0 + 1 + -0.5) / 3)
    assert found["ratio_p50"] == pytest.approx(1.0)
    assert found["gap_max"] == pytest.approx(math.log(2))


def test_nothing_masked_in_is_a_zero_with_zero_statistics() -> None:
    zeros = torch.zeros(3, requires_grad=True)
    loss = clipped_surrogate(zeros, torch.ones(3), torch.ones(3), torch.zeros(3), **CWM)
    assert loss.item() == 0
    assert statistics(zeros, torch.ones(3), torch.zeros(3)) == dict.fromkeys(STATISTICS, 0.0)
