"""Squares of functions, kept as squares: 1 + 2 f + f^2 loses its digits near f = -1, and may become negative.

They are variances given a gate: of x + x tanh(u) given u is (1 + tanh u)^2 that of x.
"""

from __future__ import annotations

from functools import lru_cache

import sympy as sp

from varflow.laws.straight import bottom_up

MOST_TERMS = 16
SEEN_BY = (sp.erf, sp.erfc, sp.exp)


@lru_cache(maxsize=4096)
def as_powers(expr: sp.Expr) -> sp.Expr:
    """c (a + b f)^n of a polynomial in one function f; anything else as it is."""
    functions = expr.atoms(sp.Function)
    if not isinstance(expr, sp.Add) or len(expr.args) > MOST_TERMS or len(functions) != 1:
        return expr
    (f,) = functions
    if not expr.is_polynomial(f):
        return expr
    constant, factors = sp.sqf_list(expr, f)
    if len(factors) != 1 or factors[0][1] == 1:
        return expr
    return constant * factors[0][0] ** factors[0][1]


def powers_within(expr: sp.Expr) -> sp.Expr:
    """The expression with squares over their roots, as a formula has them behind conditioning on f, in the arguments of
    its functions."""
    made: sp.Expr = bottom_up(expr, (_argument,)) if expr.has(sp.Abs) else expr
    return made


def _argument(expr: sp.Expr) -> sp.Expr:
    if not isinstance(expr, SEEN_BY) or not isinstance(expr.args[0], sp.Add) or not expr.args[0].has(sp.Abs):
        return expr
    above, below = sp.fraction(sp.together(expr.args[0]))
    constant, rest = above.as_content_primitive() if not above.is_Mul else (sp.S.One, above)
    if rest.is_Mul:
        constant, rest = rest.as_independent(sp.Function)
    return expr.func(constant * as_powers(rest) / below)
