"""Runs inside the candidate's sandbox: loads its source, makes the calls, sends back what they returned as plain data.

Standard input holds one marshalled dictionary: {"nonce", "source", "preamble", "announced", "calls": [[name, args,
kwargs], …], "seconds", "echo"}, values as in `_plain`. Each answer is a line `NONCE JSON` on a private copy of standard
output: {"value": …}, or {"raised": [type or type(bases), message]}; if asked to echo, with "args" and "kwargs"
where the call changed them. Ahead of them stand two lines: one says that Python runs, before the candidate does, the
other how loading went. Nothing here is secret: the candidate can forge these lines, and then only says what it would
have returned. What it should return is not in this process, and not in this sandbox.
"""

from __future__ import annotations

import builtins
import fcntl
import marshal
import os
import sys
import types

from verifiers._plain import decode, encode, to_json

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing any of it would take longer than most answers
    import signal
    from collections.abc import Callable
    from typing import Any
else:
    import _signal as signal

MODULE = "solution"


def run(request: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
    """Make all calls in order, in one module, each with its own time."""
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    answer = _guarded(lambda: _load(module, request), request["seconds"])
    send(answer)
    if "raised" in answer:
        return
    for name, args, kwargs in request["calls"]:
        send(_call(module, name, args, kwargs, request["seconds"], echo=request["echo"]))


def _load(module: types.ModuleType, request: dict[str, Any]) -> None:
    """The preamble's helpers and imports stay; a function it only announces must come from the source itself."""
    for text, label in ((request["preamble"], "<prompt>"), (request["source"], "<solution>")):
        code = compile(text, label, "exec", dont_inherit=True)  # or our annotations would be its
        exec(code, module.__dict__)  # noqa: S102 - the purpose of this process
        if label == "<prompt>":
            for name in request["announced"]:
                module.__dict__.pop(name, None)


def _call(module: types.ModuleType, name: str, args: Any, kwargs: Any, seconds: float, *, echo: bool) -> dict[str, Any]:
    """Of a function, or of a method of the class `Solution`, as contests have it; a new object each time."""
    given = decode(args), decode(kwargs)

    def call() -> Any:
        function = module.__dict__.get(name)
        if function is None and isinstance(kind := module.__dict__.get("Solution"), type):
            function = getattr(kind(), name, None)
        if function is None:
            raise NameError(f"the answer defines no function '{name}'")
        return function(*given[0], **given[1])

    answer = _guarded(call, seconds)
    if not echo:
        return answer
    after = _guarded(lambda: list(given), seconds)
    if "raised" in after:
        return after
    return (
        answer
        if after["value"] == [args, kwargs]
        else answer | dict(zip(("args", "kwargs"), after["value"], strict=True))
    )


def _guarded(work: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """The value of `work`, or what it raised. Past its time the alarm ends the process: no handler can swallow that."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return {"value": encode(work())}
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are answers like others
        return {"raised": [_kind(error), _message(error)]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _kind(error: BaseException) -> str:
    """The name of its type; of one of the answer's own with those of its bases, down to Python's."""
    kinds = type(error).__mro__
    names = [kind.__name__ for kind in kinds[: next(at for at, kind in enumerate(kinds) if _is_builtin(kind)) + 1]]
    if len(names) == 1 or (len(names) == 2 and names[1] == "Exception"):
        return names[0]
    return f"{names[0]}({', '.join(names[1:])})"[:500]


def _is_builtin(kind: type) -> bool:
    return vars(builtins).get(kind.__name__) is kind


def _message(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except Exception:  # noqa: BLE001 - an exception of the candidate's own, whose __str__ raises
        return ""


def main() -> None:
    """Read the request, hide the channel from ordinary printing, run, leave without running exit hooks."""
    request = marshal.loads(sys.stdin.buffer.read())  # noqa: S302 - from the host
    channel = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 200)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    nonce, owner = request.pop("nonce"), os.getpid()

    def send(answer: dict[str, Any]) -> None:
        if os.getpid() != owner:
            os._exit(0)  # a process that the candidate forked has returned into our code
        line = f"{nonce} {to_json(answer)}\n".encode()
        while line:
            line = line[os.write(channel, line) :]

    send({"value": "ready"})
    run(request, send)
    os._exit(0)


if __name__ == "__main__":
    main()
