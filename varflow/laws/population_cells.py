"""Values of a population: channel blocks with an identity, each an array of coordinates.

A value of C channels is a partition of its channels into cells; a cell holds one array of N coordinates (x
samples x positions) that are i.i.d. draws of its channels' law. Coordinate i of two cells of the same region
is the same channel, so correlations survive. Moving a block by ``d`` channels rolls its coordinates by an
amount additive in ``d``: slice and embed cancel, and channels that were different stay independent.

A region is an intersection of intervals, each in the frame of a *word*: what maps a channel here to a
channel elsewhere, a chain of shifts and random permutations. Intervals in different frames are independent,
so the share of a region is a product. The empty word is the value's own frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
"""Coordinates x samples x positions."""
Places: TypeAlias = npt.NDArray[np.float64]
"""A matrix over positions, or a stack of them."""

Shuffle: TypeAlias = tuple[str, bool, int]
"""A permutation: its name, whether inverse, and the number of channels it acts on."""
Word: TypeAlias = tuple[int | Shuffle, ...]
"""Shifts and permutations applied to a channel from left to right."""
Interval: TypeAlias = tuple[int, int]
Region: TypeAlias = tuple[tuple[Word, Interval], ...]
"""Constraints sorted by word; the first is the value's own frame."""

STRIDE = 40_503
"""Coordinates rolled per channel moved."""
MAX_PAIRS = 64


def join(left: Word, right: Word) -> Word:
    """``left`` then ``right``, neighbours that cancel removed."""
    word = list(left)
    for token in right:
        last = word.pop() if word else 0
        word += _pair(last, token)
    return tuple(word)


def _pair(a: int | Shuffle, b: int | Shuffle) -> list[int | Shuffle]:
    if isinstance(a, int) and isinstance(b, int):
        return [a + b] if a + b else []
    if not isinstance(a, int) and not isinstance(b, int) and a[0] == b[0] and a[2] == b[2] and a[1] != b[1]:
        return []
    return [token for token in (a, b) if token != 0]


def _normal(word: Word, interval: Interval) -> tuple[Word, Interval]:
    """A last shift moved into the interval."""
    if word and isinstance(word[-1], int):
        return word[:-1], (interval[0] - word[-1], interval[1] - word[-1])
    return word, interval


def region_of(constraints: Iterable[tuple[Word, Interval]]) -> Region | None:
    """The intersection of constraints, or None where it is empty."""
    table: dict[Word, Interval] = {}
    for raw, bounds in constraints:
        word, (low, high) = _normal(raw, bounds)
        old = table.get(word, (low, high))
        table[word] = max(low, old[0]), min(high, old[1])
        if table[word][0] >= table[word][1]:
            return None
    return tuple(sorted(table.items(), key=lambda item: (len(item[0]), repr(item[0]))))


def channels_in(region: Region) -> float:
    """Expected number of channels in a region."""
    share = 1.0
    for word, (low, high) in region:
        last = word[-1] if word else 0
        share *= (high - low) / (1 if isinstance(last, int) else last[2])
    return share


@dataclass(frozen=True)
class Cell:
    """A region of channels and its coordinates."""

    region: Region
    array: Array

    @property
    def size(self) -> float:
        """Expected number of channels."""
        return channels_in(self.region)


@dataclass(frozen=True)
class Value:
    """Cells that partition ``channels``."""

    channels: int
    cells: tuple[Cell, ...]

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def mean(self, array: Callable[[Array], Array]) -> Array:
        """Mean over channels of a function of coordinates, per sample and position."""
        parts = [cell.size / self.channels * array(cell.array).mean(axis=0) for cell in self]
        return np.asarray(sum(parts), dtype=np.float64)


def whole(channels: int, array: Array) -> Value:
    """A value of one cell."""
    return Value(channels, (Cell((((), (0, channels)),), array),))


def refine(values: Sequence[Value]) -> Iterator[tuple[Region, list[Array]]]:
    """Common cells of values of equally many channels."""
    found: list[tuple[Region, list[Array]]] = [(c.region, [c.array]) for c in values[0]]
    for value in values[1:]:
        found = [
            (region, [*arrays, cell.array])
            for old, arrays in found
            for cell in value
            if (region := old if cell.region == old else region_of((*old, *cell.region))) is not None
        ]
    yield from found


def blockwise(function: Callable[..., Array], values: Sequence[Value]) -> Value:
    """A function of several values, coordinate by coordinate."""
    return Value(values[0].channels, tuple(Cell(r, function(*arrays)) for r, arrays in refine(values)))


def product(a: Places, b: Places) -> Places:
    """a^T b of two tall matrices; a few columns are not worth the threads of a matrix product."""
    few = a.shape[1] * b.shape[1] <= MAX_PAIRS
    return np.asarray(np.einsum("in,jn->ij", a.T, b.T) if few else a.T @ b, dtype=np.float64)


def array_gram(a: Array, b: Array) -> Places:
    """Mean over coordinates of products, positions of ``a`` x positions of ``b``.

    Samples are exchangeable: a first axis holds one matrix for the sum over samples (times 1/sqrt(samples)),
    and, where there are several, one for the deviations of samples from their mean.
    """
    count, samples = a.shape[:2]
    if samples == 1:
        return np.asarray(product(a[:, 0], b[:, 0])[None] / count)
    overall = product(a.sum(axis=1), b.sum(axis=1)) / samples
    every = product(a.reshape(count * samples, -1), b.reshape(count * samples, -1))
    return np.asarray(np.stack([overall, (every - overall) / (samples - 1)]) / count)


def array_mix(a: Array, mixing: Places) -> Array:
    """Positions mixed by the matrices of :func:`array_gram`: one for the mean of samples, one for deviations."""
    if len(mixing) == 1:
        return _times(a, mixing[0])
    return _times(a, mixing[1]) + _times(a.mean(axis=1, keepdims=True), mixing[0] - mixing[1])


def _times(a: Array, matrix: Places) -> Array:
    if matrix.size == 1:
        return a * matrix
    return np.asarray((a.reshape(-1, len(matrix)) @ matrix).reshape(*a.shape[:2], -1))


def gram(a: Value, b: Value) -> Places:
    """Mean over channels of products: see :func:`array_gram`."""
    weighed = (channels_in(region) / a.channels * array_gram(x, y) for region, (x, y) in refine([a, b]))
    return np.asarray(sum(weighed), dtype=np.float64)


def combine(terms: Sequence[tuple[Value, Places]]) -> Value:
    """Sum of values, each with its positions mixed."""
    def mixed(*arrays: Array) -> Array:
        return np.asarray(sum(array_mix(x, m) for x, (_, m) in zip(arrays, terms, strict=True)))

    return blockwise(mixed, [value for value, _ in terms])


def _rolled(array: Array, by: int) -> Array:
    shift = -by * STRIDE % len(array)
    return np.roll(array, shift, axis=0) if shift else array


def moved(cell: Cell, by: int) -> Cell | None:
    """A cell whose channel c becomes c + by."""
    region = region_of((join((-by,) if by else (), word), bounds) for word, bounds in cell.region)
    return None if region is None else Cell(region, _rolled(cell.array, by))


def take(value: Value, start: int, size: int) -> Value:
    """Channels ``start`` to ``start + size``."""
    inside = ((((), (start, start + size))),)
    regions = ((c, region_of((*c.region, *inside))) for c in value)
    parts = (moved(Cell(r, c.array), -start) for c, r in regions if r is not None)
    return Value(size, tuple(p for p in parts if p is not None))


def concatenated(values: Sequence[Value]) -> Value:
    """Values one after another."""
    starts = np.cumsum([0, *(v.channels for v in values)]).tolist()
    cells = (moved(c, start) for v, (start, _) in zip(values, pairwise(starts), strict=True) for c in v)
    return Value(starts[-1], tuple(c for c in cells if c is not None))


def embedded(value: Value, start: int, total: int) -> Value:
    """The value from ``start`` on among zeros."""
    zero = np.broadcast_to(0.0, next(iter(value)).array.shape)
    parts = [value]
    if start:
        parts.insert(0, whole(start, zero))
    if total - start - value.channels:
        parts.append(whole(total - start - value.channels, zero))
    return concatenated(parts)


def permuted(value: Value, name: str, inverse: bool, order: npt.NDArray[np.int64]) -> Value:
    """Channel c of the result is channel pi(c) of the value (``inverse``: pi^-1); ``order`` is the
    permutation of coordinates that stands for pi (or its inverse)."""
    token: Shuffle = (name, inverse, value.channels)
    full = (0, value.channels)
    cells = []
    for cell in value:
        rest = ((join((token,), word), bounds) for word, bounds in cell.region)
        vacuous = [(w, b) for w, b in rest if not (w == (token,) and b == full)]
        region = region_of([((), full), *vacuous])
        if region is not None:
            cells.append(Cell(region, cell.array[order]))
    return Value(value.channels, tuple(cells))


def flattened(value: Value) -> Value:
    """Positions as blocks of channels, one after another."""
    positions = next(iter(value)).array.shape[2]
    at = [Value(value.channels, tuple(Cell(c.region, c.array[:, :, p : p + 1]) for c in value))
          for p in range(positions)]
    return concatenated(at)


def unflattened(value: Value, channels: int, positions: int) -> Value:
    """Blocks of channels as positions."""
    at = [take(value, p * channels, channels) for p in range(positions)]
    return blockwise(lambda *arrays: np.concatenate(arrays, axis=2), at)
