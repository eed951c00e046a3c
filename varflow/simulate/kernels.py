"""Kernels over draws: products with matrices that are generated while they multiply, and statistics.

Values are float32 arrays (draws, places, channels), C-contiguous; a place is a sample, or a position of a sample
(samples major). One thread works through one draw in fixed order, so the result does not depend on the number of
threads nor on how draws are cut into chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.errors import InputError, ShapeError
from varflow.simulate.handlers import carray, pointer
from varflow.simulate.jit import Array, Number, device, kernel, over_draws, reduction
from varflow.simulate.recycle import empty
from varflow.simulate.rng import BERNOULLI, CHUNK, check_counter, distribution_code, fill, sample

Value = NDArray[np.float32]

F = np.float32
COLUMNS = 1024
CELL = 4096


@dataclass(frozen=True)
class RandomMatrix:
    """A matrix of i.i.d. entries, rows x columns; entry (i, j) is element i columns + j of its tensor.

    ``std`` is the standard deviation of a kept entry (the value itself for "constant"); ``keep`` is the
    probability that an entry is kept, read from the tensor ``mask_tensor``.
    """

    rows: int
    columns: int
    tensor: int
    std: float = 1.0
    distribution: str = "normal"
    keep: float = 1.0
    mask_tensor: int = 0

    def __post_init__(self) -> None:
        distribution_code(self.distribution)
        if self.keep < 1.0 and self.mask_tensor == self.tensor:
            raise InputError("a sparse matrix needs a mask_tensor other than its own tensor")

    def dense(self, seed: int, draws: int, first_draw: int = 0) -> Value:
        """The matrices themselves, shape (draws, rows, columns)."""
        shape = (draws, self.rows * self.columns)
        place: dict[str, Any] = {"seed": seed, "first_draw": first_draw}
        entries = sample(self.distribution, shape, tensor=self.tensor, scale=self.std, **place)
        if self.keep < 1.0:
            entries *= sample(
                "bernoulli", shape, tensor=self.mask_tensor, parameter=self.keep, **place
            )
        return entries.reshape(draws, self.rows, self.columns)


@device
def times(x: Array, y: Array) -> None:
    """x *= y, over the length of x."""
    for i in range(x.size):
        x[i] *= y[i]


@reduction
def rows_times(weights: Array, h: Array, column: Number, y: Array, row: Number) -> None:
    """y[p, row + r] += weights[r] . h[p, column:], four rows at a time."""
    rows, columns = weights.shape
    for p in range(h.shape[0]):
        x = h[p, column : column + columns]
        sums = y[p, row : row + rows]
        for r in range(0, rows - rows % 4, 4):
            w0, w1, w2, w3 = weights[r], weights[r + 1], weights[r + 2], weights[r + 3]
            a = b = c = d = F(0.0)
            for i in range(x.size):
                a += w0[i] * x[i]
                b += w1[i] * x[i]
                c += w2[i] * x[i]
                d += w3[i] * x[i]
            sums[r] += a
            sums[r + 1] += b
            sums[r + 2] += c
            sums[r + 3] += d
        for r in range(rows - rows % 4, rows):
            w0 = weights[r]
            a = F(0.0)
            for i in range(x.size):
                a += w0[i] * x[i]
            sums[r] += a


@device
def rows_combined(weights: Array, v: Array, row: Number, y: Array, column: Number) -> None:
    """y[p, column:] += sum_r v[p, row + r] weights[r], four rows at a time."""
    rows, columns = weights.shape
    for p in range(v.shape[0]):
        out = y[p, column : column + columns]
        factor = v[p, row : row + rows]
        for r in range(0, rows - rows % 4, 4):
            w0, w1, w2, w3 = weights[r], weights[r + 1], weights[r + 2], weights[r + 3]
            a, b, c, d = factor[r], factor[r + 1], factor[r + 2], factor[r + 3]
            for i in range(out.size):
                out[i] += (a * w0[i] + b * w1[i]) + (c * w2[i] + d * w3[i])
        for r in range(rows - rows % 4, rows):
            w0 = weights[r]
            a = factor[r]
            for i in range(out.size):
                out[i] += a * w0[i]


@kernel
def _contract(
    h: Array, y: Array, transpose: Number, rows: Number, columns: Number, kind: Number, std: Number, keep: Number,
    seed: Number, first_draw: Number, tensor: Number, mask_kind: Number, mask_tensor: Number, start: Number,
    stop: Number,
) -> None:  # fmt: skip
    width = min(columns, COLUMNS)
    step = max(CELL // width // 4 * 4, 4)
    words = np.empty(CHUNK, np.uint32)
    spare = np.empty(CHUNK, np.float32)
    cell = np.empty(step * width, np.float32)
    mask = np.empty(step * width if keep < 1.0 else 0, np.float32)
    for d in range(start, stop):
        draw = first_draw + np.uint64(d)
        into = y[d]
        into[:] = F(0.0)
        for row in range(0, rows, step):
            count = min(step, rows - row)
            for column in range(0, columns, width):
                size = min(width, columns - column)
                pieces = 1 if size == columns else count
                length = count * size // pieces
                for k in range(pieces):
                    offset = (row + k) * columns + column
                    part = cell[k * length : (k + 1) * length]
                    fill(part, length, kind, 1.0, seed, draw, tensor, offset, words, spare)
                    if keep < 1.0:
                        fill(
                            mask,
                            length,
                            mask_kind,
                            keep,
                            seed,
                            draw,
                            mask_tensor,
                            offset,
                            words,
                            spare,
                        )
                        times(part, mask)
                weights = carray(pointer(cell.ctypes.data), (count, size))
                if transpose:
                    rows_combined(weights, h[d], row, into, column)
                else:
                    rows_times(weights, h[d], column, into, row)
        for p in range(into.shape[0]):
            for i in range(into.shape[1]):
                into[p, i] *= std


def contract(
    h: Value, weight: RandomMatrix, *, seed: int, first_draw: int = 0, transpose: bool = False
) -> Value:
    """W h, or W^T h, at every place of every draw; W is generated as it multiplies and never stored.

    (draws, places, columns) -> (draws, places, rows), or the other way round for the transpose. Relative error
    about 1e-6. Raises ShapeError when the channels do not fit.
    """
    h = np.ascontiguousarray(h, np.float32)
    inner, outer = (weight.rows, weight.columns) if transpose else (weight.columns, weight.rows)
    if h.ndim != 3 or h.shape[2] != inner:
        raise ShapeError(f"a value of shape {h.shape} meets a matrix that takes {inner} channels")
    for tensor in (weight.tensor, weight.mask_tensor):
        check_counter(seed, first_draw, h.shape[0], tensor, weight.rows * weight.columns)
    y = empty((*h.shape[:2], outer))
    kind = distribution_code(weight.distribution)
    over_draws(
        _contract, h.shape[0], h, y, transpose, weight.rows, weight.columns, kind, F(weight.std),
        float(weight.keep), np.uint64(seed), np.uint64(first_draw), np.uint64(weight.tensor),
        BERNOULLI, np.uint64(weight.mask_tensor),
    )  # fmt: skip
    return y


def haar(
    rows: int,
    columns: int,
    *,
    seed: int,
    tensor: int,
    draws: int,
    first_draw: int = 0,
    scale: float = 1.0,
) -> Value:
    """``scale`` times uniformly distributed matrices with orthonormal columns (rows, when wide).

    Shape (draws, rows, columns); an entry has variance scale^2 / max(rows, columns). QR of a Gaussian matrix
    with the signs of R's diagonal moved into Q (Mezzadri 2007).
    """
    tall, thin = max(rows, columns), min(rows, columns)
    normals = sample(
        "normal", (draws, tall * thin), seed=seed, tensor=tensor, first_draw=first_draw
    )
    q, r = np.linalg.qr(normals.reshape(draws, tall, thin).astype(np.float64))
    q *= np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :] * scale
    oriented = q if rows >= columns else q.transpose(0, 2, 1)
    return np.ascontiguousarray(oriented, np.float32)


def multiply(h: Value, matrices: Value, *, transpose: bool = False) -> Value:
    """W h (W^T h) at every place for stored matrices (draws, rows, columns)."""
    product: Value = np.matmul(h, matrices if transpose else matrices.transpose(0, 2, 1))
    return product


@reduction
def moments_of(x: Array) -> Any:
    """Mean, second and fourth moment of a flat buffer, in float64 by blocks of 4096."""
    first = second = fourth = 0.0
    for start in range(0, x.size, CELL):
        part = x[start : start + CELL]
        a = b = c = 0.0
        for i in range(part.size):
            value = np.float64(part[i])
            square = value * value
            a += value
            b += square
            c += square * square
        first += a
        second += b
        fourth += c
    return first / x.size, second / x.size, fourth / x.size


@kernel
def _moments(x: Array, out: Array, start: Number, stop: Number) -> None:
    for d in range(start, stop):
        out[d, 0], out[d, 1], out[d, 2] = moments_of(x[d])


def moments(x: Value) -> NDArray[np.float64]:
    """Mean, second and fourth moment over the places and channels of each draw: (draws, 3), float64."""
    x = np.ascontiguousarray(x, np.float32)
    out = np.empty((x.shape[0], 3))
    over_draws(_moments, x.shape[0], x.reshape(x.shape[0], -1), out)
    return out


def weight_gradient_moment(uses: list[tuple[Value, Value]]) -> NDArray[np.float64]:
    """Mean square entry of dL/dW, per draw, for a weight used several times.

    ``uses`` holds pairs (row side, column side), (draws, places, rows) and (draws, places, columns): dL/dW is
    the sum of their outer products over uses and places. Costs the smaller of the Gram matrices over places
    and the gradient itself.
    """
    left = np.concatenate([d for d, _ in uses], axis=1).astype(np.float64)
    right = np.concatenate([h for _, h in uses], axis=1).astype(np.float64)
    places, entries = left.shape[1], left.shape[2] * right.shape[2]
    if places * (left.shape[2] + right.shape[2]) <= entries:
        grams = np.matmul(left, left.transpose(0, 2, 1)) * np.matmul(
            right, right.transpose(0, 2, 1)
        )
        total: NDArray[np.float64] = grams.sum(axis=(1, 2))
    else:
        total = np.square(np.matmul(left.transpose(0, 2, 1), right)).sum(axis=(1, 2))
    return np.asarray(total / entries)


def _mean(x: Value, axis: int) -> Value:
    mean: NDArray[np.float64] = x.mean(axis=axis, dtype=np.float64)
    return mean.astype(np.float32)


def channel_mean(x: Value) -> Value:
    """Mean over channels, (draws, places, 1)."""
    return _mean(x, 2)[..., None]


def position_mean(x: Value, positions: int) -> Value:
    """Mean over the positions of each sample: (draws, samples, channels)."""
    parts = x.reshape(x.shape[0], -1, positions, x.shape[2])
    return _mean(parts, 2)


def sample_mean(x: Value, samples: int) -> Value:
    """Mean over samples, position by position: (draws, positions, channels)."""
    parts = x.reshape(x.shape[0], samples, -1, x.shape[2])
    return _mean(parts, 1)


def position_expand(x: Value, positions: int) -> Value:
    """Each place repeated ``positions`` times."""
    return np.repeat(x, positions, axis=1)


def gather(x: Value, index: NDArray[np.integer[Any]]) -> Value:
    """Places as taps: y[d, p, t channels + c] = x[d, index[p, t], c], zero where the index is negative.

    ``index`` has shape (places out, taps); a convolution is this followed by a contraction.
    """
    padded = np.concatenate([x, np.zeros((x.shape[0], 1, x.shape[2]), np.float32)], axis=1)
    taps = padded[:, np.where(index < 0, x.shape[1], index)]
    return np.ascontiguousarray(taps.reshape(x.shape[0], index.shape[0], -1))


def scatter(y: Value, index: NDArray[np.integer[Any]], places: int) -> Value:
    """Transpose of `gather`: what each tap brings is added at the place it came from."""
    channels = y.shape[2] // index.shape[1]
    out = np.zeros((y.shape[0], places + 1, channels), np.float32)
    parts = y.reshape(y.shape[0], *index.shape, channels)
    for tap in range(index.shape[1]):
        target = np.where(index[:, tap] < 0, places, index[:, tap])
        for place, part in zip(target, parts[:, :, tap].transpose(1, 0, 2), strict=True):
            out[:, place] += part
    return np.ascontiguousarray(out[:, :places])
