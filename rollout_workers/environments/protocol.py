"""What an episode needs of the place the policy acts in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from verifiers.task import Message

COMMANDS: Final = 0.75
"""Share of an episode's seconds that what the policy has run may take; the rest is our own."""


@dataclass(frozen=True, slots=True)
class Remaining:
    """What the policy may still use, as its tools tell it."""

    turns: int
    tokens: int


class Environment(Protocol):
    """Where the policy acts in one episode."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """What a verifier gets beside the conversation, by relative path."""
        ...

    async def respond(self, reply: str, left: Remaining) -> Message | None:
        """What the policy sees next, or None where its last reply ended the episode.

        Raises SandboxKilled where the policy's commands killed its sandbox, SandboxUnavailable where we failed.
        """
        ...
