"""Gaussian expectations of basic variables, cached by structure; hopeless closed forms are not attempted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import sympy as sp
from sympy.core.relational import Relational

from varflow.laws.algebra import rational
from varflow.laws.distributions import Distribution, NoFormula, Normal
from varflow.laws.engine import Law, degenerate, integral, make_law
from varflow.laws.expectation import GaussianExpectation, expect, require_real
from varflow.laws.powers import powers_within
from varflow.laws.variables import Instance
from varflow.symbols import arg

SIZE_LIMIT = 1500
"""Operations of an integrand beyond which it is left to the population."""

MANY = 3


@lru_cache(maxsize=64)
def variable(i: int) -> sp.Symbol:
    """The i-th random variable of a template."""
    return sp.Symbol(f"z_{i}", real=True)


def squared(expr: sp.Expr, args: Sequence[Instance]) -> sp.Expr:
    """expr^2. Raises NotReal where a function of one Gaussian value is not real on the whole line, as a root: its
    square may be."""
    if len(args) == 1 and args[0].variable.gaussian:
        require_real(expr, arg(0))
    return expr**2


@lru_cache(maxsize=65536)
def template(expr: sp.Expr, kinds: tuple[Distribution, ...], matrix: tuple[tuple[sp.Expr, ...], ...]) -> sp.Expr:
    """E[expr(z_0, z_1, ...)] over placeholders for the covariances. Raises NoFormula.

    A function of a nonlinear function has no closed form: it is one integral, not expanded into many.
    """
    symbols = [variable(i) for i in range(len(kinds))]
    index = {s: i for i, s in enumerate(symbols)}

    def covariance(u: sp.Symbol, v: sp.Symbol) -> sp.Expr:
        return matrix[index[u]][index[v]]

    variables = dict(zip(symbols, kinds, strict=True))
    if crowded(expr) and all(isinstance(k, Normal) for k in kinds):
        return _unexpanded(rational(expr), make_law(symbols, variables, covariance))
    if nesting(expr, frozenset(symbols)) > 1 and all(isinstance(k, Normal) for k in kinds):
        return _nested(rational(expr), make_law(symbols, variables, covariance))
    return expect(expr, variables, covariance)


@lru_cache(maxsize=4096)
def crowded(expr: sp.Expr) -> bool:
    """Whether a distribution function stands in it to the third power or more, as in a maximum of four entries."""
    return any(p.exp.is_Integer and p.exp >= MANY and p.base.has(sp.erf) for p in expr.atoms(sp.Pow))


def _unexpanded(expr: sp.Expr, law: Law) -> sp.Expr:
    """The integral as it stands."""
    expr = degenerate(expr, law)
    names = sorted(expr.free_symbols & law.distributions.keys(), key=str)
    if len(names) > 2:
        raise NoFormula("a maximum beside two other variables")
    if not names:
        return expr
    entries = [law.table[u, v] for i, u in enumerate(names) for v in names[i:]]
    return GaussianExpectation(expr, names, entries)


def _nested(expr: sp.Expr, law: Law) -> sp.Expr:
    """The integral of an expression over one or two linear forms, what can be done in closed form done first."""
    if expr.count_ops() > SIZE_LIMIT:
        raise NoFormula("an integrand of too many operations")
    expr = degenerate(expr, law)
    names = frozenset(expr.free_symbols & law.distributions.keys())
    for v in sorted(names, key=str) if len(names) > 1 else ():
        inner = _conditional(expr, v, names, law)
        if inner is not None:
            return _nested(inner, law)
    return integral(expr, names, law, 0) if names else expr


def _conditional(expr: sp.Expr, v: sp.Symbol, names: frozenset[sp.Symbol], law: Law) -> sp.Expr | None:
    """E over one variable that is independent of the others, given those; None without a closed form."""
    if any(law.table[v, u] != 0 for u in names - {v}) or nesting(expr, frozenset({v})) > 1 or expr.count_ops() > 200:
        return None
    try:
        inner = powers_within(expect(expr, {v: Normal()}, law.covariance))
    except NoFormula:
        return None
    return None if inner.has(GaussianExpectation) or inner.count_ops() > SIZE_LIMIT else inner


@lru_cache(maxsize=32768)
def nesting(expr: sp.Basic, variables: frozenset[sp.Symbol]) -> int:
    """How many functions stand within each other at most; 0 for an affine expression.

    Polynomials count as functions inside others; 1/(1 + exp(z)) and its like are one function.
    """
    if expr.free_symbols.isdisjoint(variables) or expr in variables:
        return 0
    inside = max(nesting(a, variables) for a in expr.args)
    if isinstance(expr, sp.Add | sp.Piecewise | sp.logic.boolalg.BooleanFunction | Relational | sp.Tuple):
        return inside + (isinstance(expr, Relational) and inside > 0)
    if isinstance(expr, sp.Mul):
        return max(inside, int(sum(not a.free_symbols.isdisjoint(variables) for a in expr.args) > 1))
    if isinstance(expr, sp.Pow) and expr.exp.is_Integer and expr.exp.is_positive:
        return max(inside, 1)
    if isinstance(expr, sp.exp) and expr.args[0].is_polynomial(*variables) and sp.Poly(
            expr.args[0], *variables).total_degree() <= 2:
        return 1
    logistic = isinstance(expr, sp.Pow | sp.log) and inside == 1 and _exponential(expr.args[0], variables)
    return inside if logistic else inside + 1


def _exponential(expr: sp.Expr, variables: frozenset[sp.Symbol]) -> bool:
    """Whether it is a sum of exponentials and constants."""
    terms = [t for t in sp.Add.make_args(expr) if not t.free_symbols.isdisjoint(variables)]
    return all(isinstance(t.as_independent(*variables)[1], sp.exp) for t in terms)
