"""Gradients that depend on the values they are normalized with.

Backward a normalization takes the mean of y d off a gradient d, along the normalized values y. Of N independent entries
that is one degree of freedom of N; where d = f'(y) G with one G for all positions (a mean over positions behind a
nonlinearity), y d does not average out, and what is lost is E[(mean of y d)^2], the mean over the entries that share
their statistics. A maximum gives its gradient to the entry that wins, a depthwise convolution to the entries it reads:
then the sum of y d over the entries is one over the outputs of the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import sympy as sp

from varflow.calculus import quotient, rename, times
from varflow.laws import moments as mo
from varflow.laws.blocks import carried
from varflow.laws.distributions import NoFormula
from varflow.laws.given import coefficient_formula
from varflow.laws.making import Reading, linear_form, there, wide
from varflow.laws.moments import Formula, Quantity
from varflow.laws.positions import Array, Overall
from varflow.laws.variables import (
    POSITION,
    SAME,
    Composite,
    Depthwise,
    GaussianSum,
    Instance,
    SampleMean,
    View,
    Win,
)
from varflow.program import Standardize
from varflow.symbols import arg
from varflow.window import Window

INDEPENDENT = "closure: a gradient is independent of the normalized values that it depends on"


@dataclass(frozen=True)
class Piece:
    """A value whose mean over its ``count`` positions, times ``factor``, is a part of the mean of y d."""

    factor: Formula
    value: Instance
    count: sp.Expr


@dataclass(frozen=True)
class AtLeastZero:
    """Nothing is lost beyond all."""

    def apply(self, share: Array) -> Array:
        """Negative shares are rounding, or terms beyond the Gaussian."""
        return np.maximum(share, 0.0)


class Projection(Reading):
    """What normalizations take off gradients that depend on the normalized values."""

    def _members(self, rule: Standardize) -> sp.Expr | None:
        """Samples, or channels of a sample, whose positions share their statistics; None for a large batch."""
        return quotient(self.step.shape.channels, rule.groups) if rule.axis == "group" else rule.batch

    def _entries_mean(self, rule: Standardize, of: Instance, count: sp.Expr) -> Instance:
        """The mean of a value over its positions and over what shares the statistics with it."""
        if rule.axis == "group":
            return self._make(SampleMean, False, of=of, count=count, channels=self._members(rule))
        return self._make(SampleMean, False, of=of, count=count, batch=rule.batch)

    def _kept(self, rule: Standardize, y: Instance | None, d: Instance | None, less: Instance | None) -> Formula:
        """What is left of the square of a gradient ``less`` its mean, over what it is for one independent of y."""
        if y is None or d is None or less is None or not self.laws.dependent(d, y, SAME):
            return mo.ONE
        members = self._members(rule)
        if members is None:
            return mo.ONE
        try:
            lost = self._lost(rule, y, d)
            whole = self.laws.operated(Overall(), (f := self.laws.second(less),), f)
        except NoFormula:
            return replace(mo.ONE, exactness="closure", assumptions=frozenset({INDEPENDENT}))
        if lost.is_zero:
            return mo.ONE
        shape = 1 - (mo.part(2) - 1) / (mo.part(2) - 2) * mo.part(0) / mo.part(1)
        kept = wide(mo.combine(shape, [lost, whole, mo.constant(times(members, self.step.shape.places))]))
        return self.laws.operated(AtLeastZero(), (kept,), kept)

    def _lost(self, rule: Standardize, y: Instance, d: Instance) -> Formula:
        """E[(mean of y d)^2] less what it is for independent y and d."""
        laws, places = self.laws, self.step.shape.places
        found = list(self._pieces(rule, d, y, places))
        if any(laws.second(p.value).template.has(sp.nan) for p in found):
            raise NoFormula("a square without a number", self.step.node)
        pieces = [(p.factor, self._entries_mean(rule, p.value, p.count)) for p in found]
        together = [mo.product(a, b, laws.pair(x, z, SAME)) for a, x in pieces for b, z in pieces]

        def apart(w: View) -> Formula:
            of, far = (laws.second(d), laws.second(y)) if w.same else (
                laws.pair(d, there(d), w), laws.pair(y, there(y), w))
            return mo.product(of, far)

        mean = self._entries_mean(rule, d, places).variable
        assert isinstance(mean, SampleMean)
        independent = laws.over_batch(mean, d, apart, SAME)
        independent = laws.operated(Overall(), (independent,), independent)
        return mo.combine(mo.part(0) - mo.part(1), [mo.total(together), independent])

    def _is_constant(self, rule: Standardize, d: Instance) -> bool:
        """Whether a gradient is one number for all entries of a statistic, whose normalized values add up to zero."""
        v, members = d.variable, self._members(rule)
        if not rule.center or rule.axis != "group":
            return False
        return not self.laws.differs(d, False) if members == 1 else isinstance(v, SampleMean) and v.channels == members

    def _pieces(self, rule: Standardize, d: Instance, y: Instance, places: sp.Expr) -> Iterator[Piece]:
        v = d.variable
        if self._is_constant(rule, d):
            return
        terms = self._terms(d)
        if terms is not None:
            for c, x in terms:
                for p in self._pieces(rule, x, y, places):
                    yield replace(p, factor=mo.product(c, p.factor))
            return
        if isinstance(v, Win) and v.entry == y and not d.moves and v.of is not None and v.top is not None:
            expr, args, count = arg(0) * arg(1) * rename(v.slope, ((arg(0), arg(1)),)), (v.of, v.top), _count(v.window)
        elif isinstance(v, Depthwise) and (z := self._read_by(v, y)) is not None and v.of is not None:
            expr, args, count = arg(0) * arg(1), (v.of, z), _count(v.window, v.transpose)
        else:
            scale, read = self._as_read(d, y)
            expr, args, count = scale * arg(0) * arg(1), (d, read), places
        numbers = v.coefficients if isinstance(v, Win) else ()
        made = self._make(Composite, False, expr=expr, args=args, coefficients=numbers)
        yield Piece(mo.constant(quotient(count, places)), made, count)

    def _as_read(self, d: Instance, y: Instance) -> tuple[sp.Expr, Instance]:
        """y as a multiple of what a gradient depends on: gamma y, rather than two variables of correlation 1."""
        for r in self.laws.roots(d):
            terms = r.variable.terms if isinstance(r.variable, GaussianSum) and not r.moves else ()
            if len(terms) == 1 and terms[0][1] == y and isinstance(terms[0][0], sp.Expr):
                return 1 / terms[0][0], r
        return sp.S.One, y

    def _terms(self, d: Instance) -> list[tuple[Formula, Instance]] | None:
        """A gradient as a sum of others; None where it is none."""
        v = d.variable
        if isinstance(v, GaussianSum):
            return [(self.laws.formula(c), carried(x, d)) for c, x in v.terms]
        linear = linear_form(v.expr, len(v.args)) if isinstance(v, Composite) else None
        if linear is None or linear[0] != 0 or not isinstance(v, Composite):
            return None
        return [(coefficient_formula(c, v.coefficients), carried(a, d)) for c, a in
                zip(linear[1:], v.args, strict=True) if c != 0]

    def _read_by(self, v: Depthwise, y: Instance) -> Instance | None:
        """The depthwise convolution of y with the weights that a gradient returns by."""
        z = self._forward_depthwise.get(v.weight)
        return z if z is not None and isinstance(z.variable, Depthwise) and z.variable.of == y else None

    # -- behind depthwise convolutions -----------------------------------------------------------------------------

    def _remember(self, rule: Standardize, x: Instance | None, y: Instance | None, d: Instance | None,
                  k: Quantity | None, result: Instance | None) -> None:
        """Of a gradient k d that returns to a depthwise convolution: E of y k d at two places, less what the projection
        takes of it."""
        if x is None or y is None or d is None or k is None or result is None:
            return
        if not isinstance(x.variable, Depthwise) or not self.laws.dependent(d, y, SAME):
            return
        members = self._members(rule)
        share = sp.S.One if members is None else 1 - quotient(sp.S.One, members)
        scale, read = self._as_read(d, y)
        both = self._make(Composite, False, expr=scale * arg(0) * arg(1), args=(d, read))
        try:
            apart = self.laws.pair(both, there(both), POSITION)
        except NoFormula:
            self.returning[result.variable] = None
            return
        if not apart.is_zero and share != 0:
            self.returning[result.variable] = mo.combine(
                mo.part(0) * mo.part(1) ** 2 * mo.part(2), [apart, self.laws.formula(k), mo.constant(share)])


def _count(w: Window, outputs: bool = True) -> sp.Expr:
    return sp.Mul(*(w.outputs if outputs else w.inputs))
