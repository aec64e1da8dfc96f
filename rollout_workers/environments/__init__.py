"""Where the policy acts: what answers its replies, and when an episode is over."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from rollout_workers.environments.code_tests import code_tests
from rollout_workers.environments.protocol import Environment, Left
from rollout_workers.environments.repository import repository
from rollout_workers.environments.single_turn import single_turn
from verifiers.sandbox import Sandboxes
from verifiers.task import Task

__all__ = ["ENVIRONMENTS", "Environment", "Left"]

ENVIRONMENTS: dict[str, Callable[[Task, Sandboxes], AbstractAsyncContextManager[Environment]]] = {
    "single_turn": single_turn,
    "code": code_tests,
    "repository": repository,
}
"""By the name that a task gives in `environment`."""
