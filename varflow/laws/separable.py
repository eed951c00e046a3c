"""Integrals of a product f(z_1) g(z_2) without parameters inside: done by ``grids``, many at a time."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.laws.algebra import depends
from varflow.laws.grids import gaussian_kernel, gaussian_moment
from varflow.laws.integrand import Integrand, integrand
from varflow.laws.panels import Array
from varflow.symbols import X

SURE = 1e-2
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
    sure = np.isfinite(values) & (np.abs(values) > SURE * scale)
    doubtful = np.flatnonzero(np.isfinite(values) & ~sure)
    if len(doubtful):
        size = _size(f, g, np.sqrt(q1[doubtful]), np.sqrt(q2[doubtful]), r[doubtful])
        sure[doubtful] = size > SURE * scale[doubtful]
    return values, sure | (root == 0)


def _square(f: sp.Expr, q: Array) -> Array:
    return gaussian_moment(_squared(f), q)


@lru_cache(maxsize=512)
def _squared(f: sp.Expr) -> Integrand:
    return Integrand(f**2)


def _size(f: Integrand, g: Integrand, s1: Array, s2: Array, r: Array) -> Array:
    """E abs(f g) to a digit."""
    u, v = _COARSE[:, None], _COARSE[None, :]
    weights = np.outer(_COARSE_WEIGHTS, _COARSE_WEIGHTS) / (2 * np.pi)
    found = np.empty(len(r))
    with np.errstate(all="ignore"):
        for k in range(len(r)):
            first = f(np.broadcast_to(s1[k] * u, weights.shape))
            second = g(s2[k] * (r[k] * u + np.sqrt(1 - r[k] ** 2) * v))
            found[k] = np.sum(np.abs(first * second) * weights)
    return found
