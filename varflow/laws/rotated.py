"""E f(u) g(v) for correlations near 1 or -1: the sum and the difference of the two variables.

u = m_1 + s_1 (c p + d w), v = m_2 + s_2 (c p - d w) with independent p, w ~ N(0, 1), c^2 - d^2 = r. The
outer integral runs over the difference w: where no kink of f meets a kink of g it is smooth, and the
smoother the closer r is to 1. The inner one over p is split at the kinks of both.
"""

from __future__ import annotations

import numpy as np

from varflow.laws.meshes import Line, damped, damped_product, finite, mesh, uniform
from varflow.laws.panels import Array, Index, integrate

OUTER = np.array([-8.5, -4.0, -1.5, 0.0, 1.5, 4.0, 8.5])
INNER_ROWS, INNER_REACH, WIDTH = 2048, 8.5 / 12.0, 2.125


def rotated(first: Line, second: Line, r: Array, reach: Array, scale: Array) -> Array:
    """E f(u) g(v) for every row, 0 < abs(r) < 1, accurate to a part of ``scale`` = sqrt(E f^2 E g^2)."""
    second = Line(second.f, second.mean, second.sigma * np.where(r < 0, -1.0, 1.0))
    result = np.empty(len(r))
    for one in np.unique(reach):
        rows = np.flatnonzero(reach == one)
        result[rows] = _outer(
            first.take(rows), second.take(rows), np.abs(r[rows]), (float(one), scale[rows])
        )
    return result


def _outer(first: Line, second: Line, r: Array, size: tuple[float, Array]) -> Array:
    reach, scale = size
    c, d = np.sqrt((1 + r) / 2), np.sqrt((1 - r) / 2)
    base = OUTER * (reach / 12.0)

    def f(row: Index, w: Array) -> Array:
        owner = np.repeat(row, w.shape[1])
        flat = w.ravel()
        inner = np.concatenate(
            [_inner(first, second, (owner[k], flat[k]), (c, d), size) for k in _parts(len(flat))]
        )
        return damped(inner.reshape(w.shape), w, 2)

    return integrate(f, mesh(base, _meetings(first, second, d)), floor=scale)[0]


def _parts(count: int) -> list[slice]:
    return [slice(i, i + INNER_ROWS) for i in range(0, count, INNER_ROWS)]


def _meetings(first: Line, second: Line, d: Array) -> Array:
    """Differences w at which a kink of f meets one of g, [rows, pairs]."""
    gaps = first.kinks()[:, :, None] - second.kinks()[:, None, :]
    return np.asarray(gaps.reshape(len(d), -1) / (2 * d[:, None]))


def _inner(
    first: Line,
    second: Line,
    outer: tuple[Index, Array],
    turn: tuple[Array, Array],
    size: tuple[float, Array],
) -> Array:
    """E over p for every outer node (row, w): f(m_1 + s_1 (c p + d w)) g(m_2 + s_2 (c p - d w))."""
    owner, w = outer
    c, shift = turn[0][owner], turn[1][owner] * w
    left, right = first.take(owner), second.take(owner)
    left = Line(left.f, left.mean + left.sigma * shift, left.sigma * c)
    right = Line(right.f, right.mean - right.sigma * shift, right.sigma * c)

    def f(row: Index, p: Array) -> Array:
        return finite(damped_product(left.values(row, p), right.values(row, p), p))

    reach = INNER_REACH * size[0]
    breaks = mesh(uniform(reach, WIDTH), left.breaks(reach, WIDTH), right.breaks(reach, WIDTH))
    return integrate(f, breaks, floor=size[1][owner])[0]
