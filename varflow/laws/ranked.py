"""The entry of a window whose score is largest: entries are jointly Gaussian, the score any function of one entry.

The largest of f(x_1), ..., f(x_n), f not monotone, is f of the entry of largest score f. Given what entries have in
common they are independent, and entry i wins at x with density phi_i(x) prod_(j != i) F_j(f(x)), F_j the distribution
function of f(x_j). The line is cut into cells, put in the order of their scores; the sums of their probabilities are
F_j. Of cells of one score, x and -x for an even function, now the one and now the other stands first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import sympy as sp

from varflow.laws.blocks import coefficient
from varflow.laws.distinct import different_rows
from varflow.laws.largest import Winner, common_part, expected_at, levels, winner
from varflow.laws.numeric import vectorized
from varflow.laws.points import antithetic, root_of
from varflow.laws.positions import Array
from varflow.symbols import arg

ITSELF = arg(0)
Score: TypeAlias = Callable[[Array], Any]
CELLS, REACH = 4096, 9.0
"""Cells, half of them on either side of zero, and how many standard deviations they reach."""


def ranking(score: sp.Expr) -> Score | None:
    """A score as a function of arrays; None for the entry itself."""
    return None if score == ITSELF else vectorized(score, (arg(0),))


def ranked_at(level: Array, own: Array, score: Score) -> tuple[Array, Array]:
    """Points, and how probable it is (levels x points x entries) that an entry of mean ``level`` and variance ``own``
    lies there and wins."""
    from scipy.special import ndtr

    reach = float(np.hypot(REACH * np.sqrt(own.max()), np.abs(level).max()))
    borders = np.linspace(-reach, reach, CELLS + 1)
    points = (borders[1:] + borders[:-1]) / 2
    order = np.lexsort((np.arange(CELLS) % 2, np.broadcast_to(score(points), points.shape)))
    variances, kind = np.unique(own, return_inverse=True)
    below = ndtr((borders - level[:, None])[:, None, :] / np.sqrt(variances)[:, None])
    mass = np.diff(below, axis=2)[:, :, order]
    less = np.cumsum(mass, axis=2) - mass / 2
    counts = np.bincount(kind)
    wins = np.empty((len(level), len(points), len(own)))
    for i, k in enumerate(kind):
        powers = counts - (np.arange(len(counts)) == k)
        wins[:, order, i] = mass[:, k] * np.prod(less ** powers[:, None], axis=1)
    return points, wins


def ranked_winner(own: Array, common: float, score: Score) -> Winner:
    """Entries of independent parts and a common one."""
    level, share = levels(common)
    points, wins = ranked_at(level, own, score)
    return Winner(points, np.einsum("u,uzi->zi", share, wins))


def drawn_winner(matrix: Array, score: Score) -> Winner:
    """Entries of any covariance, by a sample."""
    x = antithetic(len(matrix)) @ root_of(matrix).T
    first = np.asarray(score(x)).argmax(axis=1)
    weights = np.zeros_like(x)
    weights[np.arange(len(x)), first] = 1 / len(x)
    return Winner(x[np.arange(len(x)), first], weights)


def greatest(x: Array, score: Score | None) -> Array:
    """Of every row the entry of largest score."""
    if score is None:
        return np.asarray(x.max(axis=1))
    return np.asarray(x[np.arange(len(x)), np.asarray(score(x)).argmax(axis=1)])


@dataclass(frozen=True)
class Race:
    """E[f(x) 1(entry wins)], summed over the ``wins`` first of ``count`` alike entries that covary alike, x the value
    of the winner; ``f`` of arg(0) and ``numbers`` coefficients. With ``g`` E[f(x) g(y)] of the winners of two such
    windows, whose entries covary with each other as those of one."""

    count: int
    wins: int
    f: sp.Expr
    g: sp.Expr | None
    score: sp.Expr
    numbers: int

    def apply(self, second: Array, other: Array, *given: Array) -> Array:
        """From the entries' moments at one place and between two; one result for each of the parameters' values."""
        shape = np.broadcast_shapes(second.shape, other.shape, *(g.shape for g in given))
        rows = np.stack([np.broadcast_to(g, shape).ravel() for g in (second, other, *given)], axis=-1)
        first, place = different_rows(rows)
        return np.array([self._expected(*rows[k]) for k in first])[place].reshape(shape)

    def _expected(self, second: float, other: float, *given: float) -> float:
        common = max(other, 0.0)
        level, share = levels(common)
        points, wins = ranked_at(level, np.full(self.count, second - common), vectorized(
            self.score, (arg(0),)))
        chance = wins[:, :, : self.wins].sum(axis=2)
        at = [np.broadcast_to(vectorized(h, (arg(0), *(coefficient(i) for i in range(self.numbers))))(points, *given),
                              points.shape) for h in (self.f, self.g) if h is not None]
        return float(share @ np.prod([chance @ h for h in at], axis=0))


def winner_of(matrix: Array, jumps: bool, score: Score | None) -> Winner:
    """The law of the entry of largest score, of Gaussian entries of this covariance."""
    if score is None:
        return winner(matrix, jumps)
    own, common = common_part(matrix)
    return drawn_winner(matrix, score) if own is None else ranked_winner(own, common, score)


def winners_at(level: Array, own: Array, h: Callable[[Array], Any], jumps: bool, score: Score | None) -> Array:
    """E[h(the entry of largest score)] of entries of independent parts, at every level of what they have in common."""
    if score is None:
        return expected_at(level, own, h, jumps)
    points, wins = ranked_at(level, own, score)
    return np.asarray(wins.sum(axis=2) @ np.broadcast_to(h(points), points.shape))
