"""Ctrl-C: once ends in good order and says how to go on, twice ends at once. Neither leaves a process."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psutil

from rl import watchdog

T = TypeVar("T")

GRACE_SECONDS = 8.0
EXIT_CODE = 130


def run_interruptible(work: Coroutine[None, None, T], advice: str) -> T | None:
    """Run to the end; None if it was interrupted, after `advice` was printed."""

    async def watched() -> T | None:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(work)
        last = threading.Timer(GRACE_SECONDS, _end_now, [advice])
        last.daemon = True

        # No handler of the loop's: it would wait for a loop that is blocked, by a Ray that starts or ends, say.
        def interrupt(*_: object) -> None:
            if last.is_alive():
                _end_now(advice)
            last.start()
            _tell("stopping; once more ends it at once")
            loop.call_soon_threadsafe(task.cancel)

        with _handling(interrupt):
            try:
                return await task
            except asyncio.CancelledError:
                if not last.is_alive():
                    raise
                _tell(advice)
                return None
            finally:
                last.cancel()

    return asyncio.run(watched())


@contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, for work that looks at it; the second one ends at once.

    Only the main thread can be asked: elsewhere the event stays unset.
    """
    if threading.current_thread() is not threading.main_thread():
        yield threading.Event()
        return
    asked = threading.Event()

    def ask(*_: object) -> None:
        asked.set()
        for number, handler in before.items():
            signal.signal(number, handler)
        _tell("stopping; once more ends it at once")

    with _handling(ask) as before:
        yield asked


@contextmanager
def _handling(handler: Callable[..., None]) -> Iterator[dict[signal.Signals, Any]]:
    """`handler` takes SIGINT and SIGTERM in the block; yields who took them before, and takes them again after it."""
    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield before
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def _tell(text: str) -> None:
    """To standard error, past its buffer: a signal may have come while that was being written to."""
    with suppress(OSError):  # whoever read it may have ended by the same Ctrl-C
        os.write(2, f"{text}\n".encode())


def _end_now(advice: str) -> None:
    """End everything below, except a watchdog, which cleans up behind us and then ends by itself."""
    try:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if watchdog.__file__ not in child.cmdline():
                    child.kill()
        _tell(advice)
    finally:
        os._exit(EXIT_CODE)
