"""Pieces of a simulation on several threads, each worked through by one of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import pairwise
from typing import TypeVar

from varflow.simulate.jit import get_threads, own_threads
from varflow.simulate.recycle import recycling

T = TypeVar("T")
Piece = tuple[int, int]
"""First draw, number of draws."""


class HaltedError(Exception):
    """Nobody waits for the rest of a piece."""


_own = threading.local()


def breathe() -> None:
    """Raise HaltedError where nobody waits for what this thread is at."""
    halt = getattr(_own, "halt", None)
    if halt is not None and halt.is_set():
        raise HaltedError


def physical_memory() -> int:
    """Bytes of memory that the machine has; 0 where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def cut(first: int, count: int, most: int, workers: int) -> list[Piece]:
    """Consecutive pieces of at most ``most`` draws, of about the same size, as many for each worker if that can be."""
    number = -(-count // most)
    number = min(count, -(-number // workers) * workers)
    cuts = [first + count * k // number for k in range(number + 1)] if number else [first]
    return [(a, b - a) for a, b in pairwise(cuts)]


def in_turn(run: Callable[[int, int], T], pieces: Sequence[Piece], workers: int, use: Callable[[int, T], None]) -> None:
    """``use`` what ``run`` makes of each piece, in order; with several workers they run on threads of their own, among
    which the threads of kernels are shared out. Where ``use``, a piece or an interrupt raises, the others end early."""
    if workers <= 1:
        with recycling():
            for first, count in pieces:
                use(first, run(first, count))
        return
    futures: list[Future[T]] = [Future() for _ in pieces]
    tasks, lock, halt = iter(zip(pieces, futures, strict=True)), threading.Lock(), threading.Event()

    def work() -> None:
        _own.halt = halt
        with recycling():
            while not halt.is_set():
                with lock:
                    task = next(tasks, None)
                if task is None:
                    return
                _settle(task[1], run, *task[0])

    share = max(1, get_threads() // workers)
    crew = [threading.Thread(target=own_threads(share, work), daemon=True) for _ in range(workers)]
    for thread in crew:
        thread.start()
    try:
        for (first, _), future in zip(pieces, futures, strict=True):
            use(first, future.result())
    finally:
        halt.set()
        for thread in crew:
            thread.join()


def _settle(future: Future[T], run: Callable[[int, int], T], first: int, count: int) -> None:
    try:
        future.set_result(run(first, count))
    except BaseException as error:
        future.set_exception(error)
