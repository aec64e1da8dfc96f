"""HTML from templates: everything that goes in is escaped, and what a reader could not see is made visible."""

import math
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def visible(text: str) -> str:
    """What nobody could see as Python writes it: control characters, turned writing, lone surrogates (`\\x1b`)."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" else _escaped(one) for one in text)


def environment(*folders: Path) -> Environment:
    """Templates of `folders` and of this floor. Only what is Markup already is not escaped."""
    made = Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"ago": ago, "number": number}
    return made


def ago(seconds: float | None) -> str:
    """A stretch of time in the unit a person would use."""
    if seconds is None:
        return "–"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def number(value: object, form: str = ".3f") -> str:
    """A number in a format of Python's; a dash for what is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return format(round(value) if form.endswith("d") else value, form)


def _finalize(value: object) -> object:
    """What every `{{ … }}` goes through before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode()
