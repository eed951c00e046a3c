"""Dropped values behind a centred norm: small numbers of either sign, not zeros.

Dropout leaves zeros. A norm that takes off a mean subtracts, at any width, a small number from them, whose sign is
random; of what reads the norm, a gradient in front of a kink meets the slope on either side of it, each half of the
time, where at zero itself it would meet one of them always. In a limit of large widths a slope f'(x) of such a value is
f'(x) where its masks are one, and elsewhere the root mean square of f' on both sides of zero, which has the gradient's
second moment. Behind a dropout alone, or a norm without a mean, zeros are zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import sympy as sp

from varflow.laws.slopes import has_jump
from varflow.program import Instruction, Mask, Pointwise, Standardize
from varflow.symbols import arg

Masks = frozenset[int]
_NONE: Masks = frozenset()
_BESIDE = sp.Rational(1, 10**9)


@dataclass
class Dropped:
    """By value of a program, the masks whose zeros make it zero, and those whose zeros leave it small."""

    zero: dict[int, Masks] = field(default_factory=dict)
    small: dict[int, Masks] = field(default_factory=dict)

    def follow(self, value: int, step: Instruction, centred: Callable[[int], bool]) -> None:
        """Note a forward instruction; ``centred``: whether the mean of a value is zero."""
        rule = step.primitive
        if isinstance(rule, Mask) and not rule.per_sample:
            self.zero[value] = frozenset({value})
        elif isinstance(rule, Standardize) and step.args[0] in self.zero.keys() | self.small.keys():
            zero, small = self._of(step.args[0])
            if not rule.center:
                self._note(value, zero, small)
            elif centred(step.args[0]):
                self._note(value, _NONE, zero | small)
        elif isinstance(rule, Pointwise) and not step.backward:
            ending = [self._of(a) for k, a in enumerate(step.args)
                      if a in self.zero.keys() | self.small.keys() and rule.expr.xreplace({arg(k): sp.S.Zero}) == 0]
            self._note(value, _NONE.union(*(z for z, _ in ending)), _NONE.union(*(s for _, s in ending)))

    def _of(self, value: int) -> tuple[Masks, Masks]:
        return self.zero.get(value, _NONE), self.small.get(value, _NONE)

    def _note(self, value: int, zero: Masks, small: Masks) -> None:
        if zero:
            self.zero[value] = zero
        if small:
            self.small[value] = small

    def slope(self, step: Instruction, expr: sp.Expr) -> tuple[sp.Expr, list[int]]:
        """A gradient's expression that knows what is small, and the masks that it has as further arguments."""
        more: list[int] = []
        for k, a in enumerate(step.args if step.backward else ()):
            if a not in self.small or not has_jump(expr, arg(k)):
                continue
            beside = _beside(expr, arg(k))
            if beside is not None:
                small, not_zero = (self._product(masks, len(step.args), more) for masks in self._of(a)[::-1])
                expr = expr * (1 - not_zero * (1 - small)) + not_zero * (1 - small) * beside
        return expr, more

    @staticmethod
    def _product(masks: Masks, first: int, more: list[int]) -> sp.Expr:
        more += [m for m in sorted(masks) if m not in more]
        return sp.Mul(*(arg(first + more.index(m)) for m in sorted(masks)))


def _beside(expr: sp.Expr, x: sp.Symbol) -> sp.Expr | None:
    """The root mean square of an expression just above and just below x = 0; None where they are no multiples."""
    above, below = (_at_side(expr, x, side * _BESIDE) for side in (1, -1))
    if above is None or below is None:
        return None
    if above == 0 or below == 0:
        return (above + below) / sp.sqrt(2)
    ratio = sp.cancel(below / above)
    return above * sp.sqrt((1 + ratio**2) / 2) if ratio.is_number else None


def _at_side(expr: sp.Expr, x: sp.Symbol, near: sp.Rational) -> sp.Expr | None:
    """The limit on the side of ``near``; None where another argument decides."""
    table: dict[sp.Basic, sp.Basic] = {}
    for part in expr.atoms(sp.Piecewise, sp.sign, sp.Heaviside):
        if isinstance(part, sp.Piecewise):
            found = next((body for body, condition in part.args if condition.xreplace({x: near}) == sp.true), None)
            decided = all(condition.xreplace({x: near}) in (sp.true, sp.false) for _, condition in part.args)
            if found is None or not decided:
                return None
            table[part] = found
        else:
            table[part] = part.xreplace({x: near})
    result = expr.xreplace(table).xreplace({x: sp.S.Zero})
    return None if result.has(sp.nan, sp.zoo, sp.oo) else result
