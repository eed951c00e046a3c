"""Sizes of grids that are long expressions, named once: P_1 = floor((size - 1)/2) + 1, ..."""

from __future__ import annotations

from collections.abc import Iterable

import sympy as sp

from varflow.export.formulas import printed

LONG = 3
"""Operations from which a size gets a name."""


class Sizes:
    """Names P_1, P_2, ... for the given sizes, in their order; what is short (size, 16 m) keeps its own."""

    def __init__(self, sizes: Iterable[sp.Expr]) -> None:
        long = [s for s in dict.fromkeys(sizes) if s.count_ops() >= LONG]
        self._symbols = {s: sp.Symbol(f"size {k}", integer=True, positive=True) for k, s in enumerate(long, 1)}
        self._floors = {f: s - (size - f) for size, s in self._symbols.items()
                        for f in size.atoms(sp.floor) if (size - f).is_number}
        self.names = {symbol: f"P_{{{k}}}" for k, symbol in enumerate(self._symbols.values(), 1)}

    def named(self, expr: sp.Expr) -> sp.Expr:
        """The expression with its sizes by name, products of them too: floor(...)^2 + 2 floor(...) + 1 is P^2."""
        result: sp.Expr = expr.xreplace(self._symbols) if self._symbols else expr
        if not result.has(*self._floors):
            return result
        return result.xreplace(self._floors).replace(lambda e: e.is_Add and e.has(*self.names), sp.expand)

    @property
    def table(self) -> tuple[tuple[str, str], ...]:
        """Names and what they stand for, in LaTeX."""
        return tuple((self.names[symbol], printed(size, {})) for size, symbol in self._symbols.items())
