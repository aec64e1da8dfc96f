"""What a row of a data set comes to, whatever its form."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MATH_SYSTEM = (
    "Solve the problem. Think first, and close your thoughts with </think>. "
    "After it, give the final answer once, alone, in \\boxed{}."
)
CODE_SYSTEM = (
    "Write Python. Think first, and close your thoughts with </think>. After it, write exactly one fenced block that "
    "opens with ```python and holds the whole solution, imports included."
)
SWE_SYSTEM = (
    "Repair the repository in the working directory. Each turn, think up to </think>, then make one call, written "
    "<tool: NAME>, a line break, its content, and </tool> on a line of its own. bash runs commands in a shell that "
    "keeps its state; edit replaces text that occurs once in a file; create makes a file, its path on the first line; "
    "submit hands in a patch file, such as one that git diff wrote. After it, a reply without a call ends the work."
)
REASONING_SYSTEM = (
    "Solve the problem. Think first, and close your thoughts with </think>. "
    "After it, give the final answer and no more."
)


@dataclass(frozen=True, slots=True)
class Draft:
    """What a form reads out of a row; configuration may override domain, verifier and environment."""

    prompt: str
    domain: str
    payload: Mapping[str, Any]
    visible: Mapping[str, Any] = field(default_factory=dict)
    environment_name: str | None = None
    image: str | None = None

    @property
    def environment(self) -> str:
        """With something to try out there are turns to try it in."""
        return self.environment_name or ("code" if self.visible else "single_turn")

    @property
    def system(self) -> str:
        """States the format rule of the domain's verifier."""
        language = str(self.payload.get("language", "python"))
        code = (
            CODE_SYSTEM if language == "python" else CODE_SYSTEM.replace("Python", language).replace("python", language)
        )
        return {"math": MATH_SYSTEM, "code": code, "reasoning": REASONING_SYSTEM, "swe": SWE_SYSTEM}.get(
            self.domain, ""
        )
