"""Runs inside the checker's sandbox: a task's `check(candidate)`, with a stand-in for the candidate.

The candidate lives elsewhere and is reached in rounds. The nonce is an argument. Standard input holds {"prompt",
"check", "entry_point", "transcript": [[call, answer], …], "seed", "max_calls"}. The stand-in answers from the
transcript. At the first call that the transcript does not hold, it begins to guess ahead: it returns a `Hole`,
assertions stop counting, and the calls that follow are written down, so that one round collects a whole loop of them.
Guesses cost time, never truth: a call is only ever answered by what the candidate returned to exactly that call at
exactly that place.

Out come two lines, NONCE and JSON each. First {"status": "ready"}, then {"status": "passed"}, {"status": "failed",
"detail"}, {"status": "more", "calls"} with every call from the first on, or {"status": "unusable", "detail"} where
check itself is broken.
"""

import ast
import builtins
import fcntl
import json
import os
import random
import signal
import sys
from typing import Any

from verifiers._plain import NotPlainError, decode, encode, is_opaque

GUESS_SECONDS = 1.0


class _StopError(BaseException):
    """Ends the check from within the stand-in; not an Exception, so that check's own handlers let it pass."""


class Hole:
    """What an unknown call returns: agrees with everything, contains nothing."""

    def _more(self, *_args: Any, **_kwargs: Any) -> "Hole":
        return self

    def _yes(self, *_args: Any) -> bool:
        return True

    __call__ = __getitem__ = __neg__ = __pos__ = __abs__ = __round__ = __invert__ = _more
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = __pow__ = __rpow__ = _more
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __and__ = __or__ = __xor__ = _more
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = _yes

    def __getattr__(self, name: str) -> "Hole":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __hash__(self) -> int:
        return 0

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Any:
        return iter(())

    def __int__(self) -> int:
        return 0

    def __index__(self) -> int:
        return 0

    def __float__(self) -> float:
        return 0.0


class StandIn:
    """The candidate as `check` sees it."""

    def __init__(self, name: str, transcript: list[Any], max_calls: int) -> None:
        self.name = name
        self.transcript = transcript
        self.max_calls = max_calls
        self.calls: list[Any] = []
        self.guessing = False
        self.verdict: dict[str, Any] = {}
        self.space: dict[str, Any] = {}
        """What the prompt defines, its exceptions among them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The candidate's answer to this call, or a Hole."""
        call = self._encoded(args, kwargs)
        place = len(self.calls)
        self.calls.append(call)
        if not self.guessing and place < len(self.transcript) and self.transcript[place][0] == call:
            return self._replay(self.transcript[place][1], args, kwargs)
        if not self.guessing:
            self.guessing = True
            signal.signal(signal.SIGALRM, self._enough)
            signal.setitimer(signal.ITIMER_REAL, GUESS_SECONDS)
        if len(self.calls) >= self.max_calls:
            self._enough()
        return Hole()

    def _encoded(self, args: Any, kwargs: Any) -> list[Any]:
        try:
            call = [self.name, encode(args), encode(kwargs)]
            problem = "check calls the candidate with what is no plain data" if is_opaque(call) else ""
        except NotPlainError as error:
            call, problem = [], f"check calls the candidate with {error}"
        if problem:
            if not self.guessing:
                # What the candidate itself returned may have come back to it: then it is its failure, not the task's.
                used = any(is_opaque(answer) or not call for _, answer in self.transcript)
                self.verdict = {"status": "failed" if used else "unusable", "detail": problem}
            raise _StopError
        return call

    def _replay(self, answer: dict[str, Any], args: Any, kwargs: Any) -> Any:
        for given, after in ((args, answer.get("args")), (kwargs, answer.get("kwargs"))):
            if after is not None:
                _write_back(given, decode(after))
        if "died" in answer:
            self.verdict = {"status": "failed", "detail": answer["died"]}
            raise _StopError
        if "raised" in answer:
            raise _exception(*answer["raised"], space=self.space)
        return decode(answer["value"])

    def _enough(self, *_: Any) -> None:
        raise _StopError


def _exception(kind: str, message: str, *, space: dict[str, Any]) -> Exception:
    """An exception of the type of that name that Python has, or the prompt, or of a new one of such a base; never
    SystemExit and the like."""
    name, _, bases = kind.rstrip(")").partition("(")
    for one in (name, *bases.split(", ")):
        found = vars(builtins).get(one, space.get(one))
        if isinstance(found, type) and issubclass(found, Exception):
            try:
                fitting: Exception = (found if one == name else type(name, (found,), {}))(message)
            except Exception:  # noqa: BLE001, S112 - such as UnicodeDecodeError, which wants more than a message
                continue
            return fitting
    made: Exception = type(name, (Exception,), {})(message)
    return made


def _write_back(given: Any, after: Any) -> None:
    """Change the caller's own lists, sets and dictionaries as the candidate changed its copies of them."""
    pairs = ((given[key], after[key]) for key in given) if isinstance(given, dict) else zip(given, after, strict=True)
    for old, new in pairs:
        if isinstance(old, list):
            old[:] = new
        elif isinstance(old, (dict, set)):
            old.clear()
            old.update(new)


class _Lenient(ast.NodeTransformer):
    """While the stand-in guesses, a failing assertion goes on to the next statement."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        """`assert x` as `try: assert x` / `except Exception: if not guessing: raise`."""
        guard = ast.parse("try:\n    pass\nexcept Exception:\n    if not __guessing__(): raise").body[0]
        if isinstance(guard, ast.Try):
            guard.body = [node]
        for part in ast.walk(guard):
            if isinstance(part, (ast.stmt, ast.expr, ast.excepthandler)):
                ast.copy_location(part, node)
        return guard


def run(request: dict[str, Any]) -> dict[str, Any]:
    """One round. Whatever check raises while it is not guessing is a failure of the candidate."""
    stand_in = StandIn(request["entry_point"], request["transcript"], request["max_calls"])
    space: dict[str, Any] = {"__name__": "check"}
    random.seed(request["seed"])
    try:
        exec(compile(request["prompt"], "<prompt>", "exec", dont_inherit=True), space)  # noqa: S102 - the task's own code
        stand_in.space = dict(space)
        space |= {request["entry_point"]: stand_in, "__guessing__": lambda: stand_in.guessing}
        tree = _Lenient().visit(ast.parse(request["check"]))
        exec(compile(tree, "<check>", "exec", dont_inherit=True), space)  # noqa: S102
        space["check"](stand_in)
    except (_StopError, Exception) as error:  # noqa: BLE001
        if not stand_in.guessing and not stand_in.verdict:
            # Before its first call, check can only fail by itself.
            status = "failed" if stand_in.calls else "unusable"
            return {"status": status, "detail": f"{type(error).__name__}: {error!s:.300}"}
    if stand_in.verdict:
        return stand_in.verdict
    if not stand_in.calls:
        return {"status": "unusable", "detail": "check never calls the candidate"}
    return {"status": "more", "calls": stand_in.calls} if stand_in.guessing else {"status": "passed"}


def main() -> None:
    """Read the request, keep check's own printing away from the answer, and leave at once.

    What the candidate returned is in the request: if it cannot be read, that is no failure to start.
    """
    nonce = sys.argv[1]
    channel = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 200)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    _send(channel, nonce, {"status": "ready"})
    result = run(json.loads(sys.stdin.buffer.read()))
    signal.setitimer(signal.ITIMER_REAL, 0)
    _send(channel, nonce, result)
    os._exit(0)


def _send(channel: int, nonce: str, result: dict[str, Any]) -> None:
    line = f"{nonce} {json.dumps(result)}\n".encode()
    while line:
        line = line[os.write(channel, line) :]


if __name__ == "__main__":
    main()
