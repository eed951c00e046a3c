"""Numbers of one activation at Gaussian arguments: moments and kernels over arrays of variances and correlations.

The activation is an expression in ``symbols.X`` or a function of a numpy array; every expectation is an integral
evaluated numerically, so nothing here depends on a closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import numpy as np
import sympy as sp

from varflow.laws.expectation import derivative, has_jump
from varflow.laws.grids import gaussian_kernel, gaussian_moment
from varflow.laws.integrand import Integrand, integrand
from varflow.laws.numeric import logistic, vectorized
from varflow.symbols import X

Function: TypeAlias = sp.Expr | Callable[[Any], Any]
STEP = 1e-5
"""Of the differences that stand for the derivative of a function without a formula, in units of its argument."""


def slope_of(f: Function) -> Function:
    """f' almost everywhere; central differences of a function without a formula (1e-9 of its scale)."""
    return derivative(logistic(f), X) if isinstance(f, sp.Expr) else Differences(f)


class Differences:
    """Central differences of a function, none across a kink: beside one, those of the piece a little further away."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function, self.whole = function, Integrand(function)
        self.known: dict[int, Any] = {}

    def __call__(self, x: Any) -> Any:
        """f' at points; at a kink that on its right."""
        return self.plain(self._inside(np.asarray(x, dtype=float)))

    def plain(self, x: Any) -> Any:
        """Differences, whatever lies between."""
        return (self.function(x + STEP) - self.function(x - STEP)) / (2 * STEP)

    def _inside(self, x: Any) -> Any:
        """The points, those within two steps of a kink moved two steps away from it."""
        octave = int(np.ceil(np.log2(np.max(np.abs(x), initial=1.0))))
        if octave not in self.known:
            self.known[octave] = self._kinks(2.0**octave)
        kinks = self.known[octave]
        if len(kinks) == 0:
            return x
        after = np.clip(np.searchsorted(kinks, x, side="right"), 1, len(kinks)) - 1
        for near in (kinks[after], kinks[np.minimum(after + 1, len(kinks) - 1)]):
            gap = x - near
            x = np.where(np.abs(gap) < 2 * STEP, near + np.where(gap < 0, -2 * STEP, 2 * STEP), x)
        return x

    def _kinks(self, reach: float) -> Any:
        """Where f' jumps: of the places where f may bend, and there where the tangents from both sides meet."""
        places = self.whole.kinks(reach)
        far_left, left, right, far_right = (places + k * STEP for k in (-8, -4, 4, 8))
        slopes = [np.asarray(self.plain(p)) for p in (far_left, left, right, far_right)]
        jump = slopes[2] - slopes[1]
        smooth = np.abs(slopes[1] - slopes[0]) + np.abs(slopes[3] - slopes[2])
        bent = np.abs(jump) > 8 * smooth + 1e-7 * np.max(np.abs(slopes), axis=0)
        with np.errstate(all="ignore"):
            heights = self.function(left) - slopes[1] * left, self.function(right) - slopes[2] * right
            meet = (heights[0] - heights[1]) / jump
            exact = np.where(np.abs(meet - places) < 4 * STEP, meet, places)
        return np.sort(exact[bent])


def product(f: Function, g: Function) -> Function:
    """f g."""
    if isinstance(f, sp.Expr) and isinstance(g, sp.Expr):
        return f * g
    one, other = as_callable(f), as_callable(g)
    return lambda x: one(x) * other(x)


@lru_cache(maxsize=512)
def _compiled(f: sp.Expr) -> Callable[..., Any]:
    return vectorized(f, (X,))


def as_callable(f: Function) -> Callable[[Any], Any]:
    """f as a function of a numpy array."""
    return _compiled(f) if isinstance(f, sp.Expr) else f


def _ready(f: Function) -> Integrand:
    return integrand(logistic(f) if isinstance(f, sp.Expr) else f)


@dataclass(frozen=True)
class ActivationNumbers:
    """Moments and kernels of one activation f over arrays; x ~ N(mean, q)."""

    function: Function

    @cached_property
    def slope(self) -> Function:
        """f' almost everywhere."""
        return slope_of(self.function)

    @cached_property
    def curvature(self) -> sp.Expr | None:
        """f'' almost everywhere; None without a formula, where differences would see kinks as spikes."""
        return derivative(self.slope, X) if isinstance(self.slope, sp.Expr) else None

    @cached_property
    def jumps(self) -> bool:
        """Whether f jumps (its derivative then has more than its values almost everywhere)."""
        return isinstance(self.function, sp.Expr) and has_jump(self.function, X)

    @cached_property
    def _one(self) -> Integrand:
        return _ready(self.function)

    @cached_property
    def _slope(self) -> Integrand:
        return _ready(self.slope)

    @cached_property
    def _square(self) -> Integrand:
        return _ready(product(self.function, self.function))

    @cached_property
    def _weighted(self) -> Integrand:
        """f^2 x^2."""
        return _ready(product(product(self.function, self.function), X**2))

    @cached_property
    def _slope_square(self) -> Integrand:
        return _ready(product(self.slope, self.slope))

    def mean(self, q: Any, mean: Any = 0.0) -> Any:
        """E f."""
        return gaussian_moment(self._one, q, mean)

    def second_moment(self, q: Any, mean: Any = 0.0) -> Any:
        """E f^2."""
        return gaussian_moment(self._square, q, mean)

    def derivative_second_moment(self, q: Any, mean: Any = 0.0) -> Any:
        """E f'^2."""
        return gaussian_moment(self._slope_square, q, mean)

    def second_derivative_second_moment(self, q: Any, mean: Any = 0.0) -> Any:
        """E f''^2; None without a formula."""
        return None if self.curvature is None else gaussian_moment(self.curvature**2, q, mean)

    def second_moment_slope(self, q: Any) -> Any:
        """d E f(x)^2 / dq = E[f(x)^2 (x^2/q - 1)] / (2 q), x ~ N(0, q); jumps included."""
        q = np.asarray(q, dtype=float)
        return (gaussian_moment(self._weighted, q) / q - gaussian_moment(self._square, q)) / (2 * q)

    def kernel(self, q: Any, c: Any) -> Any:
        """E[f(u) f(v)]."""
        return gaussian_kernel(self._one, self._one, q, q, c)

    def derivative_kernel(self, q: Any, c: Any) -> Any:
        """E[f'(u) f'(v)]."""
        return gaussian_kernel(self._slope, self._slope, q, q, c)

    def kernel_slope(self, q: Any, c: Any) -> Any:
        """d E[f(u) f(v)] / dc: q E[f'(u) f'(v)] by Price's theorem; ``kernel_rise`` where f jumps or has no
        formula."""
        if isinstance(self.function, sp.Expr) and not self.jumps:
            return np.asarray(q) * self.derivative_kernel(q, c)
        edge = None if self.jumps else np.asarray(q) * self.derivative_second_moment(q)
        return self.kernel_rise(q, c, edge)

    def kernel_rise(self, q: Any, c: Any, edge: Any = None) -> Any:
        """d E[f(u) f(v)] / dc by differences (1e-6); ``edge`` (None: infinite) at c = 1, and at c = -1 of odd f."""
        c = np.asarray(c, dtype=float)
        step = 1e-4 * np.minimum(1.0, 1.0 - np.abs(c))
        rise = self.kernel(q, c + step) - self.kernel(q, c - step)
        return np.where(step > 1e-12, rise / np.maximum(2 * step, 1e-12), np.inf if edge is None else edge)
