"""The singular values of a deep network's input-output Jacobian, and dynamical isometry.

J = D_L W_L ... D_1 W_1, D = diag f'(x) with x ~ N(0, q) at every layer, W square and wide. Its squared singular
values follow from free probability (Pennington, Schoenholz and Ganguli 2017, 2018): with mu_k = E f'^(2k),
chi = s_w mu_1 and s_1 = -1 for independent entries of W, 0 for orthogonal W,

    mean chi^L,     variance chi^(2 L) L (mu_2/mu_1^2 - 1 - s_1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import sympy as sp

from varflow.criticality_arguments import depth as layers
from varflow.criticality_arguments import variance
from varflow.errors import InputError, UnsupportedError, require
from varflow.laws.cells import NotFlat, kinked, pieces
from varflow.laws.expectation import (
    GaussianExpectation,
    Normal,
    compile_formula,
    derivative,
    expect,
    has_jump,
)
from varflow.laws.numeric import vectorized
from varflow.onevariable import activation_in_x, text
from varflow.smallsignal import small_signal
from varflow.symbols import X

INDEPENDENT = ("normal", "uniform", "truncated_normal", "rademacher")
"""Distributions of independent entries; wide matrices of any of them have one spectrum."""
Array: TypeAlias = npt.NDArray[np.float64]
Series: TypeAlias = list[sp.Expr]
LAYERS = sp.Symbol("L", positive=True)
"""The number of layers in the moments as polynomials."""


@dataclass(frozen=True)
class JacobianSpectrum:
    """Squared singular values of the Jacobian of ``depth`` layers; made by :func:`jacobian_spectrum`.

    ``weights``: normal (or another distribution of independent entries) or orthogonal; ``sw`` = fan_in Var(W_ij);
    ``q``: the variance of every pre-activation, a fixed point of the variance map.
    """

    activation: sp.Expr
    depth: sp.Expr
    weights: str
    sw: sp.Expr
    q: sp.Expr

    @cached_property
    def slope(self) -> sp.Expr:
        """f' almost everywhere; f'(0) where pre-activations have no variance."""
        return _slope_at_zero(self.activation) if self.q == 0 else derivative(self.activation, X)

    def slope_moment(self, k: int) -> sp.Expr:
        """mu_k = E f'^(2k); beyond k = 2 as an integral, unless f' is a polynomial on each of its pieces."""
        power = self.slope ** (2 * k)
        return (
            _average(power, self.q)
            if k <= 2 or _bodies(self.slope, sp.Expr.is_polynomial)
            else _integral(power, self.q)
        )

    @property
    def first_coefficient(self) -> int:
        """s_1 of the S-transform of W^T W at unit mean: -1 for independent entries, 0 for orthogonal W."""
        return 0 if self.weights == "orthogonal" else -1

    @cached_property
    def chi(self) -> sp.Expr:
        """s_w E f'^2, the mean squared singular value of one layer."""
        return _plain(self.sw * self.slope_moment(1))

    @cached_property
    def mean(self) -> sp.Expr:
        """The mean squared singular value, chi^L."""
        return self.chi**self.depth

    @cached_property
    def variance(self) -> sp.Expr:
        """The variance of the squared singular values; sigma^2_JJT of the papers at chi = 1."""
        spread = self.slope_moment(2) / self.slope_moment(1) ** 2 - 1 - self.first_coefficient
        return _plain(self.chi ** (2 * self.depth) * self.depth * _plain(spread))

    @property
    def isometry(self) -> bool:
        """Whether every singular value is the same at any depth (dynamical isometry)."""
        return bool(self.variance == 0)

    def moment(self, k: int) -> sp.Expr:
        """E of the k-th power of a squared singular value, k = 1, 2, ...: Lagrange's inversion of the S-transform.

        With (1 + m)/S(m) =: phi(m) it is [m^(k-1)] phi(m)^k / k, S the product of the factors' S-transforms.
        """
        require(k, int, f"moment {k!r}", "1, 2, 3, ...")
        if k < 1:
            raise InputError(f"moment {k}", instead="1, 2, 3, ...")
        values = {_ratio(j): self.slope_moment(j) / self.slope_moment(1) ** j for j in range(2, k + 1)}
        table = {s: _plain(v) for s, v in values.items()} | {LAYERS: self.depth}
        return _plain(self.mean**k * _moment(k, self.first_coefficient).xreplace(table))

    @cached_property
    def largest(self) -> sp.Expr:
        """s_max^2, the upper edge of the squared singular values at large width.

        A formula for f' of one value beside 0 (identity, relu), where sw or depth may be symbols; else a number (1e-9);
        oo where f' is not bounded. Raises InputError where a number is needed and symbols are left.
        """
        share = _share(self.slope, self.q)
        if share is not None:
            return _edge_of_share(share, self.depth, self.chi, self.weights == "orthogonal")
        if any(v.free_symbols - {X} for v in (self.slope, self.q, self.sw, self.depth)):
            raise InputError(
                "the edge of this spectrum is a number", instead="numbers for depth, q and sw"
            )
        return self._edge()

    def _edge(self) -> sp.Expr:
        """inf over z of (1 + m)/m (m z/(1 + m))^L s_w^L / S_W(m)^L at m = E[f'^2/(z - f'^2)]."""
        from scipy.optimize import minimize_scalar

        top = _supremum(self.slope)
        if not np.isfinite(top):
            return sp.oo
        ratio, weight = _nodes(self.slope, float(self.q), top)
        depth, sw, orthogonal = float(self.depth), float(self.sw), self.weights == "orthogonal"

        def log_edge(t: float) -> float:
            z = 1 + np.exp(t)
            m = float(np.sum(weight * ratio / (z - ratio)))
            each = np.log(m * top * z / (1 + m) * sw)
            return float(np.log1p(1 / m) + depth * (each if orthogonal else each + np.log1p(m)))

        grid = np.arange(-10, 9 + np.log(depth), 0.25)  # in deep networks m is of order 1/depth
        values = [log_edge(t) for t in grid]
        k = int(np.argmin(values))
        low, high = grid[max(k - 1, 0)], grid[min(k + 1, len(grid) - 1)]
        best = minimize_scalar(
            log_edge, bounds=(low, high), method="bounded", options={"xatol": 1e-10}
        )
        at_top = depth * np.log(top * sw) if orthogonal else np.inf
        return sp.Float(sp.exp(sp.Float(min(best.fun, values[k], at_top), 15)), 12)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document without its schema number."""
        names = ("chi", "mean", "variance")
        formulas = {n: getattr(self, n) for n in names}
        return {
            "activation": text(self.activation),
            "depth": text(self.depth),
            "weights": self.weights,
            "sw": text(self.sw),
            "q": text(self.q),
            **{n: text(v) for n, v in formulas.items()},
            "value": {n: float(v) if v.is_number else None for n, v in formulas.items()},
        }


def jacobian_spectrum(
    activation: str | sp.Expr, depth: Any, weights: str = "normal", sw: Any = None, q: Any = 1
) -> JacobianSpectrum:
    """The spectrum of the Jacobian of ``depth`` layers (a number, a text as "L", or an expression).

    ``sw``: fan_in Var(W_ij) [default: 1/E f'^2, where chi = 1]; ``q``: the variance of pre-activations.
    Raises InputError for unknown weights, UnsupportedError for activations that jump.
    """
    f = activation_in_x(activation)
    if weights != "orthogonal" and weights not in INDEPENDENT:
        raise InputError(
            f"no spectrum is known for {weights!r} weights",
            instead=", ".join((*INDEPENDENT, "orthogonal")),
        )
    if has_jump(f, X):
        raise UnsupportedError("an activation that jumps has no Jacobian")
    at, count = variance(q, "q"), layers(depth)
    slopes = _average((_slope_at_zero(f) if at == 0 else derivative(f, X)) ** 2, at)
    if slopes == 0:
        raise InputError("the activation is constant", why="its Jacobian is zero")
    scale = 1 / slopes if sw is None else variance(sw, "sw")
    if scale == 0:
        raise InputError("sw = 0", why="the Jacobian is zero", instead="sw=1")
    return JacobianSpectrum(f, count, weights, scale, at)


def _slope_at_zero(f: sp.Expr) -> sp.Expr:
    """f'(0). Raises InputError where there is none, or it is 0."""
    near = small_signal(f)
    if near is None or sp.cancel(near.right[1] - near.left[1]) != 0:
        raise InputError("q = 0", why="the activation has no derivative at 0", instead="q=1")
    if near.right[1] == 0:
        raise InputError("q = 0", why="f'(0) = 0: the Jacobian is zero", instead="q=1")
    return near.right[1]


def _average(expr: sp.Expr, q: sp.Expr) -> sp.Expr:
    return expect(expr, {X: Normal()}, lambda u, v: q)


def _integral(expr: sp.Expr, q: sp.Expr) -> sp.Expr:
    return GaussianExpectation(expr, (X,), (q,))


def _plain(expr: sp.Expr) -> sp.Expr:
    """Lowest terms, or a number where integrals are left and no symbols."""
    if not expr.free_symbols and expr.has(GaussianExpectation, sp.Float):
        return sp.Float(float(compile_formula(expr, ())()), 15)
    return sp.cancel(expr) if expr.count_ops() < 300 and not expr.has(GaussianExpectation) else expr


@lru_cache(maxsize=64)
def _moment(k: int, first_coefficient: int) -> sp.Expr:
    """[m^(k-1)] phi(m)^k / k as a polynomial in ``LAYERS`` and mu_j/mu_1^j, ``_ratio(j)``."""
    logs = _log_of(_s_transform([sp.S.One, *map(_ratio, range(2, k + 1))]))
    ones = _log_of([sp.S.One, sp.S.One, *[sp.S.Zero] * k])
    if first_coefficient:
        logs = _added(logs, ones, -1)
    power = [k * one - k * LAYERS * s for one, s in zip(ones, logs, strict=False)]
    return sp.expand(_exp_of(power)[k - 1] / k)


def _ratio(j: int) -> sp.Symbol:
    return sp.Symbol(f"mu_{j}", positive=True)


# -- series in m -----------------------------------------------------------------------------------------------


def _product(one: Series, other: Series) -> Series:
    n = min(len(one), len(other))
    return [sp.expand(sp.Add(*(one[i] * other[k - i] for i in range(k + 1)))) for k in range(n)]


def _added(one: Series, other: Series, factor: int) -> Series:
    return [a + factor * b for a, b in zip(one, other, strict=False)]


def _s_transform(moments: Sequence[sp.Expr]) -> Series:
    """S(m) = (1 + m)/m psi^-1(m) of a law with these moments, the first being 1; as many terms as moments."""
    n = len(moments)
    inverse: Series = [sp.S.Zero, sp.S.One, *[sp.S.Zero] * (n - 1)]
    for k in range(2, n + 1):
        powers, total = list(inverse), sp.S.Zero
        for j in range(1, n + 1):
            total += moments[j - 1] * powers[k]
            powers = _product(powers, inverse)
        inverse[k] = sp.expand(inverse[k] - total)
    return [inverse[k + 1] + (inverse[k] if k else sp.S.Zero) for k in range(n)]


def _log_of(series: Series) -> Series:
    """log of a series that begins with 1."""
    made: Series = [sp.S.Zero]
    for k in range(1, len(series)):
        inner = sp.Add(*(sp.Rational(j, k) * made[j] * series[k - j] for j in range(1, k)))
        made.append(sp.expand(series[k] - inner))
    return made


def _exp_of(series: Series) -> Series:
    """exp of a series that begins with 0."""
    made: Series = [sp.S.One]
    for k in range(1, len(series)):
        made.append(
            sp.expand(
                sp.Add(*(sp.Rational(j, k) * series[j] * made[k - j] for j in range(1, k + 1)))
            )
        )
    return made


# -- the upper edge --------------------------------------------------------------------------------------------


def _bodies(slope: sp.Expr, kind: Callable[..., Any]) -> list[sp.Expr]:
    """The pieces of f' where all of them are of a kind, else none."""
    try:
        bodies = pieces(slope, X)[1] if kinked(slope, (X,)) else [slope]
    except NotFlat:
        return []
    return bodies if all(kind(b, X) for b in bodies) else []


def _share(slope: sp.Expr, q: sp.Expr) -> sp.Expr | None:
    """p where f'^2 takes one value with probability p and 0 otherwise, else None."""
    bodies = _bodies(slope, lambda b, x: not b.has(x))
    if not bodies or len({sp.expand(b**2) for b in bodies} - {0}) != 1:
        return None
    return sp.cancel(_average(slope**2, q) ** 2 / _average(slope**4, q))


def _edge_of_share(p: sp.Expr, depth: sp.Expr, chi: sp.Expr, orthogonal: bool) -> sp.Expr:
    """The edge by the m at which (1 + m)/m ((m + p)/p)^L chi^L, over (1 + m)^L if orthogonal, is least."""
    if orthogonal:
        if p == 1:
            return chi**depth
        above = depth * (1 - p) - 1
        if above.is_number and above <= 0:
            return (chi / p) ** depth
        m = p / above
        return sp.cancel((1 + m) / m) * (chi * sp.cancel((m + p) / (p * (1 + m)))) ** depth
    root = sp.sqrt(sp.factor((depth - 1) ** 2 + 4 * depth * p))
    m = (1 - depth + root) / (2 * depth)
    return sp.cancel((1 + m) / m) * (chi * sp.cancel((m + p) / p)) ** depth


def _nodes(slope: sp.Expr, q: float, top: float) -> tuple[Array, Array]:
    """f'^2/top at Gauss-Legendre nodes between the kinks of f', and the Gaussian's weights there."""
    borders = [float(b) for b in pieces(slope, X)[0]] if kinked(slope, (X,)) else []
    spread, far = np.sqrt(q), np.geomspace(1e-4, 12 * np.sqrt(q), 400) if q > 1 else np.array([])
    edges = np.unique(np.concatenate([np.linspace(-12, 12, 601) * spread, far, -far, borders]))
    nodes, weights = np.polynomial.legendre.leggauss(20)
    half = np.diff(edges)[:, None] / 2
    x = (edges[:-1, None] + half + half * nodes).ravel()
    density = np.exp(-(x**2) / (2 * q)) / np.sqrt(2 * np.pi * q)
    values = np.broadcast_to(vectorized(slope**2, (X,))(x), x.shape)
    return np.minimum(values / top, 1.0), (half * weights).ravel() * density


def _supremum(slope: sp.Expr) -> float:
    """sup f'(x)^2 over all x; inf where it grows."""
    from scipy.optimize import minimize_scalar

    f = vectorized(slope**2, (X,))
    with np.errstate(all="ignore"):
        far = np.asarray(f(np.array([-1e6, -1e3, 1e3, 1e6])), dtype=float)
        grid = np.linspace(-40, 40, 16001)
        values = np.asarray(f(grid), dtype=float)
    if not np.isfinite(far).all() or far[0] > 1.01 * far[1] + 1e-9 or far[3] > 1.01 * far[2] + 1e-9:
        return float("inf")
    k = int(np.nanargmax(values))
    low, high = grid[max(k - 1, 0)], grid[min(k + 1, len(grid) - 1)]
    best = minimize_scalar(
        lambda x: -float(f(x)), bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    )
    return float(max(values[k], -best.fun, *far))
