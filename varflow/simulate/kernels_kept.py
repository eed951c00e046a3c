"""Products with matrices that are drawn once and kept for all of their uses in a draw.

A weight that every step of a recurrence multiplies costs its random numbers once; what is left of a product is its
arithmetic. Rows of the matrix are long vectors, worked on as in collapsed products: W x by inner products, W^T x as
combinations of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from varflow.errors import ShapeError
from varflow.simulate.handlers import handler, pointer, pointer_to_doubles, pointer_to_integers
from varflow.simulate.jit import Number, device
from varflow.simulate.kernels import RandomMatrix, Value
from varflow.simulate.kernels_product import inner_products, list_rows
from varflow.simulate.recycle import empty
from varflow.simulate.rng import sample
from varflow.simulate.steps import BASE, INDEX, SMALL, TARGET, TOTAL, Steps, run_alone
from varflow.simulate.vectors import SIDE, combine_one, combine_tile

F = np.float32
BLOCK = 64
"""Rows of a matrix that are combined while they are near, and added to what is there."""
COLUMNS, INNER, OUTER, FLIP, MATRIX, MATRIX_STEP, X, X_STEP = range(8)
"""Words of a product: vectors; length of arguments and of results; whether it is the transpose; bytes before the matrix
and the argument, each with the step from draw to draw."""


@handler
def thin(words: Number, reals: Number, context: Number) -> None:
    """x *= mask: words (bytes before the mask)."""
    w, c = pointer_to_integers(words), pointer_to_integers(context)
    out, mask = pointer(c[TARGET]), pointer(c[BASE] + w[0])
    for i in range(c[TOTAL]):
        out[i] *= mask[i]


@handler
def kept_product(words: Number, reals: Number, context: Number) -> None:
    """y = W x, or W^T x, in one draw."""
    w, c = pointer_to_integers(words), pointer_to_integers(context)
    columns, inner, outer, d = w[COLUMNS], w[INNER], w[OUTER], c[INDEX]
    matrix, x = c[BASE] + w[MATRIX] + d * w[MATRIX_STEP], c[BASE] + w[X] + d * w[X_STEP]
    table = c[SMALL]
    if w[FLIP]:
        combine(matrix, x, c[TARGET], columns, inner, outer, table)
    else:
        multiply(matrix, x, c[TARGET], columns, inner, outer, table)


@device
def multiply(
    matrix: Number, x: Number, y: Number, columns: Number, inner: Number, outer: Number, table: Number
) -> None:
    """Results are inner products with the rows of the matrix."""
    arguments = list_rows(table, matrix, outer, inner)
    sums, first, out = list_rows(arguments, x, columns, inner), np.int64(0), pointer(y)
    products = pointer_to_doubles(sums)
    for k in range(outer * columns):
        products[k] = 0.0
    inner_products(table, outer, arguments, columns, first, inner, sums, columns)
    for i in range(outer):
        for j in range(columns):
            out[j * outer + i] = F(products[i * columns + j])


@device
def combine(
    matrix: Number, x: Number, y: Number, columns: Number, inner: Number, outer: Number, table: Number
) -> None:
    """Results are combinations of the ``inner`` rows of the matrix, block by block of rows; from the second block on
    what is there counts as SIDE more rows."""
    targets, whole, first = table + 8 * (BLOCK + SIDE), columns // SIDE * SIDE, np.int64(0)
    shares, given = list_rows(targets, y, columns, outer), pointer(x)
    factors = pointer(shares)
    for start in range(0, inner, BLOCK):
        count = min(BLOCK, inner - start)
        added = list_rows(table, matrix + 4 * outer * start, count, outer)
        for j in range(columns):
            for k in range(count):
                factors[k * columns + j] = given[j * inner + start + k]
            for k in range(SIDE):
                factors[(count + k) * columns + j] = F(1.0) if j % SIDE == k or j >= whole else F(0.0)
        more = SIDE if start else 0
        for j in range(0, whole, SIDE):
            list_rows(added, y + 4 * outer * j, more, outer)
            combine_tile(targets + 8 * j, shares + 4 * j, 4 * columns, table, count + more, first, outer)
        for j in range(whole, columns):
            list_rows(added, y + 4 * outer * j, min(more, 1), outer)
            combine_one(targets + 8 * j, shares + 4 * j, 4 * columns, table, count + min(more, 1), first, outer)


def scratch_bytes(columns: int, inner: int, outer: int, transpose: bool) -> int:
    """Scratch of a product."""
    if transpose:
        return 8 * (BLOCK + SIDE + columns) + 4 * (BLOCK + SIDE) * columns
    return 8 * (outer + columns + outer * columns)


def write_kept(steps: Steps, place: Sequence[int], **target: Any) -> None:
    """The step of a product; ``place``: its words; ``target``: see `Steps.add`."""
    columns, inner, outer, flip, *_ = place
    steps.needs(SMALL, scratch_bytes(columns, inner, outer, bool(flip)))
    steps.add(kept_product, place, **target)


def drawn(weight: RandomMatrix, draws: int, *, seed: int, first_draw: int = 0) -> Value:
    """The matrices of consecutive draws, (draws, rows, columns): the entries that `kernels.contract` multiplies by."""
    size, place = (draws, weight.rows * weight.columns), {"seed": seed, "first_draw": first_draw}
    entries = sample(weight.distribution, size, tensor=weight.tensor, scale=weight.std, **place)
    if weight.keep < 1:
        entries *= sample("bernoulli", size, tensor=weight.mask_tensor, parameter=float(weight.keep), **place)
    return entries.reshape(draws, weight.rows, weight.columns)


def multiplied(x: Value, matrices: Value, *, transpose: bool = False) -> Value:
    """W x (W^T x) at every place for kept matrices (draws, rows, columns).

    (draws, places, columns) -> (draws, places, rows), or the other way round. Raises ShapeError when the channels do
    not fit.
    """
    x = np.ascontiguousarray(x, F)
    inner, outer = matrices.shape[1:] if transpose else matrices.shape[:0:-1]
    if x.ndim != 3 or x.shape[2] != inner:
        raise ShapeError(f"a value of shape {x.shape} meets a matrix that takes {inner} channels")
    draws, columns = x.shape[:2]
    y, steps = empty((draws, columns, outer)), Steps()
    addresses = [matrices.ctypes.data, matrices[0].nbytes, x.ctypes.data, x[0].nbytes]
    place = [columns, inner, outer, int(transpose), *addresses]
    write_kept(steps, place, target=y.ctypes.data, stride=y[0].nbytes, total=columns * outer)
    run_alone(steps, draws)
    return y
