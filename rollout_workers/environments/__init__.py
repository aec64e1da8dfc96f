"""Where the policy acts: what answers its replies, and when an episode is over."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib import import_module

from rollout_workers.environments.code_tests import code_tests
from rollout_workers.environments.protocol import Environment, Left
from rollout_workers.environments.repository import repository
from rollout_workers.environments.single_turn import single_turn
from verifiers.sandbox import Sandboxes
from verifiers.task import Task

__all__ = ["ENVIRONMENTS", "Environment", "Left", "find"]

Open = Callable[[Task, Sandboxes], AbstractAsyncContextManager[Environment]]

ENVIRONMENTS: dict[str, Open] = {
    "single_turn": single_turn,
    "code": code_tests,
    "repository": repository,
}
"""By the name that a task gives in `environment`."""


def find(name: str) -> Open:
    """The environment of that name, or at `module:attribute`. Raises ValueError with one sentence."""
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        known = ", ".join(sorted(ENVIRONMENTS))
        raise ValueError(f"there is no environment '{name}': known are {known}, or module:attribute")
    try:
        found: Open = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no environment '{name}': {error}") from error
    return found
