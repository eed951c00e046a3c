"""The largest of jointly Gaussian entries: its law, and which entry it is.

With a common component, or none, the density of the largest is one integral: sum_i phi_i(z) prod_(j != i) Phi_j(z); any
other covariance is sampled by a Sobol sequence (Owen 1998). Entry ``i`` wins at ``points[k]`` with weight
``weights[k, i]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from varflow.laws.points import antithetic, root_of
from varflow.laws.positions import Array

PANELS, ORDER, LEVELS = 24, 12, 121
FINE = 128
"""Pieces of a panel, two points each, for functions that may jump anywhere: good to 0.2 % there."""
NARROW = 0.02
"""Least ratio of variances that the integrals resolve."""


@dataclass(frozen=True)
class Winner:
    """Where the largest entry lies and which one it is."""

    points: Array
    weights: Array

    def expected(self, f: Array) -> Array:
        """E[f(largest) 1(i wins)] for every entry i, from f at the points."""
        return np.asarray(np.broadcast_to(f, self.points.shape) @ self.weights)


def winner(matrix: Array, jumps: bool = False) -> Winner:
    """The law of the largest of Gaussian entries of this covariance; for functions that have ``jumps``."""
    own, common = common_part(matrix)
    return sampled_winner(matrix) if own is None else integrated_winner(own, common, jumps)


def common_part(matrix: Array) -> tuple[Array | None, float]:
    """(own variances, variance of a common component) where the entries have no other covariance and none of the
    variances is too narrow for an integral; else (None, 0)."""
    variances, n = np.diag(matrix), len(matrix)
    apart = matrix[~np.eye(n, dtype=bool)] if n > 1 else np.zeros(1)
    widest = float(variances.max())
    common = float(apart.mean())
    if np.ptp(apart) > 1e-9 * widest or common < -1e-12 * widest:
        return None, 0.0
    own = variances - max(common, 0.0)
    narrow = own.min() <= NARROW * max(common, float(own.max())) or widest <= 0
    return (None, 0.0) if narrow else (own, max(common, 0.0))


def integrated_winner(own: Array, common: float, jumps: bool = False) -> Winner:
    """Entries of independent parts and a common one: integrals over the common one and the largest."""
    reach = 9 * float(np.sqrt(own.max() + common))
    z, w = _panels(reach)
    level, share = levels(common)
    at = (z[:, None] - level[None, :])[:, :, None] / np.sqrt(own)
    below = _log_below(at)
    density = np.exp(below.sum(axis=2, keepdims=True) - below - at**2 / 2) / np.sqrt(2 * np.pi * own)
    found = np.einsum("u,zui->zi", share, density)
    return _between(reach, found) if jumps else Winner(z, w[:, None] * found)


def _between(reach: float, density: Array) -> Winner:
    """The same law at many points between the nodes of the panels, by the polynomials through the nodes."""
    legendre = np.polynomial.legendre
    inner = (np.arange(FINE)[:, None] + 0.5 + np.array([-0.5, 0.5]) / np.sqrt(3)).ravel() / FINE * 2 - 1
    nodes = legendre.leggauss(ORDER)[0]
    through = legendre.legvander(inner, ORDER - 1) @ np.linalg.inv(legendre.legvander(nodes, ORDER - 1))
    half = reach / PANELS
    points = (np.linspace(-reach, reach, PANELS + 1)[:-1, None] + half * (1 + inner)).ravel()
    found = np.einsum("fo,poi->pfi", through, density.reshape(PANELS, ORDER, -1)).reshape(len(points), -1)
    return Winner(points, found * half / FINE)


def expected_at(level: Array, own: Array, h: Callable[[Array], Any], jumps: bool = False) -> Array:
    """E[h(largest)] of entries of independent parts, at every level of what they have in common."""
    law = integrated_winner(own, 0.0, jumps)
    x = law.points[:, None] + level
    return np.asarray(law.weights.sum(axis=1) @ np.broadcast_to(h(x), x.shape))


def _log_below(x: Array) -> Array:
    from scipy.special import log_ndtr

    return np.asarray(log_ndtr(x))


@lru_cache(maxsize=32)
def _panels(reach: float) -> tuple[Array, Array]:
    """Gauss-Legendre points and weights on panels from -reach to reach, zero a border."""
    nodes, weights = np.polynomial.legendre.leggauss(ORDER)
    edges = np.linspace(-reach, reach, PANELS + 1)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half + half * nodes).ravel(), (half * weights).ravel()


def levels(common: float) -> tuple[Array, Array]:
    """Values of the common component and their probabilities."""
    if common == 0:
        return np.zeros(1), np.ones(1)
    u = np.linspace(-7.5, 7.5, LEVELS)
    share = np.exp(-(u**2) / 2)
    return np.sqrt(common) * u, share / share.sum()


def sampled_winner(matrix: Array) -> Winner:
    """Any covariance, by a sample."""
    x = antithetic(len(matrix)) @ root_of(matrix).T
    first = x.argmax(axis=1)
    weights = np.zeros_like(x)
    weights[np.arange(len(x)), first] = 1 / len(x)
    return Winner(x[np.arange(len(x)), first], weights)
