"""A smooth function at many rows of arguments from its values at some: an interpolated quadratic.

Moments between the places of an image depend on a handful of covariances that vary smoothly from place to place. The
rows vary in few directions; a polynomial in these, fitted where its terms differ most, gives all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
DIRECTIONS = 4
SMALL = 1e-4
"""A direction that varies less than that share of the first is left out."""
SPARE = 4.0
"""Evaluated rows for each term that is fitted."""
GOOD, MORE = 3e-3, 4
"""Error at the fitted rows, in units of the largest value, beyond which more rows are evaluated, and how many times."""


def fitted(rows: Array, evaluate: Callable[[Array], float], exactly: int, counts: Array | None = None) -> Array:
    """``evaluate`` at every one of the (different) rows: one by one up to ``exactly`` of them, else by the fit. Where
    the fit is not good at the rows it was made from, up to ``MORE`` times as many are evaluated, frequent ones (of
    ``counts``) first."""
    if len(rows) <= exactly:
        return np.array([evaluate(row) for row in rows])
    terms = _terms(rows)
    chosen = _spread(terms, min(exactly, int(SPARE * terms.shape[1])))
    known = np.array([evaluate(rows[k]) for k in chosen])
    coefficients = np.linalg.lstsq(terms[chosen], known, rcond=None)[0]
    found = np.asarray(terms @ coefficients)
    if np.abs(found[chosen] - known).max() > GOOD * np.abs(known).max():
        others = np.setdiff1d(np.arange(len(rows)), chosen)
        often = others if counts is None else others[np.argsort(-counts[others], kind="stable")]
        more = often[: MORE * exactly - len(chosen)]
        found[more] = [evaluate(rows[k]) for k in more]
    found[chosen] = known
    return found


def _terms(rows: Array) -> Array:
    """Monomials up to degree two in the directions that the rows vary in, (rows, terms)."""
    off = rows - rows.mean(axis=0)
    sizes = np.abs(off).max(axis=0)
    off = off[:, sizes > 0] / sizes[sizes > 0]
    squares, directions = np.linalg.eigh(off.T @ off)
    strengths = np.sqrt(np.maximum(squares[::-1], 0.0))
    kept = directions.T[::-1][:DIRECTIONS][strengths[:DIRECTIONS] > SMALL * strengths[0]]
    x = off @ kept.T
    x /= np.abs(x).max(axis=0)
    products = [x[:, i] * x[:, j] for i, j in combinations_with_replacement(range(x.shape[1]), 2)]
    return np.column_stack([np.ones(len(x)), x, *products])


def _spread(terms: Array, count: int) -> npt.NDArray[np.intp]:
    """The rows in which the terms are as independent as can be, and others evenly along the first direction."""
    from scipy.linalg import qr

    extreme = qr(terms.T, pivoting=True, mode="r")[1][: terms.shape[1]]
    along = np.argsort(terms[:, 1], kind="stable")
    others = along[np.linspace(0, len(along) - 1, max(count - len(extreme), 2)).astype(np.intp)]
    return np.unique(np.concatenate([extreme, others]))
