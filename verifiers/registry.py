"""Verifiers by name: the entry-point group `cwm_rl.verifiers`, `module:attribute`, or `path/to/file.py:attribute`."""

import sys
from difflib import get_close_matches
from hashlib import sha256
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from verifiers.sandbox import Sandboxes
from verifiers.task import Submission, Task
from verifiers.verdict import Verdict

GROUP = "cwm_rl.verifiers"
BUILT_IN = {
    "math": "verifiers.math:MathVerifier",
    "code": "verifiers.code:CodeVerifier",
    "repair": "verifiers.repair:RepairVerifier",
    "swe": "verifiers.swe:SweVerifier",
    "trace": "verifiers.trace:TraceVerifier",
}
"""Known also where the distribution is not installed, as in a plain checkout."""
ADAPTERS = {
    "reward_function": "verifiers.adapters:RewardFunction",
    "reasoning_gym": "verifiers.adapters:ReasoningGym",
}
SHAPING = {"format": "verifiers.shaping:Format", "length": "verifiers.shaping:Length"}
"""Components that pay for nothing by themselves."""


@runtime_checkable
class Verifier(Protocol):
    """Scores answers. One instance serves many gradings at once, on one event loop.

    One that does one thing at a time queues by `verifiers.deadline.turn`, so that a wait is nobody's fault.
    One that holds something open may also have `async def aclose(self) -> None`; `Grader.aclose` calls it.
    """

    lowest: float
    """The domain's lowest reward, which a tampered answer gets."""

    async def verify(self, task: Task, submission: Submission, sandboxes: Sandboxes) -> Verdict:
        """Score one answer. Whatever it raises becomes a verdict in `runner.Grader`; sandbox errors may pass."""
        ...

    def check_task(self, task: Task) -> None:
        """Called once when tasks are loaded. Raises ValueError with one sentence if the payload is broken."""
        ...


def targets() -> dict[str, str]:
    """Every known name and the `module:attribute` it stands for."""
    return BUILT_IN | ADAPTERS | SHAPING | {point.name: point.value for point in entry_points(group=GROUP)}


def load(name: str, **options: Any) -> Verifier:
    """The verifier of that name, made with these options. Raises ValueError with one sentence."""
    known = targets()
    target = name if ":" in name else known.get(name)
    if target is None:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(
            f"no verifier is called '{name}': {hint}known are {', '.join(sorted(known))}, "
            "or module:attribute, or file.py:attribute"
        )
    try:
        verifier = resolve(target)(**options)
    except Exception as error:
        # Foreign code may raise anything here; it is named and passed on, never swallowed.
        raise ValueError(f"verifier '{name}' ({target}) cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(verifier, Verifier):
        raise ValueError(f"verifier '{name}' ({target}) lacks one of: lowest, verify, check_task")
    return verifier


def _from_file(path: Path) -> Any:
    """A module of its own, made once. Raises FileNotFoundError and what the file raises."""
    name = f"cwm_rl_verifier_{path.stem}_{sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(f"{path} is no Python file")
        sys.modules[name] = module = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def resolve(target: str) -> Any:
    """What stands at `module:attribute` or `file.py:attribute`. Raises what importing it raises."""
    module, _, attribute = target.rpartition(":")
    found: Any = _from_file(Path(module)) if module.endswith(".py") else import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found
