"""Numbers of a program's sizes and parameters."""

from __future__ import annotations

import sympy as sp

from varflow.errors import InputError

LARGEST = 2**40
"""More entries than any memory holds, few enough for the counters of the random numbers."""


def number(expr: sp.Expr, what: str) -> float:
    """A float. Raises InputError for an expression with symbols."""
    if expr.free_symbols:
        names = ", ".join(sorted(str(s) for s in expr.free_symbols))
        raise InputError(
            f"{what} is {expr}, without a number for {names}", instead="numbers for all symbols"
        )
    return float(expr)


def whole(expr: sp.Expr, what: str) -> int:
    """A positive integer. Raises InputError for anything else."""
    value = number(expr, what)
    if value != int(value) or value < 1:
        raise InputError(f"{what} is {expr}", why="a size is a positive whole number")
    if value > LARGEST:
        raise InputError(f"{what} is {expr}", why="no machine simulates so many", instead="smaller sizes")
    return int(value)
