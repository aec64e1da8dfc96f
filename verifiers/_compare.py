"""Reads what came out of a sandbox: is it the expected value, and how does Python print it?

The data is never trusted: nothing is hashed or built of it beyond what the expected value has.
"""

import math
from collections.abc import Sequence
from typing import Any

from verifiers._plain import MAX_DEPTH, decode


def same(data: Any, want: Any, *, as_json: bool = False) -> bool:
    """Whether encoded `data` equals the plain value `want`: Python's ==, floats within 1e-6, nan equal to nan.

    With `as_json` a tuple is as good as a list that is wanted. Walks along `want`, so its cost is bounded by `want`.
    False for data that is malformed.
    """
    if isinstance(want, (int, float, complex)):
        return _same_number(data, want)
    if want is None or isinstance(want, str):
        return bool(data == want) and type(data) is type(want)
    if isinstance(want, bytes):
        return bool(data == {"b": want.hex()})
    if isinstance(want, list):
        if as_json and isinstance(data, dict) and data.keys() == {"t"}:
            data = data["t"]
        return isinstance(data, list) and _same_parts(data, want, as_json)
    if not isinstance(data, dict) or len(data) != 1:
        return False
    ((tag, content),) = data.items()
    if not isinstance(content, list) or len(content) != len(want):
        return False
    if isinstance(want, tuple):
        return bool(tag == "t") and _same_parts(content, want, as_json)
    try:
        if isinstance(want, dict):
            return bool(tag == "d") and _same_items(content, want, as_json)
        return tag in ("s", "z") and {decode(part) for part in content} == want
    except (TypeError, ValueError, KeyError, RecursionError):
        return False


def _same_parts(parts: list[Any], want: Sequence[Any], as_json: bool) -> bool:
    return len(parts) == len(want) and all(
        same(one, other, as_json=as_json) for one, other in zip(parts, want, strict=True)
    )


def _same_items(pairs: list[Any], want: dict[Any, Any], as_json: bool) -> bool:
    got = {decode(key): part for key, part in pairs}
    return all(key in got and same(got[key], part, as_json=as_json) for key, part in want.items())


def _same_number(data: Any, want: complex) -> bool:
    try:
        got = data if isinstance(data, (int, float)) else decode(data)
        if not isinstance(got, (int, float, complex)):
            return False
        if isinstance(want, float) and isinstance(got, (int, float)):
            return math.isclose(got, want, rel_tol=1e-6, abs_tol=1e-6) or (math.isnan(got) and math.isnan(want))
        return got == want
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError):
        return False


def show(data: Any, limit: int = 200) -> str:
    """Encoded data as Python would print it, cut after `limit` characters. Never raises."""
    text = _show(data, limit, 0)
    return text if len(text) <= limit else text[:limit] + "..."


def _show(data: Any, limit: int, depth: int) -> str:
    if depth > MAX_DEPTH:
        return "..."
    if isinstance(data, list):
        return f"[{_join(data, limit, depth)}]"
    if not isinstance(data, dict) or len(data) != 1:
        return repr(data) if not isinstance(data, str) else repr(data[: limit + 1])
    ((tag, content),) = data.items()
    if not isinstance(content, list):
        return {"o": f"<{content!s:.100}>", "b": f"bytes.fromhex({content!r:.200})"}.get(tag, f"{content!s:.200}")
    if tag == "d":
        pairs = [part for part in content if isinstance(part, list) and len(part) == 2]
        inner = (f"{_show(key, limit, depth + 1)}: {_show(part, limit, depth + 1)}" for key, part in pairs[:limit])
        return "{" + ", ".join(inner) + "}"
    inside = _join(content, limit, depth)
    if tag == "t":
        return f"({inside},)" if len(content) == 1 else f"({inside})"
    if tag == "c":
        return f"complex({inside})"
    braces = f"{{{inside}}}" if content else "set()"
    return braces if tag == "s" else f"frozenset({braces})"


def _join(parts: list[Any], limit: int, depth: int) -> str:
    text = ""
    for part in parts:
        if len(text) > limit:
            break
        text += (", " if text else "") + _show(part, limit, depth + 1)
    return text
