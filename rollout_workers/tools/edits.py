"""SEARCH/REPLACE: a path, then one block whose search text must match exactly once. Pure text in, text out."""

from dataclasses import dataclass

from rollout_workers.tools.calls import ToolError

_SEARCH, _MIDDLE, _REPLACE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"
_AROUND = 8
"""Lines shown before and after a change."""


@dataclass(frozen=True, slots=True)
class Edit:
    """What to replace in which file."""

    path: str
    search: str
    replace: str


def parse_edit(content: str) -> Edit:
    """Parse the content of an `edit` call. Raises ToolError."""
    path, *lines = content.rstrip().split("\n")
    marks = [line for line in lines if line in (_SEARCH, _REPLACE)]
    if marks != [_SEARCH, _REPLACE] or lines[0] != _SEARCH or lines[-1] != _REPLACE or _MIDDLE not in lines:
        raise ToolError(
            f"An edit is a path, then one {_SEARCH}, the old text, {_MIDDLE}, the new text, {_REPLACE}, "
            "each mark on its line."
        )
    middle = lines.index(_MIDDLE)
    search = "\n".join(lines[1:middle])
    if not search:
        raise ToolError("The search text is empty; the tool create makes new files.")
    return Edit(path.strip(), search, "\n".join(lines[middle + 1 : -1]))


def apply_edit(text: str, edit: Edit) -> tuple[str, str]:
    """(the new text, its changed lines with some around them, numbered). Raises ToolError."""
    start = text.find(edit.search)
    if start < 0 or text.find(edit.search, start + 1) >= 0:
        often = "0 times" if start < 0 else "2 times or more"  # counting them all would take their product's time
        raise ToolError(f"The search text must match exactly once in {edit.path}, and matches {often}.")
    new = text[:start] + edit.replace + text[start + len(edit.search) :]
    first = text.count("\n", 0, start)
    last = first + edit.replace.count("\n")
    lines = new.split("\n")
    shown = range(max(0, first - _AROUND), min(len(lines), last + _AROUND + 1))
    return new, "\n".join(f"{number + 1} {lines[number]}" for number in shown if lines[number] or number < last)
