"""The door to Gaussian expectations: ``expect`` in closed form where one exists, else as an integral."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import sympy as sp

from varflow.laws.algebra import ordered, rational
from varflow.laws.distributions import (
    Bernoulli,
    Distribution,
    NoFormula,
    Normal,
    OneHot,
    Opaque,
    Sphere,
)
from varflow.laws.domain import Divergent, NotReal, require_real
from varflow.laws.engine import Law, degenerate, expectation, make_law
from varflow.laws.integral import GaussianExpectation
from varflow.laws.quadrature import compile_formula
from varflow.laws.slopes import derivative, has_jump

__all__ = [
    "Bernoulli",
    "Distribution",
    "Divergent",
    "GaussianExpectation",
    "NoFormula",
    "Normal",
    "NotReal",
    "OneHot",
    "Opaque",
    "Sphere",
    "compile_formula",
    "derivative",
    "expect",
    "has_jump",
    "require_real",
]


def expect(
    expr: sp.Expr,
    variables: Mapping[sp.Symbol, Distribution],
    covariance: Callable[[sp.Symbol, sp.Symbol], sp.Expr],
) -> sp.Expr:
    """E[expr], in closed form where one exists, else with GaussianExpectation in it.

    ``variables`` gives the law of each random symbol; any other symbol is a parameter.
    ``covariance(u, v)`` of two Normal symbols must be structurally zero where they are independent.
    Raises NoFormula for a jointly dependent integral of more than two dimensions, for a moment that an
    Opaque variable does not give, and for expressions beyond the limit on terms; among them NotReal for a
    function of one variable that is not real on the whole line and Divergent where E does not exist.
    """
    expr = rational(expr)
    used = {v: variables[v] for v in ordered(expr.free_symbols & variables.keys())}
    for kind in list(used.values()):
        if isinstance(kind, OneHot):
            used.update(dict.fromkeys(kind.symbols, kind))
    gaussian = [v for v, kind in used.items() if isinstance(kind, (Normal, Sphere))]
    law = make_law(gaussian, used, covariance)
    return _once(expr, tuple(used.items()), tuple(law.table.items()))


@lru_cache(maxsize=4096)
def _once(
    expr: sp.Expr,
    used: tuple[tuple[sp.Symbol, Distribution], ...],
    table: tuple[tuple[tuple[sp.Symbol, sp.Symbol], sp.Expr], ...],
) -> sp.Expr:
    """Equal expectations are found once."""
    law = Law(dict(used), dict(table))
    return expectation(degenerate(expr, law), law)
