"""Symbols of a graph file: a name and what is assumed of it, positive unless a sign is said."""

from __future__ import annotations

from typing import Any

import sympy as sp

from varflow.errors import InputError
from varflow.fields import closest
from varflow.grammar import CONSTANTS
from varflow.load.yaml import POISON, shown

NEUTRAL = ("integer", "noninteger", "rational", "irrational", "algebraic", "transcendental", "even", "odd", "prime",
           "composite", "finite")
SIGNS = ("positive", "negative", "nonnegative", "nonpositive", "zero", "nonzero", "real", "extended_real",
         "extended_positive", "extended_negative", "extended_nonnegative", "extended_nonpositive",
         "extended_nonzero", "infinite", "complex", "imaginary", "hermitian", "antihermitian", "commutative")
RESERVED = ("fan_in", "fan_out")


def check_name(name: str, where: str = "") -> None:
    """Raise InputError for a name that an expression could not say or would take for something else."""
    if name in RESERVED or name in CONSTANTS:
        raise InputError(f"{name!r} cannot be a symbol's name", where, "in an expression it already has a meaning",
                         "another name")
    if not name or "`" in name or not name.isprintable():
        raise InputError(f"{shown(name)} cannot be a symbol's name", where, "an expression could not say it",
                         "a word such as n or d_k")


def read_symbol(name: str, value: Any, where: str) -> sp.Symbol:
    """The symbol that ``name: {assumption: true, ...}`` declares. Raises InputError."""
    check_name(name, where)
    if value is POISON or value is None:
        value = {}
    if not isinstance(value, dict):
        raise InputError(f"the assumptions of {name!r} are {shown(value)}", where,
                         "a symbol is declared, not given a value", "{integer: true}, or {}")
    for key, truth in value.items():
        if key not in NEUTRAL + SIGNS:
            raise InputError(f"{shown(key)} is not an assumption", where, "assumptions are those of sympy",
                             closest(key, [*NEUTRAL, *SIGNS[:7]]))
        if not isinstance(truth, bool) and truth is not POISON:
            raise InputError(f"{key}: {shown(truth)} of symbol {name!r}", where,
                             "an assumption holds or does not", "true or false")
    assumed = {k: v for k, v in value.items() if v is not POISON}
    try:
        return sp.Symbol(name, **(assumed if set(assumed) & set(SIGNS) else {"positive": True, **assumed}))
    except (ValueError, TypeError) as error:
        raise InputError(f"the assumptions of {name!r} contradict each other", where,
                         "no number is all of " + ", ".join(assumed) + "; a symbol is positive unless a sign is said",
                         "assumptions that one number can fulfil") from error


def written(symbol: sp.Symbol) -> dict[str, bool]:
    """The assumptions that :func:`read_symbol` reads back as the same symbol."""
    check_name(symbol.name)
    assumed = {k: v for k, v in symbol._assumptions_orig.items() if v is not None}
    bare = {k: v for k, v in assumed.items() if (k, v) != ("positive", True)}
    for candidate in (bare, assumed, {**assumed, "real": True}, {"commutative": True, **assumed}):
        try:
            if read_symbol(symbol.name, candidate, "") == symbol:
                return candidate
        except InputError:
            continue
    raise InputError(f"the symbol {symbol.name!r} cannot be written", instead="a symbol with assumptions of its own")
