"""Normalization (x - mean) / sqrt(variance + eps) and its backward pass, statistics in float64.

Both work on values seen as (draws, outer, reduced, inner): statistics run over the third axis.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.errors import InputError, ShapeError
from varflow.simulate.jit import Array, Number, inline, kernel, over_draws
from varflow.simulate.recycle import empty

Value = NDArray[np.float32]

F = np.float32


@inline
def normalized(x: Number, mean: Number, inverse: Number) -> Any:
    """One entry forward, float64 inside."""
    return F((np.float64(x) - mean) * inverse)


@inline
def pulled_back(
    x: Number, dy: Number, mean: Number, inverse: Number, mean_dy: Number, mean_ydy: Number
) -> Any:
    """One entry backward: (dy - mean(dy) - y mean(y dy)) / sigma."""
    y = (np.float64(x) - mean) * inverse
    return F((np.float64(dy) - mean_dy - y * mean_ydy) * inverse)


@kernel
def _statistics(
    x: Array, center: Number, eps: Number, mean: Array, inverse: Array, start: Number, stop: Number
) -> None:
    _, outer, reduced, inner = x.shape
    for d in range(start, stop):
        for o in range(outer):
            m, s = mean[d, o], inverse[d, o]
            m[:] = 0.0
            s[:] = 0.0
            if center:
                for r in range(reduced):
                    row = x[d, o, r]
                    for i in range(inner):
                        m[i] += row[i]
                for i in range(inner):
                    m[i] /= reduced
            for r in range(reduced):
                row = x[d, o, r]
                for i in range(inner):
                    deviation = row[i] - m[i]
                    s[i] += deviation * deviation
            for i in range(inner):
                s[i] = 1.0 / math.sqrt(s[i] / reduced + eps)


@kernel
def _forward(x: Array, mean: Array, inverse: Array, y: Array, start: Number, stop: Number) -> None:
    _, outer, reduced, inner = x.shape
    for d in range(start, stop):
        for o in range(outer):
            for r in range(reduced):
                for i in range(inner):
                    y[d, o, r, i] = normalized(x[d, o, r, i], mean[d, o, i], inverse[d, o, i])


@kernel
def _backward(
    x: Array,
    dy: Array,
    center: Number,
    mean: Array,
    inverse: Array,
    dx: Array,
    start: Number,
    stop: Number,
) -> None:
    _, outer, reduced, inner = x.shape
    a = np.empty(inner)
    b = np.empty(inner)
    for d in range(start, stop):
        for o in range(outer):
            a[:] = 0.0
            b[:] = 0.0
            for r in range(reduced):
                for i in range(inner):
                    slope = np.float64(dy[d, o, r, i])
                    a[i] += slope
                    b[i] += slope * (x[d, o, r, i] - mean[d, o, i]) * inverse[d, o, i]
            for i in range(inner):
                a[i] = a[i] / reduced if center else 0.0
                b[i] /= reduced
            for r in range(reduced):
                for i in range(inner):
                    dx[d, o, r, i] = pulled_back(
                        x[d, o, r, i], dy[d, o, r, i], mean[d, o, i], inverse[d, o, i], a[i], b[i]
                    )


def _folded(x: Value, axis: str, groups: int, positions: int) -> tuple[int, int, int, int]:
    draws, places, channels = x.shape
    if axis == "channel":
        if channels % groups:
            raise ShapeError(f"{channels} channels do not split into {groups} groups")
        return draws, places * groups, channels // groups, 1
    if axis == "sample":
        if places % positions:
            raise ShapeError(f"{places} places do not split into samples of {positions} positions")
        return draws, 1, places // positions, positions * channels
    if axis == "batch":
        return draws, 1, places, channels
    raise InputError(f"unknown axis {axis!r}", instead='"channel", "sample" or "batch"')


def _prepared(
    x: Value, axis: str, groups: int, positions: int, center: bool, eps: float
) -> tuple[Value, NDArray[np.float64], NDArray[np.float64]]:
    x = np.ascontiguousarray(x, np.float32)
    folded = x.reshape(_folded(x, axis, groups, positions))
    mean = np.empty((*folded.shape[:2], folded.shape[3]))
    inverse = np.empty_like(mean)
    over_draws(_statistics, x.shape[0], folded, center, float(eps), mean, inverse)
    return folded, mean, inverse


def standardize(
    x: Value,
    axis: str = "channel",
    *,
    groups: int = 1,
    positions: int = 1,
    center: bool = True,
    eps: float = 0.0,
) -> Value:
    """(x - mean) / sqrt(variance + eps) of values (draws, places, channels); x / sqrt(E x^2 + eps) without centring.

    Statistics run over "channel" (each place, in ``groups`` blocks), "sample" (each position and channel, over
    samples; places are samples major) or "batch" (each channel, over samples and positions).
    """
    folded, mean, inverse = _prepared(x, axis, groups, positions, center, eps)
    y = empty(folded.shape)
    over_draws(_forward, x.shape[0], folded, mean, inverse, y)
    return y.reshape(x.shape)


def standardize_backward(
    x: Value,
    dy: Value,
    axis: str = "channel",
    *,
    groups: int = 1,
    positions: int = 1,
    center: bool = True,
    eps: float = 0.0,
) -> Value:
    """The gradient of `standardize` at x, applied to dy."""
    if x.shape != dy.shape:
        raise ShapeError(f"a gradient of shape {dy.shape} meets a value of shape {x.shape}")
    folded, mean, inverse = _prepared(x, axis, groups, positions, center, eps)
    dx = empty(folded.shape)
    slopes = np.ascontiguousarray(dy, np.float32).reshape(folded.shape)
    over_draws(_backward, x.shape[0], folded, slopes, center, mean, inverse, dx)
    return dx.reshape(x.shape)
