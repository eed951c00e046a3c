"""Tables that CUDA kernels read: which places a window sees, matrices over positions; made once, kept on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.program import Mix
from varflow.simulate.cuda_device import sent
from varflow.simulate.kernels_pool import mixing
from varflow.simulate.routes import seen_from
from varflow.window import Window

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Path:
    """Which input rows every place of a product reads, over all samples.

    For tiles of places: ``order`` brings places together that see the same taps; tile i sums over the entries
    ``starts[i]`` to ``starts[i + 1]`` of ``taps`` and of ``rows`` (an input row for each place of the tile, -1 for
    none). Place by place: ``table`` (places, slots) and the tap of each slot.
    """

    places: int
    inputs: int
    tiles: int
    order: Any
    starts: Any
    taps: Any
    rows: Any
    table: Any
    slots: Any


@lru_cache(maxsize=64)
def path(window: Window | None, samples: int, positions: int, transpose: bool, height: int) -> Path:
    """The path of a contraction over ``samples`` inputs of ``positions`` places each (read without a window), cut
    into tiles of ``height`` places."""
    if window is None:
        table, taps, inputs = np.arange(positions)[:, None], np.zeros(1, np.int64), positions
    else:
        table, taps = seen_from(window, transpose)
        inputs = len(window.table()) if transpose else places_of(window)
    whole = np.concatenate([np.where(table < 0, -1, table + s * inputs) for s in range(samples)])
    kinds = np.unique(np.packbits(whole >= 0, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(kinds, kind="stable")
    tiles = -(-len(order) // height)
    padded = np.full((tiles * height, whole.shape[1]), -1)
    padded[: len(order)] = whole[order]
    parts = padded.reshape(tiles, height, -1)
    tile, slot = np.nonzero((parts >= 0).any(axis=1))
    starts = np.searchsorted(tile, np.arange(tiles + 1))
    arrays = (order, starts, taps[slot], parts[tile, :, slot], whole, taps)
    return Path(len(order), samples * inputs, tiles, *(sent(a.astype(np.int32)) for a in arrays))


def places_of(window: Window) -> int:
    """Positions of a window's input grid."""
    return int(np.prod([int(n) for n in window.inputs]))


@lru_cache(maxsize=64)
def mixing_sent(mix: Mix) -> tuple[Any, Any, Any, int]:
    """Starts, columns and values of the sparse matrix of a mixing, and its number of columns."""
    m = mixing(mix)
    return sent(m.starts.astype(np.int32)), sent(m.columns.astype(np.int32)), sent(m.values), m.inputs


@lru_cache(maxsize=64)
def windows_sent(window: Window) -> tuple[Any, Any, Any]:
    """The places that every output sees; the outputs that see every place, and the tap of each slot."""
    back, taps = seen_from(window, True)
    return tuple(sent(a.astype(np.int32)) for a in (window.table(), back, taps))


@lru_cache(maxsize=64)
def readers(window: Window | None, positions: int, transpose: bool) -> tuple[Any, int]:
    """How many (place, tap) read each of the ``positions`` of an input, and the number of places."""
    if window is None:
        return sent(np.ones(positions)), positions
    table, _ = seen_from(window, transpose)
    counts = np.bincount(table[table >= 0], minlength=positions)
    return sent(counts.astype(np.float64)), len(table)


def met(window: Window | None, samples: int, positions: int) -> Index:
    """For each place of a window's outputs the places its taps see, -1 outside the grid, over all samples."""
    if window is None:
        return np.arange(samples * positions)[:, None]
    table, inputs = window.table(), places_of(window)
    rows = np.arange(samples)[:, None, None] * inputs + table
    found: Index = np.where(table < 0, -1, rows).reshape(-1, table.shape[1])
    return found
