"""Arguments of functions of one activation: texts and expressions in one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import sympy as sp

from varflow.errors import InputError, kind_of
from varflow.symbols import X

Symbols = Mapping[str, sp.Symbol] | Callable[[str], sp.Symbol | None]


def activation_in_x(activation: str | sp.Expr, symbols: Symbols | None = None) -> sp.Expr:
    """A name, a text in ``x`` or an expression, as an expression in ``symbols.X``.

    ``symbols`` gives the parameters that a text may name [default: any name is a real parameter]. An
    expression may use any one symbol for its argument. Raises ExpressionError, InputError.
    """
    if isinstance(activation, str):
        from varflow.expressions import parse_activation

        expr = parse_activation(activation, parameter if symbols is None else symbols)
        if expr.free_symbols and X not in expr.free_symbols:
            from varflow.activations import ACTIVATIONS

            near = get_close_matches(activation.strip().lower().replace(" ", "_"), ACTIVATIONS, n=1)
            raise InputError(
                f"{activation!r} does not depend on x",
                instead=f"did you mean {near[0]!r}?" if near else "a named activation, or an expression of x",
            )
        return expr
    expr = sp.sympify(activation) if isinstance(activation, (int, float)) else activation
    if not isinstance(expr, sp.Expr):
        raise InputError(f"{kind_of(activation)} is not an activation with a formula",
                         instead="a name, a text in x, or a sympy expression (vf.gain takes functions too)")
    if X in expr.free_symbols or not expr.free_symbols:
        return expr
    if len(expr.free_symbols) > 1:
        names = ", ".join(sorted(map(str, expr.free_symbols)))
        raise InputError(
            f"which of {names} is the argument?", instead="use varflow.symbols.X for the argument"
        )
    return expr.xreplace({next(iter(expr.free_symbols)): X})


def parameter(name: str) -> sp.Symbol | None:
    """A real symbol for a name that a text may use for a number."""
    from varflow.activations import parameter as symbol

    return symbol(name)


def exact(value: Any) -> sp.Expr:
    """A number or a text as an exact expression: 0.05 is 1/20; expressions as they are."""
    if isinstance(value, sp.Expr):
        return value
    if isinstance(value, str):
        from varflow.expressions import parse
        from varflow.symbols import positive

        return parse(value, positive)
    number = value.item() if hasattr(value, "item") else value
    if not isinstance(number, (int, float)) or not abs(number) < float("inf"):
        raise InputError(f"{kind_of(value)} is no finite number" if not isinstance(number, float) else
                         f"{number} is no finite number", instead="a number, a text or a sympy expression")
    return sp.Integer(number) if isinstance(number, int) else sp.Rational(repr(float(number)))


def text(expr: sp.Basic) -> str:
    """A formula in the expression grammar, or as sympy writes it where the grammar has no words."""
    from varflow.errors import ExpressionError
    from varflow.printing import to_text

    try:
        return to_text(expr)
    except ExpressionError:
        return str(expr)
