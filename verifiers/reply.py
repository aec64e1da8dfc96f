"""The format rules of replies. A reply opens inside `<think>`: one `</think>` splits reasoning from what counts."""

import re
from collections.abc import Sequence
from itertools import pairwise

from verifiers.task import Message

THINK_END = "</think>"
_BOXED = re.compile(r"\\boxed(?![A-Za-z])")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)  # stripped afterwards: two blanks would be tried
_MOST = 10
"""Boxes that may say the same."""
PYTHON = frozenset({"python", "py", "python3", ""})
"""What may stand after the fence that opens a block of it."""


class FormatError(ValueError):
    """The reply breaks the format its task asked for; the message is one sentence for people and for the policy."""


def asks_to_reason(messages: Sequence[Message]) -> bool:
    """Whether a conversation switches reasoning on: it opens with a system message that mentions `</think>`."""
    return bool(messages) and messages[0].role == "system" and THINK_END in messages[0].content


def after_thinking(reply: str, *, reasoned: bool = True) -> str:
    """What follows the one `</think>`; without reasoning there need be none. Raises FormatError."""
    parts = reply.split(THINK_END)
    if len(parts) > 2 or (reasoned and len(parts) < 2):
        raise FormatError(f"the reply needs exactly one {THINK_END}, and has {len(parts) - 1}")
    return parts[-1]


def extract_boxed(reply: str, *, reasoned: bool = True) -> str:
    r"""The content of the one `\boxed{}` after the reasoning, or of several that are the same; nested braces kept.

    Raises FormatError.
    """
    text = after_thinking(reply, reasoned=reasoned)
    starts = [match.start() for match in _BOXED.finditer(text)]
    parts = [text[start:end] for start, end in pairwise((*starts, len(text)))]
    contents = {last_boxed(part) for part in parts} if len(parts) <= _MOST else ()
    if len(contents) != 1:
        raise FormatError(f"the answer needs exactly one \\boxed{{}} after {THINK_END}, and has {len(starts)}")
    return last_boxed(text)


def last_boxed(text: str) -> str:
    r"""The content of the last `\boxed{}` of a text. Raises FormatError if there is none, or it does not close."""
    found = list(_BOXED.finditer(text))
    rest = text[found[-1].end() :].lstrip() if found else ""
    if not rest.startswith("{"):
        raise FormatError("there is no \\boxed followed by an opening brace")
    return rest[1 : _closing_brace(rest)].strip()


def _closing_brace(text: str) -> int:
    """Index of the brace that closes the one at 0; escaped braces do not count. Raises FormatError."""
    depth, at = 0, 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    raise FormatError("the braces of \\boxed{} do not close")


def extract_code(reply: str, *, reasoned: bool = True, marks: frozenset[str] = PYTHON) -> str:
    """The content of the one fenced block after the reasoning, opened with one of `marks`. Raises FormatError."""
    text = after_thinking(reply, reasoned=reasoned)
    fences = list(_FENCE.finditer(text))
    if len(fences) != 2:
        raise FormatError(
            f"exactly one fenced block must follow {THINK_END}, which takes two fence lines and not {len(fences)}"
        )
    opening, closing = fences
    if opening[2].strip(" \t\r").lower() not in marks:
        mark = "python" if marks is PYTHON else min(marks)
        raise FormatError(f"the fenced block must be marked {mark}, not {opening[2].strip()!r:.40}")
    if closing[2].strip(" \t\r") or not closing[1].startswith(opening[1]):
        raise FormatError("the fenced block is not closed by the fence that opened it")
    return text[opening.end() + 1 : closing.start()]
