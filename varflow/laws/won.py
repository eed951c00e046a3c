"""Who wins the windows of a grid of jointly Gaussian entries, and moments of what entries win: sums over windows A of
d_A s(M_A) 1(p wins A), for gradients d that are independent of the entries and slopes s of the largest entry M.

A slope may have coefficients, one number for all windows or one for each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import sympy as sp

from varflow.laws.maxima import (
    DIGITS,
    FEW,
    MOST_CASES,
    MOST_WINDOWS,
    Field,
    Index,
    compiled,
    evenly,
    neighbours,
    once,
    overlaps,
    together,
    windows_per_entry,
)
from varflow.laws.points import antithetic, root_of
from varflow.laws.positions import Array, Mixing, completed, mix_matrix
from varflow.laws.ranked import ITSELF, ranking, winner_of
from varflow.program import Mix
from varflow.window import Window


class Slope:
    """A function of the largest entry of a window (or that of largest ``score``) and of coefficients, whose numbers
    differ between windows."""

    def __init__(self, f: sp.Expr, given: tuple[Array, ...], count: int, score: sp.Expr = ITSELF) -> None:
        self.score = ranking(score)
        self._run = compiled(f, 1, len(given))
        self._columns = [np.broadcast_to(n.ravel() if n.size in (1, count) else n.mean(), (count,)) for n in given]
        self.jumps = bool(given)

    def numbers(self, window: int) -> tuple[float, ...]:
        """The coefficients at a window."""
        return tuple(float(c[window]) for c in self._columns)

    def at(self, window: int) -> Callable[[Array], Any]:
        """The function at a window."""
        numbers = self.numbers(window)
        return lambda x: self._run(x, *numbers)

    def wins(self, matrix: Array, window: int) -> Array:
        """E[s(M) 1(i wins)] for every entry i of a window, or of several that count as one, of this covariance."""
        law = winner_of(matrix, self.jumps, self.score)
        return law.expected(self.at(window)(law.points))


@dataclass(frozen=True)
class Shares:
    """E[slope(largest) 1(entry p wins window A)] as a matrix over (P, P')."""

    window: Window
    slope: sp.Expr
    score: sp.Expr = ITSELF

    def matrix(self, second: Array, other: Array, *given: Array) -> Any:
        """Sparse (P, P'), from the entries' moments at one place (P, 1) and between two (P, P); coefficients
        (P', 1)."""
        from scipy.sparse import csr_array

        field = Field(self.window, second, other, False)
        slope = Slope(self.slope, given, len(field.windows), self.score)
        known: dict[Hashable, Array] = {}
        parts = []
        for k, entries in enumerate(field.windows):
            matrix, key = field.block(entries)
            parts.append(once(known, (key, slope.numbers(k)), partial(slope.wins, matrix, k)))
        rows = np.concatenate(field.windows)
        columns = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
        return csr_array((np.concatenate(parts), (rows, columns)), shape=(field.places, len(parts)))


@dataclass(frozen=True)
class Won:
    """E[(sum over windows A of d_A s(M_A) 1(p wins A)) (the same of e and t)] at every entry p of the windows, for
    gradients d and e of given moments that are independent of the entries; ``square`` is s t. Two windows are won by
    the largest of both."""

    window: Window
    square: sp.Expr
    score: sp.Expr = ITSELF

    def apply(self, second: Array, other: Array, own: Array, apart: Array, *given: Array) -> Array:
        """(P, 1), from moments of the entries and of the gradients at one place (P', 1) and between two (P', P')."""
        field = Field(self.window, second, other, self.window.covers_evenly)
        if field.alike:
            return self._on_average(field, float(own.mean()), float(apart.mean()), given)
        count = len(field.windows)
        shares = Shares(self.window, self.square, self.score).matrix(second, other, *given)
        found = shares @ np.broadcast_to(own, (count, 1))
        if not apart.any():
            return np.asarray(found)
        pairs, slope = np.broadcast_to(apart, (count, count)), Slope(self.square, given, count, self.score)
        known: dict[Hashable, Array] = {}
        near = neighbours(field)
        for a, b in near:
            union, key = together(field, field.windows[a], field.windows[b], FEW if len(near) > MOST_CASES else DIGITS)
            wins = once(known, (key, slope.numbers(a)), partial(self._either, field, union, slope, a))
            both = np.isin(union, field.windows[a]) & np.isin(union, field.windows[b])
            found[union[both], 0] += (pairs[a, b] + pairs[b, a]) * wins[both]
        return np.asarray(found)

    @staticmethod
    def _either(field: Field, union: Index, slope: Slope, window: int) -> Array:
        return slope.wins(field.block(union)[0], window)

    def _on_average(self, field: Field, own: float, apart: float, given: tuple[Array, ...]) -> Array:
        slope, q, c = Slope(self.square, given, 1, self.score), float(field.matrix[0, 0]), float(field.matrix[0, -1])

        def wins(n: int) -> float:
            return float(slope.wins(completed(np.full((1, 1), c), np.full((1, 1), q), n), 0).sum())

        found = own * wins(self.window.taps) * windows_per_entry(self.window)
        if apart:
            found += apart * sum(float(share) / size * wins(size) for size, share in overlaps(self.window))
        return np.full((1, 1), found)


@dataclass(frozen=True)
class WonApart:
    """E of the product of what two entries p and p' win, sum over A and B of d_A s(M_A) 1(p wins A) d_B t(M_B)
    1(p' wins B); the first ``split`` coefficients are those of s."""

    window: Window
    left: sp.Expr
    right: sp.Expr
    split: int = 0
    score: sp.Expr = ITSELF

    def apply(self, second: Array, other: Array, own: Array, apart: Array, *given: Array) -> Array:
        """(P, P), from moments of the entries and of d at one place (P', 1) and between two (P', P')."""
        field = Field(self.window, second, other, self.window.covers_evenly)
        numbers = (given[: self.split], given[self.split :])
        count = len(field.windows)
        if field.alike:
            block = field.matrix[np.ix_(field.windows[0], field.windows[0])]
            one, two = (float(Slope(h, n, 1, self.score).wins(block, 0).sum())
                        for h, n in zip((self.left, self.right), numbers, strict=True))
            return np.full((1, 1), one * two * windows_per_entry(self.window) ** 2 * float(apart.mean()))
        one, two = (Shares(self.window, h, self.score).matrix(second, other, *n).toarray()
                    for h, n in zip((self.left, self.right), numbers, strict=True))
        pairs = completed(apart, own, count)
        found = one @ pairs @ two.T
        for k, entries in enumerate(field.windows):
            found[np.ix_(entries, entries)] -= pairs[k, k] * np.outer(one[entries, k], two[entries, k])
        slopes = [Slope(h, n, count, self.score) for h, n in zip((self.left, self.right), numbers, strict=True)]
        self._correct(field, found, pairs, (one, two), (slopes[0], slopes[1]))
        return np.asarray(found)

    def _correct(self, field: Field, found: Array, pairs: Array, shares: tuple[Array, Array],
                 slopes: tuple[Slope, Slope]) -> None:
        """Windows whose entries are correlated are not won independently."""
        known: dict[Hashable, Array] = {}
        near = self._entangled(field) if pairs.any() else []
        digits = FEW if len(near) > MOST_CASES else DIGITS
        for a, b in [*near, *((b, a) for a, b in near)]:
            left, right = field.windows[a], field.windows[b]
            union, key = together(field, left, right, digits)
            numbers = (slopes[0].numbers(a), slopes[1].numbers(b))
            table = once(known, (key, numbers), partial(_jointly, field, union, (a, b), slopes))
            lone = np.outer(shares[0][left, a], shares[1][right, b])
            found[np.ix_(left, right)] += pairs[a, b] * (table - lone)

    def _entangled(self, field: Field) -> list[tuple[int, int]]:
        """Pairs of windows that are not won independently: those that share an entry and, where windows are few, those
        whose entries covary by more than a common component."""
        if len(field.windows) > MOST_WINDOWS:
            return neighbours(field)
        least = 1e-6 if self.left == self.right == 1 else 0.0

        def tied(a: int, b: int) -> bool:
            block = field.matrix[np.ix_(field.windows[a], field.windows[b])] / field.scale
            return bool(np.ptp(block) > least or (least == 0 and block.any()))

        return [(a, b) for a in range(len(field.windows)) for b in range(a + 1, len(field.windows)) if tied(a, b)]


def _jointly(field: Field, union: Index, windows: tuple[int, int], slopes: tuple[Slope, Slope]) -> Array:
    """E[s(M_A) 1(i wins A) t(M_B) 1(j wins B)] for all entries i of A and j of B."""
    x = antithetic(len(union)) @ root_of(field.block(union)[0]).T
    parts = []
    for k, slope in zip(windows, slopes, strict=True):
        entries = field.windows[k]
        inside = x[:, np.searchsorted(union, entries)]
        first = (inside if slope.score is None else np.asarray(slope.score(inside))).argmax(axis=1)
        parts.append((first, np.broadcast_to(slope.at(k)(inside[np.arange(len(x)), first]), len(x)), len(entries)))
    (i, s, rows), (j, t, columns) = parts
    table = np.zeros((rows, columns))
    np.add.at(table, (i, j), s * t / len(x))
    return table


@dataclass(frozen=True)
class WonBeside:
    """E of what entry p wins, sum over A of d_A s(M_A) 1(p wins A), times a value at p (or ``between``, elsewhere)
    that is a mixture of positions (``mix``), the position itself (None), or the same everywhere (``fixed``)."""

    window: Window
    slope: sp.Expr
    mix: Mix | None
    between: bool
    fixed: bool = False
    score: sp.Expr = ITSELF

    def apply(self, second: Array, other: Array, same: Array, apart: Array, *given: Array) -> Array:
        """(P, 1) or (P, P), from moments of the entries, and E[d_A v] at one place and between two."""
        field = Field(self.window, second, other, self.window.covers_evenly)
        if field.alike:
            block = field.matrix[np.ix_(field.windows[0], field.windows[0])]
            wins = Slope(self.slope, given, 1, self.score).wins(block, 0)
            return np.asarray(wins.sum() * self._on_average(same, apart))
        shares = Shares(self.window, self.slope, self.score).matrix(second, other, *given)
        if self.fixed:
            return np.asarray(shares @ np.broadcast_to(same, (shares.shape[1], 1)))
        full = shares @ completed(apart, same, shares.shape[1])
        full = full if self.mix is None else (mix_matrix(self.mix) @ full.T).T
        return np.asarray(full) if self.between else np.diag(full)[:, None].copy()

    def _on_average(self, same: Array, apart: Array) -> Array:
        if self.fixed:
            return np.full((1, 1), windows_per_entry(self.window) * same.mean())
        return Mixing(evenly(self.window), self.mix, self.between).apply(same.mean(keepdims=True),
                                                                        apart.mean(keepdims=True))
