"""The words of the ledger: the states of an episode's life, the reasons to leave it, and the errors."""

from enum import StrEnum

from verifiers.errors import UserError


class LedgerError(UserError):
    """The ledger cannot do what was asked. One sentence: what is wrong, where, what to do."""


class State(StrEnum):
    """Where an episode stands. `TRAINED` and `DROPPED` end its life; the others are pending."""

    DISPATCHED = "dispatched"
    SAMPLED = "sampled"
    SCORED = "scored"
    TRAINED = "trained"
    DROPPED = "dropped"


PENDING = (State.DISPATCHED, State.SAMPLED, State.SCORED)
UNFINISHED = (State.DISPATCHED, State.SAMPLED)


class DropReason(StrEnum):
    """Why an episode was not trained."""

    ZERO_ADVANTAGE = "zero_advantage"
    """Everybody in its group got the same reward."""
    STALE = "stale"
    """Its last token was sampled too many versions ago."""
    GIBBERISH = "gibberish"
    """It holds a rare token at a tiny probability."""
    REFUSED = "refused"
    """The learner refused a step on its batch: loss or gradient were not finite."""
    PROMPT_TOO_LONG = "prompt_too_long"
    GROUP_TOO_SMALL = "group_too_small"
    """Fewer than two members of its group were left."""
    DEADLINE = "deadline"
    """Its group closed without it."""
    INTERRUPTED = "interrupted"
    """It was running when the driver died."""
    INFRA_ERROR = "infra_error"
    VERIFIER_ERROR = "verifier_error"
    INVALID_TASK = "invalid_task"
    WORKER_LOST = "worker_lost"
    UNUSED = "unused"
    """Left over at the run's end."""


RETRIABLE = frozenset({DropReason.INFRA_ERROR, DropReason.VERIFIER_ERROR, DropReason.WORKER_LOST})
"""Failures of ours, after which another attempt is fair."""
