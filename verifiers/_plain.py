"""Python's plain values as JSON and back, so that nothing but data crosses a sandbox's border.

null, booleans, strings, lists, finite floats and integers up to 63 bits stand for themselves. The rest is an object
with one key: t tuple, s set, z frozenset, d dictionary as pairs, i integer in hexadecimal, f float that is not finite,
c complex, b bytes in hexadecimal, o anything else, by the name of its type, equal to nothing.

Standard library only: the same text runs on both sides of the border, and is compiled anew in every sandbox.
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
    equal = _equal_to_plain(value)
    return {"o": type(value).__name__} if equal is None else encode(equal, depth + 1)


def _equal_to_plain(value: Any) -> Any:
    """What of the standard library and of numpy stands for plain data, as that, fractions as the nearest float; else
    None."""
    kind = type(value)
    if kind is type({}.keys()) or kind is type({}.items()):
        return set(value)
    if (kind.__module__, kind.__name__) in (("fractions", "Fraction"), ("decimal", "Decimal")):
        try:
            return int(value) if value == int(value) else float(value)
        except (ValueError, OverflowError):
            return None if value == value else math.nan
    if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        plain = value.item()
        return None if type(plain) is kind else plain  # a longdouble is its own
    return None


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


def to_json(data: Any) -> str:
    """Encoded data, and dictionaries of it with ordinary keys, as JSON in ASCII."""
    if data is None or data is True or data is False:
        return {None: "null", True: "true", False: "false"}[data]
    if isinstance(data, str):
        return _quoted(data)
    if isinstance(data, (int, float)):
        return repr(data)
    if isinstance(data, list):
        return f"[{', '.join(map(to_json, data))}]"
    return f"{{{', '.join(f'{_quoted(key)}: {to_json(part)}' for key, part in data.items())}}}"


def _quoted(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    import json  # a third of Python's start, which most answers do without

    return json.dumps(text)


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
