"""The gains of an activation of one argument."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp

from varflow.gain_fields import GainFields, number_of
from varflow.laws.expectation import (
    Divergent,
    GaussianExpectation,
    NoFormula,
    Normal,
    derivative,
    expect,
    has_jump,
)
from varflow.laws.grids import gaussian_moment
from varflow.laws.numeric import vectorized
from varflow.symbols import X

if TYPE_CHECKING:
    from varflow.maps import ActivationMaps

POINTS, REACH = 8001, 10.0
"""Grid, in standard deviations, on which |f'| is compared with a threshold; crossings are refined."""
CANCELS = 1e-3
"""Below this share of the squared mean a variance is an integral of its own: E f^2 - (E f)^2 cancels."""


@dataclass(frozen=True)
class ActivationGain(GainFields):
    """Moments of f(x), x ~ N(mean, q), and what follows from them; formulas are made when asked for.

    Derivatives are those almost everywhere: ``derivative_second_moment`` = E f'^2 leaves jumps out, and
    ``second_derivative_second_moment`` = E f''^2 kinks too (as a distribution f'' has a square that is infinite
    there). ``dead_share`` is the probability of an input where f and f' are zero (a gradient is lost there and no
    signal leaves). ``closed_form`` says for each field whether it has no integral.
    """

    activation: sp.Expr
    input_variance: sp.Expr
    input_mean: sp.Expr

    @property
    def title(self) -> str:
        return f"f(x) = {self.activation}"

    def average(self, expr: sp.Expr) -> sp.Expr:
        """E of an expression in ``symbols.X``."""
        try:
            shifted = expr.xreplace({X: X + self.input_mean}) if self.input_mean != 0 else expr
            return expect(shifted, {X: Normal()}, lambda u, v: self.input_variance)
        except RecursionError:
            raise NoFormula("the expression is nested too deeply", where=str(self.activation)[:200]) from None

    def slope_average(self, slope: sp.Expr) -> sp.Expr:
        """E of the square of a derivative: infinite where it is not integrable."""
        try:
            return self.average(slope**2)
        except Divergent:
            return sp.oo
        except RecursionError:
            raise NoFormula("the expression is nested too deeply", where=str(self.activation)[:200]) from None

    @cached_property
    def mean(self) -> sp.Expr:
        return self.average(self.activation)

    @cached_property
    def second_moment(self) -> sp.Expr:
        return self.average(self.activation**2)

    @cached_property
    def derivative_second_moment(self) -> sp.Expr:
        return self.slope_average(derivative(self.activation, X))

    @cached_property
    def second_derivative_second_moment(self) -> sp.Expr | None:
        try:
            return self.slope_average(derivative(derivative(self.activation, X), X))
        except (NoFormula, RecursionError):
            return None

    @cached_property
    def has_jump(self) -> bool:
        return has_jump(self.activation, X)

    @cached_property
    def dead_share(self) -> sp.Expr | None:
        from varflow.laws.cells import NotFlat, pieces

        try:
            borders, bodies = pieces(self.activation, X)
        except NotFlat:
            return None
        edges = [sp.S.Zero, *map(self._below, borders), sp.S.One]
        return sp.Add(*(b - a for a, b, f in zip(edges, edges[1:], bodies, strict=False) if f == 0))

    def _number(self, name: str, table: Mapping[str, float]) -> float | None:
        number = super()._number(name, table)
        if name != "variance" or number is None or not self.variance.has(GaussianExpectation):
            return number
        mean = number_of(self.mean, table)
        if mean is None or not abs(number) < CANCELS * mean**2:
            return number
        known = {s: sp.Float(table[str(s)], 17) for s in self.variance.free_symbols}
        centred = self.activation.xreplace(known) - sp.Float(mean, 17)
        at = [float(v.xreplace(known)) for v in (self.input_variance, self.input_mean)]
        return float(gaussian_moment(centred**2, *at) - gaussian_moment(centred, *at) ** 2)

    def _below(self, border: sp.Expr) -> sp.Expr:
        """P(x < border)."""
        return (1 + sp.erf((border - self.input_mean) / sp.sqrt(2 * self.input_variance))) / 2

    def saturated_share(self, threshold: float = 0.01) -> float:
        """The probability of an input where |f'| < ``threshold``; q and mean must be numbers."""
        slope = vectorized(derivative(self.activation, X), (X,))
        m, sigma = float(self.input_mean), float(sp.sqrt(self.input_variance))

        def excess(z: Any) -> Any:
            with np.errstate(all="ignore"):
                values = np.abs(np.asarray(slope(m + sigma * z), dtype=float)) - threshold
            return np.broadcast_to(values, np.shape(z))

        return share_below_zero(excess)

    def maps(self, weight_scale: sp.Expr | float | None = None, bias_variance: sp.Expr | float = 0
             ) -> ActivationMaps:
        """The variance map and the correlation map, :class:`varflow.maps.ActivationMaps` (of zero-mean x).

        Without ``weight_scale``, s = 1/E f(z)^2 at z ~ N(0, 1): the init gain squared.
        """
        from varflow.maps import activation_maps

        return activation_maps(self.activation, weight_scale, bias_variance)


def share_below_zero(f: Any) -> float:
    """P(f(z) < 0), z ~ N(0, 1), f a function of arrays with few changes of sign."""
    grid = np.linspace(-REACH, REACH, POINTS)
    negative = np.asarray(f(grid)) < 0
    changes = np.flatnonzero(negative[1:] != negative[:-1])
    low, high = grid[changes].copy(), grid[changes + 1].copy()
    before = negative[changes]
    for _ in range(50):
        middle = (low + high) / 2
        same = (np.asarray(f(middle)) < 0) == before
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    edges = np.array([0.0, *(math.erfc(-x / math.sqrt(2)) / 2 for x in (low + high) / 2), 1.0])
    inside = np.concatenate([negative[:1], ~before])
    return float(np.sum(np.diff(edges)[inside]))
