"""Do engine and learner agree? Recorded log-probabilities against the learner's, under the weights that sampled."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from rl.learner.packing import Row, row
from rollout_workers.trajectory import Completion, Episode, Segment, Trajectory

_EPISODES_PER_VERSION = 16


@dataclass(frozen=True, slots=True)
class Gap:
    """How far log-probabilities of learner and engine are apart, by a comparison at the end of a run."""

    max: float
    """Largest |log π_learner − log π_engine| of a sampled token, in nats."""
    tokens: int
    by_version: Mapping[int, float]


def exact_rows(
    episodes: Iterable[Episode], *, recompute: bool, of: Container[int] | None = None
) -> dict[int, list[Row]]:
    """Version -> rows whose tokens of that version can be compared exactly; elsewhere `versions` is −1.

    Only versions in `of` are kept, if it is given: the rows of all would fill the memory of a long run.

    Those are the tokens of requests sampled wholly under one version. With `recompute`, tokens of a request that saw a
    swap count as well: its cache was computed anew under the new weights.
    """
    found: defaultdict[int, list[Row]] = defaultdict(list)
    for episode in episodes:
        for trajectory in episode.trajectories:
            flat = row(trajectory, 0.0)
            if not recompute:
                flat.versions[_mixed(trajectory)] = -1
            for version in np.unique(flat.versions[flat.versions >= 0]).tolist():
                if (of is None or version in of) and len(found[version]) < _EPISODES_PER_VERSION:
                    found[version].append(flat)
    return dict(found)


def _mixed(trajectory: Trajectory) -> NDArray[np.bool_]:
    """(T,) bool: tokens of replies that saw a swap, which are runs of more than one completion."""
    mixed: list[bool] = []
    for _, run in groupby(trajectory.segments, key=lambda segment: isinstance(segment, Completion)):
        segments: list[Segment] = list(run)
        swapped = len(segments) > 1 and isinstance(segments[0], Completion)
        mixed += [swapped] * sum(len(segment.tokens) for segment in segments)
    return np.array(mixed, np.bool_)


def summarise(found: Mapping[int, tuple[float, int]]) -> Gap | None:
    """From `Learner.gaps`; None where nothing could be compared."""
    seen = {version: worst for version, (worst, count) in found.items() if count}
    if not seen:
        return None
    return Gap(max(seen.values()), sum(count for _, count in found.values()), seen)
