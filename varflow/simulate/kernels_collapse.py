"""Products with i.i.d. Gaussian matrices, drawn without the matrix.

For entries of N(0, std^2), W x is Gaussian given what earlier products revealed of W. Those are W x_k = y_k (this
side) and, from the transpose, W^T d_j = e_j (across), for any columns x_k, d_j that were themselves chosen from
earlier results. With orthonormal bases V of the x_k and U of the d_j, conditioning removes from W x what is known:

    W x = y V^+ x + U U^T W r + std |r| (1 - U U^T) g,  r = (1 - V V^T) x,  g fresh N(0, 1),

where U^T W r = U^T W x - U^T W V V^T x follows from e and from the inner products d_j . y_k (Bolthausen 2014,
arXiv:1201.2891, lemma 3.1). Bases are never formed: all that is done to long vectors is inner products and one linear
combination of earlier results and fresh normals; its coefficients come from Cholesky factors of Gram matrices, in
float64, where a column in the span of the columns before it has pivot zero and is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from varflow.errors import ShapeError
from varflow.simulate.handlers import handler, pointer, pointer_to_doubles, pointer_to_integers
from varflow.simulate.jit import Array, Number, device
from varflow.simulate.kernels import RandomMatrix, Value
from varflow.simulate.kernels_product import DEPENDENT as DEPENDENT
from varflow.simulate.kernels_product import (
    LARGE,
    ROOM,
    RUN,
    SPAN,
    TINY,
    combine_rows,
    dot_doubles,
    dots_precise,
    draw_rows,
    factorize,
    fill_normals,
    is_steady,
    list_rows,
    matrix,
    products,
    reduce_rows,
    solve_lower,
    solve_upper,
    squares,
    subtract_doubles,
)
from varflow.simulate.recycle import empty
from varflow.simulate.rng import TILE, check_counter
from varflow.simulate.steps import (
    BASE,
    DOUBLES,
    DRAW,
    INDEX,
    PART,
    SEED,
    SMALL,
    SPARE,
    TARGET,
    Steps,
    run_alone,
)
from varflow.simulate.vectors import combine_one, dots_one

F = np.float32
(
    TENSOR, COLUMNS, INNER, OUTER, OWN, ACROSS, BEFORE, OPPOSITE, RIGHT, LEFT, FLIP, FACTOR, OTHER, CROSS, STEP, X,
    X_STEP, USES,
) = range(18)  # fmt: skip
"""Words of a product: number of its tensor; columns; lengths of arguments and results; earlier uses on its side and
across, and their columns; columns of all uses on both sides of the weight; whether it is the transpose; doubles before
the factors of its side and of the other and before the products between both, and from draw to draw; bytes before its
argument, and from draw to draw. From USES on, for each earlier use: bytes before its argument and its result, each with
the step from draw to draw, and columns."""
USE = 5


@device
def list_uses(
    table: Number, words: Number, first: Number, count: Number, side: Number, length: Number, base: Number, d: Number
) -> Any:
    """Rows of what went into earlier uses (``side`` 0) or came out (2); returns where the next ones go."""
    w = pointer_to_integers(words)
    for k in range(first, first + count):
        at = USES + USE * k
        table = list_rows(table, base + w[at + side] + d * w[at + side + 1], w[at + 4], length)
    return table


@device
def condition(rest: Array, factors: Array, cross: Array, flip: Number, before: Number) -> None:
    """What the transpose says of d_j . W x_i, in the rows before.. of ``factors``, goes into ``cross``; what the other
    terms bring is subtracted: earlier uses, and fresh normals g_i with d_j . g_i = ``rest``[j, i]."""
    across, columns = rest.shape
    if columns == 1:
        condition_one(rest, factors, cross, flip, before)
        return
    for j in range(across):
        for i in range(columns):
            if flip:
                cross[before + i, j] = factors[before + j, i]
            else:
                cross[j, before + i] = factors[before + j, i]
    width, pitch, doubles = 8 * columns, 8 * cross.shape[1], np.int64(8)
    top, known = factors.ctypes.data, cross.ctypes.data
    said, (right, down) = top + before * width, (doubles, pitch) if flip else (pitch, doubles)
    reduce_rows(said, width, across, known, right, down, top, width, before, columns)
    for first in range(0, columns, SPAN):
        wide = min(SPAN, columns - first)
        reduce_rows(
            said + 8 * first, width, across, rest.ctypes.data, width, doubles,
            top + (before + across) * width + 8 * first, width, first + wide, wide,
        )  # fmt: skip


@device
def condition_one(rest: Array, factors: Array, cross: Array, flip: Number, before: Number) -> None:
    """`condition` for one column."""
    across, start, said = rest.shape[0], factors.ctypes.data, factors.ctypes.data + 8 * before
    for j in range(across):
        if flip:
            cross[before, j] = factors[before + j, 0]
        else:
            cross[j, before] = factors[before + j, 0]
            factors[before + j, 0] -= dot_doubles(cross.ctypes.data + 8 * j * cross.shape[1], start, before)
    if flip:
        for k in range(before):
            subtract_doubles(said, factors[k, 0], cross.ctypes.data + 8 * k * cross.shape[1], across)
    subtract_doubles(said, factors[before + across, 0], rest.ctypes.data, across)


@device
def start_factors(factors: Array, factor: Array, before: Number, across: Number, std: Number) -> None:
    """Rows of ``factors``: coordinates of the columns in terms of earlier ones, and the share of fresh normals."""
    for i in range(factors.shape[1]):
        for k in range(before):
            factors[k, i] = factor[before + i, k]
        for k in range(factors.shape[1]):
            factors[before + across + k, i] = std * factor[before + i, before + k] if k <= i else 0.0
    solve_upper(factor, factors, np.int64(0), before)


@device
def gram(
    new: Number, columns: Number, old: Number, before: Number, length: Number, factor: Array, address: Number,
    precise: Number, scratch: Number,
) -> Any:  # fmt: skip
    """Rows of the Cholesky factor for new columns behind earlier ones; see `factorize`."""
    pitch = factor.shape[1]
    row = address + 8 * before * pitch
    products(new, columns, old, before, length, row, pitch, precise)
    squares(new, columns, length, row + 8 * before, pitch, precise)
    return factorize(factor, before, before + columns, scratch)


@handler
def product(words: Number, reals: Number, context: Number) -> None:
    """y = W x in one draw, or in one of its parts; one real: the standard deviation of the entries."""
    w, c, std = pointer_to_integers(words), pointer_to_integers(context), pointer_to_doubles(reals)[0]
    columns, inner, outer, before, across = w[COLUMNS], w[INNER], w[OUTER], w[BEFORE], w[OPPOSITE]
    base, d, none, first, second = c[BASE], c[INDEX], np.int64(0), np.int64(0), np.int64(2)
    x, terms = c[SMALL], before + across
    old = list_rows(x, base + w[X] + d * w[X_STEP], columns, inner)
    known = list_uses(old, words, none, w[OWN], first, inner, base, d)
    rows = list_uses(known, words, w[OWN], w[ACROSS], second, inner, base, d)
    others = list_uses(rows, words, none, w[OWN], second, outer, base, d)
    y = list_uses(others, words, w[OWN], w[ACROSS], first, outer, base, d)
    at = list_rows(y, c[TARGET], columns, outer)
    rest = at + 8 * (terms + columns) * columns
    single = rest + 8 * max(terms * columns, ROOM * (terms + columns))
    sides, doubles = (w[LEFT], w[RIGHT]) if w[FLIP] else (w[RIGHT], w[LEFT]), c[DOUBLES] + 8 * d * w[STEP]
    factor = matrix(doubles + 8 * w[FACTOR], sides[0], sides[0])
    other = matrix(doubles + 8 * w[OTHER], sides[1], sides[1])
    factors = matrix(at, terms + columns, columns)
    precise = np.int64(0)
    if not gram(x, columns, old, before, inner, factor, doubles + 8 * w[FACTOR], precise, rest):
        precise += 1
        gram(x, columns, old, before, inner, factor, doubles + 8 * w[FACTOR], precise, rest)
    start_factors(factors, factor, before, across, std)
    if not is_steady(other, across):
        precise += 1
    for k in range(across * columns):
        pointer_to_doubles(rest)[k] = 0.0
    products(known, across, x, columns, inner, at + 8 * before * columns, columns, precise)
    stride = (outer + TILE - 1) // TILE * TILE
    draw_rows(
        y, columns, outer, factor, before, others, across, rest, c[SEED], c[DRAW],
        w[TENSOR], c[PART] * columns * stride, c[SPARE],
    )  # fmt: skip
    cross = matrix(doubles + 8 * w[CROSS], w[LEFT], w[RIGHT])
    condition(matrix(rest, across, columns), factors, cross, w[FLIP], before)
    solve_lower(other, factors, before, across)
    solve_upper(other, factors, before, across)
    for k in range((terms + columns) * columns):
        pointer(single)[k] = F(pointer_to_doubles(at)[k])
    combine_rows(y, columns, single, rows, terms, outer)


@device
def dot(x: Number, y: Number, size: Number, table: Number, out: Number) -> Any:
    """x . y; two addresses and a double are scratch."""
    rows, result, first = pointer_to_integers(table), pointer_to_doubles(out), np.int64(0)
    rows[0], rows[1], result[0] = x, y, 0.0
    for start in range(first, size, RUN):
        dots_one(table, table + 8, 4 * start, min(RUN, size - start), out, first)
    return result[0]


@handler
def product_one(words: Number, reals: Number, context: Number) -> None:
    """`product` for one column, with no earlier use of its side and at most one across."""
    w, c, std = pointer_to_integers(words), pointer_to_integers(context), pointer_to_doubles(reals)[0]
    inner, outer, d, table, one = w[INNER], w[OUTER], c[INDEX], c[SMALL], np.int64(1)
    x, y, out, single = c[BASE] + w[X] + d * w[X_STEP], c[TARGET], table + 64, table + 128
    doubles = pointer_to_doubles(c[DOUBLES] + 8 * d * w[STEP])
    square = dot(x, x, inner, table, out)
    precise = not TINY < square < LARGE
    length = math.sqrt(dots_precise(x, x, inner) if precise else square)
    doubles[w[FACTOR]] = length
    offset = c[PART] * ((outer + TILE - 1) // TILE * TILE)
    fill_normals(y, outer, c[SEED], c[DRAW], w[TENSOR], offset, c[SPARE])
    factors, rows, terms = pointer(single), pointer_to_integers(table), w[ACROSS]
    if terms == 1:
        before = c[BASE] + w[USES] + d * w[USES + 1]
        said = c[BASE] + w[USES + 2] + d * w[USES + 3]
        other = doubles[w[OTHER]]
        precise = precise or not TINY < other * other < LARGE
        known = dots_precise(said, x, inner) if precise else dot(said, x, inner, table, out)
        doubles[w[CROSS]] = known
        rest = known - std * length * dot(before, y, outer, table, out)
        factors[0] = F(rest / other / other) if other != 0.0 else F(0.0)
        rows[0] = before
    factors[terms] = F(std * length)
    rows[terms], rows[3] = y, y
    for first in range(0, outer, RUN):
        combine_one(table + 24, single, np.int64(4), table, one + terms, 4 * first, min(RUN, outer - first))


def scratch_bytes(columns: int, earlier: int) -> int:
    """Scratch of a product with ``earlier`` columns of earlier uses on both sides."""
    terms = earlier + columns
    return 192 + 16 * terms + 12 * terms * columns + 8 * max(earlier * columns, ROOM * terms)


def write_product(
    steps: Steps, tensor: int, std: float, place: Sequence[int], uses: Sequence[Sequence[int]], own: int, **target: Any
) -> None:  # fmt: skip
    """The step of a product; ``place``: the words from COLUMNS to OUTER and from RIGHT to X_STEP, ``uses``: USE words
    for each earlier use, the first ``own`` of which are of its side; ``target``: see `Steps.add`."""
    columns, inner, outer, *rest = place
    before, across = (sum(u[4] for u in part) for part in (uses[:own], uses[own:]))
    steps.needs(SMALL, scratch_bytes(columns, before + across))
    head = [tensor, columns, inner, outer, own, len(uses) - own, before, across, *rest]
    run = product_one if columns == 1 and own == 0 and before + across <= 1 else product
    steps.add(run, [*head, *(n for u in uses for n in u)], (std,), **target)


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
        self.doubles = np.empty((self.draws, right * right + left * left + right * left))


def layout(right: int, left: int, transpose: bool) -> list[int]:
    """The words from RIGHT to CROSS: both factors and the products between the sides, one behind the other."""
    factors = (0, right * right)
    return [right, left, int(transpose), factors[transpose], factors[not transpose], right * right + left * left]


def collapse(
    x: Value, weight: RandomMatrix, revealed: Revealed, tensor: int, *, seed: int, first_draw: int = 0,
    transpose: bool = False, parts: int = 1,
) -> Value:  # fmt: skip
    """W x, or W^T x, for all columns x of a draw, in the law that ``revealed`` leaves; added to what is revealed.

    (draws, places, columns) -> (draws, places, rows), or the other way round for the transpose. ``tensor`` numbers
    the fresh normals of this use. With ``parts``, as many consecutive entries of the first axis are independent
    matrices of one draw. Raises ShapeError when the channels do not fit.
    """
    x = np.ascontiguousarray(x, np.float32)
    inner, outer = (weight.rows, weight.columns) if transpose else (weight.columns, weight.rows)
    if x.ndim != 3 or x.shape[2] != inner:
        raise ShapeError(f"a value of shape {x.shape} meets a matrix that takes {inner} channels")
    count, columns = x.shape[:2]
    check_counter(seed, first_draw, -(-count // parts), tensor, parts * columns * (outer + TILE))
    y = empty((count, columns, outer))
    own, across = revealed.uses[transpose], revealed.uses[not transpose]
    steps, (right, left) = Steps(), revealed.columns
    start, words = revealed.doubles.ctypes.data // 8, layout(right, left, transpose)
    words[3:] = [start + n for n in words[3:]]
    place = [columns, inner, outer, *words, revealed.doubles.shape[1], x.ctypes.data, x[0].nbytes]
    target = {"target": y.ctypes.data, "stride": y[0].nbytes, "total": columns * outer}
    write_product(steps, tensor, float(weight.std), place, [_use(u) for u in [*own, *across]], len(own), **target)
    run_alone(steps, count, seed, first_draw, parts)
    own.append((x, y))
    return y


def _use(use: tuple[Value, Value]) -> list[int]:
    x, y = use
    return [x.ctypes.data, x[0].nbytes, y.ctypes.data, y[0].nbytes, x.shape[1]]
