"""What may be in a verdict."""

import math

import pytest

from verifiers.verdict import Outcome, Verdict


@pytest.mark.parametrize("outcome", [Outcome.SCORED, Outcome.TAMPERED])
def test_a_graded_answer_needs_a_reward(outcome: Outcome) -> None:
    with pytest.raises(ValueError, match="needs"):
        Verdict(outcome)


@pytest.mark.parametrize("outcome", [Outcome.INVALID_TASK, Outcome.VERIFIER_ERROR, Outcome.INFRA_ERROR])
def test_a_failure_of_ours_is_never_a_reward(outcome: Outcome) -> None:
    with pytest.raises(ValueError, match="has no reward"):
        Verdict(outcome, 0.0)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_is_finite(reward: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Verdict.scored(reward, correct=True)
