"""The process that calls other frameworks' scoring functions. Started as a script, it imports nothing of ours.

Arguments: what to import from, as JSON; the kind; the target. JSON lines, in: {"prompt", "completion", "columns"} or
{"answer", "entry"}; out: {"ready": true} once, then {"score": number or null} or {"error": text} each.
"""

import asyncio
import ctypes
import importlib
import importlib.util
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

PR_SET_PDEATHSIG = 1
_REFUSED = (
    *("open", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.", "pty.", "socket."),
    *("ctypes.", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown"),
    *("os.truncate", "os.kill", "os.putenv", "shutil.", "signal.pthread_kill"),
)
"""Audit events, by how they begin."""

Scorer = Callable[[dict[str, Any]], Any]


def reward_function(target: str) -> Scorer:
    """TRL's: lists of one of everything, a list of one float or None back, awaited where it is a coroutine."""
    module, _, attribute = target.rpartition(":")
    function: Any = _from_file(module) if module.endswith(".py") else importlib.import_module(module)
    for part in attribute.split("."):
        function = getattr(function, part)

    def score(request: dict[str, Any]) -> Any:
        columns = {name: [value] for name, value in request["columns"].items()}
        found = function(prompts=[request["prompt"]], completions=[request["completion"]], **columns)
        (reward,) = asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found
        return reward

    return score


async def _awaited(coroutine: Any) -> Any:
    return await coroutine


def reasoning_gym(_: str) -> Scorer:
    """Of the data set that an entry says it is from."""
    package: Any = importlib.import_module("reasoning_gym")

    def score(request: dict[str, Any]) -> Any:
        entry = request["entry"]
        return package.get_score_answer_fn(entry["metadata"]["source_dataset"])(request["answer"], entry)

    return score


refused: list[str] = []
"""What the answer at hand tried."""


def confine() -> None:
    """From now on nothing that an answer may have evaluated starts a process, writes a file or opens a connection."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if event.startswith(_REFUSED):
            refused.append(event)
            raise PermissionError(f"{event} has no part in scoring an answer")

    sys.dont_write_bytecode = True  # what is imported late would otherwise write files
    sys.addaudithook(refuse)


KINDS: dict[str, Callable[[str], Scorer]] = {"reward_function": reward_function, "reasoning_gym": reasoning_gym}


def _from_file(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("cwm_rl_foreign", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(scorer: Scorer, request: dict[str, Any]) -> dict[str, Any]:
    """What it scores, or what it raises; or what the answer tried, whatever became of it."""
    refused.clear()
    found: dict[str, Any]
    try:
        score = scorer(request)
        found = {"score": None if score is None else float(score)}
    except Exception as error:  # noqa: BLE001 - foreign code may raise anything
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
    return {"tampered": f"scoring it would have caused {refused[0]}"} if refused else found


def main() -> None:
    """Answer requests until standard input closes."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what foreign code prints goes where errors go
    path, kind, target = sys.argv[1:]
    sys.path[:] = json.loads(path)

    def say(reply: dict[str, Any]) -> None:
        channel.write(json.dumps(reply) + "\n")
        channel.flush()

    try:
        scorer = KINDS[kind](target)
    except Exception as error:  # noqa: BLE001 - foreign code may raise anything
        say({"error": f"{type(error).__name__}: {error}"[:500]})
        return
    if kind == "reasoning_gym":  # a reward function is the user's own, and may do what it likes
        confine()
    say({"ready": True})
    for line in sys.stdin:
        say(answer(scorer, json.loads(line)))


if __name__ == "__main__":
    main()
