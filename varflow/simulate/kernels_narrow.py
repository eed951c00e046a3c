"""Products over windows with few channels on the result's side: taps and channels fill the lanes together.

First every input place is multiplied with all taps, Z = x M with (tap, channel) side by side; then every result
gathers its places of Z along its route. The first layer's gradient and the last layer of an image model are such.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from varflow.simulate.jit import Array, Number, device, kernel
from varflow.simulate.kernels_window import affine_rows, fill_entries, run_tiles
from varflow.simulate.rng import CHUNK
from varflow.simulate.tiles import TALL, WIDTH

F = np.float32


@device
def pack_side_by_side(
    packed: Array, transpose: Number, sizes: Any, std: Number, laws: Array, stream: Any, d: Number, words: Array,
    spare: Array, cell: Array, mask: Array,
) -> None:  # fmt: skip
    """A weight as packed[block, inner, lane], lanes over (tap, outer channel) in blocks of WIDTH."""
    rows, columns, taps, _ = sizes
    length = taps * columns
    inner, outer = (rows, columns) if transpose else (columns, rows)
    for row in range(rows):
        fill_entries(cell, stream, d, row * length, words, spare, mask)
        affine_rows(cell, length, row, 1, std, laws)
        for t in range(taps):
            for c in range(columns):
                o, i = (c, row) if transpose else (row, c)
                lane = t * outer + o
                packed[(lane // WIDTH * inner + i) * WIDTH + lane % WIDTH] = cell[t * columns + c]


@device
def gathered(y: Array, z: Array, order: Array, starts: Array, taps: Array, rows: Array) -> None:
    """y[place] = sum over its route of z[row, channels of the tap]."""
    outer = y.shape[1]
    for i in range(starts.size - 1):
        at = i * TALL
        height = min(TALL, order.size - at)
        for m in range(height):
            y[order[at + m]] = F(0.0)
        for k in range(starts[i], starts[i + 1]):
            first = taps[k] * outer
            for m in range(height):
                if rows[k, m] >= 0:
                    into, source = y[order[at + m]], z[rows[k, m]]
                    for c in range(outer):
                        into[c] += source[first + c]


@kernel
def narrow(
    x: Array, y: Array, transpose: Number, everywhere: Any, sizes: Any, std: Number, laws: Array, stream: Any,
    order: Array, starts: Array, taps: Array, rows: Array, start: Number, stop: Number,
) -> None:  # fmt: skip
    """As `kernels_window.forward` and `transposed`, for one group; ``everywhere``: the route of all input places."""
    inner, tap_count = x.shape[2], sizes[2]
    lanes = (tap_count * y.shape[2] + WIDTH - 1) // WIDTH * WIDTH
    words, spare = np.empty(CHUNK, np.uint32), np.empty(CHUNK, np.float32)
    cell = np.empty(tap_count * sizes[1], np.float32)
    mask = np.empty(cell.size if stream.keep < 1.0 else 0, np.float32)
    packed, zeros = np.zeros(lanes * inner, np.float32), np.zeros(inner, np.float32)
    tile, z = np.empty((TALL, WIDTH), np.float32), np.empty((x.shape[1], lanes), np.float32)
    for d in range(start, stop):
        law = laws[d if laws.shape[0] > 1 else 0]
        pack_side_by_side(packed, transpose, sizes, std, law, stream, d, words, spare, cell, mask)
        for lane in range(0, lanes, WIDTH):
            part = packed[lane * inner : (lane + WIDTH) * inner]
            run_tiles(
                z, lane, WIDTH, 1, part, 0, WIDTH, x[d], 0, inner, zeros, tile, everywhere[0], everywhere[1],
                everywhere[2], everywhere[3],
            )  # fmt: skip
        gathered(y[d], z, order, starts, taps, rows)
