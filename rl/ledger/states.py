"""The words of the ledger: the states of an episode's life, which failures are worth another try, and its error."""

from enum import StrEnum

from rollout_workers.trajectory import DropReason
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


RETRIABLE = frozenset({DropReason.INFRA_ERROR, DropReason.VERIFIER_ERROR, DropReason.WORKER_LOST})
"""Failures of ours, after which another attempt is fair."""
