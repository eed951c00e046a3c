"""Long constants in formulas: sympy would take them apart wherever it asks for a sign.

They have names while an equation is solved, and are numbers where further answers rest on them.
"""

from __future__ import annotations

from collections.abc import Callable

import sympy as sp

from varflow.laws.expectation import GaussianExpectation, compile_formula

NAMED, NUMBERED = 16, 80
"""Operations from which a constant is a name, or a number."""
DIGITS = 30


def with_names(expr: sp.Expr, names: dict[sp.Expr, sp.Symbol]) -> sp.Expr:
    """The expression with its long constants named; ``names`` by constant, added to."""
    return _replaced(expr, NAMED, lambda constant: names.setdefault(constant, sp.Dummy(real=True)))


def shortened(expr: sp.Expr) -> sp.Expr:
    """The expression with its very long constants as numbers of 15 digits."""
    return _replaced(expr, NUMBERED, lambda constant: sp.Float(number_of(constant), 15))


def number_of(constant: sp.Expr) -> sp.Expr:
    """The number that a formula without symbols is: to 15 digits where it rests on rounded ones, else to 30."""
    if constant.has(GaussianExpectation, sp.Float):
        return sp.Float(float(compile_formula(constant, ())()), 15)
    return sp.N(constant, DIGITS)


def _replaced(expr: sp.Expr, longest: int, by: Callable[[sp.Expr], sp.Expr]) -> sp.Expr:
    if not expr.args or isinstance(expr, GaussianExpectation):
        return expr
    if not expr.free_symbols:
        return by(expr) if expr.count_ops() > longest else expr
    args = [_replaced(a, longest, by) for a in expr.args]
    return expr if all(a is b for a, b in zip(args, expr.args, strict=True)) else expr.func(*args)
