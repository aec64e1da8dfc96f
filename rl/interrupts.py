"""Ctrl-C: once ends in good order and says how to go on, twice ends at once. Neither leaves a process."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psutil

T = TypeVar("T")

GRACE_SECONDS = 8.0
EXIT_CODE = 130


def run_interruptible(work: Coroutine[None, None, T], advice: str) -> T | None:
    """Run to the end; None if it was interrupted, after `advice` was printed."""

    async def watched() -> T | None:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(work)
        asked = False

        def interrupt() -> None:
            nonlocal asked
            if asked:
                _end_now(advice)
            asked = True
            print("stopping; once more ends it at once", file=sys.stderr, flush=True)
            task.cancel()
            loop.call_later(GRACE_SECONDS, _end_now, advice)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        try:
            return await task
        except asyncio.CancelledError:
            if not asked:
                raise
            print(advice, file=sys.stderr)
            return None

    return asyncio.run(watched())


@contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, for work that looks at it; the second one ends at once.

    Only the main thread can be asked: elsewhere the event stays unset.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(*_: object) -> None:
        asked.set()
        for number, handler in before.items():
            signal.signal(number, handler)
        print("stopping; once more ends it at once", file=sys.stderr, flush=True)

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_now(advice: str) -> None:
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    print(advice, file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
