"""Windows over positions in a population: taps as channel blocks, resampling, maxima."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from varflow.laws.population_cells import (
    Array,
    Value,
    blockwise,
    concatenated,
    take,
)
from varflow.laws.positions import mix_matrix
from varflow.program import Mix
from varflow.window import Window


def gathered(x: Array, places: npt.NDArray[np.int64], outside: float = 0.0) -> Array:
    """The positions ``places`` of an array; ``outside`` where a place is -1."""
    found = x[:, :, np.maximum(places, 0)]
    return np.where(places >= 0, found, outside)


def scattered(y: Array, places: npt.NDArray[np.int64], count: int) -> Array:
    """Transpose of :func:`gathered`."""
    result = np.zeros((count, *y.shape[:2]))
    inside = places >= 0
    np.add.at(result, places[inside], np.moveaxis(y[:, :, inside], 2, 0))
    return np.moveaxis(result, 0, 2)


def unfolded(x: Value, window: Window) -> Value:
    """The taps of a window as blocks of channels, one after another."""
    return concatenated([blockwise(partial(gathered, places=places), [x]) for places in window.table().T])


def folded(y: Value, window: Window) -> Value:
    """Transpose of :func:`unfolded`."""
    columns = y.channels // window.taps
    parts = [take(y, t * columns, columns) for t in range(window.taps)]
    table, count = window.table(), int(np.prod([int(n) for n in window.inputs]))

    def total(*taps: Array) -> Array:
        return np.asarray(sum(scattered(a, table[:, t], count) for t, a in enumerate(taps)))

    return blockwise(total, parts)


def depthwise(x: Value, window: Window, transpose: bool, weights: Sequence[Sequence[Array]]) -> Value:
    """Every channel with numbers of its own, ``weights`` tap by tap (coordinates x 1 x 1), once for each output."""
    table, count = window.table(), int(np.prod([int(n) for n in window.inputs]))

    def forward(a: Array, taps: Sequence[Array]) -> Array:
        return np.asarray(sum(w * gathered(a, table[:, t]) for t, w in enumerate(taps)))

    def backward(*parts: Array) -> Array:
        return np.asarray(sum(scattered(w * a, table[:, t], count)
                              for a, taps in zip(parts, weights, strict=True) for t, w in enumerate(taps)))

    if transpose:
        size = x.channels // len(weights)
        return blockwise(backward, [take(x, k * size, size) for k in range(len(weights))])
    copies = [blockwise(partial(forward, taps=taps), [x]) for taps in weights]
    return concatenated(copies) if len(copies) > 1 else copies[0]


def resampled(x: Value, mix: Mix) -> Value:
    """Positions mixed with fixed numbers."""
    matrix = mix_matrix(mix)

    def one(a: Array) -> Array:
        return np.asarray((matrix @ a.reshape(-1, a.shape[2]).T).T.reshape(*a.shape[:2], -1))

    return blockwise(one, [x])


def _stacked(a: Array, window: Window) -> Array:
    return np.stack([gathered(a, places, -np.inf) for places in window.table().T])


def largest(x: Value, window: Window) -> Value:
    """Maxima over a window."""
    return blockwise(lambda a: _stacked(a, window).max(axis=0), [x])


def winners(x: Value, d: Value, window: Window) -> Value:
    """Gradients sent to the first largest entry of each window."""
    table, count = window.table(), int(np.prod([int(n) for n in window.inputs]))

    def one(a: Array, g: Array) -> Array:
        won = _stacked(a, window).argmax(axis=0)
        parts = (scattered(np.where(won == t, g, 0.0), table[:, t], count) for t in range(window.taps))
        return np.asarray(sum(parts))

    return blockwise(one, [x, d])


def centred(x: Value) -> Value:
    """A value less its mean over channels, place by place: what a matrix whose rows sum to zero sees."""
    level = x.mean(np.asarray)
    return blockwise(lambda a: a - level, [x])
