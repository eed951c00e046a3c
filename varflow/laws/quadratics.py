"""E[z^k (z^2 + b)^p] of a zero-mean Gaussian: Bessel functions for half-integer p, erfc for negative integers.

With J_p = E (z^2 + b)^p, Stein's lemma gives J_{p+1} = (b + q(1 + 2p)) J_p - 2 p q b J_{p-1}; z = sqrt(b) sinh t
makes J_{-1/2} and J_{1/2} Bessel functions (Abramowitz and Stegun 1964, 9.6.24), and J_{-1} is Mills' ratio.
"""

from __future__ import annotations

from functools import lru_cache

import sympy as sp

from varflow.laws.pairs import NotClosed

_Q, _B = sp.Dummy("q", positive=True), sp.Dummy("b", positive=True)
_HALF = sp.Rational(1, 2)


def root_moment(degree: int, power: sp.Rational, b: sp.Expr, q: sp.Expr) -> sp.Expr:
    """E[z^degree (z^2 + b)^power], z ~ N(0, q), b > 0."""
    if degree % 2:
        return sp.S.Zero
    if degree > 24:
        raise NotClosed
    k = degree // 2
    terms = [sp.binomial(k, j) * (-_B) ** (k - j) * _moment(power + j) for j in range(k + 1)]
    return sp.expand(sp.Add(*terms)).xreplace({_Q: q, _B: b})


@lru_cache(maxsize=256)
def _moment(p: sp.Rational) -> sp.Expr:
    """E (z^2 + b)^p."""
    bases = _half_bases() if p.q == 2 else _whole_bases()
    if p in bases:
        return bases[p]
    if p > 0:
        last = p - 1
        up = (_B + _Q * (1 + 2 * last)) * _moment(last) - 2 * last * _Q * _B * _moment(last - 1)
        return sp.expand(up)
    after = p + 1
    down = (_B + _Q * (1 + 2 * after)) * _moment(after) - _moment(after + 1)
    return sp.expand(down / (2 * after * _Q * _B))


def _half_bases() -> dict[sp.Rational, sp.Expr]:
    a, scale = _B / (4 * _Q), sp.sqrt(2 * sp.pi * _Q)
    zero, one = (sp.exp(a) * sp.besselk(n, a) for n in (0, 1))
    return {-_HALF: zero / scale, _HALF: _B * (zero + one) / (2 * scale)}


def _whole_bases() -> dict[sp.Rational, sp.Expr]:
    ratio = sp.sqrt(sp.pi / (2 * _Q * _B)) * sp.exp(_B / (2 * _Q))
    return {
        sp.S.Zero: sp.S.One,
        sp.S.NegativeOne: ratio * sp.erfc(sp.sqrt(_B / (2 * _Q))),
    }
