"""Rewriting expressions so that float32 never meets inf/inf: exponentials as decays.

Where exp(k u) stands in a denominator or a logarithm, it is rewritten in t = exp(-abs(u)), which lies in (0, 1]:
for u <= 0 with exp(u) = t, for u > 0 with exp(u) = 1/t, each as a quotient whose common powers of t are
cancelled. So 1/(1 + exp(-x)) becomes 1/(1 + t) or t/(1 + t), and log(1 + exp(x)) becomes log(1 + t) or
log(1 + t) + x. Sums over exponentials of several arguments are divided by their largest term instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import sympy as sp


class Decay(sp.Function):  # type: ignore[misc]
    """exp(-abs(u))."""

    nargs = 1


class WherePositive(sp.Function):  # type: ignore[misc]
    """WherePositive(u, a, b) is a for u > 0 and b elsewhere."""

    nargs = 3


HYPERBOLIC: dict[type, Callable[..., sp.Expr]] = {
    sp.sinh: lambda u: (sp.exp(u) - sp.exp(-u)) / 2,
    sp.cosh: lambda u: (sp.exp(u) + sp.exp(-u)) / 2,
    sp.sech: lambda u: 2 / (sp.exp(u) + sp.exp(-u)),
    sp.csch: lambda u: 2 / (sp.exp(u) - sp.exp(-u)),
    sp.coth: lambda u: 1 / sp.tanh(u),
    sp.tan: lambda u: sp.sin(u) / sp.cos(u),
    sp.cot: lambda u: sp.cos(u) / sp.sin(u),
    sp.sec: lambda u: 1 / sp.cos(u),
    sp.csc: lambda u: 1 / sp.sin(u),
    sp.asin: lambda u: sp.atan(u / sp.sqrt(1 - u**2)),
    sp.atanh: lambda u: (sp.log(1 + u) - sp.log(1 - u)) / 2,
    sp.sinc: lambda u: sp.Piecewise((1, sp.Eq(u, 0)), (sp.sin(u) / u, True)),
    sp.DiracDelta: lambda *u: sp.S.Zero,
}


def stabilize(expr: sp.Basic) -> sp.Basic:
    """An equal expression (almost everywhere) that is safe to evaluate in float32."""
    return _stable(
        expr.replace(lambda e: type(e) in HYPERBOLIC, lambda e: HYPERBOLIC[type(e)](*e.args))
    )


@lru_cache(maxsize=65536)
def _stable(expr: sp.Basic) -> sp.Basic:
    if not expr.args:
        return expr
    if isinstance(expr, sp.log):
        return _stabilize_log(expr)
    if isinstance(expr, sp.Mul | sp.Pow):
        return _stabilize_product(expr)
    return expr.func(*(_stable(a) for a in expr.args))


def _visible(expr: sp.Basic) -> Iterator[sp.exp]:
    """Exponentials reached through sums, products and numeric powers."""
    if isinstance(expr, sp.exp):
        yield expr
    elif isinstance(expr, sp.Add | sp.Mul) or (isinstance(expr, sp.Pow) and expr.exp.is_number):
        for a in expr.args:
            yield from _visible(a)


def _rate(node: sp.exp) -> tuple[sp.Expr, sp.Expr]:
    """(k, u) of exp(k u), u with a canonical sign."""
    argument = node.args[0]
    k, u = argument.as_coeff_Mul()
    if isinstance(u, sp.Add):
        content, u = u.primitive()
        k *= content
    return (-k, -u) if u.could_extract_minus_sign() else (k, u)


def _unit(rates: set[sp.Expr]) -> sp.Expr | None:
    """The largest step of which all rates are multiples, or None."""
    if all(k.is_Rational for k in rates):
        return sp.gcd_list([abs(k) for k in rates])
    step = min(abs(k) for k in rates)
    return step if all(float(k / step).is_integer() for k in rates) else None


def _groups(expr: sp.Basic) -> dict[sp.Expr, set[sp.Expr]]:
    groups: dict[sp.Expr, set[sp.Expr]] = {}
    for node in _visible(expr):
        k, u = _rate(node)
        if k.is_number and k.is_real:
            groups.setdefault(u, set()).add(k)
    return groups


def _risky(expr: sp.Expr) -> dict[sp.Expr, set[sp.Expr]]:
    """The exponentials that stand in a denominator of ``expr``."""
    for factor in sp.Mul.make_args(expr):
        base, power = factor.as_base_exp()
        if not isinstance(base, sp.exp) and power.is_number and power.is_negative:
            groups = _groups(base)
            if groups:
                return groups
    return {}


def _stabilize_product(expr: sp.Expr) -> sp.Expr:
    groups = _risky(expr)
    split = _split(expr, next(iter(groups))) if len(groups) == 1 else None
    if split is not None:
        return split.finish(*(_stable(n / d * split.t**k) for n, d, k in split.sides))
    if groups:
        exponent, rest = _scaled(expr)
        return sp.exp(exponent) * rest
    return expr.func(*(_stable(a) for a in expr.args))


def _stabilize_log(expr: sp.log) -> sp.Expr:
    argument = expr.args[0]
    groups = _groups(argument)
    split = _split(argument, next(iter(groups))) if len(groups) == 1 else None
    if split is not None:
        decay = -split.unit * sp.Abs(split.u)
        return split.finish(
            *(sp.log(_stable(n)) - sp.log(_stable(d)) + k * decay for n, d, k in split.sides)
        )
    exponent, rest = _scaled(argument)
    return exponent + sp.log(rest)


def _scaled(expr: sp.Basic) -> tuple[sp.Expr, sp.Expr]:
    """(m, r) with ``expr`` = exp(m) r, every exponential of a sum divided by the largest of them."""
    if isinstance(expr, sp.exp):
        return _stable(expr.args[0]), sp.S.One
    if isinstance(expr, sp.Mul):
        exponents, rests = zip(*(_scaled(a) for a in expr.args), strict=True)
        return sp.Add(*exponents), sp.Mul(*rests)
    if isinstance(expr, sp.Pow) and expr.exp.is_number:
        exponent, rest = _scaled(expr.base)
        return expr.exp * exponent, rest**expr.exp
    if isinstance(expr, sp.Add) and any(True for _ in _visible(expr)):
        parts = [_scaled(a) for a in expr.args]
        largest = sp.Max(*(m for m, _ in parts))
        return largest, sp.Add(*(sp.exp(m - largest) * r for m, r in parts))
    return sp.S.Zero, _stable(expr)


class _Split:
    """An expression on both sides of u = 0, as (numerator, denominator, power of t)."""

    def __init__(
        self, u: sp.Expr, unit: sp.Expr, t: sp.Dummy, hidden: dict[sp.Dummy, sp.Basic]
    ) -> None:
        self.u, self.unit, self.t, self.hidden = u, unit, t, hidden
        self.sides: list[tuple[sp.Expr, sp.Expr, int]] = []

    def finish(self, positive: sp.Expr, negative: sp.Expr) -> sp.Expr:
        """The two sides joined, hidden parts put back."""
        joined = WherePositive(self.u, positive, negative)
        return joined.xreplace(self.hidden).xreplace({self.t: Decay(self.unit * self.u)})


def _split(expr: sp.Expr, u: sp.Expr) -> _Split | None:
    unit = _unit(_groups(expr)[u])
    if unit is None:
        return None
    t = sp.Dummy("t", positive=True)
    hidden: dict[sp.Dummy, sp.Basic] = {}
    growth, decay = (_substitute(expr, u, unit, side, hidden) for side in (1 / t, t))
    split = _Split(u, unit, t, hidden)
    for side in (growth, decay):
        numerator, denominator = sp.fraction(sp.together(side))
        try:
            (n, above), (d, below) = _strip(numerator, t), _strip(denominator, t)
        except sp.PolynomialError:
            return None
        split.sides.append((n, d, above - below))
    return split


def _substitute(
    expr: sp.Basic, u: sp.Expr, unit: sp.Expr, side: sp.Expr, hidden: dict[sp.Dummy, sp.Basic]
) -> sp.Basic:
    """exp(k u) by its power of ``side``; other functions, made safe, by dummies."""
    if isinstance(expr, sp.exp) and _rate(expr)[1] == u:
        return side ** round(float(_rate(expr)[0] / unit))
    if isinstance(expr, sp.Add | sp.Mul) or (isinstance(expr, sp.Pow) and expr.exp.is_number):
        return expr.func(*(_substitute(a, u, unit, side, hidden) for a in expr.args))
    if not expr.args or isinstance(expr, sp.exp):
        return expr
    safe = _stable(expr)
    known = {value: key for key, value in hidden.items()}
    dummy = known.get(safe) or sp.Dummy("f", real=True)
    hidden[dummy] = safe
    return dummy


def _strip(expr: sp.Expr, t: sp.Dummy) -> tuple[sp.Expr, int]:
    """``expr`` as (rest, n), expr = rest t^n, the rest finite and not zero at t = 0."""
    total, rest = 0, []
    for factor in sp.Mul.make_args(expr):
        base, power = factor.as_base_exp()
        poly = sp.Poly(base, t) if base.has(t) else None
        least = min(m[0] for m in poly.monoms()) if poly is not None else 0
        if poly is not None and least:
            shifted = {(m[0] - least,): c for m, c in poly.terms()}
            base = sp.Poly.from_dict(shifted, t, domain=poly.domain).as_expr()
            total += least * int(power)
        rest.append(base**power)
    return sp.Mul(*rest), total
