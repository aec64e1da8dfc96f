"""The process that runs math-verify. Started as a script of its own, it imports nothing of ours.

JSON lines, in: {"gold": text, "answer": text or null, "seconds": float, "memory": bytes}; out: {"ready": true} once,
then for each request {"outcome": "right" | "wrong" | "no_gold" | "crashed" | "timeout"}. Without an answer the gold
alone is parsed, and "right" says that it could be.

Requests go to a forked child, since sympy can hang in C code where no signal reaches it (`9^{9^{9}}`): the child is
killed, and the loaded libraries stay. A fork costs some 5 ms, more than a comparison; so a child serves until it hangs,
dies, or has served `LIFE` requests, since sympy's caches grow.
"""

import ctypes
import gc
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

OUTCOMES = {b"r": "right", b"w": "wrong", b"n": "no_gold"}
"""As a child writes them."""
LIFE = 500
USUAL = (
    *("0.5", "\\frac{1}{2}", "1,234", "50\\%", "3!", "10^{-3}", "2\\pi", "\\frac{2\\sqrt{5}}{7}", "3\\cdot 5^{1/2}/7"),
    *("3x^2+2x+1", "1+x(3x+2)", "x=3", "1\\le x", "|x-1|", "\\sin x", "\\log_2 8", "\\binom{5}{2}", "\\text{A}"),
    *("(1, \\frac{2}{3})", "[1,2)", "(-\\infty,3]\\cup[4,\\infty)", "\\{1, 2, 3\\}"),
    "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
)
"""Forms of answers. Parsing a form for the first time takes ten times as long as later on."""
PR_SET_PDEATHSIG = 1


def compare(gold: str, answer: str | None) -> str:
    """What math-verify says of one pair. Its own timeouts are off: the parent keeps the time."""
    wanted = _read_gold(gold)
    if not wanted:
        return "no_gold"
    if answer is None:
        return "right"
    return "right" if verify(wanted, _read(answer), timeout_seconds=None) else "wrong"


@lru_cache(maxsize=64)
def _read_gold(latex: str) -> list[Any]:
    """The answers of a group have one gold."""
    return _read(latex)


def _read(latex: str) -> list[Any]:
    """The expressions read out of one answer; empty when math-verify only got text out of it."""
    config = [LatexExtractionConfig(), ExprExtractionConfig()]
    found: list[Any] = parse(f"\\boxed{{{latex}}}", config, parsing_timeout=None)
    return found if any(not isinstance(part, str) for part in found) else []


class Child:
    """The forked process that compares; begun when it is needed."""

    def __init__(self) -> None:
        self.pid = self.served = self.memory = 0
        self.line: socket.socket | None = None

    def ask(self, request: dict[str, Any]) -> str:
        """An outcome, within `seconds`."""
        if self.served >= LIFE or self.memory != request["memory"]:
            self.end()
        line = self.line or self.begin(request["memory"])
        self.served += 1
        outcome = "crashed"
        try:
            line.sendall(json.dumps([request["gold"], request["answer"]]).encode() + b"\n")
            if not select.select([line], [], [], request["seconds"])[0]:
                outcome = "timeout"
            elif found := OUTCOMES.get(line.recv(1)):
                return found
        except OSError:
            pass
        self.end()
        return outcome

    def begin(self, memory: int) -> socket.socket:
        """Fork."""
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            self.serve(theirs, memory, parent)
        theirs.close()
        self.line, self.memory, self.served = ours, memory, 0
        return ours

    def serve(self, line: socket.socket, memory: int, parent: int) -> None:
        """The forked side; never returns. Whatever is raised, the end of the process tells it."""
        try:
            die_with_parent()
            if os.getppid() != parent:  # it died before we asked
                return
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)  # the parent's answers go there
            letters = {name: letter for letter, name in OUTCOMES.items()}
            with line.makefile("rb") as requests:
                for request in requests:
                    line.sendall(letters[compare(*json.loads(request))])
        finally:
            os._exit(1)

    def end(self) -> None:
        """Kill it, if there is one."""
        if self.line is not None:
            self.line.close()
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.line, self.pid, self.served = None, 0, 0


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
    for answer in USUAL:  # fills caches that every child then shares
        compare(answer, answer)
    gc.collect()
    gc.freeze()  # what is here is neither looked through again nor copied by each child's collector
    print(json.dumps({"ready": True}), flush=True)
    child = Child()
    for line in sys.stdin:
        print(json.dumps({"outcome": child.ask(json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
