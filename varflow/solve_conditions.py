"""Conditions of the user's own: equations over scales, symbols, and moments of nodes."""

from __future__ import annotations

from collections.abc import Sequence

import sympy as sp

from varflow.derive import Derivation
from varflow.errors import SolveError


def as_equation(d: Derivation, equation: str | sp.Eq) -> sp.Eq:
    """A condition, parsed where it is a text; raises InputError for names that nothing has."""
    if isinstance(equation, sp.Eq):
        return equation
    from varflow.expressions import parse_equation

    return parse_equation(equation, lambda name: _resolve(d, name), where="equation")


def _resolve(d: Derivation, name: str) -> sp.Symbol | None:
    unknown = {s.name: s for s in d.unknowns().values()}
    if name in unknown:
        return unknown[name]
    if name in d.network.symbols:
        return d.network.symbols[name]
    kind, _, node = name.partition("_")
    return sp.Symbol(name, real=True) if kind in "qmg" and node in d else None


def targets_of(d: Derivation, equations: Sequence[sp.Eq], unknowns: Sequence[str]) -> list[sp.Symbol]:
    """What conditions determine: ``unknowns``, else the unknown scales in them; raises SolveError where they are not as
    many as the equations."""
    if not equations:
        return []
    known = {s.name: s for s in d.unknowns().values()} | d.network.symbols
    if unknowns:
        return [known[n] if n in known else sp.Symbol(n, positive=True) for n in unknowns]
    scales = set(d.unknowns().values())
    named = set().union(*(with_formulas(d, e).free_symbols for e in equations)) & scales
    direct = set().union(*(e.free_symbols for e in equations)) & scales
    found = sorted(direct or named, key=str)
    if len(found) != len(equations):
        raise SolveError(f"{len(equations)} equation(s) for the unknowns {', '.join(map(str, found)) or 'none'}",
                         instead="unknowns=[...] (--unknown s_NAME), as many as equations")
    return found


def with_formulas(d: Derivation, equation: sp.Eq) -> sp.Eq:
    """q_NODE, m_NODE, g_NODE replaced by their formulas."""
    table = {}
    for s in equation.free_symbols:
        kind, _, node = s.name.partition("_")
        if kind in "qmg" and node in d and s not in d.network.symbols.values():
            field = {"q": "second_moment", "m": "mean", "g": "grad_second_moment"}[kind]
            formula = getattr(d[node], field)
            if formula is None:
                raise SolveError(f"{s} has no formula", instead="a condition on another node")
            table[s] = formula
    return sp.Eq(equation.lhs.subs(table), equation.rhs.subs(table), evaluate=False)
