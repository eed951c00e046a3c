"""Gaussian vectors divided by their own length: what normalization makes of moments where its statistics stay random.

The entries of a group are a Gaussian vector y: ``places`` positions of several members (the samples of a batch, or
independent channels of a group), with one covariance matrix over positions within a member and one between two.
Their contrasts and their sum are independent, so two eigenvalue problems of the size of an image settle all. With
var = y^T y / N, E[var^-k f(y)] = int_0^inf t^(k-1) / Gamma(k) E[e^(-t var) f(y)] dt, and e^(-t var) leaves y
Gaussian: every moment is an integral over t (Magnus 1986 for ratios of quadratic forms).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from varflow.laws.positions import Array, completed

MOST_PLACES, MOST_GRADIENT_PLACES = 600, 1100
"""Positions beyond which statistics are taken as constants, forward and backward."""
NEGLIGIBLE = 1e-12
_GRID = np.arange(-60.0, 100.0, 0.25)
_KEPT = 8


def less_means(matrix: Array) -> Array:
    """A matrix over positions less the means of its rows and columns."""
    return np.asarray(matrix - matrix.mean(axis=0) - matrix.mean(axis=1, keepdims=True) + matrix.mean())


def _not_negative(values: Array) -> Array:
    """Eigenvalues of which those below zero come from inaccurate entries: none of them, and the same sum."""
    kept = np.maximum(values, 0.0)
    whole = float(kept.sum())
    return np.asarray(kept * (max(float(values.sum()), 0.0) / whole)) if whole > 0 else kept


@dataclass(frozen=True, eq=False)
class Matrix:
    """A symmetric matrix over positions by its ``values``; ``vectors`` are None where positions are exchangeable:
    then the first value is that of the constant vector and the second that of all others."""

    values: Array
    counts: Array
    vectors: Array | None

    @classmethod
    def of(cls, same: Array, other: Array, places: int, centred: bool) -> Matrix:
        """From moments at one position and between two."""
        if same.size == other.size == 1:
            q, c = float(same.item()), float(other.item())
            values = np.array([0.0 if centred else q + (places - 1) * c, q - c])
            return cls(np.maximum(values, 0.0), np.array([1.0, places - 1.0]), None)
        full = completed(other, same, places)
        values, vectors = np.linalg.eigh(less_means(full) if centred else full)
        return cls(_not_negative(values), np.ones(places), vectors)

    def applied(self, f: Array, x: Array) -> Array:
        """The function of the matrix with the values ``f`` times columns ``x``."""
        if self.vectors is None:
            return np.asarray(f[1] * x + (f[0] - f[1]) * x.mean(axis=0, keepdims=True))
        return np.asarray(self.vectors @ (f[:, None] * (self.vectors.T @ x)))

    def within(self, x: Array) -> Array:
        """Diagonal of ``x`` in the basis of the vectors (its mean where vectors are alike)."""
        if self.vectors is None:
            flat = float(x.mean() * len(x))
            return np.array([flat, (float(np.trace(x)) - flat) / max(len(x) - 1, 1)])
        return np.asarray(np.einsum("ik,ij,jk->k", self.vectors, x, self.vectors, optimize=True))


@dataclass(frozen=True, eq=False)
class Statistics:
    """The variance of a group, as a random number: of ``members`` (inf: many) with ``eps`` added. ``contrasts`` is
    the matrix of differences between members, ``common`` that of what they add up to, less its mean."""

    contrasts: Matrix
    common: Matrix
    members: float
    places: int
    eps: float
    fixed: float = field(default=0.0)

    @cached_property
    def scaled(self) -> tuple[Array, Array]:
        """Eigenvalues of the variance (those of the contrasts, those of the sum), each over the number of entries."""
        many = np.isinf(self.members)
        n = self.places * (1.0 if many else self.members)
        found = (np.zeros_like(self.contrasts.values) if many else self.contrasts.values / n, self.common.values / n)
        least = NEGLIGIBLE * max(self.fixed, *(float(v.max(initial=0.0)) for v in found))
        return found[0] * (found[0] > least), found[1] * (found[1] > least)

    @cached_property
    def counts(self) -> tuple[Array, Array]:
        """How often each eigenvalue stands."""
        times = 0.0 if np.isinf(self.members) else self.members - 1
        return times * self.contrasts.counts, self.common.counts

    @property
    def mean(self) -> float:
        """E[var]."""
        return self.fixed + self.eps + sum(float(v @ c) for v, c in zip(self.scaled, self.counts, strict=True))

    @property
    def finite(self) -> bool:
        """Whether E[1/var] is: a chi-squared number of three terms at least."""
        rank = sum(float(c[v > 0].sum()) for v, c in zip(self.scaled, self.counts, strict=True))
        return self.fixed + self.eps > 0 or rank > 2

    @cached_property
    def _points(self) -> tuple[Array, Array]:
        """t and E[e^(-t var)], times what makes sums over them integrals."""
        t = np.exp(_GRID) / self.mean
        log = -t * (self.fixed + self.eps)
        for values, counts in zip(self.scaled, self.counts, strict=True):
            kept = (values > 0) & (counts > 0)
            log = log - np.log1p(2 * np.outer(t, values[kept])) @ counts[kept] / 2
        return t, np.exp(log + _GRID) * (_GRID[1] - _GRID[0]) / self.mean

    def inverse(self) -> float:
        """E[1/var]."""
        return float(self._points[1].sum()) if self.finite else np.inf

    def whole(self, power: float) -> float:
        """E[var^(-1 - power)] for a power of 0 or -1/2."""
        t, weights = self._points
        return float(weights @ t**power) / math.gamma(1 + power)

    def ratio(self, power: float, which: int) -> Array:
        """E[var^(-1 - power) y^2] / E[y^2] for y along every eigenvector of the contrasts (0) or of the sum (1)."""
        t, weights = self._points
        found = (weights * t**power) @ (1 / (1 + 2 * np.outer(t, self.scaled[which])))
        return np.asarray(found / math.gamma(1 + power))


_known: OrderedDict[tuple[object, ...], Statistics] = OrderedDict()


def statistics(moments: Sequence[Array], eps: Array, members: Array | None, places: int) -> Statistics:
    """From covariances within a member, at one position and between two, and between members; found once."""
    arrays = (*moments[:4], eps, *(() if members is None else (members,)))
    key = (*((a.shape, a.tobytes()) for a in arrays), places)
    if key not in _known:
        number = np.inf if members is None else float(members.item())
        _known[key] = _statistics(moments, float(eps.item()), number, places)
        if len(_known) > _KEPT:
            _known.popitem(last=False)
    return _known[key]


def _statistics(moments: Sequence[Array], eps: float, members: float, places: int) -> Statistics:
    same, shared = np.broadcast_arrays(moments[0], moments[2])
    other, shared_other = np.broadcast_arrays(moments[1], moments[3])
    if np.isinf(members):
        none = Matrix(np.zeros(1), np.zeros(1), None)
        fixed = max(float((same - shared).mean()), 0.0)
        return Statistics(none, Matrix.of(shared, shared_other, places, True), members, places, eps, fixed)
    contrasts = Matrix.of(same - shared, other - shared_other, places, False)
    b = members - 1
    common = Matrix.of(same + b * shared, other + b * shared_other, places, True)
    return Statistics(contrasts, common, members, places, eps)


@dataclass(frozen=True)
class Normalized:
    """Covariance of a normalized value (first place) with another, from those of the value y before:
    E[y/sigma w] = R E[y w] with R = E[y y^T/sigma] E[y y^T]^-1; ``itself``: E[y y^T/var].

    Between two positions (``position``), and between two members (``across``); ``still``: the other value is the
    same at all positions.
    """

    places: int
    many: bool
    position: bool
    across: bool
    itself: bool = False
    still: bool = False

    def apply(self, members: Array, eps: Array, *moments: Array) -> Array:
        """Four covariances of the value before (within a member at one position and between two, then between
        members), then, but for ``itself``, as many of it with the other value."""
        if not all(np.isfinite(m).all() for m in moments):
            return np.full((1, 1), np.nan)
        s = statistics(moments, eps, None if self.many else members, self.places)
        found = self._found(s, *self._columns(moments[-4:]))
        if all(m.size == 1 for m in moments):
            return np.full((1, 1), _entry(found, self.position))
        return found if self.position else found if self.still else np.diag(found)[:, None].copy()

    def _columns(self, moments: tuple[Array, ...]) -> tuple[Array, Array]:
        """E[y w] within a member and between two, a column for every position of the other value."""
        n = self.places
        if self.still:
            return np.broadcast_to(moments[0], (n, 1)), np.broadcast_to(moments[2], (n, 1))
        return completed(moments[1], moments[0], n), completed(moments[3], moments[2], n)

    def _found(self, s: Statistics, within: Array, between: Array) -> Array:
        power = 0.0 if self.itself else -0.5
        apart, of_sum = within - between, s.ratio(power, 1)
        if self.many:
            total = s.common.applied(of_sum, self._centred(between))
            return total if self.across else total + s.whole(power) * apart
        b = s.members
        total = s.common.applied(of_sum, self._centred(within + (b - 1) * between)) / b
        contrast = s.contrasts.applied(s.ratio(power, 0), apart) / b
        return total - contrast if self.across else total + (b - 1) * contrast

    def _centred(self, moments: Array) -> Array:
        return less_means(moments) if self.itself else moments - moments.mean(axis=0)


def _entry(matrix: Array, apart: bool) -> float:
    """The mean of the diagonal, or of what stands beside it."""
    n = len(matrix)
    same = float(np.trace(matrix)) / n if matrix.shape[1] == n else float(matrix.mean())
    if not apart or n == 1 or matrix.shape[1] == 1:
        return same
    return float(matrix.sum() - n * same) / (n * (n - 1))


@dataclass(frozen=True)
class Shrinkage:
    """What a gradient d of covariance G, less its mean, is multiplied by, squared: E|d - y (y^T d)/(N var)|^2 / var
    over E|d|^2, for a gradient that is independent of the entries y."""

    places: int
    many: bool

    def apply(self, members: Array, eps: Array, *moments: Array) -> Array:
        """Four covariances of the entries, as for :class:`Normalized`, and four of the gradient."""
        if not all(np.isfinite(m).all() for m in moments):
            return np.full((1, 1), np.nan)
        s = statistics(moments, eps, None if self.many else members, self.places)
        if not s.finite:
            return np.full((1, 1), 0.0 if s.members * self.places == 2 else np.inf)
        n, g = self.places, moments[4:]
        within, between = completed(g[1], g[0], n), completed(g[3], g[2], n)
        along, total = self._along(s, within - between, between)
        return np.full((1, 1), s.inverse() - (along / total if total > 0 else 0.0))

    def _along(self, s: Statistics, apart: Array, between: Array) -> tuple[float, float]:
        """E (y^T d)^2 / (N var^2), and E|d|^2, of every member."""
        b = 1.0 if self.many else s.members
        common = less_means(between if self.many else apart + b * between)
        total = float(np.trace(common) + (np.trace(apart) if self.many else (b - 1) * np.trace(apart)))
        terms = s.common.counts * s.common.within(common) * s.scaled[1] * s.ratio(1.0, 1)
        along = float(terms.sum())
        if not self.many:
            terms = s.contrasts.counts * s.contrasts.within(apart) * s.scaled[0] * s.ratio(1.0, 0)
            along += (b - 1) * float(terms.sum())
        return along, total
