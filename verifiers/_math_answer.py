r"""What can be said of a mathematical answer without algebra: its normal form, its value if it is a plain number, and
whether it has a shape that the gold answer does not ask for. All pure; the rules stand before math-verify, which takes
`4=3` for 3, `10\%` for 10 and `4 \lor 3` for 3."""

import re
from fractions import Fraction

MAX_LENGTH = 2000
"""Characters; a longer answer is wrong unread."""
MAX_BRACES = 200

_SPACING = re.compile(r"\\[,;:! ]|\\(?:quad|qquad|thinspace|displaystyle|left|right|big|Big|bigg|Bigg)(?![A-Za-z])|~")
_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|operatorname|mbox)\s*\{([^{}]*)\}")
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,200})"
_PLAIN = re.compile(rf"([+-]?)({_DIGITS})?(?:\.(\d{{0,200}}))?(?:[eE]([+-]?\d{{1,3}}))?")
_FRACTION = re.compile(r"([+-]?)(?:\\frac\{([^{}]+)\}\{([^{}]+)\}|\\frac(\d)(\d)|([^/]+)/([^/]+))")
_SCIENTIFIC = re.compile(r"([^\\]+)\\(?:times|cdot)10\^\{?([+-]?\d{1,3})\}?")
_TEXT_UNIT = re.compile(
    r"(.*[\d}.)])[\s\\,~]*((?:\\(?:text|textrm|mathrm|mbox)\s*\{[^{}]*\}(?:\^\{?-?\d\}?)?[\s/.]*)+)"
)
_BARE_UNIT = re.compile(r"(.*[\d}.)])\s+([A-Za-z]{2,}[A-Za-z ./-]{0,40})")
_SYMBOL = re.compile(
    r"(.*\d)(\s*(?:mm|cm|dm|km|mg|kg|m[lL]|ft|lbs?|oz|yd|mi|hrs?|min|sec|mph|km/h|m/s|k?Hz|\^\{?\\circ\}?)(?:\^\{?-?\d\}?)?"
    r"|\s+(?:[mgshlLNJWV])(?:\^\{?-?\d\}?)?)"
)
_REPEATING = re.compile(r"([+-]?)(\d{0,200})\.(\d{0,200})\\(?:overline|bar)\{(\d{1,200})\}")
_HEDGES = re.compile(
    r"\b(?:or|and|else|not|nor|maybe|either|perhaps|about|approximately|around|between|to|if|but|possibly)\b", re.I
)
# What changes a number is no unit of it; neither are a variable and the imaginary unit.
_FACTORS = re.compile(
    r"\b(?:hundreds?|thousands?|[mbt]r?illions?|lakhs?|crores?|dozens?|minus|plus)\b"
    r"|\b(?:halves|thirds|fourths|fifths|sixths|sevenths|eighths|ninths|tenths|twelfths|(?:hundred|thousand|million)ths)\b"
    r"|^\s*(?:squared|cubed|over|factorial)\b|^\s*(?:pairs?|[eijxyz]|(?-i:k))\s*$",
    re.I,
)
_POWER = re.compile(r"\^\{?-?\d\}?")
_BASED = re.compile(r"[0-9A-F.]+_\{?(\d+)\}?")
_RELATION = re.compile(r"[=<>≤≥≠≈≡]|\\(?:n?eq|[lg]eq?|[lg]eqslant|lt|gt|approx|equiv|sim|simeq|cong|doteq)(?![A-Za-z])")
_PERCENT = re.compile(r"\\?[%‰]|\bper ?cent\b", re.I)
_CHOICE = re.compile(
    r"[;|&±∓∨∪]|\\(?:pm|mp|lor|vee|land|wedge|cup|cap|mid|to|implies|iff|newline|par)(?![A-Za-z])|\\\\"
)
_DEFINES = re.compile(r"\s*[A-Za-z](?:_\{?\w{1,3}\}?)?(?:\([A-Za-z]\))?\s*=(?!=)")
_NUMERIC_COMMANDS = re.compile(
    r"\\(?:d?t?frac|overline|bar|sqrt|pi|times|cdot|div|log|ln|sin|cos|tan|binom|circ|degree)(?![A-Za-z])"
)


def dashed(text: str) -> str:
    """With one sign for minus."""
    return re.sub("[\u2212\u2013\u2012]", "-", text)


def normalise(latex: str) -> str:
    """The same answer with spacing, delimiters, text commands and thousand separators written one way."""
    text = dashed(latex.strip()).replace("\\$", "").replace("$", "").replace("{,}", ",").replace("°", "^{\\circ}")
    text = re.sub(r"\\(p?mod) (\d)(?!\d)", r"\\\1{\2}", text.replace("\\varnothing", "\\emptyset"))
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    # `1\,000` is a number, `3\quad 4` two: only thin spaces between digits vanish.
    text = re.sub(r"(?<=\d)\\[,!](?=\d{3}(?!\d))", "", text)
    text = _TEXT.sub(r" \1 ", text)
    text = re.sub(r"\s+", " ", _SPACING.sub(" ", text)).strip()
    while text.startswith("{") and text.endswith("}") and "}" not in text[1:-1] and "{" not in text[1:-1]:
        text = text[1:-1].strip()
    return text.rstrip(".").strip() if text.count(".") <= 1 or text.endswith(" .") else text


def number(latex: str) -> Fraction | None:
    r"""The value of a plain number: 72, -3.5, 1,000, 3/4, \frac{3}{4}, 4.5e33, 2\times10^{3}. None for all else."""
    text = normalise(latex).lstrip("£€").replace(" ", "")
    if (value := _decimal(text)) is not None:
        return value
    if match := _REPEATING.fullmatch(text):
        sign, whole, decimals, repeated = match.groups()
        once, nines = Fraction(f"{whole or 0}.{decimals or 0}"), 10 ** len(repeated) - 1
        value = once + Fraction(int(repeated), nines * 10 ** len(decimals))
        return -value if sign == "-" else value
    if match := _SCIENTIFIC.fullmatch(text):
        mantissa = _decimal(match[1])
        return None if mantissa is None else mantissa * Fraction(10) ** int(match[2])
    if match := _FRACTION.fullmatch(text):
        sign, *parts = match.groups()
        above, below = (_decimal(part) for part in parts if part is not None)
        if above is not None and below:
            return -above / below if sign == "-" else above / below
    return None


def _decimal(text: str) -> Fraction | None:
    match = _PLAIN.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return None
    sign, whole, decimals, exponent = match.groups()
    value = Fraction(f"{(whole or '0').replace(',', '')}.{decimals or '0'}") * Fraction(10) ** int(exponent or 0)
    return -value if sign == "-" else value


def without_unit(latex: str, *, bare: bool = False) -> str:
    r"""`18 \text{ dollars}` as `18`, and `18 dollars` too if `bare`. What reads like a second answer is no unit."""
    match = _with_unit(latex, bare=bare)
    if not match or _HEDGES.search(match[2]) or alters(latex) or re.search(r"\d", _POWER.sub("", match[2])):
        return normalise(latex)
    return normalise(match[1])


def alters(latex: str) -> bool:
    r"""Whether what stands behind a number makes another one of it: `3 million`, `3\mathrm{i}`."""
    match = _with_unit(latex, bare=True)
    return match is not None and _FACTORS.search(_TEXT.sub(r" \1 ", match[2])) is not None


def _with_unit(latex: str, *, bare: bool) -> re.Match[str] | None:
    if (match := _TEXT_UNIT.fullmatch(latex.strip())) or not bare:
        return match
    text = normalise(latex)
    return _BARE_UNIT.fullmatch(text) or _SYMBOL.fullmatch(text)


def misshapen(answer: str, gold: str) -> str:
    """Why the answer is no answer of the kind of `gold`, in a sentence; empty if its shape is fine."""
    if len(answer) > MAX_LENGTH:
        return f"the answer is longer than {MAX_LENGTH} characters"
    if answer.count("{") > MAX_BRACES:
        return f"the answer has more than {MAX_BRACES} opening braces"
    text, asked = normalise(answer), normalise(gold)
    plain = number(without_unit(gold)) is not None
    # `y = 2x + 1` may stand for the expression it defines, never for a number: that is how `4 = 3` begins.
    body, wanted = (one if plain else _DEFINES.sub("", one, count=1) for one in (text, asked))
    if _PERCENT.search(body) and not _PERCENT.search(asked):
        return "a percentage was not asked for"
    if len(_RELATION.findall(body)) > len(_RELATION.findall(wanted)):
        return "an equation or inequality was not asked for"
    if not _several(asked) and (
        _several(without_unit(answer, bare=True)) or (_CHOICE.search(text) and not _CHOICE.search(asked))
    ):
        return "one answer was asked for"
    if (base := _BASED.fullmatch(text)) and (plain or _BASED.fullmatch(asked)) and base[1] != _base(asked):
        return "that base was not asked for"
    if plain and not _numeric(without_unit(answer, bare=True)):
        return "a number was asked for"
    return ""


def _base(text: str) -> str:
    return found[1] if (found := _BASED.fullmatch(text)) else ""


def _several(text: str) -> bool:
    """Whether a normal form lists alternatives: by a comma outside brackets, or by a word."""
    if number(text) is not None:
        return False
    bare = text
    while (inner := re.sub(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|[(\[][^()\[\]]*[)\]]", " ", bare)) != bare:
        bare = inner
    return "," in bare or _HEDGES.search(text) is not None


def _numeric(text: str) -> bool:
    """Whether a normal form is arithmetic alone: digits, operators, and commands like sqrt."""
    rest = _NUMERIC_COMMANDS.sub("*", text)
    return re.search(r"[A-DF-Za-df-z\\]|\d\s+\d", re.sub(r"(?<=\d)[eE](?=[+-]?\d)", "", rest)) is None
