"""How old an episode is, counted in published versions, and how many may be started."""

from rollout_workers.trajectory import Episode


def lag(episode: Episode, newest: int) -> int:
    """`newest` published version − that of the last sampled token; 0 if none was sampled."""
    versions = [completion.version for completion in episode.completions if completion.tokens]
    return newest - versions[-1] if versions else 0


def capacity(*, max_lag: int, episodes_per_step: float, pending: float, running: int) -> int:
    """How many episodes may still be started so that none will be older than `max_lag` when it is trained; ≥ 0.

    (max_lag + 1)·episodes_per_step − (pending + running), after AReaL (arXiv 2505.24298): whoever is started now waits
    until those before it are trained, and every step publishes one version. `pending` are all whose step has yet to
    publish, those of a step that is being taken among them. All three count episodes that were started: where half of
    them teach nothing, a step takes twice as many, and one that waits stands for two. AReaL adds what was trained and
    published on both sides, which drift apart where batches are cut by tokens; what waits and runs is always right.
    """
    return max(0, int((max_lag + 1) * episodes_per_step - (pending + running)))
