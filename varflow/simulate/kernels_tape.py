"""A whole draw in one kernel: the steps of a program whose values stay in one thread's buffer, close to the core.

A tape is a list of steps as integers (`tape` writes it): random sources, pointwise programs, collapsed products and
second moments of weights' gradients. The arithmetic is that of the other kernels' functions.
"""

from __future__ import annotations

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from varflow.simulate.jit import Array, Number, device, kernel
from varflow.simulate.kernels import moments_of
from varflow.simulate.kernels_collapse import collapse_one, dots
from varflow.simulate.kernels_pointwise import (
    LANES,
    evaluate,
    fill_constants,
    pointer,
    pointer_to_doubles,
    pointer_to_integers,
    pointer_to_words,
)
from varflow.simulate.rng import CHUNK, fill

F = np.float32
SOURCE, POINTWISE, PRODUCT, GRADIENT = range(4)
HEAD = 4
"""Words before a step's own: what it is, the column of its moments or -1, where its value is, how many entries."""


@device
def run_source(
    out: Array, w: Array, x: Array, seed: Number, draw: Number, words: Array, spare: Array
) -> None:
    """Random entries: w = (distribution, tensor), x = (parameter, scale, mean)."""
    offset = np.int64(0)
    fill(out, out.size, w[0], x[0], seed, draw, np.uint64(w[1]), offset, words, spare)
    scale, mean = F(x[1]), F(x[2])
    if scale != F(1.0) or mean != F(0.0):
        for i in range(out.size):
            out[i] = F(out[i] * scale) + mean


@device
def run_pointwise(
    target: Number, total: Number, w: Array, base: Number, code: Array, own: Array, at: Array, inputs: Array
) -> None:
    """An expression: w = (program, channels, result, first and last line of code, registers, inputs, addresses of
    inputs, their layouts)."""
    count = w[6]
    for k in range(count):
        inputs[k] = base + w[7 + k]
    layouts = carray(pointer_to_integers(w.ctypes.data + 8 * (7 + count)), (count, 5), np.int64)
    lines, registers = code[w[3] : w[4]], w[5]
    evaluate(target, total, w[1], lines, w[2], inputs, layouts, own[:registers], at[:registers])


@device
def integers(x: Array) -> Array:
    """The same integers, uncounted: views of it cost nothing. ``x`` must outlive them."""
    return carray(pointer_to_integers(x.ctypes.data), x.shape, np.int64)


@device
def doubles_of(x: Array) -> Array:
    """The same doubles, uncounted."""
    return carray(pointer_to_doubles(x.ctypes.data), x.shape, np.float64)


@device
def floats(x: Array) -> Array:
    """The same floats, uncounted."""
    return carray(pointer(x.ctypes.data), x.shape, np.float32)


@device
def matrix(doubles: Number, at: Number, rows: Number, columns: Number) -> Array:
    """A matrix of doubles, ``at`` doubles behind an address."""
    return carray(pointer_to_doubles(doubles + 8 * at), (rows, columns), np.float64)


@device
def run_product(
    target: Number, w: Array, std: Number, base: Number, doubles: Number, seed: Number, draw: Number, words: Array,
    spare: Array, small: Array, weights: Array,
) -> None:  # fmt: skip
    """A collapsed product: w = (tensor, argument, columns, inner and outer length, own uses, columns before on this
    side and across, columns right and left in all, flip, places of both factors and of the cross products, blocks)."""
    flip, right, left = w[10], w[8], w[9]
    sides = (left, right) if flip else (right, left)
    x = carray(pointer(base + w[1]), (w[2], w[3]), np.float32)
    y = carray(pointer(target), (w[2], w[4]), np.float32)
    blocks = carray(pointer_to_integers(w.ctypes.data + 8 * 14), ((w.size - 14) // 5, 5), np.int64)
    collapse_one(
        x, y, blocks, base, w[5], np.int64(0), w[6], w[7], matrix(doubles, w[11], sides[0], sides[0]),
        matrix(doubles, w[12], sides[1], sides[1]), matrix(doubles, w[13], left, right), flip != 0, std, seed, draw,
        np.uint64(w[0]), words, spare, small, weights,
    )  # fmt: skip


@device
def run_gradient(w: Array, base: Number, grams: Array) -> Number:
    """Mean square entry of a sum of outer products: w = (rows, columns, then for each pair: where its row side and its
    column side are, and the number of places)."""
    total, zero, precise = 0.0, np.int64(0), np.int64(1)
    for a in range(2, w.size, 3):
        left = carray(pointer(base + w[a]), (w[a + 2], w[0]), np.float32)
        right = carray(pointer(base + w[a + 1]), (w[a + 2], w[1]), np.float32)
        for b in range(2, w.size, 3):
            left_b = carray(pointer(base + w[b]), (w[b + 2], w[0]), np.float32)
            right_b = carray(pointer(base + w[b + 1]), (w[b + 2], w[1]), np.float32)
            dots(left, left_b, grams[0], zero, zero, precise)
            dots(right, right_b, grams[1], zero, zero, precise)
            for i in range(w[a + 2]):
                for j in range(w[b + 2]):
                    total += grams[0, i, j] * grams[1, i, j]
    return total / (w[0] * w[1])


@kernel
def run_tape(
    table: Array, starts: Array, numbers: Array, code: Array, constants: Array, sizes: Array, arena: Array,
    doubles: Array, rows: Array, seed: Number, first_draw: Number, start: Number, stop: Number,
) -> None:  # fmt: skip
    """Draws start..stop of a tape; ``sizes``: registers, inputs, columns of a product, earlier columns, places."""
    words0, spare0 = np.empty(CHUNK, np.uint32), np.empty(CHUNK, np.float32)
    register = np.empty((sizes[0], LANES), np.float32)
    own0, at0, inputs0 = np.empty(sizes[0], np.int64), np.empty(sizes[0], np.int64), np.empty(sizes[1], np.int64)
    small0, weights0 = np.empty((2 * sizes[2], sizes[3])), np.empty((sizes[2] + 1, sizes[3]), np.float32)
    grams0 = np.empty((2, sizes[4], sizes[4]))
    own, at, inputs, steps, places = integers(own0), integers(at0), integers(inputs0), integers(table), integers(starts)
    small, grams, reals = doubles_of(small0), doubles_of(grams0), doubles_of(numbers)
    spare, weights = floats(spare0), floats(weights0)
    words = carray(pointer_to_words(words0.ctypes.data), words0.shape, np.uint32)
    base, squares, loaded = arena.ctypes.data, doubles.ctypes.data, np.int64(-1)
    for d in range(start, stop):
        draw = first_draw + np.uint64(d)
        for s in range(starts.size - 1):
            head, w = steps[places[s] : places[s] + HEAD], steps[places[s] + HEAD : places[s + 1]]
            target, total = base + head[2], head[3]
            value = carray(pointer(target), (total,), np.float32)
            if head[0] == POINTWISE:
                if w[0] != loaded:
                    loaded = w[0]
                    fill_constants(register, own, constants[loaded])
                run_pointwise(target, total, w, base, code, own, at, inputs)
            elif head[0] == PRODUCT:
                run_product(
                    target, w, reals[s, 0], base, squares, seed, draw, words, spare, small, weights
                )
            elif head[0] == SOURCE:
                run_source(value, w, reals[s], seed, draw, words, spare)
            else:
                rows[d, head[1], 1] = run_gradient(w, base, grams)
                continue
            if head[1] >= 0:
                rows[d, head[1], 0], rows[d, head[1], 1], rows[d, head[1], 2] = moments_of(value)
