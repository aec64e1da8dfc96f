"""What is left out of a batch. Every function says yes to what should go; None as a limit turns one off."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rl.algorithm.staleness import lag
from rollout_workers.trajectory import DropReason, Episode, EpisodeKey, Group, Scored

_SMALLEST_GROUP = 2


def zero_advantage(group: Group) -> bool:
    """All members got the same return: the group teaches nothing."""
    return len({member.verdict.reward for member in group.members}) <= 1


def stale(episode: Episode, newest: int, max_lag: int | None) -> bool:
    """Its last sampled token is more than `max_lag` versions behind `newest`."""
    return max_lag is not None and lag(episode, newest) > max_lag


def gibberish(episode: Episode, rare_from: int | None, vocab_size: int) -> bool:
    """A token with an id of at least `rare_from` was sampled at a log-probability below −log(vocab_size) − 2.

    It relies on a vocabulary ordered by frequency; turn it off elsewhere.
    """
    if rare_from is None:
        return False
    floor = -math.log(vocab_size) - 2
    return any(
        token >= rare_from and logprob < floor
        for completion in episode.completions
        for token, logprob in zip(completion.tokens, completion.logprobs, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Partition:
    """Groups to train on, and who was left out of them for which reason."""

    kept: list[Group]
    dropped: list[tuple[list[EpisodeKey], DropReason]]


def partition(
    groups: Iterable[Group], newest: int, *, max_lag: int | None, rare_from: int | None, vocab_size: int
) -> Partition:
    """Sort groups out: first stale and gibberish members, then groups left too small, then those of equal returns.

    Whoever is left out is no part of its group's baseline either. `newest` is the newest published version.
    """
    result = Partition([], [])
    for group in groups:
        members: list[Scored] = []
        for member in group.members:
            reason = _member_reason(member.episode, newest, max_lag, rare_from, vocab_size)
            if reason is None:
                members.append(member)
            else:
                result.dropped.append(([member.episode.key], reason))
        rest = replace(group, members=tuple(members))
        if len(members) < _SMALLEST_GROUP:
            result.dropped.append((_keys(members), DropReason.GROUP_TOO_SMALL))
        elif zero_advantage(rest):
            result.dropped.append((_keys(members), DropReason.ZERO_ADVANTAGE))
        else:
            result.kept.append(rest)
    return replace(result, dropped=[(keys, reason) for keys, reason in result.dropped if keys])


def _member_reason(
    episode: Episode, newest: int, max_lag: int | None, rare_from: int | None, vocab_size: int
) -> DropReason | None:
    if stale(episode, newest, max_lag):
        return DropReason.STALE
    return DropReason.GIBBERISH if gibberish(episode, rare_from, vocab_size) else None


def _keys(members: Sequence[Scored]) -> list[EpisodeKey]:
    return [member.episode.key for member in members]
