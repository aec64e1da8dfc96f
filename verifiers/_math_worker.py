"""The process that runs math-verify. Started as a script of its own, it imports nothing of ours.

JSON lines, in: {"gold": text, "answer": text or null, "seconds": float, "memory": bytes}; out: {"ready": true} once,
then for each request {"outcome": "right" | "wrong" | "no_gold" | "crashed" | "timeout"}. Without an answer the gold
alone is parsed, and "right" says that it could be.

Each request runs in a forked child, since sympy can hang in C code where no signal reaches it (`9^{9^{9}}`): the child
is killed, and the loaded libraries stay. A fork costs about 5 ms, an import 0.3-1 s.
"""

import ctypes
import json
import logging
import os
import resource
import select
import signal
import sys
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

OUTCOMES = {10: "right", 11: "wrong", 12: "no_gold"}
"""By exit status of the child; everything else is a crash."""
PR_SET_PDEATHSIG = 1


def compare(gold: str, answer: str | None) -> str:
    """What math-verify says of one pair. Its own timeouts are off: the parent keeps the time."""
    readings = [_read(gold)] if answer is None else [_read(gold), _read(answer)]
    if not readings[0]:
        return "no_gold"
    if answer is None:
        return "right"
    return "right" if verify(readings[0], readings[1], timeout_seconds=None) else "wrong"


def _read(latex: str) -> list[Any]:
    """The expressions read out of one answer; empty when math-verify only got text out of it."""
    config = [LatexExtractionConfig(), ExprExtractionConfig()]
    found: list[Any] = parse(f"\\boxed{{{latex}}}", config, parsing_timeout=None)
    return found if any(not isinstance(part, str) for part in found) else []


def _child(request: dict[str, Any]) -> None:
    """Runs in the fork and never returns."""
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    status = 1
    try:
        outcome = compare(request["gold"], request["answer"])
        status = next(code for code, name in OUTCOMES.items() if name == outcome)
    finally:
        # Whatever was raised, the status tells it; nothing may unwind into the parent's loop.
        os._exit(status)


def serve(request: dict[str, Any]) -> str:
    """Fork, wait at most `seconds`, kill. Returns an outcome."""
    child = os.fork()
    if child == 0:
        _child(request)
    watch = os.pidfd_open(child)
    try:
        if not select.select([watch], [], [], request["seconds"])[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout"
    finally:
        os.close(watch)
    return OUTCOMES.get(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "crashed")


def die_with_parent() -> None:
    """Ask Linux for SIGKILL when the parent ends, which a process busy in C code would not notice."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Answer requests until standard input closes."""
    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    compare("\\frac{1}{2}", "0.5")  # fills caches that every child then shares
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"outcome": serve(json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
