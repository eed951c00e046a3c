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

from varflow.errors import InputError
from varflow.laws.expectation import GaussianExpectation, compile_formula, derivative, has_jump
from varflow.symbols import X, positive

Function: TypeAlias = sp.Expr | Callable[[Any], Any]
STEP = 1e-5
"""Of the differences that stand for the derivative of a function without a formula, in units of its argument."""
_Q, _C, _M = positive("q"), sp.Symbol("c", real=True), sp.Symbol("m", real=True)
_U, _V = sp.Symbol("u", real=True), sp.Symbol("v", real=True)


def slope_of(f: Function) -> Function:
    """f' almost everywhere; central differences of a function without a formula (1e-9 of its scale)."""
    if isinstance(f, sp.Expr):
        return derivative(f, X)
    function = f
    return lambda x: (function(x + STEP) - function(x - STEP)) / (2 * STEP)


def product(f: Function, g: Function) -> Function:
    """f g."""
    if isinstance(f, sp.Expr) and isinstance(g, sp.Expr):
        return f * g
    one, other = as_callable(f), as_callable(g)
    return lambda x: one(x) * other(x)


@lru_cache(maxsize=512)
def _compiled(f: sp.Expr) -> Callable[..., Any]:
    return compile_formula(f, (X,))


def as_callable(f: Function) -> Callable[[Any], Any]:
    """f as a function of a numpy array."""
    return _compiled(f) if isinstance(f, sp.Expr) else f


def moment(f: Function, q: Any, mean: Any = 0.0) -> Any:
    """E f(x), x ~ N(mean, q), over arrays of q and mean (broadcast)."""
    if not isinstance(f, sp.Expr):
        raise InputError("a function without a formula has no integral here", instead="an expression of x")
    return _moment(f)(q, mean)


def kernel(f: Function, g: Function, q: Any, c: Any) -> Any:
    """E[f(u) g(v)], u and v ~ N(0, q) of correlation c, over arrays of q and c (broadcast)."""
    if not isinstance(f, sp.Expr) or not isinstance(g, sp.Expr):
        raise InputError("a function without a formula has no integral here", instead="an expression of x")
    return _kernel(f, g)(q, c)


@lru_cache(maxsize=512)
def _moment(f: sp.Expr) -> Callable[..., Any]:
    return compile_formula(GaussianExpectation(f.xreplace({X: _U + _M}), (_U,), (_Q,)), (_Q, _M))


@lru_cache(maxsize=512)
def _kernel(f: sp.Expr, g: sp.Expr) -> Callable[..., Any]:
    body = f.xreplace({X: _U}) * g.xreplace({X: _V})
    return compile_formula(GaussianExpectation(body, (_U, _V), (_Q, _Q * _C, _Q)), (_Q, _C))


@dataclass(frozen=True)
class ActivationNumbers:
    """Moments and kernels of one activation f over arrays; x ~ N(mean, q)."""

    function: Function

    @cached_property
    def slope(self) -> Function:
        """f' almost everywhere."""
        return slope_of(self.function)

    @cached_property
    def curvature(self) -> Function:
        """f'' almost everywhere."""
        return slope_of(self.slope)

    @cached_property
    def jumps(self) -> bool:
        """Whether f jumps (its derivative then has more than its values almost everywhere)."""
        return isinstance(self.function, sp.Expr) and has_jump(self.function, X)

    def mean(self, q: Any, mean: Any = 0.0) -> Any:
        """E f."""
        return moment(self.function, q, mean)

    def second_moment(self, q: Any, mean: Any = 0.0) -> Any:
        """E f^2."""
        return moment(product(self.function, self.function), q, mean)

    def derivative_second_moment(self, q: Any, mean: Any = 0.0) -> Any:
        """E f'^2."""
        return moment(product(self.slope, self.slope), q, mean)

    def second_derivative_second_moment(self, q: Any, mean: Any = 0.0) -> Any:
        """E f''^2."""
        return moment(product(self.curvature, self.curvature), q, mean)

    def second_moment_slope(self, q: Any) -> Any:
        """d E f(x)^2 / dq = E[f(x)^2 (x^2/q - 1)] / (2 q), x ~ N(0, q); jumps included."""
        square = product(self.function, self.function)
        weighted = moment(product(square, X**2), q)
        return (weighted / q - moment(square, q)) / (2 * np.asarray(q))

    def kernel(self, q: Any, c: Any) -> Any:
        """E[f(u) f(v)]."""
        return kernel(self.function, self.function, q, c)

    def derivative_kernel(self, q: Any, c: Any) -> Any:
        """E[f'(u) f'(v)]."""
        return kernel(self.slope, self.slope, q, c)

    def kernel_slope(self, q: Any, c: Any) -> Any:
        """d E[f(u) f(v)] / dc, by Price's theorem q E[f'(u) f'(v)]; by differences (1e-6) where f jumps."""
        if not self.jumps:
            return np.asarray(q) * self.derivative_kernel(q, c)
        step = 1e-4 * np.minimum(1.0, 1.0 - np.abs(c))
        rise = self.kernel(q, c + step) - self.kernel(q, c - step)
        return np.where(step > 0, rise / np.where(step > 0, 2 * step, 1.0), np.inf)
