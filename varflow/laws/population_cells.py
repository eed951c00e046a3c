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

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
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


@dataclass(eq=False)
class Coordinates:
    """An array that cells share, rolled or not, and its averages."""

    array: Array

    @property
    def constant(self) -> bool:
        """Whether all coordinates are one number, held once."""
        return self.array.strides[0] == 0

    @cached_property
    def zero(self) -> bool:
        """Whether all coordinates are zero, held once."""
        return self.constant and not self.array[:1].any()

    @cached_property
    def moments(self) -> tuple[Array, Array]:
        """Mean and second moment over coordinates, samples x positions."""
        a = self.array[:1] if self.constant else self.array
        return a.mean(axis=0), np.einsum("isp,isp->sp", a, a) / len(a)


@dataclass(frozen=True, eq=False)
class Cell:
    """A region of channels and its coordinates: those of ``base`` rolled by ``shift``."""

    region: Region
    base: Coordinates
    shift: int = 0

    @property
    def size(self) -> float:
        """Expected number of channels."""
        return channels_in(self.region)

    @property
    def array(self) -> Array:
        """The coordinates, rolled."""
        return self.from_shift(0)

    def from_shift(self, shift: int) -> Array:
        """What rolled by ``shift`` gives the coordinates."""
        by = (self.shift - shift) % len(self.base.array)
        return np.roll(self.base.array, by, axis=0) if by and not self.base.constant else self.base.array


@dataclass(frozen=True, eq=False)
class Value:
    """Cells that partition ``channels``."""

    channels: int
    cells: tuple[Cell, ...]

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def mean(self, array: Callable[[Array], Array]) -> Array:
        """Mean over channels of a function of coordinates, per sample and position."""
        parts = [cell.size / self.channels * array(cell.base.array).mean(axis=0) for cell in self]
        return np.asarray(sum(parts), dtype=np.float64)

    def moments(self) -> tuple[Array, Array]:
        """Mean and second moment over channels, samples x positions."""
        shares = [cell.size / self.channels for cell in self]
        found = [cell.base.moments for cell in self]
        mean, second = (np.asarray(sum(w * f[k] for w, f in zip(shares, found, strict=True))) for k in (0, 1))
        return mean, second

    @cached_property
    def _sorted(self) -> tuple[list[Cell], list[int], list[int]]:
        """Cells by where they begin in the value's own frame, these places, and the furthest end so far."""
        cells = sorted(self.cells, key=lambda c: c.region[0][1])
        lows, highs = ([c.region[0][1][k] for c in cells] for k in (0, 1))
        return cells, lows, list(accumulate(highs, max))

    def near(self, region: Region) -> list[Cell]:
        """Cells whose interval in the value's own frame meets that of a region."""
        cells, lows, ends = self._sorted
        low, high = region[0][1]
        return cells[bisect_right(ends, low) : bisect_left(lows, high)]


def whole(channels: int, array: Array) -> Value:
    """A value of one cell."""
    return Value(channels, (Cell((((), (0, channels)),), Coordinates(array)),))


def refine(values: Sequence[Value]) -> Iterator[tuple[Region, list[Cell]]]:
    """Common cells of values of equally many channels."""
    found: list[tuple[Region, list[Cell]]] = [(c.region, [c]) for c in values[0]]
    for value in values[1:]:
        found = [
            (region, [*cells, cell])
            for old, cells in found
            for cell in value.near(old)
            if (region := old if cell.region == old else region_of((*old, *cell.region))) is not None
        ]
    yield from found


def _together(function: Callable[..., Array], region: Region, cells: Sequence[Cell]) -> Cell:
    """A function of cells, rolled as the first that is not constant."""
    shift = next((c.shift for c in cells if not c.base.constant), 0)
    return Cell(region, Coordinates(function(*(c.from_shift(shift) for c in cells))), shift)


def blockwise(function: Callable[..., Array], values: Sequence[Value]) -> Value:
    """A function of several values, coordinate by coordinate."""
    return Value(values[0].channels, tuple(_together(function, r, cells) for r, cells in refine(values)))


def added(values: Sequence[Value]) -> Value:
    """The sum of values; where only one is not zero, its own coordinates."""
    def one(region: Region, cells: Sequence[Cell]) -> Cell:
        kept = [c for c in cells if not c.base.zero] or cells[:1]
        if len(kept) == 1:
            return Cell(region, kept[0].base, kept[0].shift)
        return _together(lambda *arrays: np.asarray(sum(arrays[1:], arrays[0])), region, kept)

    return Value(values[0].channels, tuple(one(r, cells) for r, cells in refine(values)))


def product(a: Places, b: Places) -> Places:
    """a^T b of two tall matrices; a few columns are not worth the threads of a matrix product."""
    if a.shape[1] == b.shape[1] == 1:
        return np.full((1, 1), np.einsum("i,i->", a[:, 0], b[:, 0]))
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
    weighed = (channels_in(region) / a.channels * _cell_gram(x, y) for region, (x, y) in refine([a, b]))
    return np.asarray(sum(weighed), dtype=np.float64)


def _cell_gram(x: Cell, y: Cell) -> Places:
    """:func:`array_gram` of two cells, neither of them rolled for it."""
    a, b = x.base.array, y.base.array
    by = 0 if x.base.constant or y.base.constant else (x.shift - y.shift) % len(a)
    if not by:
        return array_gram(a, b)
    rest = len(a) - by
    return (rest * array_gram(a[:rest], b[by:]) + by * array_gram(a[rest:], b[:by])) / len(a)


def combine(terms: Sequence[tuple[Value, Places]]) -> Value:
    """Sum of values, each with its positions mixed."""
    def mixed(*arrays: Array) -> Array:
        return np.asarray(sum(array_mix(x, m) for x, (_, m) in zip(arrays, terms, strict=True)))

    return blockwise(mixed, [value for value, _ in terms])


def moved(cell: Cell, by: int) -> Cell | None:
    """A cell whose channel c becomes c + by."""
    region = region_of((join((-by,) if by else (), word), bounds) for word, bounds in cell.region)
    if region is None or cell.base.constant:
        return None if region is None else Cell(region, cell.base)
    return Cell(region, cell.base, (cell.shift - by * STRIDE) % len(cell.base.array))


def take(value: Value, start: int, size: int) -> Value:
    """Channels ``start`` to ``start + size``."""
    inside = ((((), (start, start + size))),)
    regions = ((c, region_of((*c.region, *inside))) for c in value)
    parts = (moved(Cell(r, c.base, c.shift), -start) for c, r in regions if r is not None)
    return Value(size, tuple(p for p in parts if p is not None))


def concatenated(values: Sequence[Value]) -> Value:
    """Values one after another."""
    starts = np.cumsum([0, *(v.channels for v in values)]).tolist()
    cells = (moved(c, start) for v, (start, _) in zip(values, pairwise(starts), strict=True) for c in v)
    return Value(starts[-1], tuple(c for c in cells if c is not None))


def embedded(value: Value, start: int, total: int) -> Value:
    """The value from ``start`` on among zeros."""
    zero = np.broadcast_to(0.0, next(iter(value)).base.array.shape)
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
            cells.append(Cell(region, Coordinates(cell.array[order])))
    return Value(value.channels, tuple(cells))


def dealt(value: Value, count: int, inverse: bool) -> Value | None:
    """Channels dealt into heaps (or gathered from them), each of which has its share of every cell, in order; a
    coordinate stands for a channel of any heap, and when they are gathered for one of a heap in turn. None where cells
    do not divide, or heaps differ."""
    cells = sorted(value, key=lambda c: c.region[0][1])
    if any(len(c.region) != 1 or c.region[0][0] != () for c in cells):
        return None
    heap, bounds = value.channels // count, [c.region[0][1] for c in cells]
    if not inverse:
        if any(n % count for pair in bounds for n in pair):
            return None
        parts = [(k * heap, c, low // count, high // count) for k in range(count)
                 for c, (low, high) in zip(cells, bounds, strict=True)]
        return Value(value.channels, tuple(Cell((((), (start + low, start + high)),), c.base, c.shift)
                                           for start, c, low, high in parts))
    period, rest = divmod(len(cells), count)
    turned = [(low % heap, (high - 1) % heap + 1) for low, high in bounds]
    if rest or turned != turned[:period] * count:
        return None
    size = len(cells[0].base.array)
    turn = np.arange(size) % (size // 2) % count
    gathered = [np.stack([c.array for c in cells[b::period]])[turn, np.arange(size)] for b in range(period)]
    return Value(value.channels, tuple(Cell((((), (low * count, high * count)),), Coordinates(array))
                                       for array, (low, high) in zip(gathered, turned, strict=False)))


def flattened(value: Value) -> Value:
    """Positions as blocks of channels, one after another."""
    positions = next(iter(value)).base.array.shape[2]
    at = [Value(value.channels, tuple(Cell(c.region, Coordinates(c.base.array[:, :, p : p + 1]), c.shift)
                                      for c in value)) for p in range(positions)]
    return concatenated(at)


def unflattened(value: Value, channels: int, positions: int) -> Value:
    """Blocks of channels as positions."""
    at = [take(value, p * channels, channels) for p in range(positions)]
    return blockwise(lambda *arrays: np.concatenate(arrays, axis=2), at)
