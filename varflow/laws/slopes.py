"""Derivatives almost everywhere, and whether a function jumps."""

from __future__ import annotations

import sympy as sp

from varflow.laws.algebra import depends, rational, size
from varflow.laws.cells import KINKED, NotFlat, kinked, pieces

_FLAT = (sp.sign, sp.Heaviside, sp.floor, sp.ceiling)
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
        first, *others = expr.args
        rest = others[0] if len(others) == 1 else expr.func(*others, evaluate=False)
        if kinked(first, (var,)) or kinked(rest, (var,)):
            ahead = sp.sign(first - rest) * (1 if isinstance(expr, sp.Max) else -1)
            left, right = derivative(first, var), derivative(rest, var)
            return ((1 + ahead) * left + (1 - ahead) * right) / 2
        wins = first > rest if isinstance(expr, sp.Max) else first < rest
        return sp.Piecewise((derivative(first, var), wins), (derivative(rest, var), True))
    back = {sp.Dummy(f"d{i}", real=True): a for i, a in enumerate(expr.args) if depends(a, (var,))}
    stand_in = {a: d for d, a in back.items()}
    outer = expr.func(*[stand_in.get(a, a) for a in expr.args])
    return sp.Add(*[outer.diff(d).xreplace(back) * derivative(a, var) for d, a in back.items()])


def has_jump(expr: sp.Expr, var: sp.Symbol) -> bool:
    """Whether the function jumps somewhere as ``var`` moves, the other symbols at a general place."""
    expr = rational(expr)
    if not expr.has(*KINKED, *_FLAT) or not depends(expr, (var,)):
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
        return True
    steps = (
        (right - left).subs(var, b)
        for b, left, right in zip(borders, bodies, bodies[1:], strict=False)
    )
    return any(not _small(sp.N(step, 30)) for step in steps)


def _small(step: sp.Expr) -> bool:
    """False for what is large, infinite or no number."""
    return bool(step.is_finite) and bool(abs(step) <= sp.Float("1e-20"))
