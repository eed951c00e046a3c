"""Integrals of a product f(z_1) g(z_2) without parameters inside: done by ``grids``, many at a time."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.laws.algebra import depends
from varflow.laws.grids import gaussian_kernel, gaussian_moment
from varflow.laws.integrand import Integrand, integrand
from varflow.laws.meshes import Line, Overflow, reaches
from varflow.laws.meshes import parts as parts_of
from varflow.laws.panels import Array
from varflow.laws.rotated import rotated
from varflow.symbols import X

SURE, FURTHER = 1e-2, 1.5
_COARSE, _COARSE_WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
Sides = tuple[sp.Expr, sp.Expr]


def sides(body: sp.Expr, names: tuple[sp.Symbol, ...]) -> Sides | None:
    """f and g, in ``symbols.X``, of an integrand f(z_1) g(z_2) with no other symbol; else None."""
    if len(names) != 2 or body.free_symbols != set(names):
        return None
    first, second = names
    factors = [[], []]  # type: list[list[sp.Expr]]
    for factor in sp.Mul.make_args(body):
        if depends(factor, (first,)) and depends(factor, (second,)):
            return None
        factors[int(depends(factor, (second,)))].append(factor)
    f, g = (sp.Mul(*parts) for parts in factors)
    return f.xreplace({first: X}), g.xreplace({second: X})


def evaluated(parts: Sides, law: list[Array]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """E f g for covariances (q_1, c, q_2), and where that is good to 1e-10 of E abs(f g)."""
    q1, c, q2 = (np.asarray(x) for x in law)
    root = np.sqrt(q1 * q2)
    r = np.divide(c, root, out=np.zeros_like(root), where=root > 0)
    r = np.where(1 - r * r < 1e-15, np.sign(r), r)
    f, g = (integrand(part) for part in parts)
    values = gaussian_kernel(f, g, q1, q2, r)
    scale = np.sqrt(_square(parts[0], q1) * _square(parts[1], q2))
    sure = (root == 0) | (np.abs(r) == 1) | (np.abs(values) > SURE * scale)
    sure &= np.isfinite(values)
    doubtful = np.flatnonzero(np.isfinite(values) & ~sure)
    if len(doubtful):
        sizes = _sizes(f, g, np.sqrt(q1[doubtful]), np.sqrt(q2[doubtful]), r[doubtful])
        small = doubtful[~(sizes > SURE * scale[doubtful])]
        values[small] = _small(f, g, np.sqrt(q1[small]), np.sqrt(q2[small]), r[small])
        sure[doubtful] = np.isfinite(values[doubtful])
    return values, sure | (root == 0)


def _small(f: Integrand, g: Integrand, s1: Array, s2: Array, r: Array) -> Array:
    """E f g to a part of itself, where it is far below sqrt(E f^2 E g^2): what counts lies far out."""
    first, second = Line(f, np.zeros_like(s1), s1), Line(g, np.zeros_like(s2), s2)
    left, right = Overflow(len(r)), Overflow(len(r))
    reach = np.maximum(reaches(first.values, 1, left), reaches(second.values, 1, right))
    return rotated(first, second, r, FURTHER * reach, np.zeros_like(r))


def _square(f: sp.Expr, q: Array) -> Array:
    return gaussian_moment(_squared(f), q)


@lru_cache(maxsize=512)
def _squared(f: sp.Expr) -> Integrand:
    return Integrand(f**2)


def _sizes(f: Integrand, g: Integrand, s1: Array, s2: Array, r: Array) -> Array:
    """E abs(f g) to a digit."""
    u, v = _COARSE[:, None], _COARSE[None, :]
    weights = np.outer(_COARSE_WEIGHTS, _COARSE_WEIGHTS) / (2 * np.pi)
    found = np.empty(len(r))
    with np.errstate(all="ignore"):
        for rows in parts_of(len(r), 64):
            x, y, c = (a[rows, None, None] for a in (s1, s2, r))
            first = f(np.broadcast_to(x * u, (len(rows), *weights.shape)))
            second = g(y * (c * u + np.sqrt(1 - c * c) * v))
            found[rows] = np.sum(np.abs(first * second) * weights, axis=(1, 2))
    return found
