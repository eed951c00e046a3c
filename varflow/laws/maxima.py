"""Maxima over the windows of a grid of jointly Gaussian entries, and who wins, from the entries' covariances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.laws.blocks import coefficient
from varflow.laws.largest import common_part, levels
from varflow.laws.numeric import vectorized
from varflow.laws.points import antithetic, root_of
from varflow.laws.positions import Array, completed, shared_entries, too_many
from varflow.laws.ranked import ITSELF, greatest, ranking, winner_of, winners_at
from varflow.program import Mix
from varflow.symbols import arg
from varflow.window import Window

Index = npt.NDArray[np.int64]
Result = TypeVar("Result")
FAR = 1e9
MOST_CASES, MOST_PLACES, MOST_WINDOWS, DRAWS = 200, 256, 64, 4096
DIGITS, FEW = 9, 2
"""Decimals of correlations that tell windows apart; fewer where windows are many."""


class Field:
    """The windows of a grid, and the covariance of its places from moments at one (P, 1) and between two (P, P);
    one window and one far from it where places are too many, or alike and all windows too (``even``). Windows are won
    by the entry of largest ``score``."""

    def __init__(self, window: Window, second: Array, other: Array, even: bool, score: sp.Expr = ITSELF) -> None:
        self.score = ranking(score)
        self.alike = too_many(window) or (second.size == other.size == 1 and even)
        if self.alike:
            places = 2 * window.taps
            self.windows = [np.arange(window.taps), np.arange(window.taps, places)]
            self.matrix = completed(np.full((1, 1), other.mean()), np.full((1, 1), second.mean()), places)
        else:
            self.windows = [row[row >= 0] for row in window.table()]
            self.matrix = completed(other, second, int(np.prod([int(n) for n in window.inputs])))
        self.scale = max(float(np.diag(self.matrix).mean()), 1e-300)

    @property
    def places(self) -> int:
        """Positions of the grid."""
        return len(self.matrix)

    def block(self, entries: Index, digits: int = DIGITS) -> tuple[Array, Hashable]:
        """The covariance of some entries, and what it is known by, to so many digits."""
        matrix = self.matrix[np.ix_(entries, entries)]
        return matrix, (len(entries), np.round(matrix / self.scale, digits).tobytes())


def once(known: dict[Hashable, Result], key: Hashable, find: Callable[[], Result]) -> Result:
    """What is known, or found now."""
    if key not in known:
        known[key] = find()
    return known[key]


def compiled(f: sp.Expr, places: int, numbers: int) -> Callable[..., Any]:
    """A function of ``places`` values and of coefficients."""
    symbols = (*(arg(i) for i in range(places)), *(coefficient(i) for i in range(numbers)))
    return vectorized(f, symbols)


def _columns(given: tuple[Array, ...], rows: int, columns: int) -> list[Array]:
    return [np.broadcast_to(g, (rows, columns)) for g in given]


@dataclass(frozen=True)
class Maximum:
    """E[f(largest entry)] of every window, ``f`` of arg(0) and coefficients; or of the entry of largest ``score``."""

    window: Window
    f: sp.Expr
    score: sp.Expr = ITSELF

    def apply(self, second: Array, other: Array, *given: Array) -> Array:
        """From the entries' moments at one place (P, 1) and between two (P, P); coefficients (P', 1)."""
        field = Field(self.window, second, other, self.window.uniform, self.score)
        windows = field.windows[:1] if field.alike else field.windows
        count = max([len(windows), *(len(g) for g in given)])
        columns, f = _columns(given, count, 1), compiled(self.f, 1, len(given))
        known: dict[Hashable, float] = {}

        def found(p: int) -> float:
            matrix, key = field.block(windows[p if len(windows) > 1 else 0])
            numbers = tuple(float(c[p, 0]) for c in columns)

            def expected() -> float:
                law = winner_of(matrix, bool(numbers), field.score)
                return float(law.expected(f(law.points, *numbers)).sum())

            return once(known, (key, numbers), expected)

        return np.array([found(p) for p in range(count)])[:, None]


@dataclass(frozen=True)
class TwoMaxima:
    """E[f(largest entry of one window) g(largest entry of another)] for all pairs of windows; ``f`` and ``g`` of arg(0)
    and coefficients. Or of the entries of largest ``score``."""

    window: Window
    f: sp.Expr
    g: sp.Expr
    score: sp.Expr = ITSELF

    def apply(self, second: Array, other: Array, *given: Array) -> Array:
        """(P', P') from the entries' moments at one place (P, 1) and between two (P, P); coefficients (P', 1) for f,
        (1, P') for g, or the same for all."""
        field = Field(self.window, second, other, self.window.covers_evenly, self.score)
        f, g = (_AtWindows(h, given, len(field.windows)) for h in (self.f, self.g))
        if field.alike:
            return np.full((1, 1), _pair(field, f, g, 0, 1))
        count = len(field.windows)
        own, common = common_part(field.matrix) if other.size == 1 else (None, 0.0)
        if own is not None:
            return self._alike_apart(field, f, g, own, common)
        if count > MOST_PLACES or self._cases(field) > MOST_CASES:
            return self._drawn(field, f, g, second, other, given)
        return self._each(field, f, g, list(product(range(count), range(count))), np.zeros((count, count)), DIGITS)

    @staticmethod
    def _each(field: Field, f: _AtWindows, g: _AtWindows, pairs: list[tuple[int, int]], found: Array, digits: int
              ) -> Array:
        """The matrix with these pairs put in, each kind found once."""
        known: dict[Hashable, float] = {}
        for a, b in pairs:
            kind = together(field, field.windows[a], field.windows[b], digits)[1]
            found[a, b] = once(known, (kind, f.numbers(a), g.numbers(b)), partial(_pair, field, f, g, a, b))
        return found

    def _alike_apart(self, field: Field, f: _AtWindows, g: _AtWindows, own: Array, common: float) -> Array:
        """Entries of independent parts and a common one: windows without a common entry are independent given it."""
        level, share = levels(common)
        one, two = (self._given_level(field, h, own, level) for h in (f, g))
        near = neighbours(field)
        digits = FEW if len(near) > MOST_CASES else DIGITS
        return self._each(field, f, g, [*near, *((b, a) for a, b in near)], np.asarray((one * share) @ two.T), digits)

    @staticmethod
    def _given_level(field: Field, h: _AtWindows, own: Array, level: Array) -> Array:
        """E h(largest entry) of every window at every level of the common component."""
        known: dict[Hashable, Array] = {}

        return np.array([once(known, (field.block(w)[1], h.numbers(a)),
                              partial(winners_at, level, own[w], partial(h, window=a), h.jumps, field.score))
                         for a, w in enumerate(field.windows)])

    @staticmethod
    def _cases(field: Field) -> int:
        keys: set[Hashable] = set()
        for a in field.windows:
            keys.update(together(field, a, b)[1] for b in field.windows)
            if len(keys) > MOST_CASES:
                break
        return len(keys)

    def _drawn(self, field: Field, f: _AtWindows, g: _AtWindows, second: Array, other: Array, given: tuple[Array, ...]
               ) -> Array:
        """All windows at once by random draws of the whole image; means as integrals."""
        noise = np.random.default_rng(0).standard_normal((DRAWS, field.places))
        x = noise @ root_of(field.matrix).T
        largest = np.stack([greatest(x[:, w], field.score) for w in field.windows], axis=1)
        columns = tuple(np.reshape(n, (-1, 1)) for n in given)
        means = [Maximum(self.window, h, self.score).apply(second, other, *columns) for h in (self.f, self.g)]
        values = [np.broadcast_to(h(largest, slice(None)), largest.shape) for h in (f, g)]
        one, two = (v - v.mean(axis=0) for v in values)
        return np.asarray(one.T @ two / DRAWS + means[0] * means[1].T)


class _AtWindows:
    """A function of a largest entry whose coefficients may differ between windows."""

    def __init__(self, f: sp.Expr, given: tuple[Array, ...], count: int) -> None:
        self._run = compiled(f, 1, len(given))
        self._columns = [np.broadcast_to(n.ravel() if n.size in (1, count) else n.mean(), (count,)) for n in given]
        self.jumps = bool(given)

    def __call__(self, x: Array, window: int | slice) -> Any:
        """At one window, or with a column for each."""
        return self._run(x, *(c[window] for c in self._columns))

    def numbers(self, window: int) -> tuple[float, ...]:
        """The coefficients."""
        return tuple(float(c[window]) for c in self._columns)


def _pair(field: Field, f: _AtWindows, g: _AtWindows, a: int, b: int) -> float:
    """E[f(largest of window a) g(largest of window b)]."""
    first, second = field.windows[a], field.windows[b]
    entries = np.union1d(first, second)
    matrix = field.matrix[np.ix_(entries, entries)]
    left, right = np.searchsorted(entries, first), np.searchsorted(entries, second)
    if len(entries) == len(first) + len(second):
        if not field.matrix[np.ix_(first, second)].any():
            laws = [winner_of(field.matrix[np.ix_(i, i)], f.jumps, field.score) for i in (first, second)]
            one, two = (law.expected(h(law.points, k)).sum() for law, h, k in zip(laws, (f, g), (a, b), strict=True))
            return float(one * two)
        own, common = common_part(matrix)
        if own is not None:
            level, share = levels(common)
            one, two = (winners_at(level, own[side], partial(h, window=k), h.jumps, field.score)
                        for side, h, k in ((left, f, a), (right, g, b)))
            return float((share * one * two).sum())
    x = antithetic(len(entries)) @ root_of(matrix).T
    return float(np.mean(f(greatest(x[:, left], field.score), a) * g(greatest(x[:, right], field.score), b)))


def together(field: Field, a: Index, b: Index, digits: int = DIGITS) -> tuple[Index, Hashable]:
    """The entries of two windows and what their joint law is known by."""
    entries = np.union1d(a, b)
    return entries, (field.block(entries, digits)[1], np.isin(entries, a).tobytes(), np.isin(entries, b).tobytes())


@dataclass(frozen=True)
class Missing:
    """A large number where a tap of a window is outside the grid, else zero."""

    window: Window
    tap: int

    def apply(self, *_: Array) -> Array:
        """(P', 1)."""
        if too_many(self.window):
            return np.zeros((1, 1))
        return np.where(self.window.table()[:, [self.tap]] < 0, FAR, 0.0)


def neighbours(field: Field) -> list[tuple[int, int]]:
    """Pairs (A, B), A < B, of windows that share an entry."""
    holders: dict[int, list[int]] = {}
    for k, entries in enumerate(field.windows):
        for i in entries.tolist():
            holders.setdefault(i, []).append(k)
    return sorted({(a, b) for ks in holders.values() for a in ks for b in ks if a < b})


def evenly(window: Window) -> Mix:
    """What every entry of a window gets on average: one part in as many as the window has entries."""
    return Mix(window, (sp.Rational(1, window.taps),) * window.taps, transpose=True)


def windows_per_entry(window: Window) -> float:
    """Windows of the grid for every position of it."""
    return float(sp.Mul(*window.outputs) / sp.Mul(*window.inputs)) if window.is_numeric else 1 / window.spacing


@lru_cache(maxsize=64)
def overlaps(window: Window) -> tuple[tuple[int, sp.Rational], ...]:
    """(size of the union, how many) of the ordered pairs of different windows that share an entry, on average over
    entries (over those far from the border where the grid is large or has no numbers)."""
    counts = _counted(window) if window.is_numeric and not too_many(window) else _far_from_borders(window)
    return tuple(sorted(counts.items()))


def _counted(window: Window) -> dict[int, sp.Rational]:
    common, places = shared_entries(window)
    size = common.diagonal()
    counts: Counter[int] = Counter()
    rows, columns = np.nonzero(common)
    for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
        if i != j:
            counts[int(size[i] + size[j] - common[i, j])] += int(common[i, j])
    return {union: sp.Rational(n, places) for union, n in counts.items()}


def _far_from_borders(window: Window) -> dict[int, sp.Rational]:
    counts: Counter[int] = Counter()
    for pairs in product(*[list(product(range(k), range(k))) for k in window.kernel]):
        gaps = [(b - a) * d for (a, b), d in zip(pairs, window.dilation, strict=True)]
        if any(gaps) and all(g % s == 0 for g, s in zip(gaps, window.stride, strict=True)):
            shared = int(np.prod([sum(1 for i in range(k) if 0 <= i + (b - a) < k)
                                  for k, (a, b) in zip(window.kernel, pairs, strict=True)]))
            counts[2 * window.taps - shared] += 1
    return {union: sp.Rational(n, window.spacing) for union, n in counts.items()}
