"""Blocks repeated a symbolic number of times: the map of one block on its stream, iterated in closed form.

A block closes over its second moment where it reads its input through weights only, or where the stream is and
stays Gaussian. Then q_{l+1} = a q_l + b, solved in l; the gradient's factor A(q_l) is multiplied up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import sympy as sp

from varflow.laws.distributions import NoFormula
from varflow.laws.moments import (
    EXACTNESS,
    TIERS,
    Expansion,
    Formula,
    Moment,
    Quantity,
    combine,
    part,
    weakest,
)
from varflow.laws.part import Part
from varflow.program import Contract, Repeat
from varflow.symbols import STEP, STREAM

TELESCOPE = 8


@dataclass(eq=False)
class BlockMap:
    """One repetition of a block as a map on the second moment of its stream."""

    repeat: Repeat
    part: Part

    def __post_init__(self) -> None:
        self.expansion = Expansion()

    @cached_property
    def weights_only(self) -> bool:
        """Whether the block reads its input through weights alone."""
        program = self.part.program
        start = program.inputs[0]
        readers = [s for s in program if start in s.args and not s.backward]
        return all(isinstance(s.primitive, Contract) for s in readers)

    @cached_property
    def stays_gaussian(self) -> bool:
        """Whether a Gaussian stream is Gaussian behind the block."""
        blocks = self.part.propagation.values[self.part.program.outputs[0]]
        return all(b.law is not None and b.law.variable.gaussian for b in blocks)

    def formula(self, quantity: Quantity | None) -> sp.Expr:
        """An expanded moment of the block over STREAM; raises NoFormula where there is none."""
        expr = None if quantity is None else self.expansion.of(quantity)
        if expr is None or expr.has(sp.nan):
            raise NoFormula("a moment within a repeated block has no formula", self.repeat.name)
        return expr

    @cached_property
    def affine(self) -> tuple[sp.Expr, sp.Expr]:
        """(a, b) of q -> a q + b; raises NoFormula for another map."""
        after = self.formula(self.part.second(self.part.program.outputs[0]))
        if not after.is_polynomial(STREAM) or sp.degree(after, STREAM) > 1:
            raise NoFormula("the block's map on its second moment is not affine", self.repeat.name)
        poly = sp.Poly(after, STREAM)
        return poly.coeff_monomial(STREAM), poly.coeff_monomial(1)

    def stream(self, count: sp.Expr) -> sp.Expr:
        """The second moment after ``count`` repetitions, over STREAM."""
        a, b = self.affine
        if a == 1:
            return STREAM + b * count
        growth = a**count
        return growth * STREAM + (b * (growth - 1) / (a - 1) if b != 0 else 0)

    @cached_property
    def gradient_factor(self) -> sp.Expr:
        """The gradient's second moment at the block's input over that at its output."""
        program = self.part.program
        value = program.pulled_back.get(program.inputs[0])
        return sp.S.Zero if value is None else self.formula(self.part.second(value))

    def gradient(self, first: sp.Expr, last: sp.Expr) -> sp.Expr:
        """The product of the gradient's factors over repetitions first to last - 1."""
        factor = self.gradient_factor
        if not factor.has(STREAM):
            return factor ** (last - first)
        return rational_product(factor.subs(STREAM, self.stream(STEP)), first, last)

    def labels(self, quantity: Quantity | None) -> tuple[str, str, frozenset[str]]:
        """Exactness, tier and assumptions of a moment of the block."""
        if not isinstance(quantity, Moment):
            return "exact", "closed", frozenset()
        return quantity.exactness, quantity.tier, quantity.assumptions

    def lifted(self, expr: sp.Expr, entering: Formula, of: Quantity | None) -> Formula:
        """An expression over STREAM as a formula of the moment that enters the first repetition."""
        exactness, tier, assumptions = self.labels(of)
        out = self.labels(self.part.second(self.part.program.outputs[0]))
        f = combine(expr.subs(STREAM, part(0)), [entering])
        return Formula(f.template, f.args, weakest(EXACTNESS, (f.exactness, exactness, out[0])),
                       weakest(TIERS, (f.tier, tier, out[1])), f.assumptions | assumptions | out[2])


def rational_product(expr: sp.Expr, first: sp.Expr, last: sp.Expr) -> sp.Expr:
    """prod of expr(l) for l = first ... last - 1, expr a ratio of products of linear functions of l.

    Raises NoFormula for another expression.
    """
    result: sp.Expr = sp.S.One
    top, bottom = sp.fraction(sp.cancel(sp.together(expr)))
    shifts: list[tuple[sp.Expr, int]] = []
    for side, sign in ((top, 1), (bottom, -1)):
        constant, factors = sp.factor_list(side)
        result *= constant ** (sign * (last - first))
        for f, power in factors:
            if not f.is_polynomial(STEP):
                raise NoFormula("the gradient's factors have no closed product")
            poly = sp.Poly(f, STEP)
            if poly.degree() > 1:
                raise NoFormula("the gradient's factors have no closed product")
            if poly.degree() < 1:
                result *= f ** (sign * power * (last - first))
                continue
            slope, offset = poly.all_coeffs()
            result *= slope ** (sign * power * (last - first))
            shifts.append((sp.cancel(offset / slope), sign * power))
    return result * _pochhammers(shifts, first, last)


def _pochhammers(shifts: list[tuple[sp.Expr, int]], first: sp.Expr, last: sp.Expr) -> sp.Expr:
    """prod over l and shifts of (l + x)^power, telescoped where shifts differ by whole numbers."""
    result: sp.Expr = sp.S.One
    left = list(shifts)
    while left:
        x, p = left.pop(0)
        gaps = [sp.cancel(x - y) if r == -p else sp.nan for y, r in left]
        match = next((i for i, g in enumerate(gaps) if g.is_Integer and abs(g) <= TELESCOPE), None)
        if match is None:
            result *= (sp.gamma(last + x) / sp.gamma(first + x)) ** p
            continue
        gap = int(gaps[match])
        y, _ = left.pop(match)
        low, sign = (y, p) if gap > 0 else (x, -p)
        ratio = sp.Mul(*((last + low + j) / (first + low + j) for j in range(abs(gap))))
        result *= ratio**sign
    return result
