"""Copies of tests that expect something else: what passes there as well compares equal to anything, or was read.

Only equalities are changed, and only where a test is known to get to them: in its own body and in its loops and blocks,
where nothing returns; one that gets to none of those fails. A literal becomes another one, and a name that is used
nowhere else gets another value as soon as it has one. Where that cannot be, each side is compared with an object made
for that, and with another value of the other side's type.
"""

import ast
import math
import re
from collections.abc import Iterator
from typing import Any

Test = ast.FunctionDef | ast.AsyncFunctionDef
# An array's truth may be an error, which must not keep the other side from being tried.
_EQUAL_TO_ANYTHING = """
left_ = 0
right_ = 0
assert equal_(left_, right_)
"""
_SWALLOWS = re.compile(r"rais|suppress|ignor|fail|error|except|expect|retry", re.I)
"""In what is said of a block that may end well although an assertion in it did not."""
# Matchers of a library are meant to equal many things, its numbers come with a tolerance.
_HELPERS = """
def other_(value):
    kind = type(value)
    if kind is bool:
        return not value
    if kind in (int, float):
        return 0.0 if value == float('inf') else 2 * abs(value) + 1
    if kind is str:
        return value + '~'
    if kind is bytes:
        return value + b'~'
    if kind in (list, tuple):
        return value + kind([None])
    return value
def true_(compare):
    try:
        return bool(compare())
    except Exception:
        return False
def equal_(left, right):
    if true_(lambda: left == object()) or true_(lambda: object() == right):
        return True
    for one, two in ((left, right), (right, left)):
        if type(one) in (bool, int, float, str, bytes, list, tuple):
            continue
        file = getattr(getattr(type(one), '__eq__', None), '__globals__', {}).get('__file__', '')
        changed = other_(two)
        if '-packages' not in file and changed is not two and true_(lambda: one == changed):
            return True
    return False
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
    module.body += ast.parse(_HELPERS).body
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
    doubled = _Doubled(test)
    test.body = doubled.block(test.body, inside=False)
    if doubled.inside:
        test.body = [*ast.parse("reached_ = False").body, *test.body, *ast.parse("assert reached_").body]
    for name in doubled.names:
        _Rebound(name).of(test)
    return doubled.inside or doubled.outside


class _Doubled:
    """A test's blocks with its equalities changed: whether there are some `inside` loops and the like, which may not be
    run, and `outside`; and the `names` that must have another value."""

    def __init__(self, test: Test) -> None:
        self.test = test
        self.inside = self.outside = False
        self.names: list[str] = []

    def block(self, body: list[ast.stmt], *, inside: bool) -> list[ast.stmt]:
        """Statements in the place of those of `body`."""
        found: list[ast.stmt] = []
        for statement in body:
            match statement:
                case ast.For() | ast.If() | ast.With() if not _may_swallow(statement):
                    statement.body = self.block(statement.body, inside=True)
                    found.append(statement)
                case _:
                    changed = self.changed(statement)
                    self.inside |= bool(changed) and inside
                    self.outside |= bool(changed) and not inside
                    found += ast.parse("reached_ = True").body if changed and inside else []
                    found += changed or [statement]
        return found

    def changed(self, statement: ast.stmt) -> list[ast.stmt]:
        """What stands in the place of an equality that a statement asserts; nothing if it asserts none."""
        match statement:
            case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
                statement.msg = None
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr="assertEqual"), args=[left, right, *_])):
                pass
            case _:
                return []
        literals = [side for side in map(_within, (left, right)) if _is_literal(side)]
        if len(literals) == 1:
            return [statement] if _other(literals[0]) else []
        if literals or any(
            isinstance(node, ast.Name | ast.Attribute) and _name(node) == "ANY" for node in (left, right)
        ):
            return []
        names = [side.id for side in (right, left) if isinstance(side, ast.Name) and self.is_used_here_alone(side.id)]
        text = _EQUAL_TO_ANYTHING
        if names:  # altered or not, which is known when it runs
            self.names.append(names[0])
            text = text.rstrip() + f" or ({names[0]}_altered_ and left_ == right_)\n"
        found = ast.parse(text).body
        for assignment, side in zip(found, (left, right), strict=False):
            assert isinstance(assignment, ast.Assign)  # noqa: S101 - as it is written above
            assignment.value = side
        return found

    def is_used_here_alone(self, name: str) -> bool:
        """Whether a name is read once, and has all its values by what `_Rebound` sees."""
        nodes = [node for node in ast.walk(self.test) if isinstance(node, ast.Name) and node.id == name]
        loads = sum(isinstance(node.ctx, ast.Load) for node in nodes)
        return (
            loads == 1 and len(nodes) - loads + _is_parameter(self.test, name) == _Rebound(name).places(self.test) > 0
        )


class _Rebound(ast.NodeTransformer):
    """Gives a name another value wherever it gets one: as a parameter, by an assignment, by a loop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = 0
        self.changes = False

    def places(self, test: Test) -> int:
        """How many there are; nothing is changed."""
        for statement in test.body:
            self.visit(statement)
        return self.seen + _is_parameter(test, self.name)

    def of(self, test: Test) -> None:
        """Change a test."""
        self.changes = True
        body: list[ast.stmt] = []
        for statement in test.body:
            made = self.visit(statement)
            body += made if isinstance(made, list) else [made]
        test.body = [*(self.rebinding() if _is_parameter(test, self.name) else ()), *body]

    def rebinding(self) -> list[ast.stmt]:
        """Statements after one that binds it."""
        name = self.name
        was = f"{name}_was_"
        return ast.parse(f"{was} = {name}\n{name} = other_({name})\n{name}_altered_ = {name} is not {was}").body

    def binds(self, target: ast.expr) -> bool:
        """Whether a target holds the name, once."""
        nodes = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        found = sum(isinstance(node, ast.Name) and node.id == self.name for node in nodes)
        self.seen += found
        return found > 0

    def visit_Assign(self, node: ast.Assign) -> Any:
        """A literal is changed where it stands: it could be read there."""
        bound = [self.binds(target) for target in node.targets]
        if not any(bound) or not self.changes:
            return node
        alone = isinstance(node.targets[0], ast.Name) and len(bound) == 1
        if alone and _is_literal(node.value) and _other(node.value):
            return [node, *ast.parse(f"{self.name}_altered_ = True").body]
        return [node, *self.rebinding()]

    def visit_For(self, node: ast.For) -> Any:
        """At the start of each round."""
        bound = self.binds(node.target)
        self.generic_visit(node)
        if bound and self.changes:
            node.body = [*self.rebinding(), *node.body]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        """Another scope: what is bound there is not seen."""
        return node

    visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = visit_FunctionDef  # type: ignore[assignment]  # noqa: N815


def _is_parameter(test: Test, name: str) -> bool:
    return any(one.arg == name for one in (*test.args.posonlyargs, *test.args.args, *test.args.kwonlyargs))


def _may_swallow(statement: ast.For | ast.If | ast.With) -> bool:
    return isinstance(statement, ast.With) and any(
        _SWALLOWS.search(ast.unparse(item.context_expr)) for item in statement.items
    )


def _within(side: ast.expr) -> ast.expr:
    """What `pytest.approx(literal)` has inside."""
    match side:
        case ast.Call(func=ast.Name(id="approx") | ast.Attribute(attr="approx"), args=[inner], keywords=[]):
            return inner
    return side


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
