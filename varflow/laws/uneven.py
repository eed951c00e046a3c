"""Values whose second moment differs from token to token: behind a causal mask, where late tokens mix more values, and
behind windows that reach over borders.

A law holds one second moment for all tokens. Sums and linear layers pass on its mean over tokens exactly; 1/sigma of a
normalization and most functions do not, and are left to the population, which has every token. Functions that scale
with their argument, such as relu, are linear in the second moment. What is normalized, or averaged over tokens, is even
again.
"""

from __future__ import annotations

import sympy as sp

from varflow.laws.engine import homogeneous_degree
from varflow.program import (
    Contract,
    Instruction,
    Mix,
    Pointwise,
    PositionMean,
    Primitive,
    Program,
    Softmax,
    Standardize,
    WindowMax,
    WindowMaxBackward,
)
from varflow.symbols import arg
from varflow.window import Window


def uneven_values(program: Program) -> frozenset[int]:
    """The values of a program whose second moment depends on the token."""
    found: set[int] = set()
    if any(isinstance(s.primitive, Softmax) and s.primitive.causal for s in program):
        for i, step in enumerate(program):
            if _is_uneven(step, found):
                found.add(i)
    return frozenset(found)


def uneven_by_borders(program: Program) -> frozenset[int]:
    """The values whose second moment depends on the place because windows reach over borders, or overlap."""
    found: set[int] = set()
    for i, step in enumerate(program):
        averaged = isinstance(step.primitive, PositionMean) and step.args[0] in found
        if _cut(step.primitive) or averaged or _is_uneven(step, found):
            found.add(i)
    return frozenset(found)


def _cut(rule: Primitive) -> bool:
    """Whether a window makes of even places uneven ones."""
    match rule:
        case Contract(window=Window() as window, transpose=transpose) | Mix(window=window, transpose=transpose):
            return not (window.covers_evenly if transpose else window.uniform)
        case WindowMax(window=window):
            return not window.uniform
        case WindowMaxBackward(forward=WindowMax(window=window)):
            return not window.covers_evenly
    return False


def _is_uneven(step: Instruction, before: set[int]) -> bool:
    rule = step.primitive
    if isinstance(rule, Softmax) and rule.causal:
        return True
    if isinstance(rule, PositionMean) or (isinstance(rule, Standardize) and rule.axis == "channel" and rule.eps == 0):
        return False
    return any(a in before for a in step.args)


def mean_decides(step: Instruction, uneven: frozenset[int]) -> bool:
    """Whether means over tokens of the second moments that a function reads give that of its value."""
    symbols = [arg(i) for i, a in enumerate(step.args) if a in uneven]
    if not symbols or not isinstance(step.primitive, Pointwise):
        return True
    expr = step.primitive.expr
    if expr.is_polynomial(*symbols) and sp.Poly(expr, *symbols).total_degree() <= 1:
        return True
    degrees = [homogeneous_degree(expr, frozenset({s})) for s in symbols]
    return set(degrees) <= {0, 1} and degrees.count(1) <= 1
