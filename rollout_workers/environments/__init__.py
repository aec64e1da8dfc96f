"""Where the policy acts: what answers its replies, and when an episode is over."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from rollout_workers.environments.code_tests import code_tests
from rollout_workers.environments.protocol import Environment, Remaining
from rollout_workers.environments.repository import repository
from rollout_workers.environments.single_turn import single_turn
from verifiers.registry import resolve
from verifiers.sandbox import Sandboxes
from verifiers.task import Task

__all__ = ["ENVIRONMENTS", "Environment", "Remaining", "find"]

Open = Callable[[Task, Sandboxes], AbstractAsyncContextManager[Environment]]

ENVIRONMENTS: dict[str, Open] = {
    "single_turn": single_turn,
    "code": code_tests,
    "repository": repository,
}
"""By the name that a task gives in `environment`."""


def find(name: str) -> Open:
    """The environment of that name, at `module:attribute`, or at `file.py:attribute`. Raises ValueError."""
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    if ":" not in name:
        known = ", ".join(sorted(ENVIRONMENTS))
        raise ValueError(f"there is no environment '{name}': known are {known}, or module:attribute, file.py:attribute")
    try:
        found: Open = resolve(name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no environment '{name}': {error}") from error
    except Exception as error:  # a file of somebody's may raise anything
        raise ValueError(f"there is no environment '{name}': {type(error).__name__}: {error}") from error
    return found
