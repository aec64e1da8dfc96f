"""Execution traces in CWM's form, made by running the code: what the variables hold before every line.

Runs source in this process: for code of our own making only.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Literal

START_MARK = "  # << START_OF_TRACE"
MAX_FRAMES = 1000
_FILE = "<traced>"
_NAMES: Mapping[str, Literal["call", "line", "return", "exception"]] = {
    "call": "call",
    "line": "line",
    "return": "return",
    "exception": "exception",
}


class TraceError(ValueError):
    """The source cannot be traced: it does not run, or not to an end."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One event: `local` as it is then, name -> repr; `value` of a return or an exception."""

    event: Literal["call", "line", "return", "exception"]
    activation: int
    """Which call it belongs to, counted from 0."""
    local: Mapping[str, str]
    number: int
    """Line number in the source, from 1."""
    line: str
    """Text of that line, without the mark of the entry."""
    value: str | None = None


def trace(source: str, entry: str, arguments: tuple[Any, ...]) -> list[Frame]:
    """Every event of `entry(*arguments)` in functions of `source`, in order.

    Raises TraceError where the source does not define `entry`, or more than MAX_FRAMES events happen.
    """
    lines = source.splitlines()
    namespace: dict[str, Any] = {"__name__": "traced"}
    exec(compile(source, _FILE, "exec"), namespace)  # noqa: S102 - source of our own making
    function = namespace.get(entry)
    if not callable(function):
        raise TraceError(f"the source defines no function {entry}")
    recorder = _Recorder(lines)
    before = sys.gettrace()
    sys.settrace(recorder.enter)
    try:
        function(*arguments)
    except _TooLongError:
        raise TraceError(f"more than {MAX_FRAMES} events") from None
    except Exception as error:  # ends a trace as a return does
        if not recorder.frames:
            raise TraceError(f"{entry} cannot be called: {error}") from error
    finally:
        sys.settrace(before)
    return recorder.frames


class _TooLongError(BaseException):
    """No Exception, so that the source's own handlers let it pass."""


class _Recorder:
    """Trace functions for `sys.settrace`."""

    def __init__(self, lines: list[str]) -> None:
        self.frames: list[Frame] = []
        self._lines = lines
        self._count = 0
        self._numbers: dict[int, int] = {}
        """Of the calls, by frame; a frame that ended may leave its id to a later one."""

    def enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        """A call; only those of the source are followed."""
        code: CodeType = frame.f_code
        if code.co_filename != _FILE or code.co_name.startswith("<"):
            return None
        self._numbers[id(frame)] = self._count
        self._count += 1
        self._record(frame, "call", None)
        return self.follow

    def follow(self, frame: FrameType, event: str, argument: Any) -> Any:
        """What happens inside. A return that an exception causes is told by the exception."""
        name = _NAMES.get(event)
        last = self.frames[-1]
        if name == "return" and last.event == "exception" and last.activation == self._numbers[id(frame)]:
            return self.follow
        if name == "return":
            self._record(frame, name, repr(argument))
        elif name == "exception":
            self._record(frame, name, f"{argument[0].__name__}: {argument[1]}")
        elif name is not None:
            self._record(frame, name, None)
        return self.follow

    def _record(
        self, frame: FrameType, event: Literal["call", "line", "return", "exception"], value: str | None
    ) -> None:
        if len(self.frames) >= MAX_FRAMES:
            raise _TooLongError
        local = {name: repr(held) for name, held in frame.f_locals.items()}
        number = frame.f_lineno
        line = self._lines[number - 1].removesuffix(START_MARK)
        self.frames.append(Frame(event, self._numbers[id(frame)], local, number, line, value))


def render(frames: list[Frame]) -> list[str]:
    """The frames as text, without the separator that closes each: event, locals as JSON or none, line, value.

    A value that has not changed since the same call last showed its locals is `..`; a call shows all of its own.
    """
    shown: dict[int, Mapping[str, str]] = {}
    texts = []
    for frame in frames:
        head = f"<|{frame.event}_sep|>"
        if frame.value is not None:
            texts.append(f"{head}<|action_sep|>{frame.line}<|arg_sep|>{json.dumps(frame.value)}")
            continue
        seen = shown.get(frame.activation, {})
        local = {name: ".." if seen.get(name) == held else held for name, held in frame.local.items()}
        shown[frame.activation] = frame.local
        texts.append(f"{head}{json.dumps(local)}<|action_sep|>{frame.line}")
    return texts
