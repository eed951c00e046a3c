"""Conditions of the user's own: equations over scales, symbols, and moments of nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sympy as sp

from varflow.derive import Derivation
from varflow.errors import InputError, SolveError, require
from varflow.fields import closest

FAR = 1e3
"""Scales beyond this, or below one over it, are pointed out."""


def conditions_of(d: Derivation, equations: object, unknowns: object) -> tuple[list[sp.Eq], list[sp.Symbol]]:
    """The equations, one or several, as texts or as sympy's, and what they determine. Raises InputError."""
    named = _listed(unknowns, (str, sp.Symbol), "an unknown", 'unknowns=["s_fc1"]')
    given = _listed(equations, (str, sp.Eq), "an equation", 'equations=["q_y = 2"]')
    if named and not given:
        raise InputError(f"nothing determines {', '.join(map(str, named))}", why="unknowns belong to equations",
                         instead='equations=["q_y = 2"] (--equation) too')
    extra = [as_equation(d, e) for e in given]
    return extra, targets_of(d, extra, [str(u) for u in named])


def _listed(value: object, kinds: tuple[type, ...], what: str, instead: str) -> list[Any]:
    found = [value] if isinstance(value, kinds) else value
    require(found, Iterable, f"{what}, or a list of them,", instead)
    listed: list[Any] = list(found)  # type: ignore[call-overload]
    for one in listed:
        require(one, kinds, what, instead)
    return listed


def shares_of(d: Derivation, budgets: object) -> dict[str, sp.Expr]:
    """The shares that segments pass on, by weight. Raises InputError for what is not a positive share of a weight to be
    solved for."""
    if budgets is not None:
        require(budgets, Mapping, "budgets", 'a share for each weight: budgets={"fc2": "1/2"}')
    names = {s.name[2:]: s for s in d.unknowns().values()}
    found: dict[str, sp.Expr] = {}
    for name, value in (budgets or {}).items():  # type: ignore[attr-defined]
        if name not in names:
            raise InputError(f"a budget is given for {name!r}, which is not solved for",
                             instead=closest(name, names) if names else "no budgets: every variance is given")
        found[name] = share = d.network.scalar(value, f"budget of {name}")
        if share.is_number and not (share.is_finite and share.is_positive):
            raise InputError(f"the budget of {name!r} is {share}", why="it is a ratio of two second moments",
                             instead="a positive number, as 1/2")
    return found


def growth_of(growth: sp.Expr) -> sp.Expr:
    """A growth that can be one. Raises InputError."""
    if growth.is_number and not (growth.is_finite and growth.is_positive):
        raise InputError(f"a growth of {growth}", why="it is the ratio of two second moments",
                         instead="a positive number, as 2")
    return growth


def far_ones(answers: Iterable[tuple[sp.Symbol, sp.Expr]]) -> Iterator[str]:
    """A sentence on the scales fan_in Var(W) that are numbers far from 1."""
    for unknown, value in answers:
        if unknown.name.startswith("s_") and value.is_number and not 1 / FAR <= float(value) <= FAR:
            yield (f"{unknown} = {float(value):.4g} is far from 1: its condition holds, but signal or gradient change "
                   "as much; see the second moments around it.")


def as_equation(d: Derivation, equation: str | sp.Eq) -> sp.Eq:
    """A condition, parsed where it is a text; raises InputError for names that nothing has."""
    if isinstance(equation, sp.Eq):
        return equation
    from varflow.expressions import parse_equation

    return parse_equation(equation, _symbols(d), where="equation")


def _symbols(d: Derivation) -> dict[str, sp.Symbol]:
    """What a condition may name: moments of nodes, symbols of the network, unknown scales."""
    moments = {name: sp.Symbol(name, real=True) for node in d for name in (f"q_{node}", f"m_{node}", f"g_{node}")}
    return moments | d.network.symbols | {s.name: s for s in d.unknowns().values()}


def targets_of(d: Derivation, equations: Sequence[sp.Eq], unknowns: Sequence[str]) -> list[sp.Symbol]:
    """What conditions determine: ``unknowns``, else the unknown scales in them; raises SolveError where they are not as
    many as the equations."""
    if not equations:
        return []
    known = {s.name: s for s in d.unknowns().values()} | d.network.symbols
    for n in unknowns:
        if n not in known:
            raise InputError(f"there is no unknown {n!r}", instead=closest(n, known))
    if unknowns:
        return [known[n] for n in unknowns]
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
