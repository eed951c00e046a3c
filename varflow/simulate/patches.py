"""Collapsed products over windows: a convolution is a matrix times its patches, one matrix for each group of channels.

A patch is what a place sees through the taps, tap by tap, zero outside the grid; the transpose makes patches and adds
up, at every position, what lies there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.simulate.kernels import RandomMatrix
from varflow.simulate.kernels_collapse import Revealed, collapse
from varflow.simulate.kernels_haar import RevealedHaar, collapse_haar
from varflow.simulate.kernels_window import RandomTaps
from varflow.simulate.plan import Matrix, Orthogonal, Revealing
from varflow.simulate.routes import seen_from
from varflow.window import Window

Value = NDArray[np.float32]
Known = Revealed | RevealedHaar


def parts_of(matrix: RandomMatrix | RandomTaps) -> tuple[RandomMatrix, int]:
    """The matrix of one group, with its taps side by side, and the number of groups."""
    if isinstance(matrix, RandomMatrix):
        return matrix, 1
    rows, columns, taps, groups = matrix.sizes
    return RandomMatrix(rows, taps * columns, matrix.tensor, matrix.std), groups


def patches(x: Value, window: Window, samples: int) -> Value:
    """(draws, samples x positions, channels) -> (draws, samples x places, taps, channels)."""
    table, _ = seen_from(window, False)
    parts = x.reshape(len(x), samples, -1, x.shape[2])
    padded = np.concatenate([parts, np.zeros_like(parts[:, :, :1])], axis=2)
    return padded[:, :, table].reshape(len(x), -1, table.shape[1], x.shape[2])


def folded(x: Value, window: Window, samples: int) -> Value:
    """The transpose of `patches`."""
    table, taps = seen_from(window, True)
    parts = x.reshape(len(x), samples, -1, *x.shape[2:])
    out = np.zeros((len(x), samples, len(table), x.shape[3]), np.float32)
    for places, tap in zip(table.T, taps, strict=True):
        there = places >= 0
        out[:, :, there] += parts[:, :, places[there], tap]
    return out.reshape(len(x), -1, x.shape[3])


def nothing_revealed(matrix: Matrix, draws: int, uses: Revealing) -> Known:
    """What is known of the matrices of ``draws`` draws before the first of their uses."""
    if isinstance(matrix, Orthogonal):
        return RevealedHaar(draws, sum(uses.columns), max(matrix.rows, matrix.columns))
    return Revealed(draws * uses.groups, uses.columns)


def collapsed(
    x: Value, matrix: Matrix, window: Window | None, samples: int, known: Known, tensor: int, transpose: bool,
    place: dict[str, Any],
) -> Value:  # fmt: skip
    """A contraction in the law that what is ``known`` leaves (one entry of it for each draw and group)."""
    taps = matrix.taps if isinstance(matrix, RandomTaps) else 1
    x = x[:, :, None] if transpose or window is None else patches(x, window, samples)
    if isinstance(known, RevealedHaar):
        assert isinstance(matrix, Orthogonal)
        sizes = (matrix.rows, matrix.columns, matrix.scale)
        y = collapse_haar(x[:, :, 0], *sizes, known, tensor, transpose=transpose, **place)[:, :, None]
    else:
        assert not isinstance(matrix, Orthogonal)
        part, groups = parts_of(matrix)
        y = collapse(_dealt(x, groups), part, known, tensor, transpose=transpose, parts=groups, **place)
        y = _gathered(y, groups, taps if transpose else 1)
    return folded(y, window, samples) if transpose and window is not None else y[:, :, 0]


def _dealt(x: Value, groups: int) -> Value:
    """(draws, places, taps, groups x channels) -> (draws x groups, places, taps x channels)."""
    draws, places, taps, channels = x.shape
    parts = x.reshape(draws, places, taps, groups, channels // groups).transpose(0, 3, 1, 2, 4)
    return np.ascontiguousarray(parts).reshape(draws * groups, places, -1)


def _gathered(y: Value, groups: int, taps: int) -> Value:
    """(draws x groups, places, taps x channels) -> (draws, places, taps, groups x channels)."""
    parts = y.reshape(-1, groups, y.shape[1], taps, y.shape[2] // taps).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(parts).reshape(len(parts), y.shape[1], taps, -1)
