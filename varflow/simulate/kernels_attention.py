"""Kernels of attention: inner products of tokens, their softmax, and blends of values, head by head.

Values are (draws, samples x places, channels); a head's weights for all tokens lie one head behind another. Products
run through the tiles of `tiles`: every entry is one chain of float32 multiply-adds, so that no bit depends on threads.
Sums of a softmax are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.errors import ShapeError
from varflow.program import Blend, Scores, Softmax, SoftmaxBackward
from varflow.simulate import elementary as fn
from varflow.simulate.jit import Array, Number, device, kernel, over_draws, reduction
from varflow.simulate.kernels_window import run_tiles
from varflow.simulate.routes import route
from varflow.simulate.tiles import TALL, WIDTH

Value = NDArray[np.float32]

F = np.float32


@device
def turned_block(out: Array, line: Number, x: Array, first: Number, size: Number) -> None:
    """out[c line + r] = x[r, first + c] for ``size`` channels."""
    for r in range(x.shape[0]):
        for c in range(size):
            out[c * line + r] = x[r, first + c]


@device
def block(out: Array, line: Number, x: Array, first: Number, size: Number) -> None:
    """out[r line + c] = x[r, first + c] for ``size`` channels."""
    for r in range(x.shape[0]):
        for c in range(size):
            out[r * line + c] = x[r, first + c]


@device
def multiplied(
    y: Array, channel: Number, wide: Number, x: Array, first: Number, depth: Number, packed: Array, line: Number,
    order: Array, starts: Array, taps: Array, rows: Array,
) -> None:  # fmt: skip
    """y[p, channel: channel + wide] = x[p, first: first + depth] times the matrix whose rows are ``line`` entries."""
    tile, zeros = np.empty((TALL, WIDTH), np.float32), np.zeros(depth, np.float32)
    fresh, none = np.int64(1), np.int64(0)
    for c in range(0, wide, WIDTH):
        run_tiles(
            y, channel + c, min(WIDTH, wide - c), fresh, packed[c:], none, line, x, first, depth, zeros, tile, order,
            starts, taps, rows,
        )  # fmt: skip


@kernel
def _scores(
    q: Array, k: Array, y: Array, heads: Number, line: Number, order: Array, starts: Array, taps: Array, rows: Array,
    start: Number, stop: Number,
) -> None:  # fmt: skip
    tokens, size = k.shape[1], k.shape[2] // heads
    packed = np.zeros(size * line, np.float32)
    for item in range(start, stop):
        i, a = item // heads, item % heads
        turned_block(packed, line, k[i], a * size, size)
        multiplied(y[i], a * tokens, tokens, q[i], a * size, size, packed, line, order, starts, taps, rows)


@kernel
def _blend(
    w: Array, v: Array, y: Array, heads: Number, line: Number, order: Array, starts: Array, taps: Array, rows: Array,
    start: Number, stop: Number,
) -> None:  # fmt: skip
    tokens, size = v.shape[1], v.shape[2] // heads
    packed = np.zeros(tokens * line, np.float32)
    for item in range(start, stop):
        i, a = item // heads, item % heads
        block(packed, line, v[i], a * size, size)
        multiplied(y[i], a * size, size, w[i], a * tokens, tokens, packed, line, order, starts, taps, rows)


@kernel
def _blend_back(
    w: Array, d: Array, y: Array, heads: Number, line: Number, order: Array, starts: Array, taps: Array, rows: Array,
    start: Number, stop: Number,
) -> None:  # fmt: skip
    places, tokens, size = d.shape[1], y.shape[1], d.shape[2] // heads
    packed, turned = np.zeros(places * line, np.float32), np.empty((tokens, places), np.float32)
    none = np.int64(0)
    for item in range(start, stop):
        i, a = item // heads, item % heads
        block(packed, line, d[i], a * size, size)
        turned_block(turned.reshape(-1), places, w[i], a * tokens, tokens)
        multiplied(y[i], a * size, size, turned, none, places, packed, line, order, starts, taps, rows)


@reduction
def sum_of(x: Array, size: Number) -> Any:
    """The sum of the first entries, in float64."""
    total = 0.0
    for r in range(size):
        total += np.float64(x[r])
    return total


@reduction
def dot_of(x: Array, y: Array) -> Any:
    """The inner product, in float64."""
    total = 0.0
    for r in range(x.size):
        total += np.float64(x[r]) * y[r]
    return total


@kernel
def _softmax(x: Array, y: Array, places: Number, causal: Number, start: Number, stop: Number) -> None:
    _, heads, size = x.shape
    for i in range(start, stop):
        seen = min(i % places + 1, size) if causal else size
        for a in range(heads):
            row, out = x[i, a], y[i, a]
            largest = row[0]
            for r in range(1, seen):
                largest = max(largest, row[r])
            for r in range(seen):
                out[r] = fn.exp(F(row[r] - largest))
            inverse = 1.0 / sum_of(out, seen)
            for r in range(seen):
                out[r] = F(out[r] * inverse)
            for r in range(seen, size):
                out[r] = F(0.0)


@kernel
def _softmax_back(y: Array, dy: Array, dx: Array, start: Number, stop: Number) -> None:
    _, heads, size = y.shape
    for i in range(start, stop):
        for a in range(heads):
            row, slope, out = y[i, a], dy[i, a], dx[i, a]
            mean = dot_of(row, slope)
            for r in range(size):
                out[r] = F(row[r] * (slope[r] - mean))


def _by_sample(x: Value, samples: int, heads: int) -> Value:
    """(draws x samples, places, channels). Raises ShapeError where channels do not divide into heads."""
    if x.shape[2] % heads or x.shape[1] % samples:
        raise ShapeError(f"a value of shape {x.shape} does not divide into {samples} samples and {heads} heads")
    return np.ascontiguousarray(x, np.float32).reshape(len(x) * samples, x.shape[1] // samples, x.shape[2])


def _lines(size: int) -> int:
    """Entries of a packed row: whole tiles."""
    return -(-size // WIDTH) * WIDTH


def _product(run: Any, left: Value, right: Value, draws: int, heads: int, places: int, channels: int, size: int
             ) -> Value:  # fmt: skip
    y = np.empty((len(left), places, channels), np.float32)
    path = route(None, 1, places).arrays
    over_draws(run, len(left) * heads, left, right, y, heads, _lines(size), *path)
    return y.reshape(draws, -1, channels)


def scores(q: Value, k: Value, samples: int, heads: int) -> Value:
    """y[p, (a, r)] = sum over the channels c of head a of q[p, c] k[r, c], within each sample."""
    left, right = _by_sample(q, samples, heads), _by_sample(k, samples, heads)
    if left.shape[2] != right.shape[2]:
        raise ShapeError(f"inner products of {left.shape[2]} and {right.shape[2]} channels")
    tokens = right.shape[1]
    return _product(_scores, left, right, len(q), heads, left.shape[1], heads * tokens, tokens)


def blend(w: Value, v: Value, samples: int, heads: int, transpose: bool = False) -> Value:
    """y[p, c] = sum_r w[p, (head of c, r)] v[r, c]; transposed, y[r, c] = sum_p w[p, (head of c, r)] v[p, c]."""
    left, right = _by_sample(w, samples, heads), _by_sample(v, samples, heads)
    tokens, channels = left.shape[2] // heads, right.shape[2]
    if right.shape[1] != (left.shape[1] if transpose else tokens):
        raise ShapeError(f"weights of shape {w.shape} meet values of shape {v.shape}")
    run, places = (_blend_back, tokens) if transpose else (_blend, left.shape[1])
    return _product(run, left, right, len(w), heads, places, channels, channels // heads)


def softmax(x: Value, samples: int, heads: int, causal: bool = False) -> Value:
    """exp(x) over its sum in each of ``heads`` blocks of channels; causal: over the first p + 1 at place p."""
    parts = _by_sample(x, samples, heads)
    y = np.empty(x.shape, np.float32)
    rows = (len(parts) * parts.shape[1], heads, -1)
    over_draws(_softmax, rows[0], parts.reshape(rows), y.reshape(rows), parts.shape[1], causal)
    return y


def softmax_backward(y: Value, dy: Value, heads: int) -> Value:
    """The gradient of a softmax whose value is y: y (dy - sum of y dy)."""
    dx = np.empty(y.shape, np.float32)
    rows = (y.shape[0] * y.shape[1], heads, -1)
    given = (np.ascontiguousarray(x, np.float32).reshape(rows) for x in (y, dy))
    over_draws(_softmax_back, rows[0], *given, dx.reshape(rows))
    return dx


def attended(primitive: Scores | Blend | Softmax | SoftmaxBackward, args: Sequence[Value], samples: int) -> Value:
    """The value of an instruction of attention."""
    match primitive:
        case Scores(heads=heads):
            return scores(args[0], args[1], samples, int(heads))
        case Blend(heads=heads, transpose=transpose):
            return blend(args[0], args[1], samples, int(heads), transpose)
        case Softmax(heads=heads, causal=causal):
            return softmax(args[0], samples, int(heads), causal)
        case SoftmaxBackward(forward=rule):
            return softmax_backward(args[0], args[1], int(rule.heads))
