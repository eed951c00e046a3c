"""Whether an expression is made of what the closed forms are made of: a look, before any work is done."""

from __future__ import annotations

from functools import lru_cache

import sympy as sp
from sympy.core.relational import Relational
from sympy.logic.boolalg import ITE, And, BooleanAtom, Not, Or

from varflow.laws.algebra import depends, ordered, size, symbols_of

MAX_POWER = 12
Variables = frozenset[sp.Symbol]
_KINKS = (sp.Abs, sp.Max, sp.Min, sp.sign, sp.Heaviside)
_SMOOTH = (sp.exp, sp.erf, sp.erfc, sp.sin, sp.cos, sp.sinh, sp.cosh)


@lru_cache(maxsize=16384)
def in_reach(expr: sp.Basic, variables: Variables) -> bool:
    """False if no closed form can exist: a function of the variables that no rule knows."""
    if expr in variables or not depends(expr, variables):
        return True
    if isinstance(expr, (sp.Add, sp.Mul, *_KINKS)):
        return all(in_reach(a, variables) for a in expr.args)
    if isinstance(expr, _SMOOTH):
        return flat(expr.args[0], variables)
    if isinstance(expr, sp.Pow):
        return _power(expr, variables)
    if isinstance(expr, sp.Piecewise):
        return all(in_reach(e, variables) and _decides(c, variables) for e, c in expr.args)
    return False


def _power(expr: sp.Pow, variables: Variables) -> bool:
    if depends(expr.exp, variables):
        return bool(expr.base.is_positive) and flat(expr.exp, variables)
    if not expr.exp.is_Integer or expr.exp.is_negative:
        return radical(expr, variables) is not None
    return bool(expr.exp.is_Integer and expr.exp.is_positive) and in_reach(expr.base, variables)


@lru_cache(maxsize=4096)
def radical(expr: sp.Expr, variables: Variables) -> tuple[sp.Symbol, sp.Expr, sp.Expr] | None:
    """(z, a, b) of (a z^2 + b)^p, a and b positive, p half of an integer or a negative integer; else None."""
    names = ordered(symbols_of(expr) & variables)
    if len(names) != 1 or not isinstance(expr, sp.Pow) or not (2 * expr.exp).is_Integer:
        return None
    z = names[0]
    if abs(expr.exp) > MAX_POWER or not expr.base.is_polynomial(z) or size(expr.base, 60) == 60:
        return None
    found = sp.Poly(expr.base, z).all_coeffs()
    if len(found) != 3 or found[1] != 0 or not (found[0].is_positive and found[2].is_positive):
        return None
    return z, found[0], found[2]


@lru_cache(maxsize=16384)
def flat(expr: sp.Basic, variables: Variables) -> bool:
    """Whether the expression is piecewise polynomial in the variables."""
    if expr in variables or not depends(expr, variables):
        return True
    if isinstance(expr, (sp.Add, sp.Mul, *_KINKS)):
        return all(flat(a, variables) for a in expr.args)
    if isinstance(expr, sp.Pow):
        return bool(expr.exp.is_Integer and expr.exp.is_positive) and flat(expr.base, variables)
    if isinstance(expr, sp.Piecewise):
        return all(flat(e, variables) and _decides(c, variables) for e, c in expr.args)
    return False


def _decides(condition: sp.Basic, variables: Variables) -> bool:
    if isinstance(condition, BooleanAtom) or not depends(condition, variables):
        return True
    if isinstance(condition, (And, Or, Not, ITE)):
        return all(_decides(a, variables) for a in condition.args)
    return isinstance(condition, Relational) and all(in_reach(a, variables) for a in condition.args)
