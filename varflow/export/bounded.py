"""Expanded formulas up to a size: what is longer is told step by step only."""

from __future__ import annotations

from functools import lru_cache

import sympy as sp

from varflow.laws.moments import Moment, Quantity, fill


class TooLong:
    """In place of a formula that exists and exceeds the limit."""


TOO_LONG = TooLong()


class Bounded:
    """Formulas over the network's symbols of at most ``limit`` operations; no work is done beyond that."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._known: dict[int, sp.Expr | TooLong | None] = {}
        self._size: dict[int, int] = {}

    def of(self, quantity: Quantity | None) -> sp.Expr | None:
        """The formula; None where there is none, or it is too long."""
        found = self.state(quantity)
        return None if isinstance(found, TooLong) else found

    def state(self, quantity: Quantity | None) -> sp.Expr | TooLong | None:
        """The formula, TOO_LONG, or None where there is none."""
        if not isinstance(quantity, Moment):
            return quantity
        stack = [quantity]
        while stack:
            m = stack[-1]
            missing = [a for a in m.args if isinstance(a, Moment) and a.index not in self._known]
            if missing and m.template is not None:
                stack += missing
                continue
            stack.pop()
            if m.index not in self._known:
                self._known[m.index] = self._one(m)
        return self._known[quantity.index]

    def _one(self, m: Moment) -> sp.Expr | TooLong | None:
        if m.template is None:
            return None
        parts = [self._known[a.index] for a in m.args if isinstance(a, Moment)]
        if any(p is None for p in parts):
            return None
        if any(isinstance(p, TooLong) for p in parts) or self._estimate(m) > 4 * self.limit:
            return TOO_LONG
        expr = fill(m.template, m.args, lambda a: self._known[a.index])
        self._size[m.index] = int(expr.count_ops())
        return expr if self._size[m.index] <= self.limit else TOO_LONG

    def _estimate(self, m: Moment) -> int:
        return _operations(m.template) + sum(self._size[a.index] for a in m.args if isinstance(a, Moment))


@lru_cache(maxsize=16384)
def _operations(template: sp.Expr) -> int:
    return int(template.count_ops())
