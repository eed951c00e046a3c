"""Piecewise functions cut into cells: linear bounds with a smooth body on each.

Every spelling of a kink (Piecewise, Abs, Max, Min, Heaviside, sign) ends in the same cells. Values on the
borders, a null set, are dropped.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import pairwise, product

import numpy as np
import sympy as sp
from sympy.logic.boolalg import ITE, And, Boolean, BooleanFalse, BooleanTrue, Not, Or

from varflow.binormal import by_numpy
from varflow.laws.algebra import affine, depends, line, ordered, size, symbols_of
from varflow.laws.precise import function_of
from varflow.laws.straight import NoProgram

MAX_CELLS = 64
SMALL = 100
_SCALAR = {"erf": math.erf, "erfc": math.erfc, "gamma": math.gamma, "loggamma": math.lgamma, "Phi2": by_numpy}
KINKED = (sp.Piecewise, sp.Abs, sp.Max, sp.Min, sp.Heaviside, sp.sign)
_INCREASING = (sp.erf, sp.tanh, sp.sinh, sp.atan, sp.asinh)
"""Functions with the sign of their argument."""
Bounds = tuple[tuple[sp.Expr, sp.Expr, sp.Expr], ...]
Variables = frozenset[sp.Symbol]


class NotFlat(Exception):
    """The function cannot be cut into cells with known, ordered borders."""


@dataclass(frozen=True)
class Cell:
    """``lo < form < hi`` for every (form, lo, hi) of the bounds, and the smooth body there."""

    bounds: Bounds
    body: sp.Expr


def above(a: sp.Expr, b: sp.Expr) -> bool:
    """Whether a >= b; NotFlat if the order is not known."""
    if a == b:
        return True
    if a in (sp.oo, sp.S.NegativeInfinity) or b in (sp.oo, sp.S.NegativeInfinity):
        return bool(a == sp.oo or b == sp.S.NegativeInfinity)
    gap = sp.expand(a - b)
    known = gap.is_nonnegative
    if known is None:
        known = gap.is_positive or (False if gap.is_negative or gap.is_nonpositive else None)
    if known is None:
        raise NotFlat
    return bool(known)


def meet(first: Bounds, second: Bounds) -> Bounds | None:
    """The common part of two regions; None if it is empty."""
    limits = {form: (lo, hi) for form, lo, hi in first}
    for form, lo, hi in second:
        old_lo, old_hi = limits.get(form, (sp.S.NegativeInfinity, sp.oo))
        new_lo = old_lo if above(old_lo, lo) else lo
        new_hi = hi if above(old_hi, hi) else old_hi
        if above(new_lo, new_hi):
            return None
        limits[form] = (new_lo, new_hi)
    items = sorted(limits.items(), key=lambda item: sp.default_sort_key(item[0]))
    return tuple((form, lo, hi) for form, (lo, hi) in items)


def kinked(expr: sp.Basic, variables: Collection[sp.Symbol]) -> bool:
    """Whether the expression has a kink or a jump in the variables."""
    return any(depends(node, variables) for node in expr.atoms(*KINKED))


def split(expr: sp.Expr, variables: Variables) -> list[Cell]:
    """The cells of an expression, merged where a border separates equal bodies."""
    if not kinked(expr, variables):
        return [Cell((), expr)]
    found = _SPLITTERS.get(expr.func, _split_generic)(expr, variables)
    if len(found) > MAX_CELLS:
        raise NotFlat
    return merged(found)


def _cross(parts: list[list[Cell]]) -> Iterator[tuple[Bounds, tuple[sp.Expr, ...]]]:
    if reduce(lambda n, cells: n * len(cells), parts, 1) > 8 * MAX_CELLS:
        raise NotFlat
    for choice in product(*parts):
        bounds: Bounds | None = ()
        for cell in choice:
            bounds = meet(bounds, cell.bounds) if bounds is not None else None
        if bounds is not None:
            yield bounds, tuple(cell.body for cell in choice)


def _split_generic(expr: sp.Expr, variables: Variables) -> list[Cell]:
    smooth = [a for a in expr.args if not kinked(a, variables)]
    rough = [a for a in expr.args if kinked(a, variables)]
    if isinstance(expr, (sp.Mul, sp.Add)):
        cells = reduce(
            lambda left, right: merged(
                [Cell(b, expr.func(*bodies)) for b, bodies in _cross([left, right])]
            ),
            [split(a, variables) for a in rough],
        )
        return [Cell(c.bounds, expr.func(c.body, *smooth)) for c in cells]
    parts = [split(a, variables) for a in expr.args]
    return [Cell(b, expr.func(*bodies)) for b, bodies in _cross(parts)]


def _split_piecewise(expr: sp.Piecewise, variables: Variables) -> list[Cell]:
    cells: list[Cell] = []
    rest: list[Bounds] = [()]
    for body, condition in expr.args:
        parts = truth(condition, variables)
        inner = split(body, variables)
        later: list[Bounds] = []
        for region, (bounds, holds) in product(rest, parts):
            joined = meet(region, bounds)
            if joined is not None and holds:
                cells += [
                    Cell(b, c.body) for c in inner if (b := meet(joined, c.bounds)) is not None
                ]
            elif joined is not None:
                later.append(joined)
        rest = later
    return cells


def _split_max(expr: sp.Expr, variables: Variables) -> list[Cell]:
    want = 1 if isinstance(expr, sp.Max) else -1
    first, *others = expr.args
    rest = others[0] if len(others) == 1 else expr.func(*others, evaluate=False)
    return [
        Cell(b, bodies[0] if s == want else bodies[1])
        for outer, bodies in _cross([split(first, variables), split(rest, variables)])
        for inner, s in smooth_signs(bodies[0] - bodies[1], variables)
        if (b := meet(outer, inner)) is not None
    ]


def _split_sign(expr: sp.Expr, variables: Variables) -> list[Cell]:
    return [
        Cell(b, _value(expr, s, cell.body))
        for cell in split(expr.args[0], variables)
        for inner, s in smooth_signs(cell.body, variables)
        if (b := meet(cell.bounds, inner)) is not None
    ]


def _value(expr: sp.Expr, s: int, inside: sp.Expr) -> sp.Expr:
    if isinstance(expr, sp.Abs):
        return s * inside
    if isinstance(expr, sp.Heaviside) and s == 0:
        return expr.args[1]
    return sp.Integer(s if isinstance(expr, sp.sign) else s > 0)


_SPLITTERS = {
    sp.Piecewise: _split_piecewise,
    sp.Max: _split_max,
    sp.Min: _split_max,
    sp.Abs: _split_sign,
    sp.sign: _split_sign,
    sp.Heaviside: _split_sign,
}


_HOLDS: dict[type, Callable[[int, int], bool]] = {
    sp.Eq: operator.eq, sp.Ne: operator.ne, sp.Gt: operator.gt,
    sp.Ge: operator.ge, sp.Lt: operator.lt, sp.Le: operator.le,
}


def truth(condition: Boolean, variables: Variables) -> list[tuple[Bounds, bool]]:
    """A partition of space, and whether the condition holds on each part."""
    if isinstance(condition, (BooleanTrue, BooleanFalse)):
        return [((), bool(condition))]
    if isinstance(condition, Not):
        return [(b, not t) for b, t in truth(condition.args[0], variables)]
    if isinstance(condition, (And, Or)):
        start: list[tuple[Bounds, tuple[bool, ...]]] = [((), ())]
        joined = reduce(_meet_truth, [truth(a, variables) for a in condition.args], start)
        rule = all if isinstance(condition, And) else any
        return [(b, rule(t)) for b, t in joined]
    if isinstance(condition, ITE):
        when, yes, no = condition.args
        return truth(Or(And(when, yes), And(Not(when), no)), variables)
    if not isinstance(condition, (sp.Eq, sp.Ne, sp.Gt, sp.Ge, sp.Lt, sp.Le)):
        raise NotFlat
    difference = condition.lhs - condition.rhs
    if isinstance(condition, (sp.Eq, sp.Ne)) and difference != 0 and not kinked(difference, variables):
        return [((), isinstance(condition, sp.Ne))]
    return [(b, _HOLDS[type(condition)](s, 0)) for b, s in signs(difference, variables)]


def _meet_truth(
    left: list[tuple[Bounds, tuple[bool, ...]]], right: list[tuple[Bounds, bool]]
) -> list[tuple[Bounds, tuple[bool, ...]]]:
    pairs = ((meet(b, c), (*t, u)) for (b, t), (c, u) in product(left, right))
    return [(b, t) for b, t in pairs if b is not None]


def signs(expr: sp.Expr, variables: Variables) -> list[tuple[Bounds, int]]:
    """A partition of space, and the sign of the expression on each part."""
    return [
        (b, s)
        for cell in split(expr, variables)
        for inner, s in smooth_signs(cell.body, variables)
        if (b := meet(cell.bounds, inner)) is not None
    ]


def smooth_signs(expr: sp.Expr, variables: Variables) -> list[tuple[Bounds, int]]:
    """Where a smooth expression is positive and negative; 0 where it is zero everywhere."""
    if expr.is_zero:
        return [((), 0)]
    if expr.is_positive:
        return [((), 1)]
    if expr.is_nonpositive:
        return [((), -1)]
    if not depends(expr, variables):
        raise NotFlat
    if isinstance(expr, sp.Mul):
        return _sign_product([smooth_signs(a, variables) for a in expr.args])
    if isinstance(expr, sp.Pow) and expr.exp.is_Integer:
        base = smooth_signs(expr.base, variables)
        return [((), 1)] if expr.exp.is_even else base
    if isinstance(expr, _INCREASING):
        return smooth_signs(expr.args[0], variables)
    straight = line(expr, variables)
    if straight is not None:
        return _half_spaces(straight.form, -straight.constant / straight.scale, straight.scale)
    return _sign_roots(expr, variables)


def _sign_product(parts: list[list[tuple[Bounds, int]]]) -> list[tuple[Bounds, int]]:
    def join(
        left: list[tuple[Bounds, int]], right: list[tuple[Bounds, int]]
    ) -> list[tuple[Bounds, int]]:
        pairs = ((meet(b, c), s * t) for (b, s), (c, t) in product(left, right))
        return [(b, s) for b, s in pairs if b is not None]

    return reduce(join, parts, [((), 1)])


def _half_spaces(form: sp.Expr, root: sp.Expr, slope: sp.Expr) -> list[tuple[Bounds, int]]:
    s = 1 if slope.is_positive else -1
    if not (slope.is_positive or slope.is_negative):
        raise NotFlat
    return [(((form, root, sp.oo),), s), (((form, sp.S.NegativeInfinity, root),), -s)]


def _sign_roots(expr: sp.Expr, variables: Variables) -> list[tuple[Bounds, int]]:
    inside = ordered(expr.free_symbols & variables)
    if len(inside) != 1:
        raise NotFlat
    z = inside[0]
    roots = _exponential_root(expr, z)
    if roots is None:
        roots = _polynomial_roots(expr, z)
    edges = [sp.S.NegativeInfinity, *roots, sp.oo]
    return [
        (((z, lo, hi),) if roots else (), _sign_at(expr, z, lo, hi)) for lo, hi in pairwise(edges)
    ]


def _sign_at(expr: sp.Expr, z: sp.Symbol, lo: sp.Expr, hi: sp.Expr) -> int:
    if lo == sp.S.NegativeInfinity:
        point = sp.S.Zero if hi == sp.oo else hi - 1
    else:
        point = lo + 1 if hi == sp.oo else (lo + hi) / 2
    value = sp.expand(expr.subs(z, point))
    if value.is_positive or value.is_negative:
        return 1 if value.is_positive else -1
    raise NotFlat


def _exponential_root(expr: sp.Expr, z: sp.Symbol) -> list[sp.Expr] | None:
    constant, rest = sp.expand(expr).as_independent(z, as_Add=True)
    factor, power = rest.as_independent(z, as_Add=False)
    inner = affine(power.args[0], {z}) if isinstance(power, sp.exp) else None
    if inner is None or not inner[0]:
        return None
    ratio = -constant / factor
    if not ratio.is_positive:
        return [] if ratio.is_nonpositive else None
    return [sp.expand((sp.log(ratio) - inner[1]) / inner[0][z])]


def _polynomial_roots(expr: sp.Expr, z: sp.Symbol) -> list[sp.Expr]:
    if not expr.is_polynomial(z):
        raise NotFlat
    poly = sp.Poly(expr, z)
    if not all(c.is_Rational for c in poly.all_coeffs()) or poly.degree() > 8:
        raise NotFlat
    roots = sp.real_roots(poly)
    return [r for i, r in enumerate(roots) if i == 0 or r != roots[i - 1]]


def merged(cells: list[Cell]) -> list[Cell]:
    """The cells with every pair joined that differs in one border only and has equal bodies."""
    cells = list(cells)
    done = False
    while not done and len(cells) <= MAX_CELLS:
        done = True
        for i, j in product(range(len(cells)), range(len(cells))):
            union = _union(cells[i], cells[j]) if i != j else None
            if union is not None:
                keep = [c for k, c in enumerate(cells) if k not in (i, j)]
                cells, done = [*keep[: min(i, j)], union, *keep[min(i, j) :]], False
                break
    return cells


def _union(left: Cell, right: Cell) -> Cell | None:
    """left below right along exactly one form, with equal bodies."""
    first = {f: (lo, hi) for f, lo, hi in left.bounds}
    second = {f: (lo, hi) for f, lo, hi in right.bounds}
    if first.keys() != second.keys():
        return None
    different = [f for f in first if first[f] != second[f]]
    if len(different) != 1 or first[different[0]][1] != second[different[0]][0]:
        return None
    if left.body != right.body and not _equal(left.body, right.body):
        return None
    first[different[0]] = (first[different[0]][0], second[different[0]][1])
    unbounded = (sp.S.NegativeInfinity, sp.oo)
    return Cell(tuple((f, *b) for f, b in first.items() if b != unbounded), left.body)


@lru_cache(maxsize=4096)
def _equal(first: sp.Expr, second: sp.Expr) -> bool:
    """Whether two small bodies are equal once multiplied out."""
    if size(first, SMALL) + size(second, SMALL) >= SMALL or _differ(first, second):
        return False
    return bool(sp.expand(first - second) == 0)


def _differ(first: sp.Expr, second: sp.Expr) -> bool:
    """Whether the two are seen to differ at one point."""
    names = ordered(symbols_of(first) | symbols_of(second))
    point = [0.713 + 0.317 * k for k in range(len(names))]
    try:
        with np.errstate(all="ignore"):
            a, b = (float(function_of(e, names, _SCALAR)(*point)) for e in (first, second))
    except (NoProgram, ArithmeticError, ValueError, TypeError):
        return False
    return abs(a - b) > 1e-9 * (abs(a) + abs(b)) + 1e-12


def pieces(expr: sp.Expr, variable: sp.Symbol) -> tuple[list[sp.Expr], list[sp.Expr]]:
    """Sorted borders b_1 < ... < b_n and the n + 1 bodies between them, of one variable."""
    cells = split(expr, frozenset({variable}))
    if any(len(c.bounds) > 1 or (c.bounds and c.bounds[0][0] != variable) for c in cells):
        raise NotFlat
    by_start = {c.bounds[0][1] if c.bounds else sp.S.NegativeInfinity: c for c in cells}
    borders: list[sp.Expr] = []
    bodies: list[sp.Expr] = []
    start: sp.Expr = sp.S.NegativeInfinity
    while start != sp.oo:
        if start not in by_start or len(bodies) > len(cells):
            raise NotFlat
        cell = by_start[start]
        bodies.append(cell.body)
        start = cell.bounds[0][2] if cell.bounds else sp.oo
        borders.append(start)
    return borders[:-1], bodies


def piecewise(expr: sp.Expr, variable: sp.Symbol) -> sp.Expr:
    """The canonical Piecewise of a one-variable function: equal functions, equal objects."""
    borders, bodies = pieces(expr, variable)
    if not borders:
        return bodies[0]
    parts = [(body, variable < b) for body, b in zip(bodies, borders, strict=False)]
    return sp.Piecewise(*parts, (bodies[-1], True))
