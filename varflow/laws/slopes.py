"""Derivatives almost everywhere, and whether a function jumps."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sympy as sp
from sympy.core.relational import Relational

from varflow.laws.algebra import depends, rational, size
from varflow.laws.cells import KINKED, NotFlat, kinked, pieces
from varflow.laws.domain import zeros
from varflow.laws.precise import mp_function
from varflow.laws.straight import NoProgram

_FLAT = (sp.sign, sp.Heaviside, sp.floor, sp.ceiling)
_BROKEN = (sp.Piecewise, sp.sign, sp.Heaviside)
"""What may jump; Abs, Max and Min of continuous functions are continuous."""
MAX_NODES = 600
_PROBES = ("7/5", "-11/8", "13/9", "-3/7", "17/6", "-19/11", "5/12", "-23/10")


def derivative(expr: sp.Expr, var: sp.Symbol) -> sp.Expr:
    """d expr / d var almost everywhere: kinks give their one-sided slopes, jumps give nothing."""
    if not depends(expr, (var,)):
        return sp.S.Zero
    if not kinked(expr, (var,)) and not expr.has(*_FLAT):
        return expr.diff(var)
    if isinstance(expr, _FLAT):
        return sp.S.Zero
    parted = _by_pieces(expr, var)
    if parted is not None:
        return parted
    if isinstance(expr, sp.Add):
        return sp.Add(*[derivative(a, var) for a in expr.args])
    if isinstance(expr, sp.Mul):
        args = expr.args
        return sp.Add(
            *[sp.Mul(*args[:i], derivative(a, var), *args[i + 1 :]) for i, a in enumerate(args)]
        )
    return _kink(expr, var)


def _by_pieces(expr: sp.Expr, var: sp.Symbol) -> sp.Expr | None:
    """The derivative of a function with several kinks at known places, between them; else None."""
    if len(expr.atoms(*KINKED)) < 2 or size(expr, MAX_NODES) == MAX_NODES:
        return None
    try:
        borders, bodies = pieces(expr, var)
    except NotFlat:
        return None
    slopes = [body.diff(var) for body in bodies]
    parts = [(slope, var < b) for slope, b in zip(slopes, borders, strict=False)]
    return sp.Piecewise(*parts, (slopes[-1], True)) if borders else slopes[0]


def _kink(expr: sp.Expr, var: sp.Symbol) -> sp.Expr:
    if isinstance(expr, sp.Abs):
        return sp.sign(expr.args[0]) * derivative(expr.args[0], var)
    if isinstance(expr, sp.Piecewise):
        return sp.Piecewise(*[(derivative(e, var), c) for e, c in expr.args])
    if isinstance(expr, (sp.Max, sp.Min)):
        return _of_extreme(expr, var)
    back = {sp.Dummy(f"d{i}", real=True): a for i, a in enumerate(expr.args) if depends(a, (var,))}
    stand_in = {a: d for d, a in back.items()}
    outer = expr.func(*[stand_in.get(a, a) for a in expr.args])
    return sp.Add(*[outer.diff(d).xreplace(back) * derivative(a, var) for d, a in back.items()])


def _of_extreme(expr: sp.Expr, var: sp.Symbol) -> sp.Expr:
    """The slope of the part that is the largest or smallest; conditions hold smooth functions only."""
    upper, parts = isinstance(expr, sp.Max), expr.args
    if not any(kinked(a, (var,)) for a in parts):
        slopes = [derivative(a, var) for a in parts]
        wins = [
            sp.And(*[a > b if upper else a < b for b in parts[k + 1 :]]) for k, a in enumerate(parts)
        ]
        return sp.Piecewise(*zip(slopes, wins, strict=True))
    first, *others = parts
    rest = others[0] if len(others) == 1 else expr.func(*others, evaluate=False)
    ahead = sp.sign(first - rest) * (1 if upper else -1)
    return ((1 + ahead) * derivative(first, var) + (1 - ahead) * derivative(rest, var)) / 2


def has_jump(expr: sp.Expr, var: sp.Symbol) -> bool:
    """Whether the function jumps somewhere as ``var`` moves, the other symbols at a general place."""
    expr = rational(expr)
    if not any(depends(node, (var,)) for node in expr.atoms(*_BROKEN, *_FLAT)):
        return False
    if any(depends(node, (var,)) for node in expr.atoms(sp.floor, sp.ceiling)):
        return True
    others = sorted(expr.free_symbols - {var}, key=sp.default_sort_key)
    return any(_jumps(expr.xreplace(_probe(others, k)), var) for k in range(4 if others else 1))


def _probe(symbols: list[sp.Symbol], k: int) -> dict[sp.Symbol, sp.Expr]:
    values = (sp.Rational(_PROBES[(i + 3 * k) % len(_PROBES)]) + k for i in range(len(symbols)))
    return {s: abs(v) if s.is_nonnegative else v for s, v in zip(symbols, values, strict=True)}


def _jumps(expr: sp.Expr, var: sp.Symbol) -> bool:
    try:
        borders, bodies = pieces(expr, var)
    except NotFlat:
        return _seen_to_jump(expr, var)
    steps = (
        (right - left).subs(var, b)
        for b, left, right in zip(borders, bodies, bodies[1:], strict=False)
    )
    return any(not _small(sp.N(step, 30)) for step in steps)


@lru_cache(maxsize=512)
def _seen_to_jump(expr: sp.Expr, var: sp.Symbol) -> bool:
    """The same by numbers, the borders of a function of one variable being roots that have no formula."""
    import mpmath as mp

    try:
        exact = mp_function(expr, (var,))
        with mp.workdps(60):
            return any(
                _stays(exact, root) for part in _switches(expr) for root in zeros(part, var, None)
            )
    except NoProgram:
        return True


def _switches(expr: sp.Expr) -> list[sp.Expr]:
    """Functions that are zero where a condition or a sign changes."""
    relations = {r for node in expr.atoms(sp.Piecewise) for _, c in node.args for r in c.atoms(Relational)}
    signs = {node.args[0] for node in expr.atoms(sp.sign, sp.Heaviside)}
    return sorted({r.lhs - r.rhs for r in relations} | signs, key=sp.default_sort_key)


def _stays(exact: Any, root: Any) -> bool:
    """Whether the values on the two sides of a root of fifty digits stay apart close to it."""
    import mpmath as mp

    wide, close = ([exact(root + s * mp.mpf(10) ** -k, 60) for s in (-1, 1)] for k in (12, 24))
    if None in (*wide, *close):
        return True
    gap = abs(close[1] - close[0])
    return bool(gap > abs(wide[1] - wide[0]) / 2 and gap > 1e-15 * max(map(abs, close)))


def _small(step: sp.Expr) -> bool:
    """False for what is large, infinite or no number."""
    return bool(step.is_finite) and bool(abs(step) <= sp.Float("1e-20"))
