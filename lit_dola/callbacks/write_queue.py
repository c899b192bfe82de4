"""Writing from threads while the next batch is made."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

_THREADS = 4
_MAX_WAITING = 256
"""Writes that may wait for the disk; beyond that the next batch waits for them."""


class WriteQueue:
    """Calls functions on a few threads, in any order."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="writer")
        self._waiting: deque[Future[None]] = deque()

    def submit(self, write: Callable[..., None], *args: Any) -> None:
        """Call a function on one of the threads."""
        self._waiting.append(self._threads.submit(write, *args))

    def wait(self, max_left: int | None = None) -> None:
        """Wait until few calls are left; until none is with 0.

        Raises:
            Exception: What a call has raised.
        """
        waiting = self._waiting
        max_left = _MAX_WAITING if max_left is None else max_left
        while len(waiting) > max_left or (waiting and waiting[0].done()):
            waiting.popleft().result()

    def drain(self) -> None:
        """Wait for all calls, whatever they raise: the user hears of what ended the run."""
        while self._waiting:
            with suppress(Exception):
                self.wait(0)

    def close(self) -> None:
        """End the threads, once all calls are done."""
        self._threads.shutdown()
