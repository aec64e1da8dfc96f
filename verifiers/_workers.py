"""Some `WorkerProcess`es of a kind, from an event loop."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import LifoQueue
from typing import Any

from verifiers._worker_process import WorkerProcess
from verifiers.deadline import turn

Answer = dict[str, Any] | None


class Workers:
    """`count` of them, which start with `start`, or on first need, and end with `aclose` or with us."""

    def __init__(self, count: int, seconds: float, script: str, *arguments: str, walls: Sequence[str] = ()) -> None:
        if count < 1:
            raise ValueError(f"there must be at least one process, not {count}")
        self._count, self._seconds = count, seconds
        self._idle: LifoQueue[WorkerProcess] = LifoQueue()
        """The one used last comes first: few requests start few processes."""
        for _ in range(count):
            self._idle.put(WorkerProcess(script, *arguments, walls=walls))
        # A thread a process: a request that nobody waits for any more is seen to its end.
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=script)
        self._turns = asyncio.Semaphore(count)
        self._gathering = threading.Lock()

    async def start(self) -> None:
        """Bring them up ahead of the first request. Raises RuntimeError."""
        await asyncio.get_running_loop().run_in_executor(
            self._threads, self._all, WorkerProcess.spawn, WorkerProcess.start
        )

    async def aclose(self) -> None:
        """End them; a later call brings them up again."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._all, WorkerProcess.close)

    async def ask(self, request: Mapping[str, Any]) -> Answer:
        """See `WorkerProcess.ask`; waits for its turn, off the grading's clock. Raises RuntimeError."""
        async with turn(self._turns):
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, request)

    def ask_blocking(self, request: Mapping[str, Any]) -> Answer:
        """The same where there is no event loop to wait in."""
        asked: Future[Answer] = self._threads.submit(self._ask, request)
        return asked.result()

    def _ask(self, request: Mapping[str, Any]) -> Answer:
        process = self._idle.get()
        try:
            return process.ask(request, self._seconds)
        finally:
            self._idle.put(process)

    def _all(self, *steps: Callable[[WorkerProcess], object]) -> None:
        """Take each step with every process, once none is busy."""
        with self._gathering:
            taken = [self._idle.get() for _ in range(self._count)]
            try:
                for step in steps:
                    for process in taken:
                        step(process)
            finally:
                for process in taken:
                    self._idle.put(process)
