"""Kernels over positions that have no weights: fixed mixing, maxima over windows, statistics of groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.program import Mix
from varflow.simulate.jit import Array, Number, inline, kernel, over_draws
from varflow.simulate.kernels_standardize import normalized, pulled_back
from varflow.simulate.recycle import empty
from varflow.window import Window

Value = NDArray[np.float32]
Index = NDArray[np.int64]

F = np.float32


@dataclass(frozen=True, eq=False)
class Sparse:
    """A matrix over positions, row by row: entries ``starts[p]`` to ``starts[p + 1]`` of ``columns`` and ``values``."""

    starts: Index
    columns: Index
    values: Value
    inputs: int


@lru_cache(maxsize=64)
def mixing(mix: Mix) -> Sparse:
    """The matrix of a mixing (its transpose where it is one)."""
    table = mix.window.table()
    factors = np.array([float(a) for a in mix.coefficients])
    entries = np.where(table >= 0, factors, 0.0)
    if mix.normalized:
        inside = entries.sum(axis=1, keepdims=True)
        entries = entries / np.where(inside == 0, 1.0, inside)
    outputs, inputs = len(table), int(np.prod([int(n) for n in mix.window.inputs]))
    row, tap = np.nonzero(entries)
    column, value = table[row, tap], entries[row, tap]
    if mix.transpose:
        row, column, outputs, inputs = column, row, inputs, outputs
    order = np.argsort(row, kind="stable")
    starts = np.searchsorted(row[order], np.arange(outputs + 1))
    return Sparse(starts, column[order], value[order].astype(np.float32), inputs)


@kernel
def _mix(
    x: Array, y: Array, starts: Array, columns: Array, values: Array, inputs: Number, start: Number, stop: Number
) -> None:
    outputs = starts.size - 1
    total = np.empty(x.shape[2])
    for d in range(start, stop):
        for s in range(x.shape[1] // inputs):
            for p in range(outputs):
                total[:] = 0.0
                for k in range(starts[p], starts[p + 1]):
                    row, factor = x[d, s * inputs + columns[k]], np.float64(values[k])
                    for c in range(row.size):
                        total[c] += factor * row[c]
                into = y[d, s * outputs + p]
                for c in range(into.size):
                    into[c] = F(total[c])


def mixed(x: Value, mix: Mix) -> Value:
    """Positions of every sample mixed with fixed numbers: (draws, samples x outputs, channels)."""
    x, matrix = np.ascontiguousarray(x, np.float32), mixing(mix)
    samples = x.shape[1] // matrix.inputs
    y = empty((x.shape[0], samples * (len(matrix.starts) - 1), x.shape[2]))
    over_draws(_mix, x.shape[0], x, y, matrix.starts, matrix.columns, matrix.values, matrix.inputs)
    return y


@inline
def wins(candidate: Number, best: Number) -> Any:
    """Whether a later entry takes the place of the largest so far; what is not a number stays visible."""
    return candidate > best or candidate != candidate


@kernel
def _maximum(x: Array, y: Array, place: Array, table: Array, inputs: Number, start: Number, stop: Number) -> None:
    outputs, taps = table.shape
    for d in range(start, stop):
        for s in range(x.shape[1] // inputs):
            for p in range(outputs):
                into, where = y[d, s * outputs + p], place[d, s * outputs + p]
                into[:] = F(-np.inf)
                where[:] = -1
                for t in range(taps):
                    if table[p, t] >= 0:
                        row = x[d, s * inputs + table[p, t]]
                        for c in range(row.size):
                            if wins(row[c], into[c]) or where[c] < 0:
                                into[c] = row[c]
                                where[c] = s * inputs + table[p, t]


@kernel
def _returned(place: Array, dy: Array, dx: Array, start: Number, stop: Number) -> None:
    for d in range(start, stop):
        dx[d] = F(0.0)
        for p in range(place.shape[1]):
            for c in range(place.shape[2]):
                if place[d, p, c] >= 0:
                    dx[d, place[d, p, c], c] += dy[d, p, c]


def _maxima(x: Value, window: Window) -> tuple[Value, NDArray[np.int32]]:
    table, inputs = window.table(), int(np.prod([int(n) for n in window.inputs]))
    y = empty((x.shape[0], x.shape[1] // inputs * len(table), x.shape[2]))
    place = empty(y.shape, np.int32)
    over_draws(_maximum, x.shape[0], x, y, place, table, inputs)
    return y, place


def window_max(x: Value, window: Window) -> Value:
    """The largest entry of every window, channel by channel."""
    return _maxima(np.ascontiguousarray(x, np.float32), window)[0]


def window_max_backward(x: Value, dy: Value, window: Window) -> Value:
    """dy brought to the first position of each window's maximum at x."""
    x = np.ascontiguousarray(x, np.float32)
    dx = empty(x.shape)
    over_draws(_returned, x.shape[0], _maxima(x, window)[1], np.ascontiguousarray(dy, np.float32), dx)
    return dx


def dealt(x: Value, count: int, inverse: bool = False) -> Value:
    """Channel i at (i mod count) channels/count + i // count, or back."""
    parts = x.reshape(*x.shape[:2], count if inverse else x.shape[2] // count, -1)
    return np.ascontiguousarray(parts.swapaxes(2, 3)).reshape(x.shape)


@kernel
def _group_statistics(
    x: Array, groups: Number, center: Number, eps: Number, mean: Array, inverse: Array, start: Number, stop: Number
) -> None:
    _, samples, positions, channels = x.shape
    size = channels // groups
    total = np.empty(channels)
    for d in range(start, stop):
        for s in range(samples):
            m = mean[d, s]
            total[:] = 0.0
            if center:
                for p in range(positions):
                    row = x[d, s, p]
                    for c in range(channels):
                        total[c] += row[c]
            for g in range(groups):
                m[g * size : (g + 1) * size] = total[g * size : (g + 1) * size].sum() / (positions * size)
            total[:] = 0.0
            for p in range(positions):
                row = x[d, s, p]
                for c in range(channels):
                    deviation = row[c] - m[c]
                    total[c] += deviation * deviation
            for g in range(groups):
                square = total[g * size : (g + 1) * size].sum() / (positions * size)
                inverse[d, s, g * size : (g + 1) * size] = 1.0 / math.sqrt(square + eps)


@kernel
def _group_forward(x: Array, mean: Array, inverse: Array, y: Array, start: Number, stop: Number) -> None:
    _, samples, positions, channels = x.shape
    for d in range(start, stop):
        for s in range(samples):
            m, i = mean[d, s], inverse[d, s]
            for p in range(positions):
                for c in range(channels):
                    y[d, s, p, c] = normalized(x[d, s, p, c], m[c], i[c])


@kernel
def _group_backward(
    x: Array, dy: Array, groups: Number, center: Number, mean: Array, inverse: Array, dx: Array, start: Number,
    stop: Number,
) -> None:  # fmt: skip
    _, samples, positions, channels = x.shape
    size = channels // groups
    a, b = np.empty(channels), np.empty(channels)
    for d in range(start, stop):
        for s in range(samples):
            m, i = mean[d, s], inverse[d, s]
            a[:] = 0.0
            b[:] = 0.0
            for p in range(positions):
                for c in range(channels):
                    slope = np.float64(dy[d, s, p, c])
                    a[c] += slope
                    b[c] += slope * (x[d, s, p, c] - m[c]) * i[c]
            for g in range(groups):
                first, last = g * size, (g + 1) * size
                a[first:last] = a[first:last].sum() / (positions * size) if center else 0.0
                b[first:last] = b[first:last].sum() / (positions * size)
            for p in range(positions):
                for c in range(channels):
                    dx[d, s, p, c] = pulled_back(x[d, s, p, c], dy[d, s, p, c], m[c], i[c], a[c], b[c])


def _by_sample(x: Value, samples: int) -> Value:
    return np.ascontiguousarray(x, np.float32).reshape(x.shape[0], samples, -1, x.shape[2])


def _statistics(x: Value, groups: int, center: bool, eps: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean = np.empty((x.shape[0], x.shape[1], x.shape[3]))
    inverse = np.empty_like(mean)
    over_draws(_group_statistics, x.shape[0], x, groups, center, float(eps), mean, inverse)
    return mean, inverse


def group_standardize(x: Value, samples: int, *, groups: int = 1, center: bool = True, eps: float = 0.0) -> Value:
    """(x - mean) / sqrt(variance + eps), statistics over a block of channels at all positions of a sample."""
    parts = _by_sample(x, samples)
    y = empty(parts.shape)
    over_draws(_group_forward, x.shape[0], parts, *_statistics(parts, groups, center, eps), y)
    return y.reshape(x.shape)


def group_standardize_backward(
    x: Value, dy: Value, samples: int, *, groups: int = 1, center: bool = True, eps: float = 0.0
) -> Value:
    """The gradient of `group_standardize` at x, applied to dy."""
    parts = _by_sample(x, samples)
    dx = empty(parts.shape)
    statistics = _statistics(parts, groups, center, eps)
    over_draws(_group_backward, x.shape[0], parts, _by_sample(dy, samples), groups, center, *statistics, dx)
    return dx.reshape(x.shape)
