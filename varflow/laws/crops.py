"""Large grids stood for by smaller ones.

What a moment between two places is depends on how far they are from each other, and from the nearest border, while
those are near; beyond it changes slowly over the image. A grid of many positions is therefore stood for by a smaller
one, its crop, on which operators work as on an image of that size. Along an axis the ends of a crop are those of the
grid, and what is further inside stands for more and more of it: two places of the grid are looked up at the same
distance from each other, where the crop is as far along; places far from each other at two that are far. Positions move
by multiples of the period of strides and tiles (pooling, transposed convolutions), and moments are interpolated between
them. Only averages over positions count how much of the grid every place of the crop stands for. Moments at one
position of sums over windows are those of every position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import lru_cache, reduce
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.laws.maxima import FAR, Missing
from varflow.laws.positions import (
    MAX_PLACES,
    MAX_SINGLE,
    Array,
    Average,
    Kernel,
    Mixing,
    Overall,
    completed,
)
from varflow.program import Mix, Program
from varflow.window import Uneven, Window

Grid: TypeAlias = tuple[int, ...]
Index: TypeAlias = npt.NDArray[np.int64]
PLACES, LEAST_SIDE = 1600, 12
"""Places that a crop has at least, and positions along an axis."""
FINE = 4097
"""Points of a table of positions."""
PERIODS = (32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
"""Positions after which strides and tiles repeat, the longest first."""
LEAST_WORK = 8
"""Positions along an axis that an operator's crop must keep on both of its grids."""


class Crops:
    """The crops of a program's large grids, told apart by their numbers of places."""

    def __init__(self, program: Program) -> None:
        grids = {tuple(int(n) for n in step.shape.positions) for step in program if step.shape.positions}
        grids |= {g for step in program for w in _windows(step.primitive) for g in _grids(w)}
        taken = {math.prod(g) for g in grids} | {1}
        self._crop: dict[Grid, Grid] = {}
        self._grid: dict[int, Grid] = {}
        self._links = {(*_grids(w), w.stride) for step in program for w in _windows(step.primitive)}
        for grid in sorted(grids, key=lambda g: (math.prod(g), -len(g), g)):
            if math.prod(grid) > MAX_PLACES and not any(math.prod(g) == math.prod(grid) for g in self._crop):
                crop = _crop(grid, self._period(grid), taken)
                taken.add(math.prod(crop))
                self._crop[grid], self._grid[math.prod(crop)] = crop, grid

    def _period(self, grid: Grid) -> Grid:
        """Along every axis the number of positions after which strides of the windows behind repeat."""
        found = [1] * len(grid)
        for inputs, outputs, stride in self._links:
            if inputs == grid and math.prod(outputs) < math.prod(grid):
                behind = self._period(outputs)
                found = [math.lcm(f, s * p) for f, s, p in zip(found, stride, behind, strict=True)]
        return tuple(min(f, PERIODS[0]) for f in found)

    def apply(self, operator: Any, arrays: list[Array]) -> Array:
        """What an operator makes of arrays on crops (and on the small grids themselves)."""
        if isinstance(operator, Overall | Average):
            return self._average(operator, self.alike(arrays))
        windows = _windows(operator)
        torus = getattr(operator, "torus", False)
        if any(isinstance(w, Uneven) and self._large(w) for w in windows):
            return self._uneven(operator, arrays)
        if not torus and all(math.prod(g) <= MAX_PLACES for w in windows for g in _grids(w)):
            return np.asarray(operator.apply(*self.alike(arrays)))
        if isinstance(operator, Kernel) and len(arrays) == 1 and not operator.between and _few(windows):
            return operator.apply(self._brought(arrays[0], {g: g for g in _grids(operator.window)}))
        working = None if torus else self._working(windows)
        if working is None:
            return np.asarray(operator.apply(*(self._mean(a) for a in arrays)))
        sizes = {grid: size for w, v in working.items() for grid, size in zip(_grids(w), _grids(v), strict=True)}
        found = np.asarray(_on(operator, working).apply(*(self._brought(a, sizes) for a in arrays)))
        if hasattr(operator, "read"):
            return found
        back = _moved(found, {math.prod(s): (g, s, self._crop.get(g, g)) for g, s in sizes.items()})
        return np.where(back > FAR / 2, FAR, 0.0) if isinstance(operator, Missing) else back

    def places(self, array: Array) -> Array:
        """A moment at one position (P, 1), at every position of the grid."""
        grid = self._grid.get(len(array))
        return array if grid is None else _looked_up(single(grid, self._crop[grid], grid), array)

    def alike(self, arrays: Sequence[Any]) -> list[Any]:
        """Moments that stand together: those at every position of a grid on its crop, where others are."""
        crops = {n: self._grid[n] for a in arrays for n in np.shape(a) if n in self._grid}
        known = {math.prod(g): (g, g, self._crop[g]) for g in crops.values()}
        return [_moved(a, known) if known and np.ndim(a) == 2 else a for a in arrays]

    def _mean(self, array: Array) -> Array:
        """The mean of a moment over the places of a large grid."""
        if not any(n in self._grid for n in array.shape):
            return np.full((1, 1), array.mean()) if max(array.shape) > MAX_PLACES else array
        if min(array.shape) == 1:
            return np.full((1, 1), self.places(array.reshape(-1, 1)).mean())
        count = np.full((1, 1), len(array))
        return self._average(Overall(), [self._average(Average(), [np.diag(array)[:, None], array, count])])

    def _average(self, operator: Overall | Average, arrays: list[Array]) -> Array:
        large = [self._grid[n] for a in arrays for n in a.shape if n in self._grid]
        if not large:
            return operator.apply(*arrays)
        grid, crop = large[0], self._crop[large[0]]
        if isinstance(operator, Overall):
            return np.full((1, 1), self.places(arrays[0].reshape(-1, 1)).mean())
        full = completed(arrays[1], arrays[0], math.prod(crop))
        return _averaged(full, grid, crop)

    @staticmethod
    def _large(w: Window) -> bool:
        return any(math.prod(g) > MAX_PLACES for g in _grids(w))

    def _has_crops(self, w: Window) -> bool:
        return all(math.prod(g) <= MAX_PLACES or g in self._crop for g in _grids(w))

    def _uneven(self, operator: Any, arrays: list[Array]) -> Array:
        """Means over uneven windows, of all of a grid, and what they send back; on average over positions where
        something else is read beside them."""
        mix = operator.left if isinstance(operator, Mixing) and operator.left == operator.right else None
        if mix is None or len(set(mix.coefficients)) > 1 or not self._has_crops(mix.window):
            return np.asarray(operator.apply(*(self._mean(a) for a in arrays)))
        have, want = _grids(mix.window)[:: -1 if mix.transpose else 1]
        here, there = self._crop.get(have, have), self._crop.get(want, want)
        same, other = self.alike(arrays)
        full = completed(other, same, math.prod(here))
        steps = [_mixed_axis(mix, i, n, c) for i, (n, c) in enumerate(zip(have, here, strict=True))]
        found = _balanced(full, steps, (here, want, there))
        return found if operator.between else np.diag(found)[:, None].copy()

    def _working(self, windows: list[Window]) -> dict[Window, Window] | None:
        """The windows on smaller grids that an operator works on; None where they leave too little of a grid."""
        if any(math.prod(g) > MAX_PLACES and g not in self._crop for w in windows for g in _grids(w)):
            return None
        found: dict[Window, Window] = {}
        for w in windows:
            grid = _grids(w)[0]
            inputs = tuple(map(_side, grid, self._crop.get(grid, grid), _strides(windows, w)))
            found[w] = replace(w, inputs=tuple(sp.Integer(n) for n in inputs))
            kept = [(int(a), int(b)) for a, b in zip((*w.inputs, *w.outputs), (*found[w].inputs, *found[w].outputs),
                                                     strict=True)]
            if any(b < min(a, LEAST_WORK) for a, b in kept):
                return None
        return found

    def _brought(self, array: Array, sizes: dict[Grid, Grid]) -> Array:
        """An array on the grids that an operator works on."""
        known = {math.prod(h): (g, h, s) for g, s in sizes.items() for h in (g, self._crop.get(g, g))}
        return _moved(array, known)


def _few(windows: list[Window]) -> bool:
    """Whether moments at one position are told apart at all of them."""
    return all(math.prod(g) <= MAX_SINGLE for w in windows for g in _grids(w))


def _windows(thing: Any) -> list[Window]:
    """The windows in an operator or a primitive."""
    values = [getattr(thing, f.name) for f in fields(thing)] if hasattr(thing, "__dataclass_fields__") else []
    return list(dict.fromkeys(v.window if isinstance(v, Mix) else v for v in values if isinstance(v, Window | Mix)))


def _on(operator: Any, working: dict[Window, Window]) -> Any:
    """The operator with its windows on other grids."""
    changed: dict[str, Any] = {}
    for f in fields(operator):
        v = getattr(operator, f.name)
        if isinstance(v, Window):
            changed[f.name] = working[v]
        elif isinstance(v, Mix):
            changed[f.name] = replace(v, window=working[v.window])
        elif f.name == "read":
            changed[f.name] = _grids(operator.window)[1]
    return replace(operator, **changed)


def _grids(w: Window) -> tuple[Grid, Grid]:
    return tuple(int(n) for n in w.inputs), tuple(int(n) for n in w.outputs)


def _strides(windows: list[Window], w: Window) -> Grid:
    """What the sides of a window's crop must differ from those of its grid by multiples of."""
    same = [v for v in windows if v.inputs == w.inputs]
    return tuple(math.lcm(*(v.stride[i] for v in same)) for i in range(len(w.inputs)))


def _side(n: int, most: int, stride: int) -> int:
    """The longest side not above ``most`` that differs from ``n`` by a multiple of the stride."""
    return n if n <= most else n - -(-(n - most) // stride) * stride


def _crop(grid: Grid, period: Grid, taken: set[int]) -> Grid:
    """Sides that differ from those of the grid by multiples of the period (or of a part of it), with a number of places
    that is not taken."""
    while True:
        sides = _shrunk(grid, period)
        longer = [tuple(m + p * (i == k) for k, (m, p) in enumerate(zip(sides, period, strict=True)))
                  for i in range(len(sides))]
        for found in (sides, *longer):
            if math.prod(found) not in taken and (math.prod(found) <= MAX_PLACES or max(period) == 1):
                return found
        period = tuple(max(p // 2, 1) for p in period) if max(period) > 1 else tuple(p + 1 for p in period)


def _shrunk(grid: Grid, period: Grid) -> Grid:
    """The longest side shortened again and again, while places are too many or enough are left."""
    sides = list(grid)
    while True:
        axes = [i for i, (m, p) in enumerate(zip(sides, period, strict=True)) if m - p >= LEAST_SIDE]
        if not axes:
            return tuple(sides)
        i = max(axes, key=lambda k: sides[k])
        left = math.prod(sides) // sides[i] * (sides[i] - period[i])
        if math.prod(sides) <= MAX_PLACES and left < PLACES:
            return tuple(sides)
        sides[i] -= period[i]


# -- from grid to grid -------------------------------------------------------------------------------


def _moved(array: Array, known: dict[int, tuple[Grid, Grid, Grid]]) -> Array:
    """An array whose axes have so many places on other crops: (grid, have, want) by the number of places."""
    rows, columns = (known.get(n) for n in array.shape)
    if rows and columns and rows == columns:
        return array if rows[1] == rows[2] else _pairs(array, *rows)
    if rows and rows[1] != rows[2]:
        array = _looked_up(single(*rows), array)
    if columns and columns[1] != columns[2]:
        array = _looked_up(single(*columns), array.T).T
    return array


def _looked_up(matrix: Any, array: Array) -> Array:
    """Interpolated between what there is, and nowhere beyond."""
    return np.asarray(np.clip(matrix @ array, array.min(axis=0), array.max(axis=0)))


@lru_cache(maxsize=64)
def single(grid: Grid, have: Grid, want: Grid) -> Any:
    """The (sparse) matrix from moments at places of one crop of a grid to those of another."""
    from scipy.sparse import csr_array, kron

    axes = [_axis(n, a, b)[:: b + 1, :: a + 1] for n, a, b in zip(grid, have, want, strict=True)]
    return reduce(lambda x, y: csr_array(kron(x, y)), axes)


def _pairs(array: Array, grid: Grid, have: Grid, want: Grid) -> Array:
    """Moments between two places on another crop of a grid."""
    found = _by_axis(array, have)
    for i, (n, a, b) in enumerate(zip(grid, have, want, strict=True)):
        found = _along(_axis(n, a, b), found, i)
    return _by_place(found, want)


def _by_place(found: Array, grid: Grid) -> Array:
    """Undoes :func:`_by_axis`."""
    n = len(grid)
    order = [*range(0, 2 * n, 2), *range(1, 2 * n, 2)]
    found = found.reshape([b for b in grid for _ in range(2)]).transpose(order)
    return np.ascontiguousarray(found.reshape(math.prod(grid), -1))


def _balanced(full: Array, steps: list[Any], grids: tuple[Grid, Grid, Grid]) -> Array:
    """Moments between two places from those on one crop to those on another of a grid, by matrices along the axes to
    all of the grid; with the mean that the grid has over places at each distance, while that is short."""
    here, want, there = grids
    start = found = _by_axis(full, here)
    for i, (step, n, c) in enumerate(zip(steps, want, there, strict=True)):
        found = _along(_axis(n, n, c) @ step, found, i)
    if want == there:
        return _by_place(found, there)
    true, own = _means(start, found, steps, want, there)
    lacking, at = true - own, tuple(m // 2 for m in own.shape)
    lacking[at] = 0.0
    for i, c in enumerate(there):
        lacking = _along(_of_distances(c), lacking, i)
    found = _by_place(found + lacking, there)
    np.fill_diagonal(found, np.diag(found) * (true[at] / own[at] if own[at] > 0 else 1.0))
    return found


def _means(start: Array, found: Array, steps: list[Any], grid: Grid, crop: Grid) -> tuple[Array, Array]:
    """Means over pairs of places at each distance: by the steps to all of a grid, and of what is found on its crop."""
    for i, (step, n, c) in enumerate(zip(steps, grid, crop, strict=True)):
        mean = _at_distances(n, c)
        start, found = _along(mean @ step, start, i), _along(mean @ _axis(n, c, n), found, i)
    return start, found


@lru_cache(maxsize=64)
def _mixed_axis(mix: Mix, axis: int, have: int, crop: int) -> Any:
    """Along one axis, from moments between two positions of a crop to those of means over uneven windows, or back."""
    from scipy.sparse import csr_array, kron

    table = mix.window.axes()[axis]
    inside = table >= 0
    values = np.broadcast_to(1 / inside.sum(axis=1, keepdims=True), table.shape)[inside]
    shape = (len(table), int(mix.window.inputs[axis]))
    matrix = csr_array((values, (np.nonzero(inside)[0], table[inside])), shape=shape)
    one = matrix.T.tocsr() if mix.transpose else matrix
    both = csr_array(kron(one, one))
    return both if have == crop else both @ _axis(have, crop, have)


@lru_cache(maxsize=64)
def _at_distances(n: int, crop: int) -> Any:
    """The means over pairs of positions of a grid at each signed distance that a crop keeps."""
    from scipy.sparse import csr_array

    most = _nearest(crop)
    rows = [np.arange(max(0, -d), n - max(0, d)) * (n + 1) + d for d in range(-most, most + 1)]
    sizes = [len(r) for r in rows]
    places = (np.repeat(np.arange(len(rows)), sizes), np.concatenate(rows))
    return csr_array((1 / np.repeat(sizes, sizes), places), shape=(len(rows), n * n))


@lru_cache(maxsize=64)
def _of_distances(crop: int) -> Any:
    """The place of every pair of positions of a crop among the distances; none for those farther apart."""
    from scipy.sparse import csr_array

    most = _nearest(crop)
    apart = np.subtract.outer(np.arange(crop), np.arange(crop)).T.ravel() + most
    rows = np.flatnonzero((apart >= 0) & (apart <= 2 * most))
    return csr_array((np.ones(len(rows)), (rows, apart[rows])), shape=(crop * crop, 2 * most + 1))


def _nearest(crop: int) -> int:
    """The largest distance that a crop looks up as it is."""
    return 2 * crop // 5


def _by_axis(array: Array, grid: Grid) -> Array:
    """Moments between two places with the two positions along an axis joined, axis by axis."""
    n = len(grid)
    order = [k for i in range(n) for k in (i, n + i)]
    return array.reshape(*grid, *grid).transpose(order).reshape([m * m for m in grid])


def _along(matrix: Any, array: Array, axis: int) -> Array:
    """A matrix times one axis of an array."""
    front = np.moveaxis(array, axis, 0)
    found = np.asarray(matrix @ front.reshape(len(front), -1))
    return np.moveaxis(found.reshape(-1, *front.shape[1:]), 0, axis)


@lru_cache(maxsize=64)
def _axis(size: int, have: int, want: int) -> Any:
    """Along one axis, the (sparse) matrix from moments between two positions of a crop of ``have`` to those of a crop
    of ``want``, (want want, have have)."""
    from scipy.sparse import csr_array

    low, high = (x.ravel() for x in np.triu_indices(want))
    terms = list(_terms(low, high, size, have, want))
    weights = np.concatenate([w for w, _, _ in terms])
    rows, mirrored = np.tile(low * want + high, len(terms)), np.tile(high * want + low, len(terms))
    left, right = (np.concatenate([t[k] for t in terms]) for k in (1, 2))
    off = rows != mirrored
    values = np.concatenate([weights, weights[off]])
    places = (np.concatenate([rows, mirrored[off]]),
              np.concatenate([left * have + right, (right * have + left)[off]]))
    found = csr_array((values, places), shape=(want * want, have * have))
    found.eliminate_zeros()
    return found


Term: TypeAlias = tuple[Array, Index, Index]


def _terms(low: Index, high: Index, size: int, have: int, want: int) -> Iterator[Term]:
    """Weights and positions of the pairs that stand for pairs."""
    if have == want:
        yield np.ones(len(low)), low, high
        return
    kept, apart, least = _kept(min(have, want)), high - low, _nearest(min(have, want))
    period = next(p for p in PERIODS if (want - have) % p == 0 and p <= max(min(have, want) // 8, 1))
    near = apart <= least
    middle = (low + high) / 2
    outside = np.where(low <= kept, 0.0, np.where(high >= want - 1 - kept, want - have, np.nan))
    shift = np.where(np.isnan(outside), middle - _along_image(middle, size, have, want), outside)
    for weight, moved in _smooth(shift, period, high - have + 1, low):
        yield weight * near, np.where(near, low - moved, 0), np.where(near, high - moved, 0)
    left, right = _apart(low, high, (size, have, want), kept, least)
    for a, one in _steps(low - left, period, low - have + 1, low):
        for b, two in _steps(high - right, period, high - have + 1, high):
            yield a * b * ~near, np.where(near, 0, low - one), np.where(near, 0, high - two)


def _along_image(x: Array, size: int, have: int, want: int) -> Array:
    """Where on one crop is what is at ``x`` on another."""
    return np.asarray(np.interp(np.interp(x, np.linspace(0, want - 1, FINE), _stretched(size, want)),
                                _stretched(size, have), np.linspace(0, have - 1, FINE)))


@lru_cache(maxsize=64)
def _stretched(size: int, crop: int) -> Array:
    """Where on a grid are points from end to end of its crop: the outer parts as they are, the further inside the more
    stretched."""
    half, kept = (crop - 1) / 2, _kept(crop)
    inward = half - np.abs(np.linspace(0, crop - 1, FINE) - half)
    moved = inward + (size - crop) / 2 * (np.maximum(inward - kept, 0) / (half - kept)) ** 2
    return np.where(np.arange(FINE) < FINE / 2, moved, size - 1 - moved)


def _kept(crop: int) -> int:
    """Positions at either end of a crop that are those of the grid."""
    return crop // 8


def _apart(low: Index, high: Index, sizes: tuple[int, int, int], kept: int, least: int) -> tuple[Array, Array]:
    """Where two positions far from each other are along the other crop, ``least`` from each other there too."""
    _, have, want = sizes
    left, right = (_along_image(np.asarray(x, dtype=np.float64), *sizes) for x in (low, high))
    lacking = np.maximum(least - (right - left), 0)
    room = np.maximum(left - np.minimum(low, kept), 0)
    space = np.maximum(have - 1 - np.minimum(want - 1 - high, kept) - right, 0)
    back = np.clip(lacking / 2, np.minimum(lacking - space, room), room)
    return left - back, right + lacking - back


def _steps(shift: Array, period: int, least: Index, most: Index) -> Iterator[tuple[Array, Index]]:
    """Two multiples of the period around a shift, with the weights of a linear interpolation; those beyond the limits
    have none."""
    before = np.floor(shift / period).astype(np.int64) * period
    after = before + period
    weight = (shift - before) / period
    weight = np.where(after > most, 0.0, np.where(before < least, 1.0, weight))
    yield 1 - weight, np.clip(before, least, most)
    yield weight, np.clip(after, least, most)


def _smooth(shift: Array, period: int, least: Index, most: Index) -> Iterator[tuple[Array, Index]]:
    """Four multiples of the period around a shift, with the weights of a cubic interpolation; two near the limits."""
    first = (np.floor(shift / period).astype(np.int64) - 1) * period
    inside = (first >= least) & (first + 3 * period <= most) & (shift != first + period)
    t = (shift - first) / period
    for k in range(4):
        others = [i for i in range(4) if i != k]
        weight = np.prod([(t - i) / (k - i) for i in others], axis=0)
        yield np.where(inside, weight, 0.0), np.clip(first + k * period, least, most)
    for weight, moved in _steps(shift, period, least, most):
        yield np.where(inside, 0.0, weight), moved


def _averaged(full: Array, grid: Grid, crop: Grid) -> Array:
    """The mean over the second place, of all of the grid, for every first place of the crop."""
    found = _by_axis(full, crop)
    for i, (n, c) in enumerate(zip(grid, crop, strict=True)):
        found = _along(_counts(n, c), found, i)
    return np.asarray(found.reshape(-1, 1))


@lru_cache(maxsize=64)
def _counts(n: int, crop: int) -> Any:
    """(crop, crop crop): the mean over the second of n positions, beside every position of the crop."""
    from scipy.sparse import csr_array, kron

    mean = kron(csr_array(np.eye(n)), csr_array(np.full((1, n), 1 / n))) @ _axis(n, crop, n)
    return csr_array(_axis(n, n, crop)[:: crop + 1, :: n + 1] @ mean)


def shares(grid: Grid, crop: Grid) -> Array:
    """How much of a grid every place of its crop stands for."""
    found = single(grid, crop, grid).sum(axis=0)
    return np.asarray(found / found.sum())
