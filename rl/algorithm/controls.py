"""Controls: what must not learn. A run that does not beat them has learnt nothing."""

import random
from dataclasses import replace

from rollout_workers.trajectory import Group


def shuffled(group: Group, seed: int) -> Group:
    """The group with its members' verdicts dealt out by chance: the same rewards, and nothing that earned them."""
    verdicts = [member.verdict for member in group.members]
    random.Random(f"{seed}/{group.id}").shuffle(verdicts)  # noqa: S311
    members = (replace(member, verdict=verdict) for member, verdict in zip(group.members, verdicts, strict=True))
    return replace(group, members=tuple(members))
