"""Copies of tests that expect something else: what passes there as well compares equal to anything.

Only equalities are changed, and only where a test is sure to get to them: among the statements of its own body, where
nothing returns. A literal becomes another one; where no side is one, each is compared with an object made for that.
"""

import ast
import math
from collections.abc import Iterator

Test = ast.FunctionDef | ast.AsyncFunctionDef
# An array's truth may be an error, which must not keep the other side from being tried.
_EQUAL_TO_ANYTHING = """
left_ = 0
right_ = 0
try:
    equal_ = bool(left_ == object())
except Exception:
    equal_ = False
assert equal_ or object() == right_
"""


def double(source: str, names: set[str]) -> tuple[str, set[str]]:
    """A copy, and which of `names` (such as `test_a` or `TestB::test_c`) expect something else in it: they alone of its
    tests are there."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return source, set()
    tests = list(_tests(module))
    changed = {name for name, test in tests if name in names and _change(test)}
    others = {test for name, test in tests if name not in changed and test.name.startswith("test")}
    bodies: list[list[ast.stmt]] = [module.body, *(node.body for node in module.body if isinstance(node, ast.ClassDef))]
    for body in bodies:
        body[:] = [one for one in body if one not in others] or [ast.Pass()]
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
    found = [(_changed(statement), statement) for statement in test.body]
    test.body = [one for changed, statement in found for one in changed or [statement]]
    return any(changed for changed, _ in found)


def _changed(statement: ast.stmt) -> list[ast.stmt]:
    """What stands in the place of an equality that a statement asserts; nothing if it asserts none."""
    match statement:
        case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
            pass
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="assertEqual"), args=[left, right, *_])):
            pass
        case _:
            return []
    literals = [side for side in (left, right) if _is_literal(side)]
    if len(literals) == 1:
        return [statement] if _other(literals[0]) else []
    if literals or any(isinstance(node, ast.Name | ast.Attribute) and _name(node) == "ANY" for node in (left, right)):
        return []
    found = ast.parse(_EQUAL_TO_ANYTHING).body
    for assignment, side in zip(found, (left, right), strict=False):
        assert isinstance(assignment, ast.Assign)  # noqa: S101 - as it is written above
        assignment.value = side
    return found


def _name(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


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
                case int() | float():  # never negative here; far enough for what compares with a tolerance
                    node.value = 0.0 if math.isinf(node.value) else 2 * node.value + 1
                case str():
                    node.value += "~"
                case bytes():
                    node.value += b"~"
                case _:
                    continue
            return True
    return False
