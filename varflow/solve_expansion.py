"""Formulas of moments with the answers found so far put in."""

from __future__ import annotations

import sympy as sp

from varflow.calculus import tidy
from varflow.constants import shortened
from varflow.laws.algebra import size
from varflow.laws.expectation import GaussianExpectation, compile_formula
from varflow.laws.moments import Expansion, Moment, place

MOST = 2500
"""Nodes of a gradient's formula beyond which numbers are taken instead."""


class Solved(Expansion):
    """Expansion into formulas with the unknowns found so far put in; ``most``: nodes of the longest formula."""

    def __init__(self, table: dict[sp.Symbol, sp.Expr], most: int = 10**6) -> None:
        super().__init__()
        self.table, self.most = table, most
        self._open: dict[sp.Basic, list[Moment]] = {}

    def settle(self, unknown: sp.Symbol) -> None:
        """Forget what was expanded while the unknown was open."""
        for m in self._open.pop(unknown, []):
            self._known.pop(m, None)

    def _one(self, m: Moment) -> sp.Expr | None:
        number = self._number(m)
        if number is not None:
            return number
        expr = super()._one(m)
        if expr is None or size(expr, self.most) == self.most:
            return None
        expr = shortened(expr.subs(self.table) if expr.free_symbols & self.table.keys() else expr)
        if not expr.free_symbols and expr.has(GaussianExpectation, sp.Float):
            return sp.Float(float(compile_formula(expr, ())()), 15)
        for symbol in expr.free_symbols:
            self._open.setdefault(symbol, []).append(m)
        return tidy(expr)

    def _number(self, m: Moment) -> sp.Float | None:
        """The moment as a number, where it is an integral over numbers or rests on rounded ones."""
        if m.template is None:
            return None
        known = [self._known[a] if isinstance(a, Moment) else a.subs(self.table) for a in m.args]
        parts = [p for p in known if p is not None and p.is_Number]
        rounded = any(isinstance(p, sp.Float) for p in parts) or m.template.has(GaussianExpectation)
        if len(parts) < len(known) or not rounded:
            return None
        places = tuple(place(i, a) for i, a in enumerate(m.args))
        if not m.template.free_symbols <= set(places):
            return None
        return sp.Float(float(compile_formula(m.template, places)(*(float(p) for p in parts))), 15)
