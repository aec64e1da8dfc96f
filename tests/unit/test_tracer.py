"""Execution traces against what running the code by hand gives."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.tasks.tracer import MAX_FRAMES, START_MARK, Frame, TraceError, render, trace

NESTED = f"""def g(x):
    y = x + 1
    return y

def f(a, b):{START_MARK}
    c = g(a)
    return g(c) * b
"""
LOOP = """def f(n):
    total = 0
    for i in range(n):
        total += i
    return total
"""
CAUGHT = """def g(x):
    return 1 // x

def f(x):
    y = 5
    try:
        y = g(x)
    except ZeroDivisionError as error:
        y = -1
    return y
"""


def shown(source: str, *arguments: Any) -> list[str]:
    """As text, each event a line."""
    return render(trace(source, "f", arguments))


def told(frames: Sequence[Frame]) -> list[tuple[Any, ...]]:
    """Event, activation, number of the line, and locals or value."""
    return [(f.event[0], f.activation, f.number, dict(f.local) if f.value is None else f.value) for f in frames]


def test_a_call_its_lines_and_its_return() -> None:
    source = f"def f(a, b):{START_MARK}\n    c = a + b\n    return c"
    assert shown(source, 2, 3) == [
        '<|call_sep|>{"a": "2", "b": "3"}<|action_sep|>def f(a, b):',
        '<|line_sep|>{"a": "..", "b": ".."}<|action_sep|>    c = a + b',
        '<|line_sep|>{"a": "..", "b": "..", "c": "5"}<|action_sep|>    return c',
        '<|return_sep|><|action_sep|>    return c<|arg_sep|>"5"',
    ]


def test_calls_of_the_source_are_followed_and_have_their_own_locals() -> None:
    assert told(trace(NESTED, "f", (1, 10))) == [
        ("c", 0, 5, {"a": "1", "b": "10"}),
        ("l", 0, 6, {"a": "1", "b": "10"}),
        ("c", 1, 1, {"x": "1"}),
        ("l", 1, 2, {"x": "1"}),
        ("l", 1, 3, {"x": "1", "y": "2"}),
        ("r", 1, 3, "2"),
        ("l", 0, 7, {"a": "1", "b": "10", "c": "2"}),
        ("c", 2, 1, {"x": "2"}),
        ("l", 2, 2, {"x": "2"}),
        ("l", 2, 3, {"x": "2", "y": "3"}),
        ("r", 2, 3, "3"),
        ("r", 0, 7, "30"),
    ]


def test_what_another_call_showed_is_shown_again() -> None:
    texts = shown("def g(x):\n    return x\n\ndef f(x):\n    g(x)\n    g(x)\n    g(x)\n    return x", 4)
    calls = [text for text in texts if "def g" in text]
    assert calls == ['<|call_sep|>{"x": "4"}<|action_sep|>def g(x):'] * 3, "frames of ended calls may share their ids"
    assert texts[-2] == '<|line_sep|>{"x": ".."}<|action_sep|>    return x'


def test_recursion_has_a_call_for_every_depth() -> None:
    frames = trace("def f(n):\n    if n == 0:\n        return 0\n    return 1 + f(n - 1)", "f", (3,))
    assert [(f.event, f.activation, f.local["n"]) for f in frames if f.event == "call"] == [
        ("call", depth, str(3 - depth)) for depth in range(4)
    ]
    assert [(f.activation, f.value) for f in frames if f.event == "return"] == [(3, "0"), (2, "1"), (1, "2"), (0, "3")]


def test_a_loop_stands_on_its_line_before_every_turn_and_at_its_end() -> None:
    frames = trace(LOOP, "f", (2,))
    assert [frame.number for frame in frames] == [1, 2, 3, 4, 3, 4, 3, 5, 5]
    assert render(frames)[2:7] == [
        '<|line_sep|>{"n": "..", "total": "0"}<|action_sep|>    for i in range(n):',
        '<|line_sep|>{"n": "..", "total": "..", "i": "0"}<|action_sep|>        total += i',
        '<|line_sep|>{"n": "..", "total": "..", "i": ".."}<|action_sep|>    for i in range(n):',
        '<|line_sep|>{"n": "..", "total": "..", "i": "1"}<|action_sep|>        total += i',
        '<|line_sep|>{"n": "..", "total": "1", "i": ".."}<|action_sep|>    for i in range(n):',
    ]


def test_an_exception_ends_every_call_it_passes_and_is_caught_in_one() -> None:
    assert told(trace(CAUGHT, "f", (0,))) == [
        ("c", 0, 4, {"x": "0"}),
        ("l", 0, 5, {"x": "0"}),
        ("l", 0, 6, {"x": "0", "y": "5"}),
        ("l", 0, 7, {"x": "0", "y": "5"}),
        ("c", 1, 1, {"x": "0"}),
        ("l", 1, 2, {"x": "0"}),
        ("e", 1, 2, "ZeroDivisionError: integer division or modulo by zero"),
        ("e", 0, 7, "ZeroDivisionError: integer division or modulo by zero"),
        ("l", 0, 8, {"x": "0", "y": "5"}),
        ("l", 0, 9, {"x": "0", "y": "5", "error": "ZeroDivisionError('integer division or modulo by zero')"}),
        ("l", 0, 10, {"x": "0", "y": "-1"}),
        ("r", 0, 10, "-1"),
    ]
    assert render(trace(CAUGHT, "f", (0,)))[6] == (
        "<|exception_sep|><|action_sep|>    return 1 // x<|arg_sep|>"
        '"ZeroDivisionError: integer division or modulo by zero"'
    )


def test_an_exception_that_nobody_catches_ends_the_trace() -> None:
    frames = trace("def f(x):\n    raise KeyError(x)", "f", ("a",))
    assert told(frames)[-1] == ("e", 0, 2, "KeyError: 'a'")
    assert [frame.event for frame in frames] == ["call", "line", "exception"]


def test_a_return_is_told_after_a_caught_exception() -> None:
    source = "def f(x):\n    try:\n        return 1 // x\n    except ZeroDivisionError:\n        return 7"
    assert told(trace(source, "f", (0,)))[-1] == ("r", 0, 5, "7")


def test_changed_values_and_those_that_came_back_are_told_unchanged_ones_are_not() -> None:
    source = "def f(x):\n    y = [x]\n    y.append(x)\n    x = 1\n    del y\n    y = [1, 1]\n    return y"
    locals_ = [json.loads(text.split("|>")[1].removesuffix("<|action_sep")) for text in shown(source, 1)[:-1]]
    assert locals_ == [
        {"x": "1"},
        {"x": ".."},
        {"x": "..", "y": "[1]"},
        {"x": "..", "y": "[1, 1]"},
        {"x": "..", "y": ".."},
        {"x": ".."},
        {"x": "..", "y": "[1, 1]"},
    ]


def test_a_value_that_an_exception_hid_is_shown_afterwards() -> None:
    source = "def f(x):\n    try:\n        x = (y := 5) // 0\n    except ZeroDivisionError:\n        pass\n    return y"
    assert '{"x": "..", "y": "5"}' in shown(source, 1)[4]


def test_what_is_not_of_the_source_is_not_followed() -> None:
    frames = trace("def f(xs):\n    return sorted(json.loads(xs))\nimport json", "f", ("[2, 1]",))
    assert [frame.event for frame in frames] == ["call", "line", "return"]
    frames = trace("def f(n):\n    return sum([i for i in range(n)]) + (lambda: 1)()", "f", (3,))
    assert {frame.activation for frame in frames} == {0}


@pytest.mark.parametrize(
    ("source", "arguments", "words"),
    [
        ("x = 1", (), "the source defines no function f"),
        ("f = 3", (), "the source defines no function f"),
        ("def f(a):\n    return a", (), "f cannot be called: "),
        ("def f(n):\n    while True:\n        n += 1", (0,), f"more than {MAX_FRAMES} events"),
        (
            "def f(n):\n    while True:\n        try:\n            n += 1\n        except Exception:\n            pass",
            (0,),
            f"more than {MAX_FRAMES} events",
        ),
    ],
)
def test_what_cannot_be_traced(source: str, arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(TraceError, match=words):
        trace(source, "f", arguments)


def test_a_tracer_that_was_there_before_is_there_after() -> None:
    def mine(*_: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(mine)
    try:
        trace(LOOP, "f", (1,))
        with pytest.raises(TraceError):
            trace("def f(n):\n    while True:\n        n += 1", "f", (0,))
        assert sys.gettrace() is mine
    finally:
        sys.settrace(before)


operands = st.one_of(st.sampled_from("ab"), st.integers(-9, 9).map(str))
assignments = st.tuples(st.sampled_from("abc"), operands, st.sampled_from("+-*"), operands)


@given(st.lists(assignments, min_size=1, max_size=8), st.integers(-9, 9), st.integers(-9, 9))
def test_straight_lines_are_what_an_evaluation_by_hand_gives(
    body: Sequence[tuple[str, str, str, str]], a: int, b: int
) -> None:
    lines = [f"    {target} = {left} {operator} {right}" for target, left, operator, right in body]
    frames = trace("\n".join(["def f(a, b):", *lines, "    return a"]), "f", (a, b))
    values: dict[str, int] = {"a": a, "b": b}
    before = [dict(values)]
    for target, left, operator, right in body:
        one, other = (values[text] if text in values else int(text) for text in (left, right))
        values[target] = {"+": one + other, "-": one - other, "*": one * other}[operator]
        before.append(dict(values))
    assert [frame.event for frame in frames] == ["call", *["line"] * (len(body) + 1), "return"]
    assert [{name: int(held) for name, held in frame.local.items()} for frame in frames[1:-1]] == before
    assert frames[-1].value == str(values["a"])


@given(st.integers(0, 5), st.integers(-3, 3))
def test_the_whole_state_can_be_read_back(turns: int, start: int) -> None:
    source = (
        "def g(x, k):\n    y = x * k\n    return y\n\n"
        "def f(n, x):\n    t = 0\n    for i in range(n):\n        if i % 2:\n            t += g(x, i)\n    return t"
    )
    frames = trace(source, "f", (turns, start))
    stack: list[dict[str, str]] = []
    for frame, text in zip(frames, render(frames), strict=True):
        if frame.event == "return":
            stack.pop()
            continue
        given_ = read(text)
        if frame.event == "call":
            assert ".." not in given_.values()
            stack.append({})
        stack[-1] = {name: stack[-1][name] if held == ".." else held for name, held in given_.items()}
        assert stack[-1] == frame.local
    assert stack == []


def read(text: str) -> Mapping[str, str]:
    """The locals of a frame's text."""
    head, _, _ = text.partition("<|action_sep|>")
    return dict(json.loads(head.split("_sep|>", 1)[1]))
