"""Decimal numbers in formulas, rounded for reading."""

from __future__ import annotations

import sympy as sp

from varflow.laws.integral import GaussianExpectation

DIGITS = 8


def rounded(expr: sp.Expr) -> sp.Expr:
    """With the numbers of a formula that holds decimal ones multiplied out and rounded."""
    if not expr.has(sp.Float) or expr.has(GaussianExpectation):
        return expr
    if expr.is_number:
        value = float(expr)
        whole = round(value)
        return sp.Integer(whole) if abs(value - whole) <= 1e-9 * abs(value) else sp.Float(f"{value:.{DIGITS}g}")
    if expr.is_Add or expr.is_Mul:
        numbers = [a for a in expr.args if a.is_number]
        others = [rounded(a) for a in expr.args if not a.is_number]
        whole_number = expr.func(*numbers)
        return expr.func(rounded(whole_number.evalf(15) if whole_number.has(sp.Float) else whole_number), *others)
    return expr.func(rounded(expr.args[0]), *expr.args[1:]) if expr.args else expr
