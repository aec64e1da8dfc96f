"""Batches are cut by tokens that teach something, not by episodes."""

from collections.abc import Sequence

from rl.algorithm.advantages import Estimator, cwm, of_group
from rollout_workers.trajectory import Group


def teaching_tokens(group: Group, estimator: Estimator = cwm) -> int:
    """Sampled tokens of those members whose advantage is not zero."""
    advantages = of_group(group, estimator).tolist()
    return sum(
        member.episode.sampled_tokens for member, advantage in zip(group.members, advantages, strict=True) if advantage
    )


def cut(groups: Sequence[Group], token_budget: int, estimator: Estimator = cwm) -> tuple[list[Group], list[Group]]:
    """(taken, rest): the first groups, whole, until their tokens with non-zero advantage reach `token_budget`.

    While all of them together do not reach it, nothing is taken.
    """
    tokens = 0
    for count, group in enumerate(groups, start=1):
        tokens += teaching_tokens(group, estimator)
        if tokens >= token_budget:
            return list(groups[:count]), list(groups[count:])
    return [], list(groups)
