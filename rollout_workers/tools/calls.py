"""How the policy calls a tool: `<tool: NAME>`, the content, `</tool>`, each mark alone on its line."""

import re
from dataclasses import dataclass

_OPEN = re.compile(r"^<tool: ([a-z_]+)>[ \t]*$", re.MULTILINE)
_CLOSE = re.compile(r"^</tool>[ \t]*$", re.MULTILINE)


class ToolError(Exception):
    """What went wrong with a call, in a sentence for the policy; the episode goes on."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call in a reply: the tool's name, and what stands between its tags."""

    tool: str
    content: str


def find_call(text: str) -> Call | None:
    """The one call in a reply, None if there is none. Raises ToolError for several, or one that does not close."""
    opens, closes = list(_OPEN.finditer(text)), list(_CLOSE.finditer(text))
    if not opens and not closes:
        return None
    if len(opens) != 1 or len(closes) != 1 or closes[0].start() < opens[0].end():
        raise ToolError("Write exactly one call a turn: <tool: NAME>, the content, and </tool>, each mark on its line.")
    return Call(opens[0][1], text[opens[0].end() : closes[0].start()].strip("\n"))
