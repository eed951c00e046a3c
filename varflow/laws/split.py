"""Splitting an expression into products of one-argument factors, so that expectations can factorize."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import sympy as sp

from varflow.calculus import symbols_in
from varflow.laws.distributions import NoFormula

TERM_LIMIT = 400


@dataclass(frozen=True)
class Term:
    """``factor`` times the product of ``functions`` (of one argument each) and ``atoms`` (of several)."""

    factor: sp.Expr
    functions: tuple[tuple[sp.Symbol, sp.Expr], ...]
    atoms: tuple[sp.Expr, ...] = ()


@lru_cache(maxsize=32768)
def split(expr: sp.Expr, arguments: frozenset[sp.Symbol]) -> tuple[Term, ...]:
    """``expr`` as a sum of terms; functions of a single argument stay whole. Raises NoFormula beyond a limit."""
    used = symbols_in(expr) & arguments
    if not used:
        return (Term(expr, ()),)
    if len(used) == 1:
        symbol = next(iter(used))
        factor, function = expr.as_independent(symbol, as_Add=False)
        return (Term(factor, ((symbol, function),)),)
    if isinstance(expr, sp.Add):
        return tuple(t for a in expr.args for t in split(a, arguments))
    if isinstance(expr, sp.Mul):
        if _tied(expr, frozenset(used)):
            return (Term(sp.S.One, (), (expr,)),)
        return _multiply(*(split(a, arguments) for a in _by_argument(expr, arguments)))
    if isinstance(expr, sp.Pow) and expr.exp.is_Integer and 0 < int(expr.exp) <= 8:
        return _multiply(*(split(expr.base, arguments),) * int(expr.exp))
    return (Term(sp.S.One, (), (expr,)),)


def _tied(expr: sp.Mul, used: frozenset[sp.Symbol]) -> bool:
    """Whether one factor ties all arguments together: then no factor of the product is independent of another."""
    return any(symbols_in(a) >= used and not _opens(a) for a in expr.args)


def _opens(factor: sp.Expr) -> bool:
    """Whether a factor is multiplied out."""
    return isinstance(factor, sp.Add | sp.Mul) or (
        isinstance(factor, sp.Pow) and bool(factor.exp.is_Integer) and 0 < int(factor.exp) <= 8)


def _by_argument(expr: sp.Mul, arguments: frozenset[sp.Symbol]) -> list[sp.Expr]:
    """Factors of a product, those of one argument multiplied together."""
    single: dict[frozenset[sp.Basic], list[sp.Expr]] = {}
    rest = []
    for a in expr.args:
        used = frozenset(symbols_in(a) & arguments)
        if len(used) <= 1:
            single.setdefault(used, []).append(a)
        else:
            rest.append(a)
    return [sp.Mul(*group) for group in single.values()] + rest


def _multiply(*sums: tuple[Term, ...]) -> tuple[Term, ...]:
    result: tuple[Term, ...] = (Term(sp.S.One, ()),)
    for terms in sums:
        if len(result) * len(terms) > TERM_LIMIT:
            raise NoFormula("too many terms")
        result = tuple(_times(a, b) for a in result for b in terms)
    return result


def _times(a: Term, b: Term) -> Term:
    functions = dict(a.functions)
    for symbol, f in b.functions:
        functions[symbol] = functions[symbol] * f if symbol in functions else f
    ordered = tuple(sorted(functions.items(), key=lambda pair: pair[0].name))
    return Term(a.factor * b.factor, ordered, a.atoms + b.atoms)


@lru_cache(maxsize=32768)
def polynomial_in(expr: sp.Expr, symbol: sp.Symbol) -> bool:
    """Whether an expression is a polynomial in one symbol."""
    return bool(expr.is_polynomial(symbol))
