"""Equations over names, ready to print: the sides term by term, long terms abbreviated."""

from __future__ import annotations

from collections.abc import Mapping

import sympy as sp

from varflow.export.document import Equation
from varflow.export.formulas import printed, width
from varflow.export.rounding import rounded
from varflow.laws.integral import GaussianExpectation

LINE = 84.0
"""Letters that fit on a line of the page."""


def signed(expr: sp.Expr, names: Mapping[sp.Symbol, str]) -> tuple[str, ...]:
    """The terms of a sum in LaTeX; every one after the first starts with its sign."""
    terms = list(sp.Add.make_args(rounded(expr)))
    texts = [printed(t, names) for t in (_ordered(terms) if len(terms) > 1 else terms)]
    return tuple(t if i == 0 or t.startswith("-") else f"+ {t}" for i, t in enumerate(texts))


def _negative(term: sp.Expr) -> bool:
    return bool(term.could_extract_minus_sign())


def _ordered(terms: list[sp.Expr]) -> list[sp.Expr]:
    """Symbolic terms first, shorter ones before longer ones, so that a sum reads from its main part."""
    return sorted(terms, key=lambda t: (t.is_number, _negative(t), t.count_ops(), sp.default_sort_key(t)))


def equation(left: str, expr: sp.Expr, names: Mapping[sp.Symbol, str], room: float = LINE) -> Equation:
    """``left = expr``, with abbreviations where a single term would not fit on a line."""
    terms = signed(expr, names)
    free = room - width(left) - 6
    if all(width(t) <= free for t in terms):
        return Equation(left, (terms,))
    short, parts = abbreviated(expr)
    if not parts:
        return Equation(left, (terms,))
    letters = {s: rf"t_{{{i + 1}}}" for i, (s, _) in enumerate(parts)}
    table = {**names, **letters}
    where = tuple(Equation(letters[s], (signed(e, table),)) for s, e in parts)
    return Equation(left, (signed(short, table),), where)


def abbreviated(expr: sp.Expr) -> tuple[sp.Expr, list[tuple[sp.Symbol, sp.Expr]]]:
    """The expression over abbreviations of its integrals and its common parts, and what they stand for."""
    integrals = sorted(expr.atoms(GaussianExpectation), key=sp.default_sort_key)
    if expr in integrals:
        return expr, []
    table = {e: sp.Dummy("I", real=True) for e in integrals}
    bare = expr.xreplace(table)
    shared, (short,) = sp.cse(bare, symbols=(sp.Dummy("t", real=True) for _ in range(10_000)), order="none")
    kept: list[tuple[sp.Symbol, sp.Expr]] = []
    inlined: dict[sp.Symbol, sp.Expr] = {}
    for symbol, part in shared:
        part = part.xreplace(inlined)
        if part.count_ops() > 6:
            kept.append((symbol, part))
        else:
            inlined[symbol] = part
    short = short.xreplace(inlined)
    return short, [(d, e) for e, d in table.items()] + kept


def extended(eq: Equation, expr: sp.Expr, names: Mapping[sp.Symbol, str], room: float = LINE) -> Equation:
    """The equation with the expanded formula behind it, if that is another one and fits on the page."""
    terms = signed(expr, names)
    if terms == eq.sides[-1] or sum(map(width, terms)) + 4 * len(terms) > room - width(eq.left) - 8:
        return eq
    return Equation(eq.left, (*eq.sides, terms), eq.where)
