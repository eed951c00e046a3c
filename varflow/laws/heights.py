"""Maxima over windows of a function of several jointly Gaussian values at a place (a sum of relus, a gate).

The largest of h(u_p, v_p, ...) over the places p of a window has no integral of few variables: a Sobol sample with
antithetic points (Owen 1998) of all values of a window gives its moments to about 0.3 %. Two windows are sampled
together with all others: what is linear in the values covaries by their covariance, and only the rest by the sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.laws.blocks import coefficient
from varflow.laws.maxima import Index, once
from varflow.laws.numeric import vectorized
from varflow.laws.points import POINTS, antithetic, root_of
from varflow.laws.positions import Array, completed, too_many
from varflow.symbols import arg
from varflow.window import Window

Single: TypeAlias = npt.NDArray[np.float32]
DIGITS = 3
"""Decimals of correlations that tell windows apart."""
MOST_SOBOL, MOST_PRODUCTS, LEAST_DRAWS = 256, 1 << 35, 2048
"""Values of an image that have a Sobol sample; multiplications for a sample of an image, and its fewest points."""
MOST_TOPS = 256
"""Winners of windows that are kept, 2^14 points of each."""
RIDGE = 1e-9
"""Part of the variances that a triangular root may add to them."""


@dataclass(frozen=True)
class Score:
    """A function of ``entries`` values arg(0), ... at a place and of ``numbers`` coefficients, one for each place. The
    last value may be the largest score ``inner`` over a window ``under`` of another grid, which is independent of the
    others."""

    expr: sp.Expr
    entries: int
    numbers: int = 0
    inner: Score | None = None
    under: Window | None = None

    @property
    def gaussian(self) -> int:
        """Values that are Gaussian."""
        return self.entries - (self.inner is not None)

    @property
    def pairs(self) -> int:
        """Arrays that say the law of the Gaussian values: two for every pair of them."""
        return self.gaussian * (self.gaussian + 1)

    @property
    def moments(self) -> int:
        """Arrays that say the law of the values: of Gaussian ones, of what is behind the last one, coefficients."""
        return self.pairs + (self.inner.moments if self.inner else 0) + self.numbers

    def run(self, x: Single, numbers: Array) -> Array:
        """The scores (places, N) of values (entries, places, N)."""
        f = function(self.expr, self.entries, self.numbers)
        with np.errstate(all="ignore"):
            found = f(*x, *(n[:, None] for n in numbers))
        return np.asarray(np.broadcast_to(found, x[0].shape), dtype=np.float32)


@lru_cache(maxsize=16)
def _noise(count: int) -> Single:
    """Standard Gaussian points (count, 2 POINTS)."""
    return np.ascontiguousarray(antithetic(count).T, dtype=np.float32)


@lru_cache(maxsize=256)
def function(expr: sp.Expr, places: int, numbers: int) -> Callable[..., Any]:
    """A function of ``places`` values and of coefficients."""
    return vectorized(expr, (*(arg(i) for i in range(places)), *(coefficient(i) for i in range(numbers))))


class Heights:
    """The windows of a grid and the joint covariance of the values at its places, all places of the first value before
    those of the next. From moments of every pair of values, first with itself, at one place (P, 1) and between two
    (P, P), the first value's place the first axis; those of what is behind the last value; then coefficients (P, 1).
    One window and one far from it where places are too many, or alike and all windows too (``even``)."""

    def __init__(self, window: Window, score: Score, moments: tuple[Array, ...], even: bool) -> None:
        self.window, self.score = window, score
        alone = score.inner is None
        self.alike = alone and (too_many(window) or (all(m.size == 1 for m in moments) and even))
        count = 2 * window.taps if self.alike else int(np.prod([int(n) for n in window.inputs]))
        if self.alike:
            moments = tuple(np.full((1, 1), m.mean()) for m in moments)
            self.windows = [np.arange(window.taps), np.arange(window.taps, count)]
        else:
            self.windows = [row[row >= 0] for row in window.table()]
        self.places, last = count, len(moments) - score.numbers
        self.inner = None if score.inner is None or score.under is None else Heights(
            score.under, score.inner, moments[score.pairs : last], False)
        self.blocks = _covariances(score.gaussian, moments, count)
        self.numbers = np.array([np.broadcast_to(m.ravel(), (count,)) for m in moments[last:]])
        scales = [max(float(np.diag(self.blocks[i][i]).mean()), 1e-300) for i in range(score.gaussian)]
        self._scales = np.sqrt(np.array(scales))

    def block(self, places: Index) -> Array:
        """The covariance of all Gaussian values at some places."""
        k, at = self.score.gaussian, np.ix_(places, places)
        return np.block([[self.blocks[i][j][at] for j in range(k)] for i in range(k)]) if k else np.zeros((0, 0))

    def numbers_at(self, places: Index) -> Array:
        """The coefficients (numbers, places) there."""
        return np.asarray(self.numbers[:, places]) if self.score.numbers else np.empty((0, len(places)))

    def kind(self, places: Index, digits: int = DIGITS) -> Hashable:
        """What the law of the scores at some places is known by, to so many digits."""
        scales = np.repeat(self._scales, len(places))
        matrix = np.round(self.block(places) / np.outer(scales, scales), digits) + 0.0
        own = len(places), matrix.tobytes(), np.round(self.numbers_at(places), 12).tobytes()
        if self.inner is None:
            return own
        behind = self._behind(places)
        read = [np.searchsorted(behind, self.inner.windows[p]).tobytes() for p in places]
        return own, self.inner.kind(behind, digits), tuple(read)

    def _behind(self, places: Index) -> Index:
        """Places of the other grid that are read."""
        assert self.inner is not None
        return np.unique(np.concatenate([self.inner.windows[p] for p in places]))

    def covariances(self, places: Index) -> list[Array]:
        """Those of Gaussian values that are read at some places, independent of each other."""
        behind = [] if self.inner is None else self.inner.covariances(self._behind(places))
        return [self.block(places), *behind] if self.score.gaussian else behind

    def coordinates(self, places: Index) -> Index:
        """Which of all Gaussian values are read at some places."""
        own = np.add.outer(np.arange(self.score.gaussian) * self.places, places).ravel()
        if self.inner is None:
            return own
        behind = self.inner.coordinates(self._behind(places))
        return np.concatenate([own, self.score.gaussian * self.places + behind])

    def values(self, places: Index, x: Single) -> Single:
        """The values (entries, places, N) of a sample of the Gaussian values that are read there."""
        own = self.score.gaussian * len(places)
        found = x[:own].reshape(self.score.gaussian, len(places), x.shape[-1])
        if self.inner is None:
            return found
        behind = self._behind(places)
        inner = self.inner.values(behind, x[own:])
        windows = [self.inner.windows[p] for p in places]
        tops = [self.inner.highest(inner[:, np.searchsorted(behind, w)], w) for w in windows]
        return np.concatenate([found, np.stack(tops)[None]])

    def gaussian(self, places: Index) -> Single:
        """A sample (Gaussian values, 2 POINTS) of those that are read at some places."""
        covariances = self.covariances(places)
        noise = _noise(sum(len(c) for c in covariances))
        cuts = np.cumsum([len(c) for c in covariances])[:-1]
        parts = zip(covariances, np.split(noise, cuts), strict=True)
        return np.concatenate([root_of(c).astype(np.float32) @ part for c, part in parts])

    def points(self, places: Index) -> Single:
        """A sample (entries, places, 2 POINTS) of all values at some places."""
        return self.values(places, self.gaussian(places))

    def winner(self, places: Index) -> Top:
        """Who wins of some places, in a sample; the last ones are kept."""
        key = self.score, self.kind(places)
        if key not in _tops:
            if len(_tops) >= MOST_TOPS:
                del _tops[next(iter(_tops))]
            _tops[key] = self.top(self.points(places), places)
        return _tops[key]

    def highest(self, x: Single, places: Index) -> Single:
        """The largest score of a window in a sample of its values."""
        return np.asarray(self.score.run(x, self.numbers_at(places)).max(axis=0))

    def top(self, x: Single, places: Index) -> Top:
        """Who wins a window in a sample of its values."""
        scores = self.score.run(x, self.numbers_at(places))
        first, height = np.zeros(x.shape[2], dtype=np.int32), scores[0].copy()
        for k in range(1, len(scores)):
            higher = scores[k] > height
            first[higher] = k
            np.maximum(height, scores[k], out=height)
        return Top(first, height, x[:, first, np.arange(len(first))])

    def near(self) -> list[tuple[int, int]]:
        """Pairs (A, B), A < B, of windows that share an entry or stand side by side."""
        if self.alike:
            return []
        holders: dict[int, list[int]] = {}
        for k, entries in enumerate(self.windows):
            for i in entries.tolist():
                holders.setdefault(i, []).append(k)
        pairs = {(a, b) for ks in holders.values() for a in ks for b in ks if a < b}
        at = np.array(np.unravel_index(np.arange(len(self.windows)), [int(n) for n in self.window.outputs]))
        beside = np.abs(at[:, :, None] - at[:, None, :]).max(axis=0) == 1
        return sorted(pairs | {(a, b) for a, b in np.argwhere(beside).tolist() if a < b})


@dataclass(frozen=True)
class Top:
    """Who wins, its score, and the values there (entries, N)."""

    first: npt.NDArray[np.int32]
    height: Single
    values: Single


_tops: dict[Hashable, Top] = {}


def _covariances(entries: int, moments: tuple[Array, ...], count: int) -> list[list[Array]]:
    blocks: list[list[Array]] = [[np.zeros((0, 0))] * entries for _ in range(entries)]
    pairs = iter(zip(moments[::2], moments[1::2], strict=False))
    for i in range(entries):
        for j in range(i, entries):
            same, other = next(pairs)
            blocks[i][j] = completed(other, same, count)
            blocks[j][i] = blocks[i][j].T
    return blocks


class AtTops:
    """A function of the score arg(0) of a window's winner, of the values there, arg(1), ..., and of coefficients, which
    may differ between windows."""

    def __init__(self, f: sp.Expr, entries: int, given: tuple[Array, ...], count: int) -> None:
        self.f, self._run = f, function(f, 1 + entries, len(given))
        self._columns = [np.broadcast_to(n.ravel() if n.size in (1, count) else n.mean(), (count,)) for n in given]

    def __call__(self, top: Top, window: int) -> Array:
        """At one window."""
        found = self._run(top.height, *top.values, *self.numbers(window))
        return np.asarray(np.broadcast_to(found, top.height.shape))

    def like(self, other: AtTops) -> bool:
        """Whether it is the same function with the same coefficients."""
        return self.f == other.f and all(np.array_equal(a, b) for a, b in zip(self._columns, other._columns,
                                                                             strict=True))

    def numbers(self, window: int) -> tuple[float, ...]:
        """The coefficients."""
        return tuple(float(c[window]) for c in self._columns)


@dataclass(frozen=True)
class Height:
    """E[f(largest score)] of every window, ``f`` of arg(0) and coefficients."""

    window: Window
    f: sp.Expr
    score: Score

    def apply(self, *given: Array) -> Array:
        """(P', 1) from moments of the values (:class:`Heights`), then coefficients of ``f`` (P', 1)."""
        moments, rest = given[: self.score.moments], given[self.score.moments :]
        field = Heights(self.window, self.score, moments, self.window.uniform)
        count = max([1 if field.alike else len(field.windows), *(len(g) for g in rest)])
        f = AtTops(self.f, self.score.entries, rest, count)
        known: dict[Hashable, float] = {}
        return np.array([once(known, *_mean(field, f, p)) for p in range(count)])[:, None]


def _mean(field: Heights, f: AtTops, p: int) -> tuple[Hashable, Callable[[], float]]:
    places = field.windows[0 if field.alike else p]
    return (field.kind(places), f.numbers(p)), lambda: float(f(field.winner(places), p).mean(dtype=np.float64))


@dataclass(frozen=True)
class TwoHeights:
    """E[f(largest score of one window) g(largest of another)] for all pairs of windows; ``f`` and ``g`` of arg(0), of
    the values at the winner arg(1), ... and of coefficients, the first ``split`` of them those of ``f`` alone (None:
    all are those of both)."""

    window: Window
    f: sp.Expr
    g: sp.Expr
    score: Score
    split: int | None = None

    def apply(self, *given: Array) -> Array:
        """(P', P') from moments of the values (:class:`Heights`), then coefficients of ``f`` and ``g``."""
        moments, rest = given[: self.score.moments], given[self.score.moments :]
        field = Heights(self.window, self.score, moments, self.window.covers_evenly)
        numbers = (rest, rest) if self.split is None else (rest[: self.split], rest[self.split :])
        f, g = (AtTops(h, self.score.entries, n, len(field.windows)) for h, n in zip((self.f, self.g), numbers,
                                                                                      strict=True))
        found = together(field, f, g)
        return np.full((1, 1), found[0, 1]) if field.alike else found


def together(field: Heights, f: AtTops, g: AtTops) -> Array:
    """E[f(A) g(B)] for windows A and B: f is its mean, a linear form of the window's values and a rest, for which alone
    the sample is needed."""
    sample = whole_image(field)
    one = _taken_apart(field, f, sample)
    two = one if f.like(g) else _taken_apart(field, g, sample)
    linear = _covaried(field, one.slopes, two.slopes)
    return np.asarray(np.outer(one.means, two.means) + linear + one.rest @ two.rest.T / one.rest.shape[1])


@dataclass(frozen=True)
class Apart:
    """A function at every window: its mean, the slopes (sparse, windows x values) of its linear part, and the rest in
    every point of the sample (windows, N)."""

    means: Array
    slopes: Any
    rest: Single


def _taken_apart(field: Heights, f: AtTops, sample: Image) -> Apart:
    from scipy.sparse import csr_array

    known: dict[Hashable, tuple[float, Array]] = {}
    count, size = len(field.windows), len(sample.values)
    parts = [once(known, *_linear(field, f, p)) for p in range(count)]
    at = [field.coordinates(w) for w in field.windows]
    means, rest = np.array([m for m, _ in parts]), np.empty((count, sample.values.shape[1]), dtype=np.float32)
    for p, (mean, slopes) in enumerate(parts):
        rest[p] = f(sample.tops[p], p) - mean - slopes.astype(np.float32) @ sample.values[at[p]]
    rest -= rest.mean(axis=1, keepdims=True)
    rows = np.repeat(np.arange(count), [len(a) for a in at])
    matrix = csr_array((np.concatenate([s for _, s in parts]), (rows, np.concatenate(at))), shape=(count, size))
    return Apart(means, matrix, rest)


def _linear(field: Heights, f: AtTops, p: int) -> tuple[Hashable, Callable[[], tuple[float, Array]]]:
    places = field.windows[p]

    def find() -> tuple[float, Array]:
        flat = field.gaussian(places)
        y = f(field.winner(places), p)
        mean = float(y.mean(dtype=np.float64))
        return mean, np.asarray(np.linalg.lstsq(flat @ flat.T, flat @ (y - mean), rcond=1e-5)[0], dtype=np.float64)

    return (field.kind(places), f.numbers(p)), find


def _covaried(field: Heights, left: Any, right: Any) -> Array:
    """L C R^T for the covariance C of all Gaussian values."""
    n, own = field.places, field.score.gaussian * field.places
    total = np.zeros((left.shape[0], right.shape[0]))
    if field.inner is not None:
        total += _covaried(field.inner, left[:, own:], right[:, own:])
    for i, row in enumerate(field.blocks):
        for j, block in enumerate(row):
            if block.any():
                total += (right[:, j * n : (j + 1) * n] @ (left[:, i * n : (i + 1) * n] @ block).T).T
    return total


# -- a sample of a whole image -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """A sample of all Gaussian values (values, N), and who wins every window in it."""

    values: Single
    tops: list[Top]


_last: dict[bytes, Image] = {}


def whole_image(field: Heights) -> Image:
    """A sample of all values of an image; the last one is kept."""
    key = _key(field)
    if key not in _last:
        values = _drawn(field)
        shaped = _everywhere(field, values)
        tops = [field.top(shaped[:, w], w) for w in field.windows]
        _last.clear()
        _last[key] = Image(values, tops)
    return _last[key]


def _everywhere(field: Heights, x: Single) -> Single:
    """The values (entries, P, N) of a sample of all Gaussian values."""
    own = field.score.gaussian * field.places
    found = x[:own].reshape(field.score.gaussian, field.places, x.shape[-1])
    if field.inner is None:
        return found
    inner = _everywhere(field.inner, x[own:])
    tops = [field.inner.highest(inner[:, w], w) for w in field.inner.windows]
    return np.concatenate([found, np.stack(tops)[None]])


def _key(field: Heights) -> bytes:
    found = hashlib.blake2b(repr((field.window, field.score)).encode())
    if field.inner is not None:
        found.update(_key(field.inner))
    for array in (*(b for row in field.blocks for b in row), field.numbers):
        found.update(np.ascontiguousarray(array).data)
    return found.digest()


def _drawn(field: Heights) -> Single:
    """Points of all Gaussian values: those of different arguments that do not covary have a root each."""
    covariances = _independent(field)
    sizes = [len(c) for c in covariances]
    if sum(sizes) <= MOST_SOBOL:
        parts = np.split(_noise(sum(sizes)), np.cumsum(sizes)[:-1])
        return np.concatenate([root_of(c).astype(np.float32) @ x for c, x in zip(covariances, parts, strict=True)])
    work = sum(n * n for n in sizes)
    count = int(np.clip(MOST_PRODUCTS // work, LEAST_DRAWS, POINTS // 2))
    random = np.random.default_rng(0)
    half = np.concatenate([triangular(c).astype(np.float32) @ random.standard_normal((len(c), count), dtype=np.float32)
                           for c in covariances])
    return np.concatenate([half, -half], axis=1)


def _independent(field: Heights) -> list[Array]:
    """Covariances of Gaussian values at all places that are independent of each other."""
    k = field.score.gaussian
    apart = not any(field.blocks[i][j].any() for i in range(k) for j in range(i))
    own = [field.blocks[i][i] for i in range(k)] if apart else [field.block(np.arange(field.places))]
    return own + ([] if field.inner is None else _independent(field.inner))


def triangular(matrix: Array) -> Array:
    """A root of a covariance, triangular where one of it, or of nearly it, is found."""
    ridge = RIDGE * np.diag(np.maximum(np.diag(matrix), np.diag(matrix).mean()))
    try:
        return np.asarray(np.linalg.cholesky(matrix + ridge))
    except np.linalg.LinAlgError:
        return root_of(matrix)
