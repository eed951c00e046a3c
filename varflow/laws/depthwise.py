"""Depthwise convolutions: sums of few products of a weight and a value, symmetric but not Gaussian."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import sympy as sp

from varflow.calculus import rename
from varflow.laws import moments as mo
from varflow.laws.distributions import NoFormula
from varflow.laws.moments import Quantity
from varflow.laws.positions import Overall
from varflow.symbols import arg

if TYPE_CHECKING:
    from varflow.laws.joint import Laws
    from varflow.laws.variables import Depthwise


@lru_cache(maxsize=1024)
def even_part(f: sp.Expr) -> sp.Expr:
    """(f(x) + f(-x)) / 2 as a function of arg(0), where it is one expression for all sizes of x: what a symmetric
    variable sees. Raises NoFormula."""
    size = sp.Dummy("t", positive=True)
    both = rename(f, ((arg(0), size),)) + rename(f, ((arg(0), -size),))
    even = sp.expand(both / 2)
    if not even.is_polynomial(size) or sp.Poly(even, size).degree() > 2 or even.coeff(size, 1) != 0:
        raise NoFormula("a nonlinear function of a scale mixture")
    return even.xreplace({size: arg(0)})


def spread_of_scale(laws: Laws, v: Depthwise) -> Quantity:
    """terms / (E h^4/q^2 - 1): the shape of the gamma law that the squared scale of a depthwise convolution is given
    (mean 1, the variance of a mean of independent h^2). Raises NoFormula."""
    assert v.of is not None
    from varflow.laws.variables import SAME

    fourth, q = (laws.operated(Overall(), (f,), f) for f in (
        laws.expectation(arg(0) ** 4, (v.of,), (), SAME), laws.second(v.of)))
    shape = mo.part(2) / (mo.part(0) / mo.part(1) ** 2 - 1)
    return laws.quantity(mo.combine(shape, [fourth, q, mo.constant(v.terms)]), "k", v.node)
