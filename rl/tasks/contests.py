"""Rows of programming contests (APPS and TACO, LiveCodeBench, code_contests), which test programs or functions."""

import base64
import json
import pickletools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rl.tasks.drafts import Draft
from rl.tasks.rows import Row
from verifiers.code_tests import JSON

IMPORTS: Final = "".join(
    f"{line}\n"
    for line in (
        "import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string, sys",
        "from collections import Counter, OrderedDict, defaultdict, deque",
        "from functools import cache, lru_cache, reduce",
        "from itertools import accumulate, combinations, permutations, product",
        "from typing import Any, Dict, List, Optional, Set, Tuple, Union",
    )
)
"""What solutions of functions count on: contests have it imported."""
UNPACKED_BYTES: Final = 256 << 20
PASSIVE: Final = {"PROTO", "FRAME", "MEMOIZE", "STOP", "BINPUT", "LONG_BINPUT", "PUT"}
TEXT: Final = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}


def apps(row: Row) -> Draft:
    """APPS and TACO: `input_output` is JSON of {"inputs", "outputs"}, and "fn_name" where a function is asked for."""
    pairs = _loaded(row, "tests")
    if not isinstance(pairs, Mapping) or not all(isinstance(pairs.get(key), list) for key in ("inputs", "outputs")):
        raise row.error("needs the lists 'inputs' and 'outputs'", "tests")
    given, wanted = pairs["inputs"], pairs["outputs"]
    if len(given) != len(wanted):
        raise row.error(f"has {len(given)} inputs and {len(wanted)} outputs", "tests")
    name = pairs.get("fn_name")
    if not name:
        return _programs(row, [_stdin_test(row, one, other) for one, other in zip(given, wanted, strict=True)], [])
    if all(isinstance(value, list) and len(value) == 1 for value in wanted):  # most rows wrap them, some do not
        wanted = [value[0] for value in wanted]
    if not all(isinstance(args, list) for args in given):
        raise row.error("needs a list of arguments in each of its inputs", "tests")
    tests = [_call(name, args, expected) for args, expected in zip(given, wanted, strict=True)]
    return _functions(row, str(name), tests, [])


def livecodebench(row: Row) -> Draft:
    """Public tests are shown. Hidden ones are JSON, often pickled, packed, in base64: taken out without unpickling."""
    public, hidden = _cases(row, "public_tests"), _cases(row, "hidden_tests") if row.has("hidden_tests") else []
    if not any(case.get("testtype") == "functional" for case in (*public, *hidden)):
        shown, more = ([_stdin_test(row, c.get("input"), c.get("output")) for c in part] for part in (public, hidden))
        return _programs(row, shown + more, shown)
    metadata = _loaded(row, "metadata") if row.has("metadata") else {}
    name = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str):
        raise row.error("names no function in 'func_name'", "metadata")
    shown, more = ([_functional(row, name, case) for case in part] for part in (public, hidden))
    return _functions(row, name, shown + more, shown)


def code_contests(row: Row) -> Draft:
    """DeepMind's three columns of tests, {"input": [...], "output": [...]} each, or one of {"input", "output"}."""
    if row.has("tests"):
        return _programs(row, [_contest_test(row, case) for case in _listed(row, "tests")], [])
    parts = {name: _pairs(row, name) for name in ("public_tests", "hidden_tests", "generated_tests") if row.has(name)}
    tests = [test for part in parts.values() for test in part]
    return _programs(row, tests, parts.get("public_tests", []))


def _programs(row: Row, tests: list[dict[str, Any]], shown: list[dict[str, Any]]) -> Draft:
    if not tests:
        raise row.error("has no tests")
    prompt = f"{row.text('prompt').strip()}\n\nRead from standard input, write to standard output."
    return Draft(prompt, "code", {"stdin_tests": tests}, {"tests": shown} if shown else {})


def _functions(row: Row, name: str, tests: list[dict[str, Any]], shown: list[dict[str, Any]]) -> Draft:
    if not tests:
        raise row.error("has no tests")
    prompt = f"{row.text('prompt').strip()}\n\nWrite `{name}`, as a function or as a method of a class `Solution`."
    if row.has("starter") and str(row.get("starter")).strip():
        prompt += f" Begin with:\n\n```python\n{str(row.get('starter')).strip()}\n```"
    how = {"preamble": IMPORTS, "compare": JSON}  # as those harnesses compare
    return Draft(prompt, "code", {"tests": tests, **how}, {"tests": shown, **how} if shown else {})


def _call(name: object, args: list[Any], expected: Any) -> dict[str, Any]:
    return {"call": name, "args": args, "expected": expected}


def _functional(row: Row, name: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments are JSON, a line each."""
    try:
        lines = str(case.get("input", "")).split("\n")  # JSON may hold other ends of lines as they are
        return _call(name, [json.loads(line) for line in lines if line.strip()], json.loads(str(case.get("output"))))
    except (ValueError, RecursionError) as error:
        raise row.error(f"has a test that is no JSON: {error}") from error


def _stdin_test(row: Row, given: Any, wanted: Any) -> dict[str, str]:
    stdin, stdout = ("\n".join(map(str, value)) if isinstance(value, list) else value for value in (given, wanted))
    if not isinstance(stdin, str) or not isinstance(stdout, str):
        raise row.error("has a test whose input or output is no text")
    return {"stdin": stdin, "stdout": stdout}


def _contest_test(row: Row, case: Any) -> dict[str, str]:
    given, wanted = (case.get(key) for key in ("input", "output")) if isinstance(case, Mapping) else (None, None)
    if isinstance(given, Mapping) and isinstance(wanted, Mapping):
        given, wanted = given.get("stdin"), wanted.get("stdout")
    return _stdin_test(row, given, wanted)


def _pairs(row: Row, field: str) -> list[dict[str, str]]:
    columns = _loaded(row, field)
    given, wanted = (columns.get(key) for key in ("input", "output")) if isinstance(columns, Mapping) else (None, None)
    if not isinstance(given, list) or not isinstance(wanted, list) or len(given) != len(wanted):
        raise row.error("needs as many 'input' as 'output'", field)
    return [_stdin_test(row, one, other) for one, other in zip(given, wanted, strict=True)]


def _cases(row: Row, field: str) -> list[Mapping[str, Any]]:
    cases = _listed(row, field)
    if not all(isinstance(case, Mapping) for case in cases):
        raise row.error("must be a list of objects", field)
    return cases


def _listed(row: Row, field: str) -> list[Any]:
    value = _loaded(row, field)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise row.error("must be a list, or a text of JSON that is one", field)
    return list(value)


def _loaded(row: Row, field: str) -> Any:
    """The value itself, or what its text says in JSON, packed or not. Raises DataError."""
    value = row.get(field)
    if not isinstance(value, str):
        return value
    text = value if value.lstrip()[:1] in ("[", "{", "") else _unpacked(row, field, value)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise row.error(f"is no JSON: {error}", field) from error


def _unpacked(row: Row, field: str, packed: str) -> str:
    """The one text of a pickle that holds nothing else, found without running it. Raises DataError."""
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(packed, validate=True), UNPACKED_BYTES)
        if stream.unconsumed_tail:
            raise row.error(f"unpacks to more than {UNPACKED_BYTES >> 20} MiB", field)
        texts = list(_texts(data))
    except (ValueError, zlib.error) as error:
        raise row.error(f"is neither JSON nor a packed text: {error}", field) from error
    if len(texts) != 1:
        raise row.error("is a pickle of more than one text, which is not loaded: it could run anything", field)
    return texts[0]


def _texts(pickled: bytes) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in TEXT:
            yield str(argument)
        elif opcode.name not in PASSIVE:
            raise ValueError(f"it is a pickle with {opcode.name}, which is not loaded: it could run anything")
