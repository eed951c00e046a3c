"""Whether moments exist that have no formula: a sample of exp(x^2) or 1/x always has a mean square."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy as sp

from varflow.laws.algebra import size
from varflow.laws.domain import Divergent, NotReal, check, require_real
from varflow.program import Bias, Contract, Input, Pointwise, Program
from varflow.symbols import arg

Z = sp.Dummy("z", real=True)
LONGEST = 200
Law = Callable[[int], tuple[float, float]]
"""(mean, second moment) of a value."""


def require_moment(program: Program, value: int, measure: str, law: Law, values: Mapping[str, Any]) -> None:
    """Raise Divergent or NotReal where a value is a function of one Gaussian value (times an independent gradient)
    whose ``measure``, mean or second_moment, is seen not to exist. Anything else is left alone."""
    found = _function_of_one(program, value)
    if found is None or measure not in ("mean", "second_moment"):
        return
    f, source = found
    f = f.xreplace({s: sp.sympify(values[s.name]) for s in f.free_symbols - {Z} if s.name in values})
    mean, second = (float(x) for x in law(source))
    if f.free_symbols != {Z} or not second > mean**2:
        return
    shifted = f if mean == 0 else f.xreplace({Z: Z + sp.Float(mean)})
    node, gradient = program.instructions[value].node, program.instructions[value].backward
    what = f"the mean of {node}" if measure == "mean" else f"E[(dL/dx)^2] in front of {node}" if gradient else (
        f"the second moment of {node}")
    try:
        require_real(shifted, Z)
        check(shifted**2 if measure == "second_moment" else shifted, Z, sp.Float(second - mean**2))
    except (Divergent, NotReal) as error:
        raise type(error)(f"{what}: {error.what}", error.where, error.why,
                          error.instead) from None


def _function_of_one(program: Program, value: int) -> tuple[sp.Expr, int] | None:
    """f(Z) and the Gaussian value Z stands for; of a gradient, what multiplies the one gradient it is made of."""
    step = program.instructions[value]
    if not isinstance(step.primitive, Pointwise):
        return None
    expr, signals = step.primitive.expr, []
    for k, a in enumerate(step.args):
        if program.instructions[a].backward:
            expr = expr.coeff(arg(k)) if expr.is_polynomial(arg(k)) else expr.diff(arg(k))
            if expr.has(arg(k)):
                return None
        else:
            signals.append((k, a))
    if len(signals) != 1 or len(step.args) - len(signals) != int(step.backward):
        return None
    (k, source), = signals
    expr = expr.xreplace({arg(k): Z})
    return _inside(program, expr, source)


def _inside(program: Program, expr: sp.Expr, source: int) -> tuple[sp.Expr, int] | None:
    """The function over the Gaussian value that its argument is a function of."""
    while not _gaussian(program, source):
        step = program.instructions[source]
        if not isinstance(step.primitive, Pointwise) or len(step.args) != 1 or size(expr, LONGEST) == LONGEST:
            return None
        expr, source = expr.xreplace({Z: step.primitive.expr.xreplace({arg(0): Z})}), step.args[0]
    return expr, source


def _gaussian(program: Program, value: int) -> bool:
    """Whether a value is Gaussian, or taken for it: products with weights, biases, inputs, their sums."""
    step = program.instructions[value]
    if isinstance(step.primitive, Contract | Bias | Input):
        return True
    names = tuple(arg(k) for k in range(len(step.args)))
    linear = isinstance(step.primitive, Pointwise) and step.primitive.expr.is_polynomial(*names) and sp.Poly(
        step.primitive.expr, *names).total_degree() <= 1
    return linear and all(_gaussian(program, a) for a in step.args)
