"""A task as the policy gets it, and the answer as a verifier sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = str
"""`system`, `user`, `assistant`, or `tool: NAME`."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `content` is plain text and never holds special tokens."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What one episode may use. What depends on the step is resolved at dispatch: a verifier knows no step."""

    turns: int = 1
    """Replies of the policy."""
    tokens: int = 4096
    """Tokens of the whole trajectory, prompt and tool output included."""
    reply_tokens: int = 1024
    """Tokens of one reply."""
    answer_cut: bool = False
    """Whether a reply that is cut there is answered like one that ended; else it ends the episode."""
    prompt_tokens: int = 2048
    """Tokens of the first prompt; a longer one is dropped, never cut."""
    tool_tokens: int = 1024
    """Tokens of one tool answer; a longer one is cut in its middle."""
    soft_tokens: int | None = None
    """Sampled tokens up to which `shaping.Length` takes nothing off; None leaves that to its options."""
    seconds: float = 600.0
    """Wall time of the episode's acting part; past it the episode is dropped, not scored."""


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to solve."""

    id: str
    domain: str
    """`math`, `code`, `swe`, `trace`, or a name of the user's; statistics are kept by it."""
    messages: tuple[Message, ...]
    """Shown to the policy."""
    verifier: str
    """Name of the verifier that scores it (see `verifiers.registry`)."""
    environment: str = "single_turn"
    """Name of the environment the policy acts in (see `rollout_workers.environments`)."""
    payload: Mapping[str, Any] = field(default_factory=dict)
    """For the verifier alone: gold answers, hidden tests. Never shown, never put where the policy acts."""
    visible: Mapping[str, Any] = field(default_factory=dict)
    """For the environment: what the policy may find out while it acts, such as public tests."""
    limits: Limits = Limits()
    image: str | None = None
    """Image of its sandbox; None is the back end's base image."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What a verifier sees of an episode."""

    reply: str
    """The policy's last reply, as text."""
    turns: tuple[Message, ...] = ()
    """The whole conversation, the task's messages first."""
    completion_tokens: int = 0
    """Tokens the policy sampled over all turns."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files copied out of the sandbox after the last action, by relative path."""
    stop: Literal["done", "turns", "tokens", "sandbox"] = "done"
    """Why the acting part ended: by itself, out of a budget, or its sandbox was killed by its own commands."""
