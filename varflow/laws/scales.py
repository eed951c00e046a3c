"""Integrals of f(mean + sigma z) at thousands of sigma, from a few.

A_k(s) = E f(mean + exp(s) z) h_k(z) is analytic in the strip abs(Im s) < pi/4 for every f of moderate growth, with
kinks or without, since the density carries all of the dependence on s. Chebyshev interpolation in s therefore
converges geometrically (Trefethen 2013, theorem 8.2); features of A_k are as wide as 1/sqrt(k). What is taken
is checked: the last Chebyshev coefficients of the table must have died out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from varflow.laws.panels import Array

Table = Callable[[Array], tuple[Array, Array]]
"""sigma [n] -> rows [n, columns] and the size [n] that the errors of each row are relative to."""
ROWS = 512
NEGLIGIBLE = 2e-14
MOST_RISE = 300.0
WORTH = 1.5
"""How many times as many rows as nodes make interpolation worth while; more rows than ROWS are done in parts."""


@lru_cache(maxsize=16)
def _transform(count: int) -> tuple[Array, Array]:
    """Nodes in [-1, 1], and the matrix from values there to Chebyshev coefficients."""
    angles = (np.arange(count) + 0.5) * np.pi / count
    matrix = 2 / count * np.cos(np.outer(np.arange(count), angles))
    matrix[0] /= 2
    return np.cos(angles), matrix


def tabulated(sigma: Array, count: int, table: Table) -> Array:
    """Rows [len(sigma), columns] of the table at every sigma > 0, most of them from ``count`` values of it.

    Where so few do not resolve the table, or vary too much in size, both halves of the range are tried.
    """
    found = _interpolated(sigma, count, table) if len(sigma) >= WORTH * count else None
    if found is not None:
        return found
    middle = np.sqrt(sigma.min() * sigma.max())
    low = sigma < middle
    if len(sigma) < WORTH * count or not 0 < np.count_nonzero(low) < len(sigma):
        parts = [table(sigma[i : i + ROWS])[0] for i in range(0, len(sigma), ROWS)]
        return np.concatenate(parts)
    rows = tabulated(sigma[low], count, table)
    result = np.empty((len(sigma), rows.shape[1]))
    result[low], result[~low] = rows, tabulated(sigma[~low], count, table)
    return result


def _interpolated(sigma: Array, count: int, table: Table) -> Array | None:
    s = np.log(sigma)
    low, high = float(s.min()), float(s.max())
    if not high > low:
        return None
    nodes, matrix = _transform(count)
    rows, sizes = table(np.exp((low + high) / 2 + (high - low) / 2 * nodes))
    least, most = float(np.min(sizes)), float(np.max(sizes))
    if not (np.isfinite(most) and least > 0 and most < MOST_RISE * least):
        return None
    coefficients = matrix @ rows
    last = np.sqrt(np.max(np.sum(coefficients[-3:] ** 2, axis=1)))
    if not last <= NEGLIGIBLE * least:
        return None
    local = np.clip((2 * s - low - high) / (high - low), -1.0, 1.0)
    return np.asarray(np.cos(np.outer(np.arccos(local), np.arange(count))) @ coefficients)
