"""Small matrices and long rows of collapsed products: Gram matrices, factors, solves, fresh normals, combinations.

Long rows are float32 and found through tables of addresses; small matrices are float64. Right sides of solves are
columns, so that their rows are worked on as vectors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from varflow.simulate.handlers import (
    carray,
    pointer,
    pointer_to_doubles,
    pointer_to_integers,
)
from varflow.simulate.jit import Array, Number, device, reduction
from varflow.simulate.normals import normal_tiles
from varflow.simulate.rng import TILE
from varflow.simulate.vectors import (
    SIDE,
    combine_one,
    combine_tile,
    dots_one,
    dots_strip,
    dots_tile,
    dots_triangle,
    reduce_one,
    reduce_tile,
)

F = np.float32
RUN = 1024
"""Entries whose products are summed in float32, and that are combined while they are in the nearest cache."""
PIECE, SHORTEST = 4096, 1024
"""Entries drawn together, over all rows and of one: they stay in the nearest cache."""
DEPENDENT = 1e-8
"""A squared pivot below this share of the row's square counts as zero: rows are float32, and a direction that
lies 1e-4 of its length off the others' span would be known to three digits only."""

PANEL = 8
"""Columns of a factor that are eliminated together, rows that are solved for together."""
ROOM = PANEL + 1
"""Doubles of scratch for each row of a factor."""
SPAN = 32
"""Columns of a product with a triangle that are taken together."""

UNSTEADY, TINY, LARGE = 1e-4, 1e-16, 1e30
"""Squared pivots below this share, and squared lengths beyond these, call for inner products in float64."""


@device
def matrix(address: Number, rows: Number, columns: Number) -> Array:
    """Doubles at an address."""
    return carray(pointer_to_doubles(address), (rows, columns), np.float64)


@device
def list_rows(table: Number, address: Number, rows: Number, length: Number) -> Any:
    """Addresses of consecutive rows into a table; returns where the next ones go."""
    entries = pointer_to_integers(table)
    for i in range(rows):
        entries[i] = address + 4 * length * i
    return table + 8 * rows


@reduction
def dots_precise(x: Number, y: Number, size: Number) -> Any:
    """x . y in float64."""
    a, b, total = pointer(x), pointer(y), 0.0
    for k in range(size):
        total += np.float64(a[k]) * b[k]
    return total


@device
def inner_products(
    left: Number, high: Number, right: Number, wide: Number, first: Number, size: Number, out: Number, pitch: Number
) -> None:
    """Adds left[i] . right[j] over the entries from ``first`` on to the doubles at ``out``, ``pitch`` in a row; both
    are tables of rows."""
    whole, full = high // SIDE * SIDE, wide // SIDE * SIDE
    for start in range(first, first + size, RUN):
        at, count = 4 * start, min(RUN, first + size - start)
        for i in range(0, whole, SIDE):
            for j in range(0, full, SIDE):
                dots_tile(left + 8 * i, right + 8 * j, at, count, out + 8 * (i * pitch + j), 8 * pitch)
            for j in range(full, wide):
                dots_strip(left + 8 * i, right + 8 * j, at, count, out + 8 * (i * pitch + j), 8 * pitch)
        for i in range(whole, high):
            for j in range(0, full, SIDE):
                dots_strip(right + 8 * j, left + 8 * i, at, count, out + 8 * (i * pitch + j), 8)
            for j in range(full, wide):
                dots_one(left + 8 * i, right + 8 * j, at, count, out + 8 * (i * pitch + j), 8)


@device
def triangle(rows: Number, high: Number, size: Number, out: Number, pitch: Number) -> None:
    """Adds rows[i] . rows[j], j <= i, to the doubles at ``out``."""
    whole = high // SIDE * SIDE
    for start in range(0, size, RUN):
        at, count = 4 * start, min(RUN, size - start)
        for i in range(0, whole, SIDE):
            for j in range(0, i, SIDE):
                dots_tile(rows + 8 * i, rows + 8 * j, at, count, out + 8 * (i * pitch + j), 8 * pitch)
            dots_triangle(rows + 8 * i, rows, at, count, out + 8 * (i * pitch + i), 8 * pitch)
        for i in range(whole, high):
            for j in range(0, whole, SIDE):
                dots_strip(rows + 8 * j, rows + 8 * i, at, count, out + 8 * (i * pitch + j), 8)
            for j in range(whole, i + 1):
                dots_one(rows + 8 * i, rows + 8 * j, at, count, out + 8 * (i * pitch + j), 8)


@device
def products(
    left: Number, high: Number, right: Number, wide: Number, size: Number, out: Number, pitch: Number, precise: Number
) -> None:
    """The doubles out[i, j] = left[i] . right[j]; ``left`` and ``right`` are tables of rows."""
    results, rows, columns = pointer_to_doubles(out), pointer_to_integers(left), pointer_to_integers(right)
    first = np.int64(0)
    for i in range(high):
        for j in range(wide):
            results[i * pitch + j] = dots_precise(rows[i], columns[j], size) if precise else 0.0
    if not precise:
        inner_products(left, high, right, wide, first, size, out, pitch)


@device
def squares(rows: Number, high: Number, size: Number, out: Number, pitch: Number, precise: Number) -> None:
    """The doubles out[i, j] = rows[i] . rows[j] for j <= i."""
    results, addresses = pointer_to_doubles(out), pointer_to_integers(rows)
    for i in range(high):
        for j in range(i + 1):
            results[i * pitch + j] = dots_precise(addresses[i], addresses[j], size) if precise else 0.0
    if not precise:
        triangle(rows, high, size, out, pitch)


@reduction
def dot_doubles(x: Number, y: Number, size: Number) -> Any:
    """x . y of doubles."""
    a, b, total = pointer_to_doubles(x), pointer_to_doubles(y), 0.0
    for k in range(size):
        total += a[k] * b[k]
    return total


@device
def subtract_doubles(x: Number, factor: Number, y: Number, size: Number) -> None:
    """x -= factor y."""
    a, b = pointer_to_doubles(x), pointer_to_doubles(y)
    for k in range(size):
        a[k] -= factor * b[k]


@device
def lower_one(factor: Array, x: Number, size: Number) -> None:
    """L^-1 x of a vector, zero where the pivot is."""
    entries, rows = pointer_to_doubles(x), factor.ctypes.data
    for k in range(size):
        inverse = 1.0 / factor[k, k] if factor[k, k] != 0.0 else 0.0
        entries[k] = (entries[k] - dot_doubles(rows + 8 * k * factor.shape[1], x, k)) * inverse


@device
def upper_one(factor: Array, x: Number, size: Number) -> None:
    """L^-T x of a vector, zero where the pivot is."""
    entries, rows = pointer_to_doubles(x), factor.ctypes.data
    for k in range(size - 1, -1, -1):
        entries[k] *= 1.0 / factor[k, k] if factor[k, k] != 0.0 else 0.0
        subtract_doubles(x, entries[k], rows + 8 * k * factor.shape[1], k)


@device
def factorize_one(factor: Array, k: Number) -> Any:
    """`factorize` for the one row k."""
    row, length = factor.ctypes.data + 8 * k * factor.shape[1], factor[k, k]
    lower_one(factor, row, k)
    pivot = length - dot_doubles(row, row, k)
    factor[k, k] = 0.0 if pivot <= DEPENDENT * length and length < np.inf else math.sqrt(pivot)
    return pivot > UNSTEADY * length and TINY < length < LARGE


@device
def factorize(factor: Array, start: Number, stop: Number, scratch: Number) -> Any:
    """Rows start..stop of a Cholesky factor, in place of the Gram matrix's; rows before are done. What lies above its
    diagonal may change.

    Returns whether inner products in float32 are good enough for it: no pivot is small, no square near the ends of
    the range. ``scratch`` is the address of ``ROOM stop`` doubles.
    """
    if stop == start + 1:
        return factorize_one(factor, start)
    lengths, steady, pitch, at = pointer_to_doubles(scratch), True, 8 * factor.shape[1], factor.ctypes.data
    turned = scratch + 8 * stop
    for i in range(start, stop):
        lengths[i] = factor[i, i]
    for first in range(0, stop, PANEL):
        last = min(first + PANEL, stop)
        for i in range(max(first, start), stop):
            eliminate(factor, i, first, min(last, i))
            if i < last:
                pivot, length = factor[i, i], lengths[i]
                dependent = pivot <= DEPENDENT * length and length < np.inf
                factor[i, i] = 0.0 if dependent else math.sqrt(pivot)
                steady = steady and pivot > UNSTEADY * length and TINY < length < LARGE
        if last < stop:
            turn(factor, first, last, stop, turned)
            for i in range(max(last, start), stop, SIDE):
                high, row = min(SIDE, stop - i), at + i * pitch
                reduce_rows(
                    row + 8 * last, pitch, high, row + 8 * first, pitch, np.int64(8), turned + 8 * last, 8 * stop,
                    last - first, i + high - last,
                )  # fmt: skip
    return steady


@device
def eliminate(factor: Array, i: Number, first: Number, last: Number) -> None:
    """Entries first..last of row i from the rows of a factor with these numbers; of row i < last, its pivot too."""
    for k in range(first, last):
        total = factor[i, k]
        for j in range(first, k):
            total -= factor[i, j] * factor[k, j]
        factor[i, k] = total / factor[k, k] if factor[k, k] != 0.0 else 0.0
    if first <= i < first + PANEL:
        for j in range(first, last):
            factor[i, i] -= factor[i, j] * factor[i, j]


@device
def turn(factor: Array, first: Number, last: Number, stop: Number, turned: Number) -> None:
    """Columns first..last of the rows from ``last`` on, as rows of doubles, ``stop`` in each."""
    out = pointer_to_doubles(turned)
    for i in range(last, stop):
        for k in range(first, last):
            out[(k - first) * stop + i] = factor[i, k]


@device
def reduce_rows(
    out: Number, pitch: Number, high: Number, factors: Number, across: Number, down: Number, rows: Number,
    step: Number, terms: Number, count: Number,
) -> None:  # fmt: skip
    """Subtracts from ``high`` rows of doubles sums of others; see `vectors.reduce_tile`."""
    whole = high // SIDE * SIDE
    for i in range(0, whole, SIDE):
        reduce_tile(out + i * pitch, pitch, factors + i * across, across, down, rows, step, terms, count)
    for i in range(whole, high):
        reduce_one(out + i * pitch, pitch, factors + i * across, across, down, rows, step, terms, count)


@device
def is_steady(factor: Array, size: Number) -> Any:
    """What `factorize` returned for the first rows of a factor."""
    steady = True
    for i in range(size):
        row = factor.ctypes.data + 8 * i * factor.shape[1]
        square = dot_doubles(row, row, i + 1)
        steady = steady and factor[i, i] ** 2 > UNSTEADY * square and TINY < square < LARGE
    return steady


@device
def subtract_row(x: Array, i: Number, factor: Number, k: Number) -> None:
    """x[i] -= factor x[k]."""
    for j in range(x.shape[1]):
        x[i, j] -= factor * x[k, j]


@device
def divide_row(x: Array, i: Number, pivot: Number) -> None:
    """x[i] / pivot, zero where the pivot is."""
    inverse = 1.0 / pivot if pivot != 0.0 else 0.0
    for j in range(x.shape[1]):
        x[i, j] *= inverse


@device
def solve_lower(factor: Array, x: Array, first: Number, size: Number) -> None:
    """Rows first..first + size of x become L^-1 of them, zero where the pivot is."""
    if x.shape[1] == 1:
        lower_one(factor, x.ctypes.data + 8 * first, size)
        return
    width, pitch, doubles = 8 * x.shape[1], 8 * factor.shape[1], np.int64(8)
    top = x.ctypes.data + first * width
    for start in range(0, size, PANEL):
        high = min(PANEL, size - start)
        reduce_rows(
            top + start * width, width, high, factor.ctypes.data + start * pitch, pitch, doubles, top, width, start,
            x.shape[1],
        )  # fmt: skip
        for k in range(start, start + high):
            for j in range(start, k):
                subtract_row(x, first + k, factor[k, j], first + j)
            divide_row(x, first + k, factor[k, k])


@device
def solve_upper(factor: Array, x: Array, first: Number, size: Number) -> None:
    """Rows first..first + size of x become L^-T of them, zero where the pivot is."""
    if x.shape[1] == 1:
        upper_one(factor, x.ctypes.data + 8 * first, size)
        return
    width, pitch, doubles = 8 * x.shape[1], 8 * factor.shape[1], np.int64(8)
    top = x.ctypes.data + first * width
    for start in range((size - 1) // PANEL * PANEL, -1, -PANEL):
        stop = min(start + PANEL, size)
        reduce_rows(
            top + start * width, width, stop - start, factor.ctypes.data + stop * pitch + 8 * start, doubles, pitch,
            top + stop * width, width, size - stop, x.shape[1],
        )  # fmt: skip
        for k in range(stop - 1, start - 1, -1):
            for j in range(k + 1, stop):
                subtract_row(x, first + k, factor[j, k], first + j)
            divide_row(x, first + k, factor[k, k])


@device
def fill_normals(
    address: Number, size: Number, seed: Number, draw: Number, tensor: Number, offset: Number, spare: Number
) -> None:
    """N(0, 1) of the elements offset.. of a tensor; ``offset`` is a multiple of TILE, ``spare`` has place for one."""
    whole, tile, start = size // TILE, offset // TILE, address
    normal_tiles(address, tile, whole, seed, draw, tensor)
    if size > whole * TILE:
        start += 4 * whole * TILE
        normal_tiles(spare, tile + whole, np.int64(1), seed, draw, tensor)
        out, rest = pointer(start), pointer(spare)
        for i in range(size - whole * TILE):
            out[i] = rest[i]


@device
def draw_rows(
    rows: Number, count: Number, size: Number, factor: Array, start: Number, others: Number, wide: Number,
    out: Number, seed: Number, draw: Number, tensor: Number, offset: Number, spare: Number,
) -> None:  # fmt: skip
    """Fresh normals into ``count`` rows, zeros where the factor's pivot is; adds others[j] . rows[i] to the doubles
    out[j, i] while they are near."""
    addresses = pointer_to_integers(rows)
    stride, piece = (size + TILE - 1) // TILE * TILE, max(PIECE // count // TILE * TILE, SHORTEST)
    for first in range(0, size, piece):
        length = min(piece, size - first)
        for i in range(count):
            at = addresses[i] + 4 * first
            if factor[start + i, start + i] != 0.0:
                fill_normals(at, length, seed, draw, tensor, offset + i * stride + first, spare)
            else:
                zeros(at, length)
        inner_products(others, wide, rows, count, first, length, out, count)


@device
def zeros(address: Number, size: Number) -> None:
    """Zeros at an address."""
    out = pointer(address)
    for k in range(size):
        out[k] = F(0.0)


@device
def combine_rows(
    out: Number, count: Number, factors: Number, rows: Number, terms: Number, size: Number
) -> None:  # fmt: skip
    """out[i] = sum_k factors[k, i] rows[k], k < terms + i + 1; the last ``count`` of the ``rows`` are those of ``out``.

    ``factors`` are float32, ``count`` in a row. Later rows first, since each is read by those behind it alone.
    """
    whole = count // SIDE * SIDE
    for first in range(0, size, RUN):
        at, length = 4 * first, min(RUN, size - first)
        for i in range(count - 1, whole - 1, -1):
            combine_one(out + 8 * i, factors + 4 * i, 4 * count, rows, terms + i + 1, at, length)
        for i in range(whole - SIDE, -1, -SIDE):
            combine_tile(out + 8 * i, factors + 4 * i, 4 * count, rows, terms + i + SIDE, at, length)
