"""What signals may interrupt: waiting for draws, but not the bookkeeping of draws that were made."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def unbroken() -> Iterator[None]:
    """SIGINT and SIGTERM wait for the end of the block (in the main thread; other threads get none)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    known = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    handlers = {s: h for s, h in known.items() if h is not None}
    try:
        for s in handlers:
            signal.signal(s, lambda number, _: arrived.append(number))
        yield
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
        for number in arrived:
            signal.raise_signal(number)


class Worker:
    """A thread that calls functions one after another, so that the caller hears signals while it waits.

    Whatever it is at does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._go, name="varflow-draws", daemon=True).start()

    def call(self, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """The function's result, or its error."""
        future: Future[R] = Future()
        self._work.put((future, lambda: function(*args, **options)))
        return future.result()

    def close(self) -> None:
        """Let the thread end after what it is at."""
        self._work.put(None)

    def _go(self) -> None:
        while (task := self._work.get()) is not None:
            future, work = task
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
