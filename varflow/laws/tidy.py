"""The normal shape of a closed form: sum of (irrational product) x (factored rational function)."""

from __future__ import annotations

from functools import lru_cache

import sympy as sp

from varflow.laws.algebra import size
from varflow.waves import CosTail, Dawson, SinTail

JOINED = 150
"""Nodes of an expression beyond which its fractions are left apart."""


def tidy(expr: sp.Expr) -> sp.Expr:
    """Collect a sum by its irrational factors; rational coefficients are factored.

    Nothing under a denominator is multiplied out, and a root of a ratio of polynomials, known to be
    non-negative, is a ratio of roots.
    """
    if expr.is_Atom:
        return expr
    names: dict[sp.Expr, sp.Dummy] = {}
    polynomial = sp.expand_mul(sp.expand_multinomial(_skeleton(expr, names)))
    back = {d: e for e, d in names.items()}
    sums: dict[sp.Expr, list[sp.Expr]] = {}
    for term in sp.Add.make_args(polynomial):
        rational, irrational = _divide(term.xreplace(back))
        sums.setdefault(irrational, []).append(rational)
    parts = [i * _factored(sp.Add(*r)) for i, r in sums.items()]
    return sp.Add(*parts)


def _skeleton(expr: sp.Expr, names: dict[sp.Expr, sp.Dummy]) -> sp.Expr:
    if expr.is_Atom:
        return expr
    whole = isinstance(expr, sp.Pow) and expr.exp.is_Integer and expr.exp.is_positive
    if isinstance(expr, (sp.Add, sp.Mul)) or whole:
        return expr.func(*[_skeleton(a, names) for a in expr.args])
    settled = _settle(expr)
    if isinstance(settled, sp.Mul):
        return sp.Mul(*[_name(f, names) for f in settled.args])
    return _name(settled, names)


def _name(expr: sp.Expr, names: dict[sp.Expr, sp.Dummy]) -> sp.Expr:
    if expr.is_Atom:
        return expr
    return names.setdefault(expr, sp.Dummy(f"T{len(names)}"))


@lru_cache(maxsize=16384)
def _settle(expr: sp.Expr) -> sp.Expr:
    """The inside of a function, power or root brought into shape."""
    if isinstance(expr, sp.Pow) and expr.exp.is_Rational and not expr.exp.is_Integer:
        return _root(expr.base, expr.exp)
    if isinstance(expr, (sp.exp, sp.erf, sp.erfc, sp.asin)):
        inner = expr.args[0]
        if isinstance(expr, sp.exp) and inner.is_Add:
            return sp.exp(tidy(inner))
        if isinstance(expr, sp.asin) and not inner.is_number and inner.is_rational_function():
            return sp.asin(sp.factor(sp.cancel(inner)))
        return expr.func(tidy(inner))
    if isinstance(expr, (CosTail, SinTail, Dawson)):
        return expr.func(*map(tidy, expr.args))
    return expr


def _root(base: sp.Expr, power: sp.Rational) -> sp.Expr:
    if not base.is_rational_function() or base.is_number:
        return base**power
    above, below = sp.fraction(sp.cancel(base)) if not base.is_polynomial() else (base, sp.S.One)
    above, below = sp.expand(above), sp.factor(below)
    if below != 1 and _negative_sample(below):
        above, below = -above, -below
    content, above = above.primitive() if above.is_Add else above.as_coeff_Mul()
    return content**power * above**power / below**power


def _negative_sample(expr: sp.Expr) -> bool:
    """The sign where squares dominate products: that of any denominator of a variance."""
    symbols = sorted(expr.free_symbols, key=sp.default_sort_key)
    values = {
        s: sp.Integer(2 + k) if s.is_positive else sp.Rational(1, 10 + 3 * k)
        for k, s in enumerate(symbols)
    }
    return bool(expr.xreplace(values).is_negative)


def _divide(term: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    rational: list[sp.Expr] = []
    irrational: list[sp.Expr] = []
    for factor in sp.Mul.make_args(term):
        (rational if _is_rational(factor) else irrational).append(factor)
    return sp.Mul(*rational), sp.Mul(*irrational)


def _is_rational(factor: sp.Expr) -> bool:
    if factor.is_Rational or isinstance(factor, sp.Symbol):
        return True
    return (
        not factor.is_number and bool(factor.is_rational_function()) and not _transcendental(factor)
    )


def _transcendental(factor: sp.Expr) -> bool:
    numbers = (sp.NumberSymbol, sp.Pow)
    return any(
        isinstance(n, sp.NumberSymbol) or (n.is_Pow and not n.exp.is_Integer)
        for n in factor.atoms(*numbers)
    )


def _factored(coefficient: sp.Expr) -> sp.Expr:
    if not coefficient.is_Add:
        return coefficient
    if coefficient.is_polynomial():
        return coefficient
    return _factored_ratio(coefficient)


@lru_cache(maxsize=4096)
def _factored_ratio(coefficient: sp.Expr) -> sp.Expr:
    joined = sp.together(coefficient)
    if joined.is_polynomial() and sp.fraction(joined)[1].is_Rational:
        return coefficient
    return sp.factor(joined)


@lru_cache(maxsize=16384)
def joined(expr: sp.Expr) -> sp.Expr:
    """A short sum of fractions brought to one where that makes it half as long or less, as shares that add up to one
    do; anything else as it is."""
    fractions = expr.is_Add and any(isinstance(p.base, sp.Add) and p.exp.is_negative for p in expr.atoms(sp.Pow))
    length = size(expr, JOINED) if fractions else 0
    if not 0 < length <= JOINED or expr.has(sp.Function) or not expr.is_rational_function():
        return expr
    found = sp.cancel(expr)
    return found if 2 * size(found, JOINED) <= length else expr
