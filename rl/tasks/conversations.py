"""Conversations to learn from, out of JSONL files: rows `{"messages": [{"role": …, "content": …}, …]}`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.tasks.epochs import Epochs
from rl.tasks.rows import DataError, Row, read_rows
from verifiers.task import Message

Conversation = tuple[Message, ...]

FIELDS = ("messages", "role", "content")
"""What a column, or a key of a message, can be mapped to."""

# A role stands in the chat template's own text, where special tokens count: a name must not hold any.
_ROLE = re.compile(r"system|user|assistant|tool: [\w.-]+")
_KNOWN = "system, user, assistant, tool and tool: NAME"


def read(file: Path, columns: Mapping[str, str] | None = None) -> Iterator[Conversation]:
    """Stream a .jsonl or .jsonl.gz file; `columns` maps FIELDS to the file's names.

    A plain `tool` is one that is called `output`. Raises DataError for a file, row or message that cannot be used.
    """
    columns = columns or {}
    if unknown := sorted(set(columns) - set(FIELDS)):
        raise DataError(f"there is no field '{unknown[0]}' to map; known are {', '.join(FIELDS)}")
    for row in read_rows(file, columns):
        yield _conversation(row)


class Shuffled:
    """Conversations without end: all of them in random order, then again in another. The same seed, the same order."""

    def __init__(self, conversations: Sequence[Conversation], seed: int) -> None:
        self._conversations = conversations
        self._order = Epochs(len(conversations), seed)

    def __call__(self, index: int) -> Conversation:
        """The conversation at a place of the stream."""
        return self._conversations[self._order(index)]


def _conversation(row: Row) -> Conversation:
    messages = tuple(_message(row, place, item) for place, item in enumerate(row.items("messages"), 1))
    roles = [message.role for message in messages]
    problem = None
    if "assistant" not in roles:
        problem = "holds no turn of the assistant: there is nothing to learn from" if roles else "is empty"
    elif roles[0] == "assistant":
        problem = "begins with the assistant: nobody has asked it anything"
    else:
        twice = next((i for i in range(1, len(roles)) if roles[i - 1] == roles[i] == "assistant"), None)
        if twice is not None:
            problem = f"messages {twice} and {twice + 1} are both the assistant's: join them"
    if problem:
        raise row.error(problem, "messages")
    return messages


def _message(row: Row, place: int, item: Any) -> Message:
    if not isinstance(item, dict):
        raise row.error(f"message {place} must be an object with role and content", "messages")
    role, content = (item.get(row.columns.get(key, key)) for key in ("role", "content"))
    if role == "tool":
        role = "tool: output"
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise row.error(f"message {place} has the unknown role {role!r:.40}: known are {_KNOWN}", "messages")
    if not isinstance(content, str):
        raise row.error(f"the content of message {place} must be text, not {content!r:.40}", "messages")
    if not content.strip() and not role.startswith("tool: "):
        raise row.error(f"the content of message {place} is empty", "messages")
    return Message(role, content)
