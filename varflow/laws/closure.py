"""The Gaussian closure: a nonlinear function of values that are not Gaussian, taken as if they were.

Means, variances and covariances of the arguments are the true ones; only their joint law is approximated. Used
where a formula is asked for at any price, and labelled ``closure``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sympy as sp

from varflow.calculus import rename
from varflow.laws import moments as mo
from varflow.laws.blocks import coefficient
from varflow.laws.distributions import Bernoulli, Distribution, NoFormula, Normal
from varflow.laws.moments import Formula, Moment, Quantity
from varflow.laws.templates import template, variable
from varflow.laws.variables import SAME, Composite, Instance, MaskEntry
from varflow.symbols import arg

if TYPE_CHECKING:
    from varflow.laws.joint import Laws


def gaussian_closure(laws: Laws, v: Composite, power: int) -> Formula:
    """E[x^power] of a composite with its arguments taken as jointly Gaussian.

    Raises NoFormula where the arguments' own moments are missing or the integral is of too many dimensions.
    """
    given: list[Quantity] = []
    table: dict[sp.Symbol, sp.Expr] = {}
    kinds: list[Distribution] = []
    for i, a in enumerate(v.args):
        kind, shift = _marginal(laws, a, given)
        kinds.append(kind)
        table[arg(i)] = variable(i) + shift
    for i, c in enumerate(v.coefficients):
        table[coefficient(i)] = _placed(given, c)
    matrix = tuple(tuple(_covariance(laws, a, b, given) for b in v.args) for a in v.args)
    found = template(rename(v.expr, tuple(table.items())) ** power, tuple(kinds), matrix)
    assumption = f"closure: the inputs of {v.node} are taken as jointly Gaussian"
    return Formula(found, tuple(given), "closure", "closed", frozenset({assumption}))


def _placed(given: list[Quantity], quantity: Quantity) -> sp.Expr:
    if isinstance(quantity, sp.Number):
        return quantity
    for i, g in enumerate(given):
        if g is quantity or (not isinstance(g, Moment) and g == quantity):
            return mo.place(i, g)
    given.append(quantity)
    return mo.place(len(given) - 1, quantity)


def _marginal(laws: Laws, a: Instance, given: list[Quantity]) -> tuple[Distribution, sp.Expr]:
    """What an argument is taken as, and its mean where it is taken as Gaussian."""
    v = a.variable
    if isinstance(v, MaskEntry):
        return Bernoulli(_placed(given, v.keep)), sp.S.Zero
    return Normal(), _placed(given, laws.quantity(laws.mean(a), "m", v.node, v.backward))


def _covariance(laws: Laws, a: Instance, b: Instance, given: list[Quantity]) -> sp.Expr:
    if isinstance(a.variable, MaskEntry) or isinstance(b.variable, MaskEntry):
        return sp.S.Zero
    cross = laws.second(a) if a == b else laws.pair(a, b, SAME)
    product = mo.product(laws.mean(a), laws.mean(b))
    centred = cross if product.is_zero else mo.combine(mo.part(0) - mo.part(1), [cross, product])
    if centred.is_zero:
        return sp.S.Zero
    kind = "q" if a == b else "c"
    return _placed(given, laws.quantity(centred, kind, a.variable.node, a.variable.backward))


def closed(laws: Laws, v: object, measure: str) -> Formula | None:
    """The closure of a variable's mean or second moment; None where there is none."""
    if not isinstance(v, Composite):
        return None
    try:
        return gaussian_closure(laws, v, 1 if measure == "mean" else 2)
    except NoFormula:
        return None
