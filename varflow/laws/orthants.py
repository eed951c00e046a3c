"""E[x^k 1(f_1 > t_1, f_2 > t_2)] of jointly Gaussian x, f_1, f_2, in a field of rational functions.

By Stein's lemma X_k = E[x^k; both above] obeys X_k = m X_(k-1) + (k-1) v X_(k-2) + sum_i Cov(x, f_i) p_i K^i_(k-1),
p_i the density of f_i at its threshold and K^i the same moments of the other tail given f_i there, for which the same
holds once more; the last ones are moments given both. So X_k is a ratio of polynomials times each of Phi2, two
products of a density and a probability, and the joint density.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy as sp

from varflow.binormal import Phi2
from varflow.laws.pairs import NotClosed, Vector, root

MAX_DEGREE = 12


@dataclass(frozen=True)
class Corner:
    """x ~ N(mean, variance) and two forms above their thresholds."""

    mean: sp.Expr
    variance: sp.Expr
    with_x: Vector
    """Covariances of x with the two forms."""
    gaps: Vector
    """Thresholds less the means of the forms."""
    variances: Vector
    cross: sp.Expr
    """The covariance of the forms."""


def corner_moment(k: int, corner: Corner) -> sp.Expr:
    """E[x^k; both above]. NotClosed for forms that determine each other, or high degrees."""
    c = corner
    det = sp.cancel(c.variances[0] * c.variances[1] - c.cross**2)
    if det == 0 or k > MAX_DEGREE:
        raise NotClosed
    field, numbers = sp.sfield([c.mean, c.variance, *c.with_x, *c.gaps, *c.variances, c.cross])
    coefficients = _Recursion(field.zero, field.one, *numbers).moment(k)
    parts = (_both(c), _one(c, 0), _one(c, 1), _density(c, det))
    return sp.Add(*[a.as_expr() * part for a, part in zip(coefficients, parts, strict=True)])


class _Recursion:
    """The recursion on elements of a field: four coefficients a moment."""

    def __init__(self, zero: Any, one: Any, *numbers: Any) -> None:
        m, v, g1, g2, t1, t2, v1, v2, r = numbers
        self.mean, self.variance, self.with_x = m, v, (g1, g2)
        self.zero, self.one = zero, one
        det = v1 * v2 - r**2
        pairs = ((g1, g2, t1, v1), (g2, g1, t2, v2))
        self.given = [(m + g * t / w, v - g**2 / w, other - g * r / w) for g, other, t, w in pairs]
        weights = ((g1 * v2 - g2 * r) / det, (g2 * v1 - g1 * r) / det)
        self.mean_of_both = m + weights[0] * t1 + weights[1] * t2
        self.variance_of_both = v - weights[0] * g1 - weights[1] * g2

    def moment(self, k: int) -> tuple[Any, Any, Any, Any]:
        """Coefficients of Phi2, of either density times the other tail, and of the joint density."""
        found = [(self.one, self.zero, self.zero, self.zero)]
        tails = [self.tail(i, k) for i in range(2)]
        for n in range(1, k + 1):
            before = found[n - 2] if n > 1 else (self.zero,) * 4
            new = [self.mean * a + (n - 1) * self.variance * b for a, b in zip(found[n - 1], before, strict=True)]
            for i, g in enumerate(self.with_x):
                whole, border = tails[i][n - 1]
                new[1 + i] += g * whole
                new[3] += g * border
            found.append((new[0], new[1], new[2], new[3]))
        return found[k]

    def tail(self, i: int, count: int) -> list[tuple[Any, Any]]:
        """E[x^n; the other above] given form i at its threshold, n < count: coefficients of its tail and density."""
        mean, variance, slope = self.given[i]
        both = self.given_both(count)
        found = [(self.one, self.zero)]
        for n in range(1, count):
            before = found[n - 2] if n > 1 else (self.zero, self.zero)
            whole, border = (mean * a + (n - 1) * variance * b for a, b in zip(found[n - 1], before, strict=True))
            found.append((whole, border + slope * both[n - 1]))
        return found

    def given_both(self, count: int) -> list[Any]:
        """E x^n given both forms at their thresholds."""
        found = [self.one, self.mean_of_both]
        for n in range(2, count + 1):
            found.append(self.mean_of_both * found[-1] + (n - 1) * self.variance_of_both * found[-2])
        return found


def _both(c: Corner) -> sp.Expr:
    below = [-t / root(v) for t, v in zip(c.gaps, c.variances, strict=True)]
    return Phi2(*below, c.cross / (root(c.variances[0]) * root(c.variances[1])))


def _one(c: Corner, i: int) -> sp.Expr:
    """The density of form i at its threshold times the probability that the other is above its own."""
    t, v, other = c.gaps[i], c.variances[i], 1 - i
    height = sp.exp(-sp.cancel(t**2 / v) / 2) / (sp.sqrt(2 * sp.pi) * root(v))
    gap = sp.cancel(c.gaps[other] - c.cross * t / v)
    rest = sp.cancel(c.variances[other] - c.cross**2 / v)
    return height * (1 - sp.erf(gap / (sp.sqrt(2) * root(rest)))) / 2


def _density(c: Corner, det: sp.Expr) -> sp.Expr:
    first, second = c.gaps
    weight = first**2 * c.variances[1] - 2 * c.cross * first * second + second**2 * c.variances[0]
    return sp.exp(-sp.cancel(weight / det) / 2) / (2 * sp.pi * root(det))
