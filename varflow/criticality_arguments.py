"""Arguments of criticality and spectra: numbers, variances, depths."""

from __future__ import annotations

from typing import Any

import sympy as sp

from varflow.errors import InputError
from varflow.onevariable import exact


def real(value: Any, name: str) -> sp.Expr:
    """A finite real number or an expression of symbols. Raises InputError for others."""
    made = exact(value)
    if made.is_real is False or made.is_finite is False or made is sp.nan:
        raise InputError(f"{name} = {made} is no finite real number", instead=f"{name}=1")
    return made


def variance(value: Any, name: str) -> sp.Expr:
    """A variance, or a scale of variances, which may hold symbols. Raises InputError for a negative one."""
    made = real(value, name)
    if made.is_negative:
        raise InputError(f"{name} = {made} is negative", why="a variance is a mean of squares",
                         instead=f"{name}=1")
    return made


def number(value: Any, name: str, instead: str = "") -> float:
    """A finite real number. Raises InputError for other values and where symbols are left."""
    made = real(value, name)
    if made.free_symbols:
        names = ", ".join(sorted(map(str, made.free_symbols)))
        raise InputError(f"{name} = {made}: no number for {names}", instead=instead or f"{name}=0.05")
    return float(made)


def depth(value: Any) -> sp.Expr:
    """A number of layers: a positive whole number, or an expression that can be one. Raises InputError for others."""
    made = real(value, "depth")
    if made.is_positive is False or made.is_integer is False:
        raise InputError(f"depth = {made} is no number of layers", why="it is a positive whole number",
                         instead='10, or a symbol: "L"')
    return made
