"""Python's plain values as JSON and back, so that nothing but data crosses a sandbox's border.

null, booleans, strings, lists, finite floats and integers up to 63 bits stand for themselves. The rest is an object
with one key: t tuple, s set, z frozenset, d dictionary as pairs, i integer in hexadecimal, f float that is not finite,
c complex, b bytes in hexadecimal, o anything else, by the name of its type, equal to nothing.

Standard library only: the same text runs on both sides of the border. The inner side is never trusted; `same` and
`show` read what came out without hashing or building more of it than the expected value has.
"""

from __future__ import annotations

import math

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take longer than most answers
    from typing import Any

MAX_DEPTH = 60


class NotPlainError(ValueError):
    """A value that is not plain data, or is nested too deep or in itself."""


def encode(value: Any, depth: int = 0) -> Any:
    """Instances of subclasses become their base type, through the base type's own methods. Raises NotPlainError."""
    if depth > MAX_DEPTH:
        raise NotPlainError(f"a value nested more than {MAX_DEPTH} deep")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, (str, int, float, complex, bytes, bytearray)):
        return _encode_scalar(value)
    kinds: tuple[tuple[Any, str], ...] = ((tuple, "t"), (set, "s"), (frozenset, "z"))
    for kind, tag in kinds:
        if isinstance(value, kind):
            return {tag: [encode(part, depth + 1) for part in kind.__iter__(value)]}
    if isinstance(value, list):
        return [encode(part, depth + 1) for part in list.__iter__(value)]
    if isinstance(value, dict):
        return {"d": [[encode(key, depth + 1), encode(part, depth + 1)] for key, part in dict.items(value)]}
    return {"o": type(value).__name__}


def _encode_scalar(value: Any) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        plain = int.__index__(value) + 0
        return plain if -(1 << 63) < plain < 1 << 63 else {"i": hex(plain)}
    if isinstance(value, float):
        number = float.__float__(value)
        return number if math.isfinite(number) else {"f": float.__repr__(number)}
    if isinstance(value, complex):
        return {"c": [_encode_scalar(complex(value).real), _encode_scalar(complex(value).imag)]}
    return {"b": bytes(value).hex()}


def decode(data: Any) -> Any:
    """The value `encode` was given, in plain types. Raises ValueError, TypeError on anything `encode` does not make."""
    if isinstance(data, list):
        return [decode(part) for part in data]
    if not isinstance(data, dict):
        return data
    ((tag, content),) = data.items()
    if tag in ("t", "s", "z"):
        return {"t": tuple, "s": set, "z": frozenset}[tag](decode(part) for part in content)
    if tag == "d":
        return {decode(key): decode(part) for key, part in content}
    if tag == "c":
        return complex(*(decode(part) for part in content))
    if tag == "o":
        return Opaque(content)
    if tag == "i":
        return int(content, 16)
    if tag == "f":
        return float(content)
    if tag == "b":
        return bytes.fromhex(content)
    raise ValueError(f"no plain value has the tag {tag!r:.20}")


class Opaque:
    """Stands for a value that is no plain data. Equal to nothing, itself included."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def is_opaque(data: Any) -> bool:
    """Whether encoded data holds something that is not plain, at any depth."""
    if isinstance(data, dict):
        return "o" in data or any(is_opaque(part) for part in data.values())
    return isinstance(data, list) and any(is_opaque(part) for part in data)


def same(data: Any, want: Any) -> bool:
    """Whether encoded `data` equals the plain value `want`: Python's ==, floats within 1e-6, nan equal to nan.

    Walks along `want`, so its cost is bounded by `want`. False for data that is malformed.
    """
    if isinstance(want, (int, float, complex)):
        return _same_number(data, want)
    if want is None or isinstance(want, str):
        return bool(data == want) and type(data) is type(want)
    if isinstance(want, bytes):
        return bool(data == {"b": want.hex()})
    if isinstance(want, list):
        return isinstance(data, list) and len(data) == len(want) and all(map(same, data, want))
    if not isinstance(data, dict) or len(data) != 1:
        return False
    ((tag, content),) = data.items()
    if not isinstance(content, list) or len(content) != len(want):
        return False
    if isinstance(want, tuple):
        return bool(tag == "t") and all(map(same, content, want))
    try:
        if isinstance(want, dict):
            return bool(tag == "d") and _same_items(content, want)
        return tag in ("s", "z") and {decode(part) for part in content} == want
    except (TypeError, ValueError, KeyError):
        return False


def _same_items(pairs: list[Any], want: dict[Any, Any]) -> bool:
    got = {decode(key): part for key, part in pairs}
    return all(key in got and same(got[key], part) for key, part in want.items())


def _same_number(data: Any, want: complex) -> bool:
    try:
        got = data if isinstance(data, (int, float)) else decode(data)
        if not isinstance(got, (int, float, complex)):
            return False
        if isinstance(want, float) and isinstance(got, (int, float)):
            return math.isclose(got, want, rel_tol=1e-6, abs_tol=1e-6) or (math.isnan(got) and math.isnan(want))
        return got == want
    except (TypeError, ValueError, KeyError, OverflowError):
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
