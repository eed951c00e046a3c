"""Equations for unknown scales: closed forms where they are plain, numbers to 1e-12 otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp

from varflow.constants import DIGITS, number_of, with_names
from varflow.errors import SolveError
from varflow.laws.integral import GaussianExpectation

RANGE = (1e-8, 1e8)
POINTS, STRIDE = 240, 4
"""Points of the grid on which roots are looked for; double integrals are taken at one in four where that does."""
LONGEST = 160
"""Characters of a formula in a message."""


@dataclass(frozen=True)
class Root:
    """The answer for one unknown: ``value`` (None: no positive solution, ``reason`` says why), whether it is a
    formula, and the other positive solutions."""

    value: sp.Expr | None
    closed_form: bool = True
    others: tuple[sp.Expr, ...] = ()
    reason: str = ""


def solve_for(left: sp.Expr, right: sp.Expr, unknown: sp.Symbol) -> Root:
    """The least positive solution of left = right in one unknown, checked by substituting it back."""
    found = _power(left, right, unknown)
    candidates = found if found is not None else _polynomial(left - right, unknown)
    if candidates is None:
        return _numeric(left, right, unknown)
    kept = [c for c in map(_whole, candidates) if _can_be_positive(c) and _holds(left - right, unknown, c)]
    if not kept:
        return Root(None, reason=_why_none(left, right, unknown))
    kept.sort(key=lambda c: (0, float(c)) if c.is_number else (1, 0.0))
    return Root(kept[0], others=tuple(kept[1:]))


def _whole(value: sp.Expr) -> sp.Expr:
    """A whole number, up to rounding, as an integer."""
    whole = sp.Integer(round(value)) if isinstance(value, sp.Float) else None
    return whole if whole and abs(value - whole) < 1e-13 * abs(whole) else value


def _can_be_positive(value: sp.Expr) -> bool:
    """Whether a candidate is positive at some numbers for its symbols, as probabilities, variances and depths have."""
    if value.is_positive is not None:
        return bool(value.is_positive)
    names = sorted(value.free_symbols, key=str)
    for shift in (sp.Rational(1, 20), sp.Rational(3, 10), sp.Rational(13, 10), sp.Rational(27, 10), sp.Integer(12)):
        number = complex(sp.N(value.subs({s: shift + sp.Rational(i, 70) for i, s in enumerate(names)})))
        if number.real > 0 and abs(number.imag) <= 1e-9 * number.real:
            return True
    return False


def _power(left: sp.Expr, right: sp.Expr, unknown: sp.Symbol) -> list[sp.Expr] | None:
    """base(unknown)**k * c = right, unknown nowhere else: through base = (right/c)**(1/k)."""
    factor, rest = left.as_independent(unknown, as_Add=False)
    if right.has(unknown) or not isinstance(rest, sp.Pow) or rest.exp.has(unknown) or rest.base == unknown:
        return None
    return _polynomial(rest.base - (right / factor) ** (1 / rest.exp), unknown)


def _polynomial(expr: sp.Expr, unknown: sp.Symbol) -> list[sp.Expr] | None:
    """Roots of an equation that is rational of degree two at most in the unknown; None for other equations."""
    if not expr.is_rational_function(unknown) or expr.count_ops() > 2000:
        return None
    names: dict[sp.Expr, sp.Symbol] = {}
    top = sp.numer(sp.together(with_names(expr, names)))
    if not top.is_polynomial(unknown):
        return None
    poly = sp.Poly(top, unknown)
    if poly.degree() < 1:
        return []
    if len(poly.monoms()) > 2 and poly.degree() != 2:
        return None
    found = _binomial(poly) if len(poly.monoms()) == 2 else [sp.cancel(r) for r in sp.roots(poly)]
    return [r.xreplace({name: number for number, name in names.items()}) for r in found]


def _binomial(poly: sp.Poly) -> list[sp.Expr]:
    """a x^k + b x^j = 0 for x > 0: x = (-b/a)^(1/(k-j)); and a x + b."""
    ((high,), a), ((low,), b) = poly.terms()
    return [sp.cancel(-b / a) ** sp.Rational(1, high - low)]


def _holds(expr: sp.Expr, unknown: sp.Symbol, value: sp.Expr) -> bool:
    """Whether a candidate satisfies the equation, at numbers for all other symbols."""
    names: dict[sp.Expr, sp.Symbol] = {}
    named, answer = with_names(expr, names), with_names(value, names)
    numbers = {name: number_of(number) for number, name in names.items()}
    for shift in (sp.Rational(13, 10), sp.Rational(27, 10)):
        table = {s: shift + sp.Rational(i, 7) for i, s in enumerate(sorted(expr.free_symbols - {unknown}, key=str))}
        there = named.subs(numbers | table)
        scale = 1 + abs(complex(sp.N(there.subs(unknown, 1))))
        if abs(complex(sp.N(there.subs(unknown, sp.N(answer.subs(numbers | table), DIGITS))))) > 1e-9 * scale:
            return False
    return True


def _numeric(left: sp.Expr, right: sp.Expr, unknown: sp.Symbol) -> Root:
    expr = left - right
    open_symbols = expr.free_symbols - {unknown}
    if open_symbols:
        names = ", ".join(sorted(s.name for s in open_symbols))
        return Root(None, reason=f"the condition has no closed solution and depends on {names}; give them numbers")
    sides = [_function(side, unknown) for side in (left, right)]  # their difference would want its own digits at a root
    found = _bracketed(lambda x: sides[0](x) - sides[1](x), _stride(expr))
    if not found:
        return Root(None, reason=_why_none(left, right, unknown))
    values = [sp.Float(x, 15) for x in found]
    return Root(values[0], closed_form=False, others=tuple(values[1:]))


def _stride(expr: sp.Expr) -> int:
    return STRIDE if any(len(e.variables) > 1 for e in expr.atoms(GaussianExpectation)) else 1


def _why_none(left: sp.Expr, right: sp.Expr, unknown: sp.Symbol) -> str:
    """The values that one side takes where the other is a number, else that there is no solution."""
    import numpy as np

    if right.has(unknown):
        left, right = right, left
    if right.free_symbols or left.free_symbols != {unknown}:
        return f"{_short(left)} = {_short(right)} has no positive solution"
    grid = np.geomspace(*RANGE, POINTS // _stride(left))
    with np.errstate(all="ignore"):
        values = np.broadcast_to(np.asarray(_function(left, unknown)(grid)), grid.shape)
    taken = values[~np.isnan(values)]
    found = f"has values from {taken.min():.6g} to {taken.max():.6g}" if len(taken) else "has no value"
    return f"{_short(left)} {found} for {RANGE[0]:g} < {unknown} < {RANGE[1]:g}, none of them {float(right):.6g}"


def _short(expr: sp.Expr) -> str:
    text = str(expr)
    return text if len(text) <= LONGEST else "one side of the condition"


def _function(expr: sp.Expr, unknown: sp.Symbol) -> Callable[[Any], Any]:
    from varflow.laws.expectation import compile_formula

    return compile_formula(expr, (unknown,))


def _bracketed(f: Callable[[Any], Any], stride: int = 1) -> list[float]:
    """All sign changes on a logarithmic grid, refined; with a ``stride``, on every so many of its points and on those
    beside the smallest values, between which it may touch zero."""
    import numpy as np
    from scipy.optimize import brentq

    whole = np.geomspace(*RANGE, POINTS)
    at = np.unique(np.append(np.arange(0, POINTS, stride), POINTS - 1))
    values = _values(f, whole[at])
    lows = [k for k in range(1, len(at) - 1) if stride > 1 and _is_low(values[k - 1 : k + 2])]
    if lows:
        more = np.setdiff1d(np.concatenate([np.arange(at[k - 1], at[k + 1]) for k in lows]), at)
        order = np.argsort(np.concatenate([at, more]))
        at, values = (np.concatenate(x)[order] for x in ((at, more), (values, _values(f, whole[more]))))
    grid = whole[at]
    found = [float(x) for x in grid[values == 0.0]]
    for a, b, fa, fb in zip(grid, grid[1:], values, values[1:], strict=False):
        if np.isfinite(fa) and np.isfinite(fb) and np.sign(fa) * np.sign(fb) < 0:
            found.append(float(brentq(lambda x: float(f(x)), a, b, xtol=1e-300, rtol=1e-14)))
    return sorted(found)


def _values(f: Callable[[Any], Any], grid: Any) -> Any:
    import numpy as np

    return np.broadcast_to(np.asarray(f(grid), dtype=float), grid.shape)


def _is_low(three: Any) -> bool:
    """Whether the second of three values is nearer to zero than its neighbours, of its sign, or one is no number."""
    if not all(map(math.isfinite, three)):
        return True
    a, b, c = map(abs, three)
    return bool(b <= a and b <= c and b < max(a, c) and (min(three) > 0 or max(three) < 0))


def solve_system(equations: Sequence[sp.Eq], unknowns: Sequence[sp.Symbol]) -> list[Root]:
    """Positive solutions of as many equations as unknowns, one at a time where they decouple, else numerically.

    Raises SolveError where there is none.
    """
    if len(equations) != len(unknowns):
        raise SolveError(f"{len(equations)} equation(s) for {len(unknowns)} unknown(s)",
                         instead="as many equations as unknowns")
    if len(unknowns) == 1:
        root = solve_for(equations[0].lhs, equations[0].rhs, unknowns[0])
        if root.value is None:
            raise SolveError(f"no {unknowns[0]} satisfies the equation", why=root.reason)
        return [root]
    peeled = _peel(equations, unknowns)
    return peeled if peeled is not None else _joint(equations, unknowns)


def _peel(equations: Sequence[sp.Eq], unknowns: Sequence[sp.Symbol]) -> list[Root] | None:
    """Solve an equation with one unknown, put the answer into the others, and so on; None if it gets stuck."""
    answers: dict[sp.Symbol, Root] = {}
    table: dict[sp.Symbol, sp.Expr] = {}
    todo = list(equations)
    while todo:
        ready = [(e, u) for e in todo for u in [_only(e, table, unknowns)] if u is not None]
        if not ready:
            return None
        equation, unknown = ready[0]
        root = solve_for(equation.lhs.subs(table), equation.rhs.subs(table), unknown)
        if root.value is None:
            raise SolveError(f"no {unknown} satisfies {equation}", why=root.reason)
        answers[unknown], table[unknown] = root, root.value
        todo.remove(equation)
    return [answers[u] for u in unknowns] if len(answers) == len(unknowns) else None


def _only(equation: sp.Eq, table: dict[sp.Symbol, sp.Expr], unknowns: Sequence[sp.Symbol]) -> sp.Symbol | None:
    left = [u for u in unknowns if u not in table and equation.has(u)]
    return left[0] if len(left) == 1 else None


def _joint(equations: Sequence[sp.Eq], unknowns: Sequence[sp.Symbol]) -> list[Root]:
    import numpy as np
    from scipy.optimize import root as find_root

    from varflow.laws.expectation import compile_formula

    residuals = [e.lhs - e.rhs for e in equations]
    extra = set().union(*(r.free_symbols for r in residuals)) - set(unknowns)
    if extra:
        raise SolveError("the equations do not decouple and contain open symbols",
                         why=", ".join(sorted(map(str, extra))), instead="numbers for them")
    compiled = [compile_formula(r, tuple(unknowns)) for r in residuals]

    def miss(logs: Any) -> list[float]:
        return [float(c(*np.exp(logs))) for c in compiled]

    for start in (0.0, 0.7, -0.7, 2.0, -2.0):
        result = find_root(miss, np.full(len(unknowns), start), tol=1e-13)
        if result.success and max(map(abs, miss(result.x))) < 1e-9:
            return [Root(sp.Float(float(np.exp(x)), 15), closed_form=False) for x in result.x]
    raise SolveError("no solution of the equations was found", instead="fewer conditions, or other unknowns")
