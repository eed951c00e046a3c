"""The post-activation stream x_{l+1} = relu(x_l + g_l) with i.i.d. Gaussian g: a reflected random walk.

After L steps from x_0 = 0, x_L has the law of the largest of 0 and the partial sums of L steps, so that by
Spitzer's identity (Spitzer 1956, theorem 3.1) E x_L = sum_k E[S_k^+]/k and
E x_L^2 = sum_k E[(S_k^+)^2]/k + sum_{j+k<=L} E[S_j^+] E[S_k^+]/(j k), with E[S_k^+] = sqrt(v k/(2 pi)).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import sympy as sp

from varflow.laws import moments as mo
from varflow.laws.moments import Formula, Moment, Quantity
from varflow.laws.variables import SAME, Composite, Instance, Variable
from varflow.symbols import arg

if TYPE_CHECKING:
    from varflow.laws.joint import Laws

EXACT_STEPS = 40


def moments_of_walk(laws: Laws, v: Variable) -> tuple[Formula, Formula] | None:
    """(E x, E x^2) of a variable that is such a stream after at least three steps; None for any other."""
    steps, variance = _steps(laws, v)
    if steps < 3 or variance is None:
        return None
    first, second = spitzer(steps)
    scale = laws.formula(variance)
    shapes = (first * sp.sqrt(mo.part(0)), second * mo.part(0))
    e, q = (replace(mo.combine(shape, [scale]), exactness="wide") for shape in shapes)
    return e, q


def _steps(laws: Laws, v: Variable) -> tuple[int, Quantity | None]:
    """(number of steps, variance of a step); 0 for a variable that is no such stream."""
    count, variance, current = 0, None, Instance(v)
    while True:
        inner = _under_relu(current.variable)
        if inner is None:
            return 0, None
        count += 1
        step, before = _last_step(inner)
        if step is None:
            return 0, None
        size = _plain(laws.quantity(laws.second(step)))
        if variance is not None and size is not variance and size != variance:
            return 0, None
        variance = size
        if before is None:
            return count, variance
        if laws.dependent(step, before, SAME):
            return 0, None
        current = before


def _plain(quantity: Quantity) -> Quantity:
    """A moment given by the network's symbols alone as that expression."""
    if isinstance(quantity, Moment) and not any(isinstance(a, Moment) for a in quantity.args):
        right = quantity.right_side()
        return quantity if right is None else right
    return quantity


def _under_relu(v: Variable) -> Instance | None:
    """y where v = relu(y)."""
    if not isinstance(v, Composite) or len(v.args) != 1 or v.coefficients or not _is_relu(v.expr):
        return None
    return v.args[0]


@lru_cache(maxsize=1024)
def _is_relu(expr: sp.Expr) -> bool:
    """Whether an expression of arg(0) is its positive part, however it is written."""
    x = arg(0)
    if expr.free_symbols != {x} or not expr.has(sp.Piecewise, sp.Max, sp.Abs):
        return False
    samples = [sp.Rational(p, 7) for p in (-99, -20, -3, -1, 0, 1, 2, 11, 98)]
    linear = all(sp.diff(expr, x, 2).subs(x, s) == 0 for s in samples if s != 0)
    return linear and all(expr.subs(x, s) == max(s, 0) for s in samples)


def _last_step(inner: Instance) -> tuple[Instance | None, Instance | None]:
    """(g, x) of x + g, g Gaussian; (g, None) for g alone."""
    v = inner.variable
    if v.gaussian:
        return inner, None
    if not isinstance(v, Composite) or v.expr != arg(0) + arg(1):
        return None, None
    for step, before in (v.args, v.args[::-1]):
        if step.variable.gaussian and not step.moves and not before.moves:
            return step, before
    return None, None


@lru_cache(maxsize=256)
def spitzer(steps: int) -> tuple[sp.Expr, sp.Expr]:
    """E x_L / sqrt(v) and E x_L^2 / v after L steps of variance v: exact, or to 30 digits for many steps."""
    exact = steps <= EXACT_STEPS
    roots = [sp.sqrt(sp.Rational(1, k)) if exact else sp.sqrt(sp.Rational(1, k)).evalf(30)
             for k in range(1, steps + 1)]
    pairs = sp.Add(*(roots[j - 1] * roots[k - 1] for j in range(1, steps) for k in range(1, steps - j + 1)))
    return sp.Add(*roots) / sp.sqrt(2 * sp.pi), sp.Rational(steps, 2) + pairs / (2 * sp.pi)
