"""Products over windows of positions with weights that are generated as they multiply.

Element (row, tap, column) of a weight is number (row taps + tap) columns + column of its tensor, ``column`` within
the row's block of channels. A block of rows is generated, packed for `tiles`, multiplied with every place, and
forgotten. Where draws are fewer than threads, each is worked on in ``parts``, by channels of the result. Every entry
of a result is one chain of float32 multiply-adds: no bit depends on tiles or threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from varflow.errors import InputError, ShapeError
from varflow.simulate.jit import Array, Number, device, kernel
from varflow.simulate.kernels import RandomMatrix, times
from varflow.simulate.rng import BERNOULLI, CHUNK, check_counter, distribution_code, fill, sample
from varflow.simulate.tiles import LANES, SHORT, TALL, WIDTH, short_tile, tall_tile, turned

Value = NDArray[np.float32]
Sizes = tuple[int, int, int, int]
"""Rows of a group, columns, taps, groups."""

F = np.float32
PIECE = 512
CELL = LANES * PIECE
BLOCK = 98304
"""Entries of a block of rows in a transposed product: 384 KiB, within the second cache."""
FEWEST = 8
"""With several groups, fewer channels than this in each go through `grouped`."""


@dataclass(frozen=True)
class RandomTaps:
    """A weight of ``taps`` matrices, rows x columns each, in ``groups`` blocks of rows.

    Entries are i.i.d. as those of a RandomMatrix; ``law`` normalizes them afterwards (see `weight_laws`).
    """

    rows: int
    columns: int
    tensor: int
    std: float = 1.0
    distribution: str = "normal"
    keep: float = 1.0
    mask_tensor: int = 0
    taps: int = 1
    groups: int = 1
    law: str = ""

    def __post_init__(self) -> None:
        distribution_code(self.distribution)
        if self.rows % self.groups:
            raise ShapeError(f"{self.rows} rows do not split into {self.groups} groups")
        if self.keep < 1.0 and self.mask_tensor == self.tensor:
            raise InputError("a sparse weight needs a mask_tensor other than its own tensor")

    @property
    def row_length(self) -> int:
        """Entries of a row, over its taps and columns."""
        return self.taps * self.columns

    @property
    def sizes(self) -> Sizes:
        """What kernels take."""
        return self.rows // self.groups, self.columns, self.taps, self.groups

    def drawn(self, seed: int, draws: int, first_draw: int = 0) -> Value:
        """The entries before ``std`` and ``law``: (draws, rows, taps columns)."""
        shape, place = (draws, self.rows * self.row_length), {"seed": seed, "first_draw": first_draw}
        entries = sample(self.distribution, shape, tensor=self.tensor, **place)
        if self.keep < 1.0:
            entries *= sample("bernoulli", shape, tensor=self.mask_tensor, parameter=self.keep, **place)
        return entries.reshape(draws, self.rows, self.row_length)

    def stream(self, seed: int, first_draw: int) -> Stream:
        """Where its entries come from."""
        for tensor in (self.tensor, self.mask_tensor):
            check_counter(seed, first_draw, 1, tensor, self.rows * self.row_length)
        words = (np.uint64(n) for n in (seed, first_draw, self.tensor, self.mask_tensor))
        return Stream(distribution_code(self.distribution), float(self.keep), *words)


def as_taps(m: RandomMatrix) -> RandomTaps:
    """The same weight, seen through one tap."""
    return RandomTaps(m.rows, m.columns, m.tensor, m.std, m.distribution, m.keep, m.mask_tensor)


class Stream(NamedTuple):
    """The generator of a weight's entries, as kernels take it."""

    kind: int
    keep: float
    seed: np.uint64
    first_draw: np.uint64
    tensor: np.uint64
    mask_tensor: np.uint64


@device
def fill_entries(out: Array, stream: Any, d: Number, offset: Number, words: Array, spare: Array, mask: Array) -> None:
    """Entries offset.. of a weight, masked."""
    draw = stream.first_draw + np.uint64(d)
    fill(out, out.size, stream.kind, 1.0, stream.seed, draw, stream.tensor, offset, words, spare)
    if stream.keep < 1.0:
        kept = mask[: out.size]
        fill(kept, out.size, BERNOULLI, stream.keep, stream.seed, draw, stream.mask_tensor, offset, words, spare)
        times(out, kept)


@device
def transposed_in(
    packed: Array, cell: Array, laws: Array, pitch: Number, depth: Number, lane: Number, lanes: Number
) -> None:
    """Rows of a cell as lanes of packed weights: packed[k WIDTH + lane + i] = cell[i pitch + k], in its row's law."""
    done = 0
    if lanes == LANES:
        done = depth // LANES * LANES
        out, rows = packed.ctypes.data + 4 * lane, cell.ctypes.data
        turned(out, 4 * WIDTH, rows, 4 * pitch, laws.ctypes.data, depth // LANES)
    for i in range(lanes):
        for k in range(done, depth):
            packed[k * WIDTH + lane + i] = cell[i * pitch + k] * laws[i, 0] + laws[i, 1]


@device
def affine_rows(cell: Array, size: Number, row: Number, rows: Number, std: Number, laws: Array) -> None:
    """Rows row.. of a weight brought to their law: times std, or each by its own scale and shift."""
    if laws.shape[0] == 0:
        whole = cell[: rows * size]
        for k in range(whole.size):
            whole[k] = whole[k] * std
        return
    for i in range(rows):
        part = cell[i * size : (i + 1) * size]
        scale, shift = laws[row + i, 0], laws[row + i, 1]
        for k in range(part.size):
            part[k] = part[k] * scale + shift


@device
def pack_rows(
    packed: Array, cell: Array, row: Number, count: Number, length: Number, std: Number, laws: Array, stream: Any,
    d: Number, words: Array, spare: Array, mask: Array,
) -> None:  # fmt: skip
    """Rows row.. row + count of a weight as packed[k WIDTH + lane], k over taps and columns."""
    law = np.empty((LANES, 2), np.float32)
    law[:, 0] = std
    law[:, 1] = F(0.0)
    for lane in range(0, count, LANES):
        lanes = min(LANES, count - lane)
        first = row + lane
        if laws.shape[0] > 0:
            for i in range(lanes):
                law[i, 0], law[i, 1] = laws[first + i, 0], laws[first + i, 1]
        for k in range(0, length, PIECE):
            size = min(PIECE, length - k)
            if size == length:
                fill_entries(cell[: lanes * size], stream, d, first * length, words, spare, mask)
            else:
                for i in range(lanes):
                    part = cell[i * size : (i + 1) * size]
                    fill_entries(part, stream, d, (first + i) * length + k, words, spare, mask)
            transposed_in(packed[k * WIDTH :], cell, law, size, size, lane, lanes)


@device
def copied(out: Array, x: Array, size: Number) -> None:
    """The first entries of a row. (Assigning a slice compiles the text of an error, which needs numba's runtime.)"""
    for i in range(size):
        out[i] = x[i]


@device
def run_tiles(
    y: Array, channel: Number, width: Number, fresh: Number, packed: Array, step: Number, line: Number, x: Array,
    first: Number, depth: Number, zeros: Array, tile: Array, order: Array, starts: Array, taps: Array, rows: Array,
) -> None:  # fmt: skip
    """y[place, channel: channel + width] (+)= sum over the route of x[row, first: first + depth] . weights of the tap.

    The lanes of a tap and a depth begin at packed[tap step + depth line]; all WIDTH of them are read.
    """
    weights, nothing = packed.ctypes.data, zeros.ctypes.data
    base, stride = x.ctypes.data + 4 * first, 4 * x.shape[1]
    target, pitch, spare = y.ctypes.data + 4 * channel, 4 * y.shape[1], tile.ctypes.data
    places = np.empty(TALL, np.int64)
    out = places.ctypes.data
    for i in range(starts.size - 1):
        at, begin, count = i * TALL, starts[i], starts[i + 1] - starts[i]
        height = min(TALL, order.size - at)
        whole = width == WIDTH
        for m in range(TALL):
            direct = whole and m < height
            places[m] = target + pitch * order[at + m] if direct else spare + 4 * WIDTH * m
        if not (whole or fresh):
            for m in range(height):
                copied(tile[m], y[order[at + m], channel:], width)
        numbers, which = rows.ctypes.data + 4 * TALL * begin, taps.ctypes.data + 4 * begin
        if height > SHORT:
            tall_tile(fresh, out, weights, 4 * step, 4 * line, numbers, which, count, base, stride, nothing, depth)
        else:
            short_tile(fresh, out, weights, 4 * step, 4 * line, numbers, which, count, base, stride, nothing, depth)
        if not whole:
            for m in range(height):
                copied(y[order[at + m], channel:], tile[m], width)
    places[0] = 0  # addresses are plain numbers: the array must outlive the loop


@kernel
def forward(
    x: Array, y: Array, parts: Number, sizes: Any, std: Number, laws: Array, stream: Any, order: Array, starts: Array,
    taps: Array, rows: Array, start: Number, stop: Number,
) -> None:  # fmt: skip
    rows_of_group, columns, tap_count, groups = sizes
    length = tap_count * columns
    words, spare = np.empty(CHUNK, np.uint32), np.empty(CHUNK, np.float32)
    cell, mask = np.empty(CELL, np.float32), np.empty(CELL, np.float32)
    packed, zeros = np.zeros(length * WIDTH, np.float32), np.zeros(columns, np.float32)
    tile = np.empty((TALL, WIDTH), np.float32)
    for item in range(start, stop):
        d, part = item // parts, item % parts
        law = laws[d if laws.shape[0] > 1 else 0]
        for group in range(groups):
            for r in range(0, rows_of_group, WIDTH):
                if (group + r // WIDTH) % parts != part:
                    continue
                row, count = group * rows_of_group + r, min(WIDTH, rows_of_group - r)
                pack_rows(packed, cell, row, count, length, std, law, stream, d, words, spare, mask)
                run_tiles(
                    y[d], row, count, 1, packed, columns * WIDTH, WIDTH, x[d], group * columns, columns, zeros, tile,
                    order, starts, taps, rows,
                )  # fmt: skip


@kernel
def transposed(
    x: Array, y: Array, parts: Number, sizes: Any, std: Number, laws: Array, stream: Any, order: Array, starts: Array,
    taps: Array, rows: Array, start: Number, stop: Number,
) -> None:  # fmt: skip
    rows_of_group, columns, tap_count, groups = sizes
    length = tap_count * columns
    step = min(max(BLOCK // length, 1), rows_of_group)
    words, spare = np.empty(CHUNK, np.uint32), np.empty(CHUNK, np.float32)
    piece = max(CELL // length, 1)
    mask = np.empty(piece * length if stream.keep < 1.0 else 0, np.float32)
    block, zeros = np.zeros(step * length + WIDTH, np.float32), np.zeros(step, np.float32)
    tile = np.empty((TALL, WIDTH), np.float32)
    for item in range(start, stop):
        d, part = item // parts, item % parts
        law = laws[d if laws.shape[0] > 1 else 0]
        for group in range(groups):
            for r in range(0, rows_of_group, step):
                first, count = group * rows_of_group + r, min(step, rows_of_group - r)
                for row in range(0, count, piece):
                    several = min(piece, count - row)
                    cell = block[row * length : (row + several) * length]
                    fill_entries(cell, stream, d, (first + row) * length, words, spare, mask)
                    affine_rows(cell, length, first + row, several, std, law)
                for c in range(0, columns, WIDTH):
                    if (group + c // WIDTH) % parts != part:
                        continue
                    run_tiles(
                        y[d], group * columns + c, min(WIDTH, columns - c), np.int64(r == 0), block[c:], columns,
                        length, x[d], first, count, zeros, tile, order, starts, taps, rows,
                    )  # fmt: skip


@device
def spread(out: Array, x: Array, inner: Number, outer: Number, i: Number) -> None:
    """Channel i of every group's ``inner``, for each of the group's ``outer`` results."""
    for p in range(x.shape[0]):
        for g in range(x.shape[1] // inner):
            for o in range(outer):
                out[p, g * outer + o] = x[p, g * inner + i]


@device
def lanes_of(
    packed: Array, transpose: Number, sizes: Any, std: Number, laws: Array, stream: Any, d: Number, words: Array,
    spare: Array, cell: Array, mask: Array,
) -> None:  # fmt: skip
    """A weight of small groups as packed[inner, tap, outer channel]."""
    rows_of_group, columns, taps, groups = sizes
    length = taps * columns
    for row in range(rows_of_group * groups):
        fill_entries(cell, stream, d, row * length, words, spare, mask)
        affine_rows(cell, length, row, 1, std, laws)
        group, inside = row // rows_of_group, row % rows_of_group
        for t in range(taps):
            for c in range(columns):
                if transpose:
                    packed[inside, t, group * columns + c] = cell[t * columns + c]
                else:
                    packed[c, t, row] = cell[t * columns + c]


@device
def along(y: Array, packed: Array, x: Array, order: Array, starts: Array, taps: Array, rows: Array) -> None:
    """y[place] += packed[tap] x[row], channel by channel, over a route."""
    for i in range(starts.size - 1):
        at = i * TALL
        height = min(TALL, order.size - at)
        for k in range(starts[i], starts[i + 1]):
            weight = packed[taps[k]]
            for m in range(height):
                if rows[k, m] >= 0:
                    into, source = y[order[at + m]], x[rows[k, m]]
                    for c in range(into.size):
                        into[c] += weight[c] * source[c]


@kernel
def grouped(
    x: Array, y: Array, transpose: Number, sizes: Any, std: Number, laws: Array, stream: Any, order: Array,
    starts: Array, taps: Array, rows: Array, start: Number, stop: Number,
) -> None:  # fmt: skip
    rows_of_group, columns, tap_count, _ = sizes
    inner, outer = (rows_of_group, columns) if transpose else (columns, rows_of_group)
    words, spare = np.empty(CHUNK, np.uint32), np.empty(CHUNK, np.float32)
    cell = np.empty(tap_count * columns, np.float32)
    mask = np.empty(cell.size if stream.keep < 1.0 else 0, np.float32)
    packed = np.empty((inner, tap_count, y.shape[2]), np.float32)
    plain = inner == 1 and outer == 1
    spreaded = np.empty((0 if plain else x.shape[1], y.shape[2]), np.float32)
    for d in range(start, stop):
        law = laws[d if laws.shape[0] > 1 else 0]
        lanes_of(packed, transpose, sizes, std, law, stream, d, words, spare, cell, mask)
        y[d] = F(0.0)
        for i in range(inner):
            if not plain:
                spread(spreaded, x[d], inner, outer, i)
            along(y[d], packed[i], x[d] if plain else spreaded, order, starts, taps, rows)
