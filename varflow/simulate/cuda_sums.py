"""CUDA kernels that sum: moments, means over positions, normalization, gradients of weights.

Sums run in float64 through shared memory, in an order that depends on the sizes alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from varflow.simulate.cuda_device import (
    MOST_BLOCKS,
    SIMULATED,
    THREADS,
    blocks_for,
    column_total,
    device,
    empty,
    kernel,
    launch,
)
from varflow.simulate.jit import Array, Number
from varflow.simulate.kernels_standardize import normalized, pulled_back

cuda: Any = import_module("numba.cuda")
types: Any = import_module("numba.cuda.types")

F = np.float32
SHARE = 64 if SIMULATED else 8192
"""Entries of a draw that one block sums at least."""
MOST_SHARES = 256

LEFT, RIGHT, DEPTH = (4, 4, 8) if SIMULATED else (32, 16, 32)
"""Rows (they divide THREADS) and columns of a tile of a weight's gradient, places staged at once."""
EACH = LEFT * RIGHT // THREADS
"""Entries of the tile that one thread sums."""


# -- moments -----------------------------------------------------------------------------------------


@kernel
def moments_kernel(x: Array, size: Number, partial: Array) -> None:
    """Sums of entries, squares and fourth powers of a share of a draw."""
    shared = cuda.shared.array(0, types.float64)
    thread, d, shares = cuda.threadIdx.x, cuda.blockIdx.y, cuda.gridDim.x
    a = b = c = 0.0
    for i in range(cuda.blockIdx.x * THREADS + thread, size, shares * THREADS):
        value = np.float64(x[d * size + i])
        square = value * value
        a += value
        b += square
        c += square * square
    shared[thread], shared[THREADS + thread], shared[2 * THREADS + thread] = a, b, c
    cuda.syncthreads()
    if thread < 3:
        total = column_total(shared, thread * THREADS, THREADS, 1)
        partial[(d * shares + cuda.blockIdx.x) * 3 + thread] = total


@kernel
def finish_kernel(
    partial: Array, shares: Number, kinds: Number, divisor: Number, rows: Array, columns: Number, column: Number,
    first: Number, draws: Number,
) -> None:  # fmt: skip
    """rows[draw, column, first + k] = sum over shares of partial[draw, share, k] / divisor."""
    start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for q in range(start, draws * kinds, cuda.gridDim.x * cuda.blockDim.x):
        d, k = q // kinds, q % kinds
        total = column_total(partial, d * shares * kinds + k, shares, kinds)
        rows[(d * columns + column) * 3 + first + k] = total / divisor


@kernel
def energy_kernel(x: Array, readers: Array, size: Number, channels: Number, positions: Number, partial: Array) -> None:
    """Sum over a share of a draw of squares times how often their position is read."""
    shared = cuda.shared.array(0, types.float64)
    thread, d, shares = cuda.threadIdx.x, cuda.blockIdx.y, cuda.gridDim.x
    total = 0.0
    for i in range(cuda.blockIdx.x * THREADS + thread, size, shares * THREADS):
        value = np.float64(x[d * size + i])
        total += value * value * readers[i // channels % positions]
    shared[thread] = total
    cuda.syncthreads()
    if thread == 0:
        partial[d * shares + cuda.blockIdx.x] = column_total(shared, 0, THREADS, 1)


def shares_of(size: int) -> int:
    """Blocks that share the sum over one draw."""
    return min(max(1, -(-size // SHARE)), MOST_SHARES)


def energy(
    x: Any, readers: Any, size: int, channels: int, positions: int, divisor: float, draws: int, rows: Any,
    columns: int, column: int,
) -> None:  # fmt: skip
    """Energies of the positions, weighted by ``readers``, over ``divisor``, into rows[:, column, 1]."""
    shares = shares_of(size)
    partial = empty(draws * shares, np.float64)
    launch(energy_kernel, (shares, draws), x, readers, size, channels, positions, partial, shared=8 * THREADS)
    launch(finish_kernel, (blocks_for(draws),), partial, shares, 1, divisor, rows, columns, column, 1, draws)


def moments(x: Any, size: int, draws: int, rows: Any, columns: int, column: int) -> None:
    """Mean, second and fourth moment of every draw into column ``column`` of rows (draws, columns, 3)."""
    shares = shares_of(size)
    partial = empty(draws * shares * 3, np.float64)
    launch(moments_kernel, (shares, draws), x, size, partial, shared=24 * THREADS)
    launch(finish_kernel, (blocks_for(3 * draws),), partial, shares, 3, float(size), rows, columns, column, 0, draws)


# -- statistics of cells -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """Entries that share a statistic, for every cell of all draws.

    Cell k begins at ``(k // per) outer + k % per inner``; it has ``count`` entries, in runs of ``width`` that are
    ``stride`` apart. ``lanes`` cells go to one block, where neighbours in memory are read together.
    """

    cells: int
    per: int
    outer: int
    inner: int
    count: int
    width: int
    stride: int
    lanes: int = 1

    @property
    def numbers(self) -> tuple[int, ...]:
        """What kernels take."""
        return (self.cells, self.per, self.outer, self.inner, self.count, self.width, self.stride, self.lanes)


ABREAST = 2 if SIMULATED else 32


def by_channel(draws: int, places: int, channels: int) -> Cells:
    """A cell for each channel, over all places."""
    return Cells(draws * channels, channels, places * channels, 1, places, 1, channels, ABREAST)


def by_group(draws: int, samples: int, positions: int, channels: int, groups: int) -> Cells:
    """A cell for each block of channels of each sample, over its positions."""
    size = channels // groups
    cells = draws * samples * groups
    return Cells(cells, groups, positions * channels, size, positions * size, size, channels)


@device
def beginning(cell: Number, per: Number, outer: Number, inner: Number) -> Any:
    """Where a cell begins."""
    return cell // per * outer + cell % per * inner


@kernel
def mean_kernel(
    x: Array, y: Array, cells: Number, per: Number, outer: Number, inner: Number, count: Number, width: Number,
    stride: Number, lanes: Number,
) -> None:  # fmt: skip
    """The mean of every cell."""
    shared = cuda.shared.array(0, types.float64)
    thread = cuda.threadIdx.x
    lane, part, parts = thread % lanes, thread // lanes, THREADS // lanes
    for block in range(cuda.blockIdx.x, (cells + lanes - 1) // lanes, cuda.gridDim.x):
        cell = block * lanes + lane
        first = beginning(cell, per, outer, inner)
        total = 0.0
        if cell < cells:
            for r in range(part, count, parts):
                total += np.float64(x[first + r // width * stride + r % width])
        cuda.syncthreads()
        shared[thread] = total
        cuda.syncthreads()
        if part == 0 and cell < cells:
            y[cell] = F(column_total(shared, lane, parts, lanes) / count)


@kernel
def standardize_kernel(
    x: Array, y: Array, center: Number, eps: Number, cells: Number, per: Number, outer: Number, inner: Number,
    count: Number, width: Number, stride: Number, lanes: Number,
) -> None:  # fmt: skip
    """(x - mean) / sqrt(variance + eps), statistics over cells."""
    shared = cuda.shared.array(0, types.float64)
    thread = cuda.threadIdx.x
    lane, part, parts = thread % lanes, thread // lanes, THREADS // lanes
    for block in range(cuda.blockIdx.x, (cells + lanes - 1) // lanes, cuda.gridDim.x):
        cell = block * lanes + lane
        first, last = beginning(cell, per, outer, inner), count if cell < cells else 0
        mean, total = 0.0, 0.0
        if center:
            for r in range(part, last, parts):
                total += np.float64(x[first + r // width * stride + r % width])
            cuda.syncthreads()
            shared[thread] = total
            cuda.syncthreads()
            mean = column_total(shared, lane, parts, lanes) / count
        total = 0.0
        for r in range(part, last, parts):
            deviation = np.float64(x[first + r // width * stride + r % width]) - mean
            total += deviation * deviation
        cuda.syncthreads()
        shared[thread] = total
        cuda.syncthreads()
        inverse = 1.0 / math.sqrt(column_total(shared, lane, parts, lanes) / count + eps)
        for r in range(part, last, parts):
            at = first + r // width * stride + r % width
            y[at] = normalized(x[at], mean, inverse)


@kernel
def standardize_backward_kernel(
    x: Array, dy: Array, dx: Array, center: Number, eps: Number, cells: Number, per: Number, outer: Number,
    inner: Number, count: Number, width: Number, stride: Number, lanes: Number,
) -> None:  # fmt: skip
    """(dy - mean(dy) - y mean(y dy)) / sigma, statistics over cells."""
    shared = cuda.shared.array(0, types.float64)
    thread = cuda.threadIdx.x
    lane, part, parts = thread % lanes, thread // lanes, THREADS // lanes
    for block in range(cuda.blockIdx.x, (cells + lanes - 1) // lanes, cuda.gridDim.x):
        cell = block * lanes + lane
        first, last = beginning(cell, per, outer, inner), count if cell < cells else 0
        mean, mean_slope = 0.0, 0.0
        total, slopes, products = 0.0, 0.0, 0.0
        for r in range(part, last, parts):
            at = first + r // width * stride + r % width
            total += np.float64(x[at])
            slopes += np.float64(dy[at])
        cuda.syncthreads()
        shared[thread], shared[THREADS + thread] = total, slopes
        cuda.syncthreads()
        if center:
            mean = column_total(shared, lane, parts, lanes) / count
            mean_slope = column_total(shared, THREADS + lane, parts, lanes) / count
        total = 0.0
        for r in range(part, last, parts):
            at = first + r // width * stride + r % width
            deviation = np.float64(x[at]) - mean
            total += deviation * deviation
            products += deviation * np.float64(dy[at])
        cuda.syncthreads()
        shared[thread], shared[THREADS + thread] = total, products
        cuda.syncthreads()
        inverse = 1.0 / math.sqrt(column_total(shared, lane, parts, lanes) / count + eps)
        shift = column_total(shared, THREADS + lane, parts, lanes) * inverse / count
        for r in range(part, last, parts):
            at = first + r // width * stride + r % width
            dx[at] = pulled_back(x[at], dy[at], mean, inverse, mean_slope, shift)


def over_cells(run: Any, c: Cells, *arguments: Any) -> None:
    """Launch one of the kernels above."""
    blocks = min(-(-c.cells // c.lanes), MOST_BLOCKS)
    launch(run, (blocks,), *arguments, *c.numbers, shared=16 * THREADS)


# -- gradients of weights ----------------------------------------------------------------------------


@kernel
def gradient_kernel(
    left: Array, right: Array, seen: Array, partial: Array, places: Number, inputs: Number, group_rows: Number,
    columns: Number, taps: Number, groups: Number,
) -> None:  # fmt: skip
    """Sums of squares of a tile of dL/dW = sum over places p of outer(left[p], right[tap of p])."""
    shared = cuda.shared.array(0, types.float64)
    total = cuda.local.array(EACH, types.float64)
    thread, d = cuda.threadIdx.x, cuda.blockIdx.y
    lanes = taps * columns
    down, along = (group_rows + LEFT - 1) // LEFT, (lanes + RIGHT - 1) // RIGHT
    squares = 0.0
    for item in range(cuda.blockIdx.x, groups * down * along, cuda.gridDim.x):
        group, tile = item // (down * along), item % (down * along)
        row, lane = tile // along * LEFT, tile % along * RIGHT
        for i in range(EACH):
            total[i] = 0.0
        for first in range(0, places, DEPTH):
            cuda.syncthreads()
            for q in range(thread, DEPTH * LEFT, THREADS):
                p, r = first + q // LEFT, row + q % LEFT
                entry = 0.0
                if p < places and r < group_rows:
                    entry = np.float64(left[(d * places + p) * group_rows * groups + group * group_rows + r])
                shared[q] = entry
            for q in range(thread, DEPTH * RIGHT, THREADS):
                p, j = first + q // RIGHT, lane + q % RIGHT
                entry = 0.0
                if p < places and j < lanes:
                    at = seen[p * taps + j // columns]
                    if at >= 0:
                        entry = np.float64(right[((d * inputs + at) * groups + group) * columns + j % columns])
                shared[DEPTH * LEFT + q] = entry
            cuda.syncthreads()
            up, across = np.uint64(thread % LEFT), np.uint64(DEPTH * LEFT + thread // LEFT)
            for _ in range(DEPTH):
                entry = shared[up]
                for i in range(EACH):
                    total[i] += entry * shared[across + np.uint64(i * (THREADS // LEFT))]
                up += np.uint64(LEFT)
                across += np.uint64(RIGHT)
        for i in range(EACH):
            squares += total[i] * total[i]
    cuda.syncthreads()
    shared[thread] = squares
    cuda.syncthreads()
    if thread == 0:
        partial[d * cuda.gridDim.x + cuda.blockIdx.x] = column_total(shared, 0, THREADS, 1)


def gradient_moment(
    left: Any, right: Any, seen: Any, sizes: tuple[int, int, int, int], places: int, inputs: int, draws: int,
    rows: Any, columns: int, column: int,
) -> None:  # fmt: skip
    """Mean square entry of dL/dW of every draw into rows[:, column, 1]; ``seen`` (places, taps) as int32."""
    group_rows, width, taps, groups = sizes
    tiles = -(-group_rows // LEFT) * -(-(taps * width) // RIGHT) * groups
    shares = min(tiles, MOST_SHARES)
    partial = empty(draws * shares, np.float64)
    launch(
        gradient_kernel, (shares, draws), left, right, seen, partial, places, inputs, *sizes,
        shared=8 * max(DEPTH * (LEFT + RIGHT), THREADS),
    )  # fmt: skip
    entries = float(group_rows * width * taps * groups)
    launch(finish_kernel, (blocks_for(draws),), partial, shares, 1, entries, rows, columns, column, 1, draws)
