"""What entries win from the windows of maxima of a function of several Gaussian values: sums over windows A of
d_A s(A) 1(p wins A), for gradients d that are independent of the values and slopes s of the largest score and of the
values where it is.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import sympy as sp

from varflow.laws.heights import DIGITS, AtTops, Heights, Score, together
from varflow.laws.maxima import FEW, MOST_CASES, Index, evenly, once, overlaps, windows_per_entry
from varflow.laws.positions import Array, Mixing, completed, mix_matrix
from varflow.program import Mix
from varflow.window import Window

MOST_TABLES = 16
"""Windows of which any two are sampled together, however far from each other."""


def _wins(field: Heights, places: Index, slope: AtTops, window: int) -> Array:
    """E[s 1(i wins)] for every one of some places."""
    top = field.winner(places)
    return np.bincount(top.first, slope(top, window), len(places)) / len(top.first)


def shares(field: Heights, slope: AtTops) -> Any:
    """E[s(A) 1(p wins A)] as a sparse matrix (P, P')."""
    from scipy.sparse import csr_array

    known: dict[Hashable, Array] = {}

    def found(k: int) -> Array:
        places = field.windows[k]
        key = (field.kind(places), slope.numbers(k))
        return once(known, key, lambda: _wins(field, places, slope, k))

    parts = [found(k) for k in range(len(field.windows))]
    columns = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    return csr_array((np.concatenate(parts), (np.concatenate(field.windows), columns)),
                     shape=(field.places, len(parts)))


@dataclass(frozen=True)
class WonSum:
    """E[(sum over windows A of d_A s(A) 1(p wins A)) (the same of e and t)] at every entry p; ``square`` is s t."""

    window: Window
    square: sp.Expr
    score: Score

    def apply(self, *arrays: Array) -> Array:
        """(P, 1), from moments of the values (:class:`Heights`), of the gradients at one place (P', 1) and between two
        (P', P'), and coefficients."""
        n = self.score.moments
        field = Heights(self.window, self.score, arrays[:n], self.window.covers_evenly)
        own, apart, given = arrays[n], arrays[n + 1], arrays[n + 2 :]
        count = len(field.windows)
        slope = AtTops(self.square, self.score.entries, given, count)
        if field.alike:
            return self._on_average(field, float(own.mean()), float(apart.mean()), slope)
        found = np.asarray(shares(field, slope) @ np.broadcast_to(own, (count, 1)))
        if apart.any():
            self._twice(field, found, np.broadcast_to(apart, (count, count)), slope)
        return found

    @staticmethod
    def _twice(field: Heights, found: Array, pairs: Array, slope: AtTops) -> None:
        """What two windows give to an entry that is the largest of both."""
        known: dict[Hashable, Array] = {}
        near = [(a, b) for a, b in field.near() if np.isin(field.windows[a], field.windows[b]).any()]
        digits = FEW if len(near) > MOST_CASES else DIGITS
        for a, b in near:
            union = np.union1d(field.windows[a], field.windows[b])
            both = np.isin(union, field.windows[a]) & np.isin(union, field.windows[b])
            wins = once(known, (field.kind(union, digits), slope.numbers(a)), partial(_wins, field, union, slope, a))
            found[union[both], 0] += (pairs[a, b] + pairs[b, a]) * wins[both]

    def _on_average(self, field: Heights, own: float, apart: float, slope: AtTops) -> Array:
        """Far from borders, places alike: those that ``size`` entries compete for."""
        def wins(size: int) -> float:
            return float(_wins(field, np.arange(size), slope, 0).sum())

        found = own * wins(self.window.taps) * windows_per_entry(self.window)
        if apart:
            found += apart * sum(float(share) / size * wins(size) for size, share in overlaps(self.window))
        return np.full((1, 1), found)


@dataclass(frozen=True)
class WonSumApart:
    """E of the product of what two entries p and p' win, sum over A and B of d_A s(A) 1(p wins A) d_B t(B) 1(p' wins
    B); the first ``split`` coefficients are those of s. Of many windows, those far from each other have slopes that
    covary; who wins them is independent given those."""

    window: Window
    left: sp.Expr
    right: sp.Expr
    split: int
    score: Score

    def apply(self, *arrays: Array) -> Array:
        """(P, P), from moments of the values (:class:`Heights`), of the gradients at one place (P', 1) and between two
        (P', P'), and coefficients."""
        n = self.score.moments
        field = Heights(self.window, self.score, arrays[:n], self.window.covers_evenly)
        own, apart, given = arrays[n], arrays[n + 1], arrays[n + 2 :]
        count = len(field.windows)
        slopes = tuple(AtTops(h, self.score.entries, g, count) for h, g in (
            (self.left, given[: self.split]), (self.right, given[self.split :])))
        one, two = (shares(field, s).toarray() for s in slopes)
        ratio = self._ratio(field, slopes, (one, two))
        if field.alike:
            found = one[:, 0].sum() * two[:, 1].sum() * windows_per_entry(self.window) ** 2 * ratio[0, 1]
            return np.full((1, 1), found * float(apart.mean()))
        pairs = np.asarray(completed(apart, own, count) * ratio)
        found = one @ pairs @ two.T
        for k, entries in enumerate(field.windows):
            found[np.ix_(entries, entries)] -= pairs[k, k] * np.outer(one[entries, k], two[entries, k])
        self._correct(field, found, pairs, (one, two, ratio), slopes)
        return np.asarray(found)

    def _ratio(self, field: Heights, slopes: tuple[AtTops, ...], won: tuple[Array, Array]) -> Array:
        """E[s(A) t(B)] over the product of their means."""
        if not (self.left.free_symbols and self.right.free_symbols):
            return np.ones((len(field.windows),) * 2)
        means = np.outer(won[0].sum(axis=0), won[1].sum(axis=0))
        found = together(field, *slopes)
        return np.divide(found, means, out=np.ones_like(found), where=np.abs(means) > 1e-9 * np.abs(found))

    @staticmethod
    def _correct(field: Heights, found: Array, pairs: Array, alone: tuple[Array, Array, Array],
                 slopes: tuple[AtTops, ...]) -> None:
        """Windows that share entries, or stand side by side, are not won independently; nor any of few."""
        one, two, ratio = alone
        known: dict[Hashable, Array] = {}
        few, alike = 1 < len(field.windows) <= MOST_TABLES, slopes[0].like(slopes[1])
        kept = [(a, b) for a, b in (combinations(range(len(field.windows)), 2) if few else field.near())
                if pairs[a, b] or pairs[b, a]]
        digits = FEW if len(kept) > MOST_CASES else DIGITS

        def put(a: int, b: int, table: Array) -> None:
            left, right = field.windows[a], field.windows[b]
            lone = np.outer(one[left, a], two[right, b]) * ratio[a, b]
            found[np.ix_(left, right)] += pairs[a, b] / ratio[a, b] * (table - lone) if ratio[a, b] else 0.0

        for a, b in kept:
            table = _table(field, known, (a, b), slopes, digits)
            put(a, b, table)
            put(b, a, table.T if alike else _table(field, known, (b, a), slopes, digits))


def _table(field: Heights, known: dict[Hashable, Array], windows: tuple[int, int], slopes: tuple[AtTops, ...],
           digits: int) -> Array:
    """What :func:`_jointly` finds, once for every kind of two windows."""
    sides = [field.windows[k] for k in windows]
    union = np.union1d(*sides)
    key = (field.kind(union, digits), *(np.isin(union, side).tobytes() for side in sides),
           *(slope.numbers(k) for slope, k in zip(slopes, windows, strict=True)))
    return once(known, key, partial(_jointly, field, union, windows, slopes))


def _jointly(field: Heights, union: Index, windows: tuple[int, int], slopes: tuple[AtTops, ...]) -> Array:
    """E[s(A) 1(i wins A) t(B) 1(j wins B)] for all entries i of A and j of B."""
    x = field.points(union)
    sides = [field.windows[k] for k in windows]
    tops = [field.top(x[:, np.searchsorted(union, side)], side) for side in sides]
    s, t = (slope(top, k) for slope, top, k in zip(slopes, tops, windows, strict=True))
    table = np.zeros((len(sides[0]), len(sides[1])))
    np.add.at(table, (tops[0].first, tops[1].first), s * t / x.shape[2])
    return table


@dataclass(frozen=True)
class WonSumBeside:
    """E of what entry p wins times a value at p (or ``between``, elsewhere) that is a mixture of positions (``mix``),
    the position itself (None), or the same everywhere (``fixed``)."""

    window: Window
    slope: sp.Expr
    mix: Mix | None
    between: bool
    fixed: bool
    score: Score

    def apply(self, *arrays: Array) -> Array:
        """(P, 1) or (P, P), from moments of the values (:class:`Heights`), E[d_A v] at one place and between two, and
        coefficients."""
        n = self.score.moments
        field = Heights(self.window, self.score, arrays[:n], self.window.covers_evenly)
        same, apart, given = arrays[n], arrays[n + 1], arrays[n + 2 :]
        slope = AtTops(self.slope, self.score.entries, given, len(field.windows))
        if field.alike:
            return np.asarray(_wins(field, field.windows[0], slope, 0).sum() * self._on_average(same, apart))
        won = shares(field, slope)
        if self.fixed:
            return np.asarray(won @ np.broadcast_to(same, (won.shape[1], 1)))
        full = won @ completed(apart, same, won.shape[1])
        full = full if self.mix is None else (mix_matrix(self.mix) @ full.T).T
        return np.asarray(full) if self.between else np.diag(full)[:, None].copy()

    def _on_average(self, same: Array, apart: Array) -> Array:
        if self.fixed:
            return np.full((1, 1), windows_per_entry(self.window) * same.mean())
        return Mixing(evenly(self.window), self.mix, self.between).apply(same.mean(keepdims=True),
                                                                        apart.mean(keepdims=True))
