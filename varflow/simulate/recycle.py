"""Memory of values, used again as soon as nothing refers to it.

Large arrays that come and go are given back to the system and cleared by it each time, which takes longer than many of
the steps that fill them. Within `recycling` each thread keeps its blocks until the end.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 1 << 16
"""Bytes from which an array lies in a block."""
LINE = 64
"""Bytes to which arrays in blocks are aligned."""

_own = threading.local()


class Blocks:
    """Blocks of bytes; one is free when this list alone refers to it, since every array in it does too."""

    def __init__(self) -> None:
        self.blocks: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
        self.unused = sys.getrefcount(self.blocks[0])

    def take(self, size: int) -> NDArray[np.uint8]:
        """The smallest free block that is large enough and not twice as large, or a new one."""
        best = 0
        for k in range(1, len(self.blocks)):
            fits = size <= self.blocks[k].size <= 2 * size
            smaller = not best or self.blocks[k].size < self.blocks[best].size
            if fits and smaller and sys.getrefcount(self.blocks[k]) <= self.unused:
                best = k
        if not best:
            self.blocks.append(np.empty(size, np.uint8))
            return self.blocks[-1]
        return self.blocks[best]


@contextmanager
def recycling() -> Iterator[None]:
    """Arrays that this thread asks for in the block share memory, one after another."""
    before = getattr(_own, "blocks", None)
    _own.blocks = before or Blocks()
    try:
        yield
    finally:
        _own.blocks = before


def empty(shape: Sequence[int], dtype: Any = np.float32) -> NDArray[Any]:
    """``np.empty``, from a block where there are any and the array is large."""
    blocks, size = getattr(_own, "blocks", None), prod(shape) * np.dtype(dtype).itemsize
    if blocks is None or size < LEAST:
        return np.empty(tuple(shape), dtype)
    block = blocks.take(size + LINE)
    first = -block.ctypes.data % LINE
    return np.ndarray(tuple(shape), dtype, block, first)
