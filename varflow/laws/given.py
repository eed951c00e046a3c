"""What the placeholders of a formula stand for: quantities in a list, each once."""

from __future__ import annotations

from dataclasses import replace

import sympy as sp

from varflow.calculus import symbols_in
from varflow.laws import moments as mo
from varflow.laws.blocks import coefficient
from varflow.laws.moments import Formula, Moment, Quantity


def filled(f: Formula) -> Formula:
    """The number itself where a formula is over numbers only."""
    if not f.args or not all(isinstance(a, sp.Number) for a in f.args) or mo.has_integral(f.template):
        return f
    return replace(f, template=mo.fill(f.template, f.args, lambda m: m.symbol), args=())


def plain(number: sp.Number) -> bool:
    """Whether a number may stand in a template: one of few, so that equal steps still share theirs."""
    return bool(number == 0 or (isinstance(number, sp.Rational) and max(abs(number.p), number.q) < 100))


def position(given: list[Quantity], quantity: Quantity) -> int:
    for i, g in enumerate(given):
        if g is quantity or (not isinstance(g, Moment) and not isinstance(quantity, Moment) and g == quantity):
            return i
    given.append(quantity)
    return len(given) - 1


def coefficient_formula(expr: sp.Expr, coefficients: tuple[Quantity, ...]) -> Formula:
    """An expression of coefficients and parameters as a formula."""
    if expr.is_Number:
        return Formula(expr)
    given: list[Quantity] = []
    table = {coefficient(i): mo.place(position(given, c), c) for i, c in enumerate(coefficients)
             if coefficient(i) in symbols_in(expr)}
    return Formula(expr.xreplace(table), tuple(given))
