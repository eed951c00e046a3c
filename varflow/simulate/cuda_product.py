"""CUDA kernels for products with weights that are generated in shared memory as they multiply.

A block of threads makes a tile of the result: ROWS (COLUMNS for the transpose) channels at PLACES places. For every
tap that its places see and every piece of the depth it generates the weights into shared memory, stages the inputs
beside them, and multiplies: partial sums of a piece in float32 registers, sums of pieces in float64. Places in the
innermost loops are unsigned: numba asks of signed ones whether they count from the end, which costs more than the
multiplication.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from varflow.simulate.cuda_device import (
    SIMULATED,
    THREADS,
    device,
    four,
    kernel,
    launch,
    limit_of,
    sent,
)
from varflow.simulate.cuda_paths import Path
from varflow.simulate.jit import Array, Number
from varflow.simulate.kernels_window import RandomTaps
from varflow.simulate.rng import BERNOULLI, LANES, TILE, check_counter, distribution_code

cuda: Any = import_module("numba.cuda")
types: Any = import_module("numba.cuda.types")

F = np.float32

WAYS, HIGH, WIDE = (2, 2, 4) if SIMULATED else (16, 4, 4)
"""Threads along the channels of a tile; channels and places that one thread sums."""
SIDES = THREADS // WAYS
ROWS, COLUMNS, PLACES = WAYS * HIGH, TILE, SIDES * WIDE
TALL = COLUMNS // WAYS
"""Channels that one thread sums in a transposed product."""
SHORT_SUMS, TALL_SUMS = HIGH * WIDE, TALL * WIDE
PITCH, DEEP = COLUMNS + 1, ROWS + 1
"""Entries from row to row in shared memory, so that neighbouring threads read different banks."""
SHARED_FORWARD = 4 * (ROWS + PLACES) * PITCH
SHARED_TRANSPOSED = 4 * (ROWS * PITCH + PLACES * DEEP)


@device
def stage_weights(
    shared: Array, thread: Number, laws: Array, first: Number, taps: Number, columns: Number, row: Number,
    count: Number, tap: Number, column: Number, width: Number, std: Number, kind: Number, kept: Any, seed: Number,
    draw: Number, tensor: Number, mask_tensor: Number,
) -> None:  # fmt: skip
    """shared[r PITCH + j] = entry (row + r, tap, column + j) of the weight, in its law.

    ``first``: where the laws of the draw's rows begin; ``kept`` = (whether there is a mask, its limit).
    """
    each = LANES if columns % TILE == 0 else 2 * LANES
    for q in range(thread, count * each, THREADS):
        r, b = q // each, q % each
        begin = ((row + r) * taps + tap) * columns + column
        tile = begin // TILE + b // LANES
        j = tile * TILE + b % LANES - begin
        if j < width:
            block = np.uint64(tile * LANES + b % LANES)
            w = x = y = z = F(1.0)
            for masking in range(1 + kept[0]):
                what, stream = (BERNOULLI, mask_tensor) if masking else (kind, tensor)
                e, f, g, h = four(what, kept[1], F(1.0), block, seed, draw, stream)
                w, x, y, z = F(w * e), F(x * f), F(y * g), F(z * h)
            scale, shift = std, F(0.0)
            if laws.size > 1:
                scale, shift = laws[first + 2 * (row + r)], laws[first + 2 * (row + r) + 1]
            at = r * PITCH + j
            if j >= 0:
                shared[at] = w * scale + shift
            if j + LANES >= 0 and j + LANES < width:
                shared[at + LANES] = x * scale + shift
            if j + 2 * LANES >= 0 and j + 2 * LANES < width:
                shared[at + 2 * LANES] = y * scale + shift
            if j + 3 * LANES >= 0 and j + 3 * LANES < width:
                shared[at + 3 * LANES] = z * scale + shift


@device
def stage_inputs(
    shared: Array, thread: Number, begin: Number, pitch: Number, x: Array, rows: Array, at: Number, first: Number,
    channels: Number, channel: Number, depth: Number, width: Number,
) -> None:  # fmt: skip
    """shared[begin + m pitch + j] = x[row of place m, channel + j] for j < width; zero where a place sees nothing."""
    for q in range(thread, PLACES * depth, THREADS):
        m, j = q // depth, q % depth
        if j < width:
            row = rows[at * PLACES + m]
            entry = F(0.0)
            if row >= 0:
                entry = x[first + row * channels + channel + j]
            shared[begin + m * pitch + j] = entry


@kernel
def forward_kernel(
    x: Array, y: Array, laws: Array, order: Array, starts: Array, taps: Array, rows: Array, places: Number,
    inputs: Number, group_rows: Number, columns: Number, tap_count: Number, groups: Number, many: Number, std: Number,
    kind: Number, keeps: Number, keep_limit: Number, seed: Number, first_draw: Number, tensor: Number,
    mask_tensor: Number,
) -> None:  # fmt: skip
    shared = cuda.shared.array(0, types.float32)
    part, total = cuda.local.array(SHORT_SUMS, types.float32), cuda.local.array(SHORT_SUMS, types.float64)
    thread, d = cuda.threadIdx.x, cuda.blockIdx.y
    a, b = thread % WAYS, thread // WAYS
    draw = first_draw + np.uint64(d)
    channels, outer = columns * groups, group_rows * groups
    tiles, pieces = starts.size - 1, (group_rows + ROWS - 1) // ROWS
    for item in range(cuda.blockIdx.x, tiles * pieces * groups, cuda.gridDim.x):
        tile, piece = item % tiles, item // tiles
        group, begin = piece // pieces, piece % pieces * ROWS
        row, count = group * group_rows + begin, min(ROWS, group_rows - begin)
        for i in range(SHORT_SUMS):
            total[i] = 0.0
        for k in range(starts[tile], starts[tile + 1]):
            for c in range(0, columns, COLUMNS):
                width = min(COLUMNS, columns - c)
                cuda.syncthreads()
                stage_weights(
                    shared, thread, laws, many * d * 2 * outer, tap_count, columns, row, count, taps[k], c, width,
                    std, kind, (keeps, keep_limit), seed, draw, tensor, mask_tensor,
                )  # fmt: skip
                stage_inputs(
                    shared, thread, ROWS * PITCH, PITCH, x, rows, k, d * inputs * channels, channels,
                    group * columns + c, COLUMNS, width,
                )  # fmt: skip
                cuda.syncthreads()
                for i in range(SHORT_SUMS):
                    part[i] = F(0.0)
                up, across = np.uint64(a * PITCH), np.uint64((ROWS + b) * PITCH)
                for _ in range(width):
                    for m in range(WIDE):
                        entry = shared[across + np.uint64(m * SIDES * PITCH)]
                        for i in range(HIGH):
                            part[m * HIGH + i] += shared[up + np.uint64(i * WAYS * PITCH)] * entry
                    up += np.uint64(1)
                    across += np.uint64(1)
                for i in range(SHORT_SUMS):
                    total[i] += np.float64(part[i])
        for m in range(WIDE):
            at = tile * PLACES + b + m * SIDES
            for i in range(HIGH):
                if at < places and a + i * WAYS < count:
                    y[(d * places + order[at]) * outer + row + a + i * WAYS] = F(total[m * HIGH + i])


@kernel
def transposed_kernel(
    x: Array, y: Array, laws: Array, order: Array, starts: Array, taps: Array, rows: Array, places: Number,
    inputs: Number, group_rows: Number, columns: Number, tap_count: Number, groups: Number, many: Number, std: Number,
    kind: Number, keeps: Number, keep_limit: Number, seed: Number, first_draw: Number, tensor: Number,
    mask_tensor: Number,
) -> None:  # fmt: skip
    shared = cuda.shared.array(0, types.float32)
    part, total = cuda.local.array(TALL_SUMS, types.float32), cuda.local.array(TALL_SUMS, types.float64)
    thread, d = cuda.threadIdx.x, cuda.blockIdx.y
    a, b = thread % WAYS, thread // WAYS
    draw = first_draw + np.uint64(d)
    channels, outer = group_rows * groups, columns * groups
    tiles, pieces = starts.size - 1, (columns + COLUMNS - 1) // COLUMNS
    for item in range(cuda.blockIdx.x, tiles * pieces * groups, cuda.gridDim.x):
        tile, piece = item % tiles, item // tiles
        group, c = piece // pieces, piece % pieces * COLUMNS
        width = min(COLUMNS, columns - c)
        for i in range(TALL_SUMS):
            total[i] = 0.0
        for k in range(starts[tile], starts[tile + 1]):
            for r in range(0, group_rows, ROWS):
                row, count = group * group_rows + r, min(ROWS, group_rows - r)
                cuda.syncthreads()
                stage_weights(
                    shared, thread, laws, many * d * 2 * channels, tap_count, columns, row, count, taps[k], c, width,
                    std, kind, (keeps, keep_limit), seed, draw, tensor, mask_tensor,
                )  # fmt: skip
                stage_inputs(
                    shared, thread, ROWS * PITCH, DEEP, x, rows, k, d * inputs * channels, channels, row, ROWS, count
                )
                cuda.syncthreads()
                for i in range(TALL_SUMS):
                    part[i] = F(0.0)
                up, across = np.uint64(a), np.uint64(ROWS * PITCH + b * DEEP)
                for _ in range(count):
                    for m in range(WIDE):
                        entry = shared[across + np.uint64(m * SIDES * DEEP)]
                        for i in range(TALL):
                            part[m * TALL + i] += shared[up + np.uint64(i * WAYS)] * entry
                    up += np.uint64(PITCH)
                    across += np.uint64(1)
                for i in range(TALL_SUMS):
                    total[i] += np.float64(part[i])
        for m in range(WIDE):
            at = tile * PLACES + b + m * SIDES
            for i in range(TALL):
                if at < places and a + i * WAYS < width:
                    y[(d * places + order[at]) * outer + group * columns + c + a + i * WAYS] = F(total[m * TALL + i])


@kernel
def direct_kernel(
    x: Array, y: Array, entries: Array, table: Array, taps: Array, places: Number, inputs: Number, group_rows: Number,
    columns: Number, tap_count: Number, groups: Number, transpose: Number,
) -> None:  # fmt: skip
    """Stored weights, of small groups or orthogonal: one thread an entry of the result."""
    d, slots = cuda.blockIdx.y, taps.size
    inner, outer = (group_rows, columns) if transpose else (columns, group_rows)
    step, row_step = (tap_count * columns, 1) if transpose else (1, tap_count * columns)
    start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for q in range(start, places * outer * groups, cuda.gridDim.x * cuda.blockDim.x):
        p, o = q // (outer * groups), q % (outer * groups)
        group = o // outer
        begin = d * groups * group_rows * tap_count * columns
        begin += group * group_rows * tap_count * columns + (o - group * outer) * row_step
        total = 0.0
        for s in range(slots):
            row = table[p * slots + s]
            if row >= 0:
                at, source = begin + taps[s] * columns, (d * inputs + row) * inner * groups + group * inner
                for i in range(inner):
                    total += np.float64(entries[at + i * step]) * np.float64(x[source + i])
        y[d * places * outer * groups + q] = F(total)


@kernel
def law_kernel(entries: Array, laws: Array, many: Number, rows: Number, length: Number, std: Number) -> None:
    """Stored entries brought to their law, in place."""
    d = cuda.blockIdx.y
    start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for q in range(start, rows * length, cuda.gridDim.x * cuda.blockDim.x):
        scale, shift = std, F(0.0)
        if laws.size > 1:
            at = 2 * (many * d * rows + q // length)
            scale, shift = laws[at], laws[at + 1]
        entries[d * rows * length + q] = entries[d * rows * length + q] * scale + shift


def multiply(
    x: Any, y: Any, weight: RandomTaps, way: Path, draws: int, *, seed: int, first_draw: int, transpose: bool,
    laws: Any = None,
) -> None:  # fmt: skip
    """y = W x (W^T x) over a path for every draw; ``laws``: scale and shift of each row, (draws, rows, 2)."""
    nothing = sent(np.zeros(1, np.float32))
    group_rows, columns, taps, groups = weight.sizes
    for tensor in (weight.tensor, weight.mask_tensor):
        check_counter(seed, first_draw, draws, tensor, weight.rows * weight.row_length)
    channels = -(-columns // COLUMNS) if transpose else -(-group_rows // ROWS)
    numbers = (way.places, way.inputs, group_rows, columns, taps, groups)
    launch(
        transposed_kernel if transpose else forward_kernel,
        (way.tiles * channels * groups, draws), x, y, nothing if laws is None else laws, way.order, way.starts,
        way.taps, way.rows, *numbers, int(draws > 1), F(weight.std), distribution_code(weight.distribution),
        int(weight.keep < 1), np.uint32(limit_of(BERNOULLI, weight.keep)[1]), np.uint64(seed),
        np.uint64(first_draw), np.uint64(weight.tensor), np.uint64(weight.mask_tensor),
        shared=SHARED_TRANSPOSED if transpose else SHARED_FORWARD,
    )  # fmt: skip
