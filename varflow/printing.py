"""sympy to text of the expression grammar."""

from __future__ import annotations

import re
from typing import cast

import sympy as sp
from sympy.core.relational import Relational
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter

from varflow.errors import ExpressionError
from varflow.grammar import CONSTANTS, MAX_DIGITS, SAYABLE


def to_text(expr: sp.Basic) -> str:
    """The text that ``parse`` (``parse_equation`` for an ``Eq``) reads back as the same expression.

    A ``Float`` is written by its shortest exact digits and read back as that rational.
    Raises ExpressionError for what the grammar cannot say.
    """
    for part in sp.preorder_traversal(expr):
        if not isinstance(part, SAYABLE):
            raise ExpressionError(
                f"{type(part).__name__} has no text in the expression grammar",
                why=f"in {expr}"[:300],
            )
    return cast(str, _Printer().doprint(expr))


_PLAIN_NAME = re.compile(r"[^\W\d]\w*(?:\.\w+)*")
_WORDS = frozenset(("or", "and", "not"))


class _Printer(StrPrinter):  # type: ignore[misc]
    """sympy's text, with long integers in pieces, infix equalities and quoted names."""

    def _print_Symbol(self, expr: sp.Symbol) -> str:
        name = str(expr.name)
        if _PLAIN_NAME.fullmatch(name) and name not in CONSTANTS and name not in _WORDS:
            return name
        if not name or "`" in name or "\n" in name:
            raise ExpressionError(f"the name {name!r} has no text in the expression grammar")
        return f"`{name}`"

    def _print_Mul(self, expr: sp.Mul) -> str:
        """Factors in one chain, so that reading multiplies them all at once."""
        coefficient, rest = expr.as_coeff_Mul(rational=True)
        above: list[sp.Expr] = []
        below: list[sp.Expr] = []
        for factor in rest.as_ordered_factors():
            inverse = isinstance(factor, sp.Pow) and factor.exp.is_Rational and factor.exp < 0
            (below if inverse else above).append(1 / factor if inverse else factor)
        if abs(coefficient.p) != 1 or not above:
            above.insert(0, sp.Integer(abs(coefficient.p)))
        if coefficient.q != 1:
            below.insert(0, sp.Integer(coefficient.q))
        tops, bottoms = ([self._factor(f) for f in side] for side in (above, below))
        group = len(below) > 1 and not any(f.is_Add for f in below)
        tail = [f"({'*'.join(bottoms)})"] if group else bottoms
        return ("-" if coefficient < 0 else "") + "/".join(["*".join(tops), *tail])

    def _factor(self, factor: sp.Expr) -> str:
        return cast(str, self.parenthesize(factor, PRECEDENCE["Mul"], strict=False))

    def _print_Integer(self, expr: sp.Integer) -> str:
        value = int(expr)
        if abs(value) < 10**MAX_DIGITS:
            return str(value)
        head, tail = divmod(abs(value), 10**MAX_DIGITS)
        text = f"({self._print_Integer(sp.Integer(head))}*10**{MAX_DIGITS} + {tail})"
        return f"-{text}" if value < 0 else text

    def _print_Rational(self, expr: sp.Rational) -> str:
        return (
            f"{self._print_Integer(sp.Integer(expr.p))}/{self._print_Integer(sp.Integer(expr.q))}"
        )

    def _print_Float(self, expr: sp.Float) -> str:
        return repr(float(expr)) if expr._prec <= 53 else str(expr)

    def _print_Relational(self, expr: Relational) -> str:
        return f"{self._print(expr.lhs)} {expr.rel_op} {self._print(expr.rhs)}"
