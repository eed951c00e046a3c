"""CUDA kernels of attention: inner products of tokens, their softmax, and blends of values, head by head.

All three products (scores, blends, transposed blends) are one batched matrix product of strided factors: a block of
threads makes a tile of SIDE x SIDE entries from pieces of DEEP terms staged in shared memory. Sums are float32, within
a piece and then over pieces (the processor's are one float32 chain). Where tiles would be nearly empty (few tokens),
one thread makes an entry, in float64. Rows of a softmax are shared by as many threads as their length asks for; their
sums are float64. Every choice depends on sizes alone.

Places in memory are unsigned: numba asks of a signed one whether it counts from the end, which in the innermost loop
costs as much as the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from varflow.program import Blend, Scores, Softmax, SoftmaxBackward
from varflow.simulate import elementary as fn
from varflow.simulate.cuda_device import (
    MOST_BLOCKS,
    SIMULATED,
    THREADS,
    blocks_for,
    column_total,
    device,
    kernel,
    launch,
)
from varflow.simulate.jit import Array, Number

cuda: Any = import_module("numba.cuda")
types: Any = import_module("numba.cuda.types")

F = np.float32

WAYS, HIGH, WIDE = (2, 2, 2) if SIMULATED else (8, 8, 4)
"""Threads along the rows of a tile; rows and columns that one thread sums."""
SIDES = THREADS // WAYS
SIDE, DEEP = WAYS * HIGH, 2 if SIMULATED else 64
"""Rows and columns of a tile; terms staged at once: both divide THREADS."""
SUMS = HIGH * WIDE
PITCH = SIDE + 1
"""Entries from term to term in shared memory, so that neighbouring threads write different banks."""
SHARED_TILE = 4 * 2 * DEEP * PITCH
DENSE = 1 if SIMULATED else 8
"""A tile costs as much as 1 / DENSE of its entries made one by one: loads for a multiply-add, and staging."""
EACH, FEWEST = (3, 1) if SIMULATED else (16, 8)
"""Entries of a softmax's row that one thread reads about; threads of a row at least."""


# -- products ----------------------------------------------------------------------------------------


@device
def stage(
    shared: Array, begin: Number, thread: Number, x: Array, first: Number, count: Number, line: Number, width: Number,
    step: Number,
) -> None:  # fmt: skip
    """shared[begin + j PITCH + r] = x[first + r line + j step] for r < ``count`` and j < ``width``; neighbouring
    threads read neighbours in memory."""
    if step == 1:
        j = thread % DEEP
        at = first + thread // DEEP * line + j
        for r in range(thread // DEEP, min(SIDE, count) if j < width else 0, THREADS // DEEP):
            shared[np.uint64(begin + j * PITCH + r)] = x[np.uint64(at)]
            at += THREADS // DEEP * line
    else:
        r = thread % SIDE
        at = first + r * line + thread // SIDE * step
        for j in range(thread // SIDE, width if r < count else 0, THREADS // SIDE):
            shared[np.uint64(begin + j * PITCH + r)] = x[np.uint64(at)]
            at += THREADS // SIDE * step


@kernel
def tokens_kernel(
    a: Array, b: Array, y: Array, samples: Number, heads: Number, rows: Number, columns: Number, depth: Number,
    a_sample: Number, a_head: Number, a_row: Number, a_term: Number, b_sample: Number, b_head: Number,
    b_column: Number, b_term: Number, y_sample: Number, y_head: Number, y_row: Number,
) -> None:  # fmt: skip
    """y[s, h, r, c] = sum_j a[s, h, r, j] b[s, h, c, j] for every sample and head of a draw; the strides as named."""
    shared = cuda.shared.array(0, types.float32)
    part, total = cuda.local.array(SUMS, types.float32), cuda.local.array(SUMS, types.float32)
    thread, d = cuda.threadIdx.x, cuda.blockIdx.y
    m, k = thread // SIDES, thread % SIDES
    along, down = (columns + SIDE - 1) // SIDE, (rows + SIDE - 1) // SIDE
    for item in range(cuda.blockIdx.x, samples * heads * down * along, cuda.gridDim.x):
        tile, which = item % (down * along), item // (down * along)
        s, h = d * samples + which // heads, which % heads
        row, column = tile // along * SIDE, tile % along * SIDE
        left, right = s * a_sample + h * a_head + row * a_row, s * b_sample + h * b_head + column * b_column
        for i in range(SUMS):
            total[i] = F(0.0)
        for j in range(0, depth, DEEP):
            width = min(DEEP, depth - j)
            cuda.syncthreads()
            stage(shared, 0, thread, a, left + j * a_term, rows - row, a_row, width, a_term)
            stage(shared, DEEP * PITCH, thread, b, right + j * b_term, columns - column, b_column, width, b_term)
            cuda.syncthreads()
            for i in range(SUMS):
                part[i] = F(0.0)
            up, across = np.uint64(m), np.uint64(DEEP * PITCH + k)
            for _ in range(width):
                for w in range(WIDE):
                    entry = shared[across + np.uint64(w * SIDES)]
                    for i in range(HIGH):
                        part[w * HIGH + i] += shared[up + np.uint64(i * WAYS)] * entry
                up += np.uint64(PITCH)
                across += np.uint64(PITCH)
            for i in range(SUMS):
                total[i] += part[i]
        first = s * y_sample + h * y_head
        for i in range(HIGH):
            r = row + m + i * WAYS
            for w in range(WIDE):
                c = column + k + w * SIDES
                if r < rows and c < columns:
                    y[np.uint64(first + r * y_row + c)] = total[w * HIGH + i]


@kernel
def few_tokens_kernel(
    a: Array, b: Array, y: Array, samples: Number, heads: Number, rows: Number, columns: Number, depth: Number,
    a_sample: Number, a_head: Number, a_row: Number, a_term: Number, b_sample: Number, b_head: Number,
    b_column: Number, b_term: Number, y_sample: Number, y_head: Number, y_row: Number,
) -> None:  # fmt: skip
    """The same, one thread an entry."""
    d, size = cuda.blockIdx.y, rows * columns
    start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for q in range(start, samples * heads * size, cuda.gridDim.x * cuda.blockDim.x):
        which, at = q // size, q % size
        s, h, r, c = d * samples + which // heads, which % heads, at // columns, at % columns
        left = np.uint64(s * a_sample + h * a_head + r * a_row)
        right = np.uint64(s * b_sample + h * b_head + c * b_column)
        total = 0.0
        for _ in range(depth):
            total += np.float64(a[left]) * np.float64(b[right])
            left += np.uint64(a_term)
            right += np.uint64(b_term)
        y[np.uint64(s * y_sample + h * y_head + r * y_row + c)] = F(total)


@dataclass(frozen=True)
class Product:
    """Rows, columns and terms of a product within a sample and head; strides of sample, head, line and term of both
    factors, of sample, head and row of the result."""

    rows: int
    columns: int
    depth: int
    a: tuple[int, int, int, int]
    b: tuple[int, int, int, int]
    y: tuple[int, int, int]


def scores_of(places: int, tokens: int, channels: int, heads: int) -> Product:
    """Inner products of ``places`` queries and ``tokens`` keys."""
    size, line = channels // heads, heads * tokens
    queries, keys = (places * channels, size, channels, 1), (tokens * channels, size, channels, 1)
    return Product(places, tokens, size, queries, keys, (places * line, tokens, line))


def blend_of(places: int, tokens: int, channels: int, heads: int, transpose: bool) -> Product:
    """Values of ``tokens`` mixed at ``places``; transposed, those of places gathered at tokens."""
    size, line = channels // heads, heads * tokens
    if transpose:
        weights, values = (places * line, tokens, 1, line), (places * channels, size, 1, channels)
        return Product(tokens, size, places, weights, values, (tokens * channels, size, channels))
    weights, values = (places * line, tokens, line, 1), (tokens * channels, size, 1, channels)
    return Product(places, size, tokens, weights, values, (places * channels, size, channels))


def multiply(p: Product, a: Any, b: Any, y: Any, draws: int, samples: int, heads: int) -> None:
    """The product for every draw, sample and head."""
    tiles = -(-p.rows // SIDE) * -(-p.columns // SIDE)
    numbers = (samples, heads, p.rows, p.columns, p.depth, *p.a, *p.b, *p.y)
    if DENSE * p.rows * p.columns < tiles * SIDE * SIDE:
        grid = (blocks_for(samples * heads * p.rows * p.columns), draws)
        launch(few_tokens_kernel, grid, a, b, y, *numbers)
        return
    grid = (min(samples * heads * tiles, MOST_BLOCKS), draws)
    launch(tokens_kernel, grid, a, b, y, *numbers, shared=SHARED_TILE)


# -- softmax -----------------------------------------------------------------------------------------


@kernel
def softmax_kernel(
    x: Array, y: Array, rows: Number, size: Number, heads: Number, places: Number, causal: Number, parts: Number
) -> None:
    """exp(x) over its sum in each of a draw's rows; causal: over the first p + 1 entries at place p. ``parts`` threads
    share a row."""
    shared = cuda.shared.array(0, types.float64)
    thread, d = cuda.threadIdx.x, cuda.blockIdx.y
    lane, part, lanes = thread // parts, thread % parts, THREADS // parts
    for block in range(cuda.blockIdx.x, (rows + lanes - 1) // lanes, cuda.gridDim.x):
        row = block * lanes + lane
        first, seen = (d * rows + row) * size, size
        if causal:
            seen = min(row // heads % places + 1, size)
        if row >= rows:
            seen = 0
        largest = F(-np.inf)
        for r in range(part, seen, parts):
            entry = x[np.uint64(first + r)]
            if entry > largest:
                largest = entry
        cuda.syncthreads()
        shared[thread] = np.float64(largest)
        cuda.syncthreads()
        for k in range(parts):
            if shared[lane * parts + k] > largest:
                largest = F(shared[lane * parts + k])
        total = 0.0
        for r in range(part, seen, parts):
            total += np.float64(fn.exp(F(x[np.uint64(first + r)] - largest)))
        cuda.syncthreads()
        shared[thread] = total
        cuda.syncthreads()
        if row < rows:
            inverse = 1.0 / column_total(shared, lane * parts, parts, 1)
            for r in range(part, size, parts):
                entry = F(0.0)
                if r < seen:
                    entry = F(np.float64(fn.exp(F(x[np.uint64(first + r)] - largest))) * inverse)
                y[np.uint64(first + r)] = entry


@kernel
def softmax_backward_kernel(y: Array, dy: Array, dx: Array, rows: Number, size: Number, parts: Number) -> None:
    """y (dy - sum of y dy) in each of a draw's rows."""
    shared = cuda.shared.array(0, types.float64)
    thread, d = cuda.threadIdx.x, cuda.blockIdx.y
    lane, part, lanes = thread // parts, thread % parts, THREADS // parts
    for block in range(cuda.blockIdx.x, (rows + lanes - 1) // lanes, cuda.gridDim.x):
        row = block * lanes + lane
        first, last = (d * rows + row) * size, size if row < rows else 0
        total = 0.0
        for r in range(part, last, parts):
            at = np.uint64(first + r)
            total += np.float64(y[at]) * np.float64(dy[at])
        cuda.syncthreads()
        shared[thread] = total
        cuda.syncthreads()
        mean = column_total(shared, lane * parts, parts, 1)
        for r in range(part, last, parts):
            at = np.uint64(first + r)
            dx[at] = F(np.float64(y[at]) * (np.float64(dy[at]) - mean))


def parts_of(size: int) -> int:
    """Threads that share a row of ``size`` entries: a power of two."""
    parts = FEWEST
    while parts < THREADS and parts * EACH < size:
        parts *= 2
    return parts


def _over_rows(run: Any, draws: int, rows: int, size: int, *arguments: Any) -> None:
    parts = parts_of(size)
    grid = (min(-(-rows * parts // THREADS), MOST_BLOCKS), draws)
    launch(run, grid, *arguments, parts, shared=8 * THREADS)


def softmax(x: Any, y: Any, draws: int, samples: int, places: int, heads: int, size: int, causal: bool) -> None:
    """A softmax over ``size`` tokens for every draw, sample, place and head."""
    rows = samples * places * heads
    _over_rows(softmax_kernel, draws, rows, size, x, y, rows, size, heads, places, int(causal))


def softmax_backward(y: Any, dy: Any, dx: Any, draws: int, rows: int, size: int) -> None:
    """The gradient of a softmax whose value is y, for ``rows`` rows a draw."""
    _over_rows(softmax_backward_kernel, draws, rows, size, y, dy, dx, rows, size)


# -- instructions ------------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """A value of all draws: the buffer, places of a sample, channels."""

    data: Any
    places: int
    channels: int


Attention = Scores | Blend | Softmax | SoftmaxBackward


def attended(primitive: Attention, y: Any, args: Sequence[Tokens], draws: int, samples: int) -> None:
    """The value of an instruction of attention into the buffer ``y``."""
    x, other = args[0], args[-1]
    match primitive:
        case Scores(heads=heads):
            p = scores_of(x.places, other.places, x.channels, int(heads))
            multiply(p, x.data, other.data, y, draws, samples, int(heads))
        case Blend(heads=heads, transpose=transpose):
            p = blend_of(x.places, x.channels // int(heads), other.channels, int(heads), transpose)
            multiply(p, x.data, other.data, y, draws, samples, int(heads))
        case Softmax(heads=heads, causal=causal):
            softmax(x.data, y, draws, samples, x.places, int(heads), x.channels // int(heads), causal)
        case SoftmaxBackward(forward=rule):
            rows, size = samples * x.places * int(rule.heads), x.channels // int(rule.heads)
            softmax_backward(x.data, other.data, y, draws, rows, size)
