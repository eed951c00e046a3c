"""Solving the conditions of a normalization: eliminate what is plain, search for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp

from varflow.errors import InputError, SolveError
from varflow.laws.expectation import GaussianExpectation, compile_formula
from varflow.tailor_conditions import Condition
from varflow.tailor_model import Tailored
from varflow.tailor_search import Search, search

Table = dict[sp.Symbol, sp.Expr]
LONGEST = 250


@dataclass(frozen=True)
class Found:
    """Tables of constants; ``searched``: whether a search found them; ``reason``: why there may be none."""

    tables: list[Table]
    searched: bool
    reason: str


@dataclass(frozen=True)
class Branch:
    """Constants known so far, as expressions in the others, and the equations that are left."""

    table: Table
    left: list[sp.Expr]


def solutions_of(
    subject: Tailored,
    asked: Sequence[Condition],
    unknowns: Sequence[sp.Symbol],
    near: Mapping[str, float],
) -> Found:
    """Every table of constants that is found, nearest to the plain activation first.

    Raises InputError where there are fewer conditions than constants.
    """
    if len(asked) < len(unknowns):
        raise InputError(
            f"{len(asked)} condition(s) for {len(unknowns)} constants",
            instead="as many conditions, or fixed values",
        )
    equations = [_divided(c.left, subject.a) for c in asked if c.left is not None]
    outer = [s for s in (subject.d, subject.a) if s in unknowns]
    branches = [_reduced(b) for b in peeled([Branch({}, equations)], outer)]
    numeric = [c for c in asked if c.numeric is not None]
    tables: list[Table] = []
    searched = False
    for branch in branches:
        made, by_search = _finished(branch, subject, numeric, unknowns, near)
        tables, searched = tables + made, searched or by_search
    tables = [
        t
        for t in tables
        if all(v.is_extended_real is not False and v is not sp.nan for v in t.values())
    ]
    reason = "the search found none" if searched else "the equations have no real solution"
    return Found(sorted(_different(tables), key=lambda t: _distance(t, near)), searched, reason)


def _finished(
    branch: Branch,
    subject: Tailored,
    numeric: Sequence[Condition],
    unknowns: Sequence[sp.Symbol],
    near: Mapping[str, float],
) -> tuple[list[Table], bool]:
    """Tables of one branch, and whether a search was needed."""
    rest = [u for u in unknowns if u not in branch.table]
    if not set(rest) & (subject.b.free_symbols | subject.c.free_symbols):
        opened = peeled([_opened(branch, subject)], [] if numeric else rest)
        if all(set(unknowns) <= set(b.table) and _readable(b.table) for b in opened):
            return [{u: _settled(v) for u, v in b.table.items()} for b in opened], False
    points = search(Search(subject, branch.table, branch.left, numeric, rest, near))
    return [_numbers(branch, subject, point) for point in points], True


def _readable(table: Table) -> bool:
    """Whether formulas are short enough to be worth more than their numbers."""
    return all(v.count_ops() <= LONGEST or v.free_symbols for v in table.values())


def _numbers(branch: Branch, subject: Tailored, point: Mapping[sp.Symbol, float]) -> Table:
    """Every constant as a number, where the search found some."""
    point = {u: 0.0 if abs(v) < 1e-12 else v for u, v in point.items()}
    known = {u: sp.Float(v, 15) if v else sp.S.Zero for u, v in point.items()}
    if not branch.table:
        return dict(known)
    from varflow.tailor_conditions import evaluated

    moments = {s: evaluated(m, point) for s, m in subject.integral.items()}
    made = {u: evaluated(v, {**point, **moments}) for u, v in branch.table.items()}
    return {u: sp.Float(v, 15) if np.isfinite(v) else sp.nan for u, v in made.items()} | known


# -- elimination -----------------------------------------------------------------------------------------------


def _divided(expr: sp.Expr, a: sp.Expr) -> sp.Expr:
    """Without the powers of a that every term holds: a = 0 is no activation."""
    if not isinstance(a, sp.Symbol):
        return expr
    expr = sp.expand(expr)
    while expr != 0 and expr.has(a) and expr.xreplace({a: sp.S.Zero}) == 0:
        expr = sp.expand(expr / a)
    return expr


def _reduced(branch: Branch) -> Branch:
    """Where an equation says what a moment is worth, that value in place of the moment."""
    table, left = branch.table, branch.left
    for equation in branch.left:
        if len(equation.free_symbols) == 1 and isinstance(
            symbol := next(iter(equation.free_symbols)), sp.Dummy
        ):
            worth = _roots(equation, symbol) if _degree(equation, symbol) == 1 else []
            for value in worth:
                table = {u: v.subs(symbol, value) for u, v in table.items()}
                left = [e if e == equation else e.subs(symbol, value) for e in left]
    return Branch(table, left)


def peeled(branches: list[Branch], unknowns: Sequence[sp.Symbol]) -> list[Branch]:
    """Solve equations that are linear or quadratic in one unknown, one after the other."""
    done: list[Branch] = []
    todo = list(branches)
    while todo:
        branch = todo.pop()
        step = _step(branch, [u for u in unknowns if u not in branch.table])
        if step is None:
            done.append(branch)
        else:
            todo.extend(step)
    return done


def _step(branch: Branch, unknowns: Sequence[sp.Symbol]) -> list[Branch] | None:
    """Branches with one unknown more, by the plainest equation; None where no equation is plain."""
    options = [
        (sum(e.has(u) for u in unknowns), e.count_ops(), k, u)
        for k, e in enumerate(branch.left)
        for u in unknowns
        if _degree(e, u) in (1, 2)
    ]
    if not options:
        return None
    _, _, k, unknown = min(options, key=lambda o: o[:3])
    rest = [e for i, e in enumerate(branch.left) if i != k]
    made = []
    for value in _roots(branch.left[k], unknown):
        table = {u: v.subs(unknown, value) for u, v in branch.table.items()} | {unknown: value}
        made.append(Branch(table, [_numerator(e.subs(unknown, value)) for e in rest]))
    return made


def _degree(expr: sp.Expr, unknown: sp.Symbol) -> int:
    """The degree in an unknown, 0 where the expression is no polynomial of it."""
    if not expr.has(unknown) or not expr.is_polynomial(unknown):
        return 0
    if any(g.has(unknown) for g in expr.atoms(GaussianExpectation)):
        return 0
    return int(sp.degree(expr, unknown))


def _roots(expr: sp.Expr, unknown: sp.Symbol) -> list[sp.Expr]:
    """Both roots of a quadratic, the one of a linear equation; those that cannot be real, or the sign, left out."""
    coefficients = sp.Poly(expr, unknown).all_coeffs()
    if len(coefficients) == 2:
        values = [_plain(-coefficients[1] / coefficients[0])]
    else:
        a, b, c = coefficients
        middle, inside = _plain(-b / (2 * a)), _plain((b / (2 * a)) ** 2 - c / a)
        if inside.is_negative:
            return []
        values = list(dict.fromkeys((middle + sp.sqrt(inside), middle - sp.sqrt(inside))))
    wrong_sign = [
        v for v in values if unknown.is_positive and (v.is_negative or v.could_extract_minus_sign())
    ]
    return [v for v in values if v not in wrong_sign or len(coefficients) == 2]


def _plain(expr: sp.Expr) -> sp.Expr:
    """Lowest terms where that is cheap: without functions of numbers, of which there may be many."""
    if expr.has(sp.Function) or expr.count_ops() > 200 or not expr.is_rational_function():
        return expr
    return sp.cancel(expr)


def _numerator(expr: sp.Expr) -> sp.Expr:
    """A rational equation without its denominator."""
    if expr.has(sp.Function) or expr.count_ops() > 400:
        return expr
    return sp.expand(sp.numer(sp.together(expr)))


def _opened(branch: Branch, subject: Tailored) -> Branch:
    """Moments replaced by their closed forms."""
    moments = subject.closed
    table = {u: v.xreplace(moments) for u, v in branch.table.items()}
    return Branch(table, [sp.expand(e.xreplace(moments)) for e in branch.left])


def _settled(value: sp.Expr) -> sp.Expr:
    """A formula in lowest terms under its roots; a number where it holds integrals or numbers."""
    if not value.free_symbols and value.has(GaussianExpectation, sp.Float):
        number = compile_formula(value, ())()
        return sp.Float(float(number), 15) if np.isfinite(number) else sp.nan
    if value.has(GaussianExpectation):
        raise SolveError(
            "a constant has no closed form and holds open symbols", instead="numbers for them"
        )
    return value.replace(
        lambda e: isinstance(e, sp.Pow) and e.exp.is_Rational and not e.exp.is_Integer,
        lambda e: _lowest(e.base) ** e.exp,
    )


def _lowest(expr: sp.Expr) -> sp.Expr:
    small = (
        expr.is_Add
        and expr.count_ops() < 60
        and all(f == sp.pi or f.is_Rational for f in expr.atoms())
    )
    return sp.factor_terms(sp.cancel(expr)) if small and expr.is_rational_function(sp.pi) else expr


# -- order -----------------------------------------------------------------------------------------------------


def _different(tables: list[Table]) -> list[Table]:
    """Each solution once (to six digits)."""
    kept: list[tuple[Any, Table]] = []
    for table in tables:
        mark = [v if v.free_symbols else complex(v.evalf(15)) for v in table.values()]
        if not any(_same(mark, other) for other, _ in kept):
            kept.append((mark, table))
    return [table for _, table in kept]


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(
        u == v
        or (isinstance(u, complex) and isinstance(v, complex) and abs(u - v) < 1e-6 * (1 + abs(u)))
        for u, v in pairs
    )


def _distance(table: Table, near: Mapping[str, float]) -> tuple[float, float, float]:
    """First a > 0, then by how far the constants are from the plain activation, then c > 0."""
    total, sign, side = 0.0, 0.0, 0.0
    for symbol, value in table.items():
        if value.free_symbols:
            continue
        number = complex(value.evalf(15)).real
        if symbol.name == "a":
            sign = 0.0 if number > 0 else 1.0
        elif symbol.name == "b":
            total += abs(np.log(max(number, 1e-300)))
        else:
            total += abs(number - near.get(symbol.name, 0.0))
            side = side if symbol.name != "c" else float(number < 0)
    return sign, round(total, 6), side
