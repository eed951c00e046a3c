"""A program and its laws: moments of any of its values, also those that no node names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sympy as sp

from varflow.calculus import quotient, rename, times
from varflow.collector import rare_collections
from varflow.laws import moments as mo
from varflow.laws.distributions import NoFormula
from varflow.laws.moments import MomentSystem, Quantity
from varflow.laws.propagate import Propagation
from varflow.policy import Segment
from varflow.program import Bias, Contract, Pointwise, Program
from varflow.symbols import arg

DEEP = 10_000
"""Calls within each other: a covariance of values some hundred uses of a shared weight apart takes thousands."""


@contextmanager
def deep_calls() -> Iterator[None]:
    """Let calls go deeper than Python's default; its own stack frames take no room on the machine's stack."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, DEEP))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


class Part:
    """The whole network's program, or the body of a block repeated a symbolic number of times."""

    def __init__(self, program: Program, closures: bool = False) -> None:
        self.program = program
        with rare_collections(), deep_calls():
            self.propagation = Propagation(program, closures)

    @property
    def system(self) -> MomentSystem:
        """The named moments."""
        return self.propagation.laws.system

    def second(self, value: int, node: str = "") -> Quantity | None:
        """E[x^2] of a value averaged over channels; None where there is no formula."""
        backward = self.program.instructions[value].backward
        return self._average(value, self.propagation.laws.second, "g" if backward else "q", node)

    def mean(self, value: int, node: str = "") -> Quantity | None:
        """E[x] of a value averaged over channels (0 in the backward pass, which is odd in the cotangent); None where
        there is no formula."""
        if self.program.instructions[value].backward:
            return sp.S.Zero
        return self._average(value, self.propagation.laws.mean, "m", node)

    def _average(self, value: int, of: Any, kind: str, node: str) -> Quantity | None:
        step, blocks = self.program.instructions[value], self.propagation.values[value]
        laws, n = self.propagation.laws, sp.Add(*(b.size for b in blocks))
        try:
            parts = [mo.product(mo.constant(quotient(b.size, n)), of(b.law)) for b in blocks if b.law]
            return laws.quantity(mo.total(parts), kind, node or step.node, step.backward)
        except NoFormula:
            return None

    def gradient_ends(self, s: Segment) -> tuple[Quantity | None, Quantity | None] | None:
        """Gradient second moments at a segment's end and behind its weight; None where no gradient arrives."""
        at_product, at_end = (self.program.pulled_back.get(v) for v in (s.product, s.end))
        if at_product is None or at_end is None:
            return None
        primitive = self.program.instructions[s.product].primitive
        assert isinstance(primitive, Contract)
        through = next(i for i, step in enumerate(self.program)
                       if step.backward and step.args == (at_product,) and isinstance(step.primitive, Contract)
                       and step.primitive.weight == s.weight and step.primitive.transpose is not primitive.transpose)
        return self.second(at_end), self.second(through)

    def back_factor(self, s: Segment) -> sp.Expr:
        """fan_out Var(W_ij) of a segment's weight: what it multiplies gradient second moments by (on average over
        positions)."""
        primitive, w = self.program.instructions[s.product].primitive, self.program.weights[s.weight]
        assert isinstance(primitive, Contract)
        return times(w.variance, w.fan_out if primitive.transpose is w.transposed_first else w.fan_in)

    def activation(self, s: Segment) -> sp.Expr | None:
        """The function of arg(0) between a segment's product and its end, where nothing random joins; else None."""
        path, expr = s.end, arg(0)
        while path != s.product:
            step = self.program.instructions[path]
            if not isinstance(step.primitive, Pointwise):
                return None
            open_args = [i for i, a in enumerate(step.args) if not self._is_zero(a)]
            if len(open_args) != 1:
                return None
            inner = rename(step.primitive.expr, tuple(
                (arg(i), arg(0) if i in open_args else sp.S.Zero) for i in range(len(step.args))))
            expr = rename(expr, ((arg(0), inner),))
            path = step.args[open_args[0]]
        return expr

    def _is_zero(self, value: int) -> bool:
        """Whether a value is a bias that starts at zero."""
        primitive = self.program.instructions[value].primitive
        return isinstance(primitive, Bias) and primitive.variance == 0

