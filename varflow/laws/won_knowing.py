"""What entries win from the windows of maxima, where gradients are functions of the maximum: behind a skip connection
from a pool y = M + f(M) the gradient at a window knows its largest entry M.

Two windows that an entry wins have one largest entry, it: E[d_A d_B | M_A = M_B = m] is then a function of m, known at
a few levels of m, a cubic spline between them.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import sympy as sp

from varflow.laws.blocks import carried, coefficient
from varflow.laws.maxima import (
    DIGITS,
    FEW,
    MOST_CASES,
    Field,
    Index,
    neighbours,
    once,
    overlaps,
    together,
    windows_per_entry,
)
from varflow.laws.moments import Quantity
from varflow.laws.positions import Array, completed
from varflow.laws.ranked import ITSELF, winner_of
from varflow.laws.variables import Composite, Instance
from varflow.laws.won import Slope
from varflow.window import Window

LEVELS = (-1.25, -0.25, 0.5, 1.25, 2.0, 2.75, 3.75)
"""Levels of the largest entry, in standard deviations of an entry."""


def at_level(x: Instance, top: Instance, level: Quantity) -> Instance:
    """A value with a number instead of the largest entry that it is a function of."""
    number = Instance(Composite(0, top.variable.node, expr=coefficient(0), coefficients=(level,)))
    known: dict[Instance, Instance] = {top: number}

    def given(y: Instance) -> Instance:
        if y not in known:
            v = y.variable
            args = tuple(given(carried(a, y)) for a in v.args) if isinstance(v, Composite) else ()
            same = not isinstance(v, Composite) or args == tuple(carried(a, y) for a in v.args)
            known[y] = y if same else Instance(replace(v, value=None, args=args))  # type: ignore[call-arg]
        return known[y]

    return given(x)


@dataclass(frozen=True)
class WonKnowing:
    """E[(sum over windows A of d_A s(M_A) 1(p wins A)) (the same of e and t)] at every entry p, for gradients whose
    moments are functions of the largest entry; ``square`` is s t."""

    window: Window
    square: sp.Expr
    score: sp.Expr = ITSELF

    def apply(self, second: Array, other: Array, scale: Array, *arrays: Array) -> Array:
        """(P, 1), from moments of the entries, the variance that levels are measured by (1, 1), moments of the
        gradients at every level at one place (P', 1) and then between two (P', P'), and coefficients."""
        n = len(LEVELS)
        own, apart, given = arrays[:n], arrays[n : 2 * n], arrays[2 * n :]
        field = Field(self.window, second, other, self.window.covers_evenly)
        shares = _Shares(self, field, float(np.sqrt(scale.mean())), given)
        if field.alike:
            return self._on_average(field, shares, own, apart)
        count = len(field.windows)
        found = np.zeros((field.places, 1))
        alone = np.stack([np.broadcast_to(o, (count, 1))[:, 0] for o in own])
        known: dict[Hashable, Array] = {}
        for k, entries in enumerate(field.windows):
            matrix, key = field.block(entries)
            found[entries, 0] += alone[:, k] @ once(known, (key, shares.numbers(k)), partial(shares, matrix, k))
        if any(a.any() for a in apart):
            self._twice(field, found, shares, [np.broadcast_to(a, (count, count)) for a in apart])
        return found

    @staticmethod
    def _twice(field: Field, found: Array, shares: _Shares, pairs: list[Array]) -> None:
        """What two windows give to an entry that is the largest of both."""
        known: dict[Hashable, Array] = {}
        near = neighbours(field)
        digits = FEW if len(near) > MOST_CASES else DIGITS
        for a, b in near:
            union, key = together(field, field.windows[a], field.windows[b], digits)
            wins = once(known, (key, shares.numbers(a)), partial(shares.among, union, a))
            both = np.isin(union, field.windows[a]) & np.isin(union, field.windows[b])
            found[union[both], 0] += np.array([p[a, b] + p[b, a] for p in pairs]) @ wins[:, both]

    def _on_average(self, field: Field, shares: _Shares, own: tuple[Array, ...], apart: tuple[Array, ...]) -> Array:
        q, c = float(field.matrix[0, 0]), float(field.matrix[0, -1])

        def wins(size: int, moments: tuple[Array, ...]) -> float:
            matrix = completed(np.full((1, 1), c), np.full((1, 1), q), size)
            return float(np.array([m.mean() for m in moments]) @ shares(matrix, 0).sum(axis=1))

        found = wins(self.window.taps, own) * windows_per_entry(self.window)
        found += sum(float(share) / size * wins(size, apart) for size, share in overlaps(self.window))
        return np.full((1, 1), found)


class _Shares:
    """E[c(M) s(M)^2 1(i wins)] for every entry i of a window, or of several that count as one, and for the spline c
    that is one at a level and zero at the others: (levels x entries)."""

    def __init__(self, law: WonKnowing, field: Field, scale: float, given: tuple[Array, ...]) -> None:
        from scipy.interpolate import CubicSpline

        self._slope = Slope(law.square, given, 1 if field.alike else len(field.windows), law.score)
        self._field, self._scale, self._spline = field, max(scale, 1e-150), CubicSpline(LEVELS, np.eye(len(LEVELS)))

    def numbers(self, window: int) -> tuple[float, ...]:
        """The slope's coefficients."""
        return self._slope.numbers(window)

    def among(self, union: Index, window: int) -> Array:
        """Of several windows that count as one."""
        return self(self._field.block(union)[0], window)

    def __call__(self, matrix: Array, window: int) -> Array:
        law = winner_of(matrix, self._slope.jumps, self._slope.score)
        level = np.clip(law.points / self._scale, LEVELS[0], LEVELS[-1])
        slope: Any = np.broadcast_to(self._slope.at(window)(law.points), level.shape)
        return np.stack([law.expected(c * slope) for c in self._spline(level).T])
