"""Products with i.i.d. Gaussian matrices, drawn without the matrix.

For entries of N(0, std^2), W x is Gaussian given what earlier products revealed of W. Those are W x_k = y_k (this
side) and, from the transpose, W^T d_j = e_j (across), for any columns x_k, d_j that were themselves chosen from
earlier results. With orthonormal bases V of the x_k and U of the d_j, conditioning removes from W x what is known:

    W x = y V^+ x + U U^T W r + std |r| (1 - U U^T) g,  r = (1 - V V^T) x,  g fresh N(0, 1),

where U^T W r = U^T W x - U^T W V V^T x follows from e and from the inner products d_j . y_k (Bolthausen 2014,
arXiv:1201.2891, lemma 3.1). Bases are never formed: all that is done to long vectors is inner products and linear
combinations; coefficients come from Cholesky factors of Gram matrices, in float64, where a column in the span of
the columns before it has pivot zero and is skipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numpy.typing import NDArray

from varflow.errors import ShapeError
from varflow.simulate.jit import Array, Number, device, kernel, over_draws, reduction
from varflow.simulate.kernels import RandomMatrix, Value
from varflow.simulate.kernels_pointwise import pointer
from varflow.simulate.rng import CHUNK, NORMAL, TILE, check_counter, fill

F = np.float32
PIECE, SHORTEST = 4096, 512
"""Entries drawn together, over all columns and of one: they stay in the nearest cache."""
RUN = 256
DEPENDENT = 1e-8
"""A squared pivot below this share of the column's square counts as zero: columns are float32, and a direction that
lies 1e-4 of its length off the others' span would be known to three digits only."""

UNSTEADY, TINY, LARGE = 1e-4, 1e-16, 1e30
"""Squared pivots below this share, and squared lengths beyond these, call for inner products in float64."""


@reduction
def dot(x: Array, y: Array) -> Any:
    """x . y, in float32 over RUN entries, in float64 over runs."""
    total = 0.0
    for first in range(0, x.size, RUN):
        a, b = x[first : first + RUN], y[first : first + RUN]
        s: Any = F(0.0)
        for k in range(a.size):
            s += a[k] * b[k]
        total += s
    return total


@reduction
def dot_precise(x: Array, y: Array) -> Any:
    """x . y in float64."""
    total = 0.0
    for k in range(x.size):
        total += np.float64(x[k]) * y[k]
    return total


@reduction
def four_dots(a: Array, b: Array, i: Number, j: Number, first: Number, last: Number) -> Any:
    """Rows i and i + 1 of a times rows j and j + 1 of b over the entries first..last, in float32."""
    x, y, p, q = a[i, first:last], a[i + 1, first:last], b[j, first:last], b[j + 1, first:last]
    s: Any = F(0.0)
    t = u = v = s
    for k in range(x.size):
        s += x[k] * p[k]
        t += x[k] * q[k]
        u += y[k] * p[k]
        v += y[k] * q[k]
    return s, t, u, v


@device
def dots(a: Array, b: Array, out: Array, row: Number, column: Number, precise: Number) -> None:
    """out[row + i, column + j] = a[i] . b[j]; run by run, so that rows stay in the nearest cache."""
    high, wide = (0, 0) if precise else (a.shape[0] // 2 * 2, b.shape[0] // 2 * 2)
    for i in range(a.shape[0]):
        for j in range(b.shape[0]):
            if i < high and j < wide:
                out[row + i, column + j] = 0.0
            else:
                out[row + i, column + j] = dot_precise(a[i], b[j]) if precise else dot(a[i], b[j])
    for first in range(0, a.shape[1] if high else 0, RUN):
        last = min(first + RUN, a.shape[1])
        for i in range(0, high, 2):
            for j in range(0, wide, 2):
                s, t, u, v = four_dots(a, b, i, j, first, last)
                out[row + i, column + j] += s
                out[row + i, column + j + 1] += t
                out[row + i + 1, column + j] += u
                out[row + i + 1, column + j + 1] += v


@device
def combine(out: Array, factors: Array, rows: Array, first: Number) -> None:
    """out += sum_k factors[k] rows[k, first:], over the length of ``out``."""
    count = factors.size
    for k in range(0, count - count % 4, 4):
        a, b, c, d = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
        r0, r1, r2, r3 = rows[k, first:], rows[k + 1, first:], rows[k + 2, first:], rows[k + 3, first:]
        for i in range(out.size):
            out[i] += (a * r0[i] + b * r1[i]) + (c * r2[i] + d * r3[i])
    for k in range(count - count % 4, count):
        a = factors[k]
        r0 = rows[k, first:]
        for i in range(out.size):
            out[i] += a * r0[i]


@device
def factorize(factor: Array, start: Number, stop: Number) -> Any:
    """Rows start..stop of a Cholesky factor, in place of the Gram matrix's; rows before are done.

    Returns whether inner products in float32 are good enough for it: no pivot is small, no square near the ends of
    the range.
    """
    steady = True
    for i in range(start, stop):
        square = pivot = factor[i, i]
        for k in range(i):
            entry = factor[i, k]
            for j in range(k):
                entry -= factor[i, j] * factor[k, j]
            entry = entry / factor[k, k] if factor[k, k] != 0.0 else 0.0
            factor[i, k] = entry
            pivot -= entry * entry
        dependent = pivot <= DEPENDENT * square and square < np.inf
        factor[i, i] = 0.0 if dependent else math.sqrt(pivot)
        steady = steady and pivot > UNSTEADY * square and TINY < square < LARGE
    return steady


@device
def is_steady(factor: Array, size: Number) -> Any:
    """What `factorize` returned for the first rows of a factor."""
    steady = True
    for i in range(size):
        square = 0.0
        for k in range(i + 1):
            square += factor[i, k] * factor[i, k]
        steady = steady and factor[i, i] ** 2 > UNSTEADY * square and TINY < square < LARGE
    return steady


@device
def solve_lower(factor: Array, x: Array, size: Number) -> None:
    """x[:size] = L^-1 x, zero where the pivot is."""
    for k in range(size):
        entry = x[k]
        for j in range(k):
            entry -= factor[k, j] * x[j]
        x[k] = entry / factor[k, k] if factor[k, k] != 0.0 else 0.0


@device
def solve_upper(factor: Array, x: Array, size: Number) -> None:
    """x[:size] = L^-T x, zero where the pivot is."""
    for k in range(size - 1, -1, -1):
        entry = x[k]
        for j in range(k + 1, size):
            entry -= factor[j, k] * x[j]
        x[k] = entry / factor[k, k] if factor[k, k] != 0.0 else 0.0


@device
def draw_fresh(
    y: Array, factor: Array, start: Number, std: Number, seed: Number, draw: Number, tensor: Number,
    words: Array, spare: Array, weights: Array,
) -> None:  # fmt: skip
    """y = std T g with g of independent N(0, 1) rows and T the factor's square from ``start``."""
    count, length = y.shape
    stride, kind = (length + TILE - 1) // TILE * TILE, np.int64(NORMAL)
    piece = max(PIECE // count // TILE * TILE, SHORTEST)
    for first in range(0, length, piece):
        size = min(piece, length - first)
        for i in range(count):
            part = y[i, first : first + size]
            if factor[start + i, start + i] != 0.0:
                fill(part, size, kind, 1.0, seed, draw, tensor, i * stride + first, words, spare)
            else:
                for k in range(size):
                    part[k] = F(0.0)
        for i in range(count - 1, -1, -1):
            part = y[i, first : first + size]
            scale = F(std * factor[start + i, start + i])
            for k in range(size):
                part[k] *= scale
            if i > 0:
                for j in range(i):
                    weights[j] = F(std * factor[start + i, start + j])
                combine(part, weights[:i], y, first)


@device
def block(address: Number, stride: Number, draw: Number, places: Number, length: Number) -> Any:
    """The columns of one earlier use, (places, length), of one draw."""
    return carray(pointer(address + stride * draw), (places, length), np.float32)


@device
def gram(
    x: Array, blocks: Array, base: Number, own: Number, d: Number, start: Number, factor: Array, precise: Number
) -> Any:
    """Rows of the Cholesky factor for new columns ``x`` behind ``start`` earlier ones; see `factorize`."""
    at = np.int64(0)
    for k in range(own):
        earlier = block(base + blocks[k, 0], blocks[k, 1], d, blocks[k, 4], x.shape[1])
        dots(x, earlier, factor, start, at, precise)
        at += blocks[k, 4]
    dots(x, x, factor, start, start, precise)
    return factorize(factor, start, start + x.shape[0])


@device
def collapse_one(
    x: Array, y: Array, blocks: Array, base: Number, own: Number, d: Number, start: Number, across: Number,
    factor: Array, other: Array, cross: Array, flip: Number, std: Number, seed: Number, draw: Number, tensor: Number,
    words: Array, spare: Array, small: Array, weights: Array,
) -> None:  # fmt: skip
    """One draw of y = W x, (columns, length) both, given the earlier uses that ``blocks`` lists.

    The first ``own`` rows of ``blocks`` are uses of this side, ``start`` columns together, the others ``across``
    columns: addresses (from ``base``) and strides of what went in and of what came out, and the number of columns.
    ``factor``, ``other``: Cholesky factors of both sides; ``cross[j, k]`` = d_j . y_k (``flip``: transposed).
    ``small``, ``weights``: scratch, (2 columns, earlier columns) and one more than columns.
    """
    columns, inner, outer = x.shape[0], x.shape[1], y.shape[1]
    precise = zero = np.int64(0)
    if not gram(x, blocks, base, own, d, start, factor, zero):
        precise += 1
        gram(x, blocks, base, own, d, start, factor, precise)
    for i in range(columns):
        for k in range(start):
            small[i, k] = factor[start + i, k]
        solve_upper(factor, small[i], start)
    draw_fresh(y, factor, start, std, seed, draw, tensor, words, spare, weights[columns])
    at = zero
    if not is_steady(other, across):
        precise += 1
    known, drawn = small[columns : 2 * columns], small[:columns]
    for k in range(own, blocks.shape[0]):
        size = blocks[k, 4]
        dots(x, block(base + blocks[k, 2], blocks[k, 3], d, size, inner), known, zero, at, precise)
        dots(y, block(base + blocks[k, 0], blocks[k, 1], d, size, outer), drawn, zero, start + at, precise)
        at += size
    for i in range(columns):
        rest = drawn[i, start : start + across]
        for j in range(across):
            entry = known[i, j] - rest[j]
            for k in range(start):
                entry -= small[i, k] * (cross[k, j] if flip else cross[j, k])
            rest[j] = entry
            if flip:
                cross[start + i, j] = known[i, j]
            else:
                cross[j, start + i] = known[i, j]
        solve_lower(other, rest, across)
        solve_upper(other, rest, across)
        for k in range(start + across):
            weights[i, k] = F(small[i, k])
    at = zero
    for k in range(blocks.shape[0]):
        source = 2 if k < own else 0
        rows = block(base + blocks[k, source], blocks[k, source + 1], d, blocks[k, 4], outer)
        piece = max(PIECE // columns // TILE * TILE, SHORTEST)
        for first in range(zero, outer, piece):
            last = min(first + piece, outer)
            for i in range(columns):
                combine(y[i, first:last], weights[i, at : at + blocks[k, 4]], rows, first)
        at += blocks[k, 4]


@kernel
def _collapse(
    x: Array, y: Array, blocks: Array, own: Number, before: Number, across: Number, factor: Array, other: Array,
    cross: Array, flip: Number, std: Number, seed: Number, first_draw: Number, tensor: Number, start: Number,
    stop: Number,
) -> None:  # fmt: skip
    words = np.empty(CHUNK, np.uint32)
    spare = np.empty(CHUNK, np.float32)
    columns, width = x.shape[1], max(before + across, x.shape[1], 1)
    small = np.empty((2 * columns, width))
    weights = np.empty((columns + 1, width), np.float32)
    for d in range(start, stop):
        draw = first_draw + np.uint64(d)
        collapse_one(
            x[d], y[d], blocks, np.int64(0), own, d, before, across, factor[d], other[d], cross[d], flip, std, seed,
            draw, tensor, words, spare, small, weights,
        )  # fmt: skip


@dataclass(eq=False)
class Revealed:
    """What products have revealed of one matrix in consecutive draws, for ``columns`` columns right and left.

    ``uses[False]`` holds (x, W x), ``uses[True]`` (d, W^T d), each (draws, columns, length).
    """

    draws: int
    columns: tuple[int, int]
    uses: tuple[list[tuple[Value, Value]], list[tuple[Value, Value]]] = field(
        default_factory=lambda: ([], [])
    )

    def __post_init__(self) -> None:
        right, left = self.columns
        self.factors = (np.empty((self.draws, right, right)), np.empty((self.draws, left, left)))
        self.cross = np.empty((self.draws, left, right))

    def count(self, side: bool) -> int:
        """Columns revealed on a side."""
        return sum(x.shape[1] for x, _ in self.uses[side])


def _blocks(uses: list[tuple[Value, Value]]) -> NDArray[np.int64]:
    rows = [
        (x.ctypes.data, x[0].nbytes, y.ctypes.data, y[0].nbytes, x.shape[1]) for x, y in uses
    ]
    return np.array(rows, np.int64).reshape(-1, 5)


def collapse(
    x: Value, weight: RandomMatrix, revealed: Revealed, tensor: int, *, seed: int, first_draw: int = 0,
    transpose: bool = False,
) -> Value:  # fmt: skip
    """W x, or W^T x, for all columns x of a draw, in the law that ``revealed`` leaves; added to what is revealed.

    (draws, places, columns) -> (draws, places, rows), or the other way round for the transpose. ``tensor`` numbers
    the fresh normals of this use. Raises ShapeError when the channels do not fit.
    """
    x = np.ascontiguousarray(x, np.float32)
    inner, outer = (weight.rows, weight.columns) if transpose else (weight.columns, weight.rows)
    if x.ndim != 3 or x.shape[2] != inner:
        raise ShapeError(f"a value of shape {x.shape} meets a matrix that takes {inner} channels")
    check_counter(seed, first_draw, x.shape[0], tensor, x.shape[1] * (outer + TILE))
    y = np.empty((*x.shape[:2], outer), np.float32)
    own, across = revealed.uses[transpose], revealed.uses[not transpose]
    over_draws(
        _collapse, x.shape[0], x, y, _blocks([*own, *across]), len(own), revealed.count(transpose),
        revealed.count(not transpose), revealed.factors[transpose], revealed.factors[not transpose],
        revealed.cross, transpose, float(weight.std), np.uint64(seed), np.uint64(first_draw), np.uint64(tensor),
    )  # fmt: skip
    own.append((x, y))
    return y
