"""Whether an expression is made of what the closed forms are made of: a look, before any work is done."""

from __future__ import annotations

from functools import lru_cache

import sympy as sp
from sympy.core.relational import Relational
from sympy.logic.boolalg import ITE, And, BooleanAtom, Not, Or

from varflow.laws.algebra import depends

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
    return bool(expr.exp.is_Integer and expr.exp.is_positive) and in_reach(expr.base, variables)


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
