"""Conditions on moments that have numbers but no formulas, solved by trial values of the unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

import numpy as np
import sympy as sp

from varflow.errors import UnsupportedError
from varflow.laws.evaluation import Evaluation
from varflow.laws.moments import Moment, Quantity
from varflow.roots import Root

LEAST, MOST, POINTS = 1e-3, 1e3, 25
TRIALS = ((48.0, 0.4), (80.0, 0.7))
"""Values of open symbols, integers and others: what is the same for both choices is taken for the same for all."""
SAME, SIMPLE = 1e-6, 1000
"""How far apart the results of both choices may be; denominators of fractions that a number may be."""


def depends_on(quantity: Quantity, unknown: sp.Symbol, known: dict[Moment, bool]) -> bool:
    """Whether a moment changes with an unknown."""
    if not isinstance(quantity, Moment):
        return unknown in quantity.free_symbols
    stack = [quantity]
    while stack:
        m = stack[-1]
        missing = [a for a in m.args if isinstance(a, Moment) and a not in known]
        if missing:
            stack += missing
            continue
        stack.pop()
        inner = any(known[a] if isinstance(a, Moment) else unknown in a.free_symbols for a in m.args)
        known[m] = inner or (m.template is not None and unknown in m.template.free_symbols)
    return known[quantity]


def has_formula(quantity: Quantity) -> bool:
    """Whether all that a moment is made of has formulas, however long they are together."""
    seen, stack = set(), [quantity]
    while stack:
        m = stack.pop()
        if isinstance(m, Moment) and m not in seen:
            if m.template is None:
                return False
            seen.add(m)
            stack += m.args
    return True


def _refuse(m: Moment) -> float:
    raise UnsupportedError("a moment that only a population gives", m.node)


def by_trials(start: Quantity, end: Quantity, budget: sp.Expr, unknown: sp.Symbol,
              table: Mapping[sp.Symbol, sp.Expr]) -> Root | None:
    """The least value of the unknown with end = budget start, to 1e-12 of their numbers; None where there are none (an
    open symbol, a moment that only a population gives) or no value is found."""
    if not budget.is_number or not all(v.is_number for v in table.values()):
        return None
    values = {s.name: float(v) for s, v in table.items()}
    fixed: dict[Moment, bool] = {}
    try:
        return _searched(start, end, float(budget), unknown, values, fixed)
    except (KeyError, UnsupportedError):
        return None


def constant_ratio(start: Quantity, end: Quantity, factor: sp.Expr, symbols: Iterable[sp.Symbol],
                   table: Mapping[sp.Symbol, sp.Expr]) -> sp.Number | None:
    """end / (factor start), where it is one number whatever the values of the open ``symbols`` (sizes, scales); None
    where it is not, or where the moments have no numbers. A simple fraction to 1e-13 is given as that."""
    names, ratios = list(symbols), []
    for size, other in TRIALS:
        values = {s: size if s.is_integer else other for s in names}
        try:
            values |= {s: float(v.subs(values)) for s, v in table.items()}
            numbers = Evaluation({s.name: v for s, v in values.items()}, _refuse)
            ratios.append(float(numbers.of(end)) / float(numbers.of(start)) / float(factor.subs(values)))
        except (KeyError, TypeError, ZeroDivisionError, UnsupportedError):
            return None
    first, second = ratios
    if not abs(first - second) <= SAME * abs(first):
        return None
    simple = Fraction(first).limit_denominator(SIMPLE)
    exact = abs(float(simple) - first) <= 1e-13 * first and abs(float(simple) - second) <= 1e-13 * second
    return sp.Rational(simple) if exact else sp.Float(first, 15)


def _searched(start: Quantity, end: Quantity, budget: float, unknown: sp.Symbol, values: dict[str, float],
              fixed: dict[Moment, bool]) -> Root | None:
    from scipy.optimize import brentq

    first = Evaluation({**values, unknown.name: 1.0}, _refuse)
    for q in (start, end):
        first.of(q)
        depends_on(q, unknown, fixed)
    kept = {m: x for m, x in first.known.items() if not fixed.get(m, True)}

    def miss(log: float) -> float:
        trial = Evaluation({**values, unknown.name: float(np.exp(log))}, _refuse, known=kept)
        return float(trial.of(end)) / float(trial.of(start)) / budget - 1

    grid = np.linspace(np.log(LEAST), np.log(MOST), POINTS)
    misses = [miss(float(x)) for x in grid]
    found = [float(np.exp(brentq(miss, a, b, xtol=1e-13, rtol=1e-14)))
             for a, b, fa, fb in zip(grid, grid[1:], misses, misses[1:], strict=False) if fa * fb < 0]
    if not found:
        return None
    numbers = [sp.Float(x, 15) for x in found]
    return Root(numbers[0], closed_form=False, others=tuple(numbers[1:]))
