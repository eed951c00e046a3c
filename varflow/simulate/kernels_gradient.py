"""Second moments of the gradients of weights over windows: dL/dW_t = sum over places of outer(d[p], h[tap t of p])."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.simulate.jit import Array, Number, device, kernel, over_draws
from varflow.simulate.kernels_window import FEWEST, Sizes, run_tiles, spread
from varflow.simulate.routes import route
from varflow.simulate.tiles import TALL, WIDTH

Value = NDArray[np.float32]
Table = NDArray[np.int64]

F = np.float32
PLACES = 2048
"""Places whose products are summed before more are packed."""


@device
def pack_places(
    packed: Array, h: Array, seen: Array, first: Number, count: Number, channel: Number, columns: Number, lane: Number,
    width: Number,
) -> None:  # fmt: skip
    """packed[p, i] = h[tap of place first + p, channel + column], where lane + i = tap columns + column; zero
    outside the grid."""
    begin = lane
    while begin < lane + width:
        tap, column = begin // columns, begin % columns
        size = min(columns - column, lane + width - begin)
        for p in range(count):
            at = p * WIDTH + begin - lane
            into, row = packed[at : at + size], seen[first + p, tap]
            if row < 0:
                into[:] = F(0.0)
            else:
                source = h[row, channel + column : channel + column + size]
                for j in range(size):
                    into[j] = source[j]
        begin += size


@kernel
def _blocks(
    left: Array, h: Array, seen: Array, sizes: Any, out: Array, order: Array, starts: Array, taps: Array, rows: Array,
    start: Number, stop: Number,
) -> None:  # fmt: skip
    """Sums of squares; ``left`` is (draws, rows, places)."""
    rows_of_group, columns, tap_count, groups = sizes
    places = seen.shape[0]
    packed, zeros = np.zeros(PLACES * WIDTH, np.float32), np.zeros(PLACES, np.float32)
    tile, block = np.empty((TALL, WIDTH), np.float32), np.empty((rows_of_group, WIDTH), np.float32)
    for d in range(start, stop):
        total = 0.0
        for group in range(groups):
            mine = left[d, group * rows_of_group : (group + 1) * rows_of_group]
            for lane in range(0, tap_count * columns, WIDTH):
                width = min(WIDTH, tap_count * columns - lane)
                for p in range(0, places, PLACES):
                    count = min(PLACES, places - p)
                    pack_places(packed, h[d], seen, p, count, group * columns, columns, lane, width)
                    run_tiles(
                        block, 0, WIDTH, np.int64(p == 0), packed, 0, WIDTH, mine, p, count, zeros, tile, order,
                        starts, taps, rows,
                    )  # fmt: skip
                for r in range(rows_of_group):
                    for j in range(width):
                        total += np.float64(block[r, j]) * np.float64(block[r, j])
        out[d] = total


@kernel
def _few(left: Array, h: Array, seen: Array, sizes: Any, out: Array, start: Number, stop: Number) -> None:
    """The same for small groups; ``left`` is (draws, places, rows)."""
    rows_of_group, columns, tap_count, _ = sizes
    spreaded = np.empty((h.shape[1], left.shape[2]), np.float32)
    sums = np.empty(left.shape[2])
    for d in range(start, stop):
        total = 0.0
        for c in range(columns):
            spread(spreaded, h[d], columns, rows_of_group, c)
            for tap in range(tap_count):
                sums[:] = 0.0
                for p in range(seen.shape[0]):
                    if seen[p, tap] >= 0:
                        slope, source = left[d, p], spreaded[seen[p, tap]]
                        for r in range(sums.size):
                            sums[r] += np.float64(slope[r]) * np.float64(source[r])
                for r in range(sums.size):
                    total += sums[r] * sums[r]
        out[d] = total


def taps_gradient_moment(uses: list[tuple[Value, Value, Table]], sizes: Sizes) -> NDArray[np.float64]:
    """Mean square entry of dL/dW, per draw, for a weight used several times.

    ``uses`` holds (row side, column side, table): values (draws, places, channels), and for each place of the row
    side the places of the column side that it meets at each tap (-1: none), samples included; ``sizes`` are those of
    the weight.
    """
    left = _joined([d for d, _, _ in uses])
    right = _joined([h for _, h, _ in uses])
    offsets = np.cumsum([0, *(h.shape[1] for _, h, _ in uses[:-1])])
    seen = np.concatenate([np.where(t < 0, -1, t + o) for (_, _, t), o in zip(uses, offsets, strict=True)])
    rows, columns, taps, groups = sizes
    out = np.empty(left.shape[0])
    if groups > 1 and rows < FEWEST:
        over_draws(_few, len(out), left, right, seen, sizes, out)
    else:
        turned = np.ascontiguousarray(left.swapaxes(1, 2))
        over_draws(_blocks, len(out), turned, right, seen, sizes, out, *route(None, 1, rows).arrays)
    return np.asarray(out / (rows * columns * taps * groups))


def _joined(values: list[Value]) -> Value:
    return np.ascontiguousarray(values[0] if len(values) == 1 else np.concatenate(values, axis=1), np.float32)
