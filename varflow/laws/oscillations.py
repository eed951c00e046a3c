"""E[monomial cos(wave.x + offset)] of Gaussians, over the whole space or one half space.

Without a half space by the characteristic function. With one, y > a in units of its own standard deviation:
x = m + rho y + e and wave.x = ... + beta y + h, e and h independent of y, so that exp(i h) only moves e by
i Cov(e, h) and what is left is one integral over y > a of a polynomial times exp(i beta y): by parts,
C_k = a^(k-1) density(a) cos(beta a + theta) + (k - 1) C_(k-2) - beta S_(k-1), and S_k likewise with + beta C_(k-1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import sympy as sp

from varflow.laws.pairs import Matrix, Vector, moment, root
from varflow.waves import CosTail, SinTail


@dataclass(frozen=True)
class Oscillation:
    """Monomial x^exponents times cos(wave.x + offset), x ~ N(mean, gram); ``image`` is gram times wave."""

    exponents: tuple[int, ...]
    mean: Vector
    gram: Matrix
    image: Vector
    spread: sp.Expr
    """The variance of wave.x."""
    angle: sp.Expr
    """The offset and the mean of wave.x."""


@dataclass(frozen=True)
class Tail:
    """A Gaussian form above a threshold: ``gap`` is the threshold less its mean; covariances with x and wave.x."""

    gap: sp.Expr
    variance: sp.Expr
    with_x: Vector
    with_wave: sp.Expr
    tilted: bool
    """Whether a growing exponential multiplies the result."""


def whole(o: Oscillation) -> sp.Expr:
    """E of the oscillation."""
    real, imaginary = _parts(moment(o.exponents, _moved(o.mean, o.image), o.gram, {}))
    return sp.exp(-o.spread / 2) * (real * sp.cos(o.angle) - imaginary * sp.sin(o.angle))


def above(o: Oscillation, tail: Tail) -> sp.Expr:
    """E of the oscillation where the form is above its threshold."""
    sigma, n = root(tail.variance), range(len(o.exponents))
    rho = [c / sigma for c in tail.with_x]
    y = sp.Dummy("y", real=True)
    turn = tuple(_lowest(o.image[i] - tail.with_x[i] * tail.with_wave / tail.variance) for i in n)
    gram = tuple(
        tuple(_lowest(o.gram[i][j] - tail.with_x[i] * tail.with_x[j] / tail.variance) for j in n) for i in n
    )
    mean = tuple(m + r * y for m, r in zip(o.mean, rho, strict=True))
    polynomial = moment(o.exponents, _moved(mean, turn), gram, {}) if any(o.exponents) else sp.S.One
    real, imaginary = (_coefficients(p, y) for p in _parts(polynomial))
    made = _Integrals.of(tail, o.angle)
    terms = [r * made.cosine(k) for k, r in enumerate(real)] + [-r * made.sine(k) for k, r in enumerate(imaginary)]
    damping = _lowest(o.spread - tail.with_wave**2 / tail.variance)
    return sp.exp(-damping / 2) * sp.Add(*terms)


def _moved(mean: Vector, image: Vector) -> Vector:
    return tuple(m + sp.I * x for m, x in zip(mean, image, strict=True))


def _parts(value: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """Real and imaginary part of a polynomial of real symbols and I."""
    value = sp.expand(value)
    imaginary = value.coeff(sp.I, 1)
    return sp.expand(value - sp.I * imaginary), imaginary


def _lowest(expr: sp.Expr) -> sp.Expr:
    return sp.cancel(expr)


def _coefficients(polynomial: sp.Expr, y: sp.Symbol) -> list[sp.Expr]:
    if polynomial == 0 or not polynomial.has(y):
        return [polynomial]
    found: list[sp.Expr] = sp.Poly(polynomial, y).all_coeffs()[::-1]
    return found


_A, _BETA = sp.symbols("a beta", real=True, cls=sp.Dummy)


@lru_cache(maxsize=64)
def _by_parts(k: int) -> tuple[sp.Expr, sp.Expr]:
    """P and R, complex polynomials: int_a^oo y^k density e^(i beta y) = P T(a, beta) + R density(a) e^(i beta a)."""
    if k < 1:
        return sp.Integer(k + 1), sp.S.Zero
    (p, r), (before, edge) = _by_parts(k - 1), _by_parts(k - 2)
    turn = sp.I * _BETA
    return sp.expand(turn * p + (k - 1) * before), sp.expand(turn * r + (k - 1) * edge + _A ** (k - 1))


@dataclass(frozen=True)
class _Integrals:
    """Integrals over y > a of y^k density(y) cos(beta y + theta), and of the sine."""

    values: tuple[tuple[sp.Symbol, sp.Expr], ...]
    waves: tuple[sp.Expr, sp.Expr]
    borders: tuple[sp.Expr, sp.Expr]

    @classmethod
    def of(cls, tail: Tail, theta: sp.Expr) -> _Integrals:
        """From CosTail, SinTail and the values on the border."""
        sigma = root(tail.variance)
        a, beta = tail.gap / sigma, tail.with_wave / sigma
        angle = sp.expand(theta + _lowest(tail.with_wave * tail.gap / tail.variance))
        edge = sp.exp(-_lowest(tail.gap**2 / tail.variance) / 2) / sp.sqrt(2 * sp.pi)
        even, odd = _cos_tail(a, beta, tail), SinTail(a, beta)
        waves = sp.cos(theta) * even - sp.sin(theta) * odd, sp.sin(theta) * even + sp.cos(theta) * odd
        return cls(((_A, a), (_BETA, beta)), waves, (edge * sp.cos(angle), edge * sp.sin(angle)))

    def cosine(self, k: int) -> sp.Expr:
        """That of the cosine."""
        return self._part(k, 0)

    def sine(self, k: int) -> sp.Expr:
        """That of the sine."""
        return self._part(k, 1)

    def _part(self, k: int, sine: int) -> sp.Expr:
        total = []
        for polynomial, (c, s) in zip(_by_parts(k), (self.waves, self.borders), strict=True):
            real, imaginary = (p.xreplace(dict(self.values)) for p in _parts(polynomial))
            total.append(real * s + imaginary * c if sine else real * c - imaginary * s)
        return sp.Add(*total)


def _cos_tail(a: sp.Expr, beta: sp.Expr, tail: Tail) -> sp.Expr:
    """CosTail; a piece and its complement share one where nothing that grows multiplies it."""
    if tail.tilted or not a.could_extract_minus_sign():
        return CosTail(a, beta)
    damping = _lowest(tail.with_wave**2 / tail.variance)
    return sp.exp(-damping / 2) - CosTail(-a, beta)
