"""Steps of a tape beside expressions and products: random sources and second moments of weights' gradients."""

from __future__ import annotations

import numpy as np

from varflow.simulate.handlers import (
    carray,
    handler,
    pointer,
    pointer_to_doubles,
    pointer_to_integers,
    pointer_to_words,
)
from varflow.simulate.jit import Number, device
from varflow.simulate.kernels_product import dots_precise, fill_normals
from varflow.simulate.rng import CHUNK, fill
from varflow.simulate.steps import BASE, DRAW, ROW, SEED, SPARE, TARGET, TOTAL, WORDS

F = np.float32


@device
def stretch(address: Number, size: Number, scale: Number, mean: Number) -> None:
    """x = scale x + mean."""
    if scale != 1.0 or mean != 0.0:
        out = pointer(address)
        for i in range(size):
            out[i] = F(out[i] * F(scale)) + F(mean)


@handler
def normal_source(words: Number, reals: Number, context: Number) -> None:
    """Normal entries: words (tensor), reals (scale, mean)."""
    w, x, c = pointer_to_integers(words), pointer_to_doubles(reals), pointer_to_integers(context)
    fill_normals(c[TARGET], c[TOTAL], c[SEED], c[DRAW], w[0], np.int64(0), c[SPARE])
    stretch(c[TARGET], c[TOTAL], x[0], x[1])


@handler
def other_source(words: Number, reals: Number, context: Number) -> None:
    """Random entries: words (tensor, distribution), reals (scale, mean, parameter)."""
    w, x, c = pointer_to_integers(words), pointer_to_doubles(reals), pointer_to_integers(context)
    fill(
        carray(pointer(c[TARGET]), c[TOTAL]), c[TOTAL], w[1], x[2], np.uint64(c[SEED]), np.uint64(c[DRAW]),
        np.uint64(w[0]), np.int64(0),
        carray(pointer_to_words(c[WORDS]), CHUNK), carray(pointer(c[SPARE]), CHUNK),
    )  # fmt: skip
    stretch(c[TARGET], c[TOTAL], x[0], x[1])


@handler
def move(words: Number, reals: Number, context: Number) -> None:
    """Channels of other values side by side, zero between: words (pieces, rows, channels, whether some stay zero, then
    for each piece: where its value is, that value's channels, first channel there and here, and how many)."""
    w, c = pointer_to_integers(words), pointer_to_integers(context)
    pieces, rows, channels = w[0], w[1], w[2]
    if w[3]:
        out = pointer(c[TARGET])
        for k in range(rows * channels):
            out[k] = F(0.0)
    for k in range(4, 4 + 5 * pieces, 5):
        for row in range(rows):
            source = pointer(c[BASE] + w[k] + 4 * (row * w[k + 1] + w[k + 2]))
            target = pointer(c[TARGET] + 4 * (row * channels + w[k + 3]))
            for i in range(w[k + 4]):
                target[i] = source[i]


@handler
def gradient(words: Number, reals: Number, context: Number) -> None:
    """Mean square entry of a sum of outer products, into the moments: words (column, pairs, rows, columns, then for
    each pair: where its row side and its column side are, and the number of places)."""
    w, c = pointer_to_integers(words), pointer_to_integers(context)
    base, rows, columns, total = c[BASE], w[2], w[3], 0.0
    for a in range(4, 4 + 3 * w[1], 3):
        for b in range(4, a + 3, 3):
            share = 1.0 if a == b else 2.0
            for i in range(w[a + 2]):
                for j in range(w[b + 2]):
                    left = dots_precise(base + w[a] + 4 * rows * i, base + w[b] + 4 * rows * j, rows)
                    right = dots_precise(base + w[a + 1] + 4 * columns * i, base + w[b + 1] + 4 * columns * j, columns)
                    total += share * left * right
    pointer_to_doubles(c[ROW])[3 * w[0] + 1] = total / (rows * columns)
