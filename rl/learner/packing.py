"""Scored episodes to flat rows, and rows to micro-batches without padding."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rollout_workers.trajectory import Completion, Scored, Trajectory


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One trajectory of T tokens; all arrays (T,)."""

    tokens: NDArray[np.int64]
    mask: NDArray[np.bool_]
    """True on what the policy sampled."""
    logprobs: NDArray[np.float32]
    """log π_behaviour in nats where `mask` is True, else 0."""
    versions: NDArray[np.int64]
    """Version that sampled the token, −1 on context."""
    advantage: float


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Rows laid end to end; all arrays (T,). `positions` starts at 0 with every row, which keeps rows apart."""

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    mask: NDArray[np.bool_]
    logprobs: NDArray[np.float32]
    advantages: NDArray[np.float32]
    row_lengths: tuple[int, ...]


def row(trajectory: Trajectory, advantage: float) -> Row:
    """Flatten a trajectory; mask, log-probabilities and versions follow from its segments."""
    size = len(trajectory)
    mask = np.zeros(size, np.bool_)
    logprobs = np.zeros(size, np.float32)
    versions = np.full(size, -1, np.int64)
    start = 0
    for segment in trajectory.segments:
        part = slice(start, start + len(segment.tokens))
        if isinstance(segment, Completion):
            mask[part], logprobs[part], versions[part] = True, segment.logprobs, segment.version
        start = part.stop
    return Row(np.array(trajectory.tokens, np.int64), mask, logprobs, versions, advantage)


def rows(members: Iterable[Scored], advantages: Iterable[float]) -> list[Row]:
    """Every trajectory of every member with its episode's advantage; an advantage of 0 has no gradient: left out."""
    return [
        row(trajectory, advantage)
        for member, advantage in zip(members, advantages, strict=True)
        if advantage != 0
        for trajectory in member.episode.trajectories
    ]


L = TypeVar("L", Row, MicroBatch)


def balanced_shares(items: Iterable[L], count: int) -> list[list[L]]:
    """`count` shares of about as many tokens each: the longest first, each to the share that has least."""
    shares: list[list[L]] = [[] for _ in range(count)]
    sizes = [0] * count
    for one in sorted(items, key=lambda item: -len(item.tokens)):
        least = sizes.index(min(sizes))
        shares[least].append(one)
        sizes[least] += len(one.tokens)
    return shares


def pack(rows: Sequence[Row], tokens: int) -> list[MicroBatch]:
    """First-fit decreasing into micro-batches of at most `tokens` tokens; a longer row gets one of its own."""
    bins: list[list[Row]] = []
    room: list[int] = []
    for one in sorted(rows, key=lambda r: len(r.tokens), reverse=True):
        size = len(one.tokens)
        index = next((i for i, free in enumerate(room) if free >= size), None)
        if index is None:
            bins.append([])
            room.append(tokens)
            index = len(bins) - 1
        bins[index].append(one)
        room[index] -= size
    return [_join(one) for one in bins]


def _join(members: Sequence[Row]) -> MicroBatch:
    return MicroBatch(
        tokens=np.concatenate([r.tokens for r in members]),
        positions=np.concatenate([np.arange(len(r.tokens)) for r in members]),
        mask=np.concatenate([r.mask for r in members]),
        logprobs=np.concatenate([r.logprobs for r in members]),
        advantages=np.concatenate([np.full(len(r.tokens), r.advantage, np.float32) for r in members]),
        row_lengths=tuple(len(r.tokens) for r in members),
    )
