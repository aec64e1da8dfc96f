r"""The same answer in the gold's form, where people write it in several: `k=2` for 2, `x=1 \text{ or } x=2` for `1,2`,
`1, 2` for `\{1,2\}`, `2,-2` for `\pm 2`, `x \ge 0` for `[0,\infty)`, `(B) 5` for B. Pure; what comes out is compared as
ever, and what has none of these forms stays as it is."""

import re

from verifiers._math_answer import MAX_LENGTH, dashed, normalise, number, without_unit

_VARIABLE = r"[A-Za-z](?:_\{?\w{1,3}\}?)?"
_NAMED = re.compile(rf"({_VARIABLE})(?:\([A-Za-z]\))? ?=(?!=) ?(.+)")
_NAMED_POINT = re.compile(rf"\( ?{_VARIABLE}(?: ?, ?{_VARIABLE})+ ?\) ?= ?(\(.+\))")
_LISTED = re.compile(r",|;|\b(?:or|and)\b")
_SIGNS = re.compile(r"([^±]*?)(?:\\pm(?![A-Za-z])|±) ?([^±+-]+)")
_HALF_LINE = re.compile(r"\( ?- ?\\infty ?, ?[^,]+[)\]]|[(\[] ?[^,]+, ?\+? ?\\infty ?\)")
_BOUND = re.compile(r"[A-Za-z] ?(\\geqslant|\\leqslant|\\geq?|\\leq?|\\gt|\\lt|≥|≤|>=|<=|>|<) ?([^<>=≤≥,]+)")
_INTERVALS = {"g": "[{},\\infty)", "l": "(-\\infty,{}]", ">": "({},\\infty)", "<": "(-\\infty,{})"}
_CHOSEN = re.compile(r"\(?([A-Z])\) ?(.+)")


def alike(answer: str, gold: str) -> tuple[str, str]:
    """Answer and gold, one of them perhaps in another form."""
    answer = dashed(answer)
    if len(answer) > MAX_LENGTH:
        return answer, gold
    text, asked = normalise(answer), normalise(gold)
    if number(without_unit(gold)) is not None:
        named = _NAMED.fullmatch(text)
        return (named[2] if named else answer), gold
    if re.fullmatch(r"\(?[A-Z]\)?", asked) and (chosen := _CHOSEN.fullmatch(text)):
        return (chosen[1] if _is_remark(chosen[2]) else answer), gold
    if "=" in asked:
        return answer, gold
    if point := _NAMED_POINT.fullmatch(text):
        return point[1], gold
    if _HALF_LINE.fullmatch(asked) and (bound := _BOUND.fullmatch(text)):
        return _interval(*bound.groups()), gold
    items = _items(text)
    if len(items) > 1 and (signs := _SIGNS.fullmatch(asked)):
        before, after = (part.strip() for part in signs.groups())
        return ", ".join(items), f"{before}+{after}, {before}-{after}" if before else f"{after}, -{after}"
    if len(items) > 1 and len(_items(asked)) > 1:
        return ", ".join(items), gold
    if len(items) > 1 and re.fullmatch(r"\\\{[^{}]*\\\}", asked) and not re.search(r"[A-Za-z]{2}", text):
        return f"\\{{{', '.join(items)}\\}}", gold
    return answer, gold


def _items(text: str) -> list[str]:
    """What a normal form lists without brackets, each less the one variable that all may be values of."""
    if number(text) is not None or re.search(r"[()\[\]{}]", re.sub(r"\\[a-z]+(?:\{[^{}]*\})+", "", text)):
        return []
    parts = [part.strip() for part in _LISTED.split(text)]
    named = [_NAMED.fullmatch(part) for part in parts]
    if not all(parts) or len({match[1] for match in named if match}) > 1:
        return []
    return [match[2] if match else part for match, part in zip(named, parts, strict=True)]


def _interval(sign: str, bound: str) -> str:
    strict = {"\\gt": ">", "\\lt": "<"}.get(sign, sign)
    closed = {"≥": "g", ">=": "g", "≤": "l", "<=": "l"}.get(strict, strict.lstrip("\\")[:1])
    return _INTERVALS[closed].format(bound.strip())


def _is_remark(text: str) -> bool:
    """Whether what follows a choice can only be what it stands for."""
    return re.search(r"\b[A-Z]\b|\([A-Za-z]\)|^[,;/|&]|\b(?:or|and|not|maybe|but)\b", text) is None
