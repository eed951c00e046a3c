"""Hermite coefficients of f(mean + sigma z) and Mehler's series E f(u) g(v) = sum_k a_k b_k r^k.

F = f sqrt(density) is resolved on Gauss-Legendre panels that refine a fixed grid, carried to the Legendre
coefficients of the fixed panels and multiplied into one table of Hermite functions. What the series leaves
out is bounded by Parseval's identity: sum_{k >= K} a_k^2 = E f^2 - sum_{k < K} a_k^2.
Source: Mehler 1866; Daniely, Frostig and Singer 2016, section 11.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from varflow.laws.panels import ORDER, TO_COEFFICIENTS, Array, Index, Panels, points

SIZES = (64, 256, 1024)
_WIDTH = {64: 1.5, 256: 0.75, 1024: 0.375}


@dataclass(frozen=True)
class Coefficients:
    """a_k = E f(mean + sigma z) h_k(z) [rows, K], h_k orthonormal, and E f^2 [rows]."""

    values: Array
    square: Array

    @property
    def tail(self) -> Array:
        """sqrt of what Parseval's identity leaves for k >= K, at least its rounding."""
        left = self.square - np.einsum("ij,ij->i", self.values, self.values)
        return np.asarray(np.sqrt(np.maximum(left, 2e-15 * self.square)))


def grid(size: int, reach: float) -> Array:
    """The borders of the fixed panels for a series of ``size`` terms."""
    width = _WIDTH[size]
    return np.asarray(np.arange(round(2 * reach / width) + 1) * width - reach)


def psi(size: int, z: Array) -> Array:
    """Hermite functions psi_k = h_k sqrt(density) at z, [len(z), size]: sum_k psi_k(z)^2 stays bounded."""
    out = np.empty((size, len(z)))
    out[0] = np.exp(-0.25 * z * z) / (2 * np.pi) ** 0.25
    out[1] = z * out[0]
    for k in range(1, size - 1):
        out[k + 1] = (z * out[k] - np.sqrt(k) * out[k - 1]) / np.sqrt(k + 1)
    return np.ascontiguousarray(out.T)


@lru_cache(maxsize=12)
def _table(size: int, reach: float) -> Array:
    """From Legendre coefficients on the fixed panels, [panels * ORDER], to Hermite ones, [size]."""
    borders = grid(size, reach)
    z = points(borders[:-1], borders[1:])
    values = psi(size, z.ravel()).reshape(*z.shape, size)
    legendre = np.einsum("jn,pjk->pnk", TO_COEFFICIENTS, values)
    return np.ascontiguousarray(legendre.reshape(-1, size))


class Collector:
    """Adds resolved panels of F = f sqrt(density), then gives the coefficients."""

    def __init__(self, size: int, reach: float, rows: int) -> None:
        self.size, self.reach, self.rows = size, reach, rows
        self.borders = grid(size, reach)
        self.moments = np.zeros((rows * (len(self.borders) - 1), ORDER))
        self.square = np.zeros(rows)

    def add(self, panels: Panels) -> None:
        """Take in panels, each inside one panel of the grid."""
        count = len(self.borders) - 1
        width = _WIDTH[self.size]
        place = np.floor(((panels.a + panels.b) / 2 + self.reach) / width).astype(np.intp)
        place = np.clip(place, 0, count - 1)
        slot = panels.row * count + place
        whole = (panels.a == self.borders[place]) & (panels.b == self.borders[place + 1])
        weights = TO_COEFFICIENTS / (np.arange(ORDER) + 0.5)
        self.moments[slot[whole]] += panels.half[whole, None] * (panels.values[whole] @ weights)
        self._add_parts(panels, slot, place, ~whole, weights[:, 0])
        squares = panels.half * (panels.values**2 @ weights[:, 0])
        self.square += np.bincount(panels.row, squares, self.rows)

    def _add_parts(
        self,
        panels: Panels,
        slot: Index,
        place: Index,
        part: npt.NDArray[np.bool_],
        weights: Array,
    ) -> None:
        if not part.any():
            return
        a, b = panels.a[part], panels.b[part]
        local = (points(a, b) - self.borders[place[part], None]) * (2 / _WIDTH[self.size]) - 1
        scaled = panels.values[part] * weights * ((b - a) / 2)[:, None]
        before, now = np.zeros_like(local), np.ones_like(local)
        for n in range(ORDER):
            moment = np.einsum("ij,ij->i", scaled, now)
            self.moments[:, n] += np.bincount(slot[part], moment, len(self.moments))
            before, now = now, ((2 * n + 1) * local * now - n * before) / (n + 1)

    def result(self) -> Coefficients:
        """The coefficients of every row."""
        table = _table(self.size, self.reach)
        return Coefficients(self.moments.reshape(self.rows, -1) @ table, self.square)


def mehler(first: Coefficients, second: Coefficients, i: Index, j: Index, r: Array) -> Array:
    """sum_k a_k b_k r^k for rows i of the first and j of the second, [len(r)]."""
    size = first.values.shape[1]
    total = np.empty(len(r))
    step = max(1, 2_000_000 // size)
    for s in range(0, len(r), step):
        part = slice(s, s + step)
        products = first.values[i[part]] * second.values[j[part]]
        total[part] = np.einsum("ij,ij->i", products, powers(r[part], size))
    return total


def powers(r: Array, size: int) -> Array:
    """r^k, [len(r), size]."""
    out = np.ones((len(r), size))
    out[:, 1:] = r[:, None]
    return np.cumprod(out, axis=1, out=out)


def remainder(first: Array, second: Array, r: Array, size: int) -> Array:
    """A bound on what ``mehler`` leaves out, from the tails of both functions."""
    return np.asarray(np.abs(r) ** size * first * second)
