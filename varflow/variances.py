"""Second moments of an activation as functions of the variance of its argument: fast over many variances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy as sp

from varflow.gain_numbers import ActivationNumbers, product
from varflow.laws.expectation import GaussianExpectation, compile_formula
from varflow.laws.grids import gaussian_moment
from varflow.maps import ActivationMaps, Q
from varflow.symbols import X

ELEMENTARY = {sp.exp, sp.log, sp.sin, sp.cos, sp.sinh, sp.cosh, sp.asin, sp.acos, sp.atan}


@dataclass(frozen=True)
class Variances:
    """E f^2, E f'^2 and their like at x ~ N(0, q), over arrays of q: by formula where there is one."""

    activation: sp.Expr

    @cached_property
    def numbers(self) -> ActivationNumbers:
        """The same by integrals, and kernels."""
        return ActivationNumbers(self.activation)

    @cached_property
    def formulas(self) -> tuple[sp.Expr, sp.Expr]:
        """(E f^2, E f'^2) as functions of ``varflow.maps.Q``; with integrals where no closed form is known."""
        maps = ActivationMaps(self.activation, sp.S.One)
        second, slope = maps.second_moment_formula, maps.derivative_second_moment_formula
        assert second is not None and slope is not None
        return second, slope

    def _compiled(self, formula: sp.Expr) -> Callable[[Any], Any] | None:
        """The formula as a function, where it is elementary: others cost more than their integral."""
        functions = {f.func for f in formula.atoms(sp.Function)}
        return (
            compile_formula(formula, (Q,))
            if functions <= ELEMENTARY and not formula.has(GaussianExpectation)
            else None
        )

    @cached_property
    def second(self) -> Callable[[Any], Any]:
        """E f^2."""
        return self._compiled(self.formulas[0]) or self.numbers.second_moment

    @cached_property
    def slopes(self) -> Callable[[Any], Any]:
        """E f'^2, jumps left out."""
        return self._compiled(self.formulas[1]) or self.numbers.derivative_second_moment

    @cached_property
    def second_slope(self) -> Callable[[Any], Any]:
        """d E f^2 / dq."""
        second = self.formulas[0]
        closed = self._compiled(sp.diff(second, Q)) if self._compiled(second) else None
        return closed or self.numbers.second_moment_slope

    @property
    def elementary(self) -> bool:
        """Whether E f^2 comes from an elementary formula."""
        return self._compiled(self.formulas[0]) is not None

    def stein_slope(self, q: float) -> float:
        """d E f^2 / dq as E[x f f']/q: another integral for it, of an activation that does not jump."""
        body = product(product(self.activation, self.numbers.slope), X)
        return float(gaussian_moment(body, q)) / q
