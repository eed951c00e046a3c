"""Products with Haar matrices, drawn without the matrix.

A Haar matrix O of N rows and columns is known on a span as soon as products have revealed it there: from O a_k = b_k
(products with the transpose reveal such pairs too, a_k = O^T b_k) and a new column x = sum_k c_k a_k + r, r orthogonal
to all a_k,

    O x = sum_k c_k b_k + |r| u,  u uniform on the unit sphere orthogonal to all b_k,

and u is a Gaussian vector less its projection, divided by its length; several new columns take an orthonormal frame.
Inner products of the b_k are those of the a_k, so one Cholesky factor serves both sides. A matrix with orthonormal
columns, or rows, is a block of such an O (Stewart 1980; Mezzadri 2007).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from varflow.errors import ShapeError
from varflow.simulate.handlers import handler, pointer, pointer_to_doubles, pointer_to_integers
from varflow.simulate.jit import Array, Number, device
from varflow.simulate.kernels import Value
from varflow.simulate.kernels_collapse import gram, scratch_bytes
from varflow.simulate.kernels_product import (
    ROOM,
    combine_rows,
    draw_rows,
    factorize,
    list_rows,
    matrix,
    products,
    solve_lower,
    solve_upper,
    squares,
)
from varflow.simulate.rng import TILE, check_counter
from varflow.simulate.steps import DRAW, INDEX, SEED, SMALL, SPARE, Steps, run_alone

F = np.float32
TENSOR, COLUMNS, LENGTH, INNER, KNOWN, ALL, GIVEN, GIVEN_STEP, MADE, MADE_STEP, FACTOR, FACTOR_STEP = range(12)
"""Words of a product: number of its tensor, new columns, N, entries of a column that are not zero, columns known and
in all; addresses and steps from draw to draw of the rows on its own side, those on the other, and the factor."""


@device
def frame(made: Array, known: Array, inner: Array, columns: Number) -> None:
    """Gram matrix of fresh vectors less their projections on what is known, from ``known`` = L^-1 (b_k . g_i)."""
    for k in range(known.shape[0]):
        for i in range(columns):
            for j in range(i + 1):
                inner[i, j] -= known[k, i] * known[k, j]


@device
def shares(factors: Array, factor: Array, known: Array, inner: Array, before: Number) -> None:
    """Coefficients of known rows and of fresh vectors in each new row, into ``factors``."""
    columns = factors.shape[1]
    fresh = matrix(factors.ctypes.data + 8 * before * columns, columns, columns)
    for i in range(columns):
        for k in range(columns):
            fresh[k, i] = factor[before + i, before + k] if k <= i else 0.0
    solve_upper(inner, fresh, np.int64(0), columns)
    for k in range(before):
        for i in range(columns):
            factors[k, i] = factor[before + i, k]
            for m in range(i + 1):
                factors[k, i] -= known[k, m] * fresh[m, i]
    solve_upper(factor, factors, np.int64(0), before)


@handler
def haar_product(words: Number, reals: Number, context: Number) -> None:
    """O x, or O^T x, for the new columns of one draw, behind those that are known.

    Where a column may lie in the span of others, the factors of all are found again in float64: beside one of float32
    the column would seem to have a direction of its own, to which no vector belongs.
    """
    w, c = pointer_to_integers(words), pointer_to_integers(context)
    columns, length, inner, before, d, zero = w[COLUMNS], w[LENGTH], w[INNER], w[KNOWN], c[INDEX], np.int64(0)
    given, made = w[GIVEN] + d * w[GIVEN_STEP], w[MADE] + d * w[MADE_STEP]
    old = c[SMALL]
    new = list_rows(old, given, before, length)
    others = list_rows(new, given + 4 * length * before, columns, length)
    fresh = list_rows(others, made, before, length)
    at = list_rows(fresh, made + 4 * length * before, columns, length)
    address, terms = w[FACTOR] + d * w[FACTOR_STEP], before + columns
    factor, factors = matrix(address, w[ALL], w[ALL]), matrix(at, terms, columns)
    rest = at + 8 * terms * columns
    square = rest + 8 * max(before * columns, ROOM * terms)
    scratch = square + 8 * columns * columns
    single = scratch + 8 * ROOM * columns
    precise = np.int64(1) if 2 * terms > length else zero
    if precise or not gram(new, columns, old, before, inner, factor, address, precise, rest):
        gram(old, before, old, zero, length, factor, address, np.int64(1), rest)
        gram(new, columns, old, before, inner, factor, address, np.int64(1), rest)
    known, inners = matrix(rest, before, columns), matrix(square, columns, columns)
    draw_rows(
        fresh, columns, length, factor, before, others, zero, rest, c[SEED], c[DRAW], w[TENSOR],
        zero, c[SPARE],
    )  # fmt: skip
    products(others, before, fresh, columns, length, rest, columns, precise)
    squares(fresh, columns, length, square, columns, precise)
    solve_lower(factor, known, zero, before)
    frame(factors, known, inners, columns)
    factorize(inners, zero, columns, scratch)
    shares(factors, factor, known, inners, before)
    for k in range(terms * columns):
        pointer(single)[k] = F(pointer_to_doubles(at)[k])
    combine_rows(fresh, columns, single, others, before, length)


class RevealedHaar:
    """What products have revealed of the Haar matrices of consecutive draws: ``sides[0]`` holds the a_k, ``sides[1]``
    the b_k, (draws, columns, N), of which the first ``count`` are known."""

    def __init__(self, draws: int, columns: int, length: int) -> None:
        self.sides = tuple(np.zeros((draws, columns, length), np.float32) for _ in range(2))
        self.factors = np.empty((draws, columns, columns))
        self.count = 0


def collapse_haar(
    x: Value, rows: int, columns: int, scale: float, revealed: RevealedHaar, tensor: int, *, seed: int,
    first_draw: int = 0, transpose: bool = False,
) -> Value:  # fmt: skip
    """W x, or W^T x, for ``scale`` times a matrix with orthonormal columns (rows, when wide), given what is revealed.

    (draws, places, columns) -> (draws, places, rows), or the other way round for the transpose; ``tensor`` numbers the
    fresh normals of this use. Raises ShapeError when the channels do not fit.
    """
    inner, outer = (rows, columns) if transpose else (columns, rows)
    if x.ndim != 3 or x.shape[2] != inner:
        raise ShapeError(f"a value of shape {x.shape} meets a matrix that takes {inner} channels")
    draws, count = x.shape[:2]
    given, made = revealed.sides[transpose], revealed.sides[not transpose]
    (_, total, length), before = given.shape, revealed.count
    check_counter(seed, first_draw, draws, tensor, count * (length + TILE))
    given[:, before : before + count, :inner] = x
    steps = Steps()
    places = [(a.ctypes.data, a.strides[0]) for a in (given, made, revealed.factors)]
    steps.needs(SMALL, scratch_bytes(count, before) + 8 * count * (count + ROOM))
    words: list[Any] = [tensor, count, length, inner, before, total, *(n for place in places for n in place)]
    steps.add(haar_product, words)
    run_alone(steps, draws, seed, first_draw)
    revealed.count += count
    return np.float32(scale) * made[:, before : before + count, :outer]
