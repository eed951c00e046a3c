"""Small signals: the one-sided Taylor expansion of an activation at 0, and what it says of its variance map."""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from varflow.laws.cells import NotFlat, kinked, pieces
from varflow.symbols import X

ORDER = 5
Series = tuple[sp.Expr, ...]


@dataclass(frozen=True)
class SmallSignal:
    """f(x) = sum_k right[k] x^k for x > 0 and sum_k left[k] x^k for x < 0, k = 0 ... 5.

    ``unit_slope`` is A = (right[1]^2 + left[1]^2)/2. Where f(0) = 0 and A > 0, the moments at variance q are
    E f^2 = A (q + a q^(1+p) + ...) and E f'^2 = A (1 + b q^p + ...), with ``power`` p (1 for smooth f, 1/2 where
    f or f' has a kink at 0), ``a`` and ``b`` (Roberts, Yaida and Hanin 2022, section 5.3: a_1 and b_1).
    """

    right: Series
    left: Series

    @property
    def vanishes(self) -> bool:
        """Whether f(0) = 0."""
        return _is_zero(self.right[0]) and _is_zero(self.left[0])

    @property
    def unit_slope(self) -> sp.Expr:
        """A: E f^2 / q as q goes to 0."""
        return _moment_of(_square(self.right, 2), _square(self.left, 2), 2)

    @property
    def correction(self) -> tuple[sp.Expr, sp.Expr, sp.Expr] | None:
        """(p, a, b): the first correction to E f^2 beyond A q; None where five orders show none."""
        for n in range(3, ORDER + 2):
            second = _moment_of(_square(self.right, n), _square(self.left, n), n)
            slope = _moment_of(
                _square(_slopes(self.right), n - 2), _square(_slopes(self.left), n - 2), n - 2
            )
            if not _is_zero(second):
                power = sp.Rational(n, 2) - 1
                return (
                    power,
                    sp.cancel(second / self.unit_slope),
                    sp.cancel(slope / self.unit_slope),
                )
        return None


def small_signal(f: sp.Expr) -> SmallSignal | None:
    """The expansion of f(x) at 0 from both sides; None where f has none there, or its pieces are not known."""
    try:
        borders, bodies = pieces(f, X) if kinked(f, (X,)) else ([], [f])
    except NotFlat:
        return None
    if not all(b.is_number for b in borders):
        return None
    right, left = (_series(_beside_zero(borders, bodies, side)) for side in (1, -1))
    return SmallSignal(right, left) if right and left else None


def scale_invariant(f: sp.Expr) -> tuple[sp.Expr, sp.Expr] | None:
    """(slope for x > 0, slope for x < 0) where f(t x) = t f(x) for every t > 0, else None."""
    try:
        borders, bodies = pieces(f, X) if kinked(f, (X,)) else ([], [f])
    except NotFlat:
        return None
    slopes = [sp.cancel(body / X) if body.is_polynomial(X) else sp.nan for body in bodies]
    if any(b != 0 for b in borders) or any(s.has(X, sp.nan) for s in slopes):
        return None
    return slopes[-1], slopes[0]


def _beside_zero(borders: list[sp.Expr], bodies: list[sp.Expr], side: int) -> sp.Expr:
    below = sum(1 for b in borders if (b <= 0 if side > 0 else b < 0))
    return bodies[below]


def _series(body: sp.Expr) -> Series:
    found = []
    for k in range(ORDER + 1):
        value = body.subs(X, 0) / sp.factorial(k)
        if value.is_finite is False or value.has(sp.nan, sp.zoo, sp.oo):
            return ()
        found.append(value)
        body = body.diff(X)
    return tuple(found)


def _slopes(series: Series) -> Series:
    return tuple(k * c for k, c in enumerate(series) if k)


def _square(series: Series, n: int) -> sp.Expr:
    """The coefficient of x^n in the square of a series."""
    return sp.Add(*(series[i] * series[n - i] for i in range(n + 1) if max(i, n - i) < len(series)))


def _moment_of(right: sp.Expr, left: sp.Expr, n: int) -> sp.Expr:
    """E[z^n (right 1(z > 0) + left 1(z < 0))], z ~ N(0, 1)."""
    half = (
        sp.Integer(2) ** (sp.Rational(n, 2) - 1) * sp.gamma(sp.Rational(n + 1, 2)) / sp.sqrt(sp.pi)
    )
    return sp.expand(half * (right + (-1) ** n * left))


def _is_zero(value: sp.Expr) -> bool:
    if value.free_symbols:
        return bool(sp.expand(value) == 0)
    return bool(abs(sp.N(value, 30)) < sp.Float("1e-18"))
