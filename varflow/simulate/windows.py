"""Windowed steps of a program on values (draws, samples x positions, channels): which kernel runs on what."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.errors import ShapeError, UnsupportedError
from varflow.program import Deal, Mix, Program, Weight, WindowMax, WindowMaxBackward
from varflow.simulate.jit import get_threads, over_draws
from varflow.simulate.kernels import RandomMatrix
from varflow.simulate.kernels_gradient import taps_gradient_moment
from varflow.simulate.kernels_narrow import narrow
from varflow.simulate.kernels_pool import dealt, mixed, window_max, window_max_backward
from varflow.simulate.kernels_window import (
    FEWEST,
    RandomTaps,
    Sizes,
    as_taps,
    forward,
    grouped,
    transposed,
)
from varflow.simulate.recycle import empty
from varflow.simulate.routes import Route, route, seen_from
from varflow.simulate.weight_laws import LAWS, row_laws
from varflow.window import Window

Value = NDArray[np.float32]
Table = NDArray[np.int64]

F = np.float32
NO_LAW = np.empty((1, 0, 2), np.float32)
MANY = 24
"""Places from which a plain matrix is multiplied in tiles too."""


def is_plain(w: Weight) -> bool:
    """Whether a weight is one matrix of independent entries (or an orthogonal one)."""
    return w.taps == 1 and w.groups == 1 and w.distribution not in LAWS


def taps_of(m: RandomMatrix, w: Weight, groups: int) -> RandomTaps:
    """The weight ``w`` of the sizes and entries of ``m``. Raises UnsupportedError for what has no law."""
    if w.distribution == "orthogonal":
        raise UnsupportedError(
            f"weight {w.name!r} is orthogonal, with {w.taps} taps in {groups} groups", w.name,
            "only one matrix is orthogonal", "taps and groups of 1, or another distribution",
        )  # fmt: skip
    law = w.distribution if w.distribution in LAWS else ""
    if law and m.keep < 1:
        raise UnsupportedError(f"weight {w.name!r} is {law} and sparse", w.name, instead="keep = 1")
    if law == "standardized" and w.taps * m.columns == 1:
        raise UnsupportedError(f"weight {w.name!r} is standardized with rows of one entry", w.name,
                               "one number has no standard deviation", "another distribution")  # fmt: skip
    return RandomTaps(m.rows, m.columns, m.tensor, m.std, m.distribution, m.keep, m.mask_tensor, w.taps, groups, law)


def convolve(
    x: Value, weight: RandomTaps, path: Route, *, seed: int, first_draw: int = 0, transpose: bool = False,
    laws: Value = NO_LAW,
) -> Value:  # fmt: skip
    """The sum over a route's taps of W_t x (or W_t^T x) for every draw: (draws, path.places, channels).

    ``laws`` holds a scale and a shift for the entries of each row, (draws, rows, 2), in place of ``std``.
    Raises ShapeError when channels or places do not fit.
    """
    x = np.ascontiguousarray(x, np.float32)
    sides = (weight.columns * weight.groups, weight.rows)
    inner, outer = sides[::-1] if transpose else sides
    if x.ndim != 3 or x.shape[1:] != (path.inputs, inner):
        raise ShapeError(f"a value of shape {x.shape} meets a weight that takes {path.inputs} x {inner}")
    y = empty((x.shape[0], path.places, outer))
    rest = (weight.sizes, F(weight.std), laws, weight.stream(seed, first_draw), *path.arrays)
    if weight.groups > 1 and outer < FEWEST * weight.groups:
        over_draws(grouped, x.shape[0], x, y, transpose, *rest)
    elif is_narrow(outer, weight, path):
        over_draws(narrow, x.shape[0], x, y, transpose, route(None, 1, path.inputs).arrays, *rest)
    else:
        parts = -(-get_threads() // len(x))
        over_draws(transposed if transpose else forward, len(x) * parts, x, y, parts, *rest)
    return y


def is_narrow(outer: int, weight: RandomTaps, path: Route) -> bool:
    """Whether taps and channels side by side fill lanes so much better that adding the taps up pays."""
    side_by_side = path.inputs * max(weight.taps * outer, 32)
    return weight.groups == 1 and outer <= 12 and 2 * side_by_side < 32 * path.pairs


def contract(
    x: Value, matrix: RandomMatrix | RandomTaps, window: Window | None, samples: int, transpose: bool,
    stored: dict[str, Value], name: str, place: dict[str, Any],
) -> Value:  # fmt: skip
    """A contraction over a window (none: at every place); ``stored`` keeps the laws of rows between uses."""
    weight = as_taps(matrix) if isinstance(matrix, RandomMatrix) else matrix
    laws = NO_LAW
    if weight.law:
        if name not in stored:
            stored[name] = row_laws(weight, draws=len(x), **place)
        laws = stored[name]
    path = route(window, samples, x.shape[1] // samples if window is None else 0, transpose)
    return convolve(x, weight, path, transpose=transpose, laws=laws, **place)


def expected_moment(
    x: Value, matrix: RandomMatrix | RandomTaps, window: Window | None, samples: int, transpose: bool
) -> NDArray[np.float64]:
    """Mean square entry of a contraction with independent entries of mean zero, averaged over them, for each draw:
    the variance of an entry times the energies of the places that each place sees."""
    energy = np.einsum("dpc,dpc->dp", x, x).reshape(len(x), samples, -1).sum(axis=1, dtype=np.float64)
    seen_by = np.ones(energy.shape[1]) if window is None else _readers(window, transpose)
    places = energy.shape[1] if window is None else len(seen_from(window, transpose)[0])
    groups = matrix.groups if isinstance(matrix, RandomTaps) else 1
    return np.asarray(matrix.std**2 * matrix.keep * (energy @ seen_by) / (samples * places * groups))


@lru_cache(maxsize=64)
def _readers(window: Window, transpose: bool) -> NDArray[np.float64]:
    """How many (place, tap) read each input place."""
    table, _ = seen_from(window, transpose)
    inputs = len(window.table()) if transpose else int(np.prod([int(n) for n in window.inputs]))
    return np.bincount(table[table >= 0], minlength=inputs).astype(np.float64)


def seen(x: Value, window: Window, samples: int, transpose: bool) -> Value:
    """The sum of the places that a window of one tap shows (of those that see a place, for the transpose)."""
    table, _ = seen_from(window, transpose)
    parts = x.reshape(len(x), samples, -1, x.shape[2])
    padded = np.concatenate([parts, np.zeros_like(parts[:, :, :1])], axis=2)
    return np.ascontiguousarray(padded[:, :, table].sum(axis=3)).reshape(len(x), -1, x.shape[2])


def moved(primitive: Mix | WindowMax | WindowMaxBackward | Deal, args: list[Value]) -> Value:
    """Mixing, maxima and dealing."""
    match primitive:
        case Mix() as mix:
            return mixed(args[0], mix)
        case WindowMax(window=window):
            return window_max(args[0], window)
        case WindowMaxBackward(forward=forward):
            return window_max_backward(args[0], args[1], forward.window)
        case Deal(count=count, inverse=inverse):
            return dealt(args[0], count, inverse)


def gradient_moment(
    program: Program, name: str, sizes: Sizes, values: dict[int, Value], samples: int
) -> NDArray[np.float64]:
    """Mean square entry of dL/dW for each draw, over all uses of a weight."""
    pairs = zip(program.weight_gradients[name], program.weight_windows[name], strict=True)
    uses = [
        (values[row], values[column], _table(window, samples, values[row].shape[1] // samples))
        for (row, column), window in pairs
    ]
    return taps_gradient_moment(uses, sizes)


@lru_cache(maxsize=64)
def _table(window: Window | None, samples: int, positions: int) -> Table:
    """For each place of a window's outputs the places its taps see, -1 outside the grid, over all samples."""
    if window is None:
        return np.arange(samples * positions)[:, None]
    table, inputs = window.table(), int(np.prod([int(n) for n in window.inputs]))
    rows = np.arange(samples)[:, None, None] * inputs + table
    return np.where(table < 0, -1, rows).reshape(-1, table.shape[1])
