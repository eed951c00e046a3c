"""Derivatives almost everywhere: what a backward pass of a network computes."""

from __future__ import annotations

from functools import lru_cache

import sympy as sp

from varflow.activations import substitute


@lru_cache(maxsize=4096)
def derivative(expr: sp.Expr, symbol: sp.Symbol) -> sp.Expr:
    """d expr / d symbol where it exists; a jump contributes nothing (as in automatic differentiation)."""
    raw = sp.diff(expr, symbol)
    if raw.has(sp.DiracDelta):
        raw = raw.replace(sp.DiracDelta, lambda *_: sp.S.Zero)
    if raw.has(sp.Heaviside):
        raw = raw.replace(sp.Heaviside, lambda z, *_: sp.Piecewise((1, z > 0), (0, True)))
    return raw


@lru_cache(maxsize=4096)
def pulled_back(expr: sp.Expr, symbol: sp.Symbol, gradient: sp.Symbol) -> sp.Expr:
    """The gradient at ``symbol``: the derivative times the gradient at the result."""
    return derivative(expr, symbol) * gradient


@lru_cache(maxsize=65536)
def symbols_in(expr: sp.Basic) -> frozenset[sp.Symbol]:
    """The free symbols; cached, since sympy finds them anew each time."""
    return frozenset(expr.free_symbols)


@lru_cache(maxsize=32768)
def rename(expr: sp.Expr, pairs: tuple[tuple[sp.Symbol, sp.Expr], ...]) -> sp.Expr:
    """``expr`` with symbols replaced; cached, since piecewise expressions are slow to rebuild."""
    changed = {a: b for a, b in pairs if a != b}
    return substitute(expr, changed) if changed else expr


@lru_cache(maxsize=32768)
def quotient(a: sp.Expr, b: sp.Expr) -> sp.Expr:
    """a / b in lowest terms."""
    return tidy(a / b)


@lru_cache(maxsize=32768)
def times(a: sp.Expr, b: sp.Expr) -> sp.Expr:
    """a b in lowest terms."""
    return tidy(a * b)


@lru_cache(maxsize=32768)
def difference(a: sp.Expr, b: sp.Expr) -> sp.Expr:
    """a - b, expanded."""
    return sp.expand(a - b)


def tidy(expr: sp.Expr) -> sp.Expr:
    """Lowest terms where that is cheap (a small rational function), a number where it is one; else as it is."""
    if expr.has(sp.Float) and not expr.free_symbols:
        return sp.Float(expr.evalf(15), 15)
    if not expr.has(sp.Add, sp.Float):
        return expr
    small = expr.count_ops() < 120
    return sp.cancel(expr) if small and expr.is_rational_function() and not expr.has(sp.Float) else expr


def over(expr: sp.Expr, divisor: sp.Expr) -> sp.Expr:
    """expr / divisor, term by term."""
    return tidy(sp.Add(*(t / divisor for t in sp.Add.make_args(expr))))
