"""Which input rows every place of a windowed product reads, cut into the tiles that `tiles` works through."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.simulate.tiles import TALL
from varflow.window import Window

Index = NDArray[np.int64]
Small = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Route:
    """The places of a product in an order that brings those with the same taps together.

    ``order`` holds the places (samples x positions) tile after tile, TALL in each but the last; tile i sums over
    the entries ``starts[i]`` to ``starts[i + 1]`` of ``taps`` (which matrix) and of ``rows`` (TALL input rows, -1
    outside the grid). Taps that no place of a tile sees are left out. ``pairs`` counts the terms of all sums.
    """

    places: int
    inputs: int
    pairs: int
    order: Index
    starts: Index
    taps: Small
    rows: Small

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What kernels take."""
        return self.order, self.starts, self.taps, self.rows


def seen_from(window: Window, transpose: bool) -> tuple[Index, Index]:
    """The rows that every place reads, (places, slots), -1 for none, and the tap of each slot.

    Forward these are the window's table; the transpose reads, at an input position, the outputs whose taps lead
    there: as many slots for a tap as one position is met by it (several at mirrored borders).
    """
    table = window.table()
    if not transpose:
        return table, np.arange(table.shape[1])
    places = int(np.prod([int(n) for n in window.inputs]))
    columns, taps = [], []
    for tap, seen in enumerate(table.T):
        for column in _inverse(seen, places):
            columns.append(column)
            taps.append(tap)
    return np.stack(columns, axis=1), np.array(taps)


def _inverse(seen: Index, places: int) -> list[Index]:
    """Columns of outputs that see each input through one tap, -1 where none does."""
    at = np.flatnonzero(seen >= 0)
    at = at[np.argsort(seen[at], kind="stable")]
    met = seen[at]
    first = np.searchsorted(met, met)
    rank = np.arange(len(met)) - first
    columns = []
    for k in range(int(rank.max(initial=0)) + 1):
        column = np.full(places, -1)
        column[met[rank == k]] = at[rank == k]
        columns.append(column)
    return columns


_building = Lock()


def route(window: Window | None, samples: int, positions: int, transpose: bool = False) -> Route:
    """The route of a contraction over ``samples`` inputs of ``positions`` places each (used without a window)."""
    with _building:
        return _route(window, samples, positions, transpose)


@lru_cache(maxsize=256)
def _route(window: Window | None, samples: int, positions: int, transpose: bool) -> Route:
    if window is None:
        table, taps, inputs = np.arange(positions)[:, None], np.zeros(1, np.int64), positions
    else:
        table, taps = seen_from(window, transpose)
        inputs = len(window.table()) if transpose else int(np.prod([int(n) for n in window.inputs]))
    order = _by_taps(table, samples)
    sample, position = order // len(table), order % len(table)
    rows = table.astype(np.int32)[position]
    np.add(rows, (sample[:, None] * inputs).astype(np.int32), out=rows, where=rows >= 0)
    return _cut(order, rows, taps, samples * inputs)


def _by_taps(table: Index, samples: int) -> Index:
    """Places (samples major) sorted by which slots they read."""
    kinds = np.unique(np.packbits(table >= 0, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    return np.argsort(np.tile(kinds, samples), kind="stable")


def _cut(order: Index, rows: Small, taps: Index, inputs: int) -> Route:
    tiles = -(-len(rows) // TALL)
    padded = np.full((tiles * TALL, rows.shape[1]), -1, np.int32)
    padded[: len(rows)] = rows
    parts = padded.reshape(tiles, TALL, -1)
    tile, slot = np.nonzero((parts >= 0).any(axis=1))
    starts = np.searchsorted(tile, np.arange(tiles + 1))
    chosen = np.ascontiguousarray(parts[tile, :, slot], np.int32)
    return Route(len(order), inputs, int((rows >= 0).sum()), order, starts, taps[slot].astype(np.int32), chosen)
