"""Derivatives of Gaussian expectations of functions with kinks and jumps.

dE f/dC_ij = E[d_i d_j f] (Price 1958) with derivatives as distributions: a kink is a delta in f'', a jump one
in f' and its derivative in f''. A delta at b is the density there times the expectation given z = b. Where the
places of kinks are not known, Stein's lemma moves derivatives to the density: E[d_i g] = E[(C^-1 z)_i g].
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import sympy as sp

from varflow.laws.algebra import depends
from varflow.laws.cells import NotFlat, pieces
from varflow.laws.distributions import Normal
from varflow.laws.integral import GaussianExpectation
from varflow.laws.slopes import derivative, has_jump


@dataclass(frozen=True)
class Weak:
    """A function of one variable as a distribution: values almost everywhere, and deltas (place, weight)."""

    values: sp.Expr
    deltas: tuple[tuple[sp.Expr, sp.Expr], ...] = ()


def slope(f: sp.Expr, z: sp.Symbol) -> Weak:
    """f' as a distribution; NotFlat if the places of its jumps are not known."""
    borders, bodies = pieces(f, z)
    steps = [
        (b, _at(right - left, z, b))
        for b, (left, right) in zip(borders, pairwise(bodies), strict=True)
    ]
    values = derivative(f, z)
    return Weak(values, tuple((b, j) for b, j in steps if not _vanishes(j)))


def _at(expr: sp.Expr, z: sp.Symbol, place: sp.Expr) -> sp.Expr:
    return sp.expand(expr.xreplace({z: place}))


def _vanishes(step: sp.Expr) -> bool:
    return bool(step == 0 or (step.is_number and abs(sp.N(step, 30)) < sp.Float("1e-25")))


def density(place: sp.Expr, variance: sp.Expr) -> sp.Expr:
    """The Gaussian density."""
    return sp.exp(-(place**2) / (2 * variance)) / sp.sqrt(2 * sp.pi * variance)


def derivative_of(expectation: GaussianExpectation, symbol: sp.Symbol) -> sp.Expr:
    """dE/d symbol of an expectation whose integrand has kinks or jumps."""
    f, zs, law = expectation.integrand, expectation.variables, expectation.covariance
    if len(zs) == 1:
        return _of_one(f, zs[0], law[0], symbol)
    total: sp.Expr = sp.S.Zero
    if depends(f, (symbol,)):
        if has_jump(f, symbol):
            return sp.Derivative(expectation, symbol, evaluate=False)
        total += _mean(derivative(f, symbol), zs, law)
    for k, entry in enumerate(law):
        rate = entry.diff(symbol)
        if rate != 0:
            total += rate * _entry(f, zs, law, k)
    return total


def _of_one(f: sp.Expr, z: sp.Symbol, q: sp.Expr, symbol: sp.Symbol) -> sp.Expr:
    rate = q.diff(symbol)
    try:
        borders, bodies = pieces(f, z)
    except NotFlat:
        if depends(f, (symbol,)):
            raw = GaussianExpectation(f, (z,), (q,))
            return sp.Derivative(raw, symbol, evaluate=False)
        return rate * _mean(f * (z**2 - q), (z,), (q,)) / (2 * q**2)
    parts = [body.diff(symbol) + rate * body.diff(z, 2) / 2 for body in bodies]
    total = _mean(_joined(borders, parts, z), (z,), (q,))
    for b, (left, right) in zip(borders, pairwise(bodies), strict=True):
        step, bend = _at(right - left, z, b), _at((right - left).diff(z), z, b)
        weight = rate / 2 * (bend + step * b / q) - step * b.diff(symbol)
        total += sp.expand(weight) * density(b, q)
    return total


def _joined(borders: list[sp.Expr], bodies: list[sp.Expr], z: sp.Symbol) -> sp.Expr:
    if not borders:
        return bodies[0]
    parts = [(body, z < b) for body, b in zip(bodies, borders, strict=False)]
    return sp.Piecewise(*parts, (bodies[-1], True))


def _mean(f: sp.Expr, zs: tuple[sp.Symbol, ...], law: tuple[sp.Expr, ...]) -> sp.Expr:
    from varflow.laws.expectation import expect

    if f == 0:
        return sp.S.Zero
    table = {(zs[0], zs[0]): law[0], (zs[-1], zs[-1]): law[-1]}
    return expect(f, {z: Normal() for z in zs}, lambda s, t: table.get((s, t), law[len(law) // 2]))


def _entry(f: sp.Expr, zs: tuple[sp.Symbol, ...], law: tuple[sp.Expr, ...], k: int) -> sp.Expr:
    """dE f / d(q_1, c, q_2)[k]."""
    factor, *separate = _factors(f, zs)
    try:
        if separate and k == 1:
            return factor * _mixed(slope(separate[0], zs[0]), slope(separate[1], zs[1]), zs, law)
        if separate:
            return factor * _pure(separate, zs, law, k)
    except NotFlat:
        pass
    return _by_stein(f, zs, law, k)


def _factors(f: sp.Expr, zs: tuple[sp.Symbol, ...]) -> list[sp.Expr]:
    """[constant, f_1(z_1), f_2(z_2)], or [f] if f is no such product."""
    rest, second = f.as_independent(zs[1], as_Add=False)
    constant, first = rest.as_independent(zs[0], as_Add=False)
    return [f] if depends(second, (zs[0],)) else [constant, first, second]


def _given(
    f: sp.Expr, zs: tuple[sp.Symbol, ...], law: tuple[sp.Expr, ...], first: int, place: sp.Expr
) -> sp.Expr:
    """p(place) E[f(other) | z_first = place]."""
    own, c, other = law if first == 0 else law[::-1]
    z = zs[1 - first]
    moved = f.xreplace({z: z + c * place / own})
    return density(place, own) * _mean(moved, (z,), (sp.cancel(other - c**2 / own),))


def _mixed(left: Weak, right: Weak, zs: tuple[sp.Symbol, ...], law: tuple[sp.Expr, ...]) -> sp.Expr:
    """E[f_1'(z_1) f_2'(z_2)] with deltas."""
    total = _mean(left.values * right.values, zs, law)
    for b, weight in left.deltas:
        total += weight * _given(right.values, zs, law, 0, b)
    for b, weight in right.deltas:
        total += weight * _given(left.values, zs, law, 1, b)
    q1, c, q2 = law
    for (a, v), (b, w) in ((x, y) for x in left.deltas for y in right.deltas):
        far = sp.cancel(b - c * a / q1)
        total += v * w * density(a, q1) * density(far, sp.cancel(q2 - c**2 / q1))
    return total


def _pure(
    parts: list[sp.Expr], zs: tuple[sp.Symbol, ...], law: tuple[sp.Expr, ...], k: int
) -> sp.Expr:
    """E[f_1''(z_1) f_2(z_2)] / 2 for a continuous f_1 (k = 0), or the other way round; NotFlat if it jumps."""
    i = 0 if k == 0 else 1
    first = slope(parts[i], zs[i])
    if first.deltas:
        raise NotFlat
    second = slope(first.values, zs[i])
    total = _mean(second.values * parts[1 - i], zs, law)
    for b, weight in second.deltas:
        total += weight * _given(parts[1 - i], zs, law, i, b)
    return total / 2


def _by_stein(f: sp.Expr, zs: tuple[sp.Symbol, ...], law: tuple[sp.Expr, ...], k: int) -> sp.Expr:
    """dE f / dC by the density's own derivatives; with one of them left on f where it does not jump."""
    q1, c, q2 = law
    det = q1 * q2 - c**2
    scores = ((q2 * zs[0] - c * zs[1]) / det, (q1 * zs[1] - c * zs[0]) / det)
    i, j = ((0, 0), (0, 1), (1, 1))[k]
    half = sp.Rational(1, 2) if i == j else sp.S.One
    for a, b in ((i, j), (j, i)):
        if not has_jump(f, zs[a]):
            return half * _mean(derivative(f, zs[a]) * scores[b], zs, law)
    inverse = (q2 / det, -c / det, q1 / det)[k]
    return half * _mean(f * (scores[i] * scores[j] - inverse), zs, law)
