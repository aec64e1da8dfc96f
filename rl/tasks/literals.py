"""Tests read out of source text, without running any of it."""

import ast
import builtins
import doctest
from typing import Any

TestRow = dict[str, Any]
"""{"call", "args", "kwargs", "expected"}, the rows that `verifiers.code` takes."""


def call_test(text: str) -> TestRow | None:
    """The row for `assert f(1, key=2) == 3` or the same without `assert`; None unless all of it is literal."""
    try:
        node: ast.AST = ast.parse(text.strip()).body[0]
    except (SyntaxError, ValueError, IndexError, RecursionError, MemoryError):
        return None
    test = node.test if isinstance(node, ast.Assert) else node.value if isinstance(node, ast.Expr) else None
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        return None
    return _row(test.left, test.comparators[0])


def examples(prompt: str, entry_point: str) -> list[TestRow]:
    """The examples `>>> f(…)` of a function's docstring whose call and result are literal."""
    rows = []
    try:
        found = doctest.DocTestParser().get_examples(prompt)
    except ValueError:
        return []
    for example in found:
        row = call_test(f"{example.source.strip()} == {example.want.strip()}")
        if row is not None and row["call"] == entry_point:
            rows.append(row)
    return rows


def called_function(text: str) -> str | None:
    """The function that a test is about: the outermost call in it of a name that is not built in."""
    try:
        tree = ast.parse(text.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return next((name for name in names if name not in dir(builtins)), None)


def _row(call: ast.expr, expected: ast.expr) -> TestRow | None:
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        return None
    if any(keyword.arg is None for keyword in call.keywords):
        return None
    try:
        return {
            "call": call.func.id,
            "args": [ast.literal_eval(arg) for arg in call.args],
            "kwargs": {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords},
            "expected": ast.literal_eval(expected),
        }
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None
