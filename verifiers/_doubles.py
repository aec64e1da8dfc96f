"""Copies of tests that expect something else: what passes there as well compares equal to anything.

Only equalities with a literal are changed, and only where a test is sure to get to them: among the statements of its
own body, where nothing returns.
"""

import ast
from collections.abc import Iterator

Test = ast.FunctionDef | ast.AsyncFunctionDef


def double(source: str, names: set[str]) -> tuple[str, set[str]]:
    """A copy, and which of `names` (such as `test_a` or `TestB::test_c`) expect something else in it."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return source, set()
    changed = {name for name, test in _tests(module) if name in names and _change(test)}
    return ast.unparse(module), changed


def _tests(module: ast.Module) -> Iterator[tuple[str, Test]]:
    for node in module.body:
        if isinstance(node, Test):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, Test):
                    yield f"{node.name}::{inner.name}", inner


def _change(test: Test) -> bool:
    """Whether one of its equalities could be changed; all that can be are."""
    if any(isinstance(node, ast.Return) for node in ast.walk(test)):
        return False
    return any([_other(literal) for statement in test.body for literal in _literals(statement)])  # noqa: C419 - all


def _literals(statement: ast.stmt) -> Iterator[ast.expr]:
    """The literal side of an equality that a statement asserts, if it has one."""
    sides: list[ast.expr] = []
    match statement:
        case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
            sides = [left, right]
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="assertEqual"), args=[left, right, *_])):
            sides = [left, right]
    literals = [side for side in sides if _is_literal(side)]
    if len(literals) == 1:
        yield literals[0]


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _other(literal: ast.expr) -> bool:
    """Change its first constant; whether there is one."""
    for node in ast.walk(literal):
        if isinstance(node, ast.Constant):
            match node.value:
                case bool():
                    node.value = not node.value
                case int() | float():
                    node.value += 1
                case str():
                    node.value += "~"
                case bytes():
                    node.value += b"~"
                case _:
                    continue
            return True
    return False
