"""Expectations over depthwise convolutions by a sample of whole images: weights, and Gaussian sources at all places.

A sample's points come in groups of ``members`` that share their weights, as samples of a batch do; each group stands
beside its mirror images (weights, sources and both of the other sign). Where a grid is large or has no numbers, a torus
of some windows stands for it: places far from borders, alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import sympy as sp

from varflow.laws.blocks import coefficient
from varflow.laws.draws import (
    MIRRORS,
    Arrays,
    Pairs,
    Shape,
    Source,
    Weights,
    by_root,
    clear,
    inverse_square,
    jointly,
    matrix,
    normal,
    quasi,
    random_signs,
    related,
    root,
    weight_lists,
)
from varflow.laws.numeric import vectorized
from varflow.laws.positions import Array, window_matrices
from varflow.symbols import arg
from varflow.window import Window

ENTRIES, MANY_ENTRIES = 2**22, 2**21
"""Points times places of a sample; of one that tells samples of a batch apart."""
MOST_POINTS, LEAST_POINTS = 2**16, 2**10
MEMBERS, LEAST_GROUPS = 8, 2**10
MOST_PAIRED = 144
ALIKE = 2**14
"""Entries over which what a norm takes off a channel is averaged, where samples have something in common."""


@dataclass(frozen=True)
class Masked:
    """A field of zeros and ones; ``keep`` is the place of their probability among the operator's arguments."""

    grid: Shape
    keep: int


@dataclass(frozen=True)
class Function:
    """An expression of earlier fields and of coefficients (by their place among the operator's arguments)."""

    expr: sp.Expr
    args: tuple[int, ...]
    coefficients: tuple[int, ...]


@dataclass(frozen=True)
class Taps:
    """sum_t w_t h[p + t] (its transpose), w the ``weight``-th list of weights."""

    of: int
    weight: int
    window: Window
    transpose: bool


@dataclass(frozen=True)
class Standard:
    """A step of taps less its mean, over its standard deviation, both given its weights and what samples have in
    common; ``scale`` and ``mean`` are the places of the covariances of what its taps read, and of its mean, among the
    operator's arguments."""

    of: int
    scale: int
    mean: int
    eps: float


@dataclass(frozen=True)
class Reciprocal:
    """1 over that standard deviation."""

    of: int
    scale: int
    mean: int
    eps: float


Step = Source | Masked | Function | Taps | Standard | Reciprocal


@dataclass(frozen=True)
class FieldSample:
    """E of a product of fields at one place, or of one at a place (``here``) and one at another (``position``), of
    another sample (``sample``), or both.

    Its arguments are the numbers of the steps, then for every two sources (row by row from the diagonal) their
    covariances at one place and between two, then between two samples where ``members`` share their weights.
    ``torus``: places far from borders stand for all. ``untied``: no gradient returns by the weights, and the mean
    square of the one step that is :class:`Reciprocal` is a factor of the result.
    """

    steps: tuple[Step, ...]
    weights: tuple[Weights, ...]
    here: tuple[int, ...]
    there: tuple[int, ...]
    numbers: int
    torus: bool
    position: bool = False
    sample: bool = False
    members: int = 1
    untied: bool = False

    def apply(self, *given: Array) -> Array:
        """(P, 1), or (P, P') between two places; numbers, one for each of the parameters' values, on a torus."""
        if not self.torus:
            return self._expected(given)
        whole = {s.scale for s in self.steps if isinstance(s, Standard | Reciprocal)}
        given = tuple(np.full((1, 1), g.mean()) if g.shape[0] > 1 and i not in whole else g
                      for i, g in enumerate(given))
        if whole:
            return self._expected(given)
        shape = np.broadcast_shapes(*(g.shape for g in given))
        columns = [np.broadcast_to(g, shape).ravel() for g in given]
        return np.array([float(self._expected(tuple(np.full((1, 1), x) for x in row))[0, 0])
                         for row in zip(*columns, strict=True)]).reshape(shape)

    def _expected(self, given: tuple[Array, ...]) -> Array:
        sample = _sampled(self.steps, self.weights, self.numbers, self.torus, self.members, Arrays(given))
        left = sample.product(self.here)
        right = sample.product(self.there) if self.there else None
        if self.torus and right is not None and self.position:
            right = _far(right, _grid_of(self.steps))
        found = sample.mean_of(left, right, self.position and not self.torus, self.sample)
        found = found * self._size(sample, given) if self.untied else found
        return np.full((1, 1), found.mean()) if self.torus else found

    def _size(self, sample: Sample, given: tuple[Array, ...]) -> float:
        """The mean of 1/s^2 over that of the sample, whose tail is heavy."""
        (step,) = (s for s in self.steps if isinstance(s, Reciprocal))
        taps = self.steps[step.of]
        assert isinstance(taps, Taps)
        w = self.weights[taps.weight]
        if w.distribution != "normal":
            return 1.0
        means = [inverse_square(c * float(given[w.variance].mean()), step.eps) for c in sample.scales[step.of]]
        return float(np.mean(means) / sample.raw[step.of])


@dataclass(frozen=True)
class Sample:
    """Fields, members x groups x places; of steps of taps that are normalized the covariances of what the taps read,
    and the mean of 1/s^2 as it stands in the sample."""

    fields: list[Array]
    members: int
    scales: dict[int, Array]
    raw: dict[int, float]

    def product(self, which: tuple[int, ...]) -> Array:
        """The product of fields."""
        return np.asarray(np.prod([self.fields[i] for i in which], axis=0)) if which else np.ones((self.members, 1, 1))

    def mean_of(self, left: Array, right: Array | None, between: bool, samples: bool) -> Array:
        """E of a field, of two at one place (P, 1), or of two ``between`` places (P, P'), of different ``samples``."""
        if right is None:
            return np.asarray(left.mean(axis=(0, 1))[:, None])
        points = np.broadcast_shapes(left.shape[:2], right.shape[:2], (self.members, 1))
        left, right = (np.broadcast_to(x, (*points, x.shape[-1])) for x in (left, right))
        one = partial(_paired, left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1]))
        if not samples:
            return one(between)
        means = _paired(left.mean(axis=0), right.mean(axis=0), True)
        found = (self.members * means - one(True)) / (self.members - 1)
        found = clear((found + found.T) / 2) if left.shape[-1] == right.shape[-1] else found
        return found if between else np.diag(found)[:, None].copy()


def _paired(left: Array, right: Array, between: bool) -> Array:
    """Means over points (first axis)."""
    return np.asarray(left.T @ right / len(left) if between else (left * right).mean(axis=0)[:, None])


def _far(right: Array, grid: Shape) -> Array:
    """A field on a torus, half of it further."""
    image = right.reshape(*right.shape[:2], *grid)
    return np.roll(image, [n // 2 for n in grid], axis=tuple(range(2, image.ndim))).reshape(right.shape)


def _grid_of(steps: Sequence[Step]) -> Shape:
    """The grid of the last step that has one: results stand on it."""
    for step in reversed(steps):
        if isinstance(step, Taps):
            w = step.window
            return tuple(int(n) for n in (w.inputs if step.transpose else w.outputs))
    raise AssertionError("a recipe without a depthwise convolution")


def _counted(steps: tuple[Step, ...], members: int) -> tuple[int, int]:
    """Members and groups of a sample."""
    places = max([int(np.prod(s.grid)) for s in steps if isinstance(s, Source | Masked)], default=1)
    standard = any(isinstance(s, Standard | Reciprocal) for s in steps)
    entries, most = (MANY_ENTRIES, 8 * MOST_POINTS) if standard else (ENTRIES, MOST_POINTS)
    points = int(2 ** np.floor(np.log2(np.clip(entries // places, LEAST_POINTS, most))))
    members = members if members == 1 else int(np.clip(points // LEAST_GROUPS, 2, members))
    return members, points // members


@lru_cache(maxsize=2)
def _sampled(steps: tuple[Step, ...], weights: tuple[Weights, ...], numbers: int, torus: bool, members: int,
             given: Arrays) -> Sample:
    """Every step's field (few samples are kept: moments of one value are asked for together)."""
    return _Making(steps, weights, numbers, members, given.arrays).sample()


class _Making:
    """The fields of a sample as they are made."""

    def __init__(self, steps: tuple[Step, ...], weights: tuple[Weights, ...], numbers: int, members: int,
                 arrays: tuple[Array, ...]) -> None:
        self.steps, self.arrays = steps, arrays
        self.telling = members > 1
        self.members, self.groups = _counted(steps, members)
        self.rng = np.random.default_rng(len(steps))
        sources = [s for s in steps if isinstance(s, Source)]
        self.alike = _alike(steps, self.members, self.groups // len(MIRRORS))
        self.drawn = iter(self._sources(sources, arrays[numbers:]))
        self.lists = weight_lists(weights, [float(np.asarray(arrays[w.variance]).mean()) for w in weights], self.groups)
        self.fields: list[Array] = []
        self.shared = False
        self.known: dict[int, tuple[Array, Array, Array | None]] = {}
        self.raw: dict[int, float] = {}

    def sample(self) -> Sample:
        for step in self.steps:
            self.fields.append(self._made(step))
        return Sample(self.fields, self.members, {k: known[1] for k, known in self.known.items()}, self.raw)

    def _made(self, step: Step) -> Array:
        match step:
            case Source():
                found, shared = next(self.drawn)
                self.shared |= shared
                return found
            case Masked(grid=grid, keep=keep):
                level = np.broadcast_to(self.arrays[keep], (int(np.prod(grid)), 1)).T
                return (self.rng.random((self.members, self.groups, level.shape[1])) < level).astype(np.float64)
            case Taps(of=of, weight=k, window=window, transpose=transpose):
                return _tapped(self.fields[of], self.lists[k], window, transpose)
            case Standard():
                return self._standard(step)
            case Reciprocal():
                self.raw[step.of] = float((1 / self._variance(step, True)).mean())
                return np.asarray(self._variance(step) ** -0.5)
            case Function():
                return _evaluated(step, self.fields, self.arrays)

    def _variance(self, step: Standard | Reciprocal, plain: bool = False) -> Array:
        """(1, groups, 1): w^T C w, C the covariances of what two taps read. Unless ``plain``, more by the variance e of
        its relative error, as two halves of its sample show it: 1 over it would be 1 + e too large on average."""
        w, _, scale, halves = self._statistics(step)
        found = np.maximum(_squared(w, scale), 1e-300)
        found = found if plain or halves is None else found * (1 + (_squared(w, halves) / found) ** 2)
        return np.asarray(found.reshape(1, -1, 1) + step.eps)

    def _standard(self, step: Standard) -> Array:
        w, level, _, _ = self._statistics(step)
        mean = np.einsum("tug,ut->ug", w, level).reshape(1, -1, 1)
        found = (self.fields[step.of] - mean) / np.sqrt(self._variance(step))
        return np.asarray(found / np.sqrt((found**2).mean())) if step.eps == 0 else np.asarray(found)

    def _statistics(self, step: Standard | Reciprocal) -> tuple[Array, Array, Array, Array | None]:
        """Weights (taps x kinds x groups of a kind), and of every kind the means (kinds x taps) and the covariances
        (kinds x taps x taps) of what taps read: given what samples have in common, or of all; and half the difference
        of the covariances of two halves."""
        taps = self.steps[step.of]
        assert isinstance(taps, Taps)
        if step.of not in self.known:
            reads = reading(taps.window)
            mean = np.broadcast_to(self.arrays[step.mean], (reads.shape[1], 1))[:, 0]
            given = (reads @ mean)[None], self.arrays[step.scale][None], None
            self.known[step.of] = self._measured(taps) if self.shared else given
        level, scale, halves = self.known[step.of]
        return self.lists[taps.weight].reshape(len(level[0]), len(level), -1), level, scale, halves

    def _measured(self, taps: Taps) -> tuple[Array, Array, Array]:
        """Means and covariances of what taps read, over the groups that have the same in common."""
        h = self.fields[taps.of]
        kinds, places = self.groups // self.alike, h.shape[-1]
        if places <= MOST_PAIRED:
            own = h.reshape(len(h), kinds, self.alike, places).transpose(1, 0, 2, 3).reshape(kinds, -1, places)
            level = own.mean(axis=1) @ reading(taps.window).T
            squares = [together(taps.window, _square(x)) for x in np.split(own, 2, axis=1)]
        else:
            rows = np.ascontiguousarray(h.reshape(-1, places).T)
            found = np.stack([(m @ rows).reshape(-1, len(h), kinds, self.alike)
                              for m in window_matrices(taps.window, taps.transpose)])
            read = found.transpose(3, 2, 1, 4, 0).reshape(kinds, -1, len(found))
            level, squares = read.mean(axis=1), [_square(x) for x in np.split(read, 2, axis=1)]
        scale = (squares[0] + squares[1]) / 2 - level[:, :, None] * level[:, None, :]
        return level, scale, (squares[0] - squares[1]) / 2

    # -- sources ---------------------------------------------------------------------------------------------------

    def _sources(self, sources: list[Source], entries: tuple[Array, ...]) -> list[tuple[Array, bool]]:
        """Fields of the given covariances, and whether samples have something in common; grids are independent of each
        other, and so are gradients and values."""
        found: list[tuple[Array, bool]] = [(np.empty(0), False)] * len(sources)
        n, each = len(sources), 4 if self.telling else 2
        index = {pair: k for k, pair in enumerate((i, j) for i in range(n) for j in range(i, n))}
        for mine in related(sources, entries, index, each):
            pairs = {(i, j): entries[each * (k := index[i, j]) : each * k + each] for i in mine for j in mine if i <= j}
            places = int(np.prod(sources[mine[0]].grid))
            fields, shared = self._family(mine, pairs, places, sources[mine[0]].signs)
            for i, x in zip(mine, fields, strict=True):
                found[i] = x, shared
        return found

    def _family(self, mine: list[int], pairs: Pairs, places: int,
                signs: bool) -> tuple[list[Array], bool]:
        if signs:
            made = jointly(mine, pairs, places)(partial(random_signs, self.rng, self.members * self.groups))
            return [x.reshape(self.members, self.groups, -1) for x in made], False
        same, apart = ({k: v[i : i + 2] for k, v in pairs.items()} for i in (0, 2))
        noise = partial(normal, self.rng, self.members * (self.groups // len(MIRRORS)))
        if not self.telling or not any(np.any(a != 0) for v in apart.values() for a in v):
            return [self._mirrored(x, 1) for x in jointly(mine, same, places)(noise)], False
        whole, between = matrix(mine, same, places), clear(matrix(mine, apart, places))
        own = by_root(root(whole - between), len(mine))(noise)
        common = by_root(root(between), len(mine))(partial(quasi, self.groups // len(MIRRORS) // self.alike))
        return [self._mirrored(x, 1) + self._mirrored(c, self.alike) for x, c in zip(own, common, strict=True)], True

    def _mirrored(self, x: Array, repeated: int) -> Array:
        """Members x groups x places of points x places, beside their mirror images."""
        x = np.repeat(x.reshape(-1, self.groups // len(MIRRORS) // repeated, x.shape[-1]), repeated, axis=1)
        return np.concatenate([s * x for _, s in MIRRORS], axis=1)


def _alike(steps: tuple[Step, ...], members: int, groups: int) -> int:
    """How many groups in turn have the same in common."""
    grids = [s.window.inputs if s.transpose else s.window.outputs for s in steps if isinstance(s, Taps)]
    places = min((int(np.prod([int(n) for n in g])) for g in grids), default=1)
    return int(2 ** np.floor(np.log2(np.clip(ALIKE / (members * places), 1, groups))))


def _square(x: Array) -> Array:
    """Second moments of columns: kinds x points x columns."""
    return np.asarray(x.transpose(0, 2, 1) @ x / x.shape[1])


def _squared(w: Array, scale: Array) -> Array:
    """w^T C w (kinds x groups)."""
    each = w.transpose(1, 0, 2)
    return np.asarray((each * (scale @ each)).sum(axis=1))


def _tapped(h: Array, w: Array, window: Window, transpose: bool) -> Array:
    """Members x groups x places from another such field."""
    matrices = window_matrices(window, transpose)
    members = h.shape[0]
    full = np.broadcast_to(h, (members, w.shape[1], matrices[0].shape[1]))
    rows = np.ascontiguousarray(full.reshape(-1, full.shape[-1]).T)
    found = np.zeros((matrices[0].shape[0], rows.shape[1]))
    for numbers, m in zip(w, matrices, strict=True):
        found += np.tile(numbers, members) * (m @ rows)
    return np.asarray(found.T.reshape(members, w.shape[1], -1))


def reading(window: Window, weights: Array | None = None) -> Array:
    """(taps, P'): how often, over the places of the output (or their ``weights``), a tap reads a place of the input."""
    matrices = window_matrices(window, False)
    count = matrices[0].shape[0]
    shares = np.full(count, 1 / count) if weights is None else weights
    return np.asarray(np.stack([shares @ m for m in matrices]))


def together(window: Window, moment: Array, weights: Array | None = None) -> Array:
    """(..., taps, taps): the mean over output places (by their ``weights``) of the moment (..., P, P) of what two taps
    read."""
    table = window.table()
    inside = (table[:, :, None] >= 0) & (table[:, None, :] >= 0)
    found = np.where(inside, moment[..., table[:, :, None], table[:, None, :]], 0.0)
    return np.asarray(found.mean(axis=-3) if weights is None else np.einsum("p,...ptu->...tu", weights, found))


def _evaluated(step: Function, fields: list[Array], arrays: tuple[Array, ...]) -> Array:
    symbols = (*(arg(i) for i in range(len(step.args))), *(coefficient(i) for i in range(len(step.coefficients))))
    inputs = [*(fields[i] for i in step.args), *(arrays[i].reshape(1, 1, -1) for i in step.coefficients)]
    with np.errstate(all="ignore"):
        found = vectorized(step.expr, symbols)(*inputs)
    shape = np.broadcast_shapes(np.shape(found), *(np.shape(x) for x in inputs))
    return np.asarray(np.broadcast_to(found, shape), dtype=np.float64)
