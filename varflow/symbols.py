"""Every symbol of the notation, with its assumptions.

``q`` is a second moment, ``m`` a mean, ``c`` a covariance between views, ``g`` a gradient second moment,
``s = fan_in Var(W_ij)`` the scale of a weight (DESIGN, section 9).
"""

from __future__ import annotations

from functools import cache

import sympy as sp

FAN_IN = sp.Symbol("fan_in", positive=True)
FAN_OUT = sp.Symbol("fan_out", positive=True)
HEAD_WIDTH = sp.Symbol("d_k", positive=True)
"""The channels of one attention head, in its scale."""
STREAM = sp.Symbol("q_stream", positive=True)
"""The second moment that enters a block repeated a symbolic number of times."""
STEP = sp.Symbol("l", integer=True, nonnegative=True)
"""Which repetition of a block, from 0."""
X = sp.Symbol("x", real=True)
"""The argument of a one-variable activation."""


@cache
def arg(i: int) -> sp.Symbol:
    """The i-th argument of a pointwise expression."""
    return sp.Symbol(f"a_{i}", real=True)


@cache
def slot(i: int) -> sp.Symbol:
    """The i-th placeholder of a moment's template; a real number, sign unknown."""
    return sp.Symbol(f"_{i}", real=True)


@cache
def positive_slot(i: int) -> sp.Symbol:
    """The i-th placeholder of a template where a variance stands: a positive number."""
    return sp.Symbol(f"_p{i}", positive=True)


@cache
def positive(name: str) -> sp.Symbol:
    """A positive real symbol."""
    return sp.Symbol(name, positive=True)


@cache
def scale_of(weight: str) -> sp.Symbol:
    """``s_W = fan_in Var(W_ij)``, the unknown of a weight without a given variance."""
    return sp.Symbol(f"s_{weight}", positive=True)
